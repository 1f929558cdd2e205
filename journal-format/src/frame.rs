//! A frame: one record with what proves its place and its bytes. `events.log` is frames one after the other, and the
//! second copy holds the same bytes. SPEC.md has the layout.
//!
//! Decoding takes any bytes and never panics. A frame whose hash is right was written as it stands: what is not
//! understood in it is newer, never damaged.

use std::fmt;

use crate::event::RecordV1;
use crate::identity::TxnId;
use crate::wire::{self, VALUE_BYTES_MAX, WireError};

/// First bytes of every frame of every version.
pub const FRAME_MAGIC: [u8; 4] = *b"KVMJ";
/// The version that is written: its payload is one `RecordV1`.
pub const FRAME_VERSION: u32 = 1;
/// Bytes before the payload.
pub const FRAME_HEADER_BYTES: usize = 68;
/// Bytes after the payload.
pub const FRAME_HASH_BYTES: usize = 32;
/// Bytes of the shortest frame.
pub const FRAME_BYTES_MIN: usize = FRAME_HEADER_BYTES + FRAME_HASH_BYTES;
/// Bytes of the longest frame.
pub const FRAME_BYTES_MAX: usize = FRAME_BYTES_MIN + VALUE_BYTES_MAX;

const TXN_AT: usize = 8;
const SEQUENCE_AT: usize = 24;
const PREVIOUS_AT: usize = 32;
const LENGTH_AT: usize = 64;

/// BLAKE3 of a frame's bytes before the hash itself; zeros stand before the first frame.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameHash(pub [u8; 32]);

impl FrameHash {
    /// What the first frame names as the one before it.
    pub const NONE: Self = Self([0; 32]);
}

impl fmt::Display for FrameHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for FrameHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FrameHash({self})")
    }
}

/// One frame, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its number in the journal, from 0.
    pub sequence: u64,
    /// The hash it ends with.
    pub hash: FrameHash,
    /// Bytes it takes, header and hash included.
    pub bytes: usize,
    /// What it says.
    pub record: RecordV1,
}

/// Why bytes are not the frame that was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The bytes end before the frame does: an append that was cut off, or a truncated file.
    #[error("unfinished: {have} bytes of {need}")]
    Short {
        /// Bytes there are.
        have: usize,
        /// Bytes the frame needs, as far as can be told.
        need: usize,
    },
    /// No frame begins here.
    #[error("no frame begins here (wrong magic)")]
    BadMagic,
    /// The length cannot be: no frame that long is ever written.
    #[error("impossible length of {length} bytes")]
    BadLength {
        /// The payload's length as it stands there.
        length: u32,
    },
    /// The bytes are not those that were written.
    #[error("the hash does not match: damaged")]
    BadHash,
    /// Whole, but of another transaction.
    #[error("belongs to transaction {found}")]
    WrongTxn {
        /// Whose it is.
        found: TxnId,
    },
    /// Whole, but not the next one.
    #[error("has number {found}, expected {expected}")]
    WrongSequence {
        /// The number that was expected.
        expected: u64,
        /// The number it has.
        found: u64,
    },
    /// Whole and of the right number, but it continues another history.
    #[error("does not continue the frame before it")]
    BrokenChain,
    /// Whole and in its place, but written by rules that are not known here.
    #[error("written by a newer program: {what}")]
    Newer {
        /// What is not known.
        what: String,
    },
}

/// A record that cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the record cannot be encoded: {what}")]
pub struct EncodeError {
    /// Why.
    pub what: String,
}

impl From<WireError> for EncodeError {
    fn from(error: WireError) -> Self {
        Self { what: error.to_string() }
    }
}

/// The end of a transaction's chain of frames: where the next one belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainEnd {
    /// The transaction.
    pub txn: TxnId,
    /// The next frame's number.
    pub sequence: u64,
    /// The last frame's hash.
    pub previous: FrameHash,
}

impl ChainEnd {
    /// The end of an empty chain.
    pub const fn start(txn: TxnId) -> Self {
        Self { txn, sequence: 0, previous: FrameHash::NONE }
    }

