//! One damaged journal: made from choices, opened, and judged by what is promised of it. Used by the seeded test and by
//! the fuzz target.
//!
//! The judge knows what was acknowledged and where the damage is, and nothing of how a journal is repaired. It never
//! panics: a broken promise is the text that it returns.

mod ground;
mod kinds;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use journal_format::{ChunkState, RecordV1};
use kvm_clone::journal::verify::{Verdict, export, verify};
use kvm_clone::journal::{self, FileJournal, Journal, JournalError, Repair, StateDir};

pub use ground::Ground;
use ground::Template;
use kinds::{Damage, Scope};

use super::example;

/// Where choices come from: a seed, or a fuzzer's bytes.
pub trait Choices {
    /// A number in `0..bound`; 0 when nothing is left to choose from.
    fn below(&mut self, bound: u64) -> u64;

    /// The same, as an index.
    fn index(&mut self, bound: usize) -> usize {
        usize::try_from(self.below(bound as u64)).unwrap_or(0)
    }
}

/// Numbers that follow from a seed (splitmix64).
pub struct Seeded(pub u64);

impl Choices for Seeded {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound.max(1)
    }
}

/// Numbers read from bytes, two at a time.
pub struct Bytes<'a>(pub &'a [u8]);

impl Choices for Bytes<'_> {
    fn below(&mut self, bound: u64) -> u64 {
        let (taken, rest) = self.0.split_at(self.0.len().min(2));
        self.0 = rest;
        // Spread over the whole range, so that large files are reached everywhere.
        let number = taken.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        number.wrapping_mul(0x9E37_79B9_7F4A_7C15) % bound.max(1)
    }
}

/// What became of a damaged journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// The damage hit nothing that counts: all is there, nothing was said.
    Untouched,
    /// All that was acknowledged is there, and it was said what was put right.
    Repaired,
    /// All events are there; a ledger was dropped, and that was said.
    LedgerDropped,
    /// Both copies were damaged: acknowledged events are gone, and it was said that the copies were not whole.
    Shortened,
    /// Refused, and nothing was written.
    Refused,
}

/// One case: its damage in a word, and what became of it.
pub struct Case {
    pub kind: String,
    pub outcome: Outcome,
}

/// A broken promise.
pub struct Broken {
    pub kind: String,
    pub what: String,
}

/// Damages one journal and opens it.
pub fn case(ground: &Ground, choices: &mut dyn Choices) -> Result<Case, Broken> {
    let template = ground.template(choices);
    let place = ground.place(template);
    let damage = Damage::choose(choices);
    let kind = damage.to_string();
    damage.inflict(&place, template, choices);
    judge(&place, template, damage)
        .map(|outcome| Case { kind: kind.clone(), outcome })
        .map_err(|what| Broken { what: format!("{}: {what}", template.name), kind })
}

/// Damages a journal as a fuzzer's bytes say: by choices, or by making them its log.
pub fn fuzz(ground: &Ground, data: &[u8]) -> Result<(), Broken> {
    let Some((kind, rest)) = data.split_first() else { return Ok(()) };
    if kind % 8 != 0 {
        return case(ground, &mut Bytes(data)).map(drop);
    }
    let template = ground.template(&mut Bytes(&[kind / 8]));
    let place = ground.place(template);
    foreign_log(&place, template, rest).map_err(|what| Broken { kind: "log:Foreign".to_owned(), what })
}

/// A log of any bytes beside a store that is whole: what was acknowledged is there, or nothing is written.
fn foreign_log(place: &Place, template: &Template, bytes: &[u8]) -> Result<(), String> {
    std::fs::write(place.log(), bytes).map_err(|error| error.to_string())?;
    let before = files(&place.directory());
    match open(place) {
        Ok(Opened { records, .. }) if !records.starts_with(&template.records[..template.acknowledged]) => {
            Err(format!("{} records, and not those that were acknowledged", records.len()))
        }
        Ok(Opened { ledgers, .. }) if ledgers != template.ledgers => {
            Err("a ledger of a whole store is another".to_owned())
        }
        Ok(_) => Ok(()),
        Err(JournalError::Damaged { .. } | JournalError::Newer { .. }) if files(&place.directory()) == before => Ok(()),
        Err(error) => Err(format!("refused with {error:?}")),
    }
}

/// The state directory of one case; it goes with this value.
pub struct Place {
    root: PathBuf,
    state: StateDir,
}

impl Place {
    fn directory(&self) -> PathBuf {
        self.state.txn_path(example::txn())
    }

