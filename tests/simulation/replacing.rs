//! Replacing a VM: a crash at every operation, then resume or rollback. The old VM is as before, running again with its memory
//! where that was saved, or the clone is in its place; never neither, never both under one name.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use journal_format::{AttemptPurpose, StopModeV1};
use kvm_clone::engine::Ending;
use kvm_clone::world::Side;

use crate::durability::Survival;
use crate::faults::{Effect, Fault, FaultPlan};
use crate::history::{History, Life};
use crate::old_vm::OldVm;
use crate::scene::Shape;

const SEED: u64 = 12;

fn shape(old: OldVm) -> Shape {
    Shape { disks: 1, two_directories: false, autostart: true, start: false, old: Some(old), ..Shape::plain() }
}

/// What old VMs there are.
fn kinds() -> Vec<OldVm> {
    let running = OldVm { autostart: false, ..OldVm::running() };
    vec![
        running,
        OldVm { deaf: true, ..running },
        OldVm { stop: StopModeV1::Save, ..running },
        OldVm { stop: StopModeV1::Destroy, autostart: true, ..running },
        OldVm { running: false, stop: StopModeV1::Never, ..running },
        OldVm { keep: true, autostart: true, ..running },
        OldVm { keep: true, running: false, ..running },
    ]
}

#[test]
fn an_undisturbed_replacement_commits() {
    for old in kinds() {
        let mut history = History::new(shape(old), SEED);
        let (life, _) = history.live(AttemptPurpose::Run, FaultPlan::none());
        let Life::Ended(ending) = life else { unreachable!() };
        let verdict = history.verdict(Some(&ending), false);
        if let Err(broken) = verdict {
            panic!("{}", history.report(&broken, &format!("{old:?}")));
        }
        assert_eq!(ending, Ending::Committed { warnings: Vec::new() }, "{old:?}");
    }
}

const FATES: u64 = 6;

/// What may become of an operation at which the controller dies, and of its host.
fn fates(operation: u64) -> [(Effect, Option<Survival>); FATES as usize] {
    [
        (Effect::Never, None),
        (Effect::First, None),
        (Effect::Late(3000), None),
        (Effect::First, Some(Survival::Nothing)),
        (Effect::First, Some(Survival::Subset(operation))),
        (Effect::First, Some(Survival::Prefix(operation))),
    ]
}

/// A crash at this operation, what comes with it, and then on to the end.
fn tell(
    old: OldVm,
    operation: u64,
    effect: Effect,
    cut: Option<Survival>,
    purpose: AttemptPurpose,
) -> Result<(), String> {
    let mut history = History::new(shape(old), SEED);
    history.live(AttemptPurpose::Run, FaultPlan::at(operation, Fault::Crash, effect));
    if let Some(survival) = cut {
        history.cut_power(Side::Destination, survival);
    }
    let ending = history.settle(purpose);
    let told = format!("{old:?}, operation {operation}, {effect:?}, {cut:?}, {purpose:?}");
    history
        .verdict(ending.as_ref(), purpose == AttemptPurpose::Rollback)
        .map_err(|broken| history.report(&broken, &told))
}

#[test]
fn at_every_operation_the_old_vm_is_as_before_or_the_clone_is_in_its_place() {
    let mut cells = Vec::new();
    let everything = std::env::var_os("KVM_CLONE_ALL").is_some();
    for (kind, old) in (0..).zip(kinds()) {
        let mut clean = History::new(shape(old), SEED);
        let operations = clean.live(AttemptPurpose::Run, FaultPlan::none()).1.operations();
        for operation in 0..operations {
            // Each operation with a part of what may become of it; together all of it. `KVM_CLONE_ALL` tries everything.
            for (number, (effect, cut)) in fates(operation).into_iter().enumerate() {
                if !everything && number as u64 != (operation + kind) % FATES {
                    continue;
                }
                for purpose in [AttemptPurpose::Resume, AttemptPurpose::Rollback] {
                    cells.push((old, operation, effect, cut, purpose));
                }
            }
        }
    }
    let (next, broken) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, std::num::NonZero::get) {
            scope.spawn(|| {
                while let Some((old, operation, effect, cut, purpose)) =
                    cells.get(next.fetch_add(1, Ordering::Relaxed) as usize)
                {
                    if let Err(story) = tell(*old, *operation, *effect, *cut, *purpose) {
                        broken.lock().unwrap().push(story);
                    }
                }
            });
        }
    });
    let broken = broken.into_inner().unwrap();
    println!("replacing\tcells\t{}\nreplacing\tviolations\t{}", cells.len(), broken.len());
    if let Some(first) = broken.first() {
        panic!("{} of {} broken, the first: {first}", broken.len(), cells.len());
    }
}
