//! The journal on disk: `events.log` and a sled store with the same frames, the ledger in the store, the lock.
//!
//! Never: acknowledge before both copies are durable; write after an error; write into copies that disagree; give
//! up a frame whose hash is right.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use journal_format::{ChainEnd, ChunkRecordV1, ChunkState, EncodeError, Epoch, EventV1, RecordV1, TxnId};

use nix::fcntl::posix_fallocate;
use nix::libc;

use super::chain::Repair;
use super::disk::{self, failed};
use super::lock::TxnLock;
use super::log::EventLog;
use super::open::{FIRST_STORE_NAME, Opened, open_copies};
use super::store::Store;
use super::{Journal, JournalError, StateDir};

/// Name of the file that is given back when the disk is full.
const BALLAST_NAME: &str = "ballast";
/// Bytes of it: room for a copy of the store, which is what opening needs. The ledger of a 64 GiB image in chunks of 1 MiB
/// makes a store of 13 MB (measured).
const BALLAST_BYTES: libc::off_t = 16 * 1024 * 1024;

/// The journal of one transaction on disk, held by this process.
#[derive(Debug)]
pub struct FileJournal {
    directory: PathBuf,
    log: EventLog,
    store: Store,
    end: ChainEnd,
    records: Vec<RecordV1>,
    epoch: Epoch,
    poisoned: bool,
    _lock: TxnLock,
}

impl FileJournal {
    /// Makes the journal of a new transaction with its first record, `Begun`. Durable when it returns; a crash
    /// before leaves nothing, or a transaction that only has begun.
    pub fn create(state: &StateDir, begun: RecordV1) -> Result<Self, JournalError> {
        let EventV1::Begun { plan } = &begun.event else {
            let error = EncodeError { what: "a journal begins with Begun".to_owned() };
            return Err(encode_failed(state.path(), &error));
        };
        let txn = plan.txn;
        let (frame, end) = ChainEnd::start(txn).encode(&begun).map_err(|error| encode_failed(state.path(), &error))?;
        crash_point!(before_append(0));
        state.make()?;
        state.remove_unfinished()?;
        let (unfinished, directory) = (state.unfinished_path(txn), state.txn_path(txn));
        if directory.exists() {
            return Err(failed(&directory, "make")(io::ErrorKind::AlreadyExists.into()));
        }
        disk::make_dir(&unfinished)?;
        let lock = TxnLock::take(&unfinished)?;
        make_ballast(&unfinished)?;
        let mut log = EventLog::create(&unfinished)?;
        log.append(&frame)?;
        disk::sync_dir(&unfinished)?;
        fs::rename(&unfinished, &directory).map_err(failed(&directory, "rename to"))?;
        disk::sync_dir(&state.transactions_path())?;
        let log = EventLog::open(&directory, frame.len() as u64)?;
        let store = Store::create(&directory.join(FIRST_STORE_NAME))?;
        store.append(0, &frame)?;
        store.count()?;
        crash_point!(after_append(0));
        let epoch = begun.epoch;
        Ok(Self { directory, log, store, end, records: vec![begun], epoch, poisoned: false, _lock: lock })
    }

    /// Opens the journal of a transaction: takes its lock, compares both copies, puts right what a crash left, and says
    /// what that was. Nothing is written when the copies cannot be brought together or are newer than this program.
    pub fn open(state: &StateDir, txn: TxnId) -> Result<(Self, Vec<Repair>), JournalError> {
        let directory = state.txn_path(txn);
        let lock = TxnLock::take(&directory)?;
        let mut repairs = Vec::new();
        let opened = match open_copies(&directory, txn, &mut repairs) {
            Err(error) if disk::is_no_space(&error) && disk::remove_file(&directory.join(BALLAST_NAME))? => {
                repairs = vec![Repair::BallastFreed];
                open_copies(&directory, txn, &mut repairs)
            }
            opened => opened,
        };
        let Opened { log, store, chain } = opened?;
        let records: Vec<RecordV1> = chain.frames.into_iter().map(|found| found.frame.record).collect();
        let epoch = records.iter().map(|record| record.epoch).max().unwrap_or(Epoch(0));
        let journal = Self { directory, log, store, end: chain.end, records, epoch, poisoned: false, _lock: lock };
        journal.renew_ballast(&repairs);
        Ok((journal, repairs))
    }

