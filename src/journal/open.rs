//! Bringing the two copies of a journal together when it is opened. The caller holds the transaction's lock.
//!
//! A store is never opened where it lies: sled writes when it opens, and what cannot be used must stay as it was found.
//! A copy in the next numbered directory is opened, checked and completed, and only then counts.

use std::path::Path;

use journal_format::TxnId;

use super::JournalError;
use super::chain::{Disagreement, FoundChain, Repair, agree};
use super::disk;
use super::log::{self, EventLog};
use super::store::Store;

/// Name of the first store's directory; later ones are `journal.1`, `journal.2`, …
pub(super) const FIRST_STORE_NAME: &str = "journal";

/// Both copies, holding the same frames.
pub(super) struct Opened {
    pub log: EventLog,
    pub store: Store,
    pub chain: FoundChain,
}

/// Opens both copies and makes them equal, or says why that cannot be; then neither was written to.
pub(super) fn open_copies(directory: &Path, txn: TxnId, repairs: &mut Vec<Repair>) -> Result<Opened, JournalError> {
    let log_chain = log::read(directory, txn)?;
    let stores = StoreDirectories::find(directory)?;
    let next = directory.join(&stores.next);
    disk::remove_dir_all(&next)?;
    let result = merge(directory, &stores, &log_chain, txn, repairs);
    if result.is_err() {
        // It does not count, so it only takes up space; the error at hand says more than a second one would.
        let _ = disk::remove_dir_all(&next);
    }
    result
}

fn merge(
    directory: &Path,
    stores: &StoreDirectories,
    log_chain: &FoundChain,
    txn: TxnId,
    repairs: &mut Vec<Repair>,
) -> Result<Opened, JournalError> {
    let next = directory.join(&stores.next);
    let copied = match &stores.counting {
        None => Err("it is gone".to_owned()),
        Some(counting) => match CopiedStore::open(&directory.join(counting), &next, txn) {
            Err(error @ JournalError::Newer { .. }) => return Err(error),
            // Without space nothing can be made anew either.
            Err(error) if disk::is_no_space(&error) => return Err(error),
            copied => copied.map_err(|error| error.to_string()),
        },
    };
    let agreement = agree(log_chain, copied.as_ref().map(|copied| &copied.chain).map_err(String::as_str))
        .map_err(|disagreement| refused(directory, disagreement))?;
    repairs.extend(agreement.repairs);

    let (store, store_frames) = match copied {
        Ok(copied) if !agreement.rebuild => {
            repairs.extend(copied.repairs);
            (copied.store, copied.chain.frames.len())
        }
        copied => {
            drop(copied);
            disk::remove_dir_all(&next)?;
            (Store::create(&next)?, 0)
        }
    };
    let chain = agreement.full;
    for found in &chain.frames[store_frames..] {
        store.append(found.frame.sequence, &found.raw)?;
    }
    let mut log = EventLog::open(directory, log_chain.whole_bytes)?;
    for found in &chain.frames[log_chain.frames.len()..] {
        log.append(&found.raw)?;
    }
    store.count()?;
    for name in &stores.older {
        disk::remove_dir_all(&directory.join(name))?;
    }
    disk::sync_dir(directory)?;
    Ok(Opened { log, store, chain })
}

fn refused(directory: &Path, disagreement: Disagreement) -> JournalError {
    let path = directory.display().to_string();
    match disagreement {
        Disagreement::Damaged(what) => JournalError::Damaged { path, what },
        Disagreement::Newer(what) => JournalError::Newer { path, what },
    }
}

/// A copy of a store, opened and read.
pub(super) struct CopiedStore {
    pub store: Store,
    pub chain: FoundChain,
    pub repairs: Vec<Repair>,
}

impl CopiedStore {
    /// Copies the store in `from` to `to`, opens the copy and checks it.
    pub fn open(from: &Path, to: &Path, txn: TxnId) -> Result<Self, JournalError> {
        let (mut store, torn_snapshot) = Store::open_copy(from, to)?;
        let chain = store.chain(txn)?;
        let mut repairs: Vec<Repair> = torn_snapshot.then_some(Repair::TornSnapshot).into_iter().collect();
        repairs.extend(store.check_ledgers()?);
        Ok(Self { store, chain, repairs })
    }
}

/// The directories of stores in a transaction's directory.
pub(super) struct StoreDirectories {
    /// The one that counts: the highest number that was checked.
    pub counting: Option<String>,
    /// All that are there.
    pub older: Vec<String>,
    /// The name that the next one gets: above all others.
    pub next: String,
}

impl StoreDirectories {
    /// Looks for them.
    pub fn find(directory: &Path) -> Result<Self, JournalError> {
        let mut numbered: Vec<(u64, String)> = disk::list(directory)?
            .into_iter()
            .filter_map(|name| {
                let suffix = name.strip_prefix(FIRST_STORE_NAME)?;
                let number = if suffix.is_empty() { 0 } else { suffix.strip_prefix('.')?.parse().ok()? };
                Some((number, name))
            })
            .collect();
        numbered.sort();
        let next = numbered.last().map_or(0, |(number, _)| number + 1);
        let counting = numbered.iter().rev().find(|(_, name)| Store::counts(&directory.join(name)));
        Ok(Self {
            counting: counting.map(|(_, name)| name.clone()),
            next: format!("{FIRST_STORE_NAME}.{next}"),
            older: numbered.into_iter().map(|(_, name)| name).collect(),
        })
    }
}
