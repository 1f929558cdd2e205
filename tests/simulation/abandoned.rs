//! A transaction that is given up: at every operation of a clean clone its controller dies, and a person abandons it, dying
//! now and then at it too. Nobody acts on it any more, from whatever copy of its journal.

use std::cell::RefCell;
use std::rc::Rc;

use journal_format::AttemptPurpose;
use kvm_clone::engine::Ending;
use kvm_clone::world::Side;

use crate::durability::Survival;
use crate::faults::{Effect, Fault, FaultPlan};
use crate::history::{History, Life, drive};
use crate::oracle::Snapshot;
use crate::scene::Shape;

const SEED: u64 = 41;

fn shape() -> Shape {
    Shape { disks: 1, target: true, ..Shape::plain() }
}

/// What comes of it: who asks again is refused, and nothing is changed any more.
fn stays_closed(history: &mut History, stale: &crate::notebook::Durable) -> Result<(), String> {
    let snapshot = |history: &History| history.scene.world.with(|core| Snapshot::of(core.machine(Side::Destination)));
    let left = snapshot(history);
    for purpose in [AttemptPurpose::Resume, AttemptPurpose::Rollback] {
        let (life, _) = history.live(purpose, FaultPlan::none());
        if !matches!(life, Life::Ended(Ending::Refused(_))) {
            return Err(format!("{purpose:?} of what was abandoned came to {life:?}"));
        }
        // Without a record on the destination nothing tells a copy that it was given up.
        if history.scene.world.with(|core| history.oracle.borrow().has_record(core)) {
            let copy = Rc::new(RefCell::new(stale.clone()));
            let world = history.scene.world.another_life(FaultPlan::none());
            let life = drive(&world, history.scene.plan.txn, &copy, &history.oracle, purpose);
            world.end();
            if !matches!(life, Life::Ended(Ending::Refused(_))) {
                return Err(format!("{purpose:?} from a copy of the journal came to {life:?}"));
            }
        }
    }
    left.is(&snapshot(history))
}

/// The controller dies at one operation; who abandons it dies at another.
fn abandoned_after(operation: u64, dies_at: Option<u64>, cut: Option<Survival>) -> Result<(), String> {
    let mut history = History::new(shape(), SEED);
    let (life, _) = history.live(AttemptPurpose::Run, FaultPlan::at(operation, Fault::Crash, Effect::First));
    assert_eq!(life, Life::Crashed);
    if let Some(survival) = cut {
        history.cut_power(Side::Destination, survival);
    }
    let stale = history.durable.borrow().clone();
    let marked = history.scene.world.with(|core| history.oracle.borrow().is_marked(core));
    if let Some(dies_at) = dies_at {
        history.abandon(FaultPlan::at(dies_at, Fault::Crash, Effect::First));
        history.pause();
    }
    let ending = history.give_up();
    let verdict = match &ending {
        Some(Ending::Abandoned { left: Some(_) }) if !marked => {
            history.verdict(ending.as_ref(), false).and_then(|()| stays_closed(&mut history, &stale))
        }
        // Only forward is possible; nothing was changed, and that is still so.
        Some(Ending::Refused(_)) if marked => {
            let ending = history.settle(AttemptPurpose::Resume);
            history.verdict(ending.as_ref(), false)
        }
        other => Err(format!("it came to {other:?}, and the commit mark was there: {marked}")),
    };
    let replay = format!("operation {operation}, abandon dies at {dies_at:?}, {cut:?}");
    verdict.map_err(|broken| history.report(&broken, &replay))
}

fn operations_of_a_clean_clone() -> u64 {
    let mut history = History::new(shape(), SEED);
    history.live(AttemptPurpose::Run, FaultPlan::none()).1.operations()
}

#[test]
fn an_abandoned_transaction_is_acted_on_by_nobody() {
    for operation in 0..operations_of_a_clean_clone() {
        for cut in [None, Some(Survival::Nothing), Some(Survival::Subset(operation))] {
            abandoned_after(operation, None, cut).unwrap();
        }
    }
}

#[test]
fn who_abandons_may_die_anywhere() {
    /// More than giving up takes.
    const OPERATIONS: u64 = 40;
    for operation in (0..operations_of_a_clean_clone()).step_by(7) {
        for dies_at in 0..OPERATIONS {
            abandoned_after(operation, Some(dies_at), None).unwrap();
        }
    }
}

#[test]
fn an_abandoned_clone_leaves_its_name_to_others() {
    let mut history = History::new(shape(), SEED);
    let operations = history.live(AttemptPurpose::Run, FaultPlan::none()).1.operations();
    let mut freed = 0;
    for operation in 0..operations {
        let mut history = History::new(shape(), SEED);
        history.live(AttemptPurpose::Run, FaultPlan::at(operation, Fault::Crash, Effect::First));
        let held = |history: &History| {
            history.scene.world.with(|core| history.oracle.borrow().holds_claim(&core.machine(Side::Destination).files))
        };
        let was_held = held(&history);
        if let Some(Ending::Abandoned { .. }) = history.give_up() {
            assert!(!held(&history), "operation {operation}");
            freed += u64::from(was_held);
        }
    }
    assert!(freed > 50, "a claim was given back {freed} times only");
}
