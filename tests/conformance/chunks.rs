//! Copying and hashing images by chunks.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use journal_format::{ChunkRecordV1, ChunkState, ChunkValue, ImageFormat};
use kvm_clone::transfer::manifest;
use kvm_clone::world::{
    BATCH_CHUNKS_MAX, ChunkGeometry, ChunkSink, CopyJob, FaultKind, FileKind, HashJob, Layer, Patch, Side, SinkClosed,
    ZeroChunks,
};

use super::{Ground, Owner, assert_kind, bytes, cases, kind, other};

cases![
    values_of_chunks_make_the_root_of_the_image,
    patches_are_hashed_and_copied,
    a_chain_is_hashed_and_copied_as_its_guest_sees_it,
    only_wanted_chunks_are_hashed,
    hashing_needs_the_inode,
    a_copy_is_the_image_and_stays_sparse,
    only_wanted_chunks_are_copied,
    zeros_are_punched_where_asked,
    a_copy_needs_the_inode,
    a_closed_sink_ends_copy_and_hash,
    agents_count_what_they_do,
    a_device_is_read_whole,
    a_device_is_written_to_only_while_it_is_held,
];

const CHUNK_BYTES: u32 = 64 << 10;

/// An image with data, a hole, zeros that are allocated, and an odd end.
fn odd_image() -> (u64, Vec<(u64, Vec<u8>)>) {
    let chunk = u64::from(CHUNK_BYTES);
    let len = usize::try_from(chunk).unwrap();
    let size = 6 * chunk + 1234;
    (size, vec![(0, bytes(len, 1)), (3 * chunk, vec![0; len]), (4 * chunk, bytes(len, 2)), (6 * chunk, bytes(1234, 3))])
}

fn flat(size: u64, extents: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut image = vec![0; usize::try_from(size).unwrap()];
    for (offset, data) in extents {
        let offset = usize::try_from(*offset).unwrap();
        image[offset..offset + data.len()].copy_from_slice(data);
    }
    image
}

#[derive(Default)]
struct Seen {
    chunks: BTreeMap<u64, ChunkState>,
    holes: Vec<u64>,
    read_back: BTreeSet<u64>,
    calls_left: Option<u32>,
}

