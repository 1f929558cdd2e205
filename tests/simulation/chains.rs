//! A chain of the source that arrives as one image: each of its images counts, and the clone is what the guest saw of all of
//! them at one moment.

use journal_format::{AttemptPurpose, EventV1};
use kvm_clone::engine::Ending;
use kvm_clone::world::Side;

use crate::crashes::{every_crash_of, operations_of_a_clean_clone};
use crate::faults::{Effect, Fault, FaultPlan};
use crate::flattened::{REFERENCE_AT, in_the_clone};
use crate::history::{History, Life};
use crate::oracle::{Cause, Changed};
use crate::scene::{Scene, Shape};
use crate::strangers::{Act, Strangers};

/// One disk, and nothing but it, so that whoever writes to the source writes to the chain.
fn shape(verify: bool) -> Shape {
    Shape { disks: 1, firmware: false, chain: false, verify, flattened: true, ..Shape::plain() }
}

/// The guest sees some chunks, and something of each image.
fn seed() -> u64 {
    let suits = |seed: &u64| {
        let scene = Scene::new(shape(true), *seed);
        scene.world.with(|core| {
            let files = &core.machine(Side::Source).files;
            let planned = &scene.plan.images[0];
            let seen = in_the_clone(files, planned).unwrap();
            let sizes = kvm_clone::steps::paths_read(planned).map(|path| files.stat(path).unwrap().size);
            seen.size() > 5 * 4096 && sizes.min() > Some(6 * 1024)
        })
    };
    (0..10_000).find(suits).expect("some chain suits")
}

#[test]
fn a_flattened_chain_is_cloned_whole_after_a_crash_anywhere() {
    every_crash_of(shape(true), seed());
}

/// Whichever image was written to between two lives, or put back from an older copy: what was sent before is not believed.
#[test]
fn a_change_of_any_image_of_a_chain_is_noticed() {
    for verify in [true, false] {
        for operation in 0..operations_of_a_clean_clone(shape(verify), seed()) {
            for layer in 0..3 {
                let mut history = History::new(shape(verify), seed());
                let faults = FaultPlan::at(operation, Fault::Crash, Effect::First);
                assert_eq!(history.live(AttemptPurpose::Run, faults).0, Life::Crashed);
                let was_done = history.scene.world.with(|core| history.oracle.borrow().is_marked(core));
                put_back(&history, layer);
                let ending = history.settle(AttemptPurpose::Resume);
                let replay = format!("image {layer}, after operation {operation}");
                if let Err(broken) = history.verdict(ending.as_ref(), false) {
                    panic!("{}", history.report(&broken, &replay));
                }
                let journal = history.durable.borrow();
                let seen = journal.records.iter().any(|record| matches!(record.event, EventV1::SourceChanged { .. }));
                let turned_back = matches!(ending, Some(Ending::RolledBack { failure: Some(_) }));
                assert!(seen || turned_back || was_done, "nobody saw it: {replay}, {ending:?}");
            }
        }
    }
}

/// An image of the chain with other data, as large as it was and older than all others.
fn put_back(history: &History, layer: usize) {
    let path = kvm_clone::steps::paths_read(&history.scene.plan.images[0]).nth(layer).unwrap().to_owned();
    history.scene.world.with(|core| {
        let files = &mut core.machine_mut(Side::Source).files;
        let stat = files.stat(&path).unwrap();
        let now_ns = files.now_ns;
        files.now_ns = 1_000_000_000;
        files.write_at(&path, stat.inode, stat.size - 800, &[0x77; 700]).unwrap();
        files.sync(&path).unwrap();
        files.now_ns = now_ns;
        let mut oracle = history.oracle.borrow_mut();
        oracle.causes.insert(Cause::SourceChanged);
        oracle.accept(core, Side::Source, &Changed { paths: vec![path], domains: vec![] });
    });
}

/// Written to while an attempt lives, at each of its operations.
#[test]
fn a_chain_that_changes_under_an_attempt_is_never_a_mixture() {
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
    }
}

/// One of its images names another one below it, or is another file: that is another chain.
#[test]
fn another_chain_is_turned_back() {
    for relinked in [true, false] {
        let mut history = History::new(shape(true), seed());
        let faults = FaultPlan::at(40, Fault::Crash, Effect::First);
        assert_eq!(history.live(AttemptPurpose::Run, faults).0, Life::Crashed);
        let layers = history.scene.plan.images[0].flattened.clone();
        history.scene.world.with(|core| {
            let files = &mut core.machine_mut(Side::Source).files;
            let path = layers[usize::from(relinked)].source_path.clone();
            let stat = files.stat(&path).unwrap();
            let mut changed = vec![path.clone()];
            if relinked {
                let elsewhere = format!("{path}-elsewhere");
                files.rename(&path, &elsewhere).unwrap();
                files.make_symlink(&path, &elsewhere).unwrap();
                changed.push(elsewhere);
            } else {
                files.write_at(&path, stat.inode, REFERENCE_AT, b"other").unwrap();
            }
            files.sync_all();
            let mut oracle = history.oracle.borrow_mut();
            oracle.causes.insert(Cause::SourceChanged);
            oracle.accept(core, Side::Source, &Changed { paths: changed, domains: vec![] });
        });
        let ending = history.settle(AttemptPurpose::Resume);
        let Some(Ending::RolledBack { failure: Some(failure) }) = &ending else { panic!("{ending:?}") };
        let why = if relinked { "leads to" } else { "it is on top of" };
        assert!(failure.message.contains(why), "{failure:?}");
        history.verdict(ending.as_ref(), false).unwrap();
    }
}
