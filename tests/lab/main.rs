//! The lab itself: what other tests lean on holds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::similar_names)]

#[path = "../conformance/mod.rs"]
mod conformance;
mod ground;
#[path = "mod.rs"]
mod lab;

use std::process::Command;
use std::time::Duration;

use lab::{Content, Disk, Format, Lab, Service, Vm};

const MIB: u64 = 1 << 20;

fn ssh(lab: &Lab, to: &str, command: &str) -> String {
    let output = Command::new("ssh")
        .arg("-F")
        .arg(lab.ssh_config())
        .args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=10", to, command])
        .output()
        .unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)).trim().to_owned()
}

#[test]
fn two_labs_are_four_hosts_that_know_nothing_of_each_other() {
    let (one, other) = std::thread::scope(|scope| {
        let other = scope.spawn(Lab::up);
        (Lab::up(), other.join().unwrap())
    });
    let mut machine_ids = Vec::new();
    for lab in [&one, &other] {
        for name in ["a", "b"] {
            assert_eq!(ssh(lab, name, "hostname"), format!("host-{name}"));
            assert_eq!(ssh(lab, &format!("operator@{name}"), "sudo -n id -u"), "0");
            assert!(ssh(lab, &format!("viewer@{name}"), "sudo -n id -u").contains("password is required"));
            machine_ids.push(ssh(lab, name, "cat /etc/machine-id"));
        }
    }
    let list = "virsh -c qemu:///system list --all";
    assert!(ssh(&one, "viewer@b", list).starts_with("Id"), "a member of the group libvirt may look");
    assert!(ssh(&one, "operator@b", list).contains("authentication unavailable"), "others may not");
    machine_ids.sort();
    machine_ids.dedup();
    assert_eq!(machine_ids.len(), 4, "each host has a machine id of its own: {machine_ids:?}");

    one.a().define(&Vm::new("web01").disk(Disk::raw(MIB)));
    assert_eq!(one.a().state("web01").as_deref(), Some("shut off"));
    for elsewhere in [one.b(), other.a(), other.b()] {
        assert_eq!(elsewhere.state("web01"), None);
        assert!(!elsewhere.path("/var/lib/libvirt/images/web01-0.raw").exists());
    }
}

#[test]
fn a_guest_boots_from_its_own_disk_on_both_hosts() {
    let lab = Lab::up();
    let raw = lab.a().define_guest("raw", Format::Raw, 0);
    let qcow2 = lab.b().define_guest("qcow2", Format::Qcow2, 8);
    assert_ne!(raw, qcow2);
    assert_eq!(lab.a().boot_guest("raw"), raw);
    assert_eq!(lab.b().boot_guest("qcow2"), qcow2);
}

#[test]
fn the_look_from_outside_sees_every_change_and_nothing_else() {
    let lab = Lab::up();
    let host = lab.b();
    host.define(&Vm::new("web01").disk(Disk::raw(3 * MIB)).disk(Disk::qcow2(5 * MIB).seed(2)));
    let before = host.outside();
    assert!(before.domains.contains_key("web01"));
    host.virsh(["pool-refresh", "default"]);
    std::fs::create_dir_all(host.path("/var/lib/kvm-clone/host/names")).unwrap();
    let before = {
        let refreshed = host.outside();
        assert_eq!(before.changes(&refreshed).len(), 1, "the pool learns of the images, and nothing else changes");
        refreshed
    };
    host.kill(Service::Libvirtd);
    host.start(Service::Libvirtd);
    before.assert_same(&host.outside(), "after libvirtd was killed and started");

    let image = host.path("/var/lib/libvirt/images/web01-0.raw");
    let times = std::fs::metadata(&image).unwrap().modified().unwrap();
    let mut bytes = std::fs::read(&image).unwrap();
    bytes[2_000_000] ^= 1;
    std::fs::write(&image, bytes).unwrap();
    std::fs::File::options().write(true).open(&image).unwrap().set_modified(times).unwrap();
    host.virsh(["autostart", "web01"]);
    std::fs::write(host.path("/var/lib/kvm-clone/host/names/web02"), "").unwrap();
    let changes = before.changes(&host.outside()).join("\n");
    for expected in [
        "! file /var/lib/libvirt/images/web01-0.raw",
        "+ file /etc/libvirt/qemu/autostart/web01.xml",
        "! domain web01",
        "+ file /var/lib/kvm-clone/host/names/web02",
    ] {
        assert!(changes.contains(expected), "{expected} is missing from:\n{changes}");
    }
}

