//! The bytes of the format are those in `golden/`, and a program of any later version reads them. `GOLDEN_WRITE=1`
//! writes them anew: only before the first release, or for variants that are new.
#![allow(clippy::unwrap_used)]

mod any_bytes;
mod example;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;

use any_bytes::PLACE;
use journal_format::frame::FRAME_HEADER_BYTES;
use journal_format::ledger::{decode_ledger_entry, ledger_key, ledger_value};
use journal_format::owner::{OWNER_FILE_BYTES, SLOT_BYTES, decode_owner_file};
use journal_format::{
    ChainEnd, ChunkRecordV1, ChunkState, ChunkValue, DirectionV1, EventV1, FrameError, LedgerSeal, OldVmRecordV1,
    PlanV1, RecordV1,
};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

fn seeds() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/frame")
}

/// A plan of one step: a variant that is added later changes no file that is there.
fn plan_of(edit: impl FnOnce(&mut PlanV1)) -> EventV1 {
    let mut plan = PlanV1 {
        steps: Vec::new(),
        clean_up: Vec::new(),
        images: Vec::new(),
        replaced: None,
        snapshots: Vec::new(),
        bases: Vec::new(),
        ..example::plan()
    };
    edit(&mut plan);
    EventV1::Begun { plan: Box::new(plan) }
}

fn name_of(variant: &impl Debug) -> String {
    let text = format!("{variant:?}");
    text.split_whitespace().next().unwrap().to_owned()
}

/// One frame per variant, each at the same place of a chain.
fn frames() -> Vec<(String, RecordV1)> {
    let mut events = example::events();
    for step in example::steps() {
        events.push((format!("step-{}", name_of(&step)), plan_of(|plan| plan.steps.push(step))));
    }
    for step in example::clean_up() {
        events.push((format!("clean-up-{}", name_of(&step)), plan_of(|plan| plan.clean_up.push(step))));
    }
    events.into_iter().map(|(name, event)| (name, example::record(3, 2, event))).collect()
}

fn owner_file() -> Vec<u8> {
    let mut file = example::owner(8, DirectionV1::Forward).encode_file().unwrap();
    file[SLOT_BYTES..].copy_from_slice(&example::owner(9, DirectionV1::RollingBack).encode_slot().unwrap());
    file
}

fn ledger() -> [(&'static str, ChunkRecordV1); 2] {
    let data = ChunkState::Data(ChunkValue([0xcd; 32]));
    [
        ("ledger-data", ChunkRecordV1 { index: 258, state: data }),
        ("ledger-zero", ChunkRecordV1 { index: 65_535, state: ChunkState::Zero }),
    ]
}

fn seal() -> LedgerSeal {
    let mut seal = LedgerSeal::default();
    for (_, record) in ledger() {
        seal.add(&ledger_key(1, record.index), &ledger_value(&record.state));
    }
    seal
}

fn files() -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    for (name, record) in frames() {
        files.push((format!("frame-{name}.bin"), PLACE.encode(&record).unwrap().0));
    }
    let owner_file = owner_file();
    files.push(("owner-slot-0.bin".into(), owner_file[..SLOT_BYTES].to_vec()));
    files.push(("owner-slot-1.bin".into(), owner_file[SLOT_BYTES..].to_vec()));
    for (name, record) in ledger() {
        let entry = [&ledger_key(1, record.index)[..], &ledger_value(&record.state)].concat();
        files.push((format!("{name}.bin"), entry));
    }
    for (name, record) in example::old_vm_records() {
        files.push((format!("old-vm-{name}.bin"), record.encode().unwrap()));
    }
    files.push(("ledger-seal.bin".into(), seal().encode().to_vec()));
    files.push(("transaction.bin".into(), example::frames(example::txn(), &example::transaction()).concat()));
    files.sort();
    files
}

/// A start for the fuzzer: whole things, and payloads without their envelope.
fn seed_files() -> Vec<(String, Vec<u8>)> {
    let payload = |bytes: &[u8]| bytes[FRAME_HEADER_BYTES..bytes.len() - 32].to_vec();
    let mut files = vec![("owner-file".to_owned(), owner_file())];
    for (name, bytes) in self::files() {
        let name = name.trim_end_matches(".bin").to_owned();
        if name.starts_with("frame-") {
            files.push((name.replace("frame-", "payload-"), payload(&bytes)));
        }
        if matches!(name.as_str(), "frame-begun" | "frame-committed" | "ledger-data" | "ledger-seal" | "transaction") {
            files.push((name, bytes));
        }
    }
    files.sort();
    files
}

