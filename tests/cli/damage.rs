//! Journals that are damaged or newer than this program: exit 6, by name, nothing written.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use journal_format::frame::{FRAME_HASH_BYTES, FRAME_HEADER_BYTES, FRAME_VERSION};

use crate::program::Program;
use crate::transactions::Transaction;

/// Where a frame keeps its version, and the length of its payload (SPEC.md).
const VERSION_AT: usize = 4;
const LENGTH_AT: usize = 64;

/// Lets go of a transaction's journal and says where its log is.
fn log_of(program: &Program, transaction: Transaction) -> PathBuf {
    let txn = transaction.txn;
    drop(transaction);
    program.state().join("txn").join(txn.to_string()).join("events.log")
}

/// Every file below a directory with its bytes.
fn everything(directory: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            everything(&path, found);
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
}

/// All commands that read or open the journal exit 6, say these words, and change no byte that counts.
fn is_refused(program: &Program, tail: &str, parts: &[&str], status: &str) {
    let mut before = BTreeMap::new();
    everything(&program.state(), &mut before);
    for words in [
        &["show", tail][..],
        &["resume", tail],
        &["rollback", tail],
        &["journal", "verify", tail],
        &["list"],
        &["recover", "--resume-all"],
    ] {
        program.run(words).exits(6).holds(parts);
        let (exit, value) = program.json(words);
        assert_eq!(exit, 6, "{words:?}: {value}");
    }
    let (_, value) = program.json(&["list"]);
    let entries = value.as_array().unwrap();
    assert_eq!(entries.len(), 2, "the other one is listed all the same: {value}");
    assert_eq!(entries[0]["status"], status, "{value}");
    assert_eq!(entries[0]["error"]["exit_status"], 6);
    assert_eq!(entries[1]["status"], "committed");
    let mut after = BTreeMap::new();
    everything(&program.state(), &mut after);
    // The lock's file only says who looked last.
    for files in [&mut before, &mut after] {
        files.retain(|path, _| path.file_name().is_none_or(|name| name != "lock"));
    }
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    assert!(before == after, "a byte changed");
}

#[test]
fn a_journal_that_is_damaged_in_both_copies_is_refused_by_name() {
    let program = Program::new();
    let damaged = Transaction::begin(&program.state(), "dead0001").interrupted();
    let directory = log_of(&program, damaged);
    Transaction::begin(&program.state(), "dead0002").did(0..3).finished();
    let mut bytes = fs::read(&directory).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&directory, bytes).unwrap();
    // The second copy would help: it goes as well.
    fs::remove_dir_all(directory.parent().unwrap().join("journal")).unwrap();
    is_refused(&program, "dead0001", &["damaged", "dead0001"], "damaged");
}

#[test]
fn a_journal_of_a_newer_program_is_refused_and_not_called_damaged() {
    let program = Program::new();
    let newer = Transaction::begin(&program.state(), "feed0001").interrupted();
    let log = log_of(&program, newer);
    Transaction::begin(&program.state(), "feed0002").did(0..3).finished();
    let mut bytes = fs::read(&log).unwrap();
    let last = last_frame(&bytes);
    bytes[last + VERSION_AT..last + VERSION_AT + 4].copy_from_slice(&(FRAME_VERSION + 1).to_le_bytes());
    let end = bytes.len() - FRAME_HASH_BYTES;
    let hash = *blake3::hash(&bytes[last..end]).as_bytes();
    bytes[end..].copy_from_slice(&hash);
    fs::write(&log, bytes).unwrap();
    is_refused(&program, "feed0001", &["newer"], "newer");
}

#[test]
fn a_record_that_was_cut_off_is_put_right_and_said() {
    let program = Program::new();
    let log = log_of(&program, Transaction::begin(&program.state(), "cafe0001").did(0..3).finished());
    let whole = fs::read(&log).unwrap();
    let cut = |by: usize| fs::write(&log, &whole[..whole.len() - by]).unwrap();
    cut(5);
    program.run(&["show", "cafe0001"]).exits(0);
    program.run(&["journal", "verify", "cafe0001"]).exits(6).holds(&["repairable"]);
    program.run(&["resume", "cafe0001"]).exits(0).holds(&["warning: journal of", "restored", "already finished"]);
    assert_eq!(fs::read(&log).unwrap(), whole);
}

fn last_frame(bytes: &[u8]) -> usize {
    let mut at = 0;
    loop {
        let length: [u8; 4] = bytes[at + LENGTH_AT..at + LENGTH_AT + 4].try_into().unwrap();
        let next = at + FRAME_HEADER_BYTES + usize::try_from(u32::from_le_bytes(length)).unwrap() + FRAME_HASH_BYTES;
        if next >= bytes.len() {
            return at;
        }
        at = next;
    }
}
