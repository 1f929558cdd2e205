//! `prune`: what is over goes, everything else stays to the byte, and a removal that was killed is finished.

use std::fs;
use std::path::PathBuf;

use journal_format::{EventV1, TxnId};
use kvm_clone::journal::{FileJournal, StateDir};
use serde_json::{Value, json};

use crate::program::Program;
use crate::transactions::Transaction;

const INTERRUPTED: &str = "11111111";
const STUCK: &str = "22222222";
const COMMITTED: &str = "33333333";
const ROLLED_BACK: &str = "44444444";
const ABANDONED: &str = "55555555";
const CLEANING_UP: &str = "66666666";

/// One transaction of each kind. They began in one moment; what had more to do ended later.
fn one_of_each(program: &Program) {
    let state = program.state();
    Transaction::begin(&state, INTERRUPTED).interrupted();
    Transaction::begin(&state, STUCK).stuck();
    Transaction::begin(&state, COMMITTED).did(0..3).finished();
    Transaction::begin(&state, ROLLED_BACK).rolled_back();
    Transaction::begin(&state, ABANDONED).stuck().then(EventV1::Abandoned { reason: "host lost".to_owned() });
    Transaction::begin(&state, CLEANING_UP).did(0..7).then(EventV1::Committed);
}

fn transactions(program: &Program) -> PathBuf {
    program.state().join("txn")
}

fn ends(entries: &Value) -> Vec<String> {
    let id = |entry: &Value| entry["id"].as_str().unwrap()[28..].to_owned();
    entries.as_array().unwrap().iter().map(id).collect()
}

fn listed(program: &Program) -> Vec<String> {
    ends(&program.json(&["list"]).1)
}

#[test]
fn only_what_is_over_is_removed() {
    let program = Program::new();
    one_of_each(&program);
    let (exit, told) = program.json(&["prune", "--older-than", "0d", "--dry-run"]);
    assert_eq!((exit, &told["dry_run"], &told["kept_finished"]), (0, &json!(true), &json!(0)));
    assert_eq!(ends(&told["removed"]), [ROLLED_BACK, ABANDONED, COMMITTED], "oldest end first");
    assert_eq!(listed(&program).len(), 6, "it only looked");

    program.run(&["prune"]).exits(0).holds(&["0 finished transactions removed, 3 kept"]);
    program.run(&["prune", "--older-than", "9999w", "--keep", "0"]).exits(0).holds(&["0 finished", "3 kept"]);
    let (exit, told) = program.json(&["prune", "--keep", "1"]);
    assert_eq!((exit, &told["dry_run"], &told["kept_finished"]), (0, &json!(false), &json!(1)));
    assert_eq!(ends(&told["removed"]), [ROLLED_BACK, ABANDONED]);
    assert_eq!(told["removed"][0]["status"], "rolled_back");
    assert_eq!(told["left"], json!([]));
    assert_eq!(listed(&program), [INTERRUPTED, STUCK, COMMITTED, CLEANING_UP]);
    program
        .run(&["prune", "--older-than", "30d"])
        .exits(0)
        .holds(&[COMMITTED, "1 finished transactions removed, 0 kept"]);
    assert_eq!(listed(&program), [INTERRUPTED, STUCK, CLEANING_UP]);
    assert_eq!(fs::read_dir(transactions(&program)).unwrap().count(), 3, "nothing else is left");
}

#[test]
fn what_is_held_or_damaged_is_left_and_named() {
    let program = Program::new();
    let damaged = Transaction::begin(&program.state(), COMMITTED).did(0..3).finished().txn;
    let held = Transaction::begin(&program.state(), ROLLED_BACK).rolled_back().txn;
    Transaction::begin(&program.state(), ABANDONED).rolled_back();
    let (journal, _) = FileJournal::open(&StateDir::at(&program.state()).unwrap(), held).unwrap();
    let (exit, told) = program.json(&["prune", "--keep", "0"]);
    assert_eq!(exit, 0, "what is in use is no failure: {told}");
    assert_eq!(ends(&told["left"]), [ROLLED_BACK]);
    assert_eq!(ends(&told["removed"]), [ABANDONED, COMMITTED]);
    drop(journal);

    let again = Transaction::begin(&program.state(), COMMITTED).did(0..3).finished().txn;
    assert_eq!(again, damaged);
    let log = transactions(&program).join(damaged.to_string()).join("events.log");
    let mut bytes = fs::read(&log).unwrap();
    bytes[100] ^= 1;
    fs::write(&log, &bytes).unwrap();
    let said = program.run(&["prune", "--keep", "0"]);
    said.exits(6).holds(&[&damaged.to_string(), "damaged", "1 finished transactions removed"]);
    assert_eq!(fs::read(&log).unwrap(), bytes);
}

/// Two sound copies that disagree: what one of them says of the end is not to be believed.
#[test]
fn copies_that_disagree_are_left() {
    let program = Program::new();
    let txn = Transaction::begin(&program.state(), COMMITTED).did(0..3).finished().txn;
    let log = transactions(&program).join(txn.to_string()).join("events.log");
    let kept = fs::read(&log).unwrap();
    fs::remove_dir_all(log.parent().unwrap()).unwrap();
    Transaction::begin(&program.state(), COMMITTED).interrupted();
    fs::write(&log, kept).unwrap();
    program.run(&["prune", "--keep", "0"]).exits(6).holds(&[&txn.to_string(), "damaged"]);
    assert!(log.exists());
}

#[test]
fn a_removal_that_was_killed_is_no_transaction_and_is_finished() {
    let program = Program::new();
    one_of_each(&program);
    let id = |end: &str| -> TxnId { format!("018bcfe5-6800-7000-8000-0000{end}").parse().unwrap() };
    let aside = |end| transactions(&program).join(format!(".pruned-{}", id(end)));
    // Killed right behind the renaming, and in the middle of the deletion.
    for (end, gone) in [(COMMITTED, None), (ROLLED_BACK, Some("events.log"))] {
        fs::rename(transactions(&program).join(id(end).to_string()), aside(end)).unwrap();
        if let Some(name) = gone {
            fs::remove_file(aside(end).join(name)).unwrap();
        }
    }
    assert_eq!(listed(&program), [INTERRUPTED, STUCK, ABANDONED, CLEANING_UP]);
    program.run(&["show", COMMITTED]).exits(2);
    program.run(&["prune", "--dry-run", "--keep", "100"]).exits(0);
    assert!(aside(COMMITTED).exists(), "it only looked");
    program.run(&["prune"]).exits(0).holds(&["0 finished transactions removed, 1 kept"]);
    assert!(!aside(COMMITTED).exists() && !aside(ROLLED_BACK).exists());
    assert_eq!(listed(&program), [INTERRUPTED, STUCK, ABANDONED, CLEANING_UP]);
}
