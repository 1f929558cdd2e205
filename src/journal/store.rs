//! The second copy of the frames, and the ledger, in sled 0.34.7.
//!
//! What sled promises is not enough by itself (measured): its `flush` is no fsync, so `db` is fdatasynced after it;
//! values that reach `blobs/` are never synced, so a value has at most 4 KiB; opening writes, so only a copy is ever
//! opened; opening may panic, so it is caught.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use journal_format::ledger::{LEDGER_KEY_BYTES, decode_ledger_entry, ledger_key, ledger_value};
use journal_format::{ChainEnd, ChunkRecordV1, ChunkState, Envelope, FrameError, LedgerError, LedgerSeal, TxnId};
use sled::transaction::{ConflictableTransactionError, TransactionError, Transactional};
use sled::{Batch, Tree};

use super::JournalError;
use super::chain::{ChainError, ChainFault, FoundChain, FoundFrame};
use super::disk::{self, failed};

/// Bytes of a sled value at most.
const VALUE_BYTES_MAX: usize = 4096;
/// Ledger entries that one sled transaction writes or removes at most.
const LEDGER_BATCH_ENTRIES_MAX: usize = 1024;
/// Bytes of sled's page cache.
const CACHE_BYTES: u64 = 32 * 1024 * 1024;
/// A directory without this file was never checked whole and does not count.
const CHECKED_NAME: &str = "checked";
const DATA_NAME: &str = "db";
const BLOBS_NAME: &str = "blobs";
const TORN_SNAPSHOT_SUFFIX: &str = ".generating";

