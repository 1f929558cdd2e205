//! Volumes of pools: what they are, the host's libvirt says.

use super::lab::{Content, Disk, Lab, Vm};

const MIB: u64 = 1 << 20;

/// A VM whose only disk is this volume.
fn with_volume(name: &str, pool: &str, volume: &str, format: &str) -> String {
    let disk = format!(
        "<disk type='volume' device='disk'><driver name='qemu' type='{format}' cache='none'/>\
         <source pool='{pool}' volume='{volume}'/><target dev='vda' bus='virtio'/><serial>A1</serial></disk>"
    );
    Vm::new(name).device(&disk).definition()
}

#[test]
fn a_volume_arrives_as_a_file_wherever_it_goes() {
    let lab = Lab::up();
    let (a, b) = (lab.a(), lab.b());
    // The image of another VM makes the volume's bytes.
    a.define(&Vm::new("maker").disk(Disk::qcow2(4 * MIB).content(Content::Random).at("/srv/pool/made.qcow2")));
    a.virsh(["undefine", "maker"]);
    a.virsh(["pool-define-as", "store", "dir", "--target", "/srv/pool"]);
    a.virsh(["pool-start", "store"]);
    a.define_xml(&with_volume("web", "store", "made.qcow2", "qcow2"));
    let before = a.outside();
    let controller = lab.controller();
    controller.run(["plan", "a", "b", "web"]).expect(0).says(&["/srv/pool/made.qcow2"]);
    controller.run(["run", "a", "b", "web"]).expect(0);
    before.assert_same(&a.outside(), "the source after the clone");

    let image = "/var/lib/libvirt/images/web_clone-vda.qcow2";
    let definition = b.virsh(["dumpxml", "--inactive", "web_clone"]);
    for part in ["<disk type='file' device='disk'>", &format!("<source file='{image}'/>"), "<serial>A1</serial>"] {
        assert!(definition.contains(part), "{part} is missing from {definition}");
    }
    assert!(!definition.contains("pool="), "{definition}");
    assert_eq!(b.blake3(image), a.blake3("/srv/pool/made.qcow2"));
    b.virsh(["start", "web_clone"]);
    b.virsh(["destroy", "web_clone"]);

    // An old VM with a volume: that is its own, and goes with it.
    std::fs::create_dir_all(b.path("/srv/pool")).unwrap();
    std::fs::write(b.path("/srv/pool/old.img"), vec![7; 1 << 20]).unwrap();
    b.virsh(["pool-define-as", "store", "dir", "--target", "/srv/pool"]);
    b.virsh(["pool-start", "store"]);
    b.define_xml(&with_volume("old", "store", "old.img", "raw"));
    // One that another VM names only as a volume is never taken for free.
    let taken =
        controller.run(["run", "a", "b", "web", "--new-name", "x", "--disk-map", "vda=store/old.img"]).expect(5);
    taken.says(&["/srv/pool/old.img belongs to VM old"]);
    controller.run(["run", "a", "b", "web", "--new-name", "old", "--force"]).expect(0);
    assert!(!b.path("/srv/pool/old.img").exists(), "the old VM's volume is deleted with it");
    assert_eq!(b.blake3("/srv/pool/old-vda.qcow2"), a.blake3("/srv/pool/made.qcow2"));
}

#[test]
fn a_volume_that_nobody_can_name_is_refused() {
    let lab = Lab::up();
    let a = lab.a();
    a.define(&Vm::new("maker").disk(Disk::raw(MIB).at("/srv/pool/made.img")));
    a.virsh(["pool-define-as", "store", "dir", "--target", "/srv/pool"]);
    a.define_xml(&with_volume("off", "store", "made.img", "raw"));
    a.define_xml(&with_volume("none", "default", "nosuch.img", "raw"));
    let before = lab.outside();
    let controller = lab.controller();
    controller.run(["run", "a", "b", "off"]).expect(5).says(&["the volume made.img of pool store", "not active"]);
    controller.run(["run", "a", "b", "none"]).expect(5).says(&["the volume nosuch.img of pool default does not exist"]);
    before.0.assert_same(&lab.outside().0, "the source after refusals");
    before.1.assert_same(&lab.outside().1, "the destination after refusals");
}
