//! Every primitive operation of a clean clone as a crash point: the controller dies before it or after it, the
//! destination loses its power or not, and then the clone is resumed to its end, or rolled back.

use journal_format::AttemptPurpose;
use kvm_clone::engine::Ending;
use kvm_clone::world::Side;

use crate::durability::Survival;
use crate::faults::{Effect, Fault, FaultPlan};
use crate::history::{History, Life};
use crate::scene::Shape;

const SEED: u64 = 7;

/// The operations of a clone in which nothing goes wrong.
pub fn operations_of_a_clean_clone(shape: Shape, seed: u64) -> u64 {
    let mut history = History::new(shape, seed);
    let (life, world) = history.live(AttemptPurpose::Run, FaultPlan::none());
    let committed = Ending::Committed { warnings: Vec::new() };
    assert_eq!(life, Life::Ended(committed.clone()));
    history.verdict(Some(&committed), false).unwrap();
    world.operations()
}

/// The controller dies after each operation in turn, at every second one the destination's power fails too; then the clone is
/// resumed to its end, or rolled back.
pub fn every_crash_of(shape: Shape, seed: u64) {
    for purpose in [AttemptPurpose::Resume, AttemptPurpose::Rollback] {
        for operation in 0..operations_of_a_clean_clone(shape, seed) {
            let mut history = History::new(shape, seed);
            let faults = FaultPlan::at(operation, Fault::Crash, Effect::First);
            assert_eq!(history.live(AttemptPurpose::Run, faults).0, Life::Crashed);
            if operation % 2 == 0 {
                history.cut_power(Side::Destination, Survival::Subset(operation));
            }
            let ending = history.settle(purpose);
            if let Err(broken) = history.verdict(ending.as_ref(), purpose == AttemptPurpose::Rollback) {
                panic!("{}", history.report(&broken, &format!("{purpose:?} after operation {operation}")));
            }
        }
    }
}

/// Crashes at one operation, then goes one way to the end.
fn crash(operation: u64, effect: Effect, purpose: AttemptPurpose, cut: Option<Survival>) -> Result<(), String> {
    let mut history = History::new(Shape::plain(), SEED);
    let (life, world) = history.live(AttemptPurpose::Run, FaultPlan::at(operation, Fault::Crash, effect));
    assert!(world.is_spent(), "operation {operation} was never reached");
    assert_eq!(life, Life::Crashed);
    if let Some(survival) = cut {
        history.cut_power(Side::Destination, survival);
    }
    let committed = history.scene.world.with(|core| history.oracle.borrow().is_marked(core));
    let ending = history.settle(purpose);
    let rollback = purpose == AttemptPurpose::Rollback;
    let fits = match &ending {
        Some(Ending::Committed { .. }) => !rollback || committed,
        Some(Ending::RolledBack { .. }) => rollback && !committed,
        _ => false,
    };
    let verdict = history.verdict(ending.as_ref(), rollback);
    let verdict = verdict.and_then(|()| if fits { Ok(()) } else { Err(format!("{ending:?} does not fit")) });
    verdict.map_err(|broken| {
        let replay = format!("KVM_CLONE_TRACE=1 KVM_CLONE_CRASH={operation} cargo test --test simulation crashes");
        history.report(&broken, &replay)
    })
}

fn every_crash(purpose: AttemptPurpose, cut: &dyn Fn(u64) -> Option<Survival>) {
    let only: Option<u64> = std::env::var("KVM_CLONE_CRASH").ok().map(|number| number.parse().unwrap());
    let mut broken = Vec::new();
    let mut cells = 0;
    for operation in 0..operations_of_a_clean_clone(Shape::plain(), SEED) {
        for effect in [Effect::Never, Effect::First] {
            if only.is_none_or(|only| only == operation) {
                cells += 1;
                broken.extend(crash(operation, effect, purpose, cut(operation)).err());
            }
        }
    }
    println!("{cells} cells");
    for story in &broken {
        println!("broken: {}", story.lines().next().unwrap_or_default());
    }
    assert!(broken.is_empty(), "{} of {cells} cells, the first: {}", broken.len(), broken[0]);
}

/// libvirt writes a definition under another name, and renames it: a power cut may come between, or undo the rename.
#[test]
fn whatever_survives_of_a_definition_is_rolled_back() {
    let mut history = History::new(Shape::plain(), SEED);
    let (_, world) = history.live_traced(AttemptPurpose::Run);
    let defining = world.trace().iter().position(|told| told.ends_with(": define")).expect("a clone is defined") as u64;
    for survival in (0..16).map(Survival::Subset) {
        for purpose in [AttemptPurpose::Rollback, AttemptPurpose::Resume] {
            if let Err(story) = crash(defining, Effect::First, purpose, Some(survival)) {
                panic!("{survival:?}: {story}");
            }
        }
    }
}

#[test]
fn a_crash_anywhere_is_resumed() {
    every_crash(AttemptPurpose::Resume, &|_| None);
}

#[test]
fn a_crash_anywhere_is_rolled_back() {
    every_crash(AttemptPurpose::Rollback, &|_| None);
}

#[test]
fn a_crash_and_a_power_cut_anywhere_are_resumed() {
    every_crash(AttemptPurpose::Resume, &|_| Some(Survival::Nothing));
}

#[test]
fn a_crash_and_a_power_cut_anywhere_are_rolled_back() {
    every_crash(AttemptPurpose::Rollback, &|_| Some(Survival::Nothing));
}

#[test]
fn a_crash_and_a_torn_power_cut_anywhere_are_resumed() {
    every_crash(AttemptPurpose::Resume, &|operation| Some(Survival::Subset(operation)));
}

#[test]
fn a_crash_and_a_torn_power_cut_anywhere_are_rolled_back() {
    every_crash(AttemptPurpose::Rollback, &|operation| Some(Survival::Subset(operation)));
}
