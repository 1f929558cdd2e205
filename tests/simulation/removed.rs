//! What somebody took between two attempts: the clone after its commit, a disk of it, or its name before it was defined. It is
//! said by name, and nothing is claimed that is not so.

use journal_format::{AttemptPurpose, EventV1};
use kvm_clone::engine::Ending;
use kvm_clone::world::Side;

use crate::faults::{Effect, Fault, FaultPlan};
use crate::history::{History, Life};
use crate::scene::Shape;
use crate::strangers::{Act, Strangers};

const SEED: u64 = 31;

fn shape() -> Shape {
    Shape { disks: 1, ..Shape::plain() }
}

/// Operations from the commit mark to the end of a clean clone.
fn after_the_mark() -> std::ops::Range<u64> {
    let mut clean = History::new(shape(), SEED);
    let (_, world) = clean.live_traced(AttemptPurpose::Run);
    let sets_mark = |line: &String| line.contains("rename") && line.contains("/committed");
    let marked = world.trace().iter().position(sets_mark).expect("the mark is set") as u64;
    marked + 1..world.operations()
}

#[test]
fn a_clone_or_disk_that_was_removed_after_the_commit_is_named() {
    let (mut vms, mut disks) = (0, 0);
    for operation in after_the_mark() {
        for whole in [true, false] {
            let mut history = History::new(shape(), SEED);
            history.live(AttemptPurpose::Run, FaultPlan::at(operation, Fault::Crash, Effect::First));
            let plan = history.scene.plan.clone();
            let disk = plan.images[0].final_path.clone();
            let record = history.scene.world.with(|core| {
                let machine = core.machine_mut(Side::Destination);
                if whole {
                    machine.libvirt.undefine(&mut machine.files, plan.clone_uuid).unwrap();
                } else {
                    let inode = machine.files.stat(&disk).expect("it was published").inode;
                    machine.files.unlink(&disk, inode).unwrap();
                }
                machine.files.stat(&format!("/var/lib/kvm-clone/host/{}/committed", plan.txn)).is_some()
            });
            let ending = history.settle(AttemptPurpose::Resume);
            match ending {
                Some(Ending::CloneGone { missing, orphans, .. }) if record => {
                    let vm = format!("the VM {}", plan.request.new_name);
                    let expected = if whole {
                        (vec![vm], plan.images.iter().map(|image| image.final_path.clone()).collect())
                    } else {
                        (vec![disk], Vec::new())
                    };
                    assert_eq!((missing, orphans), expected, "operation {operation}");
                    *(if whole { &mut vms } else { &mut disks }) += 1;
                }
                // The clean-up had ended: what became of the clone since is its owner's affair.
                Some(Ending::Committed { .. }) if !record => {}
                other => panic!("operation {operation}: {other:?}"),
            }
            let finished = matches!(history.durable.borrow().records.last().unwrap().event, EventV1::Finished { .. });
            assert!(finished, "operation {operation}: it is not kept open for what will not come back");
        }
    }
    assert!(vms > 10 && disks > 10, "{vms}, {disks}");
}

/// Found by seed 3042238 of the random histories: it was tried again for ever.
#[test]
fn a_file_of_somebody_in_a_staging_directory_without_its_nonce_stops() {
    let mut clean = History::new(shape(), SEED);
    let (_, world) = clean.live_traced(AttemptPurpose::Run);
    let made = world.trace().iter().position(|line| line.contains("create") && line.ends_with("/nonce"));
    let mut history = History::new(shape(), SEED);
    let operation = made.expect("a nonce is made") as u64;
    history.live(AttemptPurpose::Run, FaultPlan::at(operation, Fault::Crash, Effect::Never));
    Strangers::of(&history).act(&history.scene.world.clone(), Act::LitterStaging, SEED);
    let ending = history.settle(AttemptPurpose::Resume);
    assert!(matches!(&ending, Some(Ending::Stuck(found)) if found.found.contains("note")), "{ending:?}");
    history.verdict(ending.as_ref(), false).unwrap();
}

/// Nobody waits for a transfer to learn that the name is gone.
#[test]
fn a_name_that_was_taken_meanwhile_turns_back_before_the_transfer() {
    let mut clean = History::new(shape(), SEED);
    let (_, world) = clean.live_traced(AttemptPurpose::Run);
    let copied =
        world.trace().iter().position(|line| line.contains("destination: write chunk")).expect("a clone copies") as u64;
    for operation in 0..copied {
        let mut history = History::new(shape(), SEED);
        history.live(AttemptPurpose::Run, FaultPlan::at(operation, Fault::Crash, Effect::First));
        Strangers::of(&history).act(&history.scene.world.clone(), Act::TakeName, SEED);
        let (life, world) = history.live_traced(AttemptPurpose::Resume);
        let Life::Ended(Ending::RolledBack { failure: Some(failure) }) = &life else {
            panic!("operation {operation}: {life:?}")
        };
        assert!(failure.message.contains("was taken on"), "{failure:?}");
        assert!(
            !world.trace().iter().any(|line| line.contains("destination: write chunk")),
            "operation {operation}: it was copied first"
        );
        let ending = Ending::RolledBack { failure: Some(failure.clone()) };
        history.verdict(Some(&ending), false).unwrap();
    }
}
