//! `--disk-map`: each disk where it was asked for, or a refusal that names why not.

use std::time::{Duration, Instant};

use super::lab::{Content, Disk, Host, Lab, Vm};

const MIB: u64 = 1 << 20;
/// A refusal for want of space takes at most so long; the machine may be busy with other tests, so one of some counts.
const REFUSAL_MAX: Duration = Duration::from_secs(2);
const REFUSALS_MAX: u32 = 10;
/// On a machine that is busy throughout, a refusal takes at most as often as long as a look at the VMs of both hosts right
/// before it.
const LOOKS_MAX: u32 = 3;

fn mount_small(host: &Host, path: &str, mib: u64) {
    std::fs::create_dir_all(host.path(path)).unwrap();
    host.run(["mount", "-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs", path]);
}

/// A pool of this name and directory.
fn pool(host: &Host, name: &str, directory: &str) {
    host.virsh(["pool-define-as", name, "dir", "--target", directory]);
    host.virsh(["pool-start", name]);
}

#[test]
fn each_disk_arrives_where_it_was_asked_for() {
    let lab = Lab::up();
    let vm = Vm::new("web")
        .disk(Disk::raw(4 * MIB).content(Content::Random))
        .disk(Disk::qcow2(2 * MIB))
        .disk(Disk::raw(MIB).seed(3));
    lab.a().define(&vm);
    std::fs::create_dir_all(lab.b().path("/srv/fast")).unwrap();
    std::fs::create_dir_all(lab.b().path("/srv/slow")).unwrap();
    pool(lab.b(), "fast", "/srv/fast");
    let controller = lab.controller();
    let words = ["run", "a", "b", "web", "--disk-map", "vda=fast/first", "--disk-map", "vdb=/srv/slow/second.qcow2"];
    controller.run(words).expect(0);
    let definition = lab.b().virsh(["dumpxml", "--inactive", "web_clone"]);
    let places = ["/srv/fast/first", "/srv/slow/second.qcow2", "/var/lib/libvirt/images/web_clone-vdc.img"];
    for (disk, place) in vm.disks().iter().zip(places) {
        assert!(definition.contains(&format!("<source file='{place}'/>")), "{definition}");
        assert_eq!(lab.b().blake3(place), lab.a().blake3(disk.path()), "{place}");
    }
    assert!(lab.b().virsh(["vol-list", "fast"]).contains("first"), "the pool knows its new volume");

    // Again, and there is nothing to do: what stands in the place is the clone.
    controller.run(words.iter().chain(&["--idempotent"])).expect(0).says(&["nothing to do"]);

    let before = lab.outside();
    for (map, says) in [
        (&["vda=fast/first"][..], &["b:", "/srv/fast/first belongs to VM web_clone"][..]),
        (&["vdz=fast/x"], &["no disk vdz", "vda, vdb, vdc"]),
        (&["vda=nosuch/x"], &["b:", "no pool nosuch"]),
        (&["vda=/srv/nosuch/x"], &["b:", "/srv/nosuch does not exist"]),
        (&["vda=fast/x", "vdb=/srv/fast/x"], &["disk vdb and disk vda would both be /srv/fast/x"]),
        (&["vda=/var/lib/libvirt/images/other-vdc.img"], &["would both be /var/lib/libvirt/images/other-vdc.img"]),
    ] {
        let mut words = vec!["run", "a", "b", "web", "--new-name", "other"];
        for map in map {
            words.extend(["--disk-map", map]);
        }
        controller.run(words).expect(5).says(says);
    }
    let after = lab.outside();
    before.0.assert_same(&after.0, "the source after refusals");
    before.1.assert_same(&after.1, "the destination after refusals");
}

#[test]
fn a_small_filesystem_and_a_full_pool_are_told_apart_and_at_once() {
    let lab = Lab::up();
    lab.a().define(
        &Vm::new("web")
            .disk(Disk::raw(8 * MIB).content(Content::Random))
            .disk(Disk::raw(20 * MIB).content(Content::Random).seed(2)),
    );
    let b = lab.b();
    for (path, mib) in [("/srv/small", 16), ("/srv/full", 24), ("/srv/roomy", 48)] {
        mount_small(b, path, mib);
    }
    pool(b, "full", "/srv/full");
    b.run(["fallocate", "--length", "20M", "/srv/full/others"]);
    let before = b.outside();
    let controller = lab.controller();
    let run = |vda: &'static str, vdb: &'static str| ["run", "a", "b", "web", "--disk-map", vda, "--disk-map", vdb];
    // 8 MiB × 1.15 = 9.65 MB where 4.19 are left, and 20 MiB × 1.15 = 24.12 MB where 16.78 are.
    let full =
        "Insufficient disk space on b (/srv/full). Required: 0.01 GB (including 15% safety margin), Available: 0.00 GB";
    let small = "Insufficient disk space on b (/srv/small). Required: 0.03 GB (including 15% safety margin), Available: 0.01 GB";
    let mut took = (0..REFUSALS_MAX).map(|_| {
        let begun = Instant::now();
        for host in ["a", "b"] {
            controller.run(["vms", host]).expect(0);
        }
        let look = begun.elapsed();
        let begun = Instant::now();
        let said = controller.run(run("vda=full/web.img", "vdb=/srv/small/web.img")).expect(5);
        let took = begun.elapsed();
        said.says(&["2 things", full, small, "Please free up at least 0.02 GB on b"]);
        (took, look)
    });
    assert!(
        took.any(|(took, look)| took < REFUSAL_MAX.max(look * LOOKS_MAX)),
        "each of {REFUSALS_MAX} refusals took {REFUSAL_MAX:?} or more, and {LOOKS_MAX} times as long as a look at both hosts"
    );

    // Each filesystem is asked for its own disks only.
    let said = controller.run(run("vda=full/web.img", "vdb=/srv/roomy/web.img")).expect(5).says(&["one thing", full]);
    assert!(!said.stderr.contains("roomy"), "{}", said.stderr);
    controller.run(run("vda=/srv/small/web.img", "vdb=/srv/roomy/web.img").iter().chain(&["--dry-run"])).expect(0);
    // 28 MiB × 1.15 fit, and what is asked for twice is added up: 48 MiB are too few with what the others there take.
    b.run(["fallocate", "--length", "20M", "/srv/roomy/others"]);
    let said = controller.run(run("vda=/srv/roomy/a.img", "vdb=/srv/roomy/b.img")).expect(5);
    said.says(&["one thing", "on b (/srv/roomy). Required: 0.04 GB", "Available: 0.02 GB"]);
    b.run(["rm", "/srv/roomy/others"]);
    before.assert_same(&b.outside(), "the destination after refusals");
    for path in ["/srv/small", "/srv/roomy"] {
        b.run(["umount", path]);
    }
    b.virsh(["pool-destroy", "full"]);
    b.run(["umount", "/srv/full"]);
}
