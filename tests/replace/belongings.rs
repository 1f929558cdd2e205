//! What belongs to an old VM beside its disks: firmware variables, TPM, snapshots, checkpoints, saved memory, autostart. After a
//! rollback all of it is as before; after the commit it goes with the old VM, or stays with it where that is kept.

use std::process::Stdio;
use std::time::Duration;

use journal_format::EventV1;

use crate::boundaries::records;
use crate::lab::{Disk, Host, Outside, Vm, wait_until};
use crate::{CLONE, Ground, images_of, run};

/// Emulated firmware on a busy machine.
const FIRMWARE_MAX: Duration = Duration::from_secs(60);
const NVRAM: &str = "/var/lib/libvirt/qemu/nvram";
const NAMED_VARIABLES: &str = "/srv/firmware/variables.fd";
const SAVED: &str = "/var/lib/libvirt/qemu/save/web_clone.save";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Off with its memory saved by libvirt; variables by its name; a snapshot.
    Saved,
    /// Off; variables that its definition names; a checkpoint.
    Off,
    /// Running, and to be saved; variables by its name; a snapshot.
    Running,
}

impl Kind {
    fn variables(self) -> String {
        if self == Self::Off { NAMED_VARIABLES.to_owned() } else { format!("{NVRAM}/{CLONE}_VARS.fd") }
    }
}

fn tpm_of(uuid: &str) -> String {
    format!("/var/lib/libvirt/swtpm/{uuid}")
}

/// Starts it until firmware and TPM have written something.
fn start(host: &Host, kind: Kind) {
    let uuid = host.virsh(["domuuid", CLONE]).trim().to_owned();
    let state = format!("{}/tpm2/tpm2-00.permall", tpm_of(&uuid));
    host.virsh(["start", CLONE]);
    let made = std::fs::read(host.path(kind.variables())).unwrap();
    let written = || std::fs::read(host.path(kind.variables())).unwrap() != made;
    wait_until(FIRMWARE_MAX, "the firmware wrote variables", written);
    wait_until(FIRMWARE_MAX, "the TPM has a state", || host.path(&state).exists());
}

/// A VM of the clone's name on host b, with everything that may belong to one.
fn put(ground: &Ground, kind: Kind) {
    let b = ground.lab.b();
    let vm = Vm::new(CLONE).disk(Disk::qcow2(2 << 20).seed(21)).uefi_and_tpm();
    vm.disks()[0].make_on(b);
    std::fs::create_dir_all(b.path("/srv/firmware")).unwrap();
    let named = format!("hvm</type><nvram>{NAMED_VARIABLES}</nvram></os>");
    let definition = vm.definition();
    b.define_xml(&if kind == Kind::Off { definition.replace("hvm</type></os>", &named) } else { definition });
    b.virsh(["autostart", CLONE]);
    start(b, kind);
    if kind == Kind::Off {
        b.virsh(["checkpoint-create-as", CLONE, "monday"]);
        b.virsh(["destroy", CLONE]);
    } else {
        b.virsh(["destroy", CLONE]);
        b.virsh(["snapshot-create-as", CLONE, "monday"]);
        b.virsh(["start", CLONE]);
    }
    if kind == Kind::Saved {
        b.virsh(["managedsave", CLONE]);
    }
    b.virsh(["pool-refresh", "default"]);
}

/// As a person does it.
fn take_away(ground: &Ground) {
    let b = ground.lab.b();
    let images = images_of(b, CLONE);
    b.try_virsh(["destroy", CLONE]);
    b.try_virsh(["managedsave-remove", CLONE]);
    b.virsh(["undefine", "--nvram", "--snapshots-metadata", "--checkpoints-metadata", CLONE]);
    for image in images {
        std::fs::remove_file(b.path(image)).unwrap();
    }
    b.virsh(["pool-refresh", "default"]);
}

/// What both hosts look like, and what libvirt says of the old VM that is in no file and no definition.
fn look(ground: &Ground) -> (Outside, Outside, String) {
    let b = ground.lab.b();
    let (a, outside) = ground.lab.outside();
    let told = [
        b.virsh(["snapshot-list", "--tree", CLONE]),
        String::from_utf8_lossy(&b.try_virsh(["snapshot-current", "--name", CLONE]).stdout).into_owned(),
        b.virsh(["checkpoint-list", "--tree", CLONE]),
        b.virsh(["dominfo", CLONE])
            .lines()
            .filter(|line| !line.starts_with("CPU time") && !line.starts_with("Id:"))
            .collect(),
    ];
    (a, outside, told.join("\n"))
}

fn arguments(kind: Kind) -> &'static [&'static str] {
    if kind == Kind::Running { &["--force", "--stop", "save"] } else { &["--force"] }
}

/// Everything of the old VM is gone.
fn assert_gone(ground: &Ground, kind: Kind, uuid: &str) {
    let b = ground.lab.b();
    ground.assert_replaced(uuid, &[], &format!("{kind:?}"));
    for path in [kind.variables(), tpm_of(uuid), SAVED.to_owned()] {
        assert!(!b.path(&path).exists(), "{kind:?}: {path} of the old VM is left");
    }
    assert_eq!(b.virsh(["snapshot-list", "--name", CLONE]).trim(), "", "{kind:?}");
    assert_eq!(b.virsh(["checkpoint-list", "--name", CLONE]).trim(), "", "{kind:?}");
}

