//! Two hosts with the source VM on host a, what they look like before a clone, and what must be there after one.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use journal_format::RecordV1;
use kvm_clone::journal::{self, StateDir};
use nix::errno::Errno;
use nix::fcntl::posix_fallocate;
use nix::sys::statvfs::statvfs;

use super::lab::{Controller, Disk, Finished, Lab, Outside, Running, Vm, wait_until};

pub const SOURCE: &str = "web";
pub const CLONE: &str = "web_clone";
/// Of every transfer here.
pub const CHUNK_BYTES: u64 = 64 << 10;
/// The command line of a clone.
pub const RUN: [&str; 6] = ["run", "a", "b", SOURCE, "--chunk-size", "64K"];
const STOP_BOUND: Duration = Duration::from_secs(60);

/// Hosts with the source VM on host a, and what they look like.
pub struct Ground {
    pub lab: Lab,
    pub vm: Vm,
    before: (Outside, Outside),
}

impl Ground {
    /// With two small disks.
    pub fn new() -> Self {
        Self::of(Lab::up(), Vm::new(SOURCE).disk(Disk::raw(3 << 20)).disk(Disk::qcow2(2 << 20).seed(7)))
    }

    /// With this VM. What host b looks like survives a power cut.
    pub fn of(lab: Lab, vm: Vm) -> Self {
        lab.a().define(&vm);
        // As after a restart of libvirtd.
        lab.a().virsh(["pool-refresh", "default"]);
        let before = lab.outside();
        let ground = Self { lab, vm, before };
        ground.sync();
        ground
    }

    /// What is on host b now survives a power cut.
    fn sync(&self) {
        self.lab.b().run(["sync", "--file-system", "/etc", "/var"]);
    }

    /// A clone by a controller of its own, which dies at this boundary.
    pub fn run_until(&self, crash_at: Option<&str>) -> (Controller, Finished) {
        let controller = self.lab.controller();
        let crashing = crash_at.map_or(controller.clone(), |at| controller.clone().env("KVM_CLONE_CRASH_AT", at));
        (controller, crashing.run(RUN))
    }

    pub fn assert_untouched(&self, when: &str) {
        let (a, b) = self.lab.outside();
        self.before.0.assert_same(&a, when);
        self.before.1.assert_same(&b, when);
    }

    /// One clone, defined once and shut off, with the source's disks; nothing else changed; then it goes again.
    pub fn assert_cloned_and_clear(&self, when: &str) {
        let (a, b) = self.lab.outside();
        self.before.0.assert_same(&a, when);
        assert_eq!(b.domains.keys().collect::<Vec<_>>(), [CLONE], "{when}");
        assert_eq!(self.lab.b().state(CLONE).as_deref(), Some("shut off"), "{when}");
        let images = images(&self.lab.b().virsh(["domblklist", CLONE, "--details"]));
        assert_eq!(images.len(), self.vm.disks().len(), "{when}");
        for (disk, image) in self.vm.disks().iter().zip(&images) {
            assert_eq!(self.lab.a().blake3(disk.path()), self.lab.b().blake3(image), "{when}: {image}");
        }
        let definition = format!("/etc/libvirt/qemu/{CLONE}.xml");
        let expected: BTreeSet<&str> = images.iter().map(String::as_str).chain([definition.as_str()]).collect();
        let allowed = |line: &&String| {
            let path = line.strip_prefix("+ file ").and_then(|rest| rest.split(':').next());
            line.contains(&format!("domain {CLONE}"))
                || line.contains(" pool ")
                || path.is_some_and(|path| expected.contains(path))
        };
        let changes = self.before.1.changes(&b);
        let left: Vec<_> = changes.iter().filter(|line| !allowed(line)).collect();
        assert!(left.is_empty(), "{when}: left on host b: {left:#?}");
        self.lab.b().virsh(["undefine", CLONE]);
        for image in &images {
            std::fs::remove_file(self.lab.b().path(image)).unwrap();
        }
        self.lab.b().virsh(["pool-refresh", "default"]);
        self.sync();
        self.assert_untouched(&format!("{when}, the clone taken away"));
    }
}

fn images(details: &str) -> Vec<String> {
    let sources = details.lines().filter_map(|line| line.split_whitespace().nth(3));
    sources.filter(|path| path.starts_with('/')).map(str::to_owned).collect()
}

/// What its one transaction's journal holds.
pub fn records(controller: &Controller) -> Vec<RecordV1> {
    let Ok(state) = StateDir::at(&controller.state_dir()) else { return Vec::new() };
    let transactions = state.transactions().unwrap_or_default();
    let read = transactions.first().map(|txn| journal::read(&state, *txn));
    read.map_or_else(Vec::new, |read| read.map_or_else(|_| Vec::new(), |snapshot| snapshot.records))
}

/// Runs the program until it stops itself at a boundary; or how it ended, if it ended before.
pub fn stop_at<'s>(
    controller: &Controller,
    boundary: &str,
    arguments: impl IntoIterator<Item = &'s str>,
) -> Result<Running, Finished> {
    let mut running = controller.clone().env("KVM_CLONE_STOP_AT", boundary).spawn(arguments);
    let pid = running.pid();
    let mut ended = false;
    wait_until(STOP_BOUND, &format!("the program stops {boundary}"), || {
        ended = running.has_ended();
        ended || is_stopped(pid)
    });
    if ended { Err(running.wait()) } else { Ok(running) }
}

fn is_stopped(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
}

/// Leaves no room on the disk that this file is on, not for root either.
pub fn fill(filler: &Path) {
    let file = File::options().append(true).create(true).open(filler).unwrap();
    let space = statvfs(filler.parent().unwrap()).unwrap();
    let mut piece_bytes = space.blocks_free() * space.fragment_size();
    // What a file system keeps for itself is found out by asking for less and less.
    while piece_bytes >= space.fragment_size() {
        let end = file.metadata().unwrap().len();
        match posix_fallocate(&file, i64::try_from(end).unwrap(), i64::try_from(piece_bytes).unwrap()) {
            Ok(()) => {}
            Err(Errno::ENOSPC) => piece_bytes /= 2,
            Err(error) => panic!("fill {}: {error}", filler.display()),
        }
    }
}
