//! Reading a transaction without its lock, also while another process drives it: `events.log` alone, which only grows.
//! Never writes, never takes a lock, never reads sled.

use journal_format::{FrameError, RecordV1, TxnId};

use super::chain::{ChainError, FoundChain, Tail};
use super::{Holder, JournalError, StateDir, TxnLock, log};

/// A transaction as it was at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The transaction.
    pub txn: TxnId,
    /// Everything that happened, oldest first.
    pub records: Vec<RecordV1>,
    /// Who drove it at that moment; `None`: nobody.
    pub holder: Option<Holder>,
    /// Bytes at the end of the log that are no whole record: an append under way, or one that a crash cut off. What
    /// they are is decided when the journal is opened, by the second copy.
    pub unfinished_bytes: u64,
}

/// Reads a transaction as it is now.
pub fn read(state: &StateDir, txn: TxnId) -> Result<Snapshot, JournalError> {
    let directory = state.txn_path(txn);
    // First the holder, then the log: a transaction that ends in between looks held, never interrupted.
    let holder = TxnLock::holder(&directory)?;
    let chain = log::read(&directory, txn)?;
    let path = || directory.display().to_string();
    if chain.is_empty() && chain.fault.is_none() {
        return Err(JournalError::Damaged { path: path(), what: "events.log is gone or empty".to_owned() });
    }
    let unfinished_bytes = check_end(&chain).map_err(|error| match error {
        ChainError::Frame(FrameError::Newer { what }) => JournalError::Newer { path: path(), what },
        error => JournalError::Damaged { path: path(), what: format!("events.log: record {}: {error}", chain.len()) },
    })?;
    let records = chain.frames.into_iter().map(|found| found.frame.record).collect();
    Ok(Snapshot { txn, records, holder, unfinished_bytes })
}

/// Bytes behind the last whole frame, if they can be an append that is not finished.
fn check_end(chain: &FoundChain) -> Result<u64, ChainError> {
    match &chain.fault {
        None => Ok(0),
        Some(fault) if fault.tail == Tail::Torn && fault.later.is_empty() && !chain.is_empty() => Ok(fault.bytes),
        Some(fault) => Err(fault.error.clone()),
    }
}
