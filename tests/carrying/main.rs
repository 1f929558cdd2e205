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
