//! libvirtd of both hosts ends and is started again in the middle of every step of a clone: once its effect may begin, and
//! once before it is recorded. The program goes on to the commit, or says that it can be resumed, and is.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use journal_format::{EventV1, RecordV1};
use nix::sys::signal::Signal;

use super::ground::{Ground, RUN, SOURCE, records, stop_at};
use super::lab::{Disk, Host, Lab, Service, Vm, wait_until};

const LABS: usize = 3;
const ANSWER_BOUND: Duration = Duration::from_secs(30);

fn ground() -> Ground {
    Ground::of(Lab::up(), Vm::new(SOURCE).disk(Disk::raw(1 << 20)))
}

/// With KILL or in good order; its relays are cut either way.
fn restart(host: &Host, killed: bool) {
    if killed {
        host.kill(Service::Libvirtd);
    } else {
        host.stop(Service::Libvirtd);
    }
    host.start(Service::Libvirtd);
    wait_until(ANSWER_BOUND, "libvirtd answers", || host.try_virsh(["list"]).status.success());
}

/// Boundaries between a step's `Started` and its `Done`.
fn boundaries(clean: &[RecordV1]) -> Vec<String> {
    let of = |sequence: usize| match &clean[sequence].event {
        EventV1::Started { .. } => Some(format!("after:{sequence}")),
        EventV1::Done { .. } => Some(format!("before:{sequence}")),
        _ => None,
    };
    (0..clean.len()).filter_map(of).collect()
}

/// Whether the program noticed.
fn restarts_at(ground: &Ground, boundary: &str, killed: bool) -> bool {
    let when = format!("libvirtd restarted {boundary}, killed: {killed}");
    let controller = ground.lab.controller();
    let running = stop_at(&controller, boundary, RUN).expect("a clone gets there");
    restart(ground.lab.b(), killed);
    restart(ground.lab.a(), killed);
    running.signal(Signal::SIGCONT);
    let finished = running.wait();
    let suspended = finished.code() == Some(3);
    if suspended {
        let txn = controller.only_txn();
        let status = controller.status(&txn);
        assert!(status == "interrupted" || status == "cleaning_up", "{when}: {status}: {finished:?}");
        controller.run(["resume", &txn]).expect(0);
    } else {
        assert_eq!(finished.code(), Some(0), "{when}: {finished:?}");
    }
    ground.assert_cloned_and_clear(&when);
    suspended
}

#[test]
fn libvirt_may_restart_in_the_middle_of_every_step() {
    let began = Instant::now();
    let first = ground();
    let (controller, finished) = first.run_until(None);
    finished.expect(0);
    let clean = records(&controller);
    first.assert_cloned_and_clear("a clean run");
    let boundaries = boundaries(&clean);
    let (queue, suspended) = (Mutex::new(boundaries.iter().enumerate()), Mutex::new(0));
    std::thread::scope(|scope| {
        let work = |ground: &Ground| {
            loop {
                let next = queue.lock().unwrap().next();
                let Some((number, boundary)) = next else { return };
                let noticed = restarts_at(ground, boundary, number % 4 < 2);
                *suspended.lock().unwrap() += usize::from(noticed);
            }
        };
        for _ in 1..LABS {
            scope.spawn(move || work(&ground()));
        }
        work(&first);
    });
    let (suspended, seconds) = (suspended.into_inner().unwrap(), began.elapsed().as_secs());
    println!("{} restarts of libvirtd on both hosts, {suspended} suspended and resumed, {seconds} s", boundaries.len());
}
