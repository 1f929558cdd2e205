//! The crash matrix against real hosts: at every journal boundary of a clone with two disks the real program dies by
//! SIGKILL, and is then resumed or rolled back; a part of the cells dies a second time on the way. Everything is judged
//! from outside.
//!
//! The boundaries are those of a clean run's journal, before and after each event: the one after `Started` and the one
//! before `Done` have the effect between them.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../course/mod.rs"]
mod course;
mod full_destination;
mod full_disk;
mod ground;
mod kills;
#[path = "../lab/mod.rs"]
mod lab;
mod libvirt_restarts;
mod power_cuts;
mod rounds;
#[allow(dead_code)]
#[path = "../simulation/seed.rs"]
mod seed;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Instant;

use ground::{Ground, records};
use journal_format::{EventV1, RecordV1};
use lab::Controller;

/// Labs that work side by side.
const LABS: usize = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    Before,
    After,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Resume,
    Rollback,
}

/// One crash and the way on from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Cell {
    sequence: u64,
    side: Side,
    way: Way,
    /// A second crash, this many boundaries further on.
    again: Option<u64>,
}

impl Cell {
    fn name(self, clean: &[RecordV1]) -> String {
        let event = format!("{:?}", clean[usize::try_from(self.sequence).unwrap()].event);
        let event: String = event.chars().take(60).collect();
        let again = self.again.map_or(String::new(), |further| format!(", and again {further} further on"));
        format!("{:?} {} ({event}), then {:?}{again}", self.side, self.sequence, self.way)
    }

    /// Records that are durable when the program has died there.
    fn records(self) -> u64 {
        self.sequence + u64::from(self.side == Side::After)
    }

    fn crash_at(self) -> String {
        format!("{}:{}", if self.side == Side::Before { "before" } else { "after" }, self.sequence)
    }
}

/// The commit mark is set just before this event.
fn committed(clean: &[RecordV1]) -> u64 {
    clean.iter().position(|record| record.event == EventV1::Committed).expect("a clean run commits") as u64
}

fn check(ground: &Ground, cell: Cell, clean: &[RecordV1]) {
    let name = cell.name(clean);
    let controller = die_and_recover(ground, cell, clean, &name);
    assert_eq!(controller.left_behind(), [] as [PathBuf; 0], "{name}");
}

fn die_and_recover(ground: &Ground, cell: Cell, clean: &[RecordV1], name: &str) -> Controller {
    let (controller, finished) = ground.run_until(Some(&cell.crash_at()));
    assert_eq!(finished.signal(), Some(9), "{name}: the program was to die there: {finished:?}");
    assert_eq!(records(&controller).len() as u64, cell.records(), "{name}: died elsewhere");
    if cell.records() == 0 {
        ground.assert_untouched(name);
        return controller;
    }
    let txn = controller.only_txn();
    let marked = (cell.sequence, cell.side) >= (committed(clean), Side::Before);
    match cell.way {
        Way::Resume => {
            crash_again(&controller, "resume", cell, &txn);
            controller.run(["resume", &txn]).expect(0);
            assert_eq!(controller.status(&txn), "committed", "{name}");
        }
        Way::Rollback if marked => {
            let crashed = ground.lab.outside();
            controller.run(["rollback", &txn]).expect(5);
            let (a, b) = ground.lab.outside();
            crashed.0.assert_same(&a, &format!("{name}: refused"));
            crashed.1.assert_same(&b, &format!("{name}: refused"));
            controller.run(["resume", &txn]).expect(0);
        }
        Way::Rollback => {
            crash_again(&controller, "rollback", cell, &txn);
            controller.run(["rollback", &txn]).expect(0);
            assert_eq!(controller.status(&txn), "rolled_back", "{name}");
            ground.assert_untouched(name);
            return controller;
        }
    }
    ground.assert_cloned_and_clear(name);
    controller.run(["rollback", &txn]).expect(5);
    controller
}

/// Dies once more on the way, unless the way ends before.
fn crash_again(controller: &Controller, command: &str, cell: Cell, txn: &str) {
    if let Some(further) = cell.again {
        let at = format!("after:{}", cell.records() + further);
        let finished = controller.clone().env("KVM_CLONE_CRASH_AT", &at).run([command, txn]);
        assert!(finished.signal() == Some(9) || finished.code() == Some(0), "{cell:?}: {finished:?}");
    }
}

#[test]
fn at_every_journal_boundary_resume_completes_and_rollback_restores() {
    let began = Instant::now();
    let first = Ground::new();
    let (controller, finished) = first.run_until(None);
    finished.expect(0);
    let clean = records(&controller);
    first.assert_cloned_and_clear("a clean run");

    let mut cells = Vec::new();
    for sequence in 0..clean.len() as u64 {
        for side in [Side::Before, Side::After] {
            for way in [Way::Resume, Way::Rollback] {
                // Every third cell dies twice, at another distance each time.
                let number = cells.len() as u64;
                let again = number.is_multiple_of(3).then_some(number / 3 % 7);
                cells.push(Cell { sequence, side, way, again });
            }
        }
    }
    let expected: BTreeSet<_> = cells.iter().map(|cell| (cell.sequence, cell.side, cell.way)).collect();
    let queue = Mutex::new(cells.into_iter());
    let visited = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        let (queue, visited, clean) = (&queue, &visited, &clean);
        let work = move |ground: &Ground| {
            loop {
                let next = queue.lock().unwrap().next();
                let Some(cell) = next else { return };
                check(ground, cell, clean);
                visited.lock().unwrap().insert((cell.sequence, cell.side, cell.way), cell.again.is_some());
            }
        };
        for _ in 1..LABS {
            scope.spawn(move || work(&Ground::new()));
        }
        work(&first);
    });
    let visited = visited.into_inner().unwrap();
    assert_eq!(visited.keys().copied().collect::<BTreeSet<_>>(), expected, "every boundary is visited both ways");
    println!(
        "crash matrix: {} events, {} cells, {} of them with a second crash, {:.0} s",
        clean.len(),
        visited.len(),
        visited.values().filter(|again| **again).count(),
        began.elapsed().as_secs_f64()
    );
}
