//! The power fails at random moments while a journal is written; `KVM_CLONE_POWER_CUTS` says how often (`tests/course`). A
//! child writes and says what was acknowledged; the disk below it fails; what the child had said must be there again. Needs
//! root.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use journal_format::{ChunkRecordV1, ChunkState, EventV1, RecordV1};
use kvm_clone::journal::{FileJournal, Journal, Repair, StateDir};

use super::course::{Course, Violation, print_rows, said_by};
use super::damaged::{Choices, Seeded};
use super::power::Disk;
use super::{chunk, example};

const ROUNDS_DEFAULT: u64 = 12;
/// `seed:begins:state directory`, for a child.
const ROUND_VARIABLE: &str = "KVM_CLONE_TEST_POWER";
/// What a child has acknowledged at most when the power fails.
const ACKNOWLEDGED_MAX: u64 = 40;
/// The power fails up to this long after an acknowledgement.
const MOMENT_MICROSECONDS_MAX: u64 = 4000;
const DISKS: u32 = 2;
/// A child never gets this far.
const WRITES_MAX: u64 = 100_000;

/// One write of a child.
#[derive(Debug, Clone, Copy)]
enum Writing {
    Event,
    Chunks { disk: u32, first: u64, count: u64 },
    Forget { disk: u32 },
}

/// The writes of a round, as its seed has them.
fn writes(seed: u64) -> impl Iterator<Item = Writing> {
    let mut choices = Seeded(seed);
    std::iter::repeat_with(move || match choices.below(10) {
        0..5 => Writing::Event,
        5..9 => {
            let disk = u32::try_from(choices.below(u64::from(DISKS))).unwrap();
            Writing::Chunks { disk, first: choices.below(2000), count: 1 + choices.below(64) }
        }
        _ => Writing::Forget { disk: u32::try_from(choices.below(u64::from(DISKS))).unwrap() },
    })
    .take(WRITES_MAX as usize)
}

fn record(number: u64) -> RecordV1 {
    match number {
        0 => example::transaction().remove(0),
        // Some are larger than a block.
        _ if number.is_multiple_of(5) => {
            example::record(number, 1, EventV1::Abandoned { reason: "x".repeat(number as usize % 11 * 1000) })
        }
        _ => example::record(number, 1, EventV1::Committed),
    }
}

fn chunks(first: u64, count: u64) -> Vec<ChunkRecordV1> {
    (first..first + count).map(chunk).collect()
}

/// Not a test of its own: what the children do. A line for each acknowledgement, until the disk is gone.
#[test]
fn write_in_a_child() {
    let Ok(round) = std::env::var(ROUND_VARIABLE) else { return };
    let words: Vec<&str> = round.splitn(3, ':').collect();
    let state = StateDir::at(std::path::Path::new(words[2])).unwrap();
    let journal = match words[1] {
        "true" => FileJournal::create(&state, record(0)),
        _ => FileJournal::open(&state, example::txn()).map(|(journal, _)| journal),
    };
    let Ok(mut journal) = journal else { return };
    let mut out = std::io::stdout();
    writeln!(out, "\nopen").unwrap();
    for write in writes(words[0].parse().unwrap()) {
        let next = journal.records().len() as u64;
        let written = match write {
            Writing::Event => journal.append(next, record(next)),
            Writing::Chunks { disk, first, count } => journal.record_chunks(disk, &chunks(first, count)),
            Writing::Forget { disk } => journal.forget_chunks(disk),
        };
        if written.is_err() {
            return;
        }
        writeln!(out, "did").unwrap();
    }
}

/// What a journal must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Held {
    records: u64,
    ledgers: BTreeMap<u32, BTreeMap<u64, ChunkState>>,
}

impl Held {
    fn take(&mut self, write: Writing) {
        match write {
            Writing::Event => self.records += 1,
            Writing::Chunks { disk, first, count } => {
                let ledger = self.ledgers.entry(disk).or_default();
                ledger.extend(chunks(first, count).into_iter().map(|chunk| (chunk.index, chunk.state)));
            }
            Writing::Forget { disk } => drop(self.ledgers.remove(&disk)),
        }
    }

    fn told(&self) -> String {
        let chunks: Vec<_> =
            self.ledgers.iter().map(|(disk, ledger)| format!("{} of disk {disk}", ledger.len())).collect();
        format!("{} records, chunks: {}", self.records, chunks.join(", "))
    }

    fn of(journal: &FileJournal) -> Self {
        let found = journal.records();
        for (number, found) in (0..).zip(found) {
            assert_eq!(*found, record(number), "record {number}");
        }
        let ledgers = (0..DISKS).map(|disk| (disk, journal.chunks(disk).unwrap()));
        Self { records: found.len() as u64, ledgers: ledgers.filter(|(_, ledger)| !ledger.is_empty()).collect() }
    }
}

