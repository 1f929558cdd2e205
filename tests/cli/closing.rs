//! `abandon` and `recover`: how what is unfinished is listed and closed, as far as that goes without a host.

use std::fs;

use journal_format::EventV1;

use crate::program::{Program, Said, said};
use crate::transactions::Transaction;

/// Runs it where both hosts' names lead to a port that nobody listens on.
fn without_hosts(program: &Program, words: &[&str]) -> Said {
    let config = program.scratch().join("ssh_config");
    fs::write(&config, "Host kvm1 kvm2\n  HostName 127.0.0.1\n  Port 1\n").unwrap();
    let mut command = program.command();
    command.env("KVM_CLONE_SSH_CONFIG", config).arg("--state-dir").arg(program.state()).args(words);
    said(&command.output().unwrap())
}

#[test]
fn abandoning_wants_a_reason() {
    let program = Program::new();
    Transaction::begin(&program.state(), "c001").interrupted();
    program.run(&["abandon", "c001"]).exits(2).holds(&["--reason"]);
    program.run(&["abandon", "c001", "--reason", "  "]).exits(2).holds(&["reason"]);
    program.run(&["abandon", "c001", "--reason", &"x".repeat(1001)]).exits(2).holds(&["1001 bytes"]);
    assert_eq!(program.json(&["list"]).1[0]["status"], "interrupted");
}

#[test]
fn what_is_settled_is_not_abandoned() {
    let program = Program::new();
    Transaction::begin(&program.state(), "c002").did(0..3).finished();
    Transaction::begin(&program.state(), "c003").did(0..7).then(EventV1::Committed);
    Transaction::begin(&program.state(), "c004").rolled_back();
    for (txn, why) in [("c002", "committed"), ("c003", "committed"), ("c004", "rolled back")] {
        program.run(&["abandon", txn, "--reason", "enough"]).exits(5).holds(&[why]);
    }
    let running = Transaction::begin(&program.state(), "c005").did(0..3);
    program.run(&["abandon", "c005", "--reason", "enough"]).exits(7).holds(&["held by process"]);
    drop(running);
}

#[test]
fn a_destination_that_is_gone_for_ever_takes_a_word_of_its_own() {
    let program = Program::new();
    Transaction::begin(&program.state(), "c006").stuck();
    let words = ["abandon", "c006", "--reason", "kvm2 burned down"];
    without_hosts(&program, &words).exits(3).holds(&["kvm2", "--destination-gone"]);
    assert_eq!(program.json(&["list"]).1[0]["status"], "stuck", "nothing was closed");
    let gone = [&words[..], &["--destination-gone"]].concat();
    without_hosts(&program, &gone).exits(0).holds(&["abandoned", "kvm2 was not reached", "00000000c006/vda"]);
    let (_, list) = program.json(&["list"]);
    assert_eq!(list[0]["status"], "abandoned");
    let (_, log) = program.json(&["show", "c006"]);
    assert_eq!(log["abandoned_because"], "kvm2 burned down");
    assert!(log["completed_at"].is_string());
    program.run(&["show", "c006"]).exits(0).holds(&[
        "kvm2 burned down",
        "may have left on kvm2",
        "disk /srv/vm/.kvm-clone/",
    ]);
    for command in ["resume", "rollback"] {
        program.run(&[command, "c006"]).exits(5).holds(&["abandoned", "kvm2 burned down"]);
    }
    program.run(&["recover", "--resume-all"]).exits(0).holds(&["nothing is unfinished"]);
    let (exit, value) = program.json(&["recover"]);
    assert_eq!((exit, value.as_array().map(Vec::len)), (0, Some(0)));
}

#[test]
fn recover_names_every_object_that_it_would_touch() {
    let program = Program::new();
    Transaction::begin(&program.state(), "c007").interrupted();
    Transaction::begin(&program.state(), "c008").stuck();
    Transaction::begin(&program.state(), "c009").did(0..7).then(EventV1::Committed);
    Transaction::begin(&program.state(), "c010").did(0..3).finished();
    program.run(&["recover"]).exits(0).holds(&[
        "removes the 3 things it made on kvm2",
        "        disk /srv/vm/.kvm-clone/018bcfe5-6800-7000-8000-00000000c007/vda",
        "        staging_directory /srv/vm/.kvm-clone/",
        "        host_record ",
        "abandon 018bcfe5-6800-7000-8000-00000000c008 --reason TEXT",
        "clears away what is left",
    ]);
    let (_, value) = program.json(&["recover"]);
    let entries = value.as_array().unwrap();
    assert_eq!(entries.len(), 3, "{value}");
    let removed = entries[0]["rollback_removes"].as_array().unwrap();
    assert!(
        removed[0].as_str().unwrap().starts_with("disk ") && removed.len() == 3,
        "the last made goes first: {value}"
    );
    assert_eq!(entries[0]["resume_steps"].as_array().unwrap().len(), 6, "{value}");
    assert!(entries[1]["abandon"].is_string(), "{value}");
    assert!(entries[2].get("rollback").is_none() && entries[2]["resume"].is_string(), "{value}");
}

#[test]
fn the_worst_of_all_that_recover_does_counts() {
    let program = Program::new();
    Transaction::begin(&program.state(), "c011").interrupted();
    Transaction::begin(&program.state(), "c012").did(0..7).then(EventV1::Committed);
    without_hosts(&program, &["recover", "--rollback-all"]).exits(3).holds(&["c011", "c012", "suspended"]);
    Transaction::begin(&program.state(), "c013").stuck();
    without_hosts(&program, &["recover", "--resume-all"]).exits(4).holds(&["c011", "c012", "c013"]);
    let (_, list) = program.json(&["list"]);
    let status = |at: usize| list[at]["status"].as_str().unwrap().to_owned();
    assert_eq!([status(0), status(1), status(2)], ["interrupted", "cleaning_up", "stuck"]);
}
