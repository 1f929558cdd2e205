//! A controller that was stopped while another one, from a copy of its state directory, brought the transaction to its
//! end: it must change nothing any more.

use std::cell::RefCell;
use std::rc::Rc;

use journal_format::AttemptPurpose;
use kvm_clone::engine::Ending;
use kvm_clone::world::Side;

use crate::faults::{Effect, Fault, FaultPlan};
use crate::history::{History, Life, drive};
use crate::oracle::Snapshot;
use crate::scene::Shape;
use crate::world::SimWorld;

const SEED: u64 = 11;
/// The overtaker's lives until it is through.
const LIVES_MAX: u32 = 3;
const PAUSE_MILLIS: u64 = 40_000;

/// What the overtaker came to, and what it left behind.
struct Overtaken {
    /// The first one's agent held the owner lock when it was stopped.
    held: bool,
    ending: Option<Ending>,
    left: Snapshot,
}

/// Stops the controller at one operation. Returns how it ended, and what the other one came to.
fn overtake(history: &mut History, operation: u64, purpose: AttemptPurpose) -> (Life, Option<Overtaken>) {
    let outcome: Rc<RefCell<Option<Overtaken>>> = Rc::default();
    let (kept, oracle, plan) = (Rc::clone(&history.durable), Rc::clone(&history.oracle), history.scene.plan.clone());
    let result = Rc::clone(&outcome);
    let act = move |world: &SimWorld| {
        let held = world.holds_owner_lock();
        world.stop_and(|| {
            let copy = Rc::new(RefCell::new(kept.borrow().clone()));
            let mut ending = None;
            for _ in 0..LIVES_MAX {
                let other = world.another_life(FaultPlan::none());
                let life = drive(&other, plan.txn, &copy, &oracle, purpose);
                other.end();
                match life {
                    Life::Ended(Ending::Suspended(_)) => world.idle(PAUSE_MILLIS),
                    Life::Ended(settled) => {
                        ending = Some(settled);
                        break;
                    }
                    Life::Crashed => unreachable!("nothing goes wrong in the other's life"),
                }
            }
            let left = world.with(|core| Snapshot::of(core.machine(Side::Destination)));
            *result.borrow_mut() = Some(Overtaken { held, ending, left });
        });
    };
    let faults = FaultPlan::at(operation, Fault::Meanwhile("overtaken", Rc::new(act)), Effect::First);
    let (life, _) = history.live(AttemptPurpose::Run, faults);
    (life, outcome.take())
}

fn is_refusal(overtaken: &Overtaken) -> bool {
    matches!(overtaken.ending, Some(Ending::Refused(_)))
}

fn judge(history: &mut History, life: &Life, overtaken: &Overtaken, purpose: AttemptPurpose) -> Result<(), String> {
    let Life::Ended(ending) = life else { unreachable!("nothing else goes wrong") };
    let rollback = purpose == AttemptPurpose::Rollback;
    match &overtaken.ending {
        // Nothing was on the destination yet by which anybody could have told the two from each other.
        Some(Ending::Committed { .. }) if !overtaken.held => return history.clone_stays_whole(),
        // The same; or the mark was there, and the other one changed nothing. The first has every right to go on.
        Some(Ending::Refused(_) | Ending::RolledBack { .. }) if !overtaken.held || is_refusal(overtaken) => {
            let ending = history.settle(AttemptPurpose::Resume);
            return history.verdict(ending.as_ref(), false);
        }
        other => history.verdict(other.as_ref(), rollback)?,
    }
    match ending {
        Ending::Suspended(_) | Ending::Committed { .. } => {}
        other => return Err(format!("the one that was overtaken came to {other:?}")),
    }
    let now = history.scene.world.with(|core| Snapshot::of(core.machine(Side::Destination)));
    overtaken.left.is(&now)
}

fn every_overtaking(purpose: AttemptPurpose) {
    let mut clean = History::new(Shape::plain(), SEED);
    let (_, world) = clean.live(AttemptPurpose::Run, FaultPlan::none());
    let mut broken = Vec::new();
    for operation in 0..world.operations() {
        let mut history = History::new(Shape::plain(), SEED);
        let (life, overtaken) = overtake(&mut history, operation, purpose);
        let overtaken = overtaken.expect("every operation is reached");
        let verdict = judge(&mut history, &life, &overtaken, purpose);
        if let Err(what) = verdict {
            let replay = format!("operation {operation}, {purpose:?}");
            broken.push(history.report(&what, &replay));
        }
    }
    assert!(broken.is_empty(), "{} broken, the first: {}", broken.len(), broken[0]);
}

#[test]
fn an_overtaken_controller_changes_nothing_after_a_resume() {
    every_overtaking(AttemptPurpose::Resume);
}

#[test]
fn an_overtaken_controller_changes_nothing_after_a_rollback() {
    every_overtaking(AttemptPurpose::Rollback);
}

/// A state directory was copied, and the copy went on: what the other one knows is older than what the owner file says.
#[test]
fn a_stale_copy_of_a_journal_stops() {
    let mut clean = History::new(Shape::plain(), SEED);
    let (_, world) = clean.live_traced(AttemptPurpose::Run);
    let defining = world.trace().iter().position(|line| line.contains("destination: define")).expect("it is defined");
    for purpose in [AttemptPurpose::Resume, AttemptPurpose::Rollback] {
        let mut history = History::new(Shape::plain(), SEED);
        history.live(AttemptPurpose::Run, FaultPlan::at(defining as u64, Fault::Crash, Effect::First));
        let stale = Rc::new(RefCell::new(history.durable.borrow().clone()));
        history.pause();
        let (life, _) = history.live(AttemptPurpose::Resume, FaultPlan::at(40, Fault::Crash, Effect::First));
        assert_eq!(life, Life::Crashed);
        history.pause();
        let see = |history: &History| history.scene.world.with(|core| Snapshot::of(core.machine(Side::Destination)));
        let left = see(&history);
        let world = history.scene.world.another_life(FaultPlan::none());
        let life = drive(&world, history.scene.plan.txn, &stale, &history.oracle, purpose);
        world.end();
        assert!(matches!(life, Life::Ended(Ending::Stuck(_))), "{purpose:?}: {life:?}");
        left.is(&see(&history)).unwrap();
        let ending = history.settle(AttemptPurpose::Resume);
        history.verdict(ending.as_ref(), false).unwrap_or_else(|broken| panic!("{}", history.report(&broken, "stale")));
    }
}
