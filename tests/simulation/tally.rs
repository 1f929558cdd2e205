//! What a run of many histories did, as rows that can be added up over several runs.

use std::collections::BTreeMap;

use crate::course::{Course, Violation, print_rows};
use crate::history::History;

/// Counts of one history, or of many.
#[derive(Default)]
pub struct Tally {
    pub histories: u64,
    pub lives: u64,
    pub operations: u64,
    /// Faults that were injected, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    pub endings: BTreeMap<&'static str, u64>,
    pub violations: Vec<Violation>,
}

impl Tally {
    /// Takes in what one history came to.
    pub fn told_by(&mut self, history: &History, ending: &'static str) {
        self.lives += history.lives;
        self.operations += history.operations;
        self.faults = history.scene.world.with(|core| std::mem::take(&mut core.struck));
        self.endings.insert(ending, 1);
    }

    pub fn add(&mut self, other: Self) {
        self.histories += other.histories;
        self.lives += other.lives;
        self.operations += other.operations;
        for (counts, more) in [(&mut self.faults, other.faults), (&mut self.endings, other.endings)] {
            for (kind, count) in more {
                *counts.entry(kind).or_default() += count;
            }
        }
        self.violations.extend(other.violations);
    }

    /// Power cuts of either host.
    fn power_cuts(&self) -> u64 {
        self.faults.iter().filter(|(kind, _)| kind.starts_with("power cut")).map(|(_, count)| count).sum()
    }

    /// Prints all of it.
    pub fn print(&self, course: &Course) {
        let mut rows: Vec<(String, u64)> = vec![
            ("seconds".to_owned(), course.took().as_secs()),
            ("first seed".to_owned(), course.first()),
            ("histories".to_owned(), self.histories),
            ("lives of a controller".to_owned(), self.lives),
            ("operations".to_owned(), self.operations),
            ("faults".to_owned(), self.faults.values().sum()),
            ("power cuts".to_owned(), self.power_cuts()),
        ];
        rows.extend(self.faults.iter().map(|(kind, count)| (format!("fault: {kind}"), *count)));
        rows.extend(self.endings.iter().map(|(ending, count)| (format!("ending: {ending}"), *count)));
        print_rows("simulation", &rows, &self.violations);
    }
}
