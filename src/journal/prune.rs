//! Removing the journals of finished transactions. A journal is renamed aside first, and only then deleted: a crash leaves it
//! whole or leaves something that no command takes for a transaction, which the next removal finishes.
//!
//! Never removes a journal that somebody holds, that does not read whole, or whose transaction is not over.

use std::fs;

use journal_format::TxnId;

use super::disk::{self, failed};
use super::verify::{Verdict, verify_held};
use super::{JournalError, StateDir, TxnLock};

/// What is being removed has its transaction's id behind this.
const PRUNED_PREFIX: &str = ".pruned-";

/// Removes a finished transaction's journal. `is_over` judges what the journal says, once nobody can change it any more.
/// Returns false, and removes nothing, where it is not over.
pub fn remove(
    state: &StateDir,
    txn: TxnId,
    is_over: impl FnOnce() -> Result<bool, JournalError>,
) -> Result<bool, JournalError> {
    let directory = state.txn_path(txn);
    let _lock = TxnLock::take(&directory)?;
    if !is_over()? {
        return Ok(false);
    }
    let path = || directory.display().to_string();
    match verify_held(state, txn)?.verdict {
        Verdict::Sound | Verdict::Repairable(_) => {}
        Verdict::Damaged(what) => return Err(JournalError::Damaged { path: path(), what }),
        Verdict::Newer(what) => return Err(JournalError::Newer { path: path(), what }),
    }
    let transactions = state.transactions_path();
    let aside = transactions.join(format!("{PRUNED_PREFIX}{txn}"));
    fs::rename(&directory, &aside).map_err(failed(&directory, "rename aside"))?;
    disk::sync_dir(&transactions)?;
    disk::remove_dir_all(&aside)?;
    disk::sync_dir(&transactions)?;
    Ok(true)
}

/// Finishes what removals that were broken off left; says how many.
pub fn finish_removals(state: &StateDir) -> Result<usize, JournalError> {
    let transactions = state.transactions_path();
    if !transactions.exists() {
        return Ok(0);
    }
    let mut finished = 0;
    for name in disk::list(&transactions)?.iter().filter(|name| name.starts_with(PRUNED_PREFIX)) {
        let path = transactions.join(name);
        // Another process may be at it just now.
        if TxnLock::holder(&path)?.is_none() {
            disk::remove_dir_all(&path)?;
            finished += 1;
        }
    }
    if finished > 0 {
        disk::sync_dir(&transactions)?;
    }
    Ok(finished)
}
