//! What belongs to a VM beside its disks arrives with it: between real hosts, judged from outside.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bases;
mod counting;
mod flattened;
#[path = "../lab/mod.rs"]
mod lab;
mod labels;
mod left_behind;
mod snapshots;
mod whole;

use std::process::Command;
use std::time::Duration;

use journal_format::{EventV1, PlanV1};
use kvm_clone::domain::differences;
use kvm_clone::journal::{self, StateDir};
use kvm_clone::plan::changes::changes;
use lab::{Controller, Disk, Host, Lab, Vm, wait_until};

const MIB: u64 = 1 << 20;
const IMAGES: &str = "/var/lib/libvirt/images";
/// Emulated firmware on a busy machine.
const FIRMWARE_MAX: Duration = Duration::from_secs(60);

/// Starts a VM until its firmware has written variables and its TPM has a state, and ends it: its files then.
fn live_a_little(host: &Host, name: &str) -> (String, String) {
    let uuid = host.virsh(["domuuid", name]).trim().to_owned();
    let variables = format!("/var/lib/libvirt/qemu/nvram/{name}_VARS.fd");
    let tpm = format!("/var/lib/libvirt/swtpm/{uuid}/tpm2/tpm2-00.permall");
    host.virsh(["start", name]);
    let made = std::fs::read(host.path(&variables)).unwrap();
    wait_until(FIRMWARE_MAX, "the firmware wrote variables", || std::fs::read(host.path(&variables)).unwrap() != made);
    wait_until(FIRMWARE_MAX, "the TPM has a state", || host.path(&tpm).exists());
    host.virsh(["destroy", name]);
    (variables, tpm)
}

fn uefi_vm(name: &str) -> Vm {
    Vm::new(name)
        .disk(Disk::raw(2 * MIB))
        .uefi_and_tpm()
        .device("<graphics type='vnc' autoport='yes' passwd='secret99'/>")
}

#[test]
fn uefi_variables_and_tpm_arrive_and_the_clone_starts_with_them() {
    let lab = Lab::up();
    let vm = uefi_vm("uefi");
    lab.a().define(&vm);
    let (variables, tpm) = live_a_little(lab.a(), "uefi");
    let before = lab.a().outside();

    lab.controller().run(["run", "a", "b", "uefi"]).expect(0);

    let definition = lab.b().virsh(["dumpxml", "--inactive", "--security-info", "uefi_clone"]);
    let uuid = lab.b().virsh(["domuuid", "uefi_clone"]).trim().to_owned();
    let clone_variables = "/var/lib/libvirt/qemu/nvram/uefi_clone_VARS.fd";
    let clone_tpm = format!("/var/lib/libvirt/swtpm/{uuid}/tpm2/tpm2-00.permall");
    assert!(definition.contains(&format!("<nvram>{clone_variables}</nvram>")), "{definition}");
    assert!(definition.contains("passwd='secret99'"), "{definition}");
    assert_eq!(lab.b().blake3(clone_variables), lab.a().blake3(&variables));
    assert_eq!(lab.b().blake3(&clone_tpm), lab.a().blake3(&tpm));
    before.assert_same(&lab.a().outside(), "the source after the clone");

    let kept = (lab.b().blake3(clone_variables), lab.b().blake3(&clone_tpm));
    lab.b().virsh(["start", "uefi_clone"]);
    assert_eq!(lab.b().state("uefi_clone").as_deref(), Some("running"));
    lab.b().virsh(["destroy", "uefi_clone"]);
    // A TPM or firmware that did not know its own state would have begun anew.
    assert_eq!((lab.b().blake3(clone_variables), lab.b().blake3(&clone_tpm)), kept);
}

/// A VM with a CD in its drive: what became of it, as the clone's definition says.
fn cloned_with_cd(lab: &Lab, name: &str, options: &[&str]) -> String {
    let iso = format!("/srv/iso/{name}.iso");
    let drive = format!(
        "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='{iso}'/>\
         <target dev='sda' bus='sata'/><readonly/></disk>"
    );
    std::fs::create_dir_all(lab.a().path("/srv/iso")).unwrap();
    std::fs::write(lab.a().path(&iso), vec![7; 70_000]).unwrap();
    lab.a().define(&Vm::new(name).disk(Disk::raw(MIB)).device(&drive));
    lab.controller().run(["run", "a", "b", name].iter().chain(options)).expect(0);
    lab.b().virsh(["dumpxml", "--inactive", &format!("{name}_clone")])
}

