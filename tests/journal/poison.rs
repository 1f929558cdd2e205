//! A write that fails: the journal says so, writes nothing more, and opens again with all that was acknowledged.

use std::path::Path;
use std::process::Command;

use journal_format::{EventV1, RecordV1};
use kvm_clone::journal::{FileJournal, Journal, JournalError, Repair, StateDir};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};

use super::{Home, chunk, example, own_mounts, run};

/// Records that are appended before a disk of a few MiB must be full.
const RECORDS_MAX: u64 = 100_000;

fn large_record(number: u64) -> RecordV1 {
    example::record(number, 1, EventV1::Abandoned { reason: "x".repeat(20_000) })
}

/// Appends until that fails; how many records were acknowledged, and the error.
fn fill(journal: &mut FileJournal) -> (u64, JournalError) {
    let first = journal.records().len() as u64;
    for number in first..RECORDS_MAX {
        if let Err(error) = journal.append(number, large_record(number)) {
            return (number, error);
        }
    }
    panic!("the disk never filled");
}

fn assert_poisoned(journal: &mut FileJournal, acknowledged: u64) {
    let is_poisoned = |result| matches!(result, Err(JournalError::Poisoned { .. }));
    assert_eq!(journal.records().len() as u64, acknowledged);
    assert!(is_poisoned(journal.append(acknowledged, large_record(acknowledged))));
    assert!(is_poisoned(journal.record_chunks(0, &[chunk(1)])));
    assert!(is_poisoned(journal.forget_chunks(0)));
    assert!(is_poisoned(journal.chunks(0).map(|_| ())));
}

/// What was acknowledged is there; the append that failed may be, if it reached a copy.
fn assert_kept(journal: &FileJournal, acknowledged: u64) {
    let found = journal.records().len() as u64;
    assert!(found == acknowledged || found == acknowledged + 1, "{found} records, {acknowledged} acknowledged");
    for number in 2..found {
        assert_eq!(journal.records()[number as usize], large_record(number));
    }
}

#[test]
fn a_file_that_may_not_grow_poisons() {
    in_a_child("poison::a_file_that_may_not_grow_poisons", || {
        // SAFETY: ignoring a signal installs no handler.
        unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }.unwrap();
        let home = Home::new();
        let mut journal = home.write(2);
        setrlimit(Resource::RLIMIT_FSIZE, 1_000_000, 1_000_000).unwrap();
        let (acknowledged, error) = fill(&mut journal);
        assert!(matches!(error, JournalError::Io { .. }), "{error}");
        assert!(acknowledged > 10);
        assert_poisoned(&mut journal, acknowledged);
        let state = home.state.path().to_owned();
        std::mem::forget(home);
        println!("{} {acknowledged}", state.display());
    });
}

/// The limit cannot be raised again, so what can be read afterwards is read by a process without it.
fn in_a_child(name: &str, work: impl FnOnce()) {
    const CHILD_VARIABLE: &str = "KVM_CLONE_TEST_POISON";
    if std::env::var_os(CHILD_VARIABLE).is_some() {
        return work();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD_VARIABLE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let (state, acknowledged) =
        text.lines().find_map(|line| line.rsplit_once(' ').filter(|_| line.starts_with('/'))).unwrap();
    let directory = Path::new(state);
    let (journal, _) = FileJournal::open(&StateDir::at(directory).unwrap(), example::txn()).unwrap();
    assert_kept(&journal, acknowledged.parse().unwrap());
    drop(journal);
    std::fs::remove_dir_all(directory.parent().unwrap()).unwrap();
}

/// A small filesystem in memory, for this thread alone.
pub struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None` where the test may not mount.
    pub fn mount(bytes: u64) -> Option<Self> {
        own_mounts().then(|| {
            let directory = tempfile::tempdir().unwrap();
            let options = format!("size={bytes}");
            run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(directory.path()));
            Self(directory)
        })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a journal that failed is let go of as a crash would, so its files are still open here.
        run(Command::new("umount").arg("--lazy").arg(self.0.path()));
    }
}

#[test]
fn a_full_disk_poisons_and_the_ballast_lets_it_open() {
    let Some(disk) = SmallDisk::mount(24 * 1024 * 1024) else { return };
    let state = StateDir::at(&disk.0.path().join("state")).unwrap();
    let mut journal = FileJournal::create(&state, example::transaction()[0].clone()).unwrap();
    journal.append(1, example::transaction()[1].clone()).unwrap();
    let filler = disk.0.path().join("filler");
    let _ = std::fs::write(&filler, vec![1; 32 * 1024 * 1024]);
    let (acknowledged, error) = fill(&mut journal);
    assert!(matches!(error, JournalError::Io { .. }), "{error}");
    assert_poisoned(&mut journal, acknowledged);
    drop(journal);

    let (mut journal, repairs) = FileJournal::open(&state, example::txn()).unwrap();
    assert!(repairs.contains(&Repair::BallastFreed), "{repairs:?}");
    assert_kept(&journal, acknowledged);
    let next = journal.records().len() as u64;
    journal.append(next, example::record(next, 1, EventV1::Committed)).unwrap();
    drop(journal);

    std::fs::remove_file(filler).unwrap();
    let (journal, repairs) = FileJournal::open(&state, example::txn()).unwrap();
    assert_eq!((journal.records().len() as u64, &repairs[..]), (next + 1, &[][..]));
    assert!(state.path().join("txn").join(example::txn().to_string()).join("ballast").exists());
}

#[test]
fn a_transaction_does_not_begin_on_a_full_disk() {
    let Some(disk) = SmallDisk::mount(1024 * 1024) else { return };
    let state = StateDir::at(&disk.0.path().join("state")).unwrap();
    let error = FileJournal::create(&state, example::transaction()[0].clone()).unwrap_err();
    assert!(matches!(error, JournalError::Io { .. }), "{error}");
    assert_eq!(state.transactions().unwrap(), []);
}
