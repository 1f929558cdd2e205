//! A filesystem that is not mounted, on either host: what is on it is not gone, and nothing is made in its place.

use journal_format::AttemptPurpose;
use kvm_clone::engine::Ending;
use kvm_clone::world::Side;

use crate::faults::{Effect, Fault, FaultPlan};
use crate::history::{History, Life};
use crate::scene::{IMAGES, Shape};

const SEED: u64 = 5;

fn a_life_without_it(operation: u64, purpose: AttemptPurpose) {
    let shape = Shape { disks: 1, two_directories: false, ..Shape::plain() };
    let mut history = History::new(shape, SEED);
    history.live(AttemptPurpose::Run, FaultPlan::at(operation, Fault::Crash, Effect::First));
    // The oracle does not see what is on it either.
    let watch = history.scene.world.with(|core| {
        core.machine_mut(Side::Destination).files.unmount(IMAGES);
        core.watch.take()
    });
    let (life, _) = history.live(purpose, FaultPlan::none());
    let made = history.scene.world.with(|core| {
        let files = &mut core.machine_mut(Side::Destination).files;
        let made = files.list(IMAGES).unwrap().unwrap_or_default();
        files.mount(IMAGES);
        core.watch = watch;
        core.look();
        made
    });
    assert!(made.is_empty(), "operation {operation}, {purpose:?}: {made:?} in the place of what is not mounted");
    assert!(
        matches!(
            &life,
            Life::Ended(
                Ending::Suspended(_) | Ending::Refused(_) | Ending::RolledBack { .. } | Ending::Committed { .. }
            )
        ),
        "operation {operation}, {purpose:?}: {life:?}"
    );
    let ending = history.settle(purpose);
    let back = purpose == AttemptPurpose::Rollback && !matches!(ending, Some(Ending::Committed { .. }));
    if let Err(broken) = history.verdict(ending.as_ref(), back) {
        panic!("{}", history.report(&broken, &format!("operation {operation}, {purpose:?}")));
    }
}

#[test]
fn what_is_not_mounted_is_not_gone() {
    let mut history = History::new(Shape { disks: 1, two_directories: false, ..Shape::plain() }, SEED);
    let (_, world) = history.live(AttemptPurpose::Run, FaultPlan::none());
    for operation in 0..world.operations() {
        a_life_without_it(operation, AttemptPurpose::Resume);
        a_life_without_it(operation, AttemptPurpose::Rollback);
    }
}

/// After a reboot of the source its images may come later than kvm-clone: that is no reason to throw away what was copied.
#[test]
fn a_source_that_is_not_mounted_suspends() {
    let shape = Shape { disks: 1, two_directories: false, ..Shape::plain() };
    let mut clean = History::new(shape, SEED);
    let (_, world) = clean.live(AttemptPurpose::Run, FaultPlan::none());
    let mut suspended = 0;
    for operation in 0..world.operations() {
        let mut history = History::new(shape, SEED);
        history.live(AttemptPurpose::Run, FaultPlan::at(operation, Fault::Crash, Effect::First));
        let committed = history.scene.world.with(|core| {
            let oracle = history.oracle.borrow();
            oracle.committed || oracle.is_marked(core)
        });
        let images = crate::filesystem::split(&history.scene.plan.images[0].source_path).0.to_owned();
        let watch = history.scene.world.with(|core| {
            core.machine_mut(Side::Source).files.unmount(&images);
            core.watch.take()
        });
        let (life, _) = history.live(AttemptPurpose::Resume, FaultPlan::none());
        history.scene.world.with(|core| {
            core.machine_mut(Side::Source).files.mount(&images);
            core.watch = watch;
        });
        match &life {
            Life::Ended(Ending::Suspended(failure)) if !committed => {
                suspended += usize::from(failure.message.contains("is not there"));
            }
            Life::Ended(Ending::Committed { .. }) if committed => {}
            other => panic!("operation {operation}: {other:?}"),
        }
        let ending = history.settle(AttemptPurpose::Resume);
        if let Err(broken) = history.verdict(ending.as_ref(), false) {
            panic!("{}", history.report(&broken, &format!("operation {operation}")));
        }
        assert!(matches!(ending, Some(Ending::Committed { .. })), "operation {operation}: {ending:?}");
    }
    assert!(suspended > 30, "{suspended}");
}
