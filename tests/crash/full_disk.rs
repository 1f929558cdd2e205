//! The controller's disk is full when the real program is about to append: it is stopped at that boundary, the disk of
//! its state directory is filled, and it goes on. It ends in exit status 3 and says what to do; with room it resumes.
//!
//! Every fifth boundary, or all of them with `KVM_CLONE_FULL_DISK_ALL`.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::fcntl::posix_fallocate;
use nix::sys::signal::Signal;
use nix::sys::statvfs::statvfs;

use super::lab::Controller;
use super::{Ground, SOURCE, records};

/// Room for a whole transaction, its ballast included.
const DISK_BYTES: u64 = 32 << 20;
const STOP_BOUND: Duration = Duration::from_secs(60);

/// Mounts a small disk for this thread and its children alone; it goes with the thread.
fn mount_small_disk(path: &Path) {
    fs::create_dir(path).unwrap();
    // SAFETY: changes nothing but this thread's namespace.
    assert_eq!(unsafe { nix::libc::unshare(nix::libc::CLONE_NEWNS) }, 0, "{}", std::io::Error::last_os_error());
    let run = |command: &mut Command| assert!(command.status().unwrap().success(), "{command:?}");
    run(Command::new("mount").args(["--make-rprivate", "/"]));
    run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={DISK_BYTES}"), "tmpfs"]).arg(path));
}

fn fill(disk: &Path) {
    let filler = File::options().append(true).create(true).open(disk.join("filler")).unwrap();
    let space = statvfs(disk).unwrap();
    let free = space.blocks_available() * space.fragment_size();
    let end = filler.metadata().unwrap().len();
    if free > 0 {
        posix_fallocate(&filler, i64::try_from(end).unwrap(), i64::try_from(free).unwrap()).unwrap();
    }
}

fn is_stopped(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
}

/// Runs until `boundary`, with no room from there on; whether the program met the full disk at all: what it appends may
/// still fit into pages that are its own.
fn fills_at(ground: &Ground, boundary: u64) -> bool {
    let controller = ground.lab.controller();
    let disk = controller.state_dir();
    mount_small_disk(&disk);
    let stopping = controller.clone().env("KVM_CLONE_STOP_AT", &format!("before:{boundary}"));
    let mut running = stopping.spawn(["run", "a", "b", SOURCE, "--chunk-size", "64K"]);
    let pid = running.pid();
    running.wait_until(STOP_BOUND, "the program stops at the boundary", || is_stopped(pid));
    fill(&disk);
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

#[test]
fn a_full_disk_of_the_controller_suspends_and_resumes_at_any_append() {
    let ground = Ground::new();
    let (controller, finished) = ground.run_until(None);
    finished.expect(0);
    ground.assert_cloned_and_clear("a clean run");
    let count = records(&controller).len() as u64;
    let step = if std::env::var_os("KVM_CLONE_FULL_DISK_ALL").is_some() { 1 } else { 5 };
    let mut met = 0;
    let boundaries: Vec<u64> = (0..count).step_by(step).collect();
    for boundary in &boundaries {
        // A thread of its own for its mounts: what the lab mounts meanwhile is no business of theirs.
        met += std::thread::scope(|scope| {
            usize::from(scope.spawn(|| fills_at(&ground, *boundary)).join().expect("the case above failed"))
        });
    }
    println!("{met} of {} boundaries met the full disk", boundaries.len());
    assert!(met * 2 > boundaries.len(), "{met} of {}: the disk was hardly ever full", boundaries.len());
}
