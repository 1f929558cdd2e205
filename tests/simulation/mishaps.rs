//! Everything else that can go wrong at one operation: a lost agent, a cut link, a late answer, a full disk, a power
//! cut under a living controller, a refusal. Every operation of a clean clone meets each of them.

use std::cell::RefCell;
use std::rc::Rc;

use journal_format::AttemptPurpose;
use kvm_clone::engine::Ending;
use kvm_clone::world::{FaultKind, Side};

use crate::durability::Survival;
use crate::faults::{Effect, Fault, FaultPlan};
use crate::history::{History, Life};
use crate::oracle::Cause;
use crate::scene::Shape;
use crate::strangers::{DISTURBING, HARMLESS, Strangers};
use crate::world::SimWorld;

const SEED: u64 = 23;

/// One disk is enough: what differs between disks is tried by crashes and by random histories.
fn shape() -> Shape {
    Shape { disks: 1, ..Shape::plain() }
}

fn operations_of_a_clean_clone() -> u64 {
    let mut history = History::new(shape(), SEED);
    let (life, world) = history.live(AttemptPurpose::Run, FaultPlan::none());
    assert_eq!(life, Life::Ended(Ending::Committed { warnings: Vec::new() }));
    world.operations()
}

/// Has one thing go wrong, at each operation in turn, and goes on to the end: forward at even ones, back at odd ones.
fn everywhere(fault: &Fault, effects: &[Effect], refused: bool) {
    for operation in 0..operations_of_a_clean_clone() {
        for effect in effects {
            let mut history = History::new(shape(), SEED);
            if refused {
                history.oracle.borrow_mut().causes.insert(Cause::Refused);
            }
            let (life, world) = history.live(AttemptPurpose::Run, FaultPlan::at(operation, fault.clone(), *effect));
            assert!(world.is_spent(), "operation {operation} was never reached");
            let settled = match life {
                Life::Ended(Ending::Suspended(_)) | Life::Crashed => None,
                Life::Ended(ending) => Some(ending),
            };
            let back = settled.is_none() && operation % 2 == 1;
            let purpose = if back { AttemptPurpose::Rollback } else { AttemptPurpose::Resume };
            let ending = match settled {
                Some(Ending::Committed { .. }) | None => history.settle(purpose),
                ending => ending,
            };
            if let Err(broken) = history.verdict(ending.as_ref(), back) {
                panic!("{}", history.report(&broken, &format!("{fault:?} with {effect:?} at operation {operation}")));
            }
        }
    }
}

const LOST: [Effect; 3] = [Effect::Never, Effect::First, Effect::Late(3000)];

#[test]
fn an_agent_may_die_anywhere() {
    everywhere(&Fault::AgentDies, &LOST, false);
}

/// An agent, or libvirtd, that dies in the middle of what it was asked for.
#[test]
fn anything_may_be_done_in_part() {
    let parts = [Effect::Part(0), Effect::Part(1), Effect::Part(2), Effect::Part(3)];
    everywhere(&Fault::BrokenOff, &parts, false);
    everywhere(&Fault::PowerCut(Side::Destination, Survival::Everything), &parts, false);
    everywhere(&Fault::Fails(FaultKind::Io), &parts[..2], false);
}

#[test]
fn a_link_may_be_cut_anywhere() {
    everywhere(&Fault::LinkCut, &LOST, false);
}

#[test]
fn an_answer_may_be_late_anywhere() {
    everywhere(&Fault::TimesOut, &LOST, false);
}

/// libvirt accepted the definition, and carries it out when the rollback has already looked for it.
#[test]
fn a_definition_that_lands_late_is_rolled_back() {
    let mut clean = History::new(shape(), SEED);
    let (_, world) = clean.live_traced(AttemptPurpose::Run);
    let defining = world.trace().iter().position(|line| line.ends_with(": define")).expect("it is defined") as u64;
    for fault in [Fault::TimesOut, Fault::Crash, Fault::LinkCut, Fault::AgentDies] {
        for millis in [10, 500, 3000, 4000] {
            let mut history = History::new(shape(), SEED);
            let faults = FaultPlan::at(defining, fault.clone(), Effect::Late(millis));
            history.live(AttemptPurpose::Run, faults);
            let ending = history.settle(AttemptPurpose::Rollback);
            if let Err(broken) = history.verdict(ending.as_ref(), true) {
                panic!("{}", history.report(&broken, &format!("{fault:?}, landing after {millis} ms")));
            }
        }
    }
}

#[test]
fn a_host_may_lose_its_power_anywhere() {
    for side in [Side::Source, Side::Destination] {
        everywhere(&Fault::PowerCut(side, Survival::Nothing), &[Effect::Never, Effect::First], false);
    }
}

#[test]
fn a_disk_may_be_full_or_fail_anywhere() {
    everywhere(&Fault::DiskFull, &[Effect::Never], false);
    everywhere(&Fault::Fails(FaultKind::Io), &[Effect::Never], false);
}

