//! What can happen to the bytes of a journal, in either copy or in both.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use journal_format::TxnId;

use super::ground::Template;
use super::{Choices, Place, example};

/// Bytes of a block that is swapped, repeated or lost as a whole.
const BLOCK_BYTES: usize = 512;
/// Bytes of garbage at most.
const GARBAGE_BYTES_MAX: u64 = 2000;

/// Which copies are damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Log,
    Store,
    Both,
}

impl Scope {
    pub fn has_log(self) -> bool {
        self != Self::Store
    }
}

/// Damage to the bytes of any file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileDamage {
    Flip,
    Truncate,
    Garbage,
    Zeros,
    SwapBlocks,
    RepeatBlock,
    Empty,
    Missing,
}

const FILE_DAMAGES: [FileDamage; 8] = [
    FileDamage::Flip,
    FileDamage::Truncate,
    FileDamage::Garbage,
    FileDamage::Zeros,
    FileDamage::SwapBlocks,
    FileDamage::RepeatBlock,
    FileDamage::Empty,
    FileDamage::Missing,
];

/// Damage to `events.log`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LogDamage {
    Bytes(FileDamage),
    SwapRecords,
    RepeatRecord,
    LoseRecord,
    /// Frames of another transaction among ours.
    Strangers,
    /// From one record on another history, every frame of it whole.
    Parted,
}

/// Damage to the second copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StoreDamage {
    /// One of its files: `db` in most cases.
    Bytes(FileDamage),
    TornSnapshot,
    Gone,
}

/// What is done to one journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damage {
    pub scope: Scope,
    log: LogDamage,
    store: StoreDamage,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let log = match self.log {
            LogDamage::Bytes(bytes) => format!("{bytes:?}"),
            log => format!("{log:?}"),
        };
        let store = match self.store {
            StoreDamage::Bytes(bytes) => format!("{bytes:?}"),
            store => format!("{store:?}"),
        };
        match self.scope {
            Scope::Log => write!(f, "log:{log}"),
            Scope::Store => write!(f, "store:{store}"),
            Scope::Both => write!(f, "both:{log}"),
        }
    }
}

impl Damage {
    /// Any damage.
    pub fn choose(choices: &mut dyn Choices) -> Self {
        let scope = [Scope::Log, Scope::Store, Scope::Both][choices.index(3)];
        let bytes = FILE_DAMAGES[choices.index(FILE_DAMAGES.len())];
        let log = match choices.below(10) {
            0 => LogDamage::SwapRecords,
            1 => LogDamage::RepeatRecord,
            2 => LogDamage::LoseRecord,
            // Where the other copy is damaged too, nobody could tell which history is ours.
            3 if scope == Scope::Log => LogDamage::Strangers,
            4 if scope == Scope::Log => LogDamage::Parted,
            _ => LogDamage::Bytes(bytes),
        };
        let bytes = FILE_DAMAGES[choices.index(FILE_DAMAGES.len())];
        let store = match choices.below(10) {
            0 => StoreDamage::TornSnapshot,
            1 => StoreDamage::Gone,
            _ => StoreDamage::Bytes(bytes),
        };
        Self { scope, log, store }
    }

    /// Two chains that part ways, or frames of somebody else: both copies are to be kept.
    pub fn must_be_refused(self) -> bool {
        self.scope == Scope::Log && matches!(self.log, LogDamage::Strangers | LogDamage::Parted)
    }

    /// Does it.
    pub fn inflict(self, place: &Place, template: &Template, choices: &mut dyn Choices) {
        if self.scope != Scope::Store {
            damage_log(self.log, &place.log(), template, choices);
        }
        if self.scope != Scope::Log {
            damage_store(self.store, &store_of(&place.directory()), choices);
        }
    }
}

