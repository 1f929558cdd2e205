//! `verify TXN` between real hosts: a clone that is as it was, one that rotted, one that was used, one that runs. Nothing is
//! disturbed by looking, which is judged from outside.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../lab/mod.rs"]
mod lab;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use lab::{Controller, Disk, Lab, Vm};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const CHUNK: u64 = 64 << 10;
/// In the middle of a chunk.
const FLIPPED_AT: u64 = 2 * MIB + CHUNK + 77;
const FLIPPED_CHUNK: u64 = 2 * MIB + CHUNK;

fn verified(controller: &Controller, txn: &str, exit: i32) -> Value {
    controller.run(["verify", txn, "--json"]).expect(exit).json()
}

/// Turns all bits of one byte.
fn flip(path: &Path, at: u64) -> File {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
    file
}

/// As a failing disk does: the file's time says nothing of it.
fn rot(path: &Path, at: u64) {
    let modified = std::fs::metadata(path).unwrap().modified().unwrap();
    let file = flip(path, at);
    file.set_modified(modified).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn what_differs_is_found_where_it_is_and_who_used_the_clone_is_said() {
    let lab = Lab::up();
    lab.a().define(&Vm::new("web").disk(Disk::raw(4 * MIB)).disk(Disk::qcow2(2 * MIB).seed(9)));
    let controller = lab.controller();
    controller.run(["run", "a", "b", "web", "--chunk-size", "64K"]).expect(0);
    let txn = controller.only_txn();
    let details = lab.b().virsh(["domblklist", "web_clone", "--details"]);
    let images: Vec<&str> = details.split_whitespace().filter(|word| word.starts_with('/')).collect();
    let raw = lab.b().path(images[0]);
    let before = lab.outside();

    let told = verified(&controller, &txn, 0);
    assert_eq!(
        (&told["equal"], &told["used_since"], &told["vm_state"]),
        (&json!(true), &json!(false), &json!("shut_off"))
    );
    assert_eq!(told["images"].as_array().unwrap().len(), 2);
    let after = lab.outside();
    before.0.assert_same(&after.0, "the source after verify");
    before.1.assert_same(&after.1, "the destination after verify");

    rot(&raw, FLIPPED_AT);
    let told = verified(&controller, &txn, 4);
    let image = &told["images"][0];
    assert_eq!((&image["equal"], &image["changed_since"]), (&json!(false), &json!(false)), "{told}");
    assert_eq!(image["ranges"], json!([[FLIPPED_CHUNK, FLIPPED_CHUNK + CHUNK]]), "{told}");
    assert_eq!(told["images"][1]["equal"], true);
    let last = format!("bytes {FLIPPED_CHUNK} to {}", FLIPPED_CHUNK + CHUNK - 1);
    controller.run(["verify", &txn]).expect(4).says(&[&last, "vda"]);
    // A neighbour makes it one range, and one that lies apart another.
    rot(&raw, FLIPPED_AT + CHUNK);
    rot(&raw, 0);
    let told = verified(&controller, &txn, 4);
    assert_eq!(told["images"][0]["ranges"], json!([[0, CHUNK], [FLIPPED_CHUNK, FLIPPED_CHUNK + 2 * CHUNK]]), "{told}");
    for at in [FLIPPED_AT, FLIPPED_AT + CHUNK, 0] {
        rot(&raw, at);
    }
    assert_eq!(verified(&controller, &txn, 0)["used_since"], false);

    // It runs: QEMU keeps its locks, and is told nothing.
    lab.b().virsh(["start", "web_clone"]);
    let told = verified(&controller, &txn, 0);
    assert_eq!(
        (&told["vm_state"], &told["used_since"], &told["equal"]),
        (&json!("running"), &json!(true), &json!(true))
    );
    assert_eq!(lab.b().state("web_clone").as_deref(), Some("running"));
    lab.b().virsh(["destroy", "web_clone"]);

    // Written to, and longer: what is behind the old end differs too.
    let file = flip(&raw, FLIPPED_AT);
    file.set_len(4 * MIB + 1).unwrap();
    let told = verified(&controller, &txn, 5);
    assert_eq!(told["images"][0]["changed_since"], true, "{told}");
    assert_eq!(
        told["images"][0]["ranges"],
        json!([[FLIPPED_CHUNK, FLIPPED_CHUNK + CHUNK], [4 * MIB, 4 * MIB + 1]]),
        "{told}"
    );
    controller.run(["verify", &txn]).expect(5).says(&["was started or written to since its commit"]);

    std::fs::remove_file(&raw).unwrap();
    controller.run(["verify", &txn]).expect(4).says(&["it is gone"]);
    assert_eq!(controller.status(&txn), "committed", "the journal says what it said");
}
