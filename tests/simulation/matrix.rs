//! The crash matrix: every kind of step × where it is hit × what is done then × who is hit. `tests/crash/MATRIX.md` is
//! what the run says; `KVM_CLONE_WRITE=1` writes it anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use journal_format::{AttemptPurpose, StepRef};
use kvm_clone::engine::Ending;
use kvm_clone::world::Side;

use crate::durability::Survival;
use crate::faults::{Effect, Fault, FaultPlan};
use crate::history::{History, Life};
use crate::kinds::{CLEAN_UP_STEPS, STEPS, name_of_clean_up_step, name_of_step};
use crate::old_vm::OldVm;
use crate::scene::Shape;

const SEED: u64 = 41;
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/crash/MATRIX.md");
/// Operations in the middle of one effect that are tried, at most, each before and after it happened.
const MIDDLES_MAX: usize = 6;
/// Places of the second crash, spread over the second life.
const SECOND_CRASHES: u64 = 3;
/// The commit has no step: its intent is the barrier, its effect the mark.
const COMMIT: &str = "Commit";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Point {
    BeforeIntent,
    AfterIntent,
    MidEffect,
    AfterEffect,
    AfterEvent,
}

const POINTS: [(Point, &str); 5] = [
    (Point::BeforeIntent, "before intent"),
    (Point::AfterIntent, "after intent"),
    (Point::MidEffect, "mid-effect"),
    (Point::AfterEffect, "after effect"),
    (Point::AfterEvent, "after event"),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    rollback: bool,
    again: bool,
}

const WAYS: [(Way, &str); 4] = [
    (Way { rollback: false, again: false }, "resume"),
    (Way { rollback: true, again: false }, "rollback"),
    (Way { rollback: false, again: true }, "crash again during resume"),
    (Way { rollback: true, again: true }, "crash again during rollback"),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Controller,
    Source,
    Destination,
}

const VICTIMS: [(Victim, &str); 3] = [
    (Victim::Controller, "The controller dies"),
    (Victim::Source, "The source loses its power"),
    (Victim::Destination, "The destination loses its power, and everything that was not synced"),
];

