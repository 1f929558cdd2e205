//! The engine's pen: an event goes to the journal first, and only then counts.

use std::collections::BTreeMap;
use std::rc::Rc;

use journal_format::{ChunkRecordV1, ChunkState, Epoch, EventV1, PlanV1, RecordV1, UnixMillis};

use super::{Journal, JournalError};
use crate::history::{History, IllegalRecord};
use crate::observer::Observer;

/// A journal, what it means, and who watches it.
pub struct Recorder<'a> {
    journal: &'a mut dyn Journal,
    /// Who watches.
    pub observer: &'a mut dyn Observer,
    history: History,
}

impl<'a> Recorder<'a> {
    /// Folds what is there.
    pub fn new(journal: &'a mut dyn Journal, observer: &'a mut dyn Observer) -> Result<Self, JournalError> {
        let history = History::of(journal.records()).map_err(|error| damaged(journal, &error))?;
        Ok(Self { journal, observer, history })
    }

    /// What happened so far.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// The plan.
    pub fn plan(&self) -> Rc<PlanV1> {
        Rc::clone(&self.history.plan)
    }

    /// Appends one event: durable when it returns.
    pub fn append(&mut self, at: UnixMillis, event: EventV1) -> Result<(), JournalError> {
        let (sequence, record) = self.recount(at, event)?;
        self.observer.appended(sequence, &record);
        Ok(())
    }

    /// Appends an event that nobody sees happen: it is of a past that is written anew.
    pub fn recount(&mut self, at: UnixMillis, event: EventV1) -> Result<(u64, RecordV1), JournalError> {
        let epoch = match &event {
            EventV1::AttemptOpened { epoch, .. } => *epoch,
            _ => self.history.epoch,
        };
        let record = RecordV1 { at, epoch, event };
        // Checked before it is written: a record that this program could not read back must never be durable.
        let mut next = self.history.clone();
        next.push(&record).map_err(|error| damaged(self.journal, &error))?;
        let sequence = self.history.records;
        self.journal.append(sequence, record.clone())?;
        self.history = next;
        Ok((sequence, record))
    }

    /// The epoch of this attempt.
    pub fn epoch(&self) -> Epoch {
        self.history.epoch
    }

    /// The ledger of one image.
    pub fn chunks(&self, image: u32) -> Result<BTreeMap<u64, ChunkState>, JournalError> {
        self.journal.chunks(image)
    }

    /// Adds to the ledger of one image.
    pub fn record_chunks(&mut self, image: u32, records: &[ChunkRecordV1]) -> Result<(), JournalError> {
        self.journal.record_chunks(image, records)
    }

    /// Replaces the ledger of one image. A crash in between loses entries, never keeps stale ones.
    pub fn replace_chunks(&mut self, image: u32, chunks: &BTreeMap<u64, ChunkState>) -> Result<(), JournalError> {
        self.journal.forget_chunks(image)?;
        let records: Vec<_> =
            chunks.iter().map(|(index, state)| ChunkRecordV1 { index: *index, state: *state }).collect();
        records.chunks(LEDGER_BATCH_CHUNKS_MAX).try_for_each(|batch| self.journal.record_chunks(image, batch))
    }
}

/// Entries written to the ledger at once, at most.
const LEDGER_BATCH_CHUNKS_MAX: usize = 4096;

fn damaged(journal: &dyn Journal, error: &IllegalRecord) -> JournalError {
    JournalError::Damaged { path: journal.txn().to_string(), what: error.to_string() }
}