/// An open sled store in its directory.
pub(super) struct Store {
    directory: PathBuf,
    db: sled::Db,
    events: Tree,
    ledger: Tree,
    seals: Tree,
    data: File,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl Store {
    /// Makes an empty store. It does not count until `count`.
    pub fn create(directory: &Path) -> Result<Self, JournalError> {
        disk::make_dir(directory)?;
        Self::open(directory)
    }

    /// Opens a copy of the store in `from`, which is only read. The copy does not count until `count`.
    /// Says whether an unfinished snapshot was left out.
    pub fn open_copy(from: &Path, directory: &Path) -> Result<(Self, bool), JournalError> {
        disk::make_dir(directory)?;
        let mut torn_snapshot = false;
        for name in disk::list(from)? {
            let path = from.join(&name);
            if name == BLOBS_NAME {
                if !disk::list(&path)?.is_empty() {
                    return Err(failed(&path, "check")(io::Error::other(
                        "holds values, which no journal of ours does",
                    )));
                }
            } else if name.ends_with(TORN_SNAPSHOT_SUFFIX) {
                torn_snapshot = true;
            } else if name != CHECKED_NAME {
                disk::copy_file(&path, &directory.join(&name))?;
            }
        }
        Ok((Self::open(directory)?, torn_snapshot))
    }

    fn open(directory: &Path) -> Result<Self, JournalError> {
        let (db, events, ledger, seals) = guarded(directory, "open sled", || {
            // Flushing is ours to time, so no thread of sled's does it.
            let db = sled::Config::new().path(directory).cache_capacity(CACHE_BYTES).flush_every_ms(None).open()?;
            let trees = (db.open_tree("events")?, db.open_tree("ledger")?, db.open_tree("seals")?);
            db.flush()?;
            Ok((db, trees.0, trees.1, trees.2))
        })?;
        let data_path = directory.join(DATA_NAME);
        let data = File::open(&data_path).map_err(failed(&data_path, "open"))?;
        Ok(Self { directory: directory.to_owned(), db, events, ledger, seals, data })
    }

    /// Makes the store durable whole, and lets it count.
    pub fn count(&self) -> Result<(), JournalError> {
        self.sync()?;
        let mark = self.directory.join(CHECKED_NAME);
        disk::make_file(&mark)?;
        disk::settle_files(&self.directory)?;
        self.directory.parent().map_or(Ok(()), disk::sync_dir)
    }

    /// Whether the store in a directory counts.
    pub fn counts(directory: &Path) -> bool {
        directory.join(CHECKED_NAME).is_file()
    }

    /// Adds a frame. Durable when it returns.
    pub fn append(&self, sequence: u64, frame: &[u8]) -> Result<(), JournalError> {
        guarded(&self.directory, "append to sled", || {
            let mut batch = Batch::default();
            for (part, bytes) in (0u32..).zip(frame.chunks(VALUE_BYTES_MAX)) {
                batch.insert(&event_key(sequence, part)[..], bytes);
            }
            Ok(self.events.apply_batch(batch)?)
        })?;
        self.sync()
    }

    /// All frames, as far as they are whole.
    pub fn chain(&self, txn: TxnId) -> Result<FoundChain, JournalError> {
        let mut frames: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        guarded(&self.directory, "read sled", || {
            for entry in &self.events {
                let (key, value) = entry?;
                let key: [u8; 12] = key.as_ref().try_into().map_err(|_| io::Error::other("a key of another length"))?;
                let (sequence, _part) = key.split_at(8);
                let sequence = u64::from_be_bytes(sequence.try_into().unwrap_or_default());
                frames.entry(sequence).or_default().extend_from_slice(&value);
            }
            Ok(())
        })?;
        Ok(assemble(txn, frames))
    }

    /// The ledger of one disk.
    pub fn chunks(&self, disk: u32) -> Result<BTreeMap<u64, ChunkState>, JournalError> {
        guarded(&self.directory, "read ledger", || {
            let mut chunks = BTreeMap::new();
            for entry in self.ledger.scan_prefix(disk.to_be_bytes()) {
                let (key, value) = entry?;
                let (_, record) = decode_ledger_entry(&key, &value).map_err(io::Error::other)?;
                chunks.insert(record.index, record.state);
            }
            Ok(chunks)
        })
    }

    /// Adds to the ledger of one disk. Durable when it returns.
    pub fn record_chunks(&self, disk: u32, records: &[ChunkRecordV1]) -> Result<(), JournalError> {
        for records in records.chunks(LEDGER_BATCH_ENTRIES_MAX) {
            guarded(&self.directory, "write ledger", || {
                let written = (&self.ledger, &self.seals).transaction(|(ledger, seals)| {
                    let refused = |error: LedgerError| ConflictableTransactionError::Abort(error);
                    let mut seal = match seals.get(disk.to_be_bytes())? {
                        Some(bytes) => LedgerSeal::decode(&bytes).map_err(refused)?,
                        None => LedgerSeal::default(),
                    };
                    for record in records {
                        let (key, value) = (ledger_key(disk, record.index), ledger_value(&record.state));
                        seal.add(&key, &value);
                        if let Some(old) = ledger.insert(&key[..], value)? {
                            seal.remove(&key, &old);
                        }
                    }
                    seals.insert(&disk.to_be_bytes(), &seal.encode()[..])?;
                    Ok(())
                });
                written.map_err(|error| match error {
                    TransactionError::Abort(error) => io::Error::other(error),
                    TransactionError::Storage(error) => error.into(),
                })
            })?;
        }
        self.sync()
    }

    /// Empties the ledger of one disk. Durable when it returns.
    pub fn forget_chunks(&self, disk: u32) -> Result<(), JournalError> {
        // The empty seal first, durably: from then on no entry is believed, whichever of them a crash leaves.
        guarded(&self.directory, "write ledger", || {
            self.seals.insert(disk.to_be_bytes(), &LedgerSeal::default().encode()[..])?;
            Ok(())
        })?;
        self.sync()?;
        guarded(&self.directory, "empty ledger", || {
            loop {
                let mut batch = Batch::default();
                let mut entries = 0;
                for key in self.ledger.scan_prefix(disk.to_be_bytes()).keys().take(LEDGER_BATCH_ENTRIES_MAX) {
                    batch.remove(key?);
                    entries += 1;
                }
                if entries == 0 {
                    return Ok(());
                }
                self.ledger.apply_batch(batch)?;
            }
        })?;
        self.sync()
    }

    /// Compares the ledgers with their seals and empties those that do not match; says which were dropped.
    /// A ledger of a newer program is `JournalError::Newer`.
    pub fn check_ledgers(&self) -> Result<Vec<u32>, JournalError> {
        let mut dropped = Vec::new();
        let (sealed, found) = self.ledger_seals()?;
        let disks: BTreeSet<u32> = sealed.keys().chain(found.keys()).copied().collect();
        for disk in disks {
            let (sealed, found) = (sealed.get(&disk).copied().flatten(), found.get(&disk).copied().unwrap_or_default());
            if sealed != Some(found) {
                self.forget_chunks(disk)?;
                // An empty seal over entries is what a crash in `forget_chunks` leaves: nothing was lost.
                if sealed != Some(LedgerSeal::default()) {
                    dropped.push(disk);
                }
            }
        }
        Ok(dropped)
    }

    /// For each disk the seal that is written (`None`: unreadable), and the one that its entries make.
    #[allow(clippy::type_complexity)]
    fn ledger_seals(&self) -> Result<(BTreeMap<u32, Option<LedgerSeal>>, BTreeMap<u32, LedgerSeal>), JournalError> {
        let mut newer = None;
        let maps = guarded(&self.directory, "check ledger", || {
            let (mut sealed, mut found) = (BTreeMap::new(), BTreeMap::<u32, LedgerSeal>::new());
            for entry in &self.seals {
                let (key, value) = entry?;
                let disk =
                    key.as_ref().try_into().map(u32::from_be_bytes).map_err(|_| io::Error::other("a seal's key"))?;
                sealed.insert(disk, readable(LedgerSeal::decode(&value), &mut newer));
            }
            for entry in &self.ledger {
                let (key, value) = entry?;
                let Some(disk) = key.first_chunk::<4>().map(|disk| u32::from_be_bytes(*disk)) else {
                    return Err(io::Error::other(format!("a ledger key of {} bytes", key.len())));
                };
                if key.len() == LEDGER_KEY_BYTES {
                    readable(decode_ledger_entry(&key, &value), &mut newer);
                }
                found.entry(disk).or_default().add(&key, &value);
            }
            Ok((sealed, found))
        })?;
        match newer {
            Some(what) => Err(JournalError::Newer { path: self.directory.display().to_string(), what }),
            None => Ok(maps),
        }
    }

    /// Makes everything written so far durable.
    fn sync(&self) -> Result<(), JournalError> {
        guarded(&self.directory, "flush sled", || Ok(self.db.flush().map(|_| ())?))?;
        self.data.sync_data().map_err(failed(&self.directory, "fdatasync of sled's file"))?;
        let blobs = self.directory.join(BLOBS_NAME);
        if disk::list(&blobs)?.is_empty() {
            Ok(())
        } else {
            Err(failed(&blobs, "check")(io::Error::other("sled put a value where it is never synced")))
        }
    }
}

/// Notes what is newer, forgets what is damaged (the seal will not match).
fn readable<T>(decoded: Result<T, LedgerError>, newer: &mut Option<String>) -> Option<T> {
    if let Err(error @ LedgerError::Newer { .. }) = &decoded {
        *newer = Some(error.to_string());
    }
    decoded.ok()
}

/// Sequence, then the part's number: frames longer than a value are split.
fn event_key(sequence: u64, part: u32) -> [u8; 12] {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&sequence.to_be_bytes());
    key[8..].copy_from_slice(&part.to_be_bytes());
    key
}

