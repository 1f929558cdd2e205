//! The owner file: who may act on a transaction's destination. Two slots are written in turn, so that a torn write
//! leaves the other; the valid one with the highest counter counts. SPEC.md has the layout.
//!
//! Whoever reads it holds, or is about to take, the owner lock on the same file. The file is never replaced: claims
//! are links to it.

use serde::{Deserialize, Serialize};

use crate::frame::EncodeError;
use crate::identity::{ControllerId, Epoch, TxnId};
use crate::wire;

/// Bytes of one slot.
pub const SLOT_BYTES: usize = 4096;
/// Bytes of the owner file: two slots.
pub const OWNER_FILE_BYTES: usize = 2 * SLOT_BYTES;
/// First bytes of every slot of every version.
pub const SLOT_MAGIC: [u8; 4] = *b"KVMO";
/// The version that is written: its payload is one `OwnerV1`.
pub const SLOT_VERSION: u32 = 1;

const SLOT_HEADER_BYTES: usize = 12;
const SLOT_HASH_AT: usize = SLOT_BYTES - 32;

/// Where a transaction is going, as far as every controller is bound by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DirectionV1 {
    /// Towards the commit.
    Forward,
    /// Only back. Written before the first undo.
    RollingBack,
}

/// The content of one slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerV1 {
    /// Raised by every write, from 0. Even ones live in the first slot, odd ones in the second.
    pub counter: u64,
    /// The transaction.
    pub txn: TxnId,
    /// The attempt that wrote it.
    pub epoch: Epoch,
    /// The controller that drives it.
    pub controller: ControllerId,
    /// Process id of the destination's agent.
    pub agent_pid: u32,
    /// Start time of that agent in clock ticks since boot.
    pub agent_started: u64,
    /// Where it is going.
    pub direction: DirectionV1,
}

impl OwnerV1 {
    /// Where in the owner file this one is written, in bytes.
    pub const fn offset(&self) -> u64 {
        (self.counter % 2) * SLOT_BYTES as u64
    }

    /// The slot's bytes: `SLOT_BYTES` of them.
    pub fn encode_slot(&self) -> Result<Vec<u8>, EncodeError> {
        let payload = wire::encode(self)?;
        let room = SLOT_HASH_AT - SLOT_HEADER_BYTES;
        let too_long = || EncodeError { what: format!("{} bytes do not fit the slot's {room}", payload.len()) };
        if payload.len() > room {
            return Err(too_long());
        }
        let length = u32::try_from(payload.len()).map_err(|_| too_long())?;
        let mut slot = Vec::with_capacity(SLOT_BYTES);
        slot.extend_from_slice(&SLOT_MAGIC);
        slot.extend_from_slice(&SLOT_VERSION.to_le_bytes());
        slot.extend_from_slice(&length.to_le_bytes());
        slot.extend_from_slice(&payload);
        slot.resize(SLOT_HASH_AT, 0);
        let hash = blake3::hash(&slot);
        slot.extend_from_slice(hash.as_bytes());
        Ok(slot)
    }

    /// The bytes of a new owner file that holds only this one: `OWNER_FILE_BYTES` of them.
    pub fn encode_file(&self) -> Result<Vec<u8>, EncodeError> {
        let slot = self.encode_slot()?;
        let mut file = vec![0; OWNER_FILE_BYTES];
        let start = if self.counter.is_multiple_of(2) { 0 } else { SLOT_BYTES };
        file[start..start + SLOT_BYTES].copy_from_slice(&slot);
        Ok(file)
    }
}

/// Why one slot says nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// Never written.
    #[error("empty")]
    Empty,
    /// The file ends inside it.
    #[error("cut off after {have} bytes")]
    Short {
        /// Bytes there are.
        have: usize,
    },
    /// Not the bytes that were written.
    #[error("damaged")]
    Damaged,
    /// Whole, but its counter belongs into the other slot.
    #[error("in the wrong place")]
    Misplaced,
    /// Whole, but written by rules that are not known here.
    #[error("written by a newer program: {what}")]
    Newer {
        /// What is not known.
        what: String,
    },
}

/// Why an owner file names nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OwnerError {
    /// Neither slot is valid.
    #[error("no slot of the owner file is valid (first: {first}; second: {second})")]
    NoValidSlot {
        /// The first slot.
        first: SlotError,
        /// The second slot.
        second: SlotError,
    },
    /// A slot is newer than this program, so which one counts cannot be told.
    #[error("the owner file was written by a newer program: {what}")]
    Newer {
        /// What is not known.
        what: String,
    },
    /// The slots name two transactions.
    #[error("the slots of the owner file belong to two transactions, {first} and {second}")]
    TwoTransactions {
        /// The first slot's.
        first: TxnId,
        /// The second slot's.
        second: TxnId,
    },
}

/// Decodes the slot of this number (0 or 1).
pub fn decode_slot(number: u64, bytes: &[u8]) -> Result<OwnerV1, SlotError> {
    let Some(slot) = bytes.first_chunk::<SLOT_BYTES>() else {
        return Err(SlotError::Short { have: bytes.len() });
    };
    if slot.iter().all(|byte| *byte == 0) {
        return Err(SlotError::Empty);
    }
    let (content, hash) = slot.split_at(SLOT_HASH_AT);
    if content[..4] != SLOT_MAGIC || *blake3::hash(content).as_bytes() != *hash {
        return Err(SlotError::Damaged);
    }
    let number_at = |at: usize| u32::from_le_bytes([content[at], content[at + 1], content[at + 2], content[at + 3]]);
    let newer = |what: String| SlotError::Newer { what };
    if number_at(4) != SLOT_VERSION {
        return Err(newer(format!("slot version {}", number_at(4))));
    }
    let length = usize::try_from(number_at(8)).unwrap_or(usize::MAX);
    let payload = content[SLOT_HEADER_BYTES..].get(..length).ok_or_else(|| newer(format!("{length} bytes")))?;
    let owner: OwnerV1 = wire::decode(payload).map_err(|error| newer(error.to_string()))?;
    if owner.counter % 2 == number { Ok(owner) } else { Err(SlotError::Misplaced) }
}

/// Decodes an owner file: the valid slot with the highest counter. The next write has its counter plus one, and
/// so goes into the other slot.
pub fn decode_owner_file(bytes: &[u8]) -> Result<OwnerV1, OwnerError> {
    let (first, second) = bytes.split_at(bytes.len().min(SLOT_BYTES));
    match (decode_slot(0, first), decode_slot(1, second)) {
        (Err(SlotError::Newer { what }), _) | (_, Err(SlotError::Newer { what })) => Err(OwnerError::Newer { what }),
        (Ok(first), Ok(second)) if first.txn != second.txn => {
            Err(OwnerError::TwoTransactions { first: first.txn, second: second.txn })
        }
        (Ok(first), Ok(second)) => Ok(if first.counter > second.counter { first } else { second }),
        (Ok(only), Err(_)) | (Err(_), Ok(only)) => Ok(only),
        (Err(first), Err(second)) => Err(OwnerError::NoValidSlot { first, second }),
    }
}