    /// The transaction's directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The ballast lasts as long as the transaction, where there is room for it: the journal works without.
    fn renew_ballast(&self, repairs: &[Repair]) {
        let path = self.directory.join(BALLAST_NAME);
        if self.is_finished() {
            let _ = disk::remove_file(&path);
        } else if !repairs.contains(&Repair::BallastFreed) && !path.exists() {
            let _ = make_ballast(&self.directory);
        }
    }

    fn is_finished(&self) -> bool {
        matches!(self.records.last(), Some(RecordV1 { event: EventV1::Finished { .. }, .. }))
    }

    fn path(&self) -> String {
        self.directory.display().to_string()
    }

    /// Runs a write; an error poisons the journal.
    fn write<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, JournalError>) -> Result<T, JournalError> {
        self.check_usable()?;
        let result = work(self);
        if result.is_err() {
            self.poisoned = true;
            self.store.abandon();
        }
        result
    }

    fn check_usable(&self) -> Result<(), JournalError> {
        if self.poisoned { Err(JournalError::Poisoned { path: self.path() }) } else { Ok(()) }
    }
}

impl Journal for FileJournal {
    fn txn(&self) -> TxnId {
        self.end.txn
    }

    fn records(&self) -> &[RecordV1] {
        &self.records
    }

    fn append(&mut self, expected: u64, record: RecordV1) -> Result<(), JournalError> {
        self.check_usable()?;
        let sequence = self.end.sequence;
        if expected != sequence || record.epoch < self.epoch {
            return Err(JournalError::Conflict { path: self.path(), expected, found: sequence });
        }
        let (frame, end) = self.end.encode(&record).map_err(|error| encode_failed(&self.directory, &error))?;
        crash_point!(before_append(sequence));
        self.write(|journal| {
            journal.log.append(&frame)?;
            journal.store.append(sequence, &frame)
        })?;
        self.end = end;
        self.epoch = record.epoch;
        self.records.push(record);
        if self.is_finished() {
            self.renew_ballast(&[]);
        }
        crash_point!(after_append(sequence));
        Ok(())
    }

    fn chunks(&self, disk: u32) -> Result<BTreeMap<u64, ChunkState>, JournalError> {
        self.check_usable()?;
        self.store.chunks(disk)
    }

    fn record_chunks(&mut self, disk: u32, records: &[ChunkRecordV1]) -> Result<(), JournalError> {
        crash_point!(before_ledger());
        self.write(|journal| journal.store.record_chunks(disk, records))?;
        crash_point!(after_ledger());
        Ok(())
    }

    fn forget_chunks(&mut self, disk: u32) -> Result<(), JournalError> {
        crash_point!(before_ledger());
        self.write(|journal| journal.store.forget_chunks(disk))?;
        crash_point!(after_ledger());
        Ok(())
    }

    fn epoch(&self) -> Epoch {
        self.epoch
    }
}

/// Takes the space for the ballast, whole or not at all.
fn make_ballast(directory: &Path) -> Result<(), JournalError> {
    let path = directory.join(BALLAST_NAME);
    let file = disk::make_file(&path)?;
    posix_fallocate(&file, 0, BALLAST_BYTES).map_err(|errno| {
        let _ = disk::remove_file(&path);
        failed(&path, "reserve space")(errno.into())
    })
}

fn encode_failed(path: &Path, error: &EncodeError) -> JournalError {
    failed(path, "encode a record")(io::Error::new(io::ErrorKind::InvalidInput, error.to_string()))
}
