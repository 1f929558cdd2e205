//! A block device of the destination as the clone's disk: written over where that was said twice, and never by mistake.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::lab::{Content, Controller, Disk, Format, Lab, Loop, Vm, make_image};

const MIB: u64 = 1 << 20;
const BOUND: Duration = Duration::from_secs(120);
const CLAIMS: &str = "/var/lib/kvm-clone/host/devices";

/// A device of the lab with something on it.
fn device(lab: &Lab, name: &str, bytes: u64) -> Loop {
    let file = lab.directory().join(name);
    make_image(&file, Format::Raw, bytes, Content::Random, 9);
    Loop::on(&file)
}

/// The first bytes of a device, or of a file.
fn hash(path: impl AsRef<Path>, bytes: u64) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    std::io::copy(&mut File::open(path).unwrap().take(bytes), &mut hasher).unwrap();
    hasher.finalize()
}

fn onto(device: &Loop) -> [String; 4] {
    ["--disk-map".into(), format!("vda={}", device.path()), "--overwrite-device".into(), device.path().into()]
}

fn run<'a>(lab: &Lab, options: impl IntoIterator<Item = &'a String>) -> super::lab::Finished {
    run_by(&lab.controller(), options)
}

fn run_by<'a>(controller: &Controller, options: impl IntoIterator<Item = &'a String>) -> super::lab::Finished {
    controller.run(["run", "a", "b", "web"].into_iter().chain(options.into_iter().map(String::as_str)))
}

#[test]
fn a_device_that_was_named_twice_becomes_the_clones_disk() {
    let lab = Lab::up();
    let vm = Vm::new("web").disk(Disk::raw(8 * MIB).content(Content::Sparse { data_bytes: 2 * MIB }));
    lab.a().define(&vm);
    let source = lab.a().path(vm.disks()[0].path());
    let target = device(&lab, "target.dev", 10 * MIB);
    let rest = |target: &Loop| {
        let mut bytes = vec![0; usize::try_from(2 * MIB).unwrap()];
        File::open(target.path()).unwrap().read_exact_at(&mut bytes, 8 * MIB).unwrap();
        bytes
    };
    let (before, behind) = (lab.outside(), rest(&target));
    let controller = lab.controller();
    let planned = controller.run(["plan", "a", "b", "web"].map(str::to_owned).iter().chain(&onto(&target))).expect(0);
    planned.says(&["is written over for disk vda", "no rollback brings it back", "claim the device", "The last 2"]);
    run_by(&controller, &onto(&target)).expect(0).says(&["is written over for disk vda"]);
    before.0.assert_same(&lab.a().outside(), "the source after the clone");

    let definition = lab.b().virsh(["dumpxml", "--inactive", "web_clone"]);
    assert!(definition.contains("<disk type='block' device='disk'>"), "{definition}");
    assert!(definition.contains(&format!("<source dev='{}'/>", target.path())), "{definition}");
    // Its zeros too, where there was something before; and what is behind the image is as it was.
    assert_eq!(hash(target.path(), 8 * MIB), hash(&source, 8 * MIB));
    assert_eq!(rest(&target), behind);
    assert_eq!(std::fs::read_dir(lab.b().path(CLAIMS)).unwrap().count(), 0, "the claim was given back");
    let shown = controller.run(["verify", &controller.only_txn()]).expect(0);
    shown.says(&["every byte is as it was copied"]);
    lab.b().virsh(["start", "web_clone"]);
    lab.b().virsh(["destroy", "web_clone"]);

    // There is nothing to do, until somebody writes to it; and the old clone's device is not free for the new one.
    let again = [&onto(&target)[..], &["--idempotent".into()]].concat();
    run_by(&controller, &again).expect(0).says(&["nothing to do"]);
    OpenOptions::new().write(true).open(target.path()).unwrap().write_all_at(b"guest", MIB).unwrap();
    run_by(&controller, &again).expect(5).says(&[target.path(), "web_clone"]);
}