#[test]
fn a_medium_is_emptied_kept_or_copied_and_never_silently() {
    let lab = Lab::up();
    let emptied = cloned_with_cd(&lab, "away", &[]);
    assert!(emptied.contains("device='cdrom'") && !emptied.contains(".iso"), "{emptied}");
    let again = lab.controller().run(["run", "a", "b", "away", "--new-name", "again", "--dry-run"]).expect(0);
    again.says(&["/srv/iso/away.iso", "sda will be empty", "--copy-media"]);

    let copied = cloned_with_cd(&lab, "copied", &["--copy-media", "--directory", "/var/lib/libvirt/images"]);
    let copy = "/var/lib/libvirt/images/copied_clone-sda.img";
    assert!(copied.contains(&format!("<source file='{copy}'/>")), "{copied}");
    assert_eq!(lab.b().blake3(copy), lab.a().blake3("/srv/iso/copied.iso"));

    std::fs::create_dir_all(lab.b().path("/srv/iso")).unwrap();
    std::fs::write(lab.b().path("/srv/iso/there.iso"), vec![7; 70_000]).unwrap();
    let kept = cloned_with_cd(&lab, "there", &[]);
    assert!(kept.contains("<source file='/srv/iso/there.iso'/>"), "{kept}");
}

/// A disk on top of two images, the middle one named by its name alone, the lowest in full.
fn define_chain(host: &Host, name: &str) {
    let images = "/var/lib/libvirt/images";
    let make = |arguments: &[&str]| host.run([&["qemu-img", "create", "-q", "-f", "qcow2"], arguments].concat());
    let write = |image: &str, place: &str, byte: &str| {
        host.run(["qemu-io", "-f", "qcow2", "-c", &format!("write -P {byte} {place} 64k"), image]);
    };
    let path = |layer: &str| format!("{images}/{name}-{layer}");
    host.run(["cp", "--sparse=always", "/etc/libvirt/qemu.conf", &path("base.img")]);
    host.run(["truncate", "--size", "2M", &path("base.img")]);
    make(&["-b", &path("base.img"), "-F", "raw", &path("middle.qcow2")]);
    write(&path("middle.qcow2"), "512k", "0x21");
    make(&["-b", &format!("{name}-middle.qcow2"), "-F", "qcow2", &path("top.qcow2")]);
    write(&path("top.qcow2"), "1M", "0x42");
    host.run(["qemu-img", "snapshot", "-c", "kept", &path("top.qcow2")]);
    host.define_xml(&Vm::new(name).disk(Disk::qcow2(MIB).at(&path("top.qcow2"))).definition());
}

/// What a guest on a chain of images sees: its BLAKE3.
fn guest_sees(host: &Host, top: &str) -> blake3::Hash {
    host.run(["qemu-img", "convert", "-O", "raw", top, "/run/seen.img"]);
    let hash = host.blake3("/run/seen.img");
    std::fs::remove_file(host.path("/run/seen.img")).unwrap();
    hash
}

#[test]
fn a_chain_arrives_whole_and_stands_on_its_own_layers() {
    let lab = Lab::up();
    define_chain(lab.a(), "chain");
    let before = lab.a().outside();
    let controller = lab.controller();
    let listed = controller.run(["vms", "a", "--json"]).expect(0).json();
    let disk = &listed[0]["disks"][0];
    assert_eq!((disk["guest_bytes"].as_u64(), &disk["format"]), (Some(2 * MIB), &"qcow2".into()), "{listed}");
    controller.run(["run", "a", "b", "chain"]).expect(0);
    before.assert_same(&lab.a().outside(), "the source after the clone");

    let images = "/var/lib/libvirt/images";
    let top = format!("{images}/chain_clone-vda.qcow2");
    let info = lab.b().run(["qemu-img", "info", "--backing-chain", &top]);
    for line in [
        "backing file: chain_clone-vda-base1.qcow2 (actual path: /var/lib/libvirt/images/chain_clone-vda-base1.qcow2)",
        "backing file: /var/lib/libvirt/images/chain_clone-vda-base2.img",
        "kept",
    ] {
        assert!(info.contains(line), "{line} is missing from:\n{info}");
    }
    lab.b().run(["qemu-img", "check", "-q", &top]);
    assert_eq!(guest_sees(lab.b(), &top), guest_sees(lab.a(), &format!("{images}/chain-top.qcow2")));
    assert_eq!(
        lab.b().blake3(format!("{images}/chain_clone-vda-base2.img")),
        lab.a().blake3(format!("{images}/chain-base.img"))
    );

    // On the source's own host nothing of the source is reached.
    controller.run(["run", "a", "a", "chain", "--new-name", "beside"]).expect(0);
    let info = lab.a().run(["qemu-img", "info", "--backing-chain", &format!("{images}/beside-vda.qcow2")]);
    assert!(!info.contains("chain-"), "{info}");
}

