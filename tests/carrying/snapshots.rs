//! libvirt's snapshots arrive: a clone reverts to them on its own disk, with its own variables, and its source's disk is never
//! touched.

use crate::lab::{Disk, Host, Lab, Service, Vm};
use crate::{MIB, live_a_little};

/// Writes a byte all over the beginning of a qcow2 disk.
fn write(host: &Host, path: &str, byte: &str) {
    host.run(["qemu-io", "-f", "qcow2", "-c", &format!("write -P {byte} 0 64k"), path]);
}

/// Is the beginning of a qcow2 disk all of that byte?
fn holds(host: &Host, path: &str, byte: &str) -> bool {
    let output = host.try_run(["qemu-io", "-r", "-f", "qcow2", "-c", &format!("read -P {byte} 0 64k"), path]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("read 65536/65536") || said.contains("verification failed"), "{said}");
    !said.contains("verification failed")
}

/// The tree of a VM's snapshots, and the current one.
fn snapshots(host: &Host, vm: &str) -> (String, String) {
    (host.virsh(["snapshot-list", "--tree", vm]), host.virsh(["snapshot-current", "--name", vm]))
}

fn definition(host: &Host, vm: &str) -> String {
    host.virsh(["dumpxml", "--inactive", vm])
}

#[test]
fn snapshots_arrive_and_the_clone_reverts_to_them_on_its_own_disk_and_variables() {
    let lab = Lab::up();
    let (a, b) = (lab.a(), lab.b());
    let vm = Vm::new("kept").disk(Disk::qcow2(2 * MIB)).uefi_and_tpm();
    let disk = vm.disks()[0].path().to_owned();
    a.define(&vm);
    let (variables, _) = live_a_little(a, "kept");
    write(a, &disk, "0x11");
    a.virsh(["snapshot-create-as", "kept", "one"]);
    write(a, &disk, "0x22");
    a.virsh(["snapshot-create-as", "kept", "two"]);
    write(a, &disk, "0x33");
    let (before, hash) = (a.outside(), a.blake3(&disk));
    let on_source = snapshots(a, "kept");

    let controller = lab.controller();
    controller.run(["run", "a", "b", "kept"]).expect(0);
    before.assert_same(&a.outside(), "the source after the clone");
    assert_eq!(snapshots(b, "kept_clone"), on_source);
    b.stop(Service::Libvirtd);
    b.start(Service::Libvirtd);
    assert_eq!(snapshots(b, "kept_clone"), on_source, "the files say the same as the daemon did");

    let clone_disk = "/var/lib/libvirt/images/kept_clone-vda.qcow2";
    let clone_variables = "/var/lib/libvirt/qemu/nvram/kept_clone_VARS.fd";
    assert!(holds(b, clone_disk, "0x33"));
    let was = definition(b, "kept_clone");
    b.virsh(["snapshot-revert", "kept_clone", "one"]);
    assert!(holds(b, clone_disk, "0x11") && !holds(b, clone_disk, "0x33"));
    let now = definition(b, "kept_clone");
    let nvram = format!("<nvram>{clone_variables}</nvram>");
    for part in [nvram.as_str(), clone_disk, "<name>kept_clone</name>", "state=\"finished\""] {
        assert!(was.contains(part), "{part} is missing from:\n{was}");
        assert!(now.contains(part), "{part} is missing from:\n{now}");
    }
    b.virsh(["start", "kept_clone"]);
    b.virsh(["destroy", "kept_clone"]);
    let files = b.run(["ls", "/var/lib/libvirt/qemu/nvram"]);
    assert_eq!(files.trim(), "kept_clone_VARS.fd", "nothing was made anew");
    assert_eq!(b.blake3(clone_variables), a.blake3(&variables));
    b.virsh(["snapshot-revert", "kept_clone", "two"]);
    assert!(holds(b, clone_disk, "0x22"));
    // They are the clone's own: libvirt deletes them as its own.
    b.virsh(["snapshot-delete", "kept_clone", "one"]);
    assert_eq!(a.blake3(&disk), hash);
    before.assert_same(&a.outside(), "the source after all that");
}

#[test]
fn beside_its_source_and_in_the_place_of_another_a_clone_reverts_without_touching_either() {
    let lab = Lab::up();
    let a = lab.a();
    let vm = Vm::new("web").disk(Disk::qcow2(2 * MIB));
    let disk = vm.disks()[0].path().to_owned();
    a.define(&vm);
    write(a, &disk, "0x11");
    a.virsh(["snapshot-create-as", "web", "off", "a <quiet> one"]);
    write(a, &disk, "0x22");
    a.virsh(["start", "web"]);
    a.virsh(["snapshot-create-as", "web", "live"]);
    a.virsh(["destroy", "web"]);
    write(a, &disk, "0x33");
    let (hash, on_source, was) = (a.blake3(&disk), snapshots(a, "web"), definition(a, "web"));

    let controller = lab.controller();
    let words = ["run", "a", "a", "web", "--new-name", "beside"];
    controller.run(words).expect(0).says(&["snapshot live", "memory"]);
    assert_eq!(snapshots(a, "beside"), on_source);
    let first = "/var/lib/libvirt/images/beside-vda.qcow2";
    a.virsh(["snapshot-revert", "beside", "off"]);
    assert!(holds(a, first, "0x11"));
    a.virsh(["snapshot-revert", "beside", "live"]);
    assert_eq!(a.state("beside").as_deref(), Some("running"));
    a.virsh(["destroy", "beside"]);
    assert!(holds(a, first, "0x22"));
    assert_eq!((a.blake3(&disk), definition(a, "web")), (hash, was.clone()));

    // Again, in the place of that clone: renamed at the end, with its snapshots.
    controller.run([&words[..], &["--force"]].concat()).expect(0);
    assert_eq!(snapshots(a, "beside"), on_source);
    assert_eq!(a.run(["ls", "/var/lib/libvirt/qemu/snapshot"]).trim(), "beside\nweb");
    a.stop(Service::Libvirtd);
    a.start(Service::Libvirtd);
    assert_eq!(snapshots(a, "beside"), on_source);
    let blocks = a.virsh(["domblklist", "beside"]);
    let second = blocks.split_whitespace().find(|word| word.starts_with('/')).expect("a disk").to_owned();
    assert_ne!(second, disk);
    a.virsh(["snapshot-revert", "beside", "off"]);
    assert!(holds(a, &second, "0x11"));
    assert_eq!(a.virsh(["domuuid", "beside"]).trim().len(), 36);
    assert_eq!((a.blake3(&disk), definition(a, "web")), (hash, was));

    // What is outside of the disk cannot come along.
    a.virsh(["snapshot-create-as", "web", "outside", "--disk-only"]);
    let refused = controller.run(["run", "a", "b", "web"]).expect(5);
    refused.says(&["snapshot outside of VM web", "external", "virsh snapshot-delete web outside"]);
}
