//! The number of durable ledger writes, kept outside of sled: a damaged sled may open as an earlier self of its own, in
//! which chunks that were taken back are believed again. Written after sled, so that it is never ahead of a sound one.

use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::JournalError;
use super::disk::{self, failed};

/// The file that holds the number of durable ledger writes: the number, then its BLAKE3, in one sector.
#[derive(Debug)]
pub(super) struct LedgerWrites {
    path: PathBuf,
    file: File,
    /// The number.
    pub number: u64,
    /// What was there is not what was written.
    pub damaged: bool,
}

impl LedgerWrites {
    /// Opens the file, or makes it with 0; its name needs `sync_dir` then.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        if !path.exists() {
            let mut made = Self { path: path.to_owned(), file: disk::make_file(path)?, number: 0, damaged: false };
            made.write()?;
            return Ok(made);
        }
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed(path, "open"))?;
        let mut content = Vec::new();
        (&file).take(64).read_to_end(&mut content).map_err(failed(path, "read"))?;
        let number = content.first_chunk::<8>().filter(|number| content[8..] == *blake3::hash(&number[..]).as_bytes());
        let (number, damaged) = (number.map_or(0, |number| u64::from_le_bytes(*number)), number.is_none());
        Ok(Self { path: path.to_owned(), file, number, damaged })
    }

    /// One more. Durable when it returns.
    pub fn advance(&mut self) -> Result<(), JournalError> {
        self.number += 1;
        self.write()
    }

    fn write(&mut self) -> Result<(), JournalError> {
        let number = self.number.to_le_bytes();
        let content = [&number[..], blake3::hash(&number).as_bytes()].concat();
        if self.damaged {
            // What is longer than it should be would be damaged for ever.
            self.file.set_len(0).map_err(failed(&self.path, "cut"))?;
        }
        self.file
            .write_all_at(&content, 0)
            .and_then(|()| self.file.sync_data())
            .map_err(failed(&self.path, "write"))?;
        self.damaged = false;
        Ok(())
    }
}
