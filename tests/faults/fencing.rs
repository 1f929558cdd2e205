//! Several want the same: stopped controllers and agents that wake up again, copies of a state directory, two runs for one
//! name, a recovery from outside. One of them has the owner lock; nothing is left of the others.

use std::process::Command;

use nix::sys::signal::Signal;

use super::lab::{Controller, Finished, Lab, staged_bytes, wait_until};
use super::{BOUND, IMAGES, LOSS_BOUND, MIB, agents, assert_cloned, resume, start, vm};

/// Another machine's copy of this controller.
fn copy_of(controller: &Controller, lab: &Lab) -> Controller {
    let copy = lab.controller();
    let (from, to) = (controller.state_dir(), copy.state_dir());
    assert!(Command::new("cp").arg("-a").args([&from, &to]).status().unwrap().success());
    copy
}

/// Nothing but one whole clone is on host b.
fn assert_one_clone(lab: &Lab, vm: &super::Vm) {
    assert_cloned(lab, vm);
    let outside = lab.b().outside();
    assert_eq!(outside.domains.keys().collect::<Vec<_>>(), ["web_clone"]);
    let left: Vec<_> = outside.files.keys().filter(|path| path.starts_with("/var/lib/kvm-clone/host")).collect();
    assert_eq!(left, [] as [&std::path::PathBuf; 0]);
    let images =
        outside.files.keys().filter(|path| path.starts_with(IMAGES) && path.to_string_lossy().contains("clone"));
    assert_eq!(images.count(), 1, "{:?}", outside.files.keys());
}

#[test]
fn a_controller_that_was_overtaken_changes_nothing_any_more() {
    let lab = Lab::up();
    let vm = vm(96 * MIB);
    lab.a().define(&vm);
    let controller = lab.controller();
    let running = start(&lab, &controller);
    running.signal(Signal::SIGSTOP);
    let other = copy_of(&controller, &lab);
    other.run(["resume", &other.only_txn()]).expect(0);
    assert_cloned(&lab, &vm);
    let after = lab.outside();
    running.signal(Signal::SIGCONT);
    running.wait_for(LOSS_BOUND).expect(3);
    let (a, b) = lab.outside();
    after.0.assert_same(&a, "the overtaken controller went on");
    after.1.assert_same(&b, "the overtaken controller went on");
}

#[test]
fn a_stopped_agent_is_replaced_and_never_wakes_up() {
    let lab = Lab::up();
    let vm = vm(96 * MIB);
    lab.a().define(&vm);
    let controller = lab.controller();
    let running = start(&lab, &controller);
    let stopped = agents(lab.b());
    assert!(!stopped.is_empty());
    for pid in &stopped {
        lab.b().signal(*pid, "STOP");
    }
    running.wait_for(LOSS_BOUND).expect(3).says(&["b: ", "resume", "rollback"]);
    // It holds the lock still: it is killed, because the owner file names this controller.
    resume(&controller, &lab, &vm);
    wait_until(BOUND, "the stopped agents are gone", || agents(lab.b()).iter().all(|pid| !stopped.contains(pid)));
    assert_one_clone(&lab, &vm);
}

#[test]
fn two_copies_of_one_controller_do_not_clone_twice() {
    let lab = Lab::up();
    let vm = vm(64 * MIB);
    lab.a().define(&vm);
    let controller = lab.controller();
    start(&lab, &controller).kill();
    let txn = controller.only_txn();
    let copy = copy_of(&controller, &lab);
    let both = [&controller, &copy].map(|one| one.spawn(["resume", &txn, "--bandwidth-limit", "10M"]));
    let ended = both.map(super::Running::wait);
    let codes = ended.each_ref().map(Finished::code);
    println!("{codes:?}\n{}\n{}", ended[0].stderr, ended[1].stderr);
    // One goes through, or each lost its agent to the other; then the one whose epoch the owner file has goes on. Who finds
    // an epoch or a clone that its journal knows nothing of stops.
    assert!(codes.iter().all(|code| matches!(code, Some(0 | 3 | 4 | 7))), "{codes:?}");
    let mut through = codes.iter().filter(|code| **code == Some(0)).count();
    for (one, code) in [&controller, &copy].into_iter().zip(codes) {
        if through == 0 && matches!(code, Some(3 | 7)) {
            through += usize::from(one.run(["resume", &txn]).code() == Some(0));
        }
    }
    assert_eq!(through, 1, "{codes:?}");
    assert_one_clone(&lab, &vm);
}