#[test]
fn images_are_the_same_for_the_same_seed_and_sparse_where_asked() {
    use std::os::unix::fs::MetadataExt;
    let lab = Lab::up();
    let host = lab.a();
    let disk = Disk::raw(7 * MIB + 512);
    host.define(&Vm::new("one").disk(disk.clone()).disk(disk.clone().seed(2)));
    host.define(&Vm::new("two").disk(disk));
    let hash = |name: &str| host.blake3(format!("/var/lib/libvirt/images/{name}.raw"));
    assert_eq!(hash("one-0"), hash("two-0"));
    assert_ne!(hash("one-0"), hash("one-1"));

    let sparse = Disk::raw(64 * 1024 * MIB).content(Content::Sparse { data_bytes: 16 * MIB });
    host.define(&Vm::new("sparse").disk(sparse));
    let metadata = std::fs::metadata(host.path("/var/lib/libvirt/images/sparse-0.raw")).unwrap();
    assert_eq!(metadata.size(), 64 * 1024 * MIB);
    assert!((16 * MIB..18 * MIB).contains(&(metadata.blocks() * 512)), "{} blocks", metadata.blocks());
}

#[test]
fn faults_happen_and_pass() {
    let lab = Lab::up_with_loop();
    let host = lab.b();

    host.cut_link();
    assert_ne!(ssh(&lab, "b", "hostname"), "host-b", "a cut link answers nothing");
    host.join_link();
    assert_eq!(ssh(&lab, "b", "hostname"), "host-b");

    let mut session = Command::new("ssh").arg("-F").arg(lab.ssh_config()).args(["b", "sleep 60"]).spawn().unwrap();
    lab::wait_until(Duration::from_secs(10), "the session is there", || host.processes("sshd").len() > 1);
    host.kill(Service::Sshd);
    assert!(!session.wait().unwrap().success(), "a killed sshd takes its sessions along");
    assert!(ssh(&lab, "b", "true").contains("refused"));
    host.start(Service::Sshd);
    assert_eq!(ssh(&lab, "b", "hostname"), "host-b");

    // Defined and acknowledged, but libvirt never synced the directory: the next boot does not know it.
    host.run(["sync", "--file-system", "/var"]);
    host.define(&Vm::new("web01"));
    std::fs::write(host.path("/var/lib/libvirt/images/unsynced"), "x").unwrap();
    host.cut_power();
    host.boot();
    assert_eq!(host.state("web01"), None, "what was not synced does not survive a power cut");
    assert!(!host.path("/var/lib/libvirt/images/unsynced").exists());

    host.define(&Vm::new("web01"));
    host.run(["sync", "--file-system", "/var"]);
    host.cut_power();
    host.boot();
    assert_eq!(host.state("web01").as_deref(), Some("shut off"), "what was synced does");

    host.halt();
    host.boot();
    assert_eq!(host.state("web01").as_deref(), Some("shut off"), "and a mere halt loses nothing");
}

/// A process that has not ended, by its start time.
fn start_time(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit(") ").next()?.split(' ');
    (fields.next()? != "Z").then(|| fields.nth(18).unwrap().to_owned())
}

/// All processes of the host whose file system this is: they share its mount namespace.
fn processes_in(root: &std::path::Path) -> Vec<(u32, String)> {
    let namespace = std::fs::read_link(root.with_file_name("ns/mnt")).unwrap();
    let numbers = std::fs::read_dir("/proc").unwrap().flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbers
        .filter(|pid| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|found| found == namespace))
        .filter_map(|pid| Some((pid, start_time(pid)?)))
        .collect()
}

#[test]
fn nothing_is_left_of_a_lab() {
    let lab = Lab::up_with_loop();
    let directory = lab.directory().to_owned();
    let processes: Vec<_> = [lab.a(), lab.b()].into_iter().flat_map(|host| processes_in(&host.path("/"))).collect();
    assert!(processes.len() > 10, "both hosts have daemons: {processes:?}");
    let id = directory.file_name().unwrap().to_string_lossy().into_owned();
    drop(lab);
    assert!(!directory.exists());
    let links = Command::new("ip").args(["-brief", "link"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&links.stdout).contains(&id), "no link is left");
    let loops = Command::new("losetup").arg("--list").output().unwrap();
    assert!(!String::from_utf8_lossy(&loops.stdout).contains(&id), "no loop device is left");
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    assert!(!mounts.contains(&id), "no mount is left");
    for (pid, started) in processes {
        assert_ne!(start_time(pid), Some(started), "process {pid} is left");
    }
}
