//! How far a test goes that could go on for ever, and the rows in which it says what it did: three columns divided by tabs
//! (which test, what, how many), so that they can be added up over several runs. A violation has a row of its own, with
//! its seed and the command that replays it.
//!
//! `KVM_CLONE_SEED` is the first seed (alone: the only one), `KVM_CLONE_SOAK_SECONDS` says for how long instead of how many;
//! how many is a variable of each test. A test crate takes this in with `#[path = "../course/mod.rs"] mod course;`.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::any::Any;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Seeds to be lived through: from one on, at most so many, for at most so long. Any number of threads may take them.
pub struct Course {
    first: u64,
    count: Option<u64>,
    bound: Option<Duration>,
    began: Instant,
    next: AtomicU64,
    ended: AtomicBool,
}

impl Course {
    /// What the environment asks for; nothing: so many from 0 on. `variable` says how many.
    pub fn of_environment(variable: &str, default: u64) -> Self {
        let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
        let (count, seed) = (number(variable), number("KVM_CLONE_SEED"));
        let bound = number("KVM_CLONE_SOAK_SECONDS").map(Duration::from_secs);
        let count = match (count, seed, bound) {
            (None, None, None) => Some(default),
            (None, Some(_), None) => Some(1),
            (count, ..) => count,
        };
        let (next, ended) = (AtomicU64::new(0), AtomicBool::new(false));
        Self { first: seed.unwrap_or(0), count, bound, began: Instant::now(), next, ended }
    }

    /// The first seed.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// The next seed that nobody has taken yet.
    pub fn next(&self) -> Option<u64> {
        if self.ended.load(Ordering::Relaxed) || self.bound.is_some_and(|bound| self.began.elapsed() >= bound) {
            return None;
        }
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        self.count.is_none_or(|count| index < count).then(|| self.first + index)
    }

    /// No further seeds.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Since its begin.
    pub fn took(&self) -> Duration {
        self.began.elapsed()
    }
}

/// One broken promise.
pub struct Violation {
    /// What it happened with.
    pub seed: u64,
    /// The whole story; its first line says what was broken.
    pub story: String,
    /// What a person types to see it again.
    pub replay: String,
}

/// Prints what a test did, past the capture of its output, so that `make test` shows it. The number of violations is the
/// last row.
pub fn print_rows(test: &str, counts: &[(String, u64)], violations: &[Violation]) {
    let counts = counts.iter().map(|(what, count)| format!("{test}\t{what}\t{count}\n"));
    let broken = violations.iter().map(|Violation { seed, story, replay }| {
        let what = story.lines().next().unwrap_or_default().replace('\t', " ");
        format!("{test}\tviolation with seed {seed}\t{what}; again: {replay}\n")
    });
    let rows = counts.chain([format!("{test}\tviolations\t{}\n", violations.len())]).chain(broken);
    let table: String = std::iter::once("\n".to_owned()).chain(rows).collect();
    // All at once: other tests of the same program write here too.
    std::io::stderr().write_all(table.as_bytes()).expect("write to stderr");
}

/// What a panic said.
pub fn said_by(panic: &(dyn Any + Send)) -> String {
    let said = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    said.unwrap_or("without words").to_owned()
}
