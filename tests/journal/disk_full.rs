//! The controller's disk is full at each append and at each ledger write, before the first copy is written or between
//! the two: a clean stop that says what to do, readers that still read, and everything there again once there is room.

use std::fs::{self, File};

use journal_format::{EndV1, EventV1, RecordV1};
use kvm_clone::failure::journal_failure;
use kvm_clone::journal::{self, FileJournal, Journal, JournalError, Repair, StateDir};
use nix::fcntl::posix_fallocate;
use nix::sys::statvfs::statvfs;

use super::poison::SmallDisk;
use super::{chunk, example};

const DISK_BYTES: u64 = 32 * 1024 * 1024;
/// Records of one journal. Each fills pages of its own in both copies, so that a full disk is met by the next one.
const COUNT: u64 = 12;
const REASON_BYTES: usize = 9000;
/// Room for a record in the log and not in the second copy as well: it takes three pages at most, and two at least.
const ROOM_FOR_ONE_COPY_BYTES: u64 = 3 * 4096;

fn record(number: u64) -> RecordV1 {
    match number {
        0 => example::transaction().remove(0),
        COUNT => example::record(number, 1, EventV1::Finished { end: EndV1::Committed }),
        _ => example::record(number, 1, EventV1::Abandoned { reason: "x".repeat(REASON_BYTES) }),
    }
}

/// A small disk with a state directory and a file that takes all other space.
struct Ground {
    disk: SmallDisk,
    state: StateDir,
}

impl Ground {
    fn new() -> Option<Self> {
        let disk = SmallDisk::mount(DISK_BYTES)?;
        let state = StateDir::at(&disk.path().join("state")).unwrap();
        Some(Self { disk, state })
    }

    /// Leaves this much room.
    fn fill(&self, room_bytes: u64) {
        let filler = File::options().append(true).create(true).open(self.disk.path().join("filler")).unwrap();
        let space = statvfs(self.disk.path()).unwrap();
        let taken = (space.blocks_available() * space.fragment_size()).saturating_sub(room_bytes);
        if taken > 0 {
            let end = filler.metadata().unwrap().len();
            posix_fallocate(&filler, i64::try_from(end).unwrap(), i64::try_from(taken).unwrap()).unwrap();
        }
    }

    fn make_room(&self) {
        fs::remove_file(self.disk.path().join("filler")).unwrap();
    }

    fn open(&self) -> Result<(FileJournal, Vec<Repair>), JournalError> {
        FileJournal::open(&self.state, example::txn())
    }

    fn written(&self, count: u64) -> FileJournal {
        let mut journal = FileJournal::create(&self.state, record(0)).unwrap();
        for number in 1..count {
            journal.append(number, record(number)).unwrap();
        }
        journal
    }

    /// All records up to `acknowledged`, and perhaps the one that did not fit.
    fn assert_kept(records: &[RecordV1], acknowledged: u64) {
        let count = records.len() as u64;
        assert!(count == acknowledged || count == acknowledged + 1, "{count} records, {acknowledged} acknowledged");
        assert_eq!(records, (0..count).map(record).collect::<Vec<_>>());
    }

    /// From a full disk on: read, opened with the ballast's space, refused without, opened again and finished.
    fn goes_on(&self, acknowledged: u64) {
        Self::assert_kept(&journal::read(&self.state, example::txn()).unwrap().records, acknowledged);
        let (journal, repairs) = self.open().unwrap();
        assert!(repairs.contains(&Repair::BallastFreed), "{repairs:?}");
        Self::assert_kept(journal.records(), acknowledged);
        drop(journal);

        self.fill(0);
        let before = super::content(&self.state.txn_path(example::txn()));
        assert_suspends(&self.open().unwrap_err());
        assert!(super::content(&self.state.txn_path(example::txn())) == before, "a refused opening changed something");
        Self::assert_kept(&journal::read(&self.state, example::txn()).unwrap().records, acknowledged);

        self.make_room();
        let (mut journal, _) = self.open().unwrap();
        Self::assert_kept(journal.records(), acknowledged);
        for number in journal.records().len() as u64..=COUNT {
            journal.append(number, record(number)).unwrap();
        }
        drop(journal);
        let (journal, repairs) = self.open().unwrap();
        assert_eq!((journal.records().len() as u64, &repairs[..]), (COUNT + 1, &[][..]));
    }
}

/// The disk is named as full, and that the transaction can go on once there is room: exit status 3.
fn assert_suspends(error: &JournalError) {
    let JournalError::Io { source, .. } = error else { panic!("{error}") };
    assert_eq!(source.kind(), std::io::ErrorKind::StorageFull, "{error}");
    let failure = journal_failure(error);
    assert_eq!(failure.exit, 3);
    assert!(failure.advice.contains("make room"), "{}", failure.advice);
}

#[test]
fn a_full_disk_stops_each_append_and_each_goes_on_when_there_is_room() {
    for room_bytes in [0, ROOM_FOR_ONE_COPY_BYTES] {
        for number in 1..COUNT {
            let Some(ground) = Ground::new() else { return };
            let mut journal = ground.written(number);
            ground.fill(room_bytes);
            assert_suspends(&journal.append(number, record(number)).unwrap_err());
            let is_poisoned = |result| matches!(result, Err(JournalError::Poisoned { .. }));
            assert!(is_poisoned(journal.append(number, record(number))), "record {number}, room {room_bytes}");
            drop(journal);
            ground.goes_on(number);
        }
    }
}

#[test]
fn a_full_disk_stops_a_ledger_write_and_no_chunk_of_it_is_believed() {
    for number in 1..4 {
        let Some(ground) = Ground::new() else { return };
        let mut journal = ground.written(number);
        journal.record_chunks(0, &[chunk(1), chunk(2)]).unwrap();
        ground.fill(0);
        let many: Vec<_> = (10..2000).map(chunk).collect();
        assert_suspends(&journal.record_chunks(0, &many).unwrap_err());
        drop(journal);
        let (journal, _) = ground.open().unwrap();
        let kept: Vec<u64> = journal.chunks(0).unwrap().into_keys().collect();
        // A write of many chunks is several batches, each whole or not at all.
        assert!(kept.starts_with(&[1, 2]), "{} chunks", kept.len());
        assert!(kept[2..].iter().copied().eq(10..10 + kept.len() as u64 - 2), "{} chunks", kept.len());
        drop(journal);
        ground.make_room();
        assert_eq!(ground.open().unwrap().0.chunks(0).unwrap().into_keys().collect::<Vec<_>>(), kept);
    }
}
