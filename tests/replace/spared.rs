//! What is never deleted: what another VM reaches through any chain, and any file of the source.

use std::path::Path;
use std::process::Command;

use crate::lab::{Disk, Vm};
use crate::{CLONE, Ground, SOURCE, images_of, run};

const IMAGES: &str = "/var/lib/libvirt/images";

fn overlay(root: &Path, top: &str, base: &str) {
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base])
        .arg(root.join(top))
        .arg("1M")
        .current_dir(root)
        .status()
        .unwrap();
    assert!(made.success());
}

#[test]
fn a_base_that_another_vm_reaches_through_a_chain_of_three_stays() {
    let ground = Ground::new();
    let b = ground.lab.b();
    ground.put_old(false);
    let base = format!("{IMAGES}/web_clone-1.qcow2");
    let root = b.path(IMAGES);
    overlay(&root, "middle.qcow2", "web_clone-1.qcow2");
    overlay(&root, "top.qcow2", "middle.qcow2");
    let definition = Vm::new("other").definition().replace(
        "<interface",
        &format!("<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{IMAGES}/top.qcow2'/><target dev='vda' bus='virtio'/></disk><interface"),
    );
    b.define_xml(&definition);
    let hash = b.blake3(&base);
    let uuid = b.virsh(["domuuid", CLONE]).trim().to_owned();

    let finished = run(&ground.lab.controller(), &["--force"]).expect(0);
    assert!(
        finished.stderr.contains(&base) && finished.stderr.contains("the VM other reaches it"),
        "{}",
        finished.stderr
    );
    assert_eq!(b.blake3(&base), hash);
    assert!(!b.path(format!("{IMAGES}/web_clone-0.raw")).exists(), "what nobody reaches goes");
    assert_ne!(b.virsh(["domuuid", CLONE]).trim(), uuid);
    // The other VM still has its whole chain.
    b.virsh(["start", "other"]);
    b.virsh(["destroy", "other"]);
}

/// What came with a clone goes with it; what else lies below an image may be a template.
#[test]
fn images_below_go_with_the_clone_they_came_with_and_templates_stay() {
    let ground = Ground::new();
    let (a, b) = (ground.lab.a(), ground.lab.b());
    overlay(&a.path(IMAGES), "template.qcow2", "web-1.qcow2");
    overlay(&a.path(IMAGES), "chained.qcow2", "template.qcow2");
    let chained = Vm::new("chained").disk(Disk::qcow2(1 << 20).at(&format!("{IMAGES}/chained.qcow2")));
    a.define_xml(&chained.definition());
    let controller = ground.lab.controller();
    let again = |flag: &str, expected: &str| {
        let finished = controller.run(["run", "a", "b", "chained", flag, "--json"]).expect(0);
        assert_eq!(finished.json()["status"], expected, "{}", finished.stderr);
        finished
    };
    let images = || {
        let names = std::fs::read_dir(b.path(IMAGES)).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    };
    again("--idempotent", "committed");
    again("--idempotent", "up_to_date");
    let before = images();
    assert_eq!(before.len(), 3, "{before:?}");
    let hashes = || -> Vec<_> { images().iter().map(|name| b.blake3(format!("{IMAGES}/{name}"))).collect() };
    let first = hashes();
    again("--force", "committed");
    assert_eq!(images().len(), 3, "{:?}", images());
    assert_eq!(hashes().len(), first.len());

    // Somebody makes a template of what is below the clone, and puts the clone onto that: it stays, and is named, though it has
    // the same bytes and the same time.
    let top = images_of(b, "chained_clone").remove(0);
    let template = format!("{IMAGES}/golden.qcow2");
    let below = images().into_iter().find(|name| name.starts_with("chained_clone-vda-base")).unwrap();
    b.run(["cp", "--preserve=timestamps", &format!("{IMAGES}/{below}"), &template]);
    b.run(["qemu-img", "rebase", "-u", "-b", &template, "-F", "qcow2", &top]);
    let replaced = again("--force", "committed");
    assert!(replaced.stderr.contains(&template) && replaced.stderr.contains("template"), "{}", replaced.stderr);
    assert!(b.path(&template).exists());
}

#[test]
fn an_overlay_that_appears_meanwhile_keeps_its_base() {
    let ground = Ground::new();
    let b = ground.lab.b();
    ground.put_old(false);
    let base = format!("{IMAGES}/web_clone-1.qcow2");
    let controller = ground.lab.controller();
    // A look at the plan: it would be deleted. Then a volume of a pool is made on it, by nobody's definition.
    let plan = run(&controller, &["--force", "--dry-run", "--json"]).expect(0).json();
    assert_eq!(plan["plan"]["replaces"]["deleted"][1], base.as_str(), "{plan}");
    let committing = controller.clone().env("KVM_CLONE_CRASH_AT", "after:4");
    assert_eq!(run(&committing, &["--force"]).signal(), Some(9));
    overlay(&b.path(IMAGES), "late.qcow2", "web_clone-1.qcow2");
    let hash = b.blake3(&base);
    let finished = controller.run(["resume", &controller.only_txn()]).expect(0);
    assert!(finished.stderr.contains(&base) && finished.stderr.contains("late.qcow2"), "{}", finished.stderr);
    assert_eq!(b.blake3(&base), hash);
}

#[test]
fn on_the_sources_own_host_no_file_of_the_source_is_touched() {
    let ground = Ground::new();
    let a = ground.lab.a();
    // An old VM of the clone's name that names the source's own disk beside one of its own.
    let old = Vm::new(CLONE).disk(Disk::raw(1 << 20).seed(31));
    a.define(&old);
    let own = old.disks()[0].path().to_owned();
    let theirs = ground.source.disks()[0].path().to_owned();
    let with_theirs = a.virsh(["dumpxml", "--inactive", CLONE]).replace(
        "<interface",
        &format!("<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{theirs}'/><target dev='vdb' bus='virtio'/></disk><interface"),
    );
    a.define_xml(&with_theirs);
    let stat = |path: &str| std::fs::metadata(a.path(path)).unwrap().modified().unwrap();
    let before: Vec<_> = ground.source.disks().iter().map(|disk| (stat(disk.path()), a.blake3(disk.path()))).collect();
    let controller = ground.lab.controller();
    let finished = controller.run(["run", "a", "a", SOURCE, "--chunk-size", "64K", "--force"]).expect(0);
    assert!(
        finished.stderr.contains(&theirs) && finished.stderr.contains("the VM web reaches it"),
        "{}",
        finished.stderr
    );
    let after: Vec<_> = ground.source.disks().iter().map(|disk| (stat(disk.path()), a.blake3(disk.path()))).collect();
    assert_eq!(before, after);
    assert!(!a.path(&own).exists(), "its own disk goes");
    a.virsh(["start", SOURCE]);
    a.virsh(["destroy", SOURCE]);
}
