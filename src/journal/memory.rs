//! A journal in memory, for worlds in memory. It keeps the rules of the one on disk (compare-and-append, poisoning)
//! and can crash at each boundary. What it holds is what would be durable.

use std::collections::BTreeMap;
use std::fmt;

use journal_format::{ChunkRecordV1, ChunkState, RecordV1, TxnId};

use super::{Journal, JournalError};

/// A place in a journal's life where a crash can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Boundary {
    /// The record of this number is about to be appended.
    BeforeAppend(u64),
    /// The record of this number is durable; the caller does not know yet.
    AfterAppend(u64),
    /// The n-th ledger write of this journal's life is about to happen.
    BeforeLedger(u64),
    /// The n-th ledger write is durable; the caller does not know yet.
    AfterLedger(u64),
}

/// Asked at each boundary; `true` means: crash here.
pub type CrashHook = Box<dyn FnMut(Boundary) -> bool>;

/// A journal in memory.
pub struct MemoryJournal {
    txn: TxnId,
    records: Vec<RecordV1>,
    ledger: BTreeMap<u32, BTreeMap<u64, ChunkState>>,
    ledger_writes: u64,
    poisoned: bool,
    hook: CrashHook,
}

impl fmt::Debug for MemoryJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryJournal")
            .field("txn", &self.txn)
            .field("records", &self.records.len())
            .field("poisoned", &self.poisoned)
            .finish_non_exhaustive()
    }
}

impl MemoryJournal {
    /// An empty journal. `Begun` is appended to it like any other record.
    pub fn new(txn: TxnId, hook: CrashHook) -> Self {
        Self { txn, records: Vec::new(), ledger: BTreeMap::new(), ledger_writes: 0, poisoned: false, hook }
    }

    /// The journal as the next process finds it: what was durable, another hook, not poisoned.
    #[must_use]
    pub fn reopen(self, hook: CrashHook) -> Self {
        Self { hook, poisoned: false, ..self }
    }

    /// The journal after the loss of its ledger, which may cost re-hashing and nothing else.
    #[must_use]
    pub fn without_ledger(self) -> Self {
        Self { ledger: BTreeMap::new(), ..self }
    }

    fn path(&self) -> String {
        format!("memory/{}", self.txn)
    }

    fn poisoned(&self) -> JournalError {
        JournalError::Poisoned { path: self.path() }
    }

    fn check_usable(&self) -> Result<(), JournalError> {
        if self.poisoned { Err(self.poisoned()) } else { Ok(()) }
    }

    fn reached(&mut self, boundary: Boundary) -> Result<(), JournalError> {
        self.poisoned = (self.hook)(boundary);
        self.check_usable()
    }

    fn write_ledger(
        &mut self,
        image: u32,
        write: impl FnOnce(&mut BTreeMap<u64, ChunkState>),
    ) -> Result<(), JournalError> {
        self.check_usable()?;
        let number = self.ledger_writes;
        self.reached(Boundary::BeforeLedger(number))?;
        write(self.ledger.entry(image).or_default());
        self.ledger_writes += 1;
        self.reached(Boundary::AfterLedger(number))
    }
}

impl Journal for MemoryJournal {
    fn txn(&self) -> TxnId {
        self.txn
    }

    fn records(&self) -> &[RecordV1] {
        &self.records
    }

    fn append(&mut self, expected: u64, record: RecordV1) -> Result<(), JournalError> {
        self.check_usable()?;
        let found = self.records.len() as u64;
        if expected != found || record.epoch < self.epoch() {
            return Err(JournalError::Conflict { path: self.path(), expected, found });
        }
        self.reached(Boundary::BeforeAppend(found))?;
        self.records.push(record);
        self.reached(Boundary::AfterAppend(found))
    }

    fn chunks(&self, image: u32) -> Result<BTreeMap<u64, ChunkState>, JournalError> {
        self.check_usable()?;
        Ok(self.ledger.get(&image).cloned().unwrap_or_default())
    }

    fn record_chunks(&mut self, image: u32, records: &[ChunkRecordV1]) -> Result<(), JournalError> {
        self.write_ledger(image, |ledger| ledger.extend(records.iter().map(|record| (record.index, record.state))))
    }

    fn forget_chunks(&mut self, image: u32) -> Result<(), JournalError> {
        self.write_ledger(image, BTreeMap::clear)
    }
}
