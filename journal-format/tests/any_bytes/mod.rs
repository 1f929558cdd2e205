//! What must hold for any bytes whatever: nothing panics, and what decodes encodes to the same bytes. Used by the
//! property tests, by the seeds' test and by the fuzz target.
#![allow(dead_code, clippy::unwrap_used)] // each test that includes this uses its own part

use journal_format::frame::{FRAME_MAGIC, FRAME_VERSION};
use journal_format::ledger::decode_ledger_entry;
use journal_format::owner::{SLOT_BYTES, decode_owner_file, decode_slot};
use journal_format::{ChainEnd, Envelope, FrameError, FrameHash, LedgerSeal, TxnId};

pub fn check(bytes: &[u8]) {
    frame(bytes);
    // As a payload under a right hash: most bytes would never get past the hash otherwise.
    frame(&sealed(FRAME_VERSION, bytes));
    for number in 0..2 {
        if let Ok(owner) = decode_slot(number, bytes) {
            assert_eq!(owner.encode_slot().unwrap(), bytes[..SLOT_BYTES]);
        }
    }
    let _ = decode_owner_file(bytes);
    let (key, value) = bytes.split_at(bytes.len().min(12));
    let _ = decode_ledger_entry(key, value);
    let _ = LedgerSeal::decode(bytes);
}

fn frame(bytes: &[u8]) {
    let Ok(envelope) = Envelope::read(bytes) else { return };
    let place = ChainEnd { txn: envelope.txn, sequence: envelope.sequence, previous: envelope.previous };
    match place.decode(bytes) {
        Ok((frame, end)) => {
            assert_eq!(place.encode(&frame.record).unwrap(), (bytes[..frame.bytes].to_vec(), end));
        }
        Err(FrameError::Newer { .. }) => {}
        Err(error) => panic!("a whole frame in its place: {error}"),
    }
}

/// A frame with any version and payload and the right hash, put together by hand from SPEC.md.
pub fn sealed(version: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = FRAME_MAGIC.to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend(PLACE.txn.0);
    bytes.extend(PLACE.sequence.to_le_bytes());
    bytes.extend(PLACE.previous.0);
    bytes.extend(u32::try_from(payload.len()).unwrap().to_le_bytes());
    bytes.extend(payload);
    let hash = blake3::hash(&bytes);
    bytes.extend(hash.as_bytes());
    bytes
}

/// Where `sealed` frames belong.
pub const PLACE: ChainEnd = ChainEnd { txn: TxnId([3; 16]), sequence: 7, previous: FrameHash([5; 32]) };
