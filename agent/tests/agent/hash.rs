//! Values of chunks.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use journal_format::{ChunkRecordV1, ChunkState, ChunkValue, Inode};
use kvm_clone_agent::protocol::{BATCH_CHUNKS_MAX, FailureKind, Geometry, HashJob, Message, Request, Steer};

use crate::client::{Client, Event, inode_of, text};

/// A sparse image with data here and there, zeros that are allocated, and an odd tail.
pub fn make_image(path: &Path, image_bytes: u64) {
    let file = File::create(path).unwrap();
    file.set_len(image_bytes).unwrap();
    let mut state = 0x9e37_79b9_u64;
    let mut put = |position: u64, bytes: u64, zero: bool| {
        let end = (position + bytes).min(image_bytes);
        if position >= end {
            return;
        }
        let block: Vec<u8> = (position..end)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                if zero { 0 } else { state.to_le_bytes()[3] | 1 }
            })
            .collect();
        file.write_all_at(&block, position).unwrap();
    };
    put(0, 3_500_000, false);
    put(5 << 20, 4 << 20, true);
    put((12 << 20) + 4096, 8192, false);
    put(20 << 20, 10 << 20, false);
    put(image_bytes.saturating_sub(1234), 1234, false);
    file.sync_all().unwrap();
}

/// Everything a hash says, in order.
pub fn hash(client: &mut Client, job: HashJob) -> Result<Vec<ChunkRecordV1>, FailureKind> {
    let id = client.send(&Request::HashChunks(job));
    let mut all: Vec<ChunkRecordV1> = Vec::new();
    loop {
        match client.next(id) {
            Event::Message(Message::Hashed { records }) => {
                assert!(!records.is_empty() && records.len() <= BATCH_CHUNKS_MAX);
                all.extend(records);
            }
            Event::Message(Message::Holes { chunks }) => {
                assert!(!chunks.is_empty());
                all.extend(chunks.map(|index| ChunkRecordV1 { index, state: ChunkState::Zero }));
            }
            Event::Message(Message::Ended(end)) => return end.map(|()| all).map_err(|failure| failure.kind),
            other => panic!("{other:?}"),
        }
    }
}

/// The root that these records make.
pub fn root(geometry: Geometry, records: &[ChunkRecordV1]) -> Option<ChunkValue> {
    let zeros = vec![0; geometry.chunk_bytes as usize];
    let values: Vec<_> = records
        .iter()
        .map(|record| match record.state {
            ChunkState::Data(value) => value,
            ChunkState::Zero => geometry.value(record.index, &zeros[..geometry.chunk_len(record.index) as usize]),
        })
        .collect();
    geometry.root(&values)
}

fn plain(path: &Path) -> ChunkValue {
    ChunkValue(*blake3::hash(&std::fs::read(path).unwrap()).as_bytes())
}

fn job(path: &Path, geometry: Geometry, reread: bool) -> HashJob {
    HashJob {
        path: text(path),
        inode: None,
        geometry,
        wanted: vec![0..geometry.chunk_count()],
        reread,
        patches: Vec::new(),
        below: Vec::new(),
    }
}

#[test]
fn values_compose_to_the_plain_hash_of_the_file() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = directory.path().join("image");
    let mut client = Client::source();
    for image_bytes in [1, 4096, 70_001, 40 << 20, (40 << 20) + 777] {
        make_image(&path, image_bytes);
        for (chunk_bytes, reread) in
            [(1 << 20, false), (1 << 20, true), (64 << 10, true), (4 << 20, true), (2048, false)]
        {
            let geometry = Geometry { image_bytes, chunk_bytes };
            let records = hash(&mut client, job(&path, geometry, reread)).unwrap();
            assert!(records.iter().map(|record| record.index).eq(0..geometry.chunk_count()), "in order");
            assert_eq!(root(geometry, &records), Some(plain(&path)), "{geometry:?} {reread}");
        }
    }
}

#[test]
fn a_filesystem_without_direct_io_is_hashed_too() {
    let Ok(directory) = tempfile::tempdir_in("/dev/shm") else {
        eprintln!("skipped: no /dev/shm");
        return;
    };
    let path = directory.path().join("image");
    make_image(&path, 9_000_001);
    let geometry = Geometry { image_bytes: 9_000_001, chunk_bytes: 1 << 20 };
    let records = hash(&mut Client::source(), job(&path, geometry, true)).unwrap();
    assert_eq!(root(geometry, &records), Some(plain(&path)));
}

#[test]
fn only_what_is_wanted_is_hashed() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = directory.path().join("image");
    make_image(&path, 40 << 20);
    let geometry = Geometry { image_bytes: 40 << 20, chunk_bytes: 1 << 20 };
    let mut client = Client::source();
    let wanted = HashJob { wanted: vec![1..3, 6..7, 25..26, 39..40], ..job(&path, geometry, true) };
    let records = hash(&mut client, wanted).unwrap();
    assert_eq!(records.iter().map(|record| record.index).collect::<Vec<_>>(), [1, 2, 6, 25, 39]);
    assert_eq!(records[2].state, ChunkState::Zero, "allocated zeros are zero");
    assert!(hash(&mut client, HashJob { wanted: vec![], ..job(&path, geometry, true) }).unwrap().is_empty());
}

#[test]
fn a_file_that_is_not_the_one_is_refused() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = directory.path().join("image");
    make_image(&path, 1 << 20);
    let geometry = Geometry { image_bytes: 1 << 20, chunk_bytes: 65_536 };
    let mut client = Client::source();
    let good = job(&path, geometry, false);
    let inode = inode_of(&path);
    assert!(hash(&mut client, HashJob { inode: Some(inode), ..good.clone() }).is_ok());
    let mut kind = |job: HashJob| hash(&mut client, job).unwrap_err();
    assert_eq!(kind(HashJob { inode: Some(Inode(inode.0 + 1)), ..good.clone() }), FailureKind::Changed);
    for image_bytes in [(1 << 20) - 1, (1 << 20) + 1] {
        let geometry = Geometry { image_bytes, ..geometry };
        let wanted = vec![0..geometry.chunk_count()];
        assert_eq!(kind(HashJob { geometry, wanted, ..good.clone() }), FailureKind::Changed);
    }
    assert_eq!(kind(HashJob { path: "/none".into(), ..good.clone() }), FailureKind::NotFound);
    assert_eq!(kind(HashJob { path: text(directory.path()), ..good.clone() }), FailureKind::Unsupported);
    assert_eq!(kind(HashJob { wanted: vec![0..17], ..good.clone() }), FailureKind::Protocol);
    let geometry = Geometry { chunk_bytes: 0, ..geometry };
    assert_eq!(kind(HashJob { geometry, ..good }), FailureKind::Protocol);
}

#[test]
fn a_cancelled_hash_ends() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = directory.path().join("image");
    let file = File::create(&path).unwrap();
    for megabyte in 0..256 {
        file.write_all_at(&vec![7; 1 << 20], megabyte << 20).unwrap();
    }
    let geometry = Geometry { image_bytes: 256 << 20, chunk_bytes: 1024 };
    let mut client = Client::source();
    let id = client.send(&Request::HashChunks(job(&path, geometry, false)));
    client.steer(id, Steer::Cancel);
    loop {
        match client.next(id) {
            Event::Message(Message::Ended(end)) => {
                assert_eq!(end.unwrap_err().kind, FailureKind::Cancelled);
                break;
            }
            Event::Message(Message::Hashed { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}
