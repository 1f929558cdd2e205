//! The real program dies by SIGKILL at a journal boundary of a replacement, and is then resumed or rolled back: the old VM is as
//! before, running again if it ran, or the clone is in its place.
//!
//! `make test` visits each phase at boundaries that a seed picks. `KVM_CLONE_BOUNDARIES=all` visits every one, both ways, or, as
//! `2/5`, the second of five pieces of that; and so does `make soak`, in an order that its seed picks, as far as its time or
//! `KVM_CLONE_REPLACE_CELLS` reaches.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use journal_format::{EventV1, RecordV1, StepRef};
use kvm_clone::journal::{self, StateDir};

use crate::lab::Controller;
use crate::{CLONE, Ground, run};

/// Labs that work side by side.
const LABS: usize = 2;
const SEED: u64 = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    running: bool,
    stop: &'static str,
    keep: bool,
}

const KINDS: [Kind; 4] = [
    Kind { running: true, stop: "destroy", keep: false },
    Kind { running: true, stop: "save", keep: false },
    Kind { running: false, stop: "never", keep: false },
    Kind { running: true, stop: "destroy", keep: true },
];

impl Kind {
    fn arguments(self) -> Vec<&'static str> {
        let keep: &[&str] = if self.keep { &["--keep-replaced"] } else { &[] };
        [&["--force", "--stop", self.stop], keep].concat()
    }
}

/// Which cells are tried.
#[derive(Debug, Clone, Copy)]
enum Wanted {
    /// Each phase.
    Sample,
    /// Every boundary, both ways: this one of so many pieces, counted from 1.
    Piece(usize, usize),
    /// All, in this seed's order, until so much time has passed.
    Within(Duration, u64),
    /// So many of them, likewise.
    Count(usize, u64),
}

impl Wanted {
    fn read() -> Self {
        let variable = |name: &str| std::env::var(name).ok();
        let number = |name: &str| variable(name).and_then(|text| text.parse::<u64>().ok());
        let seed = number("KVM_CLONE_SEED").unwrap_or(SEED);
        if let Some(wanted) = variable("KVM_CLONE_BOUNDARIES") {
            let wanted = if wanted == "all" { "1/1" } else { &wanted };
            let (piece, of) = wanted.split_once('/').expect("KVM_CLONE_BOUNDARIES is `all`, or a piece such as 2/5");
            return Self::Piece(piece.parse().unwrap(), of.parse().unwrap());
        }
        match (number("KVM_CLONE_SOAK_SECONDS"), number("KVM_CLONE_REPLACE_CELLS")) {
            (Some(seconds), _) => Self::Within(Duration::from_secs(seconds), seed),
            (None, Some(count)) => Self::Count(usize::try_from(count).unwrap(), seed),
            (None, None) => Self::Sample,
        }
    }
}

/// The next random number of a sequence.
fn draw(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

#[derive(Debug, Clone, Copy)]
struct Cell {
    kind: Kind,
    sequence: usize,
    after: bool,
    rollback: bool,
}

pub fn records(controller: &Controller) -> Vec<RecordV1> {
    let Ok(state) = StateDir::at(&controller.state_dir()) else { return Vec::new() };
    let transactions = state.transactions().unwrap_or_default();
    let read = transactions.first().map(|txn| journal::read(&state, *txn));
    read.map_or_else(Vec::new, |read| read.map_or_else(|_| Vec::new(), |snapshot| snapshot.records))
}

/// A clean replacement's journal.
fn clean(ground: &Ground, kind: Kind) -> Vec<RecordV1> {
    ground.put_old(kind.running);
    let uuid = ground.lab.b().virsh(["domuuid", CLONE]).trim().to_owned();
    let controller = ground.lab.controller();
    run(&controller, &kind.arguments()).expect(0);
    ground.assert_replaced(&uuid, kept(kind), &format!("a clean run, {kind:?}"));
    ground.clear();
    records(&controller)
}

fn kept(kind: Kind) -> &'static [&'static str] {
    if kind.keep {
        &["/var/lib/libvirt/images/web_clone-0.raw", "/var/lib/libvirt/images/web_clone-1.qcow2"]
    } else {
        &[]
    }
}

