//! A disk that loses power, and a journal that is cut off right after each kind of write. A small ext4 is told to forget
//! everything that was not synced (`EXT4_IOC_SHUTDOWN` without a flush of its log), and mounted again. Needs root.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use journal_format::{EventV1, RecordV1};
use kvm_clone::journal::{FileJournal, Journal, StateDir};
use tempfile::TempDir;

use super::{chunk, example, own_mounts, run};

const IMAGE_BYTES: u64 = 96 * 1024 * 1024;
/// `EXT4_GOING_FLAGS_NOLOGFLUSH`: what is not on the disk yet is lost.
const NO_LOG_FLUSH: u32 = 2;

nix::ioctl_read!(ext4_shutdown, b'X', 125, u32);

/// A small disk with a file system of its own.
pub struct Disk {
    temp: TempDir,
}

impl Disk {
    /// `None` where the test may not mount.
    pub fn make() -> Option<Self> {
        if !own_mounts() {
            return None;
        }
        let disk = Self { temp: tempfile::tempdir().unwrap() };
        File::create(disk.image()).unwrap().set_len(IMAGE_BYTES).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(disk.image()));
        std::fs::create_dir(disk.root()).unwrap();
        disk.mount();
        Some(disk)
    }

    fn image(&self) -> PathBuf {
        self.temp.path().join("image")
    }

    fn root(&self) -> PathBuf {
        self.temp.path().join("root")
    }

    fn mount(&self) {
        run(Command::new("mount").args(["-o", "loop"]).arg(self.image()).arg(self.root()));
    }

    /// A state directory on it.
    pub fn state(&self) -> StateDir {
        StateDir::at(&self.root().join("a/b/state")).unwrap()
    }

    /// Removes everything, durably.
    pub fn clear(&self) {
        let _ = std::fs::remove_dir_all(self.root().join("a"));
        nix::unistd::syncfs(File::open(self.root()).unwrap()).unwrap();
    }

    /// The power fails: from now on nothing reaches the disk.
    pub fn fail(&self) {
        let mut flags = NO_LOG_FLUSH;
        let root = File::open(self.root()).unwrap();
        // SAFETY: the descriptor is open and the argument is the u32 that this request reads.
        unsafe { ext4_shutdown(root.as_raw_fd(), &raw mut flags) }.unwrap();
    }

    /// The power comes back. Nobody has a file open there any more.
    pub fn come_back(&self) {
        run(Command::new("umount").arg(self.root()));
        self.mount();
    }

    /// The power fails, and comes back. Whoever wrote is dead: nothing of its memory reaches the disk.
    fn lose_power(&self, journal: FileJournal) {
        self.fail();
        drop(journal);
        self.come_back();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        run(Command::new("umount").arg(self.root()));
    }
}

fn record(number: u64) -> RecordV1 {
    if number == 0 { example::transaction().remove(0) } else { example::record(number, 1, EventV1::Committed) }
}

fn open(state: &StateDir, records: u64, chunks: &[u64]) -> FileJournal {
    let (journal, repairs) = FileJournal::open(state, example::txn()).unwrap();
    assert_eq!(repairs, []);
    assert_eq!(journal.records(), (0..records).map(record).collect::<Vec<_>>());
    assert_eq!(journal.chunks(0).unwrap().into_keys().collect::<Vec<_>>(), chunks);
    journal
}

#[test]
fn what_was_acknowledged_survives_a_power_cut() {
    let Some(disk) = Disk::make() else { return };
    let state = disk.state();
    // Fresh.
    disk.lose_power(FileJournal::create(&state, record(0)).unwrap());
    // Opened and untouched, several times.
    for _ in 0..3 {
        disk.lose_power(open(&state, 1, &[]));
    }
    let mut journal = open(&state, 1, &[]);
    // After an event, after a ledger write, after an emptying, with nothing behind it that would have synced it.
    let mut records = 1;
    for _ in 0..12 {
        journal.append(records, record(records)).unwrap();
        records += 1;
        disk.lose_power(journal);
        journal = open(&state, records, &[]);
        journal.record_chunks(0, &[chunk(4), chunk(7)]).unwrap();
        disk.lose_power(journal);
        journal = open(&state, records, &[4, 7]);
        for _ in 0..40 {
            journal.append(records, record(records)).unwrap();
            records += 1;
        }
        journal.forget_chunks(0).unwrap();
        disk.lose_power(journal);
        journal = open(&state, records, &[]);
    }
    drop(journal);
    assert!(Path::new(&state.txn_path(example::txn())).exists());
}
