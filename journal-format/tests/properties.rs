//! What holds for every value and for any bytes.
#![allow(clippy::unwrap_used)]

mod any_bytes;
#[allow(clippy::type_complexity)]
mod arbitrary;

use any_bytes::{PLACE, check, sealed};
use journal_format::frame::FRAME_VERSION;
use journal_format::ledger::{decode_ledger_entry, ledger_key, ledger_value};
use journal_format::owner::{SLOT_BYTES, decode_owner_file, decode_slot};
use journal_format::{
    ChainEnd, ChunkRecordV1, ChunkState, ChunkValue, FrameError, FrameHash, LedgerSeal, OldVmRecordError,
    OldVmRecordV1, OwnerV1, SlotError, TxnId,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

fn place() -> impl Strategy<Value = ChainEnd> {
    (any::<[u8; 16]>(), 0..u64::MAX, any::<[u8; 32]>()).prop_map(|(txn, sequence, previous)| ChainEnd {
        txn: TxnId(txn),
        sequence,
        previous: FrameHash(previous),
    })
}

fn flip(bytes: &mut [u8], bit: Index) {
    let bit = bit.index(bytes.len() * 8);
    bytes[bit / 8] ^= 1 << (bit % 8);
}

proptest! {
    #[test]
    fn every_record_of_an_old_vm_comes_back_and_a_flipped_bit_is_detected(record in arbitrary::old_vm_record(), bit: Index) {
        let mut bytes = record.encode().unwrap();
        prop_assert_eq!(OldVmRecordV1::decode(&bytes), Ok(record));
        flip(&mut bytes, bit);
        prop_assert_eq!(OldVmRecordV1::decode(&bytes), Err(OldVmRecordError::Damaged));
    }

    #[test]
    fn any_bytes_are_no_record_of_an_old_vm(bytes in vec(any::<u8>(), 0..300)) {
        prop_assert_eq!(OldVmRecordV1::decode(&bytes), Err(OldVmRecordError::Damaged));
    }

    #[test]
    fn every_record_comes_back(place in place(), record in arbitrary::record(), behind in vec(any::<u8>(), 0..200)) {
        let (mut bytes, end) = place.encode(&record).unwrap();
        let length = bytes.len();
        bytes.extend(behind);
        let (frame, decoded_end) = place.decode(&bytes).unwrap();
        prop_assert_eq!(frame.record, record);
        prop_assert_eq!((frame.sequence, frame.bytes), (place.sequence, length));
        prop_assert_eq!(decoded_end, end);
        check(&bytes);
    }

    #[test]
    fn a_flipped_bit_is_detected(place in place(), record in arbitrary::record(), bit: Index, behind in vec(any::<u8>(), 0..200)) {
        let (mut bytes, _) = place.encode(&record).unwrap();
        flip(&mut bytes, bit);
        bytes.extend(behind); // a longer length must not find its hash there
        let error = place.decode(&bytes).unwrap_err();
        prop_assert!(
            matches!(error, FrameError::Short { .. } | FrameError::BadMagic | FrameError::BadLength { .. } | FrameError::BadHash),
            "{}", error
        );
    }

    #[test]
    fn a_cut_frame_is_unfinished(place in place(), record in arbitrary::record(), cut: Index) {
        let (bytes, _) = place.encode(&record).unwrap();
        let error = place.decode(&bytes[..cut.index(bytes.len())]).unwrap_err();
        prop_assert!(matches!(error, FrameError::Short { .. }), "{}", error);
    }

    #[test]
    fn any_bytes_are_survived(bytes in vec(any::<u8>(), 0..9000)) {
        check(&bytes);
    }

    #[test]
    fn any_payload_under_a_right_hash_is_known_or_newer(payload in vec(any::<u8>(), 0..400), version in prop_oneof![Just(FRAME_VERSION), any::<u32>()]) {
        match PLACE.decode(&sealed(version, &payload)) {
            Ok(_) => prop_assert_eq!(version, FRAME_VERSION),
            Err(error) => prop_assert!(matches!(error, FrameError::Newer { .. }), "{}", error),
        }
    }

    #[test]
    fn a_changed_payload_under_a_right_hash_is_known_or_newer(record in arbitrary::record(), bit: Index, extra in vec(any::<u8>(), 0..3)) {
        let (frame, _) = PLACE.encode(&record).unwrap();
        let mut payload = frame[68..frame.len() - 32].to_vec();
        flip(&mut payload, bit);
        payload.extend(&extra);
        match PLACE.decode(&sealed(FRAME_VERSION, &payload)) {
            Ok((frame, _)) => prop_assert_ne!(frame.record, record),
            Err(error) => prop_assert!(matches!(error, FrameError::Newer { .. }), "{}", error),
        }
        check(&payload);
    }

    #[test]
    fn every_owner_comes_back(owner in arbitrary::owner()) {
        let slot = owner.encode_slot().unwrap();
        prop_assert_eq!(slot.len(), SLOT_BYTES);
        prop_assert_eq!(decode_slot(owner.counter % 2, &slot), Ok(owner.clone()));
        prop_assert_eq!(decode_slot(1 - owner.counter % 2, &slot), Err(SlotError::Misplaced));
        prop_assert_eq!(decode_owner_file(&owner.encode_file().unwrap()), Ok(owner));
    }

    #[test]
    fn a_write_that_is_torn_leaves_the_slot_before(owner in arbitrary::owner(), torn_at in 0..SLOT_BYTES, junk: u8) {
        let owner = OwnerV1 { counter: owner.counter.min(u64::MAX - 1), ..owner };
        let next = OwnerV1 { counter: owner.counter + 1, epoch: owner.epoch, ..owner.clone() };
        let mut file = owner.encode_file().unwrap();
        let start = usize::try_from(next.offset()).unwrap();
        let mut slot = next.encode_slot().unwrap();
        let whole = slot.clone();
        slot[torn_at..].fill(junk);
        let expected = if slot == whole { &next } else { &owner };
        file[start..start + SLOT_BYTES].copy_from_slice(&slot);
        prop_assert_eq!(&decode_owner_file(&file).unwrap(), expected);
        file[start..start + SLOT_BYTES].copy_from_slice(&whole);
        prop_assert_eq!(decode_owner_file(&file).unwrap(), next);
    }

    #[test]
    fn a_flipped_bit_of_a_slot_is_detected(owner in arbitrary::owner(), bit: Index) {
        let mut slot = owner.encode_slot().unwrap();
        flip(&mut slot, bit);
        prop_assert_eq!(decode_slot(owner.counter % 2, &slot), Err(SlotError::Damaged));
    }

    #[test]
    fn ledger_entries_come_back_and_the_seal_knows_their_set(
        disk: u32, entries in proptest::collection::btree_map(any::<u64>(), proptest::option::of(any::<[u8; 32]>()), 1..20), lost: Index,
    ) {
        let mut seal = LedgerSeal::default();
        let mut found = LedgerSeal::default();
        let lost = lost.index(entries.len());
        for (number, (index, value)) in entries.into_iter().enumerate() {
            let state = value.map_or(ChunkState::Zero, |value| ChunkState::Data(ChunkValue(value)));
            let (key, value) = (ledger_key(disk, index), ledger_value(&state));
            prop_assert_eq!(decode_ledger_entry(&key, &value), Ok((disk, ChunkRecordV1 { index, state })));
            seal.add(&key, &value);
            if number != lost {
                found.add(&key, &value);
            }
        }
        prop_assert_eq!(LedgerSeal::decode(&seal.encode()), Ok(seal));
        prop_assert_ne!(seal, found);
    }
}