/// Which phase of a transaction a record belongs to.
fn phase(record: &RecordV1, plan: &journal_format::PlanV1) -> String {
    let step = match &record.event {
        EventV1::Started { step } | EventV1::Done { step, .. } => *step,
        other => return format!("{other:?}").split([' ', '{', '(']).next().unwrap().to_owned(),
    };
    let text = match step {
        StepRef::Forward(index) => format!("{:?}", plan.steps[index as usize]),
        StepRef::CleanUp(index) => format!("{:?}", plan.clean_up[index as usize]),
    };
    text.split([' ', '{']).next().unwrap().to_owned()
}

/// Phases in which the old VM is touched, or about to be: tried both ways, before and after each event.
const OF_THE_OLD_VM: [&str; 3] = ["StopOldVm", "RetireOldVm", "RenameClone"];

fn committed_at(records: &[RecordV1]) -> usize {
    records.iter().position(|record| record.event == EventV1::Committed).expect("a clean run commits")
}

fn cells(journals: &BTreeMap<Kind, Vec<RecordV1>>, wanted: Wanted) -> Vec<Cell> {
    let mut cells = Vec::new();
    for (number, (kind, records)) in (0u64..).zip(journals) {
        let Some(EventV1::Begun { plan }) = records.first().map(|record| &record.event) else { panic!("no plan") };
        let mut phases: BTreeMap<String, Vec<Cell>> = BTreeMap::new();
        for (sequence, record) in records.iter().enumerate() {
            for (after, rollback) in [(false, false), (true, false), (false, true), (true, true)] {
                // Once it is committed a rollback is refused: that is tried at the first boundary and no more.
                if !rollback || sequence <= committed_at(records) {
                    let cell = Cell { kind: *kind, sequence, after, rollback };
                    phases.entry(phase(record, plan)).or_default().push(cell);
                }
            }
        }
        for (at, (phase, all)) in (0u64..).zip(phases) {
            if !matches!(wanted, Wanted::Sample) {
                cells.extend(all);
                continue;
            }
            let mut state = SEED.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(number * 1_000 + at);
            // Every phase by one kind or another; those of the old VM by all, more than once.
            let picks = if OF_THE_OLD_VM.contains(&phase.as_str()) { 2 } else { u64::from((at + number) % 4 == 0) };
            for _ in 0..picks {
                cells.push(all[usize::try_from(draw(&mut state)).unwrap() % all.len()]);
            }
        }
    }
    if let Wanted::Within(_, seed) | Wanted::Count(_, seed) = wanted {
        let mut state = seed;
        for last in (1..cells.len()).rev() {
            cells.swap(last, usize::try_from(draw(&mut state)).unwrap() % (last + 1));
        }
    }
    match wanted {
        Wanted::Count(count, _) => cells.truncate(count),
        Wanted::Piece(piece, of) => {
            cells =
                cells.into_iter().enumerate().filter(|(at, _)| at % of + 1 == piece).map(|(_, cell)| cell).collect();
        }
        Wanted::Sample | Wanted::Within(..) => {}
    }
    cells
}

fn check(ground: &Ground, cell: Cell, clean: &[RecordV1]) {
    let name = format!("{cell:?}, {:.80}", format!("{:?}", clean[cell.sequence].event));
    let before = ground.put_old(cell.kind.running);
    let uuid = ground.lab.b().virsh(["domuuid", CLONE]).trim().to_owned();
    let controller = ground.lab.controller();
    let crash_at = format!("{}:{}", if cell.after { "after" } else { "before" }, cell.sequence);
    let finished = run(&controller.clone().env("KVM_CLONE_CRASH_AT", &crash_at), &cell.kind.arguments());
    assert_eq!(finished.signal(), Some(9), "{name}: the program was to die there: {finished:?}");
    if cell.sequence == 0 && !cell.after {
        ground.assert_as(&before, &name);
        return ground.clear();
    }
    let txn = controller.only_txn();
    if cell.rollback && cell.sequence < committed_at(clean) {
        let was_saved = cell.kind.stop == "save" && ground.lab.b().state(CLONE).as_deref() == Some("shut off");
        controller.run(["rollback", &txn]).expect(0);
        assert_eq!(controller.status(&txn), "rolled_back", "{name}");
        ground.assert_as(&before, &name);
        if was_saved {
            assert_restored(ground, &name);
        }
    } else {
        if cell.rollback {
            controller.run(["rollback", &txn]).expect(5);
        }
        controller.run(["resume", &txn]).expect(0);
        assert_eq!(controller.status(&txn), "committed", "{name}");
        ground.assert_replaced(&uuid, kept(cell.kind), &name);
    }
    ground.clear();
}

