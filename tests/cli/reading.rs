//! `list`, `show`, `recover`, `journal`: what they say of transactions in every state.

use std::fs;

use journal_format::EventV1;

use crate::program::{Program, said};
use crate::transactions::{DISK_BYTES, Transaction};

#[test]
fn an_empty_state_directory_has_no_transactions_and_is_not_made() {
    let program = Program::new();
    // A wrong one must not look like one in which all is well.
    let missing = format!("{}, which does not exist", program.state().display());
    program.run(&["list"]).exits(0).holds(&["no transactions in", &missing]);
    let (exit, value) = program.json(&["list"]);
    assert_eq!((exit, value), (0, serde_json::json!([])));
    program.run(&["list", "--json"]).holds(&["warning: the state directory", "does not exist"]);
    program.run(&["recover"]).exits(0).holds(&["nothing is unfinished in", &missing]);
    assert_eq!(program.json(&["recover", "--resume-all"]), (0, serde_json::json!([])));
    program.run(&["show", "beef0001"]).exits(2).holds(&["no transaction beef0001", &missing]);
    assert!(!program.state().exists());
}

#[test]
fn every_status_is_listed_under_its_name() {
    let program = Program::new();
    let state = program.state();
    Transaction::begin(&state, "a001").interrupted();
    Transaction::begin(&state, "a002").rolling_back();
    Transaction::begin(&state, "a003").rolled_back();
    Transaction::begin(&state, "a004").stuck();
    Transaction::begin(&state, "a005").did(0..3).finished();
    Transaction::begin(&state, "a006").did(0..7).then(EventV1::Committed);
    Transaction::begin(&state, "a007").then(EventV1::Abandoned { reason: "enough".to_owned() });
    let running = Transaction::begin(&state, "a008").did(0..3);
    let expected = [
        ("a001", "interrupted"),
        ("a002", "rolling_back"),
        ("a003", "rolled_back"),
        ("a004", "stuck"),
        ("a005", "committed"),
        ("a006", "cleaning_up"),
        ("a007", "abandoned"),
        ("a008", "running"),
    ];
    let (exit, value) = program.json(&["list"]);
    assert_eq!(exit, 0);
    let entries = value.as_array().unwrap();
    assert_eq!(entries.len(), expected.len());
    let table = program.run(&["list"]);
    for (entry, (tail, status)) in entries.iter().zip(expected) {
        assert!(entry["id"].as_str().unwrap().ends_with(tail), "{entry}");
        assert_eq!(entry["status"], status, "{entry}");
        assert_eq!(entry["started_at"], "2023-11-14T22:13:20Z");
        let row = table.stdout.lines().find(|line| line.contains(tail)).unwrap();
        for part in [status, "web01 → web01_clone", "kvm1 → kvm2"] {
            assert!(row.contains(part), "{row}");
        }
    }
    assert!(table.stdout.lines().all(|line| line == line.trim_end()), "{}", table.stdout);
    drop(running);
    assert_eq!(program.json(&["list"]).1[7]["status"], "interrupted", "its driver is gone");
}

#[test]
fn a_finished_clone_is_shown_with_resources_and_counters() {
    let program = Program::new();
    Transaction::begin(&program.state(), "beef0001").interrupted().resumed().finished();
    let (exit, log) = program.json(&["show", "beef0001"]);
    assert_eq!(exit, 0);
    assert_eq!(log["transaction_id"], "018bcfe5-6800-7000-8000-0000beef0001");
    assert_eq!(log["operation_type"], "clone");
    assert_eq!(log["status"], "committed");
    assert!(log["completed_at"].is_string());
    let disk = log["resources"].as_array().unwrap().iter().find(|one| one["resource_type"] == "disk").unwrap();
    assert_eq!(disk["resource_id"], "/srv/vm/web01_clone-vda.img");
    assert_eq!(disk["host"], "kvm2");
    assert_eq!(disk["metadata"]["final_path"], "/srv/vm/web01_clone-vda.img");
    assert_eq!(log["disks"][0]["missing_bytes"], 600_000_000);
    assert_eq!(log["disks"][0]["sent_bytes"], 610_000_000);
    assert_eq!(log["disks"][0]["ledger_bytes"], DISK_BYTES);
    assert_eq!(log["disks"][0]["root"], "ab".repeat(32));
    assert_eq!(log["steps"][3]["attempts"], 2);
    program.run(&["show", "beef0001"]).exits(0).holds(&["committed", "vda", "610.00 MB", "re-read"]);
    program.run(&["show", "beef0001", "--verbose"]).exits(0).holds(&[
        "attempt_opened",
        "2 by `resume`",
        "attempt 2 by resume",
    ]);
}

#[test]
fn an_interrupted_clone_is_shown_with_the_commands_that_go_on() {
    let program = Program::new();
    let transaction = Transaction::begin(&program.state(), "beef0002").interrupted();
    let id = transaction.txn.to_string();
    drop(transaction);
    let state = program.state().canonicalize().unwrap();
    let resume = format!("kvm-clone --state-dir {} resume {id}", state.display());
    let rollback = format!("kvm-clone --state-dir {} rollback {id}", state.display());
    let parts = [resume.as_str(), &rollback, "interrupted", "kvm2: the link is gone", "look at it"];
    program.run(&["show", &id]).exits(0).holds(&parts);
    program.run(&["recover"]).exits(0).holds(&[resume.as_str(), &rollback, "removes the 3 things"]);
    let (_, value) = program.json(&["recover"]);
    assert_eq!(value[0]["status"], "interrupted");
    assert!(value[0]["resume"].is_string() && value[0]["rollback"].is_string(), "{value}");
}

