//! `events.log`: frames one behind the other, and nothing else. It is what readers read, what is exported, and
//! the first of the two copies. An append is written at the known end and fdatasynced.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use journal_format::TxnId;

use super::JournalError;
use super::chain::FoundChain;
use super::disk::{self, failed};

/// Name of the log in a transaction's directory.
pub const LOG_NAME: &str = "events.log";
/// Bytes of a log at most: what is longer was not written by us.
const LOG_BYTES_MAX: u64 = 1 << 30;

/// The log of one transaction, open for appending.
#[derive(Debug)]
pub(super) struct EventLog {
    path: PathBuf,
    file: File,
    end: u64,
}

impl EventLog {
    /// Makes an empty log. Its name is durable after `sync_dir` of the directory.
    pub fn create(directory: &Path) -> Result<Self, JournalError> {
        let path = directory.join(LOG_NAME);
        Ok(Self { file: disk::make_file(&path)?, path, end: 0 })
    }

    /// Opens a log whose whole frames end at `end`, making it if it is gone; what follows is cut off, durably.
    pub fn open(directory: &Path, end: u64) -> Result<Self, JournalError> {
        let path = directory.join(LOG_NAME);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => disk::make_file(&path)?,
            opened => opened.map_err(failed(&path, "open"))?,
        };
        if file.metadata().map_err(failed(&path, "stat"))?.len() != end {
            file.set_len(end).and_then(|()| file.sync_all()).map_err(failed(&path, "cut"))?;
        }
        disk::sync_dir(directory)?;
        Ok(Self { path, file, end })
    }

    /// Adds a frame. Durable when it returns; after an error the file may hold a part of it.
    pub fn append(&mut self, frame: &[u8]) -> Result<(), JournalError> {
        self.file.write_all_at(frame, self.end).map_err(failed(&self.path, "append"))?;
        self.file.sync_data().map_err(failed(&self.path, "fdatasync"))?;
        self.end += frame.len() as u64;
        Ok(())
    }
}

/// Reads the log in a directory as it is now. One that is gone is empty.
pub(super) fn read(directory: &Path, txn: TxnId) -> Result<FoundChain, JournalError> {
    let path = directory.join(LOG_NAME);
    let mut bytes = Vec::new();
    match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        opened => {
            let file = opened.map_err(failed(&path, "open"))?;
            file.take(LOG_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed(&path, "read"))?;
        }
    }
    if bytes.len() as u64 > LOG_BYTES_MAX {
        return Err(failed(&path, "read")(io::Error::other(format!("longer than {LOG_BYTES_MAX} bytes"))));
    }
    Ok(FoundChain::read(txn, &bytes))
}