#[test]
fn of_two_runs_for_one_name_one_wins() {
    for same_controller in [false, true] {
        let lab = Lab::up();
        let vm = vm(32 * MIB);
        lab.a().define(&vm);
        let first = lab.controller();
        let second = if same_controller { first.clone() } else { lab.controller() };
        let both = [&first, &second].map(|one| one.spawn(["run", "a", "b", "web", "--bandwidth-limit", "8M"]));
        let ended = both.map(super::Running::wait);
        let (winners, losers): (Vec<_>, Vec<_>) = ended.into_iter().partition(|one| one.code() == Some(0));
        assert_eq!((winners.len(), losers.len()), (1, 1), "{winners:?} {losers:?}");
        let clone = if same_controller {
            &first
        } else {
            [&first, &second][usize::from(first.list()[0]["status"] != "committed")]
        };
        let won = clone.list().iter().find(|entry| entry["status"] == "committed").unwrap()["id"]
            .as_str()
            .unwrap()
            .to_owned();
        let loser = losers.into_iter().next().unwrap();
        println!("{}", loser.stderr);
        assert!(matches!(loser.code(), Some(5 | 7)), "{loser:?}");
        if !same_controller {
            assert_eq!(loser.code(), Some(7), "{loser:?}");
        }
        loser.says(&[&won]);
        assert_one_clone(&lab, &vm);
    }
}

/// Runs the program as another machine would: with a machine-id of its own.
fn on_another_machine(controller: &Controller, arguments: &[&str]) -> (Option<i32>, String) {
    let machine_id = controller.state_dir().with_file_name("machine-id");
    std::fs::write(&machine_id, format!("{}\n", "5".repeat(32))).unwrap();
    let inner = controller.command(arguments);
    let mut outer = Command::new("unshare");
    let script = "mount --bind \"$1\" /etc/machine-id && shift && exec \"$@\"";
    outer.args(["--mount", "sh", "-c", script, "sh"]).arg(machine_id).arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    let output = outer.stdin(std::process::Stdio::null()).output().unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (output.status.code(), said)
}

#[test]
fn from_a_living_controller_nothing_is_taken() {
    let lab = Lab::up();
    lab.a().define(&vm(96 * MIB));
    let (_, before) = lab.outside();
    let (controller, other) = (lab.controller(), lab.controller());
    let mut running = controller.spawn(["run", "a", "b", "web", "--bandwidth-limit", "1M"]);
    running.wait_until(BOUND, "4 MiB are staged", || staged_bytes(lab.b(), IMAGES) >= 4 * MIB);
    let txn = controller.only_txn();
    let state = controller.state_dir().display().to_string();
    let recover = |exit: i32, words: &[&str], options: &[&str]| {
        let (code, said) = on_another_machine(&other, &[&["recover", "--from", "b"], options].concat());
        assert!(code == Some(exit) && words.iter().all(|word| said.contains(word)), "{code:?}: {said}");
    };
    // On the same machine its journal is seen; from another one it cannot be asked.
    other.run(["recover", "--from", "b"]).expect(7).says(&[&txn, "its controller knows it", "left alone"]);
    recover(7, &[&txn, &state, "cannot be asked", "--machine-gone"], &[]);
    recover(0, &["would be rolled back"], &["--machine-gone", "--dry-run"]);
    // Somebody says that it is gone, and it lives: it keeps its lock.
    recover(7, &[&txn, "is held by process", &state], &["--machine-gone"]);
    assert!(!running.has_ended(), "it was disturbed");
    running.kill();
    recover(0, &["rolled back"], &["--machine-gone"]);
    before.assert_same(&lab.b().outside(), "its controller was killed, and its transaction recovered");
    controller.run(["resume", &txn]).expect(1).says(&["host record is gone"]);
    assert_eq!(controller.status(&txn), "rolled_back");
}

#[test]
fn an_abandoned_transfer_leaves_its_name_to_the_next_one() {
    let lab = Lab::up();
    let vm = vm(48 * MIB);
    lab.a().define(&vm);
    let controller = lab.controller();
    start(&lab, &controller).kill();
    let txn = controller.only_txn();
    controller.run(["run", "a", "b", "web"]).expect(5).says(&[&txn, "kvm-clone resume", "kvm-clone rollback"]);
    let abandoned = controller.run(["abandon", &txn, "--reason", "the disk is wanted elsewhere"]);
    abandoned.expect(0).says(&["Left on b", "the staging directory"]);
    controller.run(["run", "a", "b", "web"]).expect(0);
    let states: Vec<_> = controller.list().iter().map(|entry| entry["status"].clone()).collect();
    assert_eq!(states, ["abandoned", "committed"]);
    assert!(staged_bytes(lab.b(), IMAGES) > 0, "what was abandoned is left");
}
