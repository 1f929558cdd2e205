//! Several VMs in one command, between real hosts: each is a transaction of its own, and what happens to one is nothing
//! to the others. Judged from outside.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../lab/mod.rs"]
mod lab;

use std::time::Duration;

use lab::{Controller, Disk, Lab, Vm, staged_bytes};
use nix::sys::signal::Signal;
use serde_json::Value;

const MIB: u64 = 1 << 20;
const IMAGES: &str = "/var/lib/libvirt/images";
const NAMES: [&str; 3] = ["one", "two", "three"];

fn define_three(lab: &Lab, bytes: u64) -> Vec<Vm> {
    let vms: Vec<Vm> = (1..).zip(NAMES).map(|(seed, name)| Vm::new(name).disk(Disk::raw(bytes).seed(seed))).collect();
    for vm in &vms {
        lab.a().define(vm);
    }
    vms
}

/// Runs it with `--json`; the list's entries by their VM, as they stand in it.
fn run(controller: &Controller, words: &[&str], exit: i32) -> Vec<Value> {
    let said = controller.run(["run", "a", "b"].iter().chain(words).chain(&["--chunk-size", "64K", "--json"]));
    said.expect(exit).json().as_array().expect("a list, one entry a VM").clone()
}

fn statuses(list: &[Value]) -> Vec<(String, u64, String)> {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    list.iter().map(|one| (text(&one["vm"]), one["exit_status"].as_u64().unwrap(), text(&one["status"]))).collect()
}

fn ended(vm: &str, exit: u64, status: &str) -> (String, u64, String) {
    (vm.to_owned(), exit, status.to_owned())
}

fn assert_cloned(lab: &Lab, vm: &Vm) {
    let clone = format!("{}_clone", vm.name());
    assert_eq!(lab.b().state(&clone).as_deref(), Some("shut off"), "{clone}");
    let details = lab.b().virsh(["domblklist", &clone, "--details"]);
    let image = details.split_whitespace().find(|word| word.starts_with('/')).expect("a disk");
    assert_eq!(lab.a().blake3(vm.disks()[0].path()), lab.b().blake3(image), "{clone}");
}

#[test]
fn one_of_three_is_refused_and_the_others_arrive() {
    let lab = Lab::up();
    let vms = define_three(&lab, 2 * MIB);
    lab.a().virsh(["start", "two"]);
    let controller = lab.controller();

    let list = run(&controller, &["one", "two", "three", "--parallel-vms", "3"], 5);
    let wanted = [ended("one", 0, "committed"), ended("two", 5, "-"), ended("three", 0, "committed")];
    assert_eq!(statuses(&list), wanted, "{list:#?}");
    assert_eq!(list[1]["error"]["problems"][0]["kind"], "running", "{}", list[1]);
    assert_eq!(controller.list().len(), 2, "a refused VM has no transaction");
    assert_cloned(&lab, &vms[0]);
    assert_cloned(&lab, &vms[2]);
    assert_eq!(lab.b().state("two_clone"), None);

    // Again: what is there is left as it is, and only what is missing is cloned.
    lab.a().virsh(["destroy", "two"]);
    let said = controller.run(["run", "a", "b", "--all", "--match", "t*", "--idempotent", "--parallel-vms", "2"]);
    let said = said.expect(0).says(&["2 of 2 VMs done; exit status 0.", "up to date"]);
    assert!(!said.stdout.lines().any(|line| line.starts_with("one")), "{}", said.stdout);
    // Lines of two VMs that are cloned at once say which they are about.
    let steps: Vec<&str> = said.stderr.lines().filter(|line| line.contains("transfer vda")).collect();
    assert!(!steps.is_empty() && steps.iter().all(|line| line.starts_with("two: ")), "{}", said.stderr);
    assert_cloned(&lab, &vms[1]);

    let list = run(&controller, &["--all", "--idempotent", "--parallel-vms", "3"], 0);
    let wanted = ["one", "three", "two"].map(|vm| ended(vm, 0, "up_to_date"));
    assert_eq!(statuses(&list), wanted, "by name");
    controller.run(["run", "a", "b", "--all", "--match", "web*"]).expect(5).says(&["\"web*\"", "nothing was touched"]);
    // The worst counts: a plan is one thing, a name that is taken another.
    let list = run(&controller, &["one", "none", "--dry-run", "--idempotent"], 5);
    assert_eq!(statuses(&list), [ended("one", 0, "up_to_date"), ended("none", 5, "-")]);
}

#[test]
fn a_signal_suspends_all_of_them() {
    let lab = Lab::up();
    let vms = define_three(&lab, 16 * MIB);
    let before = lab.a().outside();
    let controller = lab.controller();
    let words = ["run", "a", "b", "one", "two", "three", "--parallel-vms", "2", "--chunk-size", "64K"];
    let mut running = controller.spawn(words.iter().chain(&["--bandwidth-limit", "1M"]));
    // Two are under way, and the third waits for its turn.
    running.wait_until(Duration::from_secs(60), "two VMs are copied at once", || {
        staged_bytes(lab.b(), IMAGES) > 2 * MIB && controller.list().len() == 2
    });
    running.signal(Signal::SIGTERM);
    running.wait().expect(3).says(&["one: ", "two: ", "three: ", "0 of 3 VMs done; exit status 3."]);
    let list = controller.list();
    assert_eq!(list.iter().map(|one| one["status"].as_str().unwrap()).collect::<Vec<_>>(), ["interrupted"; 2]);

    controller.run(words.iter().chain(&["--idempotent"])).expect(0).says(&["3 of 3 VMs done"]);
    for vm in &vms {
        assert_cloned(&lab, vm);
    }
    assert_eq!(controller.list().len(), 3, "the interrupted ones were resumed");
    before.assert_same(&lab.a().outside(), "the sources");
}
