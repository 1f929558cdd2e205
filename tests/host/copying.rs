//! Copies between two agents: every byte, holes, zeros, limits.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Instant;

use journal_format::{ChunkRecordV1, ChunkState, ChunkValue, Inode};
use kvm_clone::world::{ChunkGeometry, ChunkSink, CopyJob, FaultKind, HashJob, SinkClosed, World, ZeroChunks};
use kvm_clone_agent::chunk::Geometry;

use super::sshd::{Pair, Sshd, refused};

const MIB: u64 = 1 << 20;
const CHUNK: u32 = 1 << 20;

/// Keeps what it is told.
#[derive(Default)]
pub struct Ledger {
    pub chunks: BTreeMap<u64, ChunkState>,
    /// Says no once it has so many.
    pub closed_after: Option<usize>,
    /// Done once, when the first is durable.
    pub at_first: Option<Box<dyn FnOnce()>>,
}

impl ChunkSink for Ledger {
    fn chunks(&mut self, records: &[ChunkRecordV1]) -> Result<(), SinkClosed> {
        assert!(!records.is_empty() && records.len() <= kvm_clone::world::BATCH_CHUNKS_MAX);
        self.chunks.extend(records.iter().map(|record| (record.index, record.state)));
        if let Some(at_first) = self.at_first.take() {
            at_first();
        }
        if self.closed_after.is_some_and(|most| self.chunks.len() >= most) { Err(SinkClosed) } else { Ok(()) }
    }

    fn holes(&mut self, chunks: Range<u64>) -> Result<(), SinkClosed> {
        self.chunks.extend(chunks.map(|index| (index, ChunkState::Zero)));
        Ok(())
    }
}

/// Bytes that do not repeat within a chunk.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

/// An image of that size with random bytes in those places.
pub fn put(path: &str, size: u64, extents: &[Range<u64>]) {
    let file = OpenOptions::new().write(true).create_new(true).open(path).unwrap();
    file.set_len(size).unwrap();
    for extent in extents {
        let bytes = noise(usize::try_from(extent.end - extent.start).unwrap(), extent.start);
        file.write_all_at(&bytes, extent.start).unwrap();
    }
}

pub fn job(pair: &Pair, size: u64, inode: Inode) -> CopyJob {
    let geometry = ChunkGeometry { image_bytes: size, chunk_bytes: CHUNK };
    CopyJob {
        from: pair.scratch("source"),
        to: pair.scratch("staged"),
        to_inode: inode,
        geometry,
        wanted: vec![0..geometry.chunk_count()],
        patches: Vec::new(),
        below: Vec::new(),
        zero_chunks: ZeroChunks::Skip,
        read_back: true,
        bandwidth_limit_bytes_per_second: None,
    }
}

fn root(ledger: &Ledger, size: u64) -> ChunkValue {
    let geometry = Geometry { image_bytes: size, chunk_bytes: CHUNK };
    let values: Vec<ChunkValue> = (0..geometry.chunk_count())
        .map(|index| match ledger.chunks[&index] {
            ChunkState::Data(value) => value,
            ChunkState::Zero => geometry.value(index, &vec![0; usize::try_from(geometry.chunk_len(index)).unwrap()]),
        })
        .collect();
    geometry.root(&values).unwrap()
}

