//! A chain of images that arrives as one: byte for byte what the source's guest sees, in a raw image that stands on nothing.

use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::Duration;

use crate::lab::{Format, Host, Lab, staged_bytes};
use crate::{IMAGES, MIB, define_chain};

const BOUND: Duration = Duration::from_secs(120);

/// QEMU's own comparison of what the guests of two images see.
fn assert_identical(chain: &str, source: &Host, image: &str, destination: &Host) {
    let compared = Command::new("qemu-img")
        .args(["compare", "-f", "qcow2", "-F", "raw"])
        .args([source.path(chain), destination.path(image)])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&compared.stdout).into_owned();
    assert!(compared.status.success() && said.contains("Images are identical."), "{said}{compared:?}");
}

fn definition(host: &Host, name: &str) -> String {
    host.virsh(["dumpxml", "--inactive", name])
}

/// A guest that boots, on a chain of three: compressed at the bottom, larger at each step.
fn define_guest_on_chain(host: &Host, name: &str) -> String {
    let marker = host.define_guest(name, Format::Qcow2, 24);
    let path = |layer: &str| format!("{IMAGES}/{name}-{layer}.qcow2");
    let own = format!("{IMAGES}/{name}.qcow2");
    host.run(["qemu-img", "convert", "-c", "-O", "qcow2", &own, &path("base")]);
    host.run(["rm", &own]);
    let mut size = bytes_seen(host, &path("base"));
    for (image, below, byte) in [("middle", "base", "0x21"), ("top", "middle", "0x42")] {
        let (below, at) = (format!("{name}-{below}.qcow2"), size.to_string());
        size += 4 * MIB;
        let words = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", &below, "-F", "qcow2", &path(image)];
        host.run(words.into_iter().chain([&*size.to_string()]));
        // Behind all that the guest knows of.
        let write = format!("write -P {byte} {at} 1M");
        host.run(["qemu-io", "-f", "qcow2", "-c", &write, "-c", &format!("write -z {at} 64k"), &path(image)]);
    }
    host.define_xml(&definition(host, name).replace(&own, &path("top")));
    marker
}

fn bytes_seen(host: &Host, image: &str) -> u64 {
    let info = host.run(["qemu-img", "info", "--output=json", image]);
    serde_json::from_str::<serde_json::Value>(&info).unwrap()["virtual-size"].as_u64().unwrap()
}

#[test]
fn a_flattened_chain_that_was_killed_in_the_middle_arrives_as_its_guest_saw_it_and_boots() {
    let lab = Lab::up();
    let marker = define_guest_on_chain(lab.a(), "web");
    let top = format!("{IMAGES}/web-top.qcow2");
    let before = lab.a().outside();
    let controller = lab.controller();
    let planned = controller.run(["plan", "a", "b", "web", "--chain", "flatten", "--json"]).expect(0).json();
    let disk = &planned["plan"]["disks"][0];
    assert_eq!((&disk["format"], disk["size_bytes"].as_u64()), (&"raw".into(), Some(bytes_seen(lab.a(), &top))));
    assert_eq!(
        disk["flattened"],
        serde_json::json!([format!("{IMAGES}/web-middle.qcow2"), format!("{IMAGES}/web-base.qcow2")])
    );

    let mut running = controller.spawn(["run", "a", "b", "web", "--chain", "flatten", "--bandwidth-limit", "6M"]);
    running.wait_until(BOUND, "a part is staged", || staged_bytes(lab.b(), IMAGES) > 8 * MIB);
    running.kill();
    controller.run(["resume", &controller.only_txn(), "--bandwidth-limit", "200M"]).expect(0);
    before.assert_same(&lab.a().outside(), "the source after the clone");

    let image = format!("{IMAGES}/web_clone-vda.img");
    assert_identical(&top, lab.a(), &image, lab.b());
    let clone = definition(lab.b(), "web_clone");
    assert!(clone.contains("type='raw'") && clone.contains(&format!("<source file='{image}'/>")), "{clone}");
    assert!(!clone.contains("backingStore") && !clone.contains("qcow2"), "{clone}");
    let stat = std::fs::metadata(lab.b().path(&image)).unwrap();
    assert!(
        stat.blocks() * 512 < stat.len() - 4 * MIB,
        "it is not sparse: {} of {} bytes",
        stat.blocks() * 512,
        stat.len()
    );
    let shown = controller.show(&controller.only_txn());
    let transferred = &shown["disks"][0];
    assert!(transferred["missing_bytes"].as_u64() < Some(stat.len()), "resume sent all of it again: {transferred}");
    assert_eq!(lab.b().boot_guest("web_clone"), marker);
}

#[test]
fn a_chain_with_an_internal_snapshot_is_not_flattened_and_one_without_is_on_its_own_host_too() {
    let lab = Lab::up();
    define_chain(lab.a(), "chain");
    let before = lab.outside();
    let controller = lab.controller();
    let flatten = ["--chain", "flatten"];
    let run =
        |to: &'static str, name: &'static str| [&["run", "a", to, "chain", "--new-name", name][..], &flatten].concat();
    let refused = controller.run(run("b", "far")).expect(5);
    refused.says(&["chain-top.qcow2", "internal snapshots (1)", "--chain keep"]);
    before.0.assert_same(&lab.a().outside(), "the source after a refusal");
    before.1.assert_same(&lab.b().outside(), "the destination after a refusal");

    let top = format!("{IMAGES}/chain-top.qcow2");
    lab.a().run(["qemu-img", "snapshot", "-d", "kept", &top]);
    let files = ["top.qcow2", "middle.qcow2", "base.img"].map(|layer| format!("{IMAGES}/chain-{layer}"));
    let hashes = || files.clone().map(|file| lab.a().blake3(&file));
    let was = hashes();
    // Its lowest image is named in full, as only its own host has it: what its guest sees is looked at there.
    lab.a().run(["qemu-img", "convert", "-O", "raw", &top, &format!("{IMAGES}/seen.raw")]);
    for (host, to, name) in [(lab.b(), "b", "far"), (lab.a(), "a", "near")] {
        controller.run(run(to, name)).expect(0);
        let image = format!("{IMAGES}/{name}-vda.img");
        assert_eq!(host.blake3(&image), lab.a().blake3(format!("{IMAGES}/seen.raw")), "{name}");
        assert!(!definition(host, name).contains("qcow2"));
    }
    assert_eq!(hashes(), was, "the chain is still there, as it was");
    // Nothing to do while all of its images are what they were; and not a moment longer.
    let again = [&run("b", "far")[..], &["--idempotent", "--dry-run"]].concat();
    controller.run(&again).expect(0).says(&["nothing to do"]);
    lab.a().run(["qemu-io", "-f", "qcow2", "-c", "write -P 0x33 256k 64k", &files[1]]);
    controller.run(&again).expect(0).says(&["disk vda of the source was written to since"]);
}
