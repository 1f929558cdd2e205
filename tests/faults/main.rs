//! What goes wrong around a clone between two real hosts: agents, sshd, links and libvirtd that die, controllers that want
//! the same or are gone, people who start the source or the clone too early. And what it may cost: bytes sent again,
//! time, memory.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod fencing;
#[path = "../lab/mod.rs"]
mod lab;
#[cfg(feature = "crash-points")]
mod recovery;

use std::time::{Duration, Instant};

use lab::{Content, Controller, Disk, Host, Lab, Running, Service, Vm, staged_bytes, wait_until};
use nix::sys::signal::Signal;

const MIB: u64 = 1 << 20;
const IMAGES: &str = "/var/lib/libvirt/images";
/// Every loss of a host has to be noticed within this.
const LOSS_BOUND: Duration = Duration::from_secs(60);
const BOUND: Duration = Duration::from_secs(120);

/// A VM whose disk takes `seconds` at the limit that `start` sets.
fn vm(bytes: u64) -> Vm {
    Vm::new("web").disk(Disk::raw(bytes).content(Content::Random))
}

/// A clone in the middle of its transfer, slow enough to be caught there.
fn start(lab: &Lab, controller: &Controller) -> Running {
    let mut running = controller.spawn(["run", "a", "b", "web", "--bandwidth-limit", "10M"]);
    running.wait_until(BOUND, "16 MiB are staged", || staged_bytes(lab.b(), IMAGES) >= 16 * MIB);
    running
}

fn assert_cloned(lab: &Lab, vm: &Vm) {
    let details = lab.b().virsh(["domblklist", "web_clone", "--details"]);
    let images: Vec<_> = details.lines().filter_map(|line| line.split_whitespace().nth(3)).collect();
    assert_eq!(images.len(), vm.disks().len(), "{details}");
    for (disk, image) in vm.disks().iter().zip(images) {
        assert_eq!(lab.a().blake3(disk.path()), lab.b().blake3(image), "{image}");
    }
    assert_eq!(staged_bytes(lab.b(), IMAGES), 0);
}

fn resume(controller: &Controller, lab: &Lab, vm: &Vm) -> String {
    let txn = controller.only_txn();
    assert_eq!(controller.status(&txn), "interrupted");
    controller.run(["resume", &txn]).expect(0);
    assert_cloned(lab, vm);
    txn
}

fn agents(host: &Host) -> Vec<u32> {
    host.processes("kvm-clone-agent")
}

fn kill_agents(host: &Host) {
    let pids = agents(host);
    assert!(!pids.is_empty(), "no agent on host {}", host.name());
    for pid in pids {
        host.signal(pid, "KILL");
    }
}

/// Something breaks in mid-transfer: exit 3 in time, the host named; then it is mended and the clone resumed.
fn survives(breaks: impl Fn(&Lab), named: &str, mends: impl Fn(&Lab)) {
    let lab = Lab::up();
    let vm = vm(96 * MIB);
    lab.a().define(&vm);
    let controller = lab.controller();
    let running = start(&lab, &controller);
    breaks(&lab);
    let began = Instant::now();
    let finished = running.wait_for(LOSS_BOUND).expect(3).says(&[named, "resume", "rollback"]);
    println!("noticed after {:.1} s: {}", began.elapsed().as_secs_f64(), finished.stderr.trim());
    mends(&lab);
    resume(&controller, &lab, &vm);
}

#[test]
fn a_killed_agent_of_the_source() {
    survives(|lab| kill_agents(lab.a()), "a: ", |_| {});
}

#[test]
fn a_killed_agent_of_the_destination() {
    survives(|lab| kill_agents(lab.b()), "b: ", |_| {});
}

#[test]
fn a_killed_sshd_of_the_source() {
    survives(|lab| lab.a().kill(Service::Sshd), "a: ", |lab| lab.a().start(Service::Sshd));
}

#[test]
fn a_killed_sshd_of_the_destination() {
    survives(|lab| lab.b().kill(Service::Sshd), "b: ", |lab| lab.b().start(Service::Sshd));
}

