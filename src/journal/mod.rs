//! The durable record of a transaction, as the engine sees it. Stores are in the files beside this one.

pub mod recorder;

#[macro_use]
mod crash;
mod chain;
mod disk;
mod file;
mod guarded_sled;
mod ledger_writes;
mod lock;
mod log;
pub mod memory;
mod open;
pub mod prune;
mod reader;
mod state_dir;
mod store;
pub mod verify;

use std::collections::BTreeMap;

use journal_format::{ChunkRecordV1, ChunkState, Epoch, RecordV1, TxnId};

pub use chain::Repair;
pub use file::FileJournal;
pub use lock::{Holder, TxnLock};
pub use memory::MemoryJournal;
pub use reader::{Snapshot, read};
pub use state_dir::{STATE_DIR_VARIABLE, StateDir, StateDirError, TXN_DIGITS_MIN};

/// The journal of one transaction, opened for writing by the one who holds its lock.
///
/// An append that returned is durable. An append that failed poisons the journal: every later call fails too.
pub trait Journal {
    /// Whose journal it is.
    fn txn(&self) -> TxnId;
    /// Everything that happened, oldest first; a record's sequence number is its index.
    fn records(&self) -> &[RecordV1];
    /// Appends if `expected` is the number of records so far and no record has a later epoch than `record` does.
    fn append(&mut self, expected: u64, record: RecordV1) -> Result<(), JournalError>;
    /// The ledger of one image.
    fn chunks(&self, image: u32) -> Result<BTreeMap<u64, ChunkState>, JournalError>;
    /// Adds to, or replaces in, the ledger of one image. Durable when it returns.
    fn record_chunks(&mut self, image: u32, records: &[ChunkRecordV1]) -> Result<(), JournalError>;
    /// Empties the ledger of one image.
    fn forget_chunks(&mut self, image: u32) -> Result<(), JournalError>;
    /// The highest epoch any record has.
    fn epoch(&self) -> Epoch {
        self.records().iter().map(|record| record.epoch).max().unwrap_or(Epoch(0))
    }
}

/// Why a journal cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The disk or the kernel said no. The journal is poisoned.
    #[error("journal {path}: {operation}: {source}")]
    Io {
        /// The file or directory.
        path: String,
        /// What was tried.
        operation: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// An earlier write failed, so this one was not tried.
    #[error("journal {path}: an earlier write failed; nothing more is written")]
    Poisoned {
        /// The transaction's directory.
        path: String,
    },
    /// Somebody else appended meanwhile, or has a later epoch.
    #[error("journal {path}: expected {expected} records, found {found}")]
    Conflict {
        /// The transaction's directory.
        path: String,
        /// What the caller believed.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// A record is damaged, and the second copy does not help.
    #[error("journal {path}: damaged: {what}")]
    Damaged {
        /// The transaction's directory.
        path: String,
        /// Which record, where, how.
        what: String,
    },
    /// Written by a newer program; not damage.
    #[error("journal {path}: written by a newer kvm-clone ({what}); use that version")]
    Newer {
        /// The transaction's directory.
        path: String,
        /// What is not known here.
        what: String,
    },
    /// Another process drives this transaction.
    #[error("journal {path}: held by process {pid} on {host} since {since}")]
    Held {
        /// The transaction's directory.
        path: String,
        /// The holder's process.
        pid: u32,
        /// Its machine's host name.
        host: String,
        /// When it took the lock (RFC 3339).
        since: String,
    },
}
