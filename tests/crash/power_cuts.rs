//! The destination loses its power at random moments of a clone by the real program, and boots again: nothing that was not
//! synced is there any more. What the journal says is done has to be there, and so has every chunk that the ledger names;
//! then the clone is resumed or rolled back, and the power may fail again on the way.
//!
//! `KVM_CLONE_HOST_POWER_CUTS` says how many clones are treated so.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use blake3::hazmat::HasherExt;
use journal_format::{ChunkState, EventV1, OutcomeV1, PlanV1, RecordV1, ReopenCauseV1};
use kvm_clone::journal::{FileJournal, Journal, StateDir};
use nix::sys::signal::Signal;

use super::course::Course;
use super::ground::{CHUNK_BYTES, Ground, RUN, SOURCE, records, stop_at};
use super::lab::{Content, Controller, Disk, Finished, Lab, Running, Vm};
use super::rounds::{Counts, Rounds, count};
use super::seed::Seed;

const ROUNDS_DEFAULT: u64 = 6;
const LABS: usize = 2;
const RANDOM_BYTES: u64 = 12 << 20;
/// Of the transfer: a clone takes about two seconds, most of them in the transfer.
const RATE: &str = "10M";
const CUTS_MAX: u64 = 3;
/// A clone that is not stopped at a boundary loses the power within this.
const MOMENT_MILLIS_MAX: u64 = 2800;
/// About as many records as a clone has.
const RECORDS_OF_A_CLONE: u64 = 40;
/// Of the transfers of one attempt.
const LEDGER_WRITES: u64 = 5;

fn ground() -> Ground {
    let random = Disk::raw(RANDOM_BYTES).content(Content::Random);
    Ground::of(Lab::up_with_loop(), Vm::new(SOURCE).disk(random).disk(Disk::qcow2(2 << 20).seed(7)))
}

/// When the power fails.
#[derive(Debug)]
enum Moment {
    /// The program stands at this boundary of its journal.
    At(String),
    /// So long after its start, wherever it is then.
    After(Duration),
}

impl Moment {
    fn of(choices: &mut Seed, records: u64) -> Self {
        let side = *choices.pick(&["before", "after"]);
        match choices.below(8) {
            0..3 => Self::At(format!(
                "{side}:{}",
                records + choices.below(RECORDS_OF_A_CLONE.saturating_sub(records).max(4))
            )),
            3..5 => Self::At(format!("{side}-ledger:{}", choices.below(LEDGER_WRITES))),
            _ => Self::After(Duration::from_millis(choices.below(MOMENT_MILLIS_MAX))),
        }
    }