#[test]
fn a_cut_link_of_the_source() {
    survives(|lab| lab.a().cut_link(), "a: ", |lab| lab.a().join_link());
}

#[test]
fn a_cut_link_of_the_destination() {
    survives(|lab| lab.b().cut_link(), "b: ", |lab| lab.b().join_link());
}

#[test]
fn a_killed_libvirtd_does_not_disturb_the_transfer() {
    let lab = Lab::up();
    let vm = vm(48 * MIB);
    lab.a().define(&vm);
    let controller = lab.controller();
    let running = start(&lab, &controller);
    lab.b().kill(Service::Libvirtd);
    let began = Instant::now();
    running.wait_for(BOUND).expect(3).says(&["b: ", "libvirt", "resume"]);
    assert!(began.elapsed() >= Duration::from_secs(30), "gave up after {:?} only", began.elapsed());
    let txn = controller.only_txn();
    let shown = controller.show(&txn);
    assert_eq!(shown["disks"][0]["ledger_bytes"], 48 * MIB, "the transfer went on to its end: {shown}");
    lab.b().start(Service::Libvirtd);
    resume(&controller, &lab, &vm);
}

fn refused(host: &Host, vm: &str) {
    let output = host.try_virsh(["start", vm]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("lock"), "virsh start {vm}: {said}");
}

#[test]
fn the_source_is_untouched_and_cannot_be_started_meanwhile() {
    let lab = Lab::up();
    let vm = vm(64 * MIB);
    lab.a().define(&vm);
    let (before, _) = lab.outside();
    let controller = lab.controller();
    let running = start(&lab, &controller);
    refused(lab.a(), "web");
    running.wait().expect(0);
    assert_cloned(&lab, &vm);
    let (after, _) = lab.outside();
    before.assert_same(&after, "its VM was cloned");
}

#[test]
#[cfg(feature = "crash-points")]
fn the_clone_cannot_be_started_between_define_and_commit() {
    use journal_format::{EventV1, StepRef, StepV1};
    use kvm_clone::journal::{self, StateDir};

    let lab = Lab::up();
    let vm = vm(2 * MIB);
    lab.a().define(&vm);
    // Where "defined" stands in the journal of a clean run of the same VM.
    let clean = lab.controller();
    clean.run(["run", "a", "b", "web", "--new-name", "first"]).expect(0);
    let state = StateDir::at(&clean.state_dir()).unwrap();
    let records = journal::read(&state, state.transactions().unwrap()[0]).unwrap().records;
    let EventV1::Begun { plan } = &records[0].event else { panic!("{:?}", records[0]) };
    let define = plan.steps.iter().position(|step| *step == StepV1::DefineDomain).unwrap();
    let defined = records.iter().position(|record| {
        matches!(record.event, EventV1::Done { step: StepRef::Forward(index), .. } if index as usize == define)
    });
    let controller = lab.controller();
    let stopping = controller.clone().env("KVM_CLONE_STOP_AT", &format!("after:{}", defined.unwrap()));
    let running = stopping.spawn(["run", "a", "b", "web"]);
    wait_until(BOUND, "the clone is defined", || lab.b().state("web_clone").is_some());
    wait_until(BOUND, "the controller stopped itself", || is_stopped(running.pid()));
    refused(lab.b(), "web_clone");
    running.signal(Signal::SIGCONT);
    running.wait().expect(0);
    assert_cloned(&lab, &vm);
}

#[cfg(feature = "crash-points")]
fn is_stopped(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default().contains(") T ")
}

