//! Damage of every kind: what is repaired, what is refused, and that nothing is written then.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use journal_format::frame::{FRAME_HEADER_BYTES, FRAME_VERSION};
use journal_format::{EventV1, RecordV1};
use kvm_clone::journal::verify::{Verdict, verify};
use kvm_clone::journal::{self, Journal, JournalError, Repair};

use super::{Home, chunk, content, example, first_records};

/// Frames of the example that the journals here hold: `Begun` and four small ones.
const COUNT: usize = 5;

fn frame_bytes(count: usize) -> Vec<Vec<u8>> {
    example::frames(example::txn(), &first_records(count))
}

fn store_directory(home: &Home) -> PathBuf {
    let mut stores: Vec<_> = fs::read_dir(home.directory()).unwrap().map(|entry| entry.unwrap().path()).collect();
    stores.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with("journal"));
    assert_eq!(stores.len(), 1, "{stores:?}");
    stores.remove(0)
}

/// The log of `home` becomes `bytes`; opening it makes these records and repairs, and afterwards all is well.
fn assert_repaired(home: &Home, bytes: &[u8], records: usize, repairs: &[Repair]) {
    fs::write(home.log(), bytes).unwrap();
    let verdict = verify(&home.state, example::txn()).unwrap().verdict;
    let expected = if repairs.is_empty() { Verdict::Sound } else { Verdict::Repairable(repairs.to_vec()) };
    assert_eq!(verdict, expected);
    let (journal, found) = home.open();
    assert_eq!(found, repairs);
    assert_eq!(journal.records(), first_records(records));
    drop(journal);
    assert_eq!(fs::read(home.log()).unwrap(), frame_bytes(records).concat());
    assert_eq!(verify(&home.state, example::txn()).unwrap().verdict, Verdict::Sound);
}

/// Opening is refused as damage, and changes no file.
fn assert_refused(home: &Home, what: &str) {
    let before = content(&home.directory());
    let verdict = verify(&home.state, example::txn()).unwrap().verdict;
    let error = home.open_error();
    match (&error, verdict) {
        (JournalError::Damaged { what: found, .. }, Verdict::Damaged(verdict)) => {
            assert!(found.contains(what), "{found}");
            assert_eq!(*found, verdict);
        }
        (error, verdict) => panic!("{error}, {verdict:?}"),
    }
    assert!(content(&home.directory()) == before, "something was written");
}

/// The store has one frame more than `records` in the log: the crash came between the two.
fn home_with_log_behind(count: usize) -> Home {
    let home = Home::with(count);
    let log = frame_bytes(count - 1).concat();
    fs::write(home.log(), log).unwrap();
    home
}

#[test]
fn a_log_cut_in_its_last_two_frames_is_restored() {
    let frames = frame_bytes(COUNT);
    let log = frames.concat();
    let home = Home::with(COUNT);
    let start = log.len() - frames[COUNT - 1].len() - frames[COUNT - 2].len();
    for cut in (start..log.len()).step_by(13) {
        let whole = if cut < log.len() - frames[COUNT - 1].len() { COUNT - 2 } else { COUNT - 1 };
        let restored = Repair::LogRestored { from: whole as u64, frames: (COUNT - whole) as u64 };
        assert_repaired(&home, &log[..cut], COUNT, &[restored]);
    }
}

#[test]
fn an_unfinished_append_that_no_copy_has_is_cut() {
    let frames = frame_bytes(COUNT + 1);
    let home = Home::with(COUNT);
    for cut in (1..frames[COUNT].len()).step_by(13) {
        let log = [&frames[..COUNT].concat(), &frames[COUNT][..cut]].concat();
        assert_repaired(&home, &log, COUNT, &[Repair::TailCut { sequence: COUNT as u64, bytes: cut as u64 }]);
    }
}

#[test]
fn an_append_that_only_the_log_has_is_completed() {
    let home = Home::with(COUNT);
    let log = frame_bytes(COUNT + 1).concat();
    assert_repaired(&home, &log, COUNT + 1, &[Repair::StoreCompleted { from: COUNT as u64, frames: 1 }]);
}

