//! Broken promises that random histories found, each told in one line and lived again for ever.

use std::rc::Rc;

use journal_format::AttemptPurpose;
use kvm_clone::engine::Ending;
use kvm_clone::world::Side;

use crate::durability::Survival;
use crate::faults::{Effect, Fault, FaultPlan};
use crate::history::{History, Life};
use crate::old_vm::OldVm;
use crate::oracle::Changed;
use crate::scene::{Scene, Shape};
use crate::strangers::{Act, Strangers};
use crate::world::SimWorld;

const SEED: u64 = 3;
/// A chunk of a scene's images.
const CHUNK: u64 = 4096;

/// The number of the operation of a clean clone that is told so.
fn operation(shape: Shape, seed: u64, told: &str) -> u64 {
    let mut history = History::new(shape, seed);
    let (_, world) = history.live_traced(AttemptPurpose::Run);
    let trace = world.trace();
    trace.iter().position(|line| line.contains(told)).expect("a clean clone does that") as u64
}

/// The first life, with what goes wrong in it, then what comes between, then on to the end.
fn lived(
    shape: Shape,
    seed: u64,
    faults: FaultPlan,
    between: &dyn Fn(&mut History),
    purpose: AttemptPurpose,
    settled: &dyn Fn(&SimWorld) -> Result<(), String>,
) {
    let mut history = History::new(shape, seed);
    let (_, world) = history.live(AttemptPurpose::Run, faults);
    assert!(world.is_spent(), "what was to go wrong never did");
    between(&mut history);
    let ending = history.settle(purpose);
    let verdict = settled(&history.scene.world);
    let verdict = verdict.and_then(|()| history.verdict(ending.as_ref(), purpose == AttemptPurpose::Rollback));
    if let Err(broken) = verdict {
        panic!("{}", history.report(&broken, "kept"));
    }
}

/// A power cut kept the mode of a new staged image and lost its size; an image of holes is never written to, so the clone
/// was defined with a disk that was too short.
#[test]
fn a_staged_image_that_lost_its_size_gets_it_again() {
    let shape = Shape { disks: 1, verify: false, ..Shape::plain() };
    let is_hole = |seed: &u64| Scene::new(shape, *seed).images[0].allocated_bytes() == 0;
    let not_empty = |seed: &u64| Scene::new(shape, *seed).images[0].size() > 0;
    let seed = (0..10_000).find(|seed| is_hole(seed) && not_empty(seed)).expect("some image is nothing but holes");
    let made = operation(shape, seed, "destination: set attributes of");
    for survival in (0..64).map(Survival::Subset) {
        let cut = |history: &mut History| history.cut_power(Side::Destination, survival);
        let faults = FaultPlan::at(made, Fault::Crash, Effect::First);
        lived(shape, seed, faults, &cut, AttemptPurpose::Resume, &|_| Ok(()));
    }
}

/// A kept old VM had given its name up durably, and the power brought its autostart link back. The next attempt died once the name
/// was given up whole, and the one after it saw nothing left to do: the clone got that name, and would have started with its host.
#[test]
fn what_started_the_old_vm_with_its_host_does_not_start_the_clone() {
    let old = OldVm { keep: true, ..OldVm::running() };
    let shape = Shape { disks: 1, autostart: false, start: false, old: Some(old), ..Shape::plain() };
    let cut = operation(shape, SEED, "destination: stat /etc/libvirt/qemu/autostart");
    for crash in 0..80 {
        let faults = FaultPlan::at(cut, Fault::PowerCut(Side::Destination, Survival::Nothing), Effect::Never);
        let crashed = |history: &mut History| {
            history.live(AttemptPurpose::Resume, FaultPlan::at(crash, Fault::Crash, Effect::First));
        };
        lived(shape, SEED, faults, &crashed, AttemptPurpose::Resume, &|_| Ok(()));
    }
}

/// Somebody wrote to a disk of the source past all locks, across two chunks of which one was read already: the clone was defined
/// from a mixture, until the barrier looked at the source.
#[test]
fn a_mixture_of_before_and_after_a_write_is_not_defined() {
    let shape = Shape { disks: 1, firmware: false, ..Shape::plain() };
    let many_chunks = |seed: &u64| Scene::new(shape, *seed).images[0].size() > 5 * CHUNK;
    let seed = (0..10_000).find(many_chunks).expect("some image has chunks");
    let image = Scene::new(shape, seed).plan.images[0].clone();
    let path = image.source_path;
    let first = operation(shape, seed, &format!("read chunk 0 of {path}"));
    let last = operation(shape, seed, &format!("link {}", image.staging_path));
    assert!(first + 5 < last, "many operations lie between");
    for operation in first..last {
        let mut history = History::new(shape, seed);
        let (path, oracle) = (path.clone(), Rc::clone(&history.oracle));
        let write = move |world: &SimWorld| {
            world.with(|core| {
                let files = &mut core.machine_mut(Side::Source).files;
                let stat = files.stat(&path).expect("it is there");
                files.write_at(&path, stat.inode, CHUNK / 2, &[7; 4 * CHUNK as usize]).unwrap();
                files.sync(&path).unwrap();
                let changed = Changed { paths: vec![path.clone()], domains: Vec::new() };
                oracle.borrow_mut().accept(core, Side::Source, &changed);
            });
        };
        let faults = FaultPlan::at(operation, Fault::Meanwhile("vol-upload", Rc::new(write)), Effect::First);
        let (life, world) = history.live(AttemptPurpose::Run, faults);
        assert!(world.is_spent(), "operation {operation} was never reached");
        let Life::Ended(ending) = life else { unreachable!("nobody dies") };
        assert_eq!(ending, Ending::Committed { warnings: Vec::new() }, "operation {operation}");
        if let Err(broken) = history.verdict(Some(&ending), false) {
            panic!("{}", history.report(&broken, "kept"));
        }
    }
}