/// Replaced once, to its end; then replaced until just before the commit mark, and rolled back.
fn replaced_and_rolled_back(kind: Kind) {
    let mut ground = Ground::new();
    // The directories that libvirt makes with the first of such VMs are there from now on.
    put(&ground, kind);
    take_away(&ground);
    ground.pristine = ground.lab.outside();
    let b = ground.lab.b();
    put(&ground, kind);
    let uuid = b.virsh(["domuuid", CLONE]).trim().to_owned();
    let clean = ground.lab.controller();
    let finished = run(&clean, arguments(kind)).expect(0);
    assert_eq!(kind == Kind::Saved, finished.stderr.contains("saved memory state"), "{}", finished.stderr);
    let told =
        if kind == Kind::Off { "snapshots (0) and checkpoints (1)" } else { "snapshots (1) and checkpoints (0)" };
    assert!(finished.stderr.contains(told), "{}", finished.stderr);
    assert_gone(&ground, kind, &uuid);
    ground.clear();

    put(&ground, kind);
    let before = look(&ground);
    let committed = records(&clean).iter().position(|record| record.event == EventV1::Committed).unwrap();
    let controller = ground.lab.controller();
    let dying = controller.clone().env("KVM_CLONE_CRASH_AT", &format!("after:{}", committed - 1));
    assert_eq!(run(&dying, arguments(kind)).signal(), Some(9));
    assert_eq!(b.state(CLONE).as_deref(), Some("shut off"), "{kind:?}");
    controller.run(["rollback", &controller.only_txn()]).expect(0);

    let after = look(&ground);
    before.0.assert_same(&after.0, "the source after a rollback");
    // What runs again goes on writing its own.
    let own = ["/var/lib/libvirt/qemu/nvram", "/var/lib/libvirt/swtpm"];
    let changes: Vec<_> = before
        .1
        .changes(&after.1)
        .into_iter()
        .filter(|line| kind != Kind::Running || !own.iter().any(|path| line.contains(path)) || line.starts_with('-'))
        .collect();
    assert_eq!(changes, Vec::<String>::new(), "{kind:?}: host b after a rollback");
    assert_eq!(before.2, after.2, "{kind:?}");
    if kind == Kind::Running {
        b.virsh(["destroy", CLONE]);
    }
}

#[test]
fn an_old_vm_with_saved_memory_and_a_snapshot_is_as_before_or_gone_whole() {
    replaced_and_rolled_back(Kind::Saved);
}

#[test]
fn an_old_vm_with_named_variables_and_a_checkpoint_is_as_before_or_gone_whole() {
    replaced_and_rolled_back(Kind::Off);
}

/// A TPM writes its state as a new file each time: it is not the one that was planned, and goes all the same.
#[test]
fn an_old_vm_that_runs_with_a_tpm_is_as_before_or_gone_whole() {
    replaced_and_rolled_back(Kind::Running);
}

/// libvirt looks for variables by the domain's name, and would make fresh ones under the other name.
#[test]
fn an_old_vm_that_is_kept_finds_its_own_variables() {
    let ground = Ground::new();
    let b = ground.lab.b();
    put(&ground, Kind::Running);
    b.virsh(["destroy", CLONE]);
    let uuid = b.virsh(["domuuid", CLONE]).trim().to_owned();
    let state = format!("{}/tpm2/tpm2-00.permall", tpm_of(&uuid));
    let variables = Kind::Running.variables();
    let was = (b.blake3(&variables), b.blake3(&state));
    run(&ground.lab.controller(), &["--force", "--keep-replaced"]).expect(0);

    let kept = b.virsh(["domname", &uuid]).trim().to_owned();
    assert!(kept.starts_with("web_clone.replaced-"), "{kept}");
    let moved = format!("{NVRAM}/{kept}_VARS.fd");
    assert_eq!((b.blake3(&moved), b.blake3(&state)), was);
    assert!(!b.path(&variables).exists(), "the next VM of that name would run on them too");
    let inode = |path: &str| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(b.path(path)).unwrap());
    let file = inode(&moved);
    b.virsh(["start", &kept]);
    let log = std::fs::read_to_string(b.path(format!("/var/log/libvirt/qemu/{kept}.log"))).unwrap();
    assert!(log.contains(&moved), "it was started with other variables: {log}");
    b.virsh(["destroy", &kept]);
    assert_eq!(inode(&moved), file);
    // Its snapshot names no variables either: reverted to, it still finds them.
    b.virsh(["snapshot-revert", &kept, "monday"]);
    b.virsh(["start", &kept]);
    b.virsh(["destroy", &kept]);
    let names: Vec<_> = std::fs::read_dir(b.path(NVRAM)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, [format!("{kept}_VARS.fd").as_str()], "fresh variables were made");
}

/// No definition tells of a process that reads an image; its lock does.
#[test]
fn an_image_that_somebody_reads_is_left_and_named() {
    let ground = Ground::new();
    let b = ground.lab.b();
    ground.put_old(false);
    let images = images_of(b, CLONE);
    let mut reader = b.command(["qemu-io", "-r", "-f", "raw", &images[0]]).stdin(Stdio::piped()).spawn().unwrap();
    let opens = |pid: &u32| {
        let files = std::fs::read_dir(b.path(format!("/proc/{pid}/fd"))).into_iter().flatten().flatten();
        files.filter_map(|file| std::fs::read_link(file.path()).ok()).any(|file| file.ends_with("web_clone-0.raw"))
    };
    wait_until(FIRMWARE_MAX, "it has the image open", || b.processes("qemu-io").iter().any(opens));
    let finished = run(&ground.lab.controller(), &["--force"]).expect(0);
    drop(reader.stdin.take());
    reader.wait().unwrap();
    assert!(
        finished.stderr.contains(&images[0]) && finished.stderr.contains("somebody uses it"),
        "{}",
        finished.stderr
    );
    assert!(b.path(&images[0]).exists());
    assert!(!b.path(&images[1]).exists(), "what nobody uses goes");
}