#[test]
fn a_stuck_clone_shows_what_was_found_and_what_to_type_and_is_left_to_a_person() {
    let program = Program::new();
    Transaction::begin(&program.state(), "beef0003").stuck();
    program.run(&["show", "beef0003"]).exits(0).holds(&["somebody else's", "our image", "$ ls -li /srv/vm"]);
    program.run(&["recover", "--resume-all"]).exits(4);
    program.run(&["recover", "--rollback-all"]).exits(4);
}

#[test]
fn recover_leaves_alone_what_another_process_drives() {
    let program = Program::new();
    let running = Transaction::begin(&program.state(), "beef0004").did(0..3);
    program.run(&["recover"]).exits(0).holds(&["running"]);
    program.run(&["recover", "--resume-all"]).exits(7);
    let held = program.run(&["resume", "beef0004"]);
    held.exits(7).holds(&["held by process", &std::process::id().to_string()]);
    program.run(&["rollback", "beef0004"]).exits(7);
    drop(running);
}

#[test]
fn what_is_settled_is_answered_from_the_journal_alone() {
    let program = Program::new();
    Transaction::begin(&program.state(), "beef0005").did(0..3).finished();
    Transaction::begin(&program.state(), "beef0006").rolled_back();
    Transaction::begin(&program.state(), "beef0007").rolling_back();
    let again = program.run(&["resume", "beef0005"]);
    again.exits(0).holds(&["already finished at 20", "no host was asked"]);
    assert!(!again.stdout.contains("is a clone of"), "nobody looked: {}", again.stdout);
    program.run(&["rollback", "beef0005"]).exits(5).holds(&["committed"]);
    program.run(&["rollback", "beef0006"]).exits(0).holds(&["rolled back"]);
    program.run(&["resume", "beef0006"]).exits(5).holds(&["rolled back"]);
    program.run(&["resume", "beef0007"]).exits(5).holds(&["rolling back", "rollback"]);
    let (exit, value) = program.json(&["rollback", "beef0005"]);
    assert_eq!((exit, value["error"]["exit_status"].as_u64(), value["exit_status"].as_u64()), (5, Some(5), Some(5)));
    assert_eq!(value["transaction"]["status"], "committed");
    assert_eq!((value["id"].as_str().map(str::len), value["status"].as_str()), (Some(36), Some("committed")));
}

#[test]
fn output_that_cannot_be_written_is_no_success() {
    let program = Program::new();
    Transaction::begin(&program.state(), "beef000a").interrupted();
    for words in [&["list"][..], &["list", "--json"], &["show", "beef000a"], &["journal", "verify", "beef000a"]] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut command = program.command();
        command.arg("--state-dir").arg(program.state()).args(words).stdout(full);
        said(&command.output().unwrap()).exits(5).holds(&["standard output", "No space left"]);
    }
    // A reader that has seen enough is no failure.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = program.command();
    command.arg("--state-dir").arg(program.state()).arg("list").stdout(writer);
    let ended = said(&command.output().unwrap());
    assert_eq!((ended.exit, ended.stderr.as_str()), (0, ""));
}

#[test]
fn live_progress_of_a_running_clone_is_listed() {
    let program = Program::new();
    let running = Transaction::begin(&program.state(), "beef0008").did(0..3);
    let place = program.scratch().join("runtime/kvm-clone");
    fs::create_dir_all(&place).unwrap();
    let report = serde_json::json!({
        "phase": "forward", "step": 3, "done_bytes": DISK_BYTES / 2, "total_bytes": DISK_BYTES,
        "bytes_per_second": 1_000_000, "at": "2023-11-14T22:14:00Z",
    });
    fs::write(place.join(format!("{}.json", running.txn)), report.to_string()).unwrap();
    let (_, value) = program.json(&["list"]);
    assert_eq!((value[0]["percent"].as_u64(), value[0]["step"].as_str()), (Some(25), Some("transfer_image vda")));
    program.run(&["show", "beef0008"]).holds(&["2.00 GB of 4.00 GB", "1.00 MB/s"]);
    fs::write(place.join(format!("{}.json", running.txn)), b"{ half").unwrap();
    assert_eq!(program.json(&["list"]).1[0]["percent"], 0, "an odd file says nothing");
}

#[test]
fn a_journal_is_checked_and_exported_byte_for_byte() {
    let program = Program::new();
    let transaction = Transaction::begin(&program.state(), "beef0009").interrupted();
    let log = program.state().join("txn").join(transaction.txn.to_string()).join("events.log");
    drop(transaction);
    let (exit, value) = program.json(&["journal", "verify", "beef0009"]);
    assert_eq!((exit, value["verdict"].as_str()), (0, Some("sound")), "{value}");
    program.run(&["journal", "verify", "beef0009"]).exits(0).holds(&["sound", "events.log: 10 records"]);
    let copy = program.scratch().join("copy");
    let name = copy.to_str().unwrap();
    program.run(&["journal", "export", "beef0009", "--output", name]).exits(0).holds(&["10 records"]);
    assert_eq!(fs::read(&copy).unwrap(), fs::read(&log).unwrap());
    program.run(&["journal", "export", "beef0009", "--output", name]).exits(5).holds(&["exists"]);
    let mut command = program.command();
    let output =
        command.arg("--state-dir").arg(program.state()).args(["journal", "export", "beef0009"]).output().unwrap();
    assert_eq!(output.stdout, fs::read(&log).unwrap());
    assert_eq!(program.json(&["journal", "export", "beef0009"]).0, 2, "JSON and bytes do not go together");
}