impl Victim {
    fn fault(self) -> Fault {
        match self {
            Self::Controller => Fault::Crash,
            Self::Source => Fault::PowerCut(Side::Source, Survival::Nothing),
            Self::Destination => Fault::PowerCut(Side::Destination, Survival::Nothing),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Cell {
    victim: Victim,
    kind: &'static str,
    way: Way,
    point: Point,
}

/// The operations of one step in a clean clone: the append of its intent, and that of its end.
struct Span {
    shape: Shape,
    kind: &'static str,
    intent: Option<u64>,
    effect: std::ops::Range<u64>,
    event: u64,
}

impl Span {
    /// Where the victim is hit: operation, and whether it happened first.
    fn hits(&self, point: Point) -> Vec<(u64, Effect)> {
        let middles = || {
            let step = (self.effect.end - self.effect.start).div_ceil(MIDDLES_MAX as u64).max(1);
            let chosen = self.effect.clone().step_by(usize::try_from(step).unwrap());
            chosen.flat_map(|operation| [(operation, Effect::Never), (operation, Effect::First)]).collect()
        };
        match point {
            Point::BeforeIntent => vec![(self.intent.unwrap_or(self.effect.start), Effect::Never)],
            Point::AfterIntent => self.intent.map(|intent| (intent, Effect::First)).into_iter().collect(),
            Point::MidEffect => middles(),
            Point::AfterEffect => vec![(self.event, Effect::Never)],
            Point::AfterEvent => vec![(self.event, Effect::First)],
        }
    }
}

/// What is read of the source and written on the destination happens in these: they are tried with a device on either side, and a
/// flattened chain, for a disk as well.
const COPYING: [&str; 4] = ["ClaimDevice", "TransferImage", "VerifyImage", COMMIT];

/// One disk is enough: every kind is there. A VM that runs is replaced, so that the steps of replacing are there too.
fn all_spans() -> Vec<Span> {
    let old = OldVm { autostart: false, ..OldVm::running() };
    let file = Shape { disks: 1, start: true, old: Some(old), snapshots: true, ..Shape::plain() };
    let others = [Shape { device: true, ..file }, Shape { flattened: true, ..file }, Shape { target: true, ..file }];
    let others = others.into_iter().flat_map(spans).filter(|span| COPYING.contains(&span.kind));
    let base = spans(Shape { disks: 2, base: true, ..file }).into_iter().filter(|span| span.kind == "HoldBase");
    spans(file).into_iter().chain(others).chain(base).collect()
}

/// Where each kind of step is in a clean clone.
fn spans(shape: Shape) -> Vec<Span> {
    let mut history = History::new(shape, SEED);
    let (life, world) = history.live_traced(AttemptPurpose::Run);
    assert_eq!(life, Life::Ended(Ending::Committed { warnings: Vec::new() }));
    let trace = world.trace();
    let find = |told: &str| trace.iter().position(|line| line.starts_with(told)).map(|at| at as u64);
    let plan = &history.scene.plan;
    let forward = (0..).zip(&plan.steps).map(|(index, step)| (StepRef::Forward(index), name_of_step(*step)));
    let clean_up =
        (0..).zip(&plan.clean_up).map(|(index, step)| (StepRef::CleanUp(index), name_of_clean_up_step(*step)));
    let mut spans: Vec<Span> = forward
        .chain(clean_up)
        .map(|(place, kind)| {
            let intent = find(&format!("journal: Started {{ step: {place:?} }}"));
            let event = find(&format!("journal: Done {{ step: {place:?},"));
            let (Some(intent), Some(event)) = (intent, event) else { panic!("a clean clone has no {kind}") };
            assert!(intent + 1 < event, "{kind} has no effect");
            Span { shape, kind, intent: Some(intent), effect: intent + 1..event, event }
        })
        .collect();
    let barrier = spans.iter().find(|span| span.kind == "StopOldVm").expect("the last step").event + 1;
    let committed = find("journal: Committed").expect("a clean clone commits");
    let at = spans.iter().position(|span| span.kind == "RetireOldVm").expect("there is a clean-up");
    spans.insert(at, Span { shape, kind: COMMIT, intent: None, effect: barrier..committed, event: committed });
    spans
}

/// What this life brought to its end. A commit with something left, or a refusal, goes on.
fn settled_by(life: Life) -> Option<Ending> {
    match life {
        Life::Ended(Ending::Committed { warnings }) if !warnings.is_empty() => None,
        Life::Crashed | Life::Ended(Ending::Suspended(_) | Ending::Refused(_)) => None,
        Life::Ended(ending) => Some(ending),
    }
}

/// One history: hit once, or twice, then to the end. Returns how it ended and how many operations the second life had.
fn live((shape, cell): (Shape, Cell), hit: (u64, Effect), second: Option<u64>) -> Result<(&'static str, u64), String> {
    let mut history = History::new(shape, SEED);
    let (life, world) = history.live(AttemptPurpose::Run, FaultPlan::at(hit.0, cell.victim.fault(), hit.1));
    assert!(world.is_spent(), "operation {} was never reached", hit.0);
    let marked = history.scene.world.with(|core| history.oracle.borrow().is_marked(core));
    let purpose = if cell.way.rollback { AttemptPurpose::Rollback } else { AttemptPurpose::Resume };
    let mut operations = 0;
    let mut settled = settled_by(life);
    if settled.is_none() && cell.way.again {
        let faults = second.map_or_else(FaultPlan::none, |at| {
            FaultPlan::at(at, cell.victim.fault(), if at % 2 == 0 { Effect::Never } else { Effect::First })
        });
        let (life, world) = history.live(purpose, faults);
        operations = world.operations();
        settled = settled_by(life);
    }
    let ending = settled.or_else(|| history.settle(purpose));
    let verdict = history.verdict(ending.as_ref(), cell.way.rollback);
    let told = match &ending {
        Some(Ending::Committed { .. }) if marked && cell.way.rollback => Ok("clone (committed)"),
        Some(Ending::Committed { .. }) if !cell.way.rollback => Ok("clone"),
        Some(Ending::Committed { .. }) => Err("committed, though a rollback was asked for".to_owned()),
        Some(Ending::RolledBack { .. }) if marked => Err("rolled back in spite of the mark".to_owned()),
        Some(Ending::RolledBack { .. }) if cell.way.rollback => Ok("as before"),
        other => Err(format!("it came to {other:?}")),
    };
    let replay = format!("{cell:?}, {hit:?}, again at {second:?}; {shape:?}");
    verdict.and(told).map(|told| (told, operations)).map_err(|broken| history.report(&broken, &replay))
}

/// All histories of one cell. They must all end alike.
fn fill(cell: Cell, span: &Span) -> Result<(BTreeSet<&'static str>, u64), String> {
    let (mut endings, mut histories) = (BTreeSet::new(), 0);
    for hit in span.hits(cell.point) {
        let (ending, operations) = live((span.shape, cell), hit, None)?;
        endings.insert(ending);
        histories += 1;
        let again = if cell.way.again { SECOND_CRASHES.min(operations) } else { 0 };
        for place in 0..again {
            let at = operations * (2 * place + 1) / (2 * again) + hit.0 % 3;
            endings.insert(live((span.shape, cell), hit, Some(at.min(operations - 1)))?.0);
            histories += 1;
        }
    }
    Ok((endings, histories))
}

fn page(cells: &BTreeMap<Cell, BTreeSet<&'static str>>, kinds: &[&'static str]) -> String {
    let mut page = "# The crash matrix\n\n\
        Every kind of step, hit at every point, and what is done then. Each cell is at least one history of the real engine and \
        steps in\nthe simulated world (where images are copied: one each with a file, a device on either side and a flattened chain for a disk), judged by an oracle that knows nothing of them; mid-effect, up to six operations are hit, \
        each before and\nafter it happened, and a second crash comes at three places of the second life. `clone`: the whole clone \
        is there, byte for byte, in\nthe place of a VM that ran, and nothing else changed. `as before`: nothing of the transaction is left, and that VM runs again. `clone (committed)`: \
        the commit mark was there, so\nthe rollback was refused and the clone finished. Commit has no event before its effect.\n\n\
        Written by `KVM_CLONE_WRITE=1 cargo test --test simulation matrix`; a test compares.\n"
        .to_owned();
    let points: Vec<_> = POINTS.iter().map(|(_, name)| *name).collect();
    let row = |columns: &[&str]| format!("| {} |\n", columns.join(" | "));
    for (victim, title) in VICTIMS {
        page += &["\n## ", title, "\n\n"].concat();
        page += &row(&[&["step", "then"], points.as_slice()].concat());
        page += &row(&["---"; POINTS.len() + 2]);
        for kind in kinds {
            for (way, name) in WAYS {
                let endings = POINTS.map(|(point, _)| {
                    let endings: Vec<_> = cells[&Cell { victim, kind, way, point }].iter().copied().collect();
                    if endings.is_empty() { "–".to_owned() } else { endings.join(", ") }
                });
                let endings: Vec<_> = endings.iter().map(String::as_str).collect();
                page += &row(&[&[*kind, name], endings.as_slice()].concat());
            }
        }
    }
    page
}

#[test]
fn the_crash_matrix_is_the_one_that_is_published() {
    let spans = all_spans();
    let mut jobs = Vec::new();
    for span in &spans {
        for (victim, _) in VICTIMS {
            for (way, _) in WAYS {
                jobs.extend(POINTS.map(|(point, _)| (Cell { victim, kind: span.kind, way, point }, span)));
            }
        }
    }
    let (next, filled) = (AtomicUsize::new(0), Mutex::new((BTreeMap::new(), 0, Vec::new())));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, std::num::NonZero::get) {
            scope.spawn(|| {
                while let Some((cell, span)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = fill(*cell, span);
                    let (cells, histories, broken) = &mut *filled.lock().unwrap();
                    match outcome {
                        Ok((endings, count)) => {
                            *histories += count;
                            cells.entry(*cell).or_insert_with(BTreeSet::new).extend(endings);
                        }
                        Err(story) => broken.push(story),
                    }
                }
            });
        }
    });
    let (cells, histories, broken) = filled.into_inner().unwrap();
    println!("matrix\tcells\t{}\nmatrix\thistories\t{histories}\nmatrix\tviolations\t{}", cells.len(), broken.len());
    assert!(broken.is_empty(), "{} broken, the first: {}", broken.len(), broken[0]);
    let kinds: Vec<_> = STEPS.iter().chain(&[COMMIT]).chain(CLEAN_UP_STEPS).copied().collect();
    let visited: BTreeSet<_> = cells.keys().map(|cell| cell.kind).collect();
    assert_eq!(visited, kinds.iter().copied().collect(), "every kind of step has its cells");
    let page = page(&cells, &kinds);
    if std::env::var_os("KVM_CLONE_WRITE").is_some() {
        std::fs::write(PAGE, &page).unwrap();
    }
    let published = std::fs::read_to_string(PAGE).unwrap_or_default();
    assert!(published == page, "{PAGE} is not what the run says; KVM_CLONE_WRITE=1 writes it");
}