    /// Runs until then. How it ended, if it ended before.
    fn come(&self, controller: &Controller, arguments: &[&str]) -> Result<Running, Finished> {
        match self {
            Self::At(boundary) => stop_at(controller, boundary, arguments.iter().copied()),
            Self::After(duration) => {
                let until = Instant::now() + *duration;
                let mut running = controller.spawn(arguments);
                // The moment is the point here: anywhere within a clone. Nothing is waited for.
                while Instant::now() < until {
                    if running.has_ended() {
                        return Err(running.wait());
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                Ok(running)
            }
        }
    }
}

/// What was durable, by the journal, when the power failed: chunks of each disk.
type Ledgers = BTreeMap<u32, BTreeMap<u64, ChunkState>>;

/// Reads the ledger from a copy: opening may repair, and that is the program's own affair.
fn ledgers(controller: &Controller, plan: &PlanV1) -> Ledgers {
    let (state, copy) = (controller.state_dir(), controller.state_dir().with_extension("copy"));
    assert!(Command::new("cp").arg("-a").args([&state, &copy]).status().unwrap().success());
    let (journal, _) = FileJournal::open(&StateDir::at(&copy).unwrap(), plan.txn).unwrap();
    let disks = 0..u32::try_from(plan.images.len()).unwrap();
    let ledgers = disks.map(|disk| (disk, journal.chunks(disk).unwrap())).collect();
    drop(journal);
    std::fs::remove_dir_all(copy).unwrap();
    ledgers
}

fn is_there(image: &File, index: u64, state: &ChunkState, bytes: u64) -> bool {
    let offset = index * CHUNK_BYTES;
    let mut chunk = vec![0; usize::try_from(CHUNK_BYTES.min(bytes - offset)).unwrap()];
    if image.read_exact_at(&mut chunk, offset).is_err() {
        return false;
    }
    match state {
        ChunkState::Zero => chunk.iter().all(|byte| *byte == 0),
        ChunkState::Data(value) => {
            let mut hasher = blake3::Hasher::new();
            hasher.set_input_offset(offset);
            hasher.update(&chunk).finalize_non_root() == value.0
        }
    }
}

/// Every chunk that the ledger names is on the disk of the host that has booted again.
fn assert_on_disk(ground: &Ground, plan: &PlanV1, ledgers: &Ledgers, when: &str) -> u64 {
    let mut checked = 0;
    for (disk, ledger) in ledgers.iter().filter(|(_, ledger)| !ledger.is_empty()) {
        let planned = &plan.images[*disk as usize];
        let paths = [&planned.staging_path, &planned.final_path].map(|path| ground.lab.b().path(path));
        let image = paths.iter().find_map(|path| File::open(path).ok());
        let image = image.unwrap_or_else(|| panic!("{when}: the ledger of disk {disk} names chunks of no image"));
        let bytes = planned.source_stamp.size;
        let lost: Vec<_> =
            ledger.iter().filter(|(index, state)| !is_there(&image, **index, state, bytes)).map(|(at, _)| at).collect();
        assert!(lost.is_empty(), "{when}: chunks {lost:?} of disk {disk} are in the ledger and not on the disk");
        checked += ledger.len() as u64;
    }
    checked
}

fn planned(records: &[RecordV1]) -> Option<&PlanV1> {
    records.iter().find_map(|record| match &record.event {
        EventV1::Begun { plan } => Some(plan.as_ref()),
        _ => None,
    })
}

/// A step that was done is never found undone.
fn assert_nothing_reopened(records: &[RecordV1], when: &str) {
    for record in records {
        let gone = matches!(
            record.event,
            EventV1::Reopened { cause: ReopenCauseV1::EffectGone | ReopenCauseV1::ReadBackDiffers, .. }
        );
        assert!(!gone, "{when}: a done step was gone: {:?}", record.event);
    }
}

/// What an attempt sent is what the ledger did not have when it began.
fn assert_little_is_sent_again(plan: &PlanV1, ledgers: &Ledgers, news: &[RecordV1], when: &str) {
    let mut disks = plan.images.iter().zip(ledgers.values());
    let done = news.iter().filter_map(|record| match &record.event {
        EventV1::Done { outcome: OutcomeV1::Transferred { sent_bytes, source_size, .. }, .. } => {
            Some((*sent_bytes, *source_size))
        }
        _ => None,
    });
    for (sent, size) in done {
        let (_, ledger) = disks.find(|(disk, _)| disk.source_stamp.size == size).expect("an image of the plan");
        let missing = (size.div_ceil(CHUNK_BYTES) - ledger.len() as u64) * CHUNK_BYTES;
        assert!(sent <= missing, "{when}: {sent} bytes of {size} were sent, and {missing} were not in the ledger");
    }
}

fn is_committed(ground: &Ground, plan: &PlanV1, records: &[RecordV1]) -> bool {
    let mark = Path::new("/var/lib/kvm-clone/host").join(plan.txn.to_string()).join("committed");
    records.iter().any(|record| record.event == EventV1::Committed) || ground.lab.b().path(mark).exists()
}

/// The program is cut off by the power, and mostly dies too; then the host boots.
fn lose_power(
    ground: &Ground,
    controller: &Controller,
    running: Running,
    choices: &mut Seed,
    counts: &mut Counts,
    when: &str,
) {
    count(counts, "power cuts");
    ground.lab.b().cut_power();
    if choices.chance(70) {
        running.kill();
        ground.lab.b().boot();
        return;
    }
    count(counts, "power cuts that the program outlived");
    ground.lab.b().boot();
    running.signal(Signal::SIGCONT);
    let finished = running.wait();
    // What had all it needed from that host, or asked it nothing before, ends well; what had not begun is refused.
    let refused = finished.code() == Some(5) && records(controller).is_empty();
    assert!(refused || matches!(finished.code(), Some(0 | 3)), "{when}: {finished:?}");
}

fn round(ground: &Ground, seed: u64, counts: &mut Counts) {
    let mut choices = Seed::new(seed);
    let controller = ground.lab.controller();
    let limited = [&RUN[..], &["--bandwidth-limit", RATE]].concat();
    let (mut back, mut txn) = (false, None::<String>);
    let mut when = format!("seed {seed}");
    for _ in 0..=choices.below(CUTS_MAX) {
        let known = records(&controller);
        let moment = Moment::of(&mut choices, known.len() as u64);
        let arguments = match (&txn, back) {
            (None, _) => limited.clone(),
            (Some(txn), false) => vec!["resume", txn, "--bandwidth-limit", RATE],
            (Some(txn), true) => vec!["rollback", txn],
        };
        write!(when, ", {} loses the power {moment:?}", arguments[0]).unwrap();
        let running = match moment.come(&controller, &arguments) {
            Ok(running) => running,
            Err(finished) => {
                // Too late for this moment: what is done stays done.
                let refused = back && finished.code() == Some(5);
                assert!(refused || finished.code() == Some(0), "{when}: {finished:?}");
                count(counts, "power cuts");
                ground.lab.b().cut_power();
                ground.lab.b().boot();
                break;
            }
        };
        lose_power(ground, &controller, running, &mut choices, counts, &when);
        let now = records(&controller);
        assert!(now.starts_with(&known), "{when}: records are gone");
        let Some(plan) = planned(&now) else {
            return ground.assert_untouched(&when);
        };
        txn = Some(plan.txn.to_string());
        if !back && !now.iter().any(|record| matches!(record.event, EventV1::Finished { .. })) {
            let checked = assert_on_disk(ground, plan, &ledgers(&controller, plan), &when);
            *counts.entry("chunks checked on the disk").or_default() += checked;
        }
        back |= choices.chance(30);
    }
    end(ground, &controller, back || choices.chance(20), &when, counts);
}

/// Brings the transaction to its end, one way or the other, and looks at it from outside.
fn end(ground: &Ground, controller: &Controller, back: bool, when: &str, counts: &mut Counts) {
    let known = records(controller);
    let Some(plan) = planned(&known) else {
        return ground.assert_untouched(when);
    };
    let txn = plan.txn.to_string();
    let marked = is_committed(ground, plan, &known);
    if back && !marked {
        let rolled_back = controller.run(["rollback", &txn]);
        assert_eq!(rolled_back.code(), Some(0), "{when}: {rolled_back:?}");
        assert_nothing_reopened(&records(controller), when);
        count(counts, "rolled back");
        return ground.assert_untouched(when);
    }
    if back {
        let refused = controller.run(["rollback", &txn]);
        assert_eq!(refused.code(), Some(5), "{when}: {refused:?}");
    }
    let ledgers = ledgers(controller, plan);
    let resumed = controller.run(["resume", &txn]);
    assert_eq!(resumed.code(), Some(0), "{when}: {resumed:?}");
    let now = records(controller);
    assert_nothing_reopened(&now, when);
    assert_little_is_sent_again(plan, &ledgers, &now[known.len()..], when);
    count(counts, "committed");
    // And once more, with nothing left to be done.
    ground.lab.b().cut_power();
    ground.lab.b().boot();
    count(counts, "power cuts");
    ground.assert_cloned_and_clear(when);
}

#[test]
fn nothing_that_is_done_is_lost_when_the_destination_loses_its_power() {
    let rounds = Rounds { name: "power cuts of the destination", test: "power_cuts", labs: LABS, ground, round };
    let counts = rounds.go(&Course::of_environment("KVM_CLONE_HOST_POWER_CUTS", ROUNDS_DEFAULT));
    assert!(counts["power cuts"] >= counts["rounds"], "{counts:?}");
}
