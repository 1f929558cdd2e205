//! What is left when the machine that ran kvm-clone, or its disk, is gone: `recover` for all that is unfinished, `recover
//! --from` for what no controller knows any more, `abandon` for what nobody can finish.

use std::fs;
use std::path::PathBuf;

use super::lab::{Controller, Disk, Host, Lab, Vm, wait_until};
use super::{BOUND, MIB, assert_cloned, vm};

/// The program dies by SIGKILL at this boundary of its journal.
fn dies_at(controller: &Controller, boundary: &str, arguments: &[&str]) {
    let finished = controller.clone().env("KVM_CLONE_CRASH_AT", boundary).run(arguments.iter().copied());
    assert!(finished.signal().is_some(), "{boundary} was never reached: {finished:?}");
}

fn lose_disk(controller: &Controller) {
    fs::remove_dir_all(controller.state_dir()).unwrap();
}

/// Where an event stands in the journal of a clone of `web` with one disk: the last one that fits.
fn last_event(controller: &Controller, kind: &str, text: &str) -> usize {
    let shown = controller.show(&controller.only_txn());
    let fits = |event: &serde_json::Value| {
        event["event"] == kind && event["text"].as_str().is_some_and(|said| said.contains(text))
    };
    shown["events"].as_array().unwrap().iter().rposition(fits).unwrap_or_else(|| panic!("no {kind} {text} in {shown}"))
}

fn record_files(host: &Host) -> Vec<PathBuf> {
    let outside = host.outside();
    outside.files.into_keys().filter(|path| path.starts_with("/var/lib/kvm-clone/host")).collect()
}

#[test]
fn all_that_is_unfinished_is_brought_to_its_end_at_once() {
    let lab = Lab::up();
    let (web, db) = (vm(2 * MIB), Vm::new("db").disk(Disk::qcow2(2 * MIB).seed(3)));
    lab.a().define(&web);
    lab.a().define(&db);
    let (_, before) = lab.outside();
    let controller = lab.controller();
    let interrupt = || {
        dies_at(&controller, "after:9", &["run", "a", "b", "web"]);
        dies_at(&controller, "before:14", &["run", "a", "b", "db"]);
    };
    let unfinished = || -> Vec<_> {
        let list = controller.run(["recover", "--json"]).expect(0).json();
        let entries = list.as_array().unwrap().iter();
        entries.map(|entry| (entry["new_name"].clone(), entry["status"].clone())).collect()
    };
    interrupt();
    let expected = [("web_clone".into(), "interrupted".into()), ("db_clone".into(), "interrupted".into())];
    assert_eq!(unfinished(), expected);
    controller.run(["recover"]).expect(0).says(&["resume", "rollback", "host_record", "staging_directory", "disk /"]);
    controller.run(["recover", "--rollback-all"]).expect(0);
    before.assert_same(&lab.b().outside(), "both were rolled back");
    assert_eq!(unfinished(), []);
    interrupt();
    controller
        .run(["recover", "--resume-all"])
        .expect(0)
        .says(&["web_clone on b is a clone", "db_clone on b is a clone"]);
    assert_cloned(&lab, &web);
    assert_eq!(lab.b().state("db_clone").as_deref(), Some("shut off"));
    controller.run(["recover"]).expect(0).says(&["nothing is unfinished"]);
}

#[test]
fn what_a_lost_controller_left_is_rolled_back_from_its_destination() {
    let lab = Lab::up();
    lab.a().define(&vm(2 * MIB));
    let (_, before) = lab.outside();
    let other = lab.controller();
    other.run(["recover", "--from", "b"]).expect(0).says(&["no transactions on b"]);
    // Before and after the record, the claim, the staging, the bytes, the publishing, the definition.
    for boundary in ["after:2", "after:4", "before:7", "after:10", "after:13", "before:17", "before:19"] {
        let controller = lab.controller();
        dies_at(&controller, boundary, &["run", "a", "b", "web"]);
        lose_disk(&controller);
        let finished = other.run(["recover", "--from", "b", "--json"]).expect(0).json();
        for entry in finished.as_array().unwrap() {
            assert_eq!(entry["exit_status"], 0, "{boundary}: {entry}");
            assert_eq!(entry["new_name"], "web_clone", "{boundary}: {entry}");
        }
        before.assert_same(&lab.b().outside(), &format!("killed {boundary}, its state directory lost, recovered"));
    }
    assert_eq!(other.list(), Vec::<serde_json::Value>::new(), "nothing of it is a transaction of this controller");
}

