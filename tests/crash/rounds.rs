//! Rounds of one kind, each from its own seed, on several labs side by side. A round that breaks a promise is told with its
//! seed, and the next one finds a lab that is new.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use super::course::{Course, Violation, print_rows, said_by};
use super::ground::Ground;

/// After so many the rest would say nothing new.
const VIOLATIONS_MAX: usize = 20;

/// What a round counts, by kind.
pub type Counts = BTreeMap<&'static str, u64>;

/// Counts one more of a kind.
pub fn count(counts: &mut Counts, kind: &'static str) {
    *counts.entry(kind).or_default() += 1;
}

/// A kind of rounds.
pub struct Rounds<R> {
    /// Their name, in the rows that are printed.
    pub name: &'static str,
    /// The test that they are.
    pub test: &'static str,
    pub labs: usize,
    pub ground: fn() -> Ground,
    pub round: R,
}

impl<R: Fn(&Ground, u64, &mut Counts) + Sync> Rounds<R> {
    /// Goes the whole course, prints what came of it, and panics when a promise was broken. Returns what was counted.
    pub fn go(&self, course: &Course) -> Counts {
        let total = Mutex::new((Counts::new(), Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..self.labs {
                scope.spawn(|| self.work(course, &total));
            }
        });
        let (counts, violations) = total.into_inner().unwrap();
        let mut rows = vec![("seconds".to_owned(), course.took().as_secs()), ("first seed".to_owned(), course.first())];
        rows.extend(counts.iter().map(|(kind, count)| ((*kind).to_owned(), *count)));
        print_rows(self.name, &rows, &violations);
        assert!(violations.is_empty(), "{} rounds broke a promise; the rows above say which", violations.len());
        counts
    }

    fn work(&self, course: &Course, total: &Mutex<(Counts, Vec<Violation>)>) {
        let mut ground = None;
        while let Some(seed) = course.next() {
            let mut counts = Counts::from([("rounds", 1)]);
            let lived = catch_unwind(AssertUnwindSafe(|| {
                (self.round)(ground.get_or_insert_with(self.ground), seed, &mut counts);
            }));
            let (total, violations) = &mut *total.lock().unwrap();
            for (kind, count) in counts {
                *total.entry(kind).or_default() += count;
            }
            if let Err(panic) = lived {
                let replay = format!("KVM_CLONE_SEED={seed} cargo test --all-features --test crash {}", self.test);
                violations.push(Violation { seed, story: said_by(&*panic), replay });
                ground = None;
                if violations.len() >= VIOLATIONS_MAX {
                    course.end();
                }
            }
        }
    }
}
