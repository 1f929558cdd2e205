//! A disk of the clone on a block device: nothing is staged and nothing published, no time tells whether somebody wrote to it, its
//! name may lead to another device after a boot, and still the clone is whole, or all but the device is as before.

use std::rc::Rc;

use journal_format::AttemptPurpose;
use kvm_clone::engine::Ending;
use kvm_clone::world::Side;

use crate::crashes::{every_crash_of, operations_of_a_clean_clone};
use crate::faults::{Effect, Fault, FaultPlan};
use crate::history::{History, Life};
use crate::libvirt::AUTOSTART;
use crate::oracle::Cause;
use crate::scene::{CLONE_NAME, Scene, Shape, TARGET};
use crate::world::{Core, SimWorld};

/// One disk, on a device, and nothing else that could tell that something changed.
fn shape(verify: bool) -> Shape {
    Shape { disks: 1, firmware: false, chain: false, verify, target: true, ..Shape::plain() }
}

/// The image has some chunks.
fn seed() -> u64 {
    let has_chunks = |seed: &u64| Scene::new(shape(true), *seed).images[0].size() > 5 * 4096;
    (0..10_000).find(has_chunks).expect("some image has chunks")
}

/// Somebody writes to the device, in the image's part of it, and makes that durable.
fn write(core: &mut Core, at: u64) {
    let files = &mut core.machine_mut(Side::Destination).files;
    let inode = files.stat(TARGET).unwrap().inode;
    files.write_at(TARGET, inode, at % 4000, &[0x5A; 90]).unwrap();
    files.sync(TARGET).unwrap();
}

/// The judge hears of it.
fn writes(history: &History, world: &SimWorld, at: u64) {
    let mut oracle = history.oracle.borrow_mut();
    oracle.decayed = true;
    oracle.causes.insert(Cause::BytesFlipped);
    drop(oracle);
    world.with(|core| write(core, at));
}

#[test]
fn a_clone_on_a_device_is_whole_after_a_crash_anywhere() {
    for verify in [true, false] {
        every_crash_of(shape(verify), seed());
    }
}

/// Nothing but its bytes says that somebody wrote to it between two lives.
#[test]
fn a_device_that_was_written_to_between_attempts_is_left_to_who_did() {
    for verify in [true, false] {
        for operation in 0..operations_of_a_clean_clone(shape(verify), seed()) {
            let mut history = History::new(shape(verify), seed());
            let faults = FaultPlan::at(operation, Fault::Crash, Effect::First);
            assert_eq!(history.live(AttemptPurpose::Run, faults).0, Life::Crashed);
            // After the commit it is the clone's owner's.
            if history.scene.world.with(|core| history.oracle.borrow().is_marked(core)) {
                continue;
            }
            let world = history.scene.world.clone();
            writes(&history, &world, operation);
            let ending = history.settle(AttemptPurpose::Resume);
            if let Err(broken) = history.verdict(ending.as_ref(), false) {
                panic!("{}", history.report(&broken, &format!("written to after operation {operation}")));
            }
        }
    }
}

/// While an attempt lives, up to the last time that it is read.
#[test]
fn a_device_that_is_written_to_under_an_attempt_is_noticed_before_the_commit() {
    let mut clean = History::new(shape(true), seed());
    let (_, world) = clean.live_traced(AttemptPurpose::Run);
    let trace = world.trace();
    let last_read = trace.iter().rposition(|line| line.contains(&format!("read chunk 0 of {TARGET}")));
    let defined = trace.iter().position(|line| line.contains("destination: define"));
    let last_read = last_read.expect("the barrier reads the device");
    assert!(defined.is_some_and(|defined| defined < last_read), "it is read after the definition");
    for operation in 0..last_read as u64 {
        let mut history = History::new(shape(true), seed());
        let oracle = Rc::clone(&history.oracle);
        let stranger = move |world: &SimWorld| {
            oracle.borrow_mut().decayed = true;
            oracle.borrow_mut().causes.insert(Cause::BytesFlipped);
            world.with(|core| write(core, 17));
        };
        let fault = Fault::Meanwhile("stranger writes to the device", Rc::new(stranger));
        let (life, _) = history.live(AttemptPurpose::Run, FaultPlan::at(operation, fault, Effect::First));
        let ending = match life {
            Life::Ended(ending @ (Ending::RolledBack { .. } | Ending::Refused(_))) => Some(ending),
            _ => history.settle(AttemptPurpose::Resume),
        };
        if let Err(broken) = history.verdict(ending.as_ref(), false) {
            panic!("{}", history.report(&broken, &format!("written to at operation {operation}")));
        }
    }
}

