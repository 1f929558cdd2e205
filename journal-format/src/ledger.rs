//! The bytes of a ledger's entries, and the seal that tells whether all entries of an image are there.
//!
//! An entry is a promise that a chunk is durable. Losing one costs re-hashing; believing one that was taken back costs
//! correctness. So each image has a seal over its entries, and a ledger that does not match its seal is dropped whole.

use crate::event::{ChunkRecordV1, ChunkState};
use crate::identity::ChunkValue;

/// Bytes of an entry's key: image, then chunk, both big-endian so that keys sort.
pub const LEDGER_KEY_BYTES: usize = 12;
/// Bytes of a seal.
pub const LEDGER_SEAL_BYTES: usize = 41;

const VERSION: u8 = 1;
const DATA: u8 = 0;
const ZERO: u8 = 1;

/// Why a ledger's bytes say nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// The lengths are wrong.
    #[error("a ledger entry of {key_bytes} + {value_bytes} bytes")]
    Shape {
        /// Bytes of the key.
        key_bytes: usize,
        /// Bytes of the value.
        value_bytes: usize,
    },
    /// A version or kind that is not known here.
    #[error("a ledger entry of version {version}, kind {kind}")]
    Newer {
        /// First byte.
        version: u8,
        /// Second byte.
        kind: u8,
    },
}

/// The key of one chunk's entry.
pub fn ledger_key(image: u32, index: u64) -> [u8; LEDGER_KEY_BYTES] {
    let mut key = [0; LEDGER_KEY_BYTES];
    key[..4].copy_from_slice(&image.to_be_bytes());
    key[4..].copy_from_slice(&index.to_be_bytes());
    key
}

/// The value of one chunk's entry.
pub fn ledger_value(state: &ChunkState) -> Vec<u8> {
    match state {
        ChunkState::Data(value) => {
            let mut bytes = vec![VERSION, DATA];
            bytes.extend_from_slice(&value.0);
            bytes
        }
        ChunkState::Zero => vec![VERSION, ZERO],
    }
}

/// Disk and chunk of one entry.
pub fn decode_ledger_entry(key: &[u8], value: &[u8]) -> Result<(u32, ChunkRecordV1), LedgerError> {
    let shape = || LedgerError::Shape { key_bytes: key.len(), value_bytes: value.len() };
    let (image, index) = key.split_first_chunk::<4>().ok_or_else(shape)?;
    let index: &[u8; 8] = index.try_into().map_err(|_| shape())?;
    let (&[version, kind], rest) = value.split_first_chunk::<2>().ok_or_else(shape)?;
    let state = match (version, kind) {
        (VERSION, DATA) => ChunkState::Data(ChunkValue(rest.try_into().map_err(|_| shape())?)),
        (VERSION, ZERO) if rest.is_empty() => ChunkState::Zero,
        (VERSION, ZERO) => return Err(shape()),
        _ => return Err(LedgerError::Newer { version, kind }),
    };
    Ok((u32::from_be_bytes(*image), ChunkRecordV1 { index: u64::from_be_bytes(*index), state }))
}

/// The number of an image's entries and the exclusive or of their BLAKE3 values (key, then value).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LedgerSeal {
    count: u64,
    mix: [u8; 32],
}

impl LedgerSeal {
    /// An entry joins.
    pub fn add(&mut self, key: &[u8], value: &[u8]) {
        self.count = self.count.wrapping_add(1);
        self.toggle(key, value);
    }

    /// An entry leaves.
    pub fn remove(&mut self, key: &[u8], value: &[u8]) {
        self.count = self.count.wrapping_sub(1);
        self.toggle(key, value);
    }

    /// How many entries it covers.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Its bytes: version, count (little-endian), exclusive or.
    pub fn encode(&self) -> [u8; LEDGER_SEAL_BYTES] {
        let mut bytes = [0; LEDGER_SEAL_BYTES];
        bytes[0] = VERSION;
        bytes[1..9].copy_from_slice(&self.count.to_le_bytes());
        bytes[9..].copy_from_slice(&self.mix);
        bytes
    }

    /// A seal from its bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, LedgerError> {
        let shape = || LedgerError::Shape { key_bytes: 4, value_bytes: bytes.len() };
        let bytes: &[u8; LEDGER_SEAL_BYTES] = bytes.try_into().map_err(|_| shape())?;
        if bytes[0] != VERSION {
            return Err(LedgerError::Newer { version: bytes[0], kind: 0 });
        }
        let count = u64::from_le_bytes(bytes[1..9].try_into().map_err(|_| shape())?);
        Ok(Self { count, mix: bytes[9..].try_into().map_err(|_| shape())? })
    }

    fn toggle(&mut self, key: &[u8], value: &[u8]) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(key).update(value);
        self.mix.iter_mut().zip(hasher.finalize().as_bytes()).for_each(|(mix, byte)| *mix ^= byte);
    }
}
