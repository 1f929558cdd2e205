//! What a plain clone costs its hosts, as their agents count it themselves.

use crate::MIB;
use crate::lab::{Disk, Host, Lab, Vm};

const CHUNK_BYTES: usize = 64 << 10;
/// Requests to both agents of the survey, for a VM with two disks and an interface: measured, and ten more.
const SURVEY_REQUESTS_MAX: u64 = 51;
/// Requests to both agents of the clone itself, likewise.
const CLONE_REQUESTS_MAX: u64 = 184;
/// Calls of libvirt that two equal runs may differ by: it is waited for where it is slow.
const CALLS_MORE_OR_LESS: u64 = 6;

/// Bytes of those chunks of a file that are not all zeros.
fn data_bytes(host: &Host, path: &str) -> u64 {
    let bytes = std::fs::read(host.path(path)).unwrap();
    let chunks = bytes.chunks(CHUNK_BYTES).filter(|chunk| chunk.iter().any(|byte| *byte != 0));
    chunks.map(|chunk| chunk.len() as u64).sum()
}

/// Clones the VM, and returns what `show` says of its agents.
fn counted(lab: &Lab, name: &str) -> serde_json::Value {
    let controller = lab.controller();
    controller.run(["run", "a", "b", "web", "--chunk-size", "64K", "--new-name", name]).expect(0);
    let counted = controller.show(&controller.only_txn())["counted"].clone();
    println!("counted\t{name}\t{counted}");
    counted
}

fn sum(counted: &serde_json::Value, agents: [&str; 2], what: &str) -> u64 {
    agents.iter().map(|agent| counted[agent][what].as_u64().unwrap()).sum()
}

const SURVEY: [&str; 2] = ["survey_of_source", "survey_of_destination"];
const CLONE: [&str; 2] = ["source", "destination"];

#[test]
fn a_plain_clone_reads_once_writes_once_rereads_once_and_asks_little() {
    let lab = Lab::up();
    let vm = Vm::new("web").disk(Disk::raw(8 * MIB)).disk(Disk::qcow2(4 * MIB).seed(5));
    lab.a().define(&vm);
    let plain = counted(&lab, "plain");
    let data: u64 = vm.disks().iter().map(|disk| data_bytes(lab.a(), disk.path())).sum();
    let size: u64 = vm.disks().iter().map(|disk| std::fs::metadata(lab.a().path(disk.path())).unwrap().len()).sum();
    // Nothing but tables and headers before the copy.
    for what in ["image_bytes_read", "image_bytes_written"] {
        assert_eq!(sum(&plain, SURVEY, what), 0, "{what}: {plain}");
    }
    let of = |agent: &str, what: &str| plain[agent][what].as_u64().unwrap();
    // Zeros that are allocated are read too, and never sent.
    assert!((data..=size).contains(&of("source", "image_bytes_read")), "{data} of {size} bytes are data: {plain}");
    assert_eq!(of("source", "image_bytes_written"), 0);
    assert_eq!(of("destination", "image_bytes_written"), data, "{plain}");
    assert_eq!(of("destination", "image_bytes_read"), data, "{plain}");
    assert!(sum(&plain, SURVEY, "requests") <= SURVEY_REQUESTS_MAX, "{plain}");
    assert!(sum(&plain, CLONE, "requests") <= CLONE_REQUESTS_MAX, "{plain}");

    // With every five domains more on both hosts there are so many calls more, and no more.
    let calls =
        |counted: &serde_json::Value| sum(counted, SURVEY, "libvirt_calls") + sum(counted, CLONE, "libvirt_calls");
    let mut made = 0;
    let mut with_more = |count: u32| {
        while made < count {
            for host in [lab.a(), lab.b()] {
                host.define_xml(&Vm::new(&format!("more-{made}")).definition());
            }
            made += 1;
        }
        calls(&counted(&lab, &format!("with-{count}")))
    };
    // The clones that were made before count too.
    let (none, five, ten) = (with_more(0), with_more(5), with_more(10));
    let (first, second) = (five - none, ten - five);
    assert!(first.abs_diff(second) <= CALLS_MORE_OR_LESS, "not by as much each time: {none}, {five}, {ten}");
}