/// A sample: every bit of every frame is flipped where the two copies are judged, in `src/journal/chain.rs`.
#[test]
fn flipped_bytes_of_a_log_are_repaired_from_the_store() {
    let frames = frame_bytes(COUNT);
    let home = Home::with(COUNT);
    for (number, frame) in frames.iter().enumerate() {
        for at in [0, 5, 64, frame.len() / 2, frame.len() - 1] {
            let mut damaged = frames.clone();
            damaged[number][at] ^= 0x10;
            let restored = Repair::LogRestored { from: number as u64, frames: (COUNT - number) as u64 };
            assert_repaired(&home, &damaged.concat(), COUNT, &[restored]);
        }
    }
}

#[test]
fn a_flipped_byte_in_an_append_that_no_copy_has_is_cut() {
    let frames = frame_bytes(COUNT + 1);
    let home = Home::with(COUNT);
    for at in (0..frames[COUNT].len()).step_by(11) {
        let mut last = frames[COUNT].clone();
        last[at] ^= 0x10;
        let cut = Repair::TailCut { sequence: COUNT as u64, bytes: last.len() as u64 };
        assert_repaired(&home, &[frames[..COUNT].concat(), last].concat(), COUNT, &[cut]);
    }
}

#[test]
fn damage_with_a_whole_frame_behind_it_that_no_copy_has_is_refused() {
    let home = Home::with(COUNT);
    let mut frames = frame_bytes(COUNT + 2);
    frames[COUNT][40] ^= 1;
    fs::write(home.log(), frames.concat()).unwrap();
    assert_refused(&home, "and record 6 behind it is");
    let error = journal::read(&home.state, example::txn()).unwrap_err();
    assert!(matches!(error, JournalError::Damaged { .. }), "{error}");
}

#[test]
fn two_histories_are_refused() {
    let home = Home::with(COUNT);
    for whole in 1..COUNT {
        let mut records = first_records(COUNT + 1);
        records[whole].at.0 += 1; // from here on another history
        fs::write(home.log(), example::frames(example::txn(), &records).concat()).unwrap();
        assert_refused(&home, "two histories");
    }
}

#[test]
fn frames_of_another_transaction_are_refused() {
    let home = Home::with(COUNT);
    let stranger = example::frames(journal_format::TxnId([7; 16]), &first_records(1));
    fs::write(home.log(), [frame_bytes(COUNT).concat(), stranger[0].clone()].concat()).unwrap();
    assert_refused(&home, "belongs to transaction");
}

#[test]
fn frames_out_of_place_are_put_right_from_the_store() {
    let home = Home::with(COUNT);
    let order = |numbers: &[usize]| {
        numbers.iter().flat_map(|number| frame_bytes(COUNT).swap_remove(*number)).collect::<Vec<_>>()
    };
    let restored = |from: u64| [Repair::LogRestored { from, frames: COUNT as u64 - from }];
    assert_repaired(&home, &order(&[0, 2, 1, 3, 4]), COUNT, &restored(1));
    assert_repaired(&home, &order(&[1, 0, 2, 3, 4]), COUNT, &restored(0));
    assert_repaired(&home, &order(&[0, 1, 1, 2, 3, 4]), COUNT, &restored(2));
    assert_repaired(&home, &order(&[0, 1, 3, 4]), COUNT, &restored(2));
    let twice = order(&[0, 1, 2, 3, 4, 4]);
    let bytes = frame_bytes(COUNT)[4].len() as u64;
    assert_repaired(&home, &twice, COUNT, &[Repair::TailCut { sequence: COUNT as u64, bytes }]);
    // Each names the one before it, so the order is known without a second copy; a record that is gone is not.
    fs::remove_dir_all(store_directory(&home)).unwrap();
    let rebuilt = Repair::StoreRebuilt { why: "it is gone".into() };
    assert_repaired(&home, &order(&[0, 2, 1, 3, 4]), COUNT, &[restored(1).to_vec(), vec![rebuilt]].concat());
    fs::write(home.log(), order(&[0, 1, 3, 4])).unwrap();
    fs::remove_dir_all(store_directory(&home)).unwrap();
    assert_refused(
        &home,
        "record 2 is whole in no copy (events.log: has number 3, expected 2), and record 3 behind it is",
    );
}