#[test]
fn what_a_lost_controller_committed_is_cleaned_up_and_its_mark_left() {
    let lab = Lab::up();
    let web = vm(2 * MIB);
    lab.a().define(&web);
    let (clean, controller, other) = (lab.controller(), lab.controller(), lab.controller());
    clean.run(["run", "a", "b", "web", "--new-name", "first"]).expect(0);
    let committed = last_event(&clean, "committed", "");
    dies_at(&controller, &format!("before:{committed}"), &["run", "a", "b", "web"]);
    let txn = controller.only_txn();
    // The mark was there: what died is the journal's word of it.
    controller.run(["abandon", &txn, "--reason", "too late"]).expect(5).says(&["committed"]);
    let kept = controller.state_dir().with_extension("kept");
    fs::rename(controller.state_dir(), &kept).unwrap();
    let mark = PathBuf::from(format!("/var/lib/kvm-clone/host/{txn}/committed"));
    for _ in 0..2 {
        other.run(["recover", "--from", "b"]).expect(0).says(&[&txn, "cleaned up", "--forget"]);
        assert_cloned(&lab, &web);
        assert!(record_files(lab.b()).contains(&mark));
    }
    // Its own controller is back after all, and sees the mark.
    fs::rename(&kept, controller.state_dir()).unwrap();
    other.run(["recover", "--from", "b", "--forget"]).expect(7).says(&["its controller knows it"]);
    controller.run(["resume", &txn]).expect(0).says(&["is a clone of"]);
    assert_eq!(record_files(lab.b()), [] as [PathBuf; 0]);
    // Or it never comes back, and is forgotten.
    let lost = lab.controller();
    dies_at(&lost, &format!("after:{committed}"), &["run", "a", "b", "web", "--new-name", "third"]);
    lose_disk(&lost);
    other.run(["recover", "--from", "b", "--forget"]).expect(0).says(&["forgotten"]);
    assert_eq!(record_files(lab.b()), [] as [PathBuf; 0]);
    assert_eq!(lab.b().state("third").as_deref(), Some("shut off"));
}

#[test]
fn a_clone_that_a_person_took_is_stuck_and_then_abandoned() {
    let lab = Lab::up();
    lab.a().define(&vm(2 * MIB));
    let clean = lab.controller();
    clean.run(["run", "a", "b", "web", "--new-name", "first"]).expect(0);
    let defined = last_event(&clean, "done", "define");
    let controller = lab.controller();
    dies_at(&controller, &format!("after:{defined}"), &["run", "a", "b", "web", "--new-name", "taken"]);
    let txn = controller.only_txn();
    wait_until(BOUND, "a person starts it", || lab.b().try_virsh(["start", "taken"]).status.success());
    for command in ["resume", "rollback"] {
        controller.run([command, &txn]).expect(4).says(&["taken", "look on b:", "$ ", "abandon"]);
    }
    assert_eq!(controller.status(&txn), "stuck");
    controller.run(["show", &txn]).expect(0).says(&["expected:", "found:", "look on b:", "--reason TEXT"]);
    controller.run(["recover", "--resume-all"]).expect(4).says(&["abandon"]);
    let abandoned = controller.run(["abandon", &txn, "--reason", "somebody works with it"]);
    abandoned.expect(0).says(&["Left on b", "the domain taken"]);
    assert_eq!(controller.status(&txn), "abandoned");
    assert_eq!(lab.b().state("taken").as_deref(), Some("running"), "it stays that person's");
    let left = record_files(lab.b());
    assert!(left.iter().any(|path| path.ends_with("abandoned")), "{left:?}");
    assert!(!left.iter().any(|path| path.ends_with("names/taken")), "the name is free: {left:?}");
    for command in ["resume", "rollback"] {
        controller.run([command, &txn]).expect(5).says(&["abandoned", "somebody works with it"]);
    }
    lab.controller().run(["recover", "--from", "b"]).expect(0).says(&["abandoned"]);
    assert_eq!(record_files(lab.b()), left, "nobody acts on it any more");
    lab.b().virsh(["destroy", "taken"]);
}