#[test]
fn an_interrupted_transfer_sends_only_what_is_missing() {
    const BYTES: u64 = 192 * MIB;
    let lab = Lab::up();
    let vm = vm(BYTES);
    lab.a().define(&vm);
    let controller = lab.controller();
    let mut running = controller.spawn(["run", "a", "b", "web", "--bandwidth-limit", "30M"]);
    running.wait_until(BOUND, "half is staged", || staged_bytes(lab.b(), IMAGES) >= BYTES / 2);
    running.kill();
    // The agent may still be acknowledging: what is durable only grows.
    let txn = resume(&controller, &lab, &vm);
    let disk = &controller.show(&txn)["disks"][0];
    let (missing, sent) = (disk["missing_bytes"].as_u64().unwrap(), disk["sent_bytes"].as_u64().unwrap());
    println!("of {BYTES} bytes {missing} were missing after the kill, {sent} were sent by resume");
    assert!(missing <= BYTES / 2 + 64 * MIB, "{missing} of {BYTES} bytes were missing");
    assert!(sent <= missing + 64 * MIB, "{sent} bytes sent, {missing} missing");
}

/// CPU time of a process so far, its threads together.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let text = std::fs::read_to_string(stat).ok()?;
    let mut fields = text.rsplit_once(") ")?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
    Some((ticks()? + ticks()?) / f64::from(u32::try_from(per_second).ok()?))
}

fn peak_resident_bytes(status: &str) -> Option<u64> {
    let line = std::fs::read_to_string(status).ok()?;
    let line = line.lines().find(|line| line.starts_with("VmHWM:"))?.to_owned();
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

#[test]
fn a_sparse_disk_costs_what_its_data_costs() {
    const DATA: u64 = 1 << 30;
    let lab = Lab::up();
    let sparse = Vm::new("sparse").disk(Disk::raw(64 << 30).content(Content::Sparse { data_bytes: DATA }));
    let dense = Vm::new("dense").disk(Disk::raw(DATA).content(Content::Random));
    lab.a().define(&sparse);
    lab.a().define(&dense);
    // Of the three programs' CPUs: this machine is busy with other tests, which a clock would measure too.
    let mut seconds = Vec::new();
    for vm in ["dense", "sparse"] {
        let controller = lab.controller();
        let began = Instant::now();
        let mut running = controller.spawn(["run", "a", "b", vm]);
        let mut peaks = [0; 3];
        let mut cpu = std::collections::BTreeMap::new();
        while !running.has_ended() {
            let mut seen = vec![(0, format!("/proc/{}", running.pid()))];
            for (place, host) in [(1, lab.a()), (2, lab.b())] {
                let process = |pid| host.path(format!("/proc/{pid}")).display().to_string();
                seen.extend(agents(host).into_iter().map(|pid| (place, process(pid))));
            }
            for (place, process) in seen {
                let peak = peak_resident_bytes(&format!("{process}/status")).unwrap_or(0);
                peaks[place] = peaks[place].max(peak);
                if let Some(seconds) = cpu_seconds(&format!("{process}/stat")) {
                    cpu.insert(process, seconds);
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        running.wait().expect(0);
        seconds.push(cpu.values().sum::<f64>());
        let sent = controller.show(&controller.only_txn())["disks"][0]["sent_bytes"].as_u64().unwrap();
        let mib = peaks.map(|bytes| bytes / MIB);
        println!(
            "{vm}: {:.1} s, {:.1} s of CPU, {sent} bytes sent, peak MiB of controller and agents {mib:?}",
            began.elapsed().as_secs_f64(),
            seconds[seconds.len() - 1]
        );
        assert!(sent <= DATA + DATA / 10, "{sent} bytes sent for {DATA}");
        assert!(mib.iter().all(|peak| *peak > 0 && *peak <= 256), "{mib:?} MiB resident");
        let image = lab.b().virsh(["domblklist", &format!("{vm}_clone"), "--details"]);
        let image = image.split_whitespace().nth(3).unwrap().to_owned();
        let allocated = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(lab.b().path(&image)).unwrap()) * 512;
        assert!(allocated <= DATA + DATA / 10, "{allocated} bytes allocated for {DATA}");
    }
    // The zeros around a chunk are hashed for the root, up to the block that it lies in: that is the rest.
    assert!(seconds[1] <= 3.0 * seconds[0], "{seconds:?} s of CPU for the same data, dense and in 64 GiB");
}