#[test]
fn a_log_that_is_gone_is_restored() {
    let home = Home::with(COUNT);
    let restored = Repair::LogRestored { from: 0, frames: COUNT as u64 };
    assert_repaired(&home, &[], COUNT, std::slice::from_ref(&restored));
    fs::remove_file(home.log()).unwrap();
    let (journal, repairs) = home.open();
    assert_eq!((journal.records(), &repairs[..]), (&first_records(COUNT)[..], &[restored][..]));
}

#[test]
fn a_store_that_is_gone_is_made_anew() {
    let home = Home::new();
    let mut journal = home.write(COUNT);
    journal.record_chunks(0, &[chunk(1)]).unwrap();
    drop(journal);
    fs::remove_dir_all(store_directory(&home)).unwrap();
    let (journal, repairs) = home.open();
    assert_eq!(repairs, [Repair::StoreRebuilt { why: "it is gone".into() }]);
    assert_eq!(journal.records(), first_records(COUNT));
    assert!(journal.chunks(0).unwrap().is_empty());
    drop(journal);
    assert_eq!(home.open().1, []);
}

#[test]
fn a_store_that_was_never_checked_does_not_count() {
    let home = Home::with(COUNT);
    let half = home.directory().join("journal.7");
    fs::create_dir(&half).unwrap();
    fs::write(half.join("db"), b"half a copy").unwrap();
    let (journal, repairs) = home.open();
    assert_eq!((journal.records().len(), repairs.len()), (COUNT, 0));
    drop(journal);
    assert!(store_directory(&home).ends_with("journal.8"));
}

#[test]
fn nothing_at_all_is_refused() {
    let home = Home::with(COUNT);
    fs::remove_dir_all(store_directory(&home)).unwrap();
    fs::write(home.log(), b"").unwrap();
    assert_refused(&home, "no record is whole");
    let error = journal::read(&home.state, example::txn()).unwrap_err();
    assert!(matches!(error, JournalError::Damaged { .. }), "{error}");
}

#[test]
fn without_a_store_only_a_torn_end_is_cut() {
    let frames = frame_bytes(COUNT + 1);
    let whole = frames[..COUNT].concat();
    let home = Home::with(COUNT);
    let mut flipped = frames[COUNT].clone();
    flipped[70] ^= 1;
    fs::remove_dir_all(store_directory(&home)).unwrap();
    fs::write(home.log(), [whole.clone(), flipped].concat()).unwrap();
    assert_refused(&home, "no second copy has it");
    for torn in [frames[COUNT][..50].to_vec(), vec![0; 4096], [&frames[COUNT][..80], &[0; 200]].concat()] {
        fs::write(home.log(), [whole.clone(), torn.clone()].concat()).unwrap();
        let (journal, repairs) = home.open();
        assert_eq!(journal.records(), first_records(COUNT));
        assert_eq!(repairs[0], Repair::TailCut { sequence: COUNT as u64, bytes: torn.len() as u64 });
        drop(journal);
        fs::remove_dir_all(store_directory(&home)).unwrap();
    }
}

#[test]
fn a_torn_snapshot_of_the_store_is_left_out() {
    let home = Home::with(COUNT);
    fs::write(store_directory(&home).join("snap.0000000000000042.generating"), b"half").unwrap();
    let (journal, repairs) = home.open();
    assert_eq!(repairs, [Repair::TornSnapshot]);
    assert_eq!(journal.records(), first_records(COUNT));
}

