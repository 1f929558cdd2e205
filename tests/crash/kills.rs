//! Clones whose programs are killed again and again, a few records further on each time, until one gets to the end: the
//! controller at a boundary of its journal, at a write of its ledger or at any moment, and agents while it stands at a
//! boundary. All by SIGKILL.
//!
//! `KVM_CLONE_KILLED_CLONES` says how many clones are treated so.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use journal_format::{EventV1, RecordV1};
use nix::sys::signal::Signal;

use super::course::Course;
use super::ground::{Ground, RUN, records, stop_at};
use super::lab::{Controller, Finished, Host};
use super::rounds::{Counts, Rounds, count};
use super::seed::Seed;

const CLONES_DEFAULT: u64 = 6;
const LABS: usize = 3;
/// Then it is left alone and has to get to its end.
const KILLS_MAX: u64 = 20;
/// A program dies at most so many records further on; the first of them only opens its attempt.
const FURTHER_RECORDS: u64 = 7;
const LEDGER_WRITES: u64 = 4;
const MOMENT_MILLIS_MAX: u64 = 1500;

/// Runs the program and kills it, or an agent, as the seed has it. How it ended, if it got to its end.
fn kill(
    ground: &Ground,
    controller: &Controller,
    arguments: &[&str],
    choices: &mut Seed,
    counts: &mut Counts,
) -> Option<Finished> {
    let known = records(controller).len() as u64;
    let side = *choices.pick(&["before", "after"]);
    let further = format!("{side}:{}", known + choices.below(FURTHER_RECORDS));
    match choices.below(10) {
        kind @ 0..6 => {
            let boundary = if kind == 0 { format!("{side}-ledger:{}", choices.below(LEDGER_WRITES)) } else { further };
            let finished = controller.clone().env("KVM_CLONE_CRASH_AT", &boundary).run(arguments);
            if finished.signal() != Some(9) {
                return Some(finished);
            }
            count(counts, "kills of the controller at a boundary");
        }
        6..8 => {
            let until = Instant::now() + Duration::from_millis(choices.below(MOMENT_MILLIS_MAX));
            let mut running = controller.spawn(arguments);
            // The moment is the point here. Nothing is waited for.
            while Instant::now() < until && !running.has_ended() {
                std::thread::sleep(Duration::from_millis(1));
            }
            let finished = running.kill();
            if finished.signal() != Some(9) {
                return Some(finished);
            }
            count(counts, "kills of the controller at any moment");
        }
        kind => {
            let running = match stop_at(controller, &further, arguments.iter().copied()) {
                Ok(running) => running,
                Err(finished) => return Some(finished),
            };
            let killed = kill_agents(if kind == 8 { ground.lab.a() } else { ground.lab.b() });
            running.signal(Signal::SIGCONT);
            let finished = running.wait();
            *counts.entry("kills of an agent").or_default() += killed;
            // What needs that agent no more gets to its end.
            if killed == 0 || finished.code() != Some(3) {
                return Some(finished);
            }
        }
    }
    count(counts, "kills");
    None
}

fn kill_agents(host: &Host) -> u64 {
    let agents = host.processes("kvm-clone-agent");
    // One may just have ended by itself.
    let kill = |pid: &&u32| host.try_run(["/bin/kill", "-s", "KILL", &pid.to_string()]).status.success();
    agents.iter().filter(kill).count() as u64
}

fn has(records: &[RecordV1], wanted: impl Fn(&EventV1) -> bool) -> bool {
    records.iter().any(|record| wanted(&record.event))
}

fn round(ground: &Ground, seed: u64, counts: &mut Counts) {
    let mut choices = Seed::new(seed);
    let controller = ground.lab.controller();
    // Of every clone it is decided beforehand whether somebody will want it back, and from which kill on.
    let back_from = if choices.chance(40) { choices.below(KILLS_MAX) } else { KILLS_MAX };
    for number in 0..=KILLS_MAX {
        let known = records(&controller);
        let txn = if known.is_empty() { None } else { Some(controller.only_txn()) };
        let back = number >= back_from || has(&known, |event| matches!(event, EventV1::RollingBack { .. }));
        let back = back && !has(&known, |event| *event == EventV1::Committed);
        let arguments = match &txn {
            None => RUN.to_vec(),
            Some(txn) => vec![if back { "rollback" } else { "resume" }, txn],
        };
        let when = format!("seed {seed}, life {number}, {}", arguments[0]);
        let ended = match number {
            KILLS_MAX => Some(controller.run(&arguments)),
            _ => kill(ground, &controller, &arguments, &mut choices, counts),
        };
        assert!(records(&controller).starts_with(&known), "{when}: records are gone");
        let Some(finished) = ended else { continue };
        let Some(txn) = txn.or_else(|| (!records(&controller).is_empty()).then(|| controller.only_txn())) else {
            panic!("{when}: it ended without a transaction: {finished:?}");
        };
        if back && finished.code() == Some(5) {
            // The mark was set in the life that was killed.
            controller.run(["resume", &txn]).expect(0);
        } else {
            assert_eq!(finished.code(), Some(0), "{when}: {finished:?}");
        }
        // The clone was there, and the agent died before all was cleared away: that is for the next one.
        if controller.status(&txn) == "cleaning_up" {
            count(counts, "cleaned up later");
            controller.run(["resume", &txn]).expect(0);
        }
        assert_eq!(controller.left_behind(), [] as [PathBuf; 0], "{when}");
        if controller.status(&txn) == "rolled_back" {
            count(counts, "rolled back");
            return ground.assert_untouched(&when);
        }
        count(counts, "committed");
        ground.assert_cloned_and_clear(&when);
        controller.run(["rollback", &txn]).expect(5);
        return;
    }
}

#[test]
fn a_clone_killed_again_and_again_still_gets_to_its_end() {
    let rounds = Rounds { name: "kills", test: "kills", labs: LABS, ground: Ground::new, round };
    let counts = rounds.go(&Course::of_environment("KVM_CLONE_KILLED_CLONES", CLONES_DEFAULT));
    assert!(counts["kills"] > counts["rounds"], "{counts:?}");
}
