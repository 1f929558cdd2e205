//! The controller's disk is full when the real program is about to append: it is stopped at that boundary, the disk of
//! its state directory is filled, and it goes on. It ends in exit status 3 and says what to do; with room it resumes.
//!
//! Every fifth boundary, or all of them with `KVM_CLONE_FULL_DISK_ALL`; `KVM_CLONE_SEED` says which one is the first.

use std::fs;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;

use super::ground::{Ground, RUN, fill, records, stop_at};
use super::lab::Controller;

/// Room for a whole transaction, its ballast included.
const DISK_BYTES: u64 = 32 << 20;
const STEP_DEFAULT: u64 = 5;

/// Mounts a small disk for this thread and its children alone; it goes with the thread.
fn mount_small_disk(path: &Path) {
    fs::create_dir(path).unwrap();
    // SAFETY: changes nothing but this thread's namespace.
    assert_eq!(unsafe { nix::libc::unshare(nix::libc::CLONE_NEWNS) }, 0, "{}", std::io::Error::last_os_error());
    let run = |command: &mut Command| assert!(command.status().unwrap().success(), "{command:?}");
    run(Command::new("mount").args(["--make-rprivate", "/"]));
    run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={DISK_BYTES}"), "tmpfs"]).arg(path));
}

/// Runs until `boundary`, with no room from there on; whether the program met the full disk at all: what it appends may
/// still fit into pages that are its own.
fn fills_at(ground: &Ground, boundary: u64) -> bool {
    let controller = ground.lab.controller();
    let disk = controller.state_dir();
    mount_small_disk(&disk);
    let running = stop_at(&controller, &format!("before:{boundary}"), RUN).expect("a clone gets there");
    fill(&disk.join("filler"));
    running.signal(Signal::SIGCONT);
    let finished = running.wait();
    let when = format!("no room from record {boundary} on");
    if boundary == 0 {
        finished.expect(5).says(&["make room"]);
        assert!(controller.list().is_empty(), "{when}: nothing has begun");
        ground.assert_untouched(&when);
        return true;
    }
    if finished.code() == Some(0) {
        ground.assert_cloned_and_clear(&when);
        return false;
    }
    finished.expect(3).says(&["make room", "resume"]);
    goes_on(ground, &controller, &when);
    true
}

fn goes_on(ground: &Ground, controller: &Controller, when: &str) {
    let disk = controller.state_dir();
    let txn = controller.only_txn();
    let known = records(controller);
    // What its ballast leaves may be enough. If not: the same words, and nothing is lost.
    let resumed = controller.run(["resume", &txn]);
    if resumed.code() != Some(0) {
        resumed.expect(3).says(&["make room"]);
    }
    assert!(records(controller).starts_with(&known), "{when}: records are gone");
    fs::remove_file(disk.join("filler")).unwrap();
    controller.run(["resume", &txn]).expect(0);
    assert_eq!(controller.status(&txn), "committed", "{when}");
    ground.assert_cloned_and_clear(when);
}

/// The boundaries that are tried, of so many.
pub fn boundaries(count: u64) -> Vec<u64> {
    let step = if std::env::var_os("KVM_CLONE_FULL_DISK_ALL").is_some() { 1 } else { STEP_DEFAULT };
    let seed: u64 = std::env::var("KVM_CLONE_SEED").map_or(0, |text| text.parse().expect("KVM_CLONE_SEED"));
    (seed % step..count).step_by(usize::try_from(step).unwrap()).collect()
}

#[test]
fn a_full_disk_of_the_controller_suspends_and_resumes_at_any_append() {
    let ground = Ground::new();
    let (controller, finished) = ground.run_until(None);
    finished.expect(0);
    ground.assert_cloned_and_clear("a clean run");
    let boundaries = boundaries(records(&controller).len() as u64);
    let mut met = 0;
    for boundary in &boundaries {
        // A thread of its own for its mounts: what the lab mounts meanwhile is no business of theirs.
        met += std::thread::scope(|scope| {
            usize::from(scope.spawn(|| fills_at(&ground, *boundary)).join().expect("the case above failed"))
        });
    }
    println!("{met} of {} boundaries met the full disk", boundaries.len());
    assert!(met * 2 > boundaries.len(), "{met} of {}: the disk was hardly ever full", boundaries.len());
}