/// After a boot its name may lead to another device, whose content is nobody's to write over.
#[test]
fn another_device_of_the_same_name_is_never_written_to() {
    let (mut stopped, mut left_off) = (0, 0);
    let shape = Shape { start: true, ..shape(true) };
    for operation in 0..operations_of_a_clean_clone(shape, seed()) {
        let mut history = History::new(shape, seed());
        let faults = FaultPlan::at(operation, Fault::Crash, Effect::First);
        assert_eq!(history.live(AttemptPurpose::Run, faults).0, Life::Crashed);
        let starts = |history: &History| {
            let uuid = history.scene.plan.clone_uuid;
            history.scene.world.with(|core| {
                let machine = core.machine(Side::Destination);
                let link = format!("{AUTOSTART}/{CLONE_NAME}.xml");
                let runs = machine.libvirt.domains.get(&uuid).is_some_and(|clone| clone.active);
                runs || machine.files.stat(&link).is_some()
            })
        };
        let content = |history: &History| {
            history.scene.world.with(|core| core.machine(Side::Destination).files.content(TARGET).cloned())
        };
        let marked = history.scene.world.with(|core| {
            let files = &mut core.machine_mut(Side::Destination).files;
            let node = files.find(TARGET).unwrap();
            files.exchanged.insert(node);
            history.oracle.borrow().is_marked(core)
        });
        let (before, started) = (content(&history), starts(&history));
        let (life, _) = history.live(AttemptPurpose::Resume, FaultPlan::none());
        // After the commit the definition names it, and clean-up has no business with what is on it: but to start nothing there.
        if marked && !started {
            assert!(!starts(&history), "operation {operation}: {life:?}");
            left_off += 1;
        }
        if !marked {
            assert_eq!(content(&history), before, "operation {operation}");
            let ended = matches!(life, Life::Ended(Ending::RolledBack { .. } | Ending::Stuck(_)));
            assert!(ended, "operation {operation}: {life:?}");
            stopped += u32::from(matches!(life, Life::Ended(Ending::Stuck(_))));
        }
    }
    assert!(stopped > 0, "a claimed device that is another one stops");
    assert!(left_off > 0, "a clone on another one is not started");
}

/// What is mounted meanwhile is not written over either.
#[test]
fn a_device_that_is_mounted_meanwhile_stops() {
    let mut history = History::new(shape(true), seed());
    let claimed = {
        let (_, world) = History::new(shape(true), seed()).live_traced(AttemptPurpose::Run);
        let trace = world.trace();
        trace.iter().position(|line| line.contains("/host/devices/")).expect("the device is claimed") as u64
    };
    history.live(AttemptPurpose::Run, FaultPlan::at(claimed + 6, Fault::Crash, Effect::First));
    history.scene.world.with(|core| {
        let files = &mut core.machine_mut(Side::Destination).files;
        let node = files.find(TARGET).unwrap();
        files.mounted.insert(node);
    });
    let (life, _) = history.live(AttemptPurpose::Resume, FaultPlan::none());
    assert!(matches!(life, Life::Ended(Ending::Stuck(_))), "{life:?}");
    history.scene.world.with(|core| core.machine_mut(Side::Destination).files.mounted.clear());
    let ending = history.settle(AttemptPurpose::Resume);
    history.verdict(ending.as_ref(), false).unwrap();
}
