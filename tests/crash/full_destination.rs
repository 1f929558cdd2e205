//! The destination's disk is full when the real program is about to append: it is stopped at that boundary, the disk of
//! host b is filled, and it goes on. It gets to its end without room, or ends in exit status 3 and says what to do; with
//! room it resumes, and without any it can be rolled back.
//!
//! Every fifth boundary, or all of them with `KVM_CLONE_FULL_DISK_ALL`; from `KVM_CLONE_SEED` on.

use nix::sys::signal::Signal;

use super::full_disk::boundaries;
use super::ground::{Ground, RUN, SOURCE, fill, records, stop_at};
use super::lab::{Disk, Lab, Vm};

/// On the disk that host b has for itself, where nobody looks.
const FILLER: &str = "/var/filler";

fn ground() -> Ground {
    let (raw, qcow2) = (Disk::raw(3 << 20), Disk::qcow2(2 << 20).seed(7));
    Ground::of(Lab::up_with_loop(), Vm::new(SOURCE).disk(raw).disk(qcow2))
}

/// Whether the program met the full disk at all.
fn fills_at(ground: &Ground, boundary: u64, back: bool) -> bool {
    let when = format!("no room on the destination from record {boundary} on");
    let controller = ground.lab.controller();
    let running = stop_at(&controller, &format!("before:{boundary}"), RUN).expect("a clone gets there");
    let filler = ground.lab.b().path(FILLER);
    fill(&filler);
    running.signal(Signal::SIGCONT);
    let finished = running.wait();
    let make_room = || std::fs::remove_file(&filler).unwrap();
    if finished.code() == Some(0) {
        make_room();
        ground.assert_cloned_and_clear(&when);
        return false;
    }
    assert_eq!(finished.code(), Some(3), "{when}: {finished:?}");
    finished.says(&["make room", "resume"]);
    let txn = controller.only_txn();
    if back {
        let rolled_back = controller.run(["rollback", &txn]);
        make_room();
        // Past the mark it only goes forward.
        if rolled_back.code() != Some(5) {
            rolled_back.expect(0);
            assert_eq!(controller.status(&txn), "rolled_back", "{when}");
            ground.assert_untouched(&when);
            return true;
        }
    } else {
        let resumed = controller.run(["resume", &txn]);
        make_room();
        assert!(matches!(resumed.code(), Some(0 | 3)), "{when}: {resumed:?}");
    }
    controller.run(["resume", &txn]).expect(0);
    assert_eq!(controller.status(&txn), "committed", "{when}");
    ground.assert_cloned_and_clear(&when);
    true
}

#[test]
fn a_full_disk_of_the_destination_suspends_and_resumes_at_any_step() {
    let ground = ground();
    let (controller, finished) = ground.run_until(None);
    finished.expect(0);
    ground.assert_cloned_and_clear("a clean run");
    let boundaries = boundaries(records(&controller).len() as u64);
    let met = boundaries.iter().enumerate().filter(|(number, boundary)| fills_at(&ground, **boundary, number % 2 == 0));
    let met = met.count();
    println!("{met} of {} boundaries met the full disk of the destination", boundaries.len());
    assert!(met > 0, "the disk was never full");
}
