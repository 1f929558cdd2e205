//! A source's disk on a block device: no time says that it changed, no lock keeps its VM from being started, and still the
//! clone is what the source was at one moment.

use journal_format::AttemptPurpose;
use kvm_clone::engine::Ending;
use kvm_clone::world::Side;

use crate::crashes::{every_crash_of, operations_of_a_clean_clone};
use crate::faults::{Effect, Fault, FaultPlan};
use crate::history::{History, Life};
use crate::scene::{DEVICE, Scene, Shape};
use crate::strangers::{Act, Strangers};

/// One disk, and nothing but it, so that whoever writes to the source writes to the device.
fn shape(verify: bool) -> Shape {
    Shape { disks: 1, firmware: false, chain: false, verify, device: true, ..Shape::plain() }
}

/// The device has some chunks.
fn seed() -> u64 {
    let has_chunks = |seed: &u64| Scene::new(shape(true), *seed).images[0].size() > 5 * 4096;
    (0..10_000).find(has_chunks).expect("some image has chunks")
}

#[test]
fn a_device_is_cloned_whole_after_a_crash_anywhere() {
    every_crash_of(shape(true), seed());
}

/// Written to between two lives: with and without a Verify, what was sent before is never believed.
#[test]
fn a_device_that_changed_between_attempts_is_read_again() {
    for verify in [true, false] {
        for operation in 0..operations_of_a_clean_clone(shape(verify), seed()) {
            for act in [Act::ChangeSource, Act::StartSource] {
                let mut history = History::new(shape(verify), seed());
                let faults = FaultPlan::at(operation, Fault::Crash, Effect::First);
                assert_eq!(history.live(AttemptPurpose::Run, faults).0, Life::Crashed);
                Strangers::of(&history).act(&history.scene.world, act, operation);
                let ending = history.settle(AttemptPurpose::Resume);
                if let Err(broken) = history.verdict(ending.as_ref(), false) {
                    panic!("{}", history.report(&broken, &format!("{act:?} after operation {operation}")));
                }
            }
        }
    }
}

/// Written to while an attempt lives, at each of its operations.
#[test]
fn a_device_that_changes_under_an_attempt_is_noticed_before_the_commit() {
    let mut clean = History::new(shape(true), seed());
    let (_, world) = clean.live_traced(AttemptPurpose::Run);
    let trace = world.trace();
    let at = |told: &str| trace.iter().position(|line| line.contains(told)).expect("a clean clone does that") as u64;
    let published = at("destination: lock image");
    // What was read by then is read no more.
    let last_read = trace.iter().rposition(|line| line.contains(&format!("read chunk 0 of {DEVICE}")));
    let barrier = last_read.expect("the barrier reads the device") as u64;
    assert!(published < barrier);
    for operation in 0..operations_of_a_clean_clone(shape(true), seed()) {
        let mut history = History::new(shape(true), seed());
        let fault = Strangers::of(&history).fault(Act::ChangeSource, operation);
        let (life, _) = history.live(AttemptPurpose::Run, FaultPlan::at(operation, fault, Effect::First));
        let ending = match life {
            Life::Ended(ending @ (Ending::RolledBack { .. } | Ending::Refused(_))) => Some(ending),
            _ => history.settle(AttemptPurpose::Resume),
        };
        if let Err(broken) = history.verdict(ending.as_ref(), false) {
            panic!("{}", history.report(&broken, &format!("written to at operation {operation}")));
        }
        // After the first publish there is no way but back: nobody reads the device again before the barrier.
        if (published..barrier).contains(&operation) && history.scene.images[0].size() > 0 {
            let changed = history.scene.world.with(|core| {
                let now = core.machine(Side::Source).files.content(DEVICE).cloned();
                now.is_some_and(|now| !now.same_bytes(&history.scene.images[0]))
            });
            let is_back = matches!(ending, Some(Ending::RolledBack { failure: Some(_) }));
            let told = &trace[usize::try_from(operation).unwrap()];
            assert!(!changed || is_back, "operation {operation} ({told}): {ending:?}");
        }
    }
}
