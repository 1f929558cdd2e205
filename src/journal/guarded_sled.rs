//! A sled database whose panics are errors, and whose flush is an fsync. Once a call failed, nothing more is
//! written: sled would otherwise flush when it is dropped, and panic where that fails.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use super::JournalError;
use super::disk::{self, failed};

/// Bytes of sled's page cache.
const CACHE_BYTES: u64 = 32 * 1024 * 1024;
/// sled's file.
const DATA_NAME: &str = "db";
/// Where sled puts values that are too large for it. They are never synced.
pub(super) const BLOBS_NAME: &str = "blobs";

/// The trees of a store.
pub(super) struct Trees {
    db: sled::Db,
    /// Frames.
    pub events: sled::Tree,
    /// Chunks.
    pub ledger: sled::Tree,
    /// What the chunks of a disk must come to.
    pub seals: sled::Tree,
}

/// An open sled database in its directory.
pub(super) struct GuardedSled {
    directory: PathBuf,
    trees: Option<Trees>,
    data: File,
    is_abandoned: Cell<bool>,
}

impl std::fmt::Debug for GuardedSled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuardedSled").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl GuardedSled {
    /// Opens, or makes, the database in a directory that is there.
    pub fn open(directory: &Path) -> Result<Self, JournalError> {
        let trees = caught(|| {
            // Flushing is ours to time, so no thread of sled's does it.
            let db = sled::Config::new().path(directory).cache_capacity(CACHE_BYTES).flush_every_ms(None).open()?;
            let (events, ledger, seals) = (db.open_tree("events")?, db.open_tree("ledger")?, db.open_tree("seals")?);
            Ok(Trees { db, events, ledger, seals })
        });
        let trees = trees.map_err(failed(directory, "open sled"))?;
        let data_path = directory.join(DATA_NAME);
        let data = File::open(&data_path).map_err(failed(&data_path, "open"))?;
        Ok(Self { directory: directory.to_owned(), trees: Some(trees), data, is_abandoned: Cell::new(false) })
    }

    /// Does something with the trees; `operation` names it in an error.
    pub fn run<T>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&Trees) -> io::Result<T>,
    ) -> Result<T, JournalError> {
        let Some(trees) = self.trees.as_ref().filter(|_| !self.is_abandoned.get()) else {
            return Err(JournalError::Poisoned { path: self.directory.display().to_string() });
        };
        let result = caught(|| work(trees));
        if result.is_err() {
            self.abandon();
        }
        result.map_err(failed(&self.directory, operation))
    }

    /// Makes everything written so far durable.
    pub fn sync(&self) -> Result<(), JournalError> {
        self.run("flush sled", |trees| {
            trees.db.flush()?;
            self.data.sync_data()
        })?;
        let blobs = self.directory.join(BLOBS_NAME);
        if disk::list(&blobs)?.is_empty() {
            Ok(())
        } else {
            Err(failed(&blobs, "check")(io::Error::other("sled put a value where it is never synced")))
        }
    }

    /// Lets go of it for good, as a crash would.
    pub fn abandon(&self) {
        self.is_abandoned.set(true);
    }
}

impl Drop for GuardedSled {
    fn drop(&mut self) {
        let trees = self.trees.take();
        if self.is_abandoned.get() {
            // Its memory is the price of not writing; a process meets this once, and then ends or opens a copy.
            std::mem::forget(trees);
        } else {
            let _ = caught(|| {
                drop(trees);
                Ok(())
            });
        }
    }
}

/// Makes an error of a panic.
fn caught<T>(work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        Err(io::Error::other(format!("sled gave up: {}", text.unwrap_or("no reason given"))))
    })
}
