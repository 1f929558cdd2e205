//! What a run of many histories did, as a table that can be added up over several runs: one row a count, three columns
//! divided by tabs (`simulation`, what, how many). A violation has its own row, with its seed and the command that
//! replays it.

use std::collections::BTreeMap;
use std::time::Duration;

/// One broken promise.
pub struct Violation {
    pub seed: u64,
    /// The whole story; its first line says what was broken.
    pub story: String,
    /// What a person types to see it again.
    pub replay: String,
}

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

    /// The table.
    pub fn rows(&self, took: Duration) -> String {
        let mut rows: Vec<(String, u64)> = vec![
            ("histories".to_owned(), self.histories),
            ("lives of a controller".to_owned(), self.lives),
            ("operations".to_owned(), self.operations),
            ("seconds".to_owned(), took.as_secs()),
            ("faults".to_owned(), self.faults.values().sum()),
            ("power cuts".to_owned(), self.power_cuts()),
        ];
        rows.extend(self.faults.iter().map(|(kind, count)| (format!("fault: {kind}"), *count)));
        rows.extend(self.endings.iter().map(|(ending, count)| (format!("ending: {ending}"), *count)));
        rows.push(("violations".to_owned(), self.violations.len() as u64));
        let mut table: String = rows.iter().map(|(what, count)| format!("simulation\t{what}\t{count}\n")).collect();
        let broken = self.violations.iter().map(|Violation { seed, story, replay }| {
            let what = story.lines().next().unwrap_or_default();
            format!("simulation-violation\t{seed}\t{what}\t{replay}\n")
        });
        table.extend(broken);
        table
    }
}