#[test]
fn a_chain_that_cannot_be_followed_is_refused_by_name() {
    let lab = Lab::up();
    define_chain(lab.a(), "chain");
    let before = lab.outside();
    lab.a().run([
        "qemu-img",
        "rebase",
        "-u",
        "-b",
        "nbd://elsewhere/x",
        "-F",
        "raw",
        "/var/lib/libvirt/images/chain-middle.qcow2",
    ]);
    let refused = lab.controller().run(["run", "a", "b", "chain"]).expect(5);
    refused.says(&["the chain below disk vda", "nbd://elsewhere/x", "not the name of a file"]);
    lab.a().run(["rm", "/var/lib/libvirt/images/chain-middle.qcow2"]);
    let refused = lab.controller().run(["run", "a", "b", "chain"]).expect(5);
    refused.says(&["the chain below disk vda", "chain-middle.qcow2 does not exist"]);
    before.1.assert_same(&lab.b().outside(), "the destination after refusals");
}

/// The lines in which two texts differ, as `diff` sees it.
fn differing_lines(lab: &Lab, old: &str, new: &str) -> Vec<String> {
    let file = |name: &str, text: &str| {
        let path = lab.directory().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let diff = Command::new("diff").args([file("old.xml", old), file("new.xml", new)]).output().unwrap();
    let lines = String::from_utf8(diff.stdout).unwrap();
    lines.lines().filter(|line| line.starts_with(['<', '>'])).map(str::to_owned).collect()
}

/// The plan that a transaction was run with.
fn recorded_plan(controller: &Controller, txn: &str) -> PlanV1 {
    let state = StateDir::at(&controller.state_dir()).unwrap();
    let records = journal::read(&state, txn.parse().unwrap()).unwrap().records;
    match records.into_iter().next().unwrap().event {
        EventV1::Begun { plan } => *plan,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_clone_differs_in_what_the_plan_printed_and_in_nothing_else() {
    let lab = Lab::up();
    let vm = uefi_vm("told").disk(Disk::qcow2(MIB)).element("<title>A &amp; B</title>").device(
        "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='/srv/gone.iso'/>\
         <target dev='sda' bus='sata'/><readonly/></disk>",
    );
    std::fs::write(lab.a().path("/srv/gone.iso"), vec![7; 4096]).unwrap();
    lab.a().define(&vm);
    live_a_little(lab.a(), "told");
    let controller = lab.controller();
    let before = lab.outside();
    let words = ["run", "a", "b", "told"];
    let planned = controller.run(["plan", "a", "b", "told", "--json"]).expect(0).json();
    assert_eq!(planned["blockers"], serde_json::json!([]));
    before.1.assert_same(&lab.b().outside(), "the destination after a plan");
    assert!(controller.list().is_empty(), "a plan is no transaction");
    let dry = controller.run([&words[..], &["--dry-run", "--json"]].concat()).expect(0).json();

    controller.run(words).expect(0);
    let txn = controller.only_txn();
    let printed = changes(&recorded_plan(&controller, &txn)).unwrap();
    let definition = |host: &Host, name: &str| host.virsh(["dumpxml", "--inactive", "--security-info", name]);
    let (source, clone) = (definition(lab.a(), "told"), definition(lab.b(), "told_clone"));
    assert_eq!(differences(&source, &clone).unwrap(), printed);
    // Another judge, line by line.
    let lines = differing_lines(&lab, &source, &clone);
    assert!(lines.len() > 10, "{lines:#?}");
    for line in lines {
        let told = printed.iter().flat_map(|one| [&one.old, &one.new]).flatten().any(|part| line.contains(&**part));
        let is_mark = ["metadata", "kvm-clone:"].iter().any(|part| line.contains(part));
        assert!(told || is_mark || line.contains("gone.iso"), "nobody said: {line}\n{printed:#?}");
    }
    // Plans before it told the same parts; what is random differs from plan to plan.
    let paths = |plan: &serde_json::Value| {
        let changes = plan["plan"]["changes"].as_array().unwrap().iter();
        changes.map(|change| change["path"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let expected: Vec<_> = printed.iter().map(|one| one.path.clone()).collect();
    assert_eq!((paths(&planned), paths(&dry)), (expected.clone(), expected));
}