    /// The bytes of the next frame, and the end of the chain behind it.
    pub fn encode(&self, record: &RecordV1) -> Result<(Vec<u8>, Self), EncodeError> {
        let payload = wire::encode(record)?;
        let length = u32::try_from(payload.len()).map_err(|_| WireError::TooLong(payload.len()))?;
        let mut bytes = Vec::with_capacity(FRAME_BYTES_MIN + payload.len());
        bytes.extend_from_slice(&FRAME_MAGIC);
        bytes.extend_from_slice(&FRAME_VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.txn.0);
        bytes.extend_from_slice(&self.sequence.to_le_bytes());
        bytes.extend_from_slice(&self.previous.0);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&payload);
        let hash = FrameHash(*blake3::hash(&bytes).as_bytes());
        bytes.extend_from_slice(&hash.0);
        Ok((bytes, self.behind(hash)))
    }

    /// The frame at the start of `bytes` (more may follow it), and the end of the chain behind it.
    pub fn decode(&self, bytes: &[u8]) -> Result<(Frame, Self), FrameError> {
        let envelope = Envelope::read(bytes)?;
        if envelope.txn != self.txn {
            return Err(FrameError::WrongTxn { found: envelope.txn });
        }
        if envelope.sequence != self.sequence {
            return Err(FrameError::WrongSequence { expected: self.sequence, found: envelope.sequence });
        }
        if envelope.previous != self.previous {
            return Err(FrameError::BrokenChain);
        }
        if envelope.version != FRAME_VERSION {
            return Err(FrameError::Newer { what: format!("frame version {}", envelope.version) });
        }
        let record = wire::decode(envelope.payload).map_err(|error| FrameError::Newer { what: error.to_string() })?;
        let frame = Frame { sequence: envelope.sequence, hash: envelope.hash, bytes: envelope.bytes, record };
        Ok((frame, self.behind(envelope.hash)))
    }

    const fn behind(&self, hash: FrameHash) -> Self {
        Self { txn: self.txn, sequence: self.sequence + 1, previous: hash }
    }
}

/// A frame whose hash is right, its payload not looked at. The same in every version of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// Which version wrote it.
    pub version: u32,
    /// Whose it is.
    pub txn: TxnId,
    /// Its number, from 0.
    pub sequence: u64,
    /// The hash of the frame before it.
    pub previous: FrameHash,
    /// Its payload.
    pub payload: &'a [u8],
    /// The hash it ends with.
    pub hash: FrameHash,
    /// Bytes it takes, header and hash included.
    pub bytes: usize,
}

impl<'a> Envelope<'a> {
    /// The envelope at the start of `bytes`; more may follow it.
    pub fn read(bytes: &'a [u8]) -> Result<Self, FrameError> {
        let short = |need| FrameError::Short { have: bytes.len(), need };
        let magic_there = bytes.len().min(FRAME_MAGIC.len());
        if bytes[..magic_there] != FRAME_MAGIC[..magic_there] {
            return Err(FrameError::BadMagic);
        }
        let header: &[u8; FRAME_HEADER_BYTES] = bytes.first_chunk().ok_or_else(|| short(FRAME_BYTES_MIN))?;
        let length = u32::from_le_bytes(array(header, LENGTH_AT));
        let payload_bytes = usize::try_from(length).unwrap_or(usize::MAX);
        if payload_bytes > VALUE_BYTES_MAX {
            return Err(FrameError::BadLength { length });
        }
        let hash_at = FRAME_HEADER_BYTES + payload_bytes;
        let end = hash_at + FRAME_HASH_BYTES;
        if bytes.len() < end {
            return Err(short(end));
        }
        let hash = FrameHash(array(bytes, hash_at));
        if *blake3::hash(&bytes[..hash_at]).as_bytes() != hash.0 {
            return Err(FrameError::BadHash);
        }
        Ok(Self {
            version: u32::from_le_bytes(array(header, FRAME_MAGIC.len())),
            txn: TxnId(array(header, TXN_AT)),
            sequence: u64::from_le_bytes(array(header, SEQUENCE_AT)),
            previous: FrameHash(array(header, PREVIOUS_AT)),
            payload: &bytes[FRAME_HEADER_BYTES..hash_at],
            hash,
            bytes: end,
        })
    }
}

/// `N` bytes at an offset that the caller checked.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}
