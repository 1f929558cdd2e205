//! The old VM of a plan, and what is kept of it in the host record from the moment it is stopped: without that nobody could
//! tell afterwards whether it ran, or whether somebody used it since. SPEC.md has the layout.

use serde::{Deserialize, Serialize};

use crate::frame::EncodeError;
use crate::identity::{DomainUuid, Inode};
use crate::plan::ImageRoleV1;
use crate::wire;

/// First bytes of a record of the old VM.
pub const OLD_VM_MAGIC: [u8; 4] = *b"KVMR";
/// The version that is written: its payload is one `OldVmRecordV1`.
pub const OLD_VM_VERSION: u32 = 1;

const HEADER_BYTES: usize = 12;
const HASH_BYTES: usize = 32;

/// A VM that has the clone's name. Until the commit it is at most stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplacedV1 {
    /// Its UUID.
    pub uuid: DomainUuid,
    /// Its definition when it was planned (inactive, with secrets). Compared until the commit.
    pub definition: String,
    /// It was running when it was planned.
    pub running: bool,
    /// How it may be stopped.
    pub stop: StopModeV1,
    /// It stays, under `kept_name`, with all its files.
    pub keep: bool,
    /// The clone's name until the old VM has given way.
    pub clone_name: String,
    /// The old VM's name where it stays.
    pub kept_name: String,
    /// Where its memory goes with `StopModeV1::Save`: in the staging of the plan's first directory.
    pub saved_path: String,
    /// The files that are its own.
    pub files: Vec<OldFileV1>,
}

/// How the old VM may be stopped. Variants are only appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopModeV1 {
    /// Its guest is asked to shut down; one that does not within a minute is switched off.
    Shutdown,
    /// Its memory is saved first: a rollback brings it back as it was.
    Save,
    /// It is switched off.
    Destroy,
    /// Not at all.
    Never,
}

/// A file of the old VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OldFileV1 {
    /// What of it.
    pub role: ImageRoleV1,
    /// Its real path, behind all symlinks.
    pub path: String,
    /// What it looked like when it was planned.
    pub stamp: FileStampV1,
    /// What becomes of it after the commit.
    pub fate: OldFileFateV1,
}

/// What becomes of a file of the old VM. Variants are only appended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum OldFileFateV1 {
    /// Deleted, unless something else reaches it by then.
    Deleted {
        /// Index into `PlanV1::directories`: the nonce there tells whether the source's host sees the file too.
        directory: u32,
    },
    /// Left where it is.
    Left {
        /// Why, for people.
        why: String,
    },
}

/// What tells whether a file is still the same, and nobody wrote to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStampV1 {
    /// Which file.
    pub inode: Inode,
    /// Bytes.
    pub size: u64,
    /// Nanoseconds since 1970.
    pub mtime_ns: i128,
}

/// One file of the host record about the old VM. Variants are only appended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum OldVmRecordV1 {
    /// Durable before it is stopped.
    Stopping {
        /// It ran: a rollback starts it again.
        was_running: bool,
    },
    /// It is off.
    Stopped {
        /// Its files by then, in the order of the plan; `None`: there is none.
        stamps: Vec<Option<FileStampV1>>,
    },
    /// After the commit, before it is undefined or renamed: for a person who wants it back.
    Retiring {
        /// Its definition (inactive, with secrets).
        definition: String,
        /// It started with its host.
        autostart: bool,
        /// It is renamed, and stays.
        kept: bool,
        /// The definitions of its snapshots.
        snapshots: Vec<String>,
    },
    /// Before the clone gets the name: a power cut can tear the renaming, and leave neither name.
    Renaming {
        /// The clone's definition, with its mark.
        definition: String,
    },
}

/// Why a record of the old VM says nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OldVmRecordError {
    /// Not the bytes that were written.
    #[error("damaged")]
    Damaged,
    /// Whole, but written by rules that are not known here.
    #[error("written by a newer program: {what}")]
    Newer {
        /// What is not known.
        what: String,
    },
}

impl OldVmRecordV1 {
    /// The file's bytes.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        let payload = wire::encode(self)?;
        let length = u32::try_from(payload.len())
            .map_err(|_| EncodeError { what: format!("{} bytes are too many", payload.len()) })?;
        let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len() + HASH_BYTES);
        bytes.extend_from_slice(&OLD_VM_MAGIC);
        bytes.extend_from_slice(&OLD_VM_VERSION.to_le_bytes());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&payload);
        let hash = blake3::hash(&bytes);
        bytes.extend_from_slice(hash.as_bytes());
        Ok(bytes)
    }

    /// A record from a file's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, OldVmRecordError> {
        let split = bytes.len().checked_sub(HASH_BYTES).filter(|split| *split >= HEADER_BYTES);
        let (content, hash) = bytes.split_at(split.ok_or(OldVmRecordError::Damaged)?);
        if content[..4] != OLD_VM_MAGIC || *blake3::hash(content).as_bytes() != *hash {
            return Err(OldVmRecordError::Damaged);
        }
        let number_at =
            |at: usize| u32::from_le_bytes([content[at], content[at + 1], content[at + 2], content[at + 3]]);
        let newer = |what: String| OldVmRecordError::Newer { what };
        if number_at(4) != OLD_VM_VERSION {
            return Err(newer(format!("version {}", number_at(4))));
        }
        let payload = &content[HEADER_BYTES..];
        if usize::try_from(number_at(8)) != Ok(payload.len()) {
            return Err(newer(format!("{} bytes", number_at(8))));
        }
        wire::decode(payload).map_err(|error| newer(error.to_string()))
    }
}