/// QEMU was started last to take a memory in, and did not boot.
fn assert_restored(ground: &Ground, when: &str) {
    let log = std::fs::read_to_string(ground.lab.b().path(format!("/var/log/libvirt/qemu/{CLONE}.log"))).unwrap();
    let last = log.rsplit("starting up libvirt").next().unwrap();
    assert!(last.contains("-incoming"), "{when}: it was booted, not restored: {last}");
}

/// What came of the cells.
#[derive(Default)]
struct Tally {
    resumed: u64,
    rolled_back: u64,
    broken: Vec<String>,
}

impl Tally {
    fn count(&mut self, cell: Cell, clean: &[RecordV1]) {
        if cell.rollback && cell.sequence < committed_at(clean) {
            self.rolled_back += 1;
        } else {
            self.resumed += 1;
        }
    }
}

#[test]
fn at_each_phase_the_old_vm_is_as_before_or_the_clone_is_in_its_place() {
    let (began, wanted) = (Instant::now(), Wanted::read());
    let first = Ground::new();
    let journals: BTreeMap<Kind, Vec<RecordV1>> = KINDS.into_iter().map(|kind| (kind, clean(&first, kind))).collect();
    let cells = cells(&journals, wanted);
    let planned = cells.len();
    let (queue, tally) = (Mutex::new(cells.into_iter()), Mutex::new(Tally::default()));
    let is_over = || matches!(wanted, Wanted::Within(time, _) if began.elapsed() >= time);
    std::thread::scope(|scope| {
        let (queue, tally, journals, is_over) = (&queue, &tally, &journals, &is_over);
        let work = move |mut ground: Ground| {
            while !is_over() {
                let next = queue.lock().unwrap().next();
                let Some(cell) = next else { return };
                let clean = &journals[&cell.kind];
                let lived = catch_unwind(AssertUnwindSafe(|| check(&ground, cell, clean)));
                let mut tally = tally.lock().unwrap();
                tally.count(cell, clean);
                if lived.is_err() {
                    tally.broken.push(format!("{cell:?}"));
                    // What is left of it would count against the next one.
                    ground = Ground::new();
                }
            }
        };
        for _ in 1..LABS {
            scope.spawn(move || work(Ground::new()));
        }
        work(first);
    });
    let Tally { resumed, rolled_back, broken } = tally.into_inner().unwrap();
    let seed = if let Wanted::Within(_, seed) | Wanted::Count(_, seed) = wanted { seed } else { SEED };
    for (what, count) in [
        ("cells", planned as u64),
        ("killed and resumed", resumed),
        ("killed and rolled back", rolled_back),
        ("seconds", began.elapsed().as_secs()),
        ("violations", broken.len() as u64),
    ] {
        println!("replace\t{what}\t{count}");
    }
    for cell in &broken {
        println!("replace\tviolation with seed {seed}\t{cell}");
    }
    assert!(broken.is_empty(), "{} broken: {broken:#?}", broken.len());
}

/// After `--stop save` a rollback brings the guest back with its memory: QEMU is started to take that in, and does not boot.
#[test]
fn a_saved_guest_comes_back_with_its_memory() {
    let ground = Ground::new();
    let kind = KINDS[1];
    let clean = clean(&ground, kind);
    let committed = committed_at(&clean);
    let before = ground.put_old(true);
    let controller = ground.lab.controller();
    let dying = controller.clone().env("KVM_CLONE_CRASH_AT", &format!("after:{}", committed - 1));
    assert_eq!(run(&dying, &kind.arguments()).signal(), Some(9));
    assert_eq!(ground.lab.b().state(CLONE).as_deref(), Some("shut off"));
    controller.run(["rollback", &controller.only_txn()]).expect(0);
    ground.assert_as(&before, "rolled back after a save");
    assert_restored(&ground, "rolled back after a save");
    ground.clear();
}

/// A guest that does not listen is switched off after a minute, and the operator is told.
#[test]
fn a_guest_that_does_not_shut_down_is_switched_off() {
    let ground = Ground::new();
    ground.put_old(true);
    let uuid = ground.lab.b().virsh(["domuuid", CLONE]).trim().to_owned();
    let finished = run(&ground.lab.controller(), &["--force"]).expect(0);
    assert!(finished.stderr.contains("did not shut down within 60 seconds"), "{}", finished.stderr);
    ground.assert_replaced(&uuid, &[], "after a guest that does not listen");
}