/// An agent died after it undefined the clone in a rollback, and before that was recorded; another VM had the clone's name when
/// the next attempt looked, which stopped though nothing of ours was left.
#[test]
fn a_vm_that_takes_the_name_of_an_undefined_clone_keeps_it() {
    let begun = || {
        let mut history = History::new(Shape::plain(), SEED);
        let defined = operation(Shape::plain(), SEED, "destination: syncfs");
        history.live(AttemptPurpose::Run, FaultPlan::at(defined, Fault::Crash, Effect::First));
        history
    };
    let (_, world) = begun().live_traced(AttemptPurpose::Rollback);
    let undefined = world.trace().iter().position(|line| line.contains("destination: undefine"));
    let undefined = undefined.expect("a rollback undefines the clone") as u64;
    let mut history = begun();
    let (life, _) = history.live(AttemptPurpose::Rollback, FaultPlan::at(undefined, Fault::Crash, Effect::First));
    assert_eq!(life, Life::Crashed);
    Strangers::of(&history).act(&history.scene.world, Act::TakeName, SEED);
    let ending = history.settle(AttemptPurpose::Rollback);
    assert_eq!(ending, Some(Ending::RolledBack { failure: None }));
    history.verdict(ending.as_ref(), true).unwrap_or_else(|broken| panic!("{}", history.report(&broken, "kept")));
}

/// A power cut tore the renaming of the clone: of a snapshot there was only the file that libvirt writes before it renames it, which
/// libvirt reads and does not remove (seed 500070339).
#[test]
fn a_snapshot_whose_file_was_half_renamed_with_its_clone_is_written_again() {
    let shape = Shape { disks: 1, firmware: false, snapshots: true, old: Some(OldVm::running()), ..Shape::plain() };
    let renamed = operation(shape, SEED, "to web01_clone");
    for survival in (0..256).map(Survival::Subset) {
        let faults = FaultPlan::at(renamed, Fault::PowerCut(Side::Destination, survival), Effect::First);
        lived(shape, SEED, faults, &|_| (), AttemptPurpose::Resume, &|_| Ok(()));
    }
}

/// libvirtd died before it had written the whole of `NAME.xml.new`; a rollback left the torn file for ever.
#[test]
fn a_torn_definition_of_ours_is_taken_away() {
    let shape = Shape::plain();
    let defining = operation(shape, SEED, "destination: define");
    for changes in 0..4 {
        for purpose in [AttemptPurpose::Rollback, AttemptPurpose::Resume] {
            let faults = FaultPlan::at(defining, Fault::BrokenOff, Effect::Part(changes));
            lived(shape, SEED, faults, &|_| {}, purpose, &|_| Ok(()));
        }
    }
}

/// A resumed clean-up ended before a libvirt call of the attempt before it had landed: the definition was written once more
/// when nobody would sync it.
#[test]
fn nothing_lands_after_the_end_of_a_clean_up() {
    let shape = Shape { start: true, ..Shape::plain() };
    for told in
        ["destination: set title", "destination: set metadata", "destination: set autostart", "destination: start"]
    {
        let faults = FaultPlan::at(operation(shape, SEED, told), Fault::Crash, Effect::Late(3900));
        lived(shape, SEED, faults, &|_| {}, AttemptPurpose::Resume, &|world| {
            let waiting = world.with(|core| core.machine(Side::Destination).late.len());
            if waiting == 0 { Ok(()) } else { Err(format!("{told}: {waiting} calls were still to land")) }
        });
    }
}

/// A rollback died after it took the host record away and before that was durable; once abandoned, a power cut would have
/// brought the record back with an owner.
#[test]
fn an_abandoned_record_does_not_come_back() {
    let begun = || {
        let mut history = History::new(Shape::plain(), SEED);
        let defining = operation(Shape::plain(), SEED, "destination: define");
        history.live(AttemptPurpose::Run, FaultPlan::at(defining, Fault::Crash, Effect::First));
        history
    };
    let (_, world) = begun().live_traced(AttemptPurpose::Rollback);
    let taken = world.trace().iter().position(|line| line.contains("rename /var/lib/kvm-clone/host/"));
    let mut history = begun();
    let taken = taken.expect("a rollback takes the record away") as u64;
    let (life, _) = history.live(AttemptPurpose::Rollback, FaultPlan::at(taken, Fault::Crash, Effect::First));
    assert_eq!(life, Life::Crashed);
    let ending = history.give_up();
    history.verdict(ending.as_ref(), true).unwrap_or_else(|broken| panic!("{}", history.report(&broken, "kept")));
}

/// One seed is one history, operation by operation.
#[test]
fn a_seed_is_the_same_history_each_time() {
    let live = || {
        let mut history = History::new(Shape::plain(), SEED);
        let (life, world) = history.live_traced(AttemptPurpose::Run);
        (matches!(life, Life::Ended(_)), world.trace())
    };
    assert_eq!(live(), live());
}