fn assemble(txn: TxnId, frames: BTreeMap<u64, Vec<u8>>) -> FoundChain {
    let mut chain = FoundChain::empty(txn);
    for (sequence, raw) in frames {
        let whole = Envelope::read(&raw).ok().map(|envelope| (sequence, envelope.hash));
        if let Some(fault) = &mut chain.fault {
            fault.bytes += raw.len() as u64;
            fault.later.extend(whole);
            continue;
        }
        match next_frame(&chain.end, sequence, &raw) {
            Ok((found, end)) => chain.push(found, end),
            Err(error) => {
                let later = whole.filter(|_| error == ChainError::Missing).into_iter().collect();
                chain.fault = Some(ChainFault { error, bytes: raw.len() as u64, torn: false, later });
            }
        }
    }
    chain
}

fn next_frame(end: &ChainEnd, sequence: u64, raw: &[u8]) -> Result<(FoundFrame, ChainEnd), ChainError> {
    if sequence != end.sequence {
        return Err(ChainError::Missing);
    }
    let (frame, behind) = end.decode(raw)?;
    if frame.bytes != raw.len() {
        return Err(FrameError::BadLength { length: u32::try_from(raw.len()).unwrap_or(u32::MAX) }.into());
    }
    Ok((FoundFrame { frame, raw: raw.to_vec() }, behind))
}

/// Runs a piece of sled that may panic on a damaged store, and names what failed.
fn guarded<T>(
    directory: &Path,
    operation: &'static str,
    work: impl FnOnce() -> io::Result<T>,
) -> Result<T, JournalError> {
    let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        Err(io::Error::other(format!("sled gave up: {}", text.unwrap_or("no reason given"))))
    });
    result.map_err(failed(directory, operation))
}