fn names_in(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Writes both directories anew if that was asked for, once and before any test reads them.
fn prepare() {
    static PREPARED: Once = Once::new();
    PREPARED.call_once(|| {
        if std::env::var_os("GOLDEN_WRITE").is_some_and(|value| value == "1") {
            for (directory, files) in [(directory(), files()), (seeds(), seed_files())] {
                fs::create_dir_all(&directory).unwrap();
                for name in names_in(&directory) {
                    fs::remove_file(directory.join(name)).unwrap();
                }
                for (name, bytes) in files {
                    fs::write(directory.join(name), bytes).unwrap();
                }
            }
        }
    });
}

#[test]
fn bytes_are_the_golden_ones() {
    prepare();
    for (directory, files) in [(directory(), files()), (seeds(), seed_files())] {
        assert_eq!(names_in(&directory), files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>());
        for (name, bytes) in files {
            let golden = fs::read(directory.join(&name)).unwrap();
            assert!(golden == bytes, "{name}: the bytes changed (GOLDEN_WRITE=1 writes them anew)");
        }
    }
}

#[test]
fn golden_bytes_are_read() {
    prepare();
    let read = |name: &str| fs::read(directory().join(name)).unwrap();
    for (name, record) in frames() {
        let (frame, _) = PLACE.decode(&read(&format!("frame-{name}.bin"))).unwrap();
        assert_eq!(frame.record, record, "{name}");
    }
    let slots = [read("owner-slot-0.bin"), read("owner-slot-1.bin")].concat();
    assert_eq!(slots.len(), OWNER_FILE_BYTES);
    assert_eq!(decode_owner_file(&slots), Ok(example::owner(9, DirectionV1::RollingBack)));
    assert_eq!(decode_owner_file(&slots[..SLOT_BYTES]), Ok(example::owner(8, DirectionV1::Forward)));
    for (name, record) in ledger() {
        let bytes = read(&format!("{name}.bin"));
        assert_eq!(decode_ledger_entry(&bytes[..12], &bytes[12..]), Ok((1, record)));
    }
    assert_eq!(LedgerSeal::decode(&read("ledger-seal.bin")), Ok(seal()));

    for (name, record) in example::old_vm_records() {
        assert_eq!(OldVmRecordV1::decode(&read(&format!("old-vm-{name}.bin"))), Ok(record));
    }

    let log = read("transaction.bin");
    let (mut end, mut rest, mut records) = (ChainEnd::start(example::txn()), &log[..], Vec::new());
    while !rest.is_empty() {
        let (frame, behind) = end.decode(rest).unwrap();
        (end, rest) = (behind, &rest[frame.bytes..]);
        records.push(frame.record);
    }
    assert_eq!(records, example::transaction());
}

/// Every variant has a golden file: the number behind the last one is refused.
#[test]
fn the_example_has_every_variant() {
    let payload = |record: &RecordV1| {
        let bytes = PLACE.encode(record).unwrap().0;
        bytes[FRAME_HEADER_BYTES..bytes.len() - 32].to_vec()
    };
    let all: Vec<_> = frames().iter().map(|(name, record)| (name.clone(), payload(record))).collect();
    let starting = |prefix: &str| all.iter().filter(|(name, _)| name.starts_with(prefix)).cloned().collect::<Vec<_>>();
    // A step without fields is the 4 bytes before the (empty) lists of clean-up steps, snapshots and bases, one with a field has 4 more.
    let fields = |name: &str| {
        let known = example::steps()
            .iter()
            .map(|s| format!("{s:?}"))
            .chain(example::clean_up().iter().map(|s| format!("{s:?}")))
            .collect::<Vec<_>>();
        usize::from(known.iter().any(|text| text.starts_with(name) && text.contains('{')))
    };
    let from_end = |name: &str, payload: &[u8], behind: usize| payload.len() - behind - 4 - 4 * fields(name);
    let cases = [
        ("event", all.iter().map(|(_, payload)| (16, payload.clone())).collect::<Vec<_>>()),
        ("outcome", starting("done-").into_iter().map(|(_, payload)| (28, payload)).collect()),
        (
            "step",
            starting("step-")
                .into_iter()
                .map(|(name, payload)| (from_end(&name[5..], &payload, 24), payload))
                .collect(),
        ),
        (
            "clean-up step",
            starting("clean-up-")
                .into_iter()
                .map(|(name, payload)| (from_end(&name[9..], &payload, 16), payload))
                .collect(),
        ),
    ];
    for (what, payloads) in cases {
        let number = |at: usize, payload: &[u8]| u32::from_le_bytes(payload[at..at + 4].try_into().unwrap());
        let seen: BTreeSet<u32> = payloads.iter().map(|(at, payload)| number(*at, payload)).collect();
        let next = u32::try_from(seen.len()).unwrap();
        assert_eq!(seen, (0..next).collect(), "{what}");
        let (at, mut payload) = payloads.iter().find(|(at, payload)| number(*at, payload) == 0).unwrap().clone();
        payload[at..at + 4].copy_from_slice(&next.to_le_bytes());
        let error = PLACE.decode(&any_bytes::sealed(1, &payload)).unwrap_err();
        assert!(matches!(error, FrameError::Newer { .. }), "{what}: {error}");
        assert!(error.to_string().contains("variant"), "{what}: {error}");
    }
}

#[test]
fn the_seeds_are_survived() {
    prepare();
    for directory in [seeds(), directory()] {
        for name in names_in(&directory) {
            any_bytes::check(&fs::read(directory.join(name)).unwrap());
        }
    }
}