fn copies_whole(pair: &Pair) {
    // A short last chunk, holes, and zeros that are allocated.
    let size = 24 * MIB + 12_345;
    put(&pair.scratch("source"), size, &[0..5 * MIB, 9 * MIB + 4096..12 * MIB, 20 * MIB..size]);
    let source = OpenOptions::new().write(true).open(pair.scratch("source")).unwrap();
    source.write_all_at(&vec![0; 2 << 20], 3 * MIB).unwrap();
    let job = job(pair, size, pair.stage("staged", size));
    let mut ledger = Ledger::default();
    let summary = pair.world.copy_chunks(&job, &mut ledger).unwrap();
    let original = std::fs::read(&job.from).unwrap();
    assert!(original == std::fs::read(&job.to).unwrap(), "the copy differs");
    let plain = ChunkValue(*blake3::hash(&original).as_bytes());
    assert_eq!(root(&ledger, size), plain);
    assert_eq!(ledger.chunks.len() as u64, job.geometry.chunk_count());
    assert_eq!(ledger.chunks[&3], ChunkState::Zero);
    assert_eq!(ledger.chunks[&15], ChunkState::Zero);
    // 3 whole chunks, 3 (one of them a hole at its beginning), 4 whole ones and the short one.
    assert_eq!(summary.sent_bytes, 10 * MIB + 12_345);
    assert!(std::fs::metadata(&job.to).unwrap().blocks() * 512 <= 11 * MIB, "holes were filled");

    for (host, path) in [(&pair.source, &job.from), (&pair.destination, &job.to)] {
        let mut hashed = Ledger::default();
        let hash_job = HashJob {
            path: path.clone(),
            inode: None,
            geometry: job.geometry,
            wanted: job.wanted.clone(),
            patches: Vec::new(),
            below: Vec::new(),
            reread: true,
        };
        host.hash_chunks(&hash_job, &mut hashed).unwrap();
        assert_eq!(root(&hashed, size), plain);
    }
}

#[test]
fn a_copy_to_ssh_is_whole_and_sparse() {
    copies_whole(&Sshd::start().pair());
}

#[test]
fn a_copy_from_ssh_is_whole_and_sparse() {
    copies_whole(&Sshd::start().pair_back());
}

#[test]
fn only_what_is_wanted_is_sent() {
    let sshd = Sshd::start();
    let pair = sshd.pair();
    put(&pair.scratch("source"), 16 * MIB, &[0..16 * MIB]);
    let mut job = job(&pair, 16 * MIB, pair.stage("staged", 16 * MIB));
    job.wanted = vec![1..2, 5..8];
    let mut ledger = Ledger::default();
    assert_eq!(pair.world.copy_chunks(&job, &mut ledger).unwrap().sent_bytes, 4 * MIB);
    assert_eq!(ledger.chunks.keys().copied().collect::<Vec<_>>(), [1, 5, 6, 7]);
    let staged = std::fs::read(&job.to).unwrap();
    let original = std::fs::read(&job.from).unwrap();
    let at = |chunk: usize| chunk << 20..(chunk + 1) << 20;
    assert!(staged[at(6)] == original[at(6)] && staged[at(0)].iter().all(|byte| *byte == 0));
}

#[test]
fn a_chunk_that_became_zero_is_punched() {
    let sshd = Sshd::start();
    let pair = sshd.pair();
    put(&pair.scratch("source"), 8 * MIB, &[0..2 * MIB]);
    let inode = pair.stage("staged", 8 * MIB);
    let staged = OpenOptions::new().write(true).open(pair.scratch("staged")).unwrap();
    staged.write_all_at(&vec![0xaa; 8 << 20], 0).unwrap();
    let job = CopyJob { zero_chunks: ZeroChunks::Punch, ..job(&pair, 8 * MIB, inode) };
    let mut ledger = Ledger::default();
    assert_eq!(pair.world.copy_chunks(&job, &mut ledger).unwrap().sent_bytes, 2 * MIB);
    assert_eq!(ledger.chunks.len(), 8);
    assert_eq!(ledger.chunks[&7], ChunkState::Zero);
    assert!(std::fs::read(&job.from).unwrap() == std::fs::read(&job.to).unwrap());
}

#[test]
fn a_bandwidth_limit_is_kept_to_five_percent() {
    let sshd = Sshd::start();
    let pair = sshd.pair();
    put(&pair.scratch("source"), 48 * MIB, &[0..48 * MIB]);
    let mut job = job(&pair, 48 * MIB, pair.stage("staged", 48 * MIB));
    job.bandwidth_limit_bytes_per_second = Some(8 * MIB);
    let start = Instant::now();
    pair.world.copy_chunks(&job, &mut Ledger::default()).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    // Beginning and the last sync take their time on a busy machine; the pace itself has a test of its own.
    assert!((5.7..6.3 + 1.0).contains(&seconds), "{seconds} s for 6 s worth of bytes");
}