/// What all rounds came to.
#[derive(Default)]
struct Sums {
    acknowledged: u64,
    in_flight_kept: u64,
    repaired: u64,
    unborn: u64,
}

/// Lets a child write until the power fails; how many lines it said.
fn cut(disk: &Disk, seed: u64, begins: bool, choices: &mut Seeded) -> u64 {
    let state = disk.state();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "power_cuts::write_in_a_child", "--nocapture"])
        .env(ROUND_VARIABLE, format!("{seed}:{begins}:{}", state.path().display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let wanted = choices.below(ACKNOWLEDGED_MAX);
    let mut said = 0;
    let is_said = |line: &String| line == "open" || line == "did";
    while said < wanted {
        match lines.next() {
            Some(line) => said += u64::from(is_said(&line)),
            None => panic!("round {seed}: the child ended by itself"),
        }
    }
    // The moment is the point here: anywhere between two acknowledgements. Nothing is waited for.
    let moment = Instant::now() + Duration::from_micros(choices.below(MOMENT_MICROSECONDS_MAX));
    while Instant::now() < moment {
        std::hint::spin_loop();
    }
    disk.fail();
    said += lines.filter(is_said).count() as u64;
    child.wait().unwrap();
    disk.come_back();
    said
}

/// Opens what is left; `held` is what was acknowledged, and becomes what is there.
fn check(disk: &Disk, seed: u64, held: &mut Held, said: u64, sums: &mut Sums) {
    let begun = held.records > 0;
    let mut expected = held.clone();
    expected.records = expected.records.max(u64::from(said > 0));
    let mut rest = writes(seed);
    (&mut rest).take(said.saturating_sub(1) as usize).for_each(|write| expected.take(write));
    if expected.records == 0 && disk.state().transactions().unwrap().is_empty() {
        sums.unborn += 1;
        return;
    }
    let (journal, repairs) = FileJournal::open(&disk.state(), example::txn()).unwrap();
    let found = Held::of(&journal);
    // What was being written when the power failed may be there as well.
    let mut possible = expected.clone();
    match said {
        0 => possible.records = possible.records.max(1),
        _ => possible.take(rest.next().unwrap()),
    }
    assert!(
        found == expected || found == possible,
        "round {seed}: there is {}, acknowledged was {} in {said} lines\n{repairs:?}",
        found.told(),
        expected.told()
    );
    for repair in &repairs {
        let is_expected = match repair {
            Repair::TailCut { .. }
            | Repair::LogRestored { .. }
            | Repair::StoreCompleted { .. }
            | Repair::TornSnapshot => true,
            // Its first store was not finished: the transaction was about to begin.
            Repair::StoreRebuilt { .. } => !begun && said == 0,
            _ => false,
        };
        assert!(is_expected, "round {seed}: {repair}");
    }
    sums.acknowledged += said;
    sums.in_flight_kept += u64::from(found != expected);
    sums.repaired += u64::from(!repairs.is_empty());
    *held = found;
}

#[test]
fn what_was_acknowledged_survives_the_power_failing_at_any_moment() {
    let Some(disk) = Disk::make() else { return };
    let course = Course::of_environment("KVM_CLONE_POWER_CUTS", ROUNDS_DEFAULT);
    let (mut held, mut sums, mut rounds, mut broken) = (Held::default(), Sums::default(), 0, Vec::new());
    while let (Some(seed), true) = (course.next(), broken.is_empty()) {
        let mut choices = Seeded(seed ^ 0x5eed);
        // Many journals are young when the power fails, and a long one costs time to read.
        if held.records > 400 || choices.below(4) == 0 {
            held = Held::default();
            disk.clear();
        }
        let lived = catch_unwind(AssertUnwindSafe(|| {
            let said = cut(&disk, seed, held.records == 0, &mut choices);
            check(&disk, seed, &mut held, said, &mut sums);
        }));
        rounds += 1;
        if let Err(panic) = lived {
            let replay = format!("KVM_CLONE_SEED={seed} cargo test --test journal power_cuts");
            broken.push(Violation { seed, story: said_by(&*panic), replay });
        }
    }
    let rows = [
        ("seconds", course.took().as_secs()),
        ("first seed", course.first()),
        ("power cuts", rounds),
        ("acknowledged writes", sums.acknowledged),
        ("a write in flight was kept", sums.in_flight_kept),
        ("repaired", sums.repaired),
        ("cut before it began", sums.unborn),
    ];
    print_rows("power cuts of the controller", &rows.map(|(what, count)| (what.to_owned(), count)), &broken);
    assert!(broken.is_empty(), "a power cut broke a promise; the rows above say which");
    assert!(sums.acknowledged > 0, "nothing was written");
}
