//! The second copy of the frames, and the ledger, in sled 0.34.7.
//!
//! What sled promises is not enough by itself (measured): its `flush` is no fsync, so `db` is fdatasynced after it;
//! values that reach `blobs/` are never synced, so a value has at most 4 KiB; opening writes, so only a copy is ever
//! opened; it may panic, so that is caught.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use journal_format::ledger::{LEDGER_KEY_BYTES, decode_ledger_entry, ledger_key, ledger_value};
use journal_format::{ChainEnd, ChunkRecordV1, ChunkState, FrameError, LedgerError, LedgerSeal, TxnId};
use sled::Batch;
use sled::transaction::{ConflictableTransactionError, TransactionError, Transactional};

use super::JournalError;
use super::chain::{ChainError, ChainFault, FoundChain, FoundFrame, LaterFrame, Repair, Tail};
use super::disk::{self, failed};
use super::guarded_sled::{BLOBS_NAME, GuardedSled};
use super::ledger_writes::LedgerWrites;

/// Bytes of a sled value at most.
const VALUE_BYTES_MAX: usize = 4096;
/// Ledger entries that one sled transaction writes or removes at most.
const LEDGER_BATCH_ENTRIES_MAX: usize = 1024;
/// A directory without this file was never checked whole and does not count.
const CHECKED_NAME: &str = "checked";
/// Holds the number of ledger writes that are durable, outside of sled: a damaged sled may open as an earlier self of
/// its own, in which chunks that were taken back are believed again.
const LEDGER_WRITES_NAME: &str = "ledger-writes";
/// The same number inside of sled, written with each change of a ledger. Disks have keys of 4 bytes.
const LEDGER_WRITES_KEY: &[u8] = b"writes";
const TORN_SNAPSHOT_SUFFIX: &str = ".generating";