#[test]
fn a_device_that_somebody_may_need_is_refused_by_name() {
    let lab = Lab::up();
    lab.a().define(&Vm::new("web").disk(Disk::raw(4 * MIB)));
    let target = device(&lab, "target.dev", 6 * MIB);
    let old = hash(target.path(), 6 * MIB);
    let before = lab.outside();
    let named_once = ["--disk-map".to_owned(), format!("vda={}", target.path())];
    run(&lab, &named_once).expect(2).says(&["block device", "--overwrite-device"]);
    run(&lab, &["--directory".into(), "/dev".into()]).expect(2).says(&["holds devices"]);
    lab.b().run(["ln", "-s", "/dev", "/srv/devices"]);
    run(&lab, &["--directory".into(), "/srv/devices".into()]).expect(5).says(&["/dev", "no images"]);
    std::fs::remove_file(lab.b().path("/srv/devices")).unwrap();

    let small = device(&lab, "small.dev", 2 * MIB);
    run(&lab, &onto(&small)).expect(5).says(&[small.path(), "disk vda needs"]);
    lab.b().run(["ln", "-s", "/srv/absent", "/dev/shm/kvm-clone-absent"]);
    let absent = "/dev/shm/kvm-clone-absent".to_owned();
    let absent = ["--disk-map".into(), format!("vda={absent}"), "--overwrite-device".into(), absent];
    run(&lab, &absent).expect(5).says(&["there is no block device"]);
    lab.b().run(["rm", "/dev/shm/kvm-clone-absent"]);

    let disk = format!(
        "<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='{}'/>\
         <target dev='vda' bus='virtio'/></disk>",
        target.path()
    );
    lab.b().define_xml(&Vm::new("theirs").device(&disk).definition());
    run(&lab, &onto(&target)).expect(5).says(&[target.path(), "the VM theirs"]);
    lab.b().virsh(["undefine", "theirs"]);
    before.1.assert_same(&lab.b().outside(), "the destination after refusals");
    assert_eq!(hash(target.path(), 6 * MIB), old, "the device after refusals");

    lab.b().run(["mkfs.ext4", "-q", "-F", target.path()]);
    lab.b().run(["mkdir", "-p", "/srv/mounted"]);
    lab.b().run(["mount", target.path(), "/srv/mounted"]);
    run(&lab, &onto(&target)).expect(5).says(&[target.path(), "is in use"]);
    lab.b().run(["umount", "/srv/mounted"]);
    run(&lab, &onto(&target)).expect(0);
}

/// A slow transfer, interrupted once the beginning of the image is on the device.
fn begun(controller: &Controller, source: &Path, target: &Loop) -> String {
    let words = ["run", "a", "b", "web", "--bandwidth-limit", "500K"].map(str::to_owned);
    let mut running = controller.spawn(words.iter().chain(&onto(target)));
    let first = hash(source, MIB);
    assert_ne!(hash(target.path(), MIB), first);
    running.wait_until(BOUND, "something is on the device", || hash(target.path(), MIB) == first);
    let txn = controller.only_txn();
    running.signal(Signal::SIGINT);
    running.wait_for(BOUND).expect(3);
    txn
}

#[test]
fn a_clone_onto_a_device_goes_on_goes_back_or_stops_at_another_device() {
    let lab = Lab::up();
    let vm = Vm::new("web").disk(Disk::raw(6 * MIB).content(Content::Random));
    lab.a().define(&vm);
    let source = lab.a().path(vm.disks()[0].path());
    let target = device(&lab, "target.dev", 6 * MIB);
    let before = lab.outside();
    let controller = lab.controller();
    let txn = begun(&controller, &source, &target);
    // Nobody else gets it meanwhile.
    let other = [&onto(&target)[..], &["--new-name".into(), "other".into()]].concat();
    run_by(&controller, &other).expect(5).says(&["is reserved by transaction", &txn]);
    run(&lab, &other).expect(7).says(&["is reserved by transaction", &txn, "another controller"]);
    controller.run(["rollback", &txn]).expect(0);
    before.1.assert_same(&lab.b().outside(), "the destination after a rollback");
    assert_eq!(std::fs::read_dir(lab.b().path(CLAIMS)).unwrap().count(), 0, "the claim was given back");

    // What was on it does not come back, and the next clone begins on whatever is there.
    OpenOptions::new().write(true).open(target.path()).unwrap().write_all_at(&[1; 512], 0).unwrap();
    let controller = lab.controller();
    let txn = begun(&controller, &source, &target);
    // Somebody writes to what was sent: nothing but the bytes themselves says so.
    OpenOptions::new().write(true).open(target.path()).unwrap().write_all_at(&[7; 512], 4096).unwrap();
    // Its name leads to another device, with something of somebody else's on it.
    let (own, others) = (lab.directory().join("target.dev"), lab.directory().join("others.dev"));
    make_image(&others, Format::Raw, 6 * MIB, Content::Random, 77);
    let attach = |file: &Path| {
        let detached = Command::new("losetup").args(["--detach", target.path()]).status().unwrap();
        let attached = Command::new("losetup").arg(target.path()).arg(file).status().unwrap();
        assert!(detached.success() && attached.success());
    };
    attach(&others);
    let theirs = hash(&others, 6 * MIB);
    controller.run(["resume", &txn, "--bandwidth-limit", "100M"]).expect(4).says(&[target.path()]);
    assert_eq!(hash(&others, 6 * MIB), theirs, "another's device");
    attach(&own);
    controller.run(["resume", &txn, "--bandwidth-limit", "100M"]).expect(0);
    assert_eq!(hash(target.path(), 6 * MIB), hash(&source, 6 * MIB));
}
