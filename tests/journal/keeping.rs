//! What was acknowledged is there again, and compare-and-append holds.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use journal_format::{ChunkState, Epoch};
use kvm_clone::journal::{self, FileJournal, Journal, JournalError};

use super::{Home, chunk, example, first_records};

#[test]
fn a_closed_journal_opens_as_it_was() {
    let home = Home::with(6);
    for _ in 0..3 {
        let (journal, repairs) = home.open();
        assert_eq!(repairs, []);
        assert_eq!(journal.records(), first_records(6));
        assert_eq!(journal.epoch(), Epoch(1));
    }
    assert_eq!(journal::read(&home.state, example::txn()).unwrap().records, first_records(6));
    assert_eq!(home.state.transactions().unwrap(), [example::txn()]);
}

#[test]
fn an_opened_journal_goes_on() {
    let home = Home::with(3);
    let (mut journal, _) = home.open();
    journal.append(3, first_records(4)[3].clone()).unwrap();
    drop(journal);
    assert_eq!(home.open().0.records(), first_records(4));
}

#[test]
fn the_ledger_is_kept_and_forgotten_disk_by_disk() {
    let home = Home::new();
    let mut journal = home.write(2);
    let all: Vec<_> = (0..3000).map(chunk).collect();
    journal.record_chunks(0, &all).unwrap();
    journal.record_chunks(1, &all[..5]).unwrap();
    journal.record_chunks(1, &[journal_format::ChunkRecordV1 { index: 1, state: ChunkState::Zero }]).unwrap();
    drop(journal);

    let (mut journal, repairs) = home.open();
    assert_eq!(repairs, []);
    let expected: BTreeMap<_, _> = all.iter().map(|record| (record.index, record.state)).collect();
    assert_eq!(journal.chunks(0).unwrap(), expected);
    assert_eq!(journal.chunks(1).unwrap().len(), 5);
    assert_eq!(journal.chunks(1).unwrap()[&1], ChunkState::Zero);
    journal.forget_chunks(0).unwrap();
    assert_eq!(journal.chunks(0).unwrap(), BTreeMap::new());
    journal.record_chunks(0, &all[7..9]).unwrap();
    drop(journal);

    let (journal, repairs) = home.open();
    assert_eq!(repairs, []);
    assert_eq!(journal.chunks(0).unwrap().keys().copied().collect::<Vec<_>>(), [7, 8]);
    assert_eq!(journal.chunks(1).unwrap().len(), 5);
    assert_eq!(journal.chunks(2).unwrap(), BTreeMap::new());
}

#[test]
fn an_append_on_a_wrong_belief_is_refused_and_harmless() {
    let home = Home::new();
    let mut journal = home.write(14); // the second attempt has opened
    let next = first_records(15)[14].clone();
    for (expected, epoch) in [(13, 2), (15, 2), (14, 1)] {
        let record = journal_format::RecordV1 { epoch: Epoch(epoch), ..next.clone() };
        let error = journal.append(expected, record).unwrap_err();
        assert!(matches!(error, JournalError::Conflict { found: 14, .. }), "{error}");
    }
    journal.append(14, next).unwrap();
    drop(journal);
    assert_eq!(home.open().0.records(), first_records(15));
}

#[test]
fn a_record_larger_than_a_store_value_is_kept() {
    let home = Home::new();
    let mut plan = example::plan();
    plan.source_definition = "x".repeat(1_000_000);
    let begun = example::record(0, 0, journal_format::EventV1::Begun { plan: Box::new(plan) });
    drop(FileJournal::create(&home.state, begun.clone()).unwrap());
    std::fs::remove_file(home.log()).unwrap();
    let (journal, repairs) = home.open();
    assert_eq!(journal.records(), [begun]);
    assert_eq!(repairs, [journal::Repair::LogRestored { from: 0, frames: 1 }]);
}

#[test]
fn a_transaction_is_made_once() {
    let home = Home::with(1);
    let error = FileJournal::create(&home.state, first_records(1)[0].clone()).unwrap_err();
    assert!(matches!(error, JournalError::Io { .. }), "{error}");
    assert_eq!(home.open().0.records(), first_records(1));
}

#[test]
fn nobody_else_may_look_in() {
    let home = Home::with(2);
    for (path, bytes) in super::content(home.state.path()) {
        let mode = path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{} ({} bytes)", path.display(), bytes.len());
    }
    for directory in [
        home.state.path().to_owned(),
        home.state.path().join("txn"),
        home.directory(),
        home.directory().join("journal"),
    ] {
        assert_eq!(directory.metadata().unwrap().permissions().mode() & 0o777, 0o700, "{}", directory.display());
    }
}

#[test]
fn the_ballast_lasts_as_long_as_the_transaction() {
    let home = Home::new();
    let all = example::transaction();
    let mut journal = home.write(all.len() - 1);
    assert!(home.directory().join("ballast").exists());
    journal.append(all.len() as u64 - 1, all[all.len() - 1].clone()).unwrap();
    assert!(!home.directory().join("ballast").exists());
}