/// An open sled store in its directory.
#[derive(Debug)]
pub(super) struct Store {
    directory: PathBuf,
    sled: GuardedSled,
    ledger_writes: LedgerWrites,
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
        let sled = GuardedSled::open(directory)?;
        let ledger_writes = LedgerWrites::open(&directory.join(LEDGER_WRITES_NAME))?;
        Ok(Self { directory: directory.to_owned(), sled, ledger_writes })
    }

    /// Lets go of a store in which a write failed: nothing more is written, not even when it is dropped.
    pub fn abandon(&self) {
        self.sled.abandon();
    }

    /// Makes the store durable whole, and lets it count.
    pub fn count(&self) -> Result<(), JournalError> {
        self.sled.sync()?;
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
        self.sled.run("append to sled", |trees| {
            let mut batch = Batch::default();
            for (part, bytes) in (0u32..).zip(frame.chunks(VALUE_BYTES_MAX)) {
                batch.insert(&event_key(sequence, part)[..], bytes);
            }
            Ok(trees.events.apply_batch(batch)?)
        })?;
        self.sled.sync()
    }

    /// All frames, as far as they are whole.
    pub fn chain(&self, txn: TxnId) -> Result<FoundChain, JournalError> {
        let mut frames: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        self.sled.run("read sled", |trees| {
            for entry in &trees.events {
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

    /// The ledger of one image.
    pub fn chunks(&self, image: u32) -> Result<BTreeMap<u64, ChunkState>, JournalError> {
        self.sled.run("read ledger", |trees| {
            let mut chunks = BTreeMap::new();
            for entry in trees.ledger.scan_prefix(image.to_be_bytes()) {
                let (key, value) = entry?;
                let (_, record) = decode_ledger_entry(&key, &value).map_err(io::Error::other)?;
                chunks.insert(record.index, record.state);
            }
            Ok(chunks)
        })
    }

    /// Adds to the ledger of one image. Durable when it returns.
    pub fn record_chunks(&mut self, image: u32, records: &[ChunkRecordV1]) -> Result<(), JournalError> {
        for records in records.chunks(LEDGER_BATCH_ENTRIES_MAX) {
            let (sealed, changed) = (image.to_be_bytes(), (self.ledger_writes.number + 1).to_le_bytes());
            self.sled.run("write ledger", |trees| {
                let written = (&trees.ledger, &trees.seals).transaction(|(ledger, seals)| {
                    let refused = |error: LedgerError| ConflictableTransactionError::Abort(error);
                    let mut seal = match seals.get(sealed)? {
                        Some(bytes) => LedgerSeal::decode(&bytes).map_err(refused)?,
                        None => LedgerSeal::default(),
                    };
                    for record in records {
                        let (key, value) = (ledger_key(image, record.index), ledger_value(&record.state));
                        seal.add(&key, &value);
                        if let Some(old) = ledger.insert(&key[..], value)? {
                            seal.remove(&key, &old);
                        }
                    }
                    seals.insert(&sealed[..], &seal.encode()[..])?;
                    seals.insert(LEDGER_WRITES_KEY, &changed[..])?;
                    Ok(())
                });
                written.map_err(|error| match error {
                    TransactionError::Abort(error) => io::Error::other(error),
                    TransactionError::Storage(error) => error.into(),
                })
            })?;
            self.sled.sync()?;
            self.ledger_writes.advance()?;
        }
        Ok(())
    }

    /// Empties the ledger of one image. Durable when it returns.
    pub fn forget_chunks(&mut self, image: u32) -> Result<(), JournalError> {
        // The empty seal first, durably: from then on no entry is believed, whichever of them a crash leaves.
        let changed = (self.ledger_writes.number + 1).to_le_bytes();
        self.sled.run("write ledger", |trees| {
            let mut batch = Batch::default();
            batch.insert(&image.to_be_bytes(), &LedgerSeal::default().encode()[..]);
            batch.insert(LEDGER_WRITES_KEY, &changed[..]);
            Ok(trees.seals.apply_batch(batch)?)
        })?;
        self.sled.sync()?;
        self.ledger_writes.advance()?;
        self.sled.run("empty ledger", |trees| {
            let last = ledger_key(image, u64::MAX);
            let mut from = image.to_be_bytes().to_vec();
            loop {
                let mut batch = Batch::default();
                let mut entries = 0;
                // Each round goes on where the one before ended: sled is slow at passing over what was removed.
                for key in trees.ledger.range(&from[..]..=&last[..]).keys().take(LEDGER_BATCH_ENTRIES_MAX) {
                    from = key?.to_vec();
                    batch.remove(&from[..]);
                    entries += 1;
                }
                if entries == 0 {
                    return Ok(());
                }
                trees.ledger.apply_batch(batch)?;
            }
        })?;
        self.sled.sync()
    }

    /// Compares the ledgers with their seals, and their age with what is known outside of sled; empties those that
    /// cannot be believed and says so. A ledger of a newer program is `JournalError::Newer`.
    pub fn check_ledgers(&mut self) -> Result<Vec<Repair>, JournalError> {
        let (sealed, found) = self.ledger_seals()?;
        let images: BTreeSet<u32> = sealed.keys().chain(found.keys()).copied().collect();
        let inside = self.ledger_writes_inside()?;
        let mut repairs = Vec::new();
        let is_stale = self.ledger_writes.damaged || inside < self.ledger_writes.number;
        // A crash may have come between the write inside and the one outside.
        self.ledger_writes.number = self.ledger_writes.number.max(inside);
        if is_stale {
            for image in images {
                self.forget_chunks(image)?;
            }
            // Also where no image was left: inside and outside agree again.
            self.forget_chunks(0)?;
            return Ok(vec![Repair::LedgersStale]);
        }
        for image in images {
            let (sealed, found) =
                (sealed.get(&image).copied().flatten(), found.get(&image).copied().unwrap_or_default());
            if sealed != Some(found) {
                self.forget_chunks(image)?;
                // An empty seal over entries is what a crash in `forget_chunks` leaves: nothing was lost.
                if sealed != Some(LedgerSeal::default()) {
                    repairs.push(Repair::LedgerDropped { image });
                }
            }
        }
        Ok(repairs)
    }

    fn ledger_writes_inside(&self) -> Result<u64, JournalError> {
        self.sled.run("check ledger", |trees| {
            let value = trees.seals.get(LEDGER_WRITES_KEY)?;
            Ok(value.and_then(|bytes| bytes.as_ref().try_into().ok()).map_or(0, u64::from_le_bytes))
        })
    }

    /// For each image the seal that is written (`None`: unreadable), and the one that its entries make.
    #[allow(clippy::type_complexity)]
    fn ledger_seals(&self) -> Result<(BTreeMap<u32, Option<LedgerSeal>>, BTreeMap<u32, LedgerSeal>), JournalError> {
        let mut newer = None;
        let maps = self.sled.run("check ledger", |trees| {
            let (mut sealed, mut found) = (BTreeMap::new(), BTreeMap::<u32, LedgerSeal>::new());
            for entry in &trees.seals {
                let (key, value) = entry?;
                if key == LEDGER_WRITES_KEY {
                    continue;
                }
                let image = key.as_ref().try_into().map(u32::from_be_bytes);
                let image = image.map_err(|_| io::Error::other(format!("a seal's key of {} bytes", key.len())))?;
                sealed.insert(image, readable(LedgerSeal::decode(&value), &mut newer));
            }
            for entry in &trees.ledger {
                let (key, value) = entry?;
                let Some(image) = key.first_chunk::<4>().map(|image| u32::from_be_bytes(*image)) else {
                    return Err(io::Error::other(format!("a ledger key of {} bytes", key.len())));
                };
                if key.len() == LEDGER_KEY_BYTES {
                    readable(decode_ledger_entry(&key, &value), &mut newer);
                }
                found.entry(image).or_default().add(&key, &value);
            }
            Ok((sealed, found))
        })?;
        match newer {
            Some(what) => Err(JournalError::Newer { path: self.directory.display().to_string(), what }),
            None => Ok(maps),
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
        let whole = LaterFrame::read(&raw).map(|(_, frame)| frame);
        if let Some(fault) = &mut chain.fault {
            fault.bytes += raw.len() as u64;
            fault.highest = Some(sequence);
            fault.later.extend(whole);
            continue;
        }
        match next_frame(&chain.end, sequence, &raw) {
            Ok((found, end)) => chain.push(found, end),
            Err(error) => {
                let later = whole.into_iter().collect();
                chain.fault = Some(ChainFault {
                    error,
                    bytes: raw.len() as u64,
                    later,
                    tail: Tail::None,
                    highest: Some(sequence),
                });
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
