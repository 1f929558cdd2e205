//! The crash points kill where they say, and what is on disk then is what the boundary means.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use journal_format::EventV1;
use kvm_clone::journal::{FileJournal, Journal, StateDir};

use super::{Home, chunk, example};

const STATE_VARIABLE: &str = "KVM_CLONE_TEST_CRASH";
const CRASH_VARIABLE: &str = "KVM_CLONE_CRASH_AT";

/// Not a test of its own: what the children do. Four records and two ledger writes, and then a success.
#[test]
fn work_in_a_child() {
    let Some(state) = std::env::var_os(STATE_VARIABLE) else { return };
    let state = StateDir::at(std::path::Path::new(&state)).unwrap();
    let mut journal = FileJournal::create(&state, example::transaction()[0].clone()).unwrap();
    for number in 1..4 {
        journal.append(number, example::record(number, 1, EventV1::Committed)).unwrap();
    }
    journal.record_chunks(0, &[chunk(0), chunk(1)]).unwrap();
    journal.record_chunks(0, &[chunk(2)]).unwrap();
}

fn crash_at(boundary: &str) -> (Home, std::process::ExitStatus) {
    let home = Home::new();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::work_in_a_child"])
        .env(STATE_VARIABLE, home.state.path())
        .env(CRASH_VARIABLE, boundary)
        .output()
        .unwrap()
        .status;
    (home, status)
}

#[test]
fn each_boundary_kills_and_leaves_what_it_means() {
    let cases = [
        ("after:0", 1, 0),
        ("before:1", 1, 0),
        ("after:1", 2, 0),
        ("before:3", 3, 0),
        ("after:3", 4, 0),
        ("before-ledger:0", 4, 0),
        ("after-ledger:0", 4, 2),
        ("before-ledger:1", 4, 2),
        ("after-ledger:1", 4, 3),
    ];
    for (boundary, records, chunks) in cases {
        let (home, status) = crash_at(boundary);
        assert_eq!(status.signal(), Some(9), "{boundary}: {status}");
        let (journal, repairs) = home.open();
        assert_eq!(repairs, [], "{boundary}");
        assert_eq!((journal.records().len(), journal.chunks(0).unwrap().len()), (records, chunks), "{boundary}");
    }
}

#[test]
fn before_the_first_record_nothing_is_there() {
    let (home, status) = crash_at("before:0");
    assert_eq!(status.signal(), Some(9), "{status}");
    assert!(!home.state.path().exists());
}

#[test]
fn a_boundary_that_is_not_reached_kills_nobody_and_one_that_means_nothing_is_refused() {
    assert!(crash_at("before:400").1.success());
    for boundary in ["", "before", "before:", "before:x", "between:1"] {
        let (_, status) = crash_at(boundary);
        assert_eq!(status.code(), Some(101), "{boundary}: {status}");
    }
}
