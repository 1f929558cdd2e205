//! The journal on a real disk: what it keeps, what it repairs, what it refuses.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation)]

#[path = "../course/mod.rs"]
mod course;
#[cfg(feature = "crash-points")]
mod crash;
mod damage;
mod damaged;
mod disk_full;
#[path = "../../journal-format/tests/example/mod.rs"]
mod example;
mod keeping;
mod latency;
mod many_damaged;
mod poison;
mod power;
mod power_cuts;
mod sharing;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use journal_format::{ChunkRecordV1, ChunkState, ChunkValue, RecordV1};
use kvm_clone::journal::{FileJournal, Journal, StateDir};
use tempfile::TempDir;

/// A state directory that goes away with the test.
struct Home {
    _temp: TempDir,
    state: StateDir,
}

impl Home {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::at(&temp.path().join("state")).unwrap();
        Self { _temp: temp, state }
    }

    /// With the first `count` records of the example transaction in a journal that was closed.
    fn with(count: usize) -> Self {
        let home = Self::new();
        drop(home.write(count));
        home
    }

    fn write(&self, count: usize) -> FileJournal {
        let records = example::transaction();
        let mut journal = FileJournal::create(&self.state, records[0].clone()).unwrap();
        for (number, record) in records.iter().enumerate().take(count).skip(1) {
            journal.append(number as u64, record.clone()).unwrap();
        }
        journal
    }

    fn directory(&self) -> PathBuf {
        self.state.txn_path(example::txn())
    }

    fn log(&self) -> PathBuf {
        self.directory().join("events.log")
    }

    fn open(&self) -> (FileJournal, Vec<kvm_clone::journal::Repair>) {
        FileJournal::open(&self.state, example::txn()).unwrap()
    }

    fn open_error(&self) -> kvm_clone::journal::JournalError {
        FileJournal::open(&self.state, example::txn()).unwrap_err()
    }
}

/// Set by `make tests`: what needs root must run, and may not be left out.
const ROOT_VARIABLE: &str = "KVM_CLONE_TEST_ROOT";

/// Gives this thread mounts of its own, which go with it and which nobody copies meanwhile: a copy would keep a
/// filesystem alive that was unmounted here. `false`: not root, so nothing can be mounted, and that is said aloud.
fn own_mounts() -> bool {
    if !nix::unistd::geteuid().is_root() {
        let name = std::thread::current().name().unwrap_or("a test").to_owned();
        assert!(
            std::env::var_os(ROOT_VARIABLE).is_none(),
            "{name} mounts filesystems: it needs root, and {ROOT_VARIABLE} is set"
        );
        // Past the capture of a test's output: a test that did nothing must not look as if it had passed.
        let _ = writeln!(std::io::stderr(), "SKIPPED: {name} mounts filesystems and needs root (`make tests` runs it)");
        return false;
    }
    // SAFETY: changes nothing but this thread's namespace.
    assert_eq!(
        unsafe { nix::libc::unshare(nix::libc::CLONE_NEWNS) },
        0,
        "unshare: {}",
        std::io::Error::last_os_error()
    );
    run(Command::new("mount").args(["--make-rprivate", "/"]));
    true
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn first_records(count: usize) -> Vec<RecordV1> {
    example::transaction().into_iter().take(count).collect()
}

fn chunk(index: u64) -> ChunkRecordV1 {
    let state =
        if index.is_multiple_of(3) { ChunkState::Zero } else { ChunkState::Data(ChunkValue([index as u8; 32])) };
    ChunkRecordV1 { index, state }
}

/// Every file below a directory with its bytes, but for `lock`, which names the last holder.
fn content(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(content(&path));
        } else if !path.ends_with("lock") {
            files.push((path.clone(), std::fs::read(&path).unwrap()));
        }
    }
    files.sort();
    files
}