    fn log(&self) -> PathBuf {
        self.directory().join("events.log")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

/// What opening it gave.
struct Opened {
    records: Vec<RecordV1>,
    ledgers: Vec<BTreeMap<u64, ChunkState>>,
    repairs: Vec<Repair>,
}

fn judge(place: &Place, template: &Template, damage: Damage) -> Result<Outcome, String> {
    let before = files(&place.directory());
    check_reader(place, template, damage)?;
    let report = verify(&place.state, example::txn()).map_err(|error| format!("verify: {error}"))?;
    if files(&place.directory()) != before {
        return Err("reading or verifying wrote something".to_owned());
    }
    let opened = match open(place) {
        Ok(opened) => opened,
        Err(error) => return judge_refusal(place, damage, &before, &error, &report.verdict),
    };
    let foretold = match report.verdict {
        Verdict::Sound => Vec::new(),
        Verdict::Repairable(repairs) => repairs,
        refused => return Err(format!("verify said {refused:?}, opening went well: {:?}", opened.repairs)),
    };
    if told(&foretold) != told(&opened.repairs) {
        return Err(format!("verify said {foretold:?}, opening said {:?}", opened.repairs));
    }
    if damage.must_be_refused() {
        return Err(format!("another history was taken for this one: {:?}", opened.repairs));
    }
    let outcome = judge_opened(template, damage, &opened)?;
    let again = open(place).map_err(|error| format!("opened, and then not again: {error}"))?;
    if !again.repairs.is_empty() || again.records != opened.records || again.ledgers != opened.ledgers {
        return Err(format!("opened twice, and the second time differs: {:?}", again.repairs));
    }
    let mut exported = Vec::new();
    export(&place.state, example::txn(), &mut exported).map_err(|error| format!("export after opening: {error}"))?;
    if exported != example::frames(example::txn(), &opened.records).concat() {
        return Err("the export after opening is not the records".to_owned());
    }
    Ok(outcome)
}

/// Repairs without the words of the error behind them: those name the copy that was opened.
fn told(repairs: &[Repair]) -> Vec<Repair> {
    let without = |repair: &Repair| match repair {
        Repair::StoreRebuilt { .. } => Repair::StoreRebuilt { why: String::new() },
        other => other.clone(),
    };
    repairs.iter().map(without).collect()
}

/// A reader without the lock gives what the log has, or says that it is damaged; never records that were not written.
fn check_reader(place: &Place, template: &Template, damage: Damage) -> Result<(), String> {
    match journal::read(&place.state, example::txn()) {
        Ok(_) if damage.must_be_refused() => Ok(()),
        Ok(snapshot) => {
            let count = snapshot.records.len();
            if !template.records.starts_with(&snapshot.records) {
                return Err("a reader saw records that were never written".to_owned());
            }
            if !damage.scope.has_log() && count < template.log_records {
                return Err(format!("a reader saw {count} records of a log that is whole"));
            }
            Ok(())
        }
        Err(JournalError::Damaged { .. }) if damage.scope.has_log() => Ok(()),
        Err(error) => Err(format!("a reader: {error}")),
    }
}

fn judge_refusal(
    place: &Place,
    damage: Damage,
    before: &[(PathBuf, Vec<u8>)],
    error: &JournalError,
    verdict: &Verdict,
) -> Result<Outcome, String> {
    match (error, verdict) {
        (JournalError::Damaged { what, .. }, Verdict::Damaged(verified)) if what == verified => {}
        _ => return Err(format!("refused with {error:?}, verify said {verdict:?}")),
    }
    if files(&place.directory()) != before {
        return Err("refused, and something was written".to_owned());
    }
    if damage.scope != Scope::Both && !damage.must_be_refused() {
        return Err(format!("refused with one copy whole: {error}"));
    }
    Ok(Outcome::Refused)
}

fn judge_opened(template: &Template, damage: Damage, opened: &Opened) -> Result<Outcome, String> {
    let Opened { records, ledgers, repairs } = opened;
    if !template.records.starts_with(records) {
        return Err(format!("records that were never written, or changed ones: {repairs:?}"));
    }
    for (disk, (ledger, expected)) in (0..).zip(ledgers.iter().zip(&template.ledgers)) {
        let named = repairs.iter().any(|repair| match repair {
            Repair::StoreRebuilt { .. } | Repair::LedgersStale => true,
            Repair::LedgerDropped { image: dropped } => *dropped == disk,
            _ => false,
        });
        if ledger != expected && !(ledger.is_empty() && named) {
            return Err(format!("the ledger of disk {disk} is another one: {repairs:?}"));
        }
        if ledger != expected && damage.scope == Scope::Log {
            return Err(format!("the ledger of disk {disk} was dropped with the second copy whole: {repairs:?}"));
        }
    }
    if records.len() < template.acknowledged {
        let lost = template.acknowledged - records.len();
        if damage.scope != Scope::Both {
            return Err(format!("{lost} acknowledged records are gone with one copy whole: {repairs:?}"));
        }
        if repairs.is_empty() {
            return Err(format!("{lost} acknowledged records are gone, and nothing was said"));
        }
        return Ok(Outcome::Shortened);
    }
    Ok(if *ledgers != template.ledgers {
        Outcome::LedgerDropped
    } else if *repairs == template.repairs {
        Outcome::Untouched
    } else {
        Outcome::Repaired
    })
}

fn open(place: &Place) -> Result<Opened, JournalError> {
    let (journal, repairs) = FileJournal::open(&place.state, example::txn())?;
    let ledgers = (0..ground::DISKS).map(|disk| journal.chunks(disk)).collect::<Result<_, _>>()?;
    Ok(Opened { records: journal.records().to_vec(), ledgers, repairs })
}

/// Every file below a directory with its bytes, but for `lock`, which names the last holder.
fn files(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if !path.ends_with("lock") {
            let bytes = std::fs::read(&path).unwrap_or_default();
            found.push((path, bytes));
        }
    }
    found.sort();
    found
}