#[test]
fn a_sink_that_wants_no_more_ends_the_copy() {
    let sshd = Sshd::start();
    let pair = sshd.pair();
    put(&pair.scratch("source"), 64 * MIB, &[0..64 * MIB]);
    let mut job = job(&pair, 64 * MIB, pair.stage("staged", 64 * MIB));
    job.bandwidth_limit_bytes_per_second = Some(16 * MIB);
    let mut ledger = Ledger { closed_after: Some(1), ..Ledger::default() };
    let (kind, words) = refused(pair.world.copy_chunks(&job, &mut ledger));
    assert_eq!(kind, FaultKind::Sink, "{words}");
    // The agents live: the same copy may begin again.
    job.bandwidth_limit_bytes_per_second = None;
    pair.world.copy_chunks(&job, &mut Ledger::default()).unwrap();
}

#[test]
fn what_either_side_refuses_names_that_side() {
    let sshd = Sshd::start();
    let pair = sshd.pair();
    let inode = pair.stage("staged", 4 * MIB);
    let (kind, words) = refused(pair.world.copy_chunks(&job(&pair, 4 * MIB, inode), &mut Ledger::default()));
    assert_eq!(kind, FaultKind::NotFound, "{words}");
    assert!(words.starts_with("local: copy"), "{words}");
    put(&pair.scratch("source"), 4 * MIB, &[0..4 * MIB]);
    let wrong = Inode(inode.0 + 1);
    let (kind, words) = refused(pair.world.copy_chunks(&job(&pair, 4 * MIB, wrong), &mut Ledger::default()));
    assert_eq!(kind, FaultKind::Changed, "{words}");
    assert!(words.starts_with("test: copy"), "{words}");
}

/// `GIB=3 cargo test --release --test host -- --ignored --nocapture throughput`. Above 1 GiB ssh changes its keys meanwhile.
#[test]
#[ignore = "a measurement, not a test"]
fn throughput() {
    let gib: u64 = std::env::var("GIB").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    for back in [false, true] {
        let sshd = Sshd::start();
        let pair = if back { sshd.pair_back() } else { sshd.pair() };
        let size = gib << 30;
        put(&pair.scratch("source"), size, &[]);
        let source = OpenOptions::new().write(true).open(pair.scratch("source")).unwrap();
        (0..size / MIB).for_each(|chunk| source.write_all_at(&noise(1 << 20, chunk), chunk * MIB).unwrap());
        source.sync_all().unwrap();
        let job = job(&pair, size, pair.stage("staged", size));
        let processes = [std::process::id(), pair.source.agent().unwrap().pid, pair.destination.agent().unwrap().pid];
        let before = processes.map(cpu_seconds);
        let start = Instant::now();
        let mut ledger = Ledger::default();
        pair.world.copy_chunks(&job, &mut ledger).unwrap();
        #[allow(clippy::cast_precision_loss)]
        let rate = size as f64 / 1e6 / start.elapsed().as_secs_f64();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default();
        let direction = if back { "ssh to local" } else { "local to ssh" };
        println!("{direction}: {gib} GiB at {rate:.0} MB/s; controller {peak}");
        for ((name, process), before) in ["controller", "source", "destination"].iter().zip(processes).zip(before) {
            println!("  {name}: {:.1} s of CPU", cpu_seconds(process) - before);
        }
        let mut hasher = blake3::Hasher::new();
        std::io::copy(&mut std::fs::File::open(&job.to).unwrap(), &mut hasher).unwrap();
        assert_eq!(root(&ledger, size), ChunkValue(*hasher.finalize().as_bytes()));
    }
}

/// What a process has used of CPUs so far: on a busy machine the only honest measure.
fn cpu_seconds(process: u32) -> f64 {
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / TICKS_PER_SECOND
}
