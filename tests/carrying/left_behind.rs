//! What is not carried and was asked to be left behind: refused first, and then the clone has everything else.

use kvm_clone::domain::differences;
use kvm_clone::plan::changes::changes;

use crate::lab::{Disk, Host, Lab, Vm};
use crate::{MIB, recorded_plan};

/// Each with the element's name, and what the refusal says of it.
const DEVICES: [(&str, &str, &str); 4] = [
    (
        "filesystem",
        "a shared directory of the host (dir=/srv/shared",
        "<filesystem type='mount' accessmode='mapped'><source dir='/srv/shared'/><target dir='shared'/></filesystem>",
    ),
    ("vsock", "a fixed address for vsock (CID 3)", "<vsock model='virtio'><cid auto='no' address='3'/></vsock>"),
    (
        "shmem",
        "memory shared on the host",
        "<shmem name='s'><model type='ivshmem-plain'/><size unit='M'>4</size></shmem>",
    ),
    (
        "channel",
        "a unix of the host (mode=bind path=/srv/socket)",
        "<channel type='unix'><source mode='bind' path='/srv/socket'/><target type='virtio' name='org.x.0'/></channel>",
    ),
];
/// It is carried, though a device of its kind is left behind.
const AGENT: &str = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>";

fn definition(host: &Host, name: &str) -> String {
    host.virsh(["dumpxml", "--inactive", "--security-info", name])
}

#[test]
fn devices_of_the_host_are_refused_or_left_behind_and_all_else_arrives() {
    let lab = Lab::up();
    let vm = DEVICES.iter().fold(Vm::new("laden").disk(Disk::raw(MIB)).device(AGENT), |vm, one| vm.device(one.2));
    lab.a().define(&vm);
    let before = lab.outside();
    let controller = lab.controller();
    let words = ["run", "a", "b", "laden", "--idempotent"];
    let refused = controller.run(words).expect(5);
    DEVICES.iter().fold(refused, |said, (name, what, _)| said.says(&[what, &format!("--drop {name}")]));
    let drops: Vec<_> = DEVICES.iter().flat_map(|(name, ..)| ["--drop", *name]).collect();
    let most = [&words[..], &drops[..drops.len() - 2]].concat();
    let refused = controller.run(most).expect(5);
    refused.says(&["one thing is in the way", "--drop channel"]);
    before.1.assert_same(&lab.b().outside(), "the destination after refusals");

    let words = [&words[..], &drops, &["--drop", "lease"]].concat();
    let planned = controller.run([&words[..], &["--dry-run"]].concat()).expect(0);
    let planned = DEVICES.iter().fold(planned, |said, (name, what, _)| {
        said.says(&[what, &format!("left behind, as --drop {name} asks"), &format!("domain/devices/{name}")])
    });
    planned.says(&["--drop lease: VM laden has nothing of that kind"]);
    let finished = controller.run(&words).expect(0);
    finished.says(&["left behind, as --drop vsock asks"]);
    before.0.assert_same(&lab.a().outside(), "the source after the clone");

    // The definitions differ in what the plan printed; of that only devices that were left behind are about devices of their kinds.
    let txn = controller.only_txn();
    let printed = changes(&recorded_plan(&controller, &txn)).unwrap();
    let (source, clone) = (definition(lab.a(), "laden"), definition(lab.b(), "laden_clone"));
    assert_eq!(differences(&source, &clone).unwrap(), printed);
    for (name, ..) in DEVICES {
        let path =
            if name == "channel" { "domain/devices/channel[2]".into() } else { format!("domain/devices/{name}") };
        let gone: Vec<_> =
            printed.iter().filter(|one| one.path.starts_with(&format!("domain/devices/{name}"))).collect();
        assert!(!gone.is_empty(), "{name}: {printed:#?}");
        assert!(gone.iter().all(|one| one.new.is_none() && one.path.starts_with(&path)), "{gone:#?}");
    }
    assert!(clone.contains("org.qemu.guest_agent.0"), "{clone}");
    let shown = controller.show(&txn);
    assert_eq!(shown["options"]["dropped"], serde_json::json!(["filesystem", "shmem", "lease", "vsock", "channel"]));
    lab.b().virsh(["start", "laden_clone"]);
    lab.b().virsh(["destroy", "laden_clone"]);

    // The same request again: the clone is what it would be. (It was started meanwhile, and only read.)
    controller.run(["run", "a", "b", "laden", "--new-name", "again"].iter().chain(&drops)).expect(0);
    let again = ["run", "a", "b", "laden", "--new-name", "again", "--idempotent"];
    controller.run(again.iter().chain(&drops)).expect(0).says(&["nothing to do"]);
}

#[test]
fn checkpoints_and_saved_memory_are_refused_or_left_behind_and_stay_at_the_source() {
    let lab = Lab::up();
    let a = lab.a();
    a.define(&Vm::new("saved").disk(Disk::qcow2(2 * MIB)));
    a.virsh(["start", "saved"]);
    a.virsh(["checkpoint-create-as", "saved", "monday"]);
    a.virsh(["managedsave", "saved"]);
    let before = lab.outside();
    let controller = lab.controller();
    let words = ["run", "a", "b", "saved"];
    let refused = controller.run(words).expect(5);
    refused.says(&["managed save", "--drop managed-save", "1 checkpoint", "--drop checkpoints"]);
    before.1.assert_same(&lab.b().outside(), "the destination after a refusal");

    let dropped = [&words[..], &["--drop", "managed-save", "--drop", "checkpoints"]].concat();
    let finished = controller.run(&dropped).expect(0);
    finished.says(&["a saved memory state (managed save): left behind", "1 checkpoint: left behind", "bitmaps stay"]);
    before.0.assert_same(&lab.a().outside(), "the source after the clone");
    let b = lab.b();
    let told = b.virsh(["dominfo", "saved_clone"]);
    assert!(told.lines().any(|line| line.starts_with("Managed save:") && line.ends_with("no")), "{told}");
    assert_eq!(b.virsh(["checkpoint-list", "--name", "saved_clone"]).trim(), "");
    let copy = "/var/lib/libvirt/images/saved_clone-vda.qcow2";
    assert_eq!(b.blake3(copy), a.blake3("/var/lib/libvirt/images/saved-0.qcow2"));
    assert!(b.run(["qemu-img", "info", copy]).contains("monday"), "the bitmap is in the image");
    b.virsh(["start", "saved_clone"]);
    b.virsh(["destroy", "saved_clone"]);
}