fn damage_log(damage: LogDamage, log: &Path, template: &Template, choices: &mut dyn Choices) {
    let mut frames = example::frames(example::txn(), &template.records[..template.log_records]);
    let count = frames.len();
    match damage {
        LogDamage::Bytes(bytes) => return damage_file(bytes, log, choices),
        LogDamage::SwapRecords => frames.swap(choices.index(count), choices.index(count)),
        LogDamage::RepeatRecord => {
            let (from, to) = (choices.index(count), choices.index(count + 1));
            frames.insert(to, frames[from].clone());
        }
        LogDamage::LoseRecord => drop(frames.remove(choices.index(count))),
        LogDamage::Strangers => {
            let stranger = example::frames(TxnId([7; 16]), &template.records[..=choices.index(count)]);
            let at = choices.index(count + 1);
            frames.splice(at..at, stranger);
        }
        LogDamage::Parted => {
            let mut records = template.records[..template.log_records].to_vec();
            records[choices.index(template.acknowledged)].at.0 += 1;
            frames = example::frames(example::txn(), &records);
        }
    }
    fs::write(log, frames.concat()).expect("the log is ours");
}

/// The directory of the store that counts.
fn store_of(directory: &Path) -> PathBuf {
    let mut stores: Vec<PathBuf> = fs::read_dir(directory)
        .expect("a copy of a template")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_dir())
        .collect();
    stores.sort();
    stores.pop().expect("a store")
}

fn damage_store(damage: StoreDamage, store: &Path, choices: &mut dyn Choices) {
    let mut files: Vec<PathBuf> = fs::read_dir(store)
        .expect("a store")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    match damage {
        StoreDamage::Gone => fs::remove_dir_all(store).expect("the store is ours"),
        StoreDamage::TornSnapshot => {
            let whole = files.iter().find(|file| file.to_string_lossy().contains("/snap."));
            let bytes = whole.map_or_else(|| vec![0x5a; 300], |file| fs::read(file).expect("a snapshot"));
            let torn = store.join("snap.0000000000000042.generating");
            fs::write(torn, &bytes[..choices.index(bytes.len() + 1)]).expect("the store is ours");
        }
        StoreDamage::Bytes(bytes) => {
            // Most of what counts is in one file.
            let file = if choices.below(3) > 0 { store.join("db") } else { files[choices.index(files.len())].clone() };
            damage_file(bytes, &file, choices);
        }
    }
}

fn damage_file(damage: FileDamage, file: &Path, choices: &mut dyn Choices) {
    let mut bytes = fs::read(file).expect("a file of a template");
    // What was never written is zeros in sled's file: damage belongs to the part that is used.
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(bytes.len(), |last| last + 1).max(1).min(bytes.len());
    let blocks = used.div_ceil(BLOCK_BYTES).max(1);
    let block = |number: usize, bytes: &[u8]| number * BLOCK_BYTES..((number + 1) * BLOCK_BYTES).min(bytes.len());
    match damage {
        FileDamage::Missing => return fs::remove_file(file).expect("the file is ours"),
        FileDamage::Empty => bytes.clear(),
        FileDamage::Truncate => bytes.truncate(choices.index(used.max(1))),
        FileDamage::Garbage => {
            let garbage: Vec<u8> =
                (0..=choices.below(GARBAGE_BYTES_MAX)).map(|_| choices.below(256).to_le_bytes()[0]).collect();
            bytes.extend(garbage);
        }
        FileDamage::Flip => {
            for _ in 0..=choices.below(4) {
                if used > 0 {
                    bytes[choices.index(used)] ^= 1 << choices.below(8);
                }
            }
        }
        FileDamage::Zeros => {
            let start = choices.index(used.max(1)).min(bytes.len());
            let end = (start + choices.index(2 * BLOCK_BYTES)).min(bytes.len());
            bytes[start..end].fill(0);
        }
        FileDamage::SwapBlocks => {
            let (one, two) = (block(choices.index(blocks), &bytes), block(choices.index(blocks), &bytes));
            let (first, second) = (bytes[one.clone()].to_vec(), bytes[two.clone()].to_vec());
            if first.len() == second.len() {
                bytes[one].copy_from_slice(&second);
                bytes[two].copy_from_slice(&first);
            }
        }
        FileDamage::RepeatBlock => {
            let (from, to) = (block(choices.index(blocks), &bytes), block(choices.index(blocks), &bytes));
            let length = from.len().min(to.len());
            bytes.copy_within(from.start..from.start + length, to.start);
        }
    }
    fs::write(file, bytes).expect("the file is ours");
}
