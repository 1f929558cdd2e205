//! Several threads over the chunks of one image, with results in the order of the chunks.
//!
//! What a chunk needs (a buffer, credit) is given out in the order of the chunks, so the earliest one in work never waits
//! for what a later one holds.

use std::collections::BTreeMap;
use std::ops::Range;
use std::thread;

use kvm_clone_agent::protocol::Failure;

use crate::extents::{Extents, Unit};
use crate::failure::{errno, refused};
use crate::monitor::Monitor;

/// How far a lane may be ahead of the earliest unfinished unit, in units.
const UNITS_AHEAD_MAX: u64 = 1024;

/// A unit with something to it: what was got ready for its chunk, or what the work on it gave.
#[derive(Debug)]
pub enum Outcome<R> {
    /// Holes need no work.
    Holes(Range<u64>),
    /// A chunk.
    Chunk(u64, R),
}

struct Todo {
    extents: Extents,
    taken: u64,
}

struct Finished<R, E> {
    emitted: u64,
    waiting: BTreeMap<u64, Outcome<R>>,
    emit: E,
    failed: Option<Failure>,
}

/// Runs `work` on every chunk of the extents in so many threads, and gives the outcomes to `emit` in order. `prepare`
/// waits for what a chunk needs. Ends at the first failure of any of them, and then `stop` wakes who waits in `prepare`.
pub fn run<P, R: Send>(
    lanes: usize,
    extents: Extents,
    prepare: impl Fn() -> Result<P, Failure> + Sync,
    work: impl Fn(u64, P) -> Result<R, Failure> + Sync,
    emit: impl FnMut(Outcome<R>) -> Result<(), Failure> + Send,
    stop: impl Fn() + Sync,
) -> Result<(), Failure> {
    let todo = Monitor::new(Todo { extents, taken: 0 });
    let finished = Monitor::new(Finished { emitted: 0, waiting: BTreeMap::new(), emit, failed: None });
    let lane = || {
        if let Err(failed) = run_lane(&todo, &finished, &prepare, &work) {
            finished.change(|finished| _ = finished.failed.get_or_insert(failed));
            stop();
        }
    };
    thread::scope(|scope| {
        for _ in 1..lanes {
            if let Err(error) = thread::Builder::new().spawn_scoped(scope, lane) {
                let failed = refused("start a thread", errno(&error));
                finished.change(|finished| _ = finished.failed.get_or_insert(failed));
            }
        }
        lane();
    });
    match finished.lock().failed.take() {
        Some(failed) => Err(failed),
        None => Ok(()),
    }
}

fn run_lane<P, R, E: FnMut(Outcome<R>) -> Result<(), Failure>>(
    todo: &Monitor<Todo>,
    finished: &Monitor<Finished<R, E>>,
    prepare: &impl Fn() -> Result<P, Failure>,
    work: &impl Fn(u64, P) -> Result<R, Failure>,
) -> Result<(), Failure> {
    loop {
        let (number, prepared) = {
            let mut todo = todo.lock();
            let Some(unit) = todo.extents.peek()? else {
                return Ok(());
            };
            // The other lanes wait for this one meanwhile: what a chunk needs is given out in the order of the chunks.
            let prepared = match unit {
                Unit::Chunk(index) => Outcome::Chunk(index, prepare()?),
                Unit::Holes(ref chunks) => Outcome::Holes(chunks.clone()),
            };
            todo.extents.take(&unit);
            todo.taken += 1;
            (todo.taken - 1, prepared)
        };
        let outcome = match prepared {
            Outcome::Holes(chunks) => Outcome::Holes(chunks),
            Outcome::Chunk(index, ready) => Outcome::Chunk(index, work(index, ready)?),
        };
        finish(finished, number, outcome)?;
    }
}

/// Puts an outcome in its place, and emits everything that is in order by now.
fn finish<R, E: FnMut(Outcome<R>) -> Result<(), Failure>>(
    finished: &Monitor<Finished<R, E>>,
    number: u64,
    outcome: Outcome<R>,
) -> Result<(), Failure> {
    finished
        .wait_for(|finished| (finished.failed.is_some() || number < finished.emitted + UNITS_AHEAD_MAX).then_some(()));
    finished.change(|finished| {
        if let Some(failed) = &finished.failed {
            return Err(failed.clone());
        }
        finished.waiting.insert(number, outcome);
        while let Some(outcome) = finished.waiting.remove(&finished.emitted) {
            finished.emitted += 1;
            if let Err(failed) = (finished.emit)(outcome) {
                finished.failed = Some(failed.clone());
                return Err(failed);
            }
        }
        Ok(())
    })
}
