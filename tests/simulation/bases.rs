//! The clone stands on an image that the destination has: it is never changed, and no clone is committed on one that somebody
//! else changed, moved away or staged meanwhile.

use std::rc::Rc;

use journal_format::AttemptPurpose;
use kvm_clone::engine::Ending;
use kvm_clone::reach::Reached;
use kvm_clone::records::{RecordState, host_records};
use kvm_clone::world::{Side, World};

use crate::crashes::{every_crash_of, operations_of_a_clean_clone};
use crate::faults::{Effect, Fault, FaultPlan};
use crate::history::{History, Life};
use crate::old_vm::OldVm;
use crate::oracle::{Cause, Changed, Oracle};
use crate::scene::{Scene, Shape};
use crate::world::{Core, SimWorld};

fn shape() -> Shape {
    Shape { firmware: false, two_directories: false, base: true, ..Shape::plain() }
}

/// There is something in the base.
fn seed() -> u64 {
    let has_bytes = |seed: &u64| Scene::new(shape(), *seed).plan.bases[0].stamp.size > 5 * 4096;
    (0..10_000).find(has_bytes).expect("some base has bytes")
}

/// What somebody does to the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Write,
    MoveAway,
    Link,
}

const ACTS: [Act; 3] = [Act::Write, Act::MoveAway, Act::Link];

/// Does it, durably, and tells the judge.
fn act(core: &mut Core, oracle: &mut Oracle, act: Act) {
    let base = oracle.plan.bases[0].clone();
    let beside = format!("{}-beside", base.path);
    let files = &mut core.machine_mut(Side::Destination).files;
    match act {
        Act::Write => files.write_at(&base.path, base.stamp.inode, 100, &[0x5A; 90]).unwrap(),
        Act::MoveAway => files.rename(&base.path, &beside).unwrap(),
        Act::Link => files.link(&base.path, &beside).unwrap(),
    }
    files.sync_all();
    oracle.causes.insert(Cause::ImageRemoved);
    oracle.accept(core, Side::Destination, &Changed { paths: vec![base.path, beside], domains: vec![] });
}

#[test]
fn a_clone_on_a_base_that_was_there_is_whole_after_a_crash_anywhere() {
    every_crash_of(shape(), seed());
}

#[test]
fn a_base_that_somebody_touched_between_attempts_is_not_stood_on() {
    let mut suspended = 0;
    for operation in 0..operations_of_a_clean_clone(shape(), seed()) {
        for what in ACTS {
            let mut history = History::new(shape(), seed());
            let faults = FaultPlan::at(operation, Fault::Crash, Effect::First);
            assert_eq!(history.live(AttemptPurpose::Run, faults).0, Life::Crashed);
            // After the commit it is the clone's owner's affair.
            if history.scene.world.with(|core| history.oracle.borrow().is_marked(core)) {
                continue;
            }
            history.scene.world.with(|core| act(core, &mut history.oracle.borrow_mut(), what));
            let (life, _) = history.live(AttemptPurpose::Resume, FaultPlan::none());
            let told = format!("{what:?} after operation {operation}: {life:?}");
            let ending = match life {
                Life::Ended(Ending::Suspended(_)) if what == Act::MoveAway => {
                    suspended += 1;
                    history.settle(AttemptPurpose::Rollback)
                }
                Life::Ended(ending @ (Ending::RolledBack { .. } | Ending::Refused(_))) => Some(ending),
                _ => panic!("{told}"),
            };
            history
                .verdict(ending.as_ref(), true)
                .unwrap_or_else(|broken| panic!("{}", history.report(&broken, &told)));
        }
    }
    assert!(suspended > 0, "one that was held may be on a filesystem that is not mounted");
}

