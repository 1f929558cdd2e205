//! What a crash in the middle of a takeover or of an undo leaves, and what the world does with it before the next attempt.

use std::rc::Rc;

use journal_format::AttemptPurpose;
use kvm_clone::engine::Ending;
use kvm_clone::steps::host_record::{CLAIMS, HOST_ROOT};
use kvm_clone::world::Side;

use crate::durability::Survival;
use crate::faults::{Effect, Fault, FaultPlan};
use crate::history::{History, Life};
use crate::scene::Shape;
use crate::strangers::{Act, Strangers};
use crate::world::SimWorld;

const SEED: u64 = 31;
/// Ways in which a power cut may tear what is not durable.
const TEARINGS: u64 = 64;

fn shape() -> Shape {
    Shape { disks: 1, ..Shape::plain() }
}

/// Where a life with that purpose first does what is told so.
fn place_of(history: &mut History, purpose: AttemptPurpose, told: &str) -> u64 {
    let (_, world) = history.live_traced(purpose);
    world.trace().iter().position(|line| line.contains(told)).expect("it does that") as u64
}

/// A clone that was cut off when everything of it was there, not yet committed.
fn almost_committed() -> History {
    let barrier = place_of(&mut History::new(shape(), SEED), AttemptPurpose::Run, "destination: syncfs");
    let mut history = History::new(shape(), SEED);
    let (life, _) = history.live(AttemptPurpose::Run, FaultPlan::at(barrier, Fault::Crash, Effect::Never));
    assert_eq!(life, Life::Crashed);
    history
}

/// The newest slot of the owner file may not be durable when the next attempt overwrites the other one.
#[test]
fn a_power_cut_never_takes_both_slots_of_the_owner_file() {
    let written =
        place_of(&mut almost_committed(), AttemptPurpose::Rollback, "destination: write /var/lib/kvm-clone/host/") + 1;
    for tearing in 0..TEARINGS {
        let mut history = almost_committed();
        let crash = FaultPlan::at(written, Fault::Crash, Effect::Never);
        assert_eq!(history.live(AttemptPurpose::Rollback, crash).0, Life::Crashed);
        // One operation more: the slot is made durable before the other one is written.
        let cut = Fault::PowerCut(Side::Destination, Survival::Subset(tearing));
        history.live(AttemptPurpose::Rollback, FaultPlan::at(written, cut, Effect::Never));
        let ending = history.settle(AttemptPurpose::Rollback);
        assert!(matches!(ending, Some(Ending::RolledBack { .. })), "{}", history.report("", &format!("{ending:?}")));
        history.verdict(ending.as_ref(), true).unwrap();
    }
}

/// Our name was taken away, which is not in the journal yet, and another uses it by now: that is no reason to stop.
#[test]
fn a_name_that_another_takes_during_a_rollback_stays_with_it() {
    let published = almost_committed().scene.plan.images[0].final_path.clone();
    for (name, act) in [(CLAIMS, Act::TakeClaim), (published.as_str(), Act::TakePath)] {
        let unlinking = place_of(&mut almost_committed(), AttemptPurpose::Rollback, &format!("unlink {name}"));
        let mut history = almost_committed();
        let crash = FaultPlan::at(unlinking, Fault::Crash, Effect::First);
        assert_eq!(history.live(AttemptPurpose::Rollback, crash).0, Life::Crashed);
        Strangers::of(&history).act(&history.scene.world, act, SEED);
        let ending = history.settle(AttemptPurpose::Rollback);
        assert!(matches!(ending, Some(Ending::RolledBack { .. })), "{}", history.report("", &format!("{ending:?}")));
        history.verdict(ending.as_ref(), true).unwrap();
    }
}

/// What a dead attempt's agent was asked last may land between a look and our own try, as long as there is no owner lock: the clone
/// waits for that, and does not turn back (seed 900026793).
#[test]
fn a_record_that_an_earlier_agent_still_makes_turns_nothing_back() {
    let mut history = History::new(shape(), SEED);
    let new = format!("{HOST_ROOT}/.new-{}", history.scene.plan.txn);
    let told = format!("destination: mkdir {new}");
    let making = place_of(&mut History::new(shape(), SEED), AttemptPurpose::Run, &told);
    let late = move |world: &SimWorld| {
        world.with(|core| drop(core.machine_mut(Side::Destination).files.make_dir(&new, 0o700)));
    };
    let fault = Fault::Meanwhile("an earlier agent makes the record", Rc::new(late));
    let (life, _) = history.live(AttemptPurpose::Run, FaultPlan::at(making, fault, Effect::First));
    assert!(matches!(&life, Life::Ended(Ending::Suspended(failure)) if failure.exit == 7), "{life:?}");
    let ending = history.settle(AttemptPurpose::Resume);
    assert_eq!(ending, Some(Ending::Committed { warnings: Vec::new() }));
}
