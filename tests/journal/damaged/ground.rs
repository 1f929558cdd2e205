//! Whole journals to be damaged: made once by the real journal, then copied for each case.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use journal_format::{ChunkRecordV1, ChunkState, ChunkValue, EventV1, PlanV1, RecordV1};
use kvm_clone::journal::{FileJournal, Journal, Repair, StateDir};

use super::{Choices, Place, example};

/// Disks whose ledgers are compared.
pub const DISKS: u32 = 2;

/// What the name of a ground begins with; its process's number follows.
const PREFIX: &str = "kvm-clone-damaged-";

/// A journal that is whole, and what is known of it.
pub struct Template {
    pub name: &'static str,
    directory: PathBuf,
    /// All records that were ever written.
    pub records: Vec<RecordV1>,
    /// How many of them both copies have: the others were not acknowledged.
    pub acknowledged: usize,
    /// How many of them `events.log` has.
    pub log_records: usize,
    /// By disk.
    pub ledgers: Vec<BTreeMap<u64, ChunkState>>,
    /// What opening it undamaged says.
    pub repairs: Vec<Repair>,
}

/// A directory with all templates; it goes with this value.
pub struct Ground {
    root: PathBuf,
    templates: Vec<Template>,
    places: AtomicU64,
}

impl Ground {
    /// Makes the templates below a directory that is there, best in memory.
    pub fn make(root: &Path) -> Self {
        remove_left_behind(root);
        let root = root.join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir(&root).expect("a directory of its own");
        let make = |name: &'static str, records: Vec<RecordV1>, opened: u32, chunks: u64| {
            template(&root.join(name), name, records, opened, chunks)
        };
        let all = example::transaction();
        let half = all[..14].to_vec();
        let mut templates = vec![
            make("begun", all[..1].to_vec(), 0, 0),
            make("half", half.clone(), 0, 40),
            make("finished", all.clone(), 1, 300),
            make("often-opened", half.clone(), 4, 90),
            make("large", large(), 1, 700),
        ];
        // A crash came between the two copies, either way round.
        let frames = example::frames(example::txn(), &half);
        let last = half.len() - 1;
        let mut behind = make("log-behind", half.clone(), 0, 12);
        fs::write(behind.directory.join("events.log"), frames[..last].concat()).expect("the log is ours");
        (behind.acknowledged, behind.log_records) = (last, last);
        behind.repairs = vec![Repair::LogRestored { from: last as u64, frames: 1 }];
        let mut ahead = make("log-ahead", half[..last].to_vec(), 0, 12);
        fs::write(ahead.directory.join("events.log"), frames.concat()).expect("the log is ours");
        (ahead.records, ahead.log_records) = (half, last + 1);
        ahead.repairs = vec![Repair::StoreCompleted { from: last as u64, frames: 1 }];
        templates.extend([behind, ahead]);
        Self { root, templates, places: AtomicU64::new(0) }
    }

    /// One of the templates.
    pub fn template(&self, choices: &mut dyn Choices) -> &Template {
        &self.templates[choices.index(self.templates.len())]
    }

    /// A copy of a template.
    pub fn place(&self, template: &Template) -> Place {
        let root = self.root.join(format!("case-{}", self.places.fetch_add(1, Ordering::Relaxed)));
        let place = Place { state: StateDir::at(&root).expect("an absolute path"), root };
        copy(&template.directory, &place.directory());
        place
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// Removes what processes left that were killed.
fn remove_left_behind(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if let Some(pid) = name.to_str().and_then(|name| name.strip_prefix(PREFIX))
            && !Path::new("/proc").join(pid).exists()
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn template(root: &Path, name: &'static str, records: Vec<RecordV1>, opened: u32, chunks: u64) -> Template {
    let state = StateDir::at(root).expect("an absolute path");
    let mut journal = FileJournal::create(&state, records[0].clone()).expect("a new journal");
    let directory = journal.directory().to_owned();
    for (number, record) in (0..).zip(&records).skip(1) {
        journal.append(number, record.clone()).expect("an append");
    }
    let mut ledgers = vec![BTreeMap::new(); DISKS as usize];
    for (disk, ledger) in (0..).zip(&mut ledgers) {
        // Written, taken back and written again, so that an earlier self of sled's has other chunks.
        let all: Vec<_> = (0..chunks / u64::from(disk + 1)).map(|index| chunk(index, disk)).collect();
        for batch in all.chunks(16) {
            journal.record_chunks(disk, batch).expect("a ledger write");
        }
        if chunks.is_multiple_of(20) {
            journal.forget_chunks(disk).expect("an emptying");
            journal.record_chunks(disk, &all[..all.len() / 2]).expect("a ledger write");
        }
        *ledger = journal.chunks(disk).expect("a ledger");
    }
    drop(journal);
    for _ in 0..opened {
        drop(FileJournal::open(&state, example::txn()).expect("an open"));
    }
    // Its size is what costs time here, and nothing but its name counts.
    let ballast = directory.join("ballast");
    if ballast.exists() {
        fs::write(ballast, b"").expect("the ballast is ours");
    }
    let count = records.len();
    Template { name, directory, records, acknowledged: count, log_records: count, ledgers, repairs: Vec::new() }
}

/// Records of which some are split over several values of the store.
fn large() -> Vec<RecordV1> {
    let plan = PlanV1 { source_definition: "x".repeat(60_000), ..example::plan() };
    let mut records = vec![example::record(0, 0, EventV1::Begun { plan: Box::new(plan) })];
    records.extend((1..30).map(|number| {
        let reason = "y".repeat(if number % 7 == 0 { 9_000 } else { 20 });
        example::record(number, 1, EventV1::Abandoned { reason })
    }));
    records
}

fn chunk(index: u64, disk: u32) -> ChunkRecordV1 {
    let value = ChunkValue([u8::try_from((index * 7 + u64::from(disk)) % 251).unwrap_or(0); 32]);
    ChunkRecordV1 { index, state: if index.is_multiple_of(3) { ChunkState::Zero } else { ChunkState::Data(value) } }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory of its own");
    for entry in fs::read_dir(from).expect("a template") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).expect("a copy");
        }
    }
}