/// Up to the last time that it is looked at.
#[test]
fn a_base_that_is_touched_under_an_attempt_is_noticed_before_the_commit() {
    let mut clean = History::new(shape(), seed());
    let base = clean.scene.plan.bases[0].path.clone();
    let (_, world) = clean.live_traced(AttemptPurpose::Run);
    let trace = world.trace();
    let told = format!("destination: stat {base}");
    let last_look = trace.iter().rposition(|line| line.starts_with(&told)).expect("the barrier looks at it");
    let defined = trace.iter().position(|line| line.contains("destination: define"));
    assert!(defined.is_some_and(|defined| defined < last_look), "it is looked at after the definition");
    for operation in 0..last_look as u64 {
        for what in ACTS {
            let mut history = History::new(shape(), seed());
            let oracle = Rc::clone(&history.oracle);
            let stranger = move |world: &SimWorld| world.with(|core| act(core, &mut oracle.borrow_mut(), what));
            let fault = Fault::Meanwhile("stranger touches the base", Rc::new(stranger));
            let (life, _) = history.live(AttemptPurpose::Run, FaultPlan::at(operation, fault, Effect::First));
            let told = format!("{what:?} at operation {operation}: {life:?}");
            let ending = match life {
                Life::Ended(ending @ Ending::RolledBack { .. }) => Some(ending),
                Life::Ended(Ending::Suspended(_)) if what == Act::MoveAway => history.settle(AttemptPurpose::Rollback),
                _ => panic!("{told}"),
            };
            history
                .verdict(ending.as_ref(), true)
                .unwrap_or_else(|broken| panic!("{}", history.report(&broken, &told)));
        }
    }
}

/// Whoever replaces a VM meanwhile leaves it.
#[test]
fn a_base_is_reached_by_a_clone_that_is_suspended() {
    let mut reached_before_it_was_defined = 0;
    for operation in 0..operations_of_a_clean_clone(shape(), seed()) {
        let mut history = History::new(shape(), seed());
        let faults = FaultPlan::at(operation, Fault::Crash, Effect::First);
        assert_eq!(history.live(AttemptPurpose::Run, faults).0, Life::Crashed);
        let base = &history.scene.plan.bases[0].path;
        let looking = history.scene.world.another_life(FaultPlan::none());
        let host = looking.connect(Side::Destination).unwrap();
        let is_recorded = host_records(host.as_ref()).unwrap().iter().any(|one| one.state == RecordState::Unfinished);
        let reached = Reached::on(host.as_ref(), None).unwrap().by(base).unwrap();
        looking.end();
        assert!(reached.is_some() || !is_recorded, "after operation {operation}");
        reached_before_it_was_defined += u32::from(reached.is_some_and(|who| who.starts_with("transaction ")));
    }
    assert!(reached_before_it_was_defined > 0, "most of a clone is before its definition");
}

/// A clone that stands on it no more must not cost the old VM, and is no clone.
#[test]
fn a_base_that_is_changed_or_gone_after_the_commit_keeps_the_old_vm() {
    let shape = Shape { old: Some(OldVm::running()), ..shape() };
    let (mut kept, seed) = (0, seed());
    for operation in 0..operations_of_a_clean_clone(shape, seed) {
        for what in ACTS {
            let mut history = History::new(shape, seed);
            let faults = FaultPlan::at(operation, Fault::Crash, Effect::First);
            assert_eq!(history.live(AttemptPurpose::Run, faults).0, Life::Crashed);
            let old = history.scene.plan.replaced.as_ref().unwrap().uuid;
            let is_there = |history: &History| {
                history.scene.world.with(|core| core.machine(Side::Destination).libvirt.domains.contains_key(&old))
            };
            if !history.scene.world.with(|core| history.oracle.borrow().is_marked(core)) || !is_there(&history) {
                continue;
            }
            history.scene.world.with(|core| act(core, &mut history.oracle.borrow_mut(), what));
            let ending = history.settle(AttemptPurpose::Resume);
            assert!(is_there(&history), "{what:?} after operation {operation}");
            let Some(Ending::CloneGone { missing, warnings, .. }) = ending else { panic!("{what:?}: {ending:?}") };
            let base = &history.scene.plan.bases[0].path;
            assert!(missing.iter().any(|one| one.starts_with(base.as_str())), "{missing:?}");
            assert!(warnings.iter().any(|warning| warning.contains("stays off")), "{warnings:?}");
            kept += 1;
        }
    }
    assert!(kept > 0, "there is a moment between the commit and the end of the old VM");
}