impl Seen {
    fn count(&mut self) -> Result<(), SinkClosed> {
        match &mut self.calls_left {
            Some(0) => Err(SinkClosed),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn all(&self) -> Vec<u64> {
        let mut all: Vec<u64> = self.chunks.keys().copied().chain(self.holes.iter().copied()).collect();
        all.sort_unstable();
        all
    }
}

impl ChunkSink for Seen {
    fn chunks(&mut self, records: &[ChunkRecordV1]) -> Result<(), SinkClosed> {
        assert!(!records.is_empty() && records.len() <= BATCH_CHUNKS_MAX);
        self.count()?;
        for record in records {
            assert_eq!(self.chunks.insert(record.index, record.state), None, "chunk {} twice", record.index);
        }
        Ok(())
    }

    fn holes(&mut self, chunks: Range<u64>) -> Result<(), SinkClosed> {
        self.count()?;
        self.holes.extend(chunks);
        Ok(())
    }

    fn read_back(&mut self, records: &[ChunkRecordV1]) -> Result<(), SinkClosed> {
        assert!(!records.is_empty() && records.len() <= BATCH_CHUNKS_MAX);
        for record in records {
            assert_eq!(self.chunks.get(&record.index), Some(&record.state), "chunk {} read back", record.index);
            assert!(self.read_back.insert(record.index), "chunk {} read back twice", record.index);
        }
        Ok(())
    }
}

fn hash_job(path: &str, image_bytes: u64) -> HashJob {
    let geometry = ChunkGeometry { image_bytes, chunk_bytes: CHUNK_BYTES };
    HashJob {
        path: path.to_owned(),
        inode: None,
        geometry,
        wanted: vec![0..geometry.chunk_count()],
        reread: false,
        patches: Vec::new(),
        below: Vec::new(),
    }
}

fn values_of_chunks_make_the_root_of_the_image(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let (size, extents) = odd_image();
    let small = vec![(0, bytes(1000, 4))];
    for (name, size, extents) in [("odd", size, extents), ("small", 1000, small), ("holes", 5 << 20, vec![])] {
        let path = owner.path(name);
        ground.put(Side::Destination, &path, size, &extents);
        for reread in [false, true] {
            let mut seen = Seen::default();
            let job = HashJob { reread, ..hash_job(&path, size) };
            owner.host.hash_chunks(&job, &mut seen).unwrap();
            assert_eq!(seen.all(), (0..job.geometry.chunk_count()).collect::<Vec<_>>());
            let root = manifest::root(job.geometry, &seen.chunks);
            assert_eq!(root, ChunkValue(*blake3::hash(&flat(size, &extents)).as_bytes()), "{name}");
            let zeros = |state: &ChunkState| *state == ChunkState::Zero;
            assert!(seen.chunks.values().filter(|state| zeros(state)).count() <= 1, "holes are reported as holes");
        }
    }
}

/// Bytes that a guest sees through the chain below.
const GUEST_BYTES: u64 = 4 * CHUNK_BYTES as u64 - 512;

/// A chain of three images in that directory: clusters of its own at the top, a zero cluster in the middle, and a raw image that is
/// shorter than the others. Their paths from the top down, and what a guest sees.
fn put_chain(ground: &dyn Ground, side: Side, directory: &str) -> (Vec<String>, Vec<u8>) {
    let chunk = u64::from(CHUNK_BYTES);
    let own = bytes(usize::try_from(chunk).unwrap(), 7);
    let raw = bytes(usize::try_from(2 * chunk + 8192).unwrap(), 8);
    // Header, both tables, and data, each in a cluster of the chunks' size.
    let image = |entries: [u64; 4], below: &str| {
        let mut header = vec![0; 4096];
        let mut put = |at: usize, number: u64, bytes: usize| {
            header[at..at + bytes].copy_from_slice(&number.to_be_bytes()[8 - bytes..]);
        };
        for (at, number) in [(0, 0x5146_49fb), (4, 3), (16, below.len() as u64), (20, 16), (36, 1), (100, 104)] {
            put(at, number, 4);
        }
        for (at, number) in [(8, 112), (24, GUEST_BYTES), (40, chunk)] {
            put(at, number, 8);
        }
        header[112..112 + below.len()].copy_from_slice(below.as_bytes());
        let table = |entries: &[u64]| {
            let mut table: Vec<u8> = entries.iter().flat_map(|entry| entry.to_be_bytes()).collect();
            table.resize(4096, 0);
            table
        };
        vec![
            (0, header),
            (chunk, table(&[(2 * chunk) | (1 << 63)])),
            (2 * chunk, table(&entries)),
            (3 * chunk, own.clone()),
        ]
    };
    let paths = ["top", "middle", "base"].map(|name| format!("{directory}/{name}"));
    ground.put(side, &paths[0], 4 * chunk, &image([0, (3 * chunk) | (1 << 63), 0, 0], "middle"));
    ground.put(side, &paths[1], 4 * chunk, &image([1, 1, 0, 0], "base"));
    ground.put(side, &paths[2], raw.len() as u64, &[(0, raw.clone())]);
    let seen = [vec![0; own.len()], own, raw[2 * usize::try_from(chunk).unwrap()..].to_vec()].concat();
    (paths.into(), [seen.clone(), vec![0; usize::try_from(GUEST_BYTES).unwrap() - seen.len()]].concat())
}

/// The highest image that has something says what the guest sees; what none has is a hole.
fn a_chain_is_hashed_and_copied_as_its_guest_sees_it(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let mut job = copy_job(&owner, ground, ZeroChunks::Skip);
    let source = ground.world().connect(Side::Source).unwrap();
    let (paths, expected) = put_chain(ground, Side::Source, &ground.scratch(Side::Source));
    let layer = |at: usize, format| Layer { path: paths[at].clone(), format };
    let below = vec![layer(1, ImageFormat::Qcow2), layer(2, ImageFormat::Raw)];
    let root = ChunkValue(*blake3::hash(&expected).as_bytes());
    for reread in [false, true] {
        let mut seen = Seen::default();
        let hash = HashJob { below: below.clone(), reread, ..hash_job(&paths[0], GUEST_BYTES) };
        source.hash_chunks(&hash, &mut seen).unwrap();
        assert_eq!(manifest::root(hash.geometry, &seen.chunks), root);
        assert_eq!((seen.all(), seen.holes), (vec![0, 1, 2, 3], vec![0, 3]));
    }
    // What is below the top is another chain, and its guest sees another size.
    let other = HashJob { below: below[1..].to_vec(), ..hash_job(&paths[1], GUEST_BYTES) };
    source.hash_chunks(&other, &mut Seen::default()).unwrap();
    let wrong = HashJob { below: below.clone(), ..hash_job(&paths[0], GUEST_BYTES + 512) };
    assert_eq!(kind(source.hash_chunks(&wrong, &mut Seen::default())), FaultKind::Changed);
    let alone = HashJob { below: vec![layer(2, ImageFormat::Qcow2)], ..hash_job(&paths[0], GUEST_BYTES) };
    assert_eq!(kind(source.hash_chunks(&alone, &mut Seen::default())), FaultKind::Unsupported);

    job = CopyJob { from: paths[0].clone(), below, geometry: hash_job("", GUEST_BYTES).geometry, ..job };
    job.wanted = vec![0..4];
    owner.host.set_size(&job.to, job.to_inode, GUEST_BYTES, false).unwrap();
    let mut seen = Seen::default();
    ground.world().copy_chunks(&job, &mut seen).unwrap();
    assert_eq!(ground.get(Side::Destination, &job.to), Some(expected));
    assert_eq!((seen.all(), seen.holes), (vec![0, 1, 2, 3], vec![0, 3]));
    ground.world().disconnect(Side::Source);
}

/// Bytes that are to be other ones, over the border of two chunks and within one, are hashed and copied as such.
fn patches_are_hashed_and_copied(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let mut job = copy_job(&owner, ground, ZeroChunks::Skip);
    let (size, extents) = odd_image();
    let mut expected = flat(size, &extents);
    // Chunk 3 is all zeros but for its last two bytes then.
    for (offset, bytes) in [(5, vec![0x11; 3]), (4 * u64::from(CHUNK_BYTES) - 2, vec![0x22; 5])] {
        let at = usize::try_from(offset).unwrap();
        expected[at..at + bytes.len()].copy_from_slice(&bytes);
        job.patches.push(Patch { offset, bytes });
    }
    let mut seen = Seen::default();
    ground.world().copy_chunks(&job, &mut seen).unwrap();
    let root = ChunkValue(*blake3::hash(&expected).as_bytes());
    assert_eq!(manifest::root(job.geometry, &seen.chunks), root);
    let mut read_back = Seen::default();
    owner.host.hash_chunks(&HashJob { reread: true, ..hash_job(&job.to, size) }, &mut read_back).unwrap();
    assert_eq!(manifest::root(job.geometry, &read_back.chunks), root);
    let source = ground.world().connect(Side::Source).unwrap();
    let patched = HashJob { patches: job.patches.clone(), ..hash_job(&job.from, size) };
    let mut hashed = Seen::default();
    source.hash_chunks(&patched, &mut hashed).unwrap();
    assert_eq!(manifest::root(job.geometry, &hashed.chunks), root);
}

fn only_wanted_chunks_are_hashed(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let (size, extents) = odd_image();
    ground.put(Side::Destination, &owner.path("image"), size, &extents);
    let mut seen = Seen::default();
    let job = HashJob { wanted: vec![1..2, 4..7], ..hash_job(&owner.path("image"), size) };
    owner.host.hash_chunks(&job, &mut seen).unwrap();
    assert_eq!(seen.all(), [1, 4, 5, 6]);
}

fn hashing_needs_the_inode(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let path = owner.path("image");
    ground.put(Side::Destination, &path, 1000, &[(0, bytes(1000, 1))]);
    let inode = owner.host.stat(&path).unwrap().unwrap().inode;
    let job = HashJob { inode: Some(inode), ..hash_job(&path, 1000) };
    owner.host.hash_chunks(&job, &mut Seen::default()).unwrap();
    let job = HashJob { inode: Some(other(inode)), ..job };
    assert_eq!(kind(owner.host.hash_chunks(&job, &mut Seen::default())), FaultKind::Changed);
    let job = hash_job(&owner.path("absent"), 1000);
    assert_kind(owner.host.hash_chunks(&job, &mut Seen::default()), &[FaultKind::NotFound, FaultKind::Changed]);
    let job = hash_job(&path, 2000);
    assert_eq!(kind(owner.host.hash_chunks(&job, &mut Seen::default())), FaultKind::Changed);
}

/// Both hosts, an image on the source, and an empty file of its size on the destination.
fn copy_job(owner: &Owner, ground: &dyn Ground, zero_chunks: ZeroChunks) -> CopyJob {
    ground.world().connect(Side::Source).unwrap();
    let (size, extents) = odd_image();
    let from = format!("{}/image", ground.scratch(Side::Source));
    ground.put(Side::Source, &from, size, &extents);
    let to = owner.path("staged");
    let to_inode = owner.host.make_file(&to, 0o600, b"").unwrap();
    owner.host.set_size(&to, to_inode, size, false).unwrap();
    let geometry = ChunkGeometry { image_bytes: size, chunk_bytes: CHUNK_BYTES };
    CopyJob {
        from,
        to,
        to_inode,
        geometry,
        wanted: vec![0..geometry.chunk_count()],
        patches: Vec::new(),
        below: Vec::new(),
        zero_chunks,
        read_back: false,
        bandwidth_limit_bytes_per_second: None,
    }
}

fn a_copy_is_the_image_and_stays_sparse(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let job = CopyJob { read_back: true, ..copy_job(&owner, ground, ZeroChunks::Skip) };
    let mut seen = Seen::default();
    let summary = ground.world().copy_chunks(&job, &mut seen).unwrap();
    let data = seen.chunks.iter().filter(|(_, state)| **state != ChunkState::Zero).map(|(index, _)| *index);
    assert_eq!(seen.read_back, data.collect(), "all data is read back, and nothing else");
    let (size, extents) = odd_image();
    let image = flat(size, &extents);
    assert_eq!(ground.get(Side::Destination, &job.to).unwrap(), image);
    assert_eq!(ground.get(Side::Source, &job.from).unwrap(), image);
    assert_eq!(summary.sent_bytes, 2 * u64::from(CHUNK_BYTES) + 1234);
    assert_eq!(seen.all(), (0..job.geometry.chunk_count()).collect::<Vec<_>>());
    assert_eq!(manifest::root(job.geometry, &seen.chunks), ChunkValue(*blake3::hash(&image).as_bytes()));
    let allocated = owner.host.stat(&job.to).unwrap().unwrap().allocated;
    assert!(allocated <= 3 * u64::from(CHUNK_BYTES), "{allocated} bytes are allocated");
    // The values are those that a hash of the destination finds.
    let mut there = Seen::default();
    owner.host.hash_chunks(&hash_job(&job.to, size), &mut there).unwrap();
    let data = |seen: &Seen| -> Vec<_> {
        seen.chunks.iter().filter(|(_, s)| **s != ChunkState::Zero).map(|(i, s)| (*i, *s)).collect()
    };
    assert_eq!(data(&seen), data(&there));
    ground.world().disconnect(Side::Source);
}

fn only_wanted_chunks_are_copied(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let mut job = copy_job(&owner, ground, ZeroChunks::Skip);
    job.wanted = vec![0..1, 6..7];
    let mut seen = Seen::default();
    ground.world().copy_chunks(&job, &mut seen).unwrap();
    assert_eq!(seen.all(), [0, 6]);
    let (size, mut extents) = odd_image();
    extents.retain(|(offset, _)| *offset == 0 || *offset == 6 * u64::from(CHUNK_BYTES));
    assert_eq!(ground.get(Side::Destination, &job.to).unwrap(), flat(size, &extents));
    ground.world().disconnect(Side::Source);
}

fn zeros_are_punched_where_asked(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let job = copy_job(&owner, ground, ZeroChunks::Punch);
    let size = job.geometry.image_bytes;
    for offset in (0..size).step_by(32 << 10) {
        let len = usize::try_from((size - offset).min(32 << 10)).unwrap();
        owner.host.write_at(&job.to, job.to_inode, offset, &vec![0xee; len]).unwrap();
    }
    let mut seen = Seen::default();
    ground.world().copy_chunks(&job, &mut seen).unwrap();
    let (size, extents) = odd_image();
    assert_eq!(ground.get(Side::Destination, &job.to).unwrap(), flat(size, &extents));
    assert_eq!(seen.holes, [0_u64; 0], "what was punched is reported as a chunk, once it is durable");
    assert_eq!(seen.all(), (0..job.geometry.chunk_count()).collect::<Vec<_>>());
    ground.world().disconnect(Side::Source);
}

fn a_copy_needs_the_inode(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let mut job = copy_job(&owner, ground, ZeroChunks::Skip);
    job.to_inode = other(job.to_inode);
    assert_eq!(kind(ground.world().copy_chunks(&job, &mut Seen::default())), FaultKind::Changed);
    let size = job.geometry.image_bytes;
    assert_eq!(ground.get(Side::Destination, &job.to).unwrap(), flat(size, &[]));
    ground.world().disconnect(Side::Source);
}

fn a_closed_sink_ends_copy_and_hash(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let job = copy_job(&owner, ground, ZeroChunks::Skip);
    let mut closed = Seen { calls_left: Some(0), ..Seen::default() };
    assert_eq!(kind(ground.world().copy_chunks(&job, &mut closed)), FaultKind::Sink);
    let size = job.geometry.image_bytes;
    assert_eq!(kind(owner.host.hash_chunks(&hash_job(&job.to, size), &mut closed)), FaultKind::Sink);
    // Both hosts can still be used.
    ground.world().copy_chunks(&job, &mut Seen::default()).unwrap();
    let (size, extents) = odd_image();
    assert_eq!(ground.get(Side::Destination, &job.to).unwrap(), flat(size, &extents));
    ground.world().disconnect(Side::Source);
}

fn agents_count_what_they_do(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let job = copy_job(&owner, ground, ZeroChunks::Skip);
    let source = ground.world().connect(Side::Source).unwrap();
    ground.world().copy_chunks(&job, &mut Seen::default()).unwrap();
    let (read, written) = (source.counts().unwrap(), owner.host.counts().unwrap());
    let data = 2 * u64::from(CHUNK_BYTES) + 1234;
    // Zeros that are allocated are read, and never written; holes neither.
    assert_eq!((read.image_bytes_read, read.image_bytes_written), (data + u64::from(CHUNK_BYTES), 0));
    assert_eq!((written.image_bytes_read, written.image_bytes_written), (0, data));
    owner.host.hash_chunks(&hash_job(&job.to, job.geometry.image_bytes), &mut Seen::default()).unwrap();
    let hashed = owner.host.counts().unwrap();
    assert_eq!((hashed.image_bytes_read, hashed.image_bytes_written), (data, data));
    owner.host.stat(&job.to).unwrap();
    assert_eq!(owner.host.counts().unwrap().requests, hashed.requests + 2, "a look, and this question");
    owner.host.domains().unwrap();
    assert!(owner.host.counts().unwrap().libvirt_calls > hashed.libvirt_calls);
    ground.world().disconnect(Side::Source);
}

/// A device has a size and no holes; its zeros are found by reading, and not written to the copy.
fn a_device_is_read_whole(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let source = ground.world().connect(Side::Source).unwrap();
    let (_, extents) = odd_image();
    let size = 6 * u64::from(CHUNK_BYTES) + 1536;
    let image = flat(size, &extents);
    let device = ground.put_device(Side::Source, &image);
    let stat = source.stat(&device).unwrap().unwrap();
    assert_eq!((stat.kind, stat.size), (FileKind::BlockDevice, size));
    assert_eq!(source.read(&device, 100).unwrap().unwrap(), image[..100]);
    source.lock_image(&device).unwrap();
    let root = ChunkValue(*blake3::hash(&image).as_bytes());
    let job = hash_job(&device, size);
    for reread in [false, true] {
        let mut seen = Seen::default();
        source.hash_chunks(&HashJob { reread, ..job.clone() }, &mut seen).unwrap();
        assert!(seen.holes.is_empty() && seen.chunks.len() == 7);
        assert_eq!(manifest::root(job.geometry, &seen.chunks), root);
    }
    let to = owner.path("staged");
    let to_inode = owner.host.make_file(&to, 0o600, b"").unwrap();
    owner.host.set_size(&to, to_inode, size, false).unwrap();
    let copy = CopyJob {
        from: device,
        to: to.clone(),
        to_inode,
        geometry: job.geometry,
        wanted: job.wanted,
        patches: Vec::new(),
        below: Vec::new(),
        zero_chunks: ZeroChunks::Skip,
        read_back: false,
        bandwidth_limit_bytes_per_second: None,
    };
    let mut seen = Seen::default();
    ground.world().copy_chunks(&copy, &mut seen).unwrap();
    assert!(seen.holes.is_empty());
    assert_eq!(manifest::root(copy.geometry, &seen.chunks), root);
    assert_eq!(ground.get(Side::Destination, &to).unwrap(), image);
    let allocated = owner.host.stat(&to).unwrap().unwrap().allocated;
    assert!(allocated <= 5 * u64::from(CHUNK_BYTES), "{allocated} bytes are allocated");
}

/// It may be larger than the image, and holds something: zeros are written too, and what is behind the image stays.
fn a_device_is_written_to_only_while_it_is_held(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let old = bytes(7 * CHUNK_BYTES as usize, 9);
    let device = ground.put_device(Side::Destination, &old);
    let file = owner.path("file");
    owner.host.make_file(&file, 0o600, b"no device").unwrap();
    for path in [&file, &owner.path("absent")] {
        assert_eq!(owner.host.device(path).unwrap(), None);
    }
    let facts = owner.host.device(&device).unwrap().unwrap();
    let identity = facts.identity.clone().unwrap();
    assert_eq!((facts.bytes, facts.in_use, facts.read_only), (old.len() as u64, false, false));
    assert!(!identity.contains('/') && identity.len() <= 200, "{identity}");
    assert!(owner.host.devices_like(&identity).unwrap().contains(&device));
    assert_eq!(owner.host.devices_like("another").unwrap(), Vec::<String>::new());

    owner.host.allow(std::slice::from_ref(&device)).unwrap();
    let job = copy_job(&owner, ground, ZeroChunks::Punch);
    let job = CopyJob { to: device.clone(), to_inode: facts.inode, read_back: true, ..job };
    assert_eq!(kind(ground.world().copy_chunks(&job, &mut Seen::default())), FaultKind::Fenced);
    assert_eq!(kind(owner.host.hold_device(&device, "another")), FaultKind::Changed);
    assert_eq!(kind(owner.host.hold_device(&file, &identity)), FaultKind::Unsupported);
    assert_eq!(kind(owner.host.hold_device(&owner.path("absent"), &identity)), FaultKind::NotFound);
    assert_eq!(kind(ground.world().copy_chunks(&job, &mut Seen::default())), FaultKind::Fenced);
    assert_eq!(ground.get(Side::Destination, &device).unwrap(), old, "nothing was written");

    for _ in 0..2 {
        assert_eq!(owner.host.hold_device(&device, &identity).unwrap(), facts.inode);
    }
    let mut seen = Seen::default();
    ground.world().copy_chunks(&job, &mut seen).unwrap();
    let (size, extents) = odd_image();
    let written = ground.get(Side::Destination, &device).unwrap();
    let (image, rest) = written.split_at(usize::try_from(size).unwrap());
    assert!(image == flat(size, &extents), "the image is on the device");
    assert!(rest == &old[image.len()..], "what is behind it stays");
    assert_eq!(seen.all(), (0..7).collect::<Vec<_>>());
    let mut found = Seen::default();
    owner.host.hash_chunks(&HashJob { reread: true, ..hash_job(&device, size) }, &mut found).unwrap();
    assert_eq!(manifest::root(job.geometry, &seen.chunks), manifest::root(job.geometry, &found.chunks));
    ground.world().disconnect(Side::Source);
}