#[test]
fn libvirt_may_be_gone_anywhere() {
    everywhere(&Fault::Fails(FaultKind::LibvirtDown), &[Effect::Never], false);
}

#[test]
fn a_controller_may_be_interrupted_or_lose_its_journal_anywhere() {
    everywhere(&Fault::Interrupt, &[Effect::Never], false);
    everywhere(&Fault::JournalFails, &[Effect::Never, Effect::First], false);
}

#[test]
fn anything_may_be_refused() {
    for kind in [FaultKind::Denied, FaultKind::Refused, FaultKind::Unsupported] {
        everywhere(&Fault::Fails(kind), &[Effect::Never], true);
    }
}

#[test]
fn a_filesystem_without_hard_links_turns_a_clone_back() {
    let mut history = History::new(shape(), SEED);
    history.scene.world.with(|core| core.machine_mut(Side::Destination).files.refuse_links(crate::scene::IMAGES));
    let (life, _) = history.live(AttemptPurpose::Run, FaultPlan::none());
    let Life::Ended(ending) = life else { unreachable!("nothing goes wrong") };
    assert!(matches!(ending, Ending::RolledBack { failure: Some(_) }), "{ending:?}");
    history.verdict(Some(&ending), true).unwrap();
}

/// Each act of a stranger at each operation: what comes of it has that cause, and what is the stranger's stays.
#[test]
fn a_stranger_may_act_anywhere() {
    for act in DISTURBING.iter().chain(&HARMLESS) {
        for operation in 0..operations_of_a_clean_clone() {
            let mut history = History::new(shape(), SEED);
            let fault = Strangers::of(&history).fault(*act, operation);
            let (life, _) = history.live(AttemptPurpose::Run, FaultPlan::at(operation, fault, Effect::First));
            let ending = match life {
                Life::Crashed | Life::Ended(Ending::Suspended(_) | Ending::Committed { .. }) => {
                    history.settle(AttemptPurpose::Resume)
                }
                Life::Ended(ending) => Some(ending),
            };
            if let Err(broken) = history.verdict(ending.as_ref(), false) {
                panic!("{}", history.report(&broken, &format!("{act:?} at operation {operation}")));
            }
        }
    }
}

/// `vol-upload` writes to an image in spite of QEMU's locks: between publishing and the barrier it is seen.
#[test]
fn what_is_written_to_a_published_image_is_seen_at_the_barrier() {
    let mut clean = History::new(shape(), SEED);
    let (_, world) = clean.live_traced(AttemptPurpose::Run);
    let trace = world.trace();
    let at = |told: &str| trace.iter().position(|line| line.contains(told)).expect("a clean clone does that") as u64;
    let (published, barrier) = (at("destination: lock image") + 1, at("destination: syncfs"));
    assert!(published < barrier);
    for operation in published..barrier {
        let mut history = History::new(shape(), SEED);
        let path = history.scene.plan.images[0].final_path.clone();
        let write = move |world: &SimWorld| {
            world.with(|core| {
                let files = &mut core.machine_mut(Side::Destination).files;
                let stat = files.stat(&path).expect("it was published");
                files.write_at(&path, stat.inode, 0, b"uploaded").unwrap();
            });
        };
        let faults = FaultPlan::at(operation, Fault::Meanwhile("vol-upload", Rc::new(write)), Effect::First);
        history.oracle.borrow_mut().touched = true;
        let (life, _) = history.live(AttemptPurpose::Run, faults);
        assert!(matches!(life, Life::Ended(Ending::Stuck(_))), "operation {operation}: {life:?}");
    }
}

/// From its definition until it is finished the clone cannot be started while an attempt lives.
#[test]
fn an_unfinished_clone_is_not_started() {
    let mut clean = History::new(shape(), SEED);
    let (_, world) = clean.live_traced(AttemptPurpose::Run);
    let trace = world.trace();
    let at = |told: &str| trace.iter().position(|line| line.contains(told)).expect("a clean clone does that") as u64;
    let (defined, finished) = (at("destination: define") + 1, at("destination: unlock image"));
    assert!(defined + 10 < finished, "many operations lie between");
    for operation in defined..finished {
        let mut history = History::new(shape(), SEED);
        let uuid = history.scene.plan.clone_uuid;
        let started: Rc<RefCell<Option<bool>>> = Rc::default();
        let told = Rc::clone(&started);
        let start = move |world: &SimWorld| {
            let outcome = world.with(|core| core.machine_mut(Side::Destination).start(uuid));
            *told.borrow_mut() = Some(outcome.is_ok());
        };
        let faults = FaultPlan::at(operation, Fault::Meanwhile("virsh start", Rc::new(start)), Effect::First);
        let (life, _) = history.live(AttemptPurpose::Run, faults);
        assert_eq!(
            started.take(),
            Some(false),
            "operation {operation}: {}",
            trace[usize::try_from(operation).unwrap()]
        );
        let Life::Ended(ending) = life else { unreachable!("nobody dies") };
        history.verdict(Some(&ending), false).unwrap();
    }
}
