//! Replacing VMs on real hosts: crashes at journal boundaries, what is never deleted, and runs that may be repeated for ever.
//! Everything is judged from outside.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod belongings;
mod boundaries;
mod flags;
#[path = "../lab/mod.rs"]
mod lab;
mod repeated;
mod spared;

use std::collections::BTreeSet;

use lab::{Controller, Disk, Finished, Lab, Outside, Vm};

const SOURCE: &str = "web";
const CLONE: &str = "web_clone";

/// Hosts with the source VM on host a, and what they look like before there is anything to replace.
struct Ground {
    lab: Lab,
    source: Vm,
    pristine: (Outside, Outside),
}

impl Ground {
    fn new() -> Self {
        let lab = Lab::up();
        let source = Vm::new(SOURCE).disk(Disk::raw(3 << 20)).disk(Disk::qcow2(2 << 20).seed(7));
        lab.a().define(&source);
        lab.b().virsh(["pool-refresh", "default"]);
        let pristine = lab.outside();
        Self { lab, source, pristine }
    }

    /// A VM of the clone's name on host b; returns what both hosts look like with it.
    fn put_old(&self, running: bool) -> (Outside, Outside) {
        let old = Vm::new(CLONE).disk(Disk::raw(2 << 20).seed(21)).disk(Disk::qcow2(1 << 20).seed(22));
        self.lab.b().define(&old);
        self.lab.b().virsh(["pool-refresh", "default"]);
        if running {
            self.lab.b().virsh(["start", CLONE]);
        }
        self.lab.outside()
    }

    fn assert_as(&self, before: &(Outside, Outside), when: &str) {
        let (a, b) = self.lab.outside();
        before.0.assert_same(&a, when);
        before.1.assert_same(&b, when);
    }

    /// One VM of the clone's name, shut off, with the source's disks, and nothing of the old one but what is kept.
    fn assert_replaced(&self, old_uuid: &str, kept: &[&str], when: &str) {
        let b = self.lab.b();
        self.pristine.0.assert_same(&self.lab.a().outside(), when);
        let outside = b.outside();
        let names: BTreeSet<&str> = outside.domains.keys().map(String::as_str).collect();
        assert!(names.contains(CLONE), "{when}: {names:?}");
        assert!(!names.iter().any(|name| name.contains(".new-")), "{when}: {names:?}");
        assert_eq!(names.iter().any(|name| name.contains(".replaced-")), !kept.is_empty(), "{when}: {names:?}");
        assert_ne!(b.virsh(["domuuid", CLONE]).trim(), old_uuid, "{when}");
        assert_eq!(b.state(CLONE).as_deref(), Some("shut off"), "{when}");
        let images = images_of(b, CLONE);
        assert_eq!(images.len(), self.source.disks().len(), "{when}");
        for (disk, image) in self.source.disks().iter().zip(&images) {
            assert_eq!(self.lab.a().blake3(disk.path()), b.blake3(image), "{when}: {image}");
        }
        for line in self.pristine.1.changes(&outside) {
            let allowed = line.contains("domain web_clone")
                || line.contains(" pool ")
                || line.contains(&format!("/etc/libvirt/qemu/{CLONE}"))
                || images.iter().map(String::as_str).chain(kept.iter().copied()).any(|path| line.contains(path));
            assert!(allowed, "{when}: left on host b: {line}");
        }
    }

    /// Takes every VM of that name away again, with its images.
    fn clear(&self) {
        let b = self.lab.b();
        for name in b.virsh(["list", "--all", "--name"]).lines().filter(|name| name.starts_with(CLONE)) {
            let images = images_of(b, name);
            b.try_virsh(["destroy", name]);
            b.virsh(["undefine", name]);
            for image in images {
                std::fs::remove_file(b.path(&image)).unwrap();
            }
        }
        b.virsh(["pool-refresh", "default"]);
        self.assert_as(&self.pristine, "after it was cleared");
    }
}

/// Clones the source VM.
fn run(controller: &Controller, more: &[&str]) -> Finished {
    controller.run(["run", "a", "b", SOURCE, "--chunk-size", "64K"].iter().chain(more))
}

/// Paths of a VM's disks.
fn images_of(host: &lab::Host, vm: &str) -> Vec<String> {
    let details = host.virsh(["domblklist", vm, "--details"]);
    let sources = details.lines().filter_map(|line| line.split_whitespace().nth(3));
    sources.filter(|path| path.starts_with('/')).map(str::to_owned).collect()
}