/// Whatever happens to the store's bytes, no record is lost and no chunk is believed that was not recorded.
#[test]
fn any_damage_of_the_store_costs_at_most_the_ledger() {
    let home = Home::new();
    let mut journal = home.write(COUNT);
    let all: Vec<_> = (0..40).map(chunk).collect();
    for batch in all.chunks(4) {
        journal.record_chunks(0, batch).unwrap();
    }
    journal.forget_chunks(0).unwrap();
    for batch in all[..20].chunks(4) {
        journal.record_chunks(0, batch).unwrap();
    }
    drop(journal);
    let expected: std::collections::BTreeMap<_, _> = all[..20].iter().map(|chunk| (chunk.index, chunk.state)).collect();
    let mut dropped = 0;
    let pristine = content(&home.directory());
    let db_bytes = pristine.iter().find(|(path, _)| path.ends_with("db")).unwrap().1.clone();
    let used = db_bytes.iter().rposition(|byte| *byte != 0).unwrap();
    for at in (0..used).step_by(used / 150) {
        let directory = store_directory(&home);
        fs::remove_dir_all(&directory).unwrap();
        let directory = home.directory().join("journal");
        fs::create_dir_all(directory.join("blobs")).unwrap();
        for (path, bytes) in pristine.iter().filter(|(path, _)| path.parent().unwrap() != home.directory()) {
            fs::write(directory.join(path.file_name().unwrap()), bytes).unwrap();
        }
        let db = fs::OpenOptions::new().write(true).open(directory.join("db")).unwrap();
        db.write_all_at(&[db_bytes[at] ^ 0x04], at as u64).unwrap();
        drop(db);
        let (journal, repairs) = home.open();
        assert_eq!(journal.records(), first_records(COUNT), "byte {at}: {repairs:?}");
        let chunks = journal.chunks(0).unwrap();
        assert!(chunks.is_empty() || chunks == expected, "byte {at}: {chunks:?}");
        if chunks.is_empty() {
            dropped += 1;
            assert!(!repairs.is_empty(), "byte {at}: the ledger was lost in silence");
        }
    }
    assert!(dropped > 0, "no flipped bit reached anything");
}

#[test]
fn a_newer_log_is_refused_and_not_touched() {
    let frames = frame_bytes(COUNT);
    let home = Home::with(COUNT);
    let (newer, _) = frames_of_version(FRAME_VERSION + 1);
    for log in [[frames.concat(), newer].concat(), unknown_variant()] {
        fs::write(home.log(), log).unwrap();
        let before = content(&home.directory());
        let error = home.open_error();
        assert!(matches!(error, JournalError::Newer { .. }), "{error}");
        assert!(content(&home.directory()) == before, "something was written");
        let error = journal::read(&home.state, example::txn()).unwrap_err();
        assert!(matches!(error, JournalError::Newer { .. }), "{error}");
        assert!(matches!(verify(&home.state, example::txn()).unwrap().verdict, Verdict::Newer(_)));
    }
}

/// The frame behind the first `COUNT`, with another version and the right hash.
fn frames_of_version(version: u32) -> (Vec<u8>, RecordV1) {
    let record = first_records(COUNT + 1).remove(COUNT);
    let mut frame = frame_bytes(COUNT + 1).remove(COUNT);
    frame[4..8].copy_from_slice(&version.to_le_bytes());
    (sealed(frame), record)
}

/// A log whose last frame has an event that nobody knows here.
fn unknown_variant() -> Vec<u8> {
    let mut records = first_records(COUNT);
    records.push(RecordV1 { event: EventV1::Committed, ..records[COUNT - 1].clone() });
    let mut frames = example::frames(example::txn(), &records);
    let mut last = frames.remove(COUNT);
    last[FRAME_HEADER_BYTES + 16..FRAME_HEADER_BYTES + 20].copy_from_slice(&999_u32.to_le_bytes());
    frames.push(sealed(last));
    frames.concat()
}

fn sealed(mut frame: Vec<u8>) -> Vec<u8> {
    frame.truncate(frame.len() - 32);
    let hash = blake3::hash(&frame);
    frame.extend_from_slice(hash.as_bytes());
    frame
}

#[test]
fn a_crash_between_the_copies_is_healed_either_way() {
    let home = home_with_log_behind(COUNT);
    let (journal, repairs) = home.open();
    assert_eq!(repairs, [Repair::LogRestored { from: COUNT as u64 - 1, frames: 1 }]);
    assert_eq!(journal.records(), first_records(COUNT));
}
