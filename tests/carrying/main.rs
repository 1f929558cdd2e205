//! What belongs to a VM beside its disks arrives with it: between real hosts, judged from outside.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../lab/mod.rs"]
mod lab;

use std::time::Duration;

use lab::{Disk, Host, Lab, Vm, wait_until};

const MIB: u64 = 1 << 20;
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
