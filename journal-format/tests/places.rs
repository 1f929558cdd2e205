//! A whole frame in a wrong place is told apart from a damaged one, and a newer one from both.
#![allow(clippy::unwrap_used)]

mod any_bytes;
mod example;

use any_bytes::{PLACE, sealed};
use journal_format::frame::FRAME_VERSION;
use journal_format::owner::{OWNER_FILE_BYTES, SLOT_BYTES, SLOT_VERSION, decode_owner_file};
use journal_format::{ChainEnd, DirectionV1, EventV1, FrameError, FrameHash, OwnerError, OwnerV1, SlotError, TxnId};

#[test]
fn each_wrong_place_has_its_name() {
    let record = example::record(1, 1, EventV1::Committed);
    let (frame, _) = PLACE.encode(&record).unwrap();
    let decode = |place: ChainEnd| place.decode(&frame).unwrap_err();
    assert_eq!(decode(ChainEnd { txn: TxnId([9; 16]), ..PLACE }), FrameError::WrongTxn { found: PLACE.txn });
    assert_eq!(decode(ChainEnd { sequence: 8, ..PLACE }), FrameError::WrongSequence { expected: 8, found: 7 });
    assert_eq!(decode(ChainEnd { previous: FrameHash([6; 32]), ..PLACE }), FrameError::BrokenChain);
    let payload = &frame[68..frame.len() - 32];
    assert_eq!(sealed(FRAME_VERSION, payload), frame);
    let newer = |what: &str| FrameError::Newer { what: what.into() };
    assert_eq!(PLACE.decode(&sealed(2, payload)).unwrap_err(), newer("frame version 2"));
    let trailing = [payload, &[0, 0, 0]].concat();
    assert_eq!(PLACE.decode(&sealed(FRAME_VERSION, &trailing)).unwrap_err(), newer("3 bytes left over"));
    let mut damaged = frame;
    damaged[4] = 2; // the version alone, without its hash
    assert_eq!(PLACE.decode(&damaged).unwrap_err(), FrameError::BadHash);
    assert_eq!(PLACE.decode(b"KVMX").unwrap_err(), FrameError::BadMagic);
    assert_eq!(PLACE.decode(b"KVM").unwrap_err(), FrameError::Short { have: 3, need: 100 });
}

#[test]
fn a_record_beyond_the_limit_is_not_written() {
    let reason = "x".repeat(journal_format::VALUE_BYTES_MAX);
    PLACE.encode(&example::record(1, 1, EventV1::Abandoned { reason })).unwrap_err();
    let owner = example::owner(0, DirectionV1::Forward);
    let controller = journal_format::ControllerId { machine_id: "x".repeat(4096), ..owner.controller.clone() };
    OwnerV1 { controller, ..owner }.encode_slot().unwrap_err();
}

#[test]
fn an_owner_file_without_a_valid_slot_names_nobody() {
    let zeros = vec![0; OWNER_FILE_BYTES];
    let empty = |second| OwnerError::NoValidSlot { first: SlotError::Empty, second };
    assert_eq!(decode_owner_file(&zeros), Err(empty(SlotError::Empty)));
    assert_eq!(decode_owner_file(&zeros[..5000]), Err(empty(SlotError::Short { have: 904 })));
    let short = |have| SlotError::Short { have };
    assert_eq!(decode_owner_file(&[]), Err(OwnerError::NoValidSlot { first: short(0), second: short(0) }));
    let mut both = example::owner(4, DirectionV1::Forward).encode_file().unwrap();
    both[100] ^= 1;
    both[SLOT_BYTES] = 1;
    let damaged = OwnerError::NoValidSlot { first: SlotError::Damaged, second: SlotError::Damaged };
    assert_eq!(decode_owner_file(&both), Err(damaged));
}

#[test]
fn slots_that_cannot_belong_together_name_nobody() {
    let first = example::owner(4, DirectionV1::Forward);
    let mut file = first.encode_file().unwrap();
    let stranger = OwnerV1 { txn: TxnId([9; 16]), ..example::owner(5, DirectionV1::Forward) };
    file[SLOT_BYTES..].copy_from_slice(&stranger.encode_slot().unwrap());
    assert_eq!(
        decode_owner_file(&file),
        Err(OwnerError::TwoTransactions { first: example::txn(), second: TxnId([9; 16]) })
    );
    // A newer slot outranks a valid one: which of them counts cannot be told here.
    let mut newer = first.encode_slot().unwrap();
    newer[4..8].copy_from_slice(&(SLOT_VERSION + 1).to_le_bytes());
    let hash = blake3::hash(&newer[..SLOT_BYTES - 32]);
    newer[SLOT_BYTES - 32..].copy_from_slice(hash.as_bytes());
    file[SLOT_BYTES..].copy_from_slice(&newer);
    assert_eq!(decode_owner_file(&file), Err(OwnerError::Newer { what: "slot version 2".into() }));
}
