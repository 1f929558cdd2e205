//! The whole guest: UEFI, TPM, a disk on another image with a snapshot inside, a raw one, a drive with a medium, a network, a
//! console with a password, autostart. Cloned from the host with Debian's own settings, and booted from its own disk with its own
//! firmware variables.

use kvm_clone::domain::differences;
use kvm_clone::plan::changes::changes;

use crate::lab::{Host, Lab};
use crate::{differing_lines, recorded_plan};

const IMAGES: &str = "/var/lib/libvirt/images";
const NVRAM: &str = "/var/lib/libvirt/qemu/nvram";

/// A disk that boots, on top of the image that was made for it, and all else.
fn put(host: &Host) -> String {
    let path = |name: &str| format!("{IMAGES}/{name}");
    let marker = host.make_uefi_guest(&path("whole-base.img"));
    host.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "whole-base.img", &path("whole.qcow2")]);
    host.run(["cp", "--sparse=always", "/etc/libvirt/qemu.conf", &path("whole-data.raw")]);
    host.run(["truncate", "--size", "2M", &path("whole-data.raw")]);
    std::fs::create_dir_all(host.path("/srv/iso")).unwrap();
    std::fs::write(host.path("/srv/iso/whole.iso"), vec![7; 70_000]).unwrap();
    let disk = |format: &str, name: &str, target: &str, more: &str| {
        format!(
            "<disk type='file' device='disk'><driver name='qemu' type='{format}' cache='none'/><source file='{}'/>\
             <target dev='{target}' bus='virtio'/>{more}</disk>",
            path(name)
        )
    };
    host.define_xml(&format!(
        "<domain type='qemu'><name>whole</name><title>All of it</title><memory unit='MiB'>256</memory><vcpu>1</vcpu>\
         <os firmware='efi'><firmware><feature enabled='no' name='secure-boot'/></firmware>\
         <type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features><devices>{}{}\
         <disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='/srv/iso/whole.iso'/>\
         <target dev='sda' bus='sata'/><readonly/></disk>\
         <interface type='network'><source network='default'/><model type='virtio'/></interface>\
         <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>\
         <graphics type='vnc' autoport='yes' passwd='secret99'/><serial type='pty'/><memballoon model='none'/>\
         </devices></domain>",
        disk("qcow2", "whole.qcow2", "vda", "<boot order='1'/>"),
        disk("raw", "whole-data.raw", "vdb", "<iotune><read_iops_sec>5000</read_iops_sec></iotune>"),
    ));
    host.virsh(["autostart", "whole"]);
    marker
}

fn definition(host: &Host, name: &str) -> String {
    host.virsh(["dumpxml", "--inactive", "--security-info", name])
}

#[test]
fn the_whole_guest_arrives_and_boots_from_its_own_disk_with_its_own_variables() {
    let lab = Lab::up();
    let (source, destination) = (lab.b(), lab.a());
    let marker = put(source);
    // It lives once where it is: the firmware, the guest and the TPM leave something of their own.
    let said = source.listen_to_guest("whole");
    assert_eq!(said, format!("{marker} (root file system on /dev/vda2, firmware variable made)"));
    source.run(["qemu-img", "snapshot", "-c", "kept", &format!("{IMAGES}/whole.qcow2")]);
    let uuid = |host: &Host, name: &str| host.virsh(["domuuid", name]).trim().to_owned();
    let tpm = |uuid: &str| format!("/var/lib/libvirt/swtpm/{uuid}/tpm2/tpm2-00.permall");
    let before = source.outside();

    let controller = lab.controller();
    controller.run(["run", "b", "a", "whole", "--copy-media"]).expect(0);
    before.assert_same(&source.outside(), "the source after the clone");

    // All of it is there, byte for byte, before it was ever started.
    let variables = format!("{NVRAM}/whole_clone_VARS.fd");
    assert_eq!(destination.blake3(&variables), source.blake3(format!("{NVRAM}/whole_VARS.fd")));
    let clone_tpm = tpm(&uuid(destination, "whole_clone"));
    assert_eq!(destination.blake3(&clone_tpm), source.blake3(tpm(&uuid(source, "whole"))));
    for (from, to) in [
        ("whole-base.img", "whole_clone-vda-base1.img"),
        ("whole-data.raw", "whole_clone-vdb.img"),
        ("../../../../srv/iso/whole.iso", "whole_clone-sda.img"),
    ] {
        let from = source.blake3(format!("{IMAGES}/{from}"));
        assert_eq!(destination.blake3(format!("{IMAGES}/{to}")), from, "{to}");
    }
    let top = format!("{IMAGES}/whole_clone-vda.qcow2");
    let info = destination.run(["qemu-img", "info", &top]);
    assert!(info.contains("kept") && info.contains("whole_clone-vda-base1.img"), "{info}");
    assert!(destination.virsh(["dominfo", "whole_clone"]).lines().any(|line| line == "Autostart:      enable"));

    // The definitions differ in what the plan printed, and in nothing else.
    let printed = changes(&recorded_plan(&controller, &controller.only_txn())).unwrap();
    let (old, new) = (definition(source, "whole"), definition(destination, "whole_clone"));
    assert!(new.contains("passwd='secret99'"), "{new}");
    assert_eq!(differences(&old, &new).unwrap(), printed);
    for line in differing_lines(&lab, &old, &new) {
        let told = printed.iter().flat_map(|one| [&one.old, &one.new]).flatten().any(|part| line.contains(&**part));
        let is_mark = ["metadata", "kvm-clone:"].iter().any(|part| line.contains(part));
        assert!(told || is_mark, "nobody said: {line}\n{printed:#?}");
    }

    // It boots from its own disk, and finds in its variables what the source's guest left there.
    let copied = destination.blake3(&variables);
    let said = destination.listen_to_guest("whole_clone");
    assert_eq!(said, format!("{marker} (root file system on /dev/vda2, firmware variable found: {marker})"));
    assert_ne!(destination.blake3(&variables), copied, "the firmware counts its starts in its variables");
    let log = std::fs::read_to_string(destination.path("/var/log/libvirt/qemu/whole_clone.log")).unwrap();
    for own in [&variables, &top] {
        assert!(log.contains(own.as_str()), "{own} is not what it ran on: {log}");
    }
    before.assert_same(&source.outside(), "the source after the clone ran");
}
