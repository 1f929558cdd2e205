//! A chain whose lowest image the destination has: the clone stands on that, and nobody ever changes or deletes it.

use std::os::unix::fs::MetadataExt;

use crate::lab::{Disk, Host, Lab, Vm};
use crate::{IMAGES, MIB, define_chain, guest_sees};

/// Brings the chain's lowest image to the other host, by hand.
fn bring(lab: &Lab, base: &str) {
    std::fs::copy(lab.a().path(base), lab.b().path(base)).unwrap();
}

fn stamp(host: &Host, path: &str) -> (u64, u64, i64, i64, String) {
    let stat = std::fs::metadata(host.path(path)).unwrap();
    (stat.ino(), stat.nlink(), stat.mtime(), stat.mtime_nsec(), host.blake3(path).to_string())
}

fn chain_of(host: &Host, image: &str) -> String {
    host.run(["qemu-img", "info", "--backing-chain", image])
}

#[test]
fn a_clone_stands_on_the_base_that_is_there_and_never_touches_it() {
    let lab = Lab::up();
    define_chain(lab.a(), "chain");
    let base = format!("{IMAGES}/chain-base.img");
    bring(&lab, &base);
    // A guest runs on it there.
    let overlay = format!("{IMAGES}/other.qcow2");
    lab.b().run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", &base, &overlay]);
    lab.b().define_xml(&Vm::new("other").disk(Disk::qcow2(MIB).at(&overlay)).definition());
    lab.b().virsh(["start", "other"]);
    let (source, was) = (lab.a().outside(), stamp(lab.b(), &base));
    let controller = lab.controller();
    let planned = controller.run(["plan", "a", "b", "chain", "--chain", "share", "--json"]).expect(0).json();
    let told = &planned["plan"]["bases"][0];
    assert_eq!((&told["target"], &told["path"]), (&"vda/2".into(), &base.clone().into()), "{planned}");
    assert_eq!(told["root"], was.4.clone());
    controller.run(["plan", "a", "b", "chain", "--chain", "share"]).expect(0).says(&["use vda/2 as it is", &base]);

    controller.run(["run", "a", "b", "chain", "--chain", "share"]).expect(0);
    let first = controller.only_txn();
    source.assert_same(&lab.a().outside(), "the source after the clone");
    let top = format!("{IMAGES}/chain_clone-vda.qcow2");
    let info = chain_of(lab.b(), &top);
    assert!(info.contains(&format!("backing file: {base}")) && !info.contains("chain_clone-vda-base2"), "{info}");
    assert_eq!(guest_sees(lab.b(), &top), guest_sees(lab.a(), &format!("{IMAGES}/chain-top.qcow2")));
    assert_eq!(stamp(lab.b(), &base), was);
    controller.run(["verify", &first]).expect(0).says(&["vda/2", "every byte is as it was copied"]);
    controller.run(["run", "a", "b", "chain", "--idempotent", "--chain", "share"]).expect(0).says(&["nothing to do"]);

    // Replaced, by a clone that stands on it again: what came with the old one goes, and that did not.
    controller.run(["run", "a", "b", "chain", "--force", "--chain", "share"]).expect(0);
    assert_eq!(stamp(lab.b(), &base), was);
    let left = std::fs::read_dir(lab.b().path(IMAGES)).unwrap().map(|entry| entry.unwrap().file_name());
    let mut left: Vec<_> = left.map(|name| name.into_string().unwrap()).collect();
    left.retain(|name| name.starts_with("chain"));
    assert_eq!(left.len(), 3, "the base, a top and a middle: {left:?}");

    assert_eq!(lab.b().state("other").as_deref(), Some("running"));
    lab.b().virsh(["destroy", "other"]);
    // With other bytes it is another image: what stood on it is told so, and nothing new stands on it.
    lab.b().run(["dd", "if=/dev/urandom", &format!("of={base}"), "bs=4096", "seek=300", "count=1", "conv=notrunc"]);
    let all: Vec<_> = controller.list().iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect();
    let second = all.iter().find(|txn| **txn != first).unwrap();
    controller.run(["verify", second]).expect(5).says(&["vda/2", "it differs; nothing says where"]);
    controller.run(["run", "a", "b", "chain", "--new-name", "second", "--chain", "share"]).expect(0);
    let info = chain_of(lab.b(), &format!("{IMAGES}/second-vda.qcow2"));
    assert!(info.contains("second-vda-base2.img") && !info.contains("chain-base.img"), "{info}");
}
