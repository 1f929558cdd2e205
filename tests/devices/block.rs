//! Block devices of the source: read whole, and read again where nothing else says that they did not change.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::lab::{Content, Controller, Format, Lab, Loop, Vm, make_image, staged_bytes};

const MIB: u64 = 1 << 20;
const IMAGES: &str = "/var/lib/libvirt/images";
const BOUND: Duration = Duration::from_secs(120);

/// A device of the lab with an image on it.
fn device(lab: &Lab, name: &str, format: Format, bytes: u64, content: Content) -> (PathBuf, Loop) {
    let file = lab.directory().join(name);
    make_image(&file, format, bytes, content, 5);
    if format == Format::Qcow2 {
        // Room behind the image, as a volume that was made for it has.
        OpenOptions::new().write(true).open(&file).unwrap().set_len(bytes + 4 * MIB).unwrap();
    }
    let device = Loop::on(&file);
    (file, device)
}

/// A disk on a device.
fn disk(device: &Loop, target: &str, format: &str) -> String {
    format!(
        "<disk type='block' device='disk'><driver name='qemu' type='{format}' cache='none' io='native'/>\
         <source dev='{}'/><target dev='{target}' bus='virtio'/></disk>",
        device.path()
    )
}

/// Writes to a device past the page cache of nobody else, as a guest does.
fn write(device: &Loop, offset: u64, byte: u8) {
    let file = OpenOptions::new().write(true).open(device.path()).unwrap();
    file.write_all_at(&[byte; 4096], offset).unwrap();
    file.sync_all().unwrap();
}

fn hash(path: &str) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    std::io::copy(&mut File::open(path).unwrap(), &mut hasher).unwrap();
    hasher.finalize()
}

#[test]
fn a_block_device_arrives_as_a_file() {
    let lab = Lab::up();
    let (_raw_file, raw) = device(&lab, "raw.dev", Format::Raw, 8 * MIB, Content::Sparse { data_bytes: 2 * MIB });
    let (_qcow2_file, qcow2) = device(&lab, "qcow2.dev", Format::Qcow2, 4 * MIB, Content::Mixed);
    let vm = Vm::new("web").device(&disk(&raw, "vda", "raw")).device(&disk(&qcow2, "vdb", "qcow2"));
    lab.a().define_xml(&vm.definition());
    let before = (lab.a().outside(), hash(raw.path()), hash(qcow2.path()));
    let controller = lab.controller();
    std::fs::create_dir_all(lab.b().path("/srv/vm")).unwrap();
    controller.run(["run", "a", "b", "web", "--directory", "/srv/vm", "--disk-map", "vdb=default/second"]).expect(0);
    before.0.assert_same(&lab.a().outside(), "the source after the clone");
    assert_eq!((hash(raw.path()), hash(qcow2.path())), (before.1, before.2), "the devices after the clone");

    let definition = lab.b().virsh(["dumpxml", "--inactive", "web_clone"]);
    let (first, second) = ("/srv/vm/web_clone-vda.img".to_owned(), format!("{IMAGES}/second"));
    for (image, device) in [(&first, &raw), (&second, &qcow2)] {
        assert!(definition.contains(&format!("<source file='{image}'/>")), "{definition}");
        assert_eq!(lab.b().blake3(image), hash(device.path()), "{image}");
    }
    assert!(!definition.contains("type='block'") && !definition.contains("dev='/dev"), "{definition}");
    assert!(definition.contains("io='native'"), "{definition}");
    // Zeros of a device are found by reading, and take no room.
    let allocated = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(lab.b().path(&first)).unwrap()) * 512;
    assert!(allocated < 8 * MIB, "{allocated} bytes are allocated");
    lab.b().virsh(["start", "web_clone"]);
    lab.b().virsh(["destroy", "web_clone"]);

    // Nothing to do as long as its bytes are the same, whatever time its node shows; and not a moment longer.
    assert!(!lab.b().path("/dev/.kvm-clone").exists(), "nothing is ever staged among devices");
    let again = ["run", "a", "b", "web", "--directory", "/srv/vm", "--idempotent"];
    controller.run(["run", "a", "b", "web", "--idempotent", "--dry-run"]).expect(0).says(&["nothing to do"]);
    write(&raw, 3 * MIB, 0x77);
    controller.run(again.iter().chain(&["--dry-run"])).expect(0).says(&["disk vda of the source was written to since"]);
}

/// A slow transfer, interrupted once the beginning of the device is on the destination.
fn begun(lab: &Lab, controller: &Controller) -> String {
    let mut running = controller.spawn(["run", "a", "b", "web", "--bandwidth-limit", "400K"]);
    running.wait_until(BOUND, "something is staged", || staged_bytes(lab.b(), IMAGES) > MIB);
    let txn = controller.only_txn();
    running.signal(Signal::SIGINT);
    running.wait_for(BOUND).expect(3);
    txn
}

#[test]
fn a_device_that_changed_is_read_again() {
    let lab = Lab::up();
    let (_file, device) = device(&lab, "web.dev", Format::Raw, 6 * MIB, Content::Random);
    lab.a().define_xml(&Vm::new("web").device(&disk(&device, "vda", "raw")).definition());
    let controller = lab.controller();
    let txn = begun(&lab, &controller);
    // What was sent becomes other data, and zeros; the node's times say nothing.
    write(&device, 0, 0x55);
    for page in 0..256 {
        write(&device, MIB + page * 4096, 0);
    }
    controller.run(["resume", &txn, "--bandwidth-limit", "100M"]).expect(0);
    assert_eq!(lab.b().blake3(format!("{IMAGES}/web_clone-vda.img")), hash(device.path()));

    // A person starts the source, which no image lock forbids: the clone is not finished meanwhile.
    lab.b().virsh(["undefine", "web_clone"]);
    std::fs::remove_file(lab.b().path(format!("{IMAGES}/web_clone-vda.img"))).unwrap();
    let controller = lab.controller();
    let txn = begun(&lab, &controller);
    lab.a().virsh(["start", "web"]);
    controller.run(["resume", &txn]).expect(3).says(&["suspended", "resume"]);
    lab.a().virsh(["destroy", "web"]);
    controller.run(["resume", &txn, "--bandwidth-limit", "100M"]).expect(0);
    assert_eq!(lab.b().blake3(format!("{IMAGES}/web_clone-vda.img")), hash(device.path()));
}

#[test]
fn a_definition_that_says_what_is_not_so_is_refused() {
    let lab = Lab::up();
    let (file, device) = device(&lab, "web.dev", Format::Raw, MIB, Content::Random);
    let named = |name: &str, kind: &str, attribute: &str, path: &str| {
        let disk = format!(
            "<disk type='{kind}' device='disk'><driver name='qemu' type='raw'/><source {attribute}='{path}'/>\
             <target dev='vda' bus='virtio'/></disk>"
        );
        lab.a().define_xml(&Vm::new(name).device(&disk).definition());
    };
    named("file", "block", "dev", &format!("{IMAGES}/plain.img"));
    std::fs::copy(&file, lab.a().path(format!("{IMAGES}/plain.img"))).unwrap();
    named("node", "file", "file", device.path());
    let controller = lab.controller();
    controller.run(["run", "a", "b", "file"]).expect(5).says(&["plain.img is not a block device"]);
    controller.run(["run", "a", "b", "node"]).expect(5).says(&[device.path(), "is not a regular file"]);
    let onto = format!("vda={}", device.path());
    controller.run(["run", "a", "b", "file", "--disk-map", &onto]).expect(2).says(&["block device", device.path()]);
}
