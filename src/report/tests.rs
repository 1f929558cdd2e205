//! Whole transactions and how they are shown.
#![allow(clippy::unwrap_used)]

use journal_format::{AttemptPurpose, EndV1, EventV1, FindingV1, OutcomeV1, StepRef, UnixMillis};

use super::fixture::{DISK_BYTES, Journal, failure, plan};
use super::list::{ListEntry, table};
use super::live::LiveProgress;
use super::plan::Foresight;
use super::show::{choices, human, next};
use super::status::Status;
use super::transaction::TransactionLog;
use crate::history::History;
use crate::observer::Progress;
use crate::preflight::{Blocker, BlockerKind, Report, Warning, WarningKind};

const TRANSFER: StepRef = StepRef::Forward(3);

fn status(journal: &Journal, held: bool) -> Status {
    Status::of(&History::of(&journal.records).unwrap(), held)
}

fn log(journal: &Journal, held: bool, live: Option<LiveProgress>) -> TransactionLog {
    TransactionLog::of(&journal.records, held, live).unwrap()
}

fn live(done_bytes: u64) -> LiveProgress {
    let progress = Progress { step: TRANSFER, done_bytes, total_bytes: DISK_BYTES };
    LiveProgress::new(&progress, 100_000_000, UnixMillis(1_700_000_100_000))
}

fn stuck() -> EventV1 {
    let finding = FindingV1 {
        step: Some(StepRef::Forward(5)),
        expected: "our image".into(),
        found: "somebody else's".into(),
        commands: vec!["ls -li /srv/vm".into()],
    };
    EventV1::Stuck { finding }
}

#[test]
fn every_status_follows_from_the_events_and_the_lock() {
    let begun = || Journal::begun().did(1, 0..3);
    let back = || begun().then(1, EventV1::RollingBack { failure: failure("no") });
    for (journal, held, expected) in [
        (begun(), true, Status::Running),
        (begun(), false, Status::Interrupted),
        (begun().then(1, EventV1::Suspended { failure: failure("link") }), false, Status::Interrupted),
        (back(), true, Status::RollingBack),
        (back(), false, Status::RollingBack),
        (back().then(1, EventV1::Finished { end: EndV1::RolledBack }), false, Status::RolledBack),
        (begun().then(1, EventV1::Committed), true, Status::CleaningUp),
        (begun().then(1, EventV1::Committed), false, Status::CleaningUp),
        (begun().committed(1), false, Status::Committed),
        (begun().then(1, stuck()), false, Status::Stuck),
        (begun().then(1, stuck()).attempt(2, AttemptPurpose::Resume), true, Status::Running),
        (begun().then(1, EventV1::Abandoned { reason: "enough".into() }), false, Status::Abandoned),
    ] {
        assert_eq!(status(&journal, held), expected);
    }
}

#[test]
fn a_resumed_and_finished_transaction_is_logged_with_its_counters() {
    let journal = Journal::begun()
        .did(1, 0..3)
        .then(1, EventV1::Started { step: TRANSFER })
        .then(1, EventV1::Suspended { failure: failure("kvm2: the link is gone") })
        .attempt(2, AttemptPurpose::Resume)
        .did(2, 3..7)
        .committed(2);
    let log = serde_json::to_value(log(&journal, false, Some(live(5)))).unwrap();
    for (pointer, expected) in [
        ("/transaction_id", "0198c0de-1111-7000-8000-0000deadbeef"),
        ("/operation_type", "clone"),
        ("/started_at", "2023-11-14T22:13:20Z"),
        ("/status", "committed"),
        ("/source/vm_name", "web01"),
        ("/destination/vm_name", "web01_clone"),
        ("/disks/0/root", "abababababababababababababababababababababababababababababababab"),
        ("/disks/0/verification", "re-read"),
        ("/attempts/1/purpose", "resume"),
        ("/failures/0/event", "suspended"),
        ("/failures/0/message", "kvm2: the link is gone"),
        ("/steps/3/kind", "transfer_image"),
        ("/steps/3/object", "vda"),
        ("/steps/3/state", "done"),
        ("/steps/9/phase", "clean_up"),
        ("/resources/2/resource_type", "disk"),
        ("/resources/2/resource_id", "/srv/vm/web01_clone-vda.qcow2"),
        ("/resources/2/host", "kvm2"),
        ("/resources/2/metadata/final_path", "/srv/vm/web01_clone-vda.qcow2"),
        ("/resources/2/state", "present"),
        ("/resources/1/resource_type", "staging_directory"),
        ("/resources/1/state", "removed"),
        ("/resources/3/resource_id", "7b2f3f0e-0d5d-4b55-9c1d-0123456789ab"),
    ] {
        assert_eq!(log.pointer(pointer).and_then(|value| value.as_str()), Some(expected), "{pointer}");
    }
    for (pointer, expected) in [
        ("/disks/0/missing_bytes", 600_000_000),
        ("/disks/0/sent_bytes", 610_000_000),
        ("/disks/0/ledger_bytes", DISK_BYTES),
        ("/steps/3/attempts", 2),
        ("/progress/percent", 100),
        ("/progress/steps_done", 10),
    ] {
        assert_eq!(log.pointer(pointer).and_then(serde_json::Value::as_u64), Some(expected), "{pointer}");
    }
    assert_eq!(log["events"].as_array().unwrap().len(), journal.records.len());
    assert!(log["progress"]["live"].is_null(), "a finished transaction has no live progress");
    assert!(log["completed_at"].is_string());
}

#[test]
fn what_is_running_shows_what_it_last_reported() {
    let journal = Journal::begun().did(1, 0..3).then(1, EventV1::Started { step: TRANSFER });
    let running = log(&journal, true, Some(live(DISK_BYTES / 2)));
    assert_eq!(running.progress.percent, 25, "half of the transfer, nothing of the reading back");
    assert_eq!(running.disks[0].ledger_bytes, Some(DISK_BYTES / 2));
    let text = human(&running, false, "kvm-clone");
    assert!(text.contains("transfer_image vda: 2.00 GB of 4.00 GB, 100.00 MB/s"), "{text}");
    assert!(!text.contains("Next"), "nothing is to be done about a running transaction: {text}");
    let entry = ListEntry::from(&running);
    assert_eq!(entry.step.as_deref(), Some("transfer_image vda"));
    let table = table(&[(UnixMillis(1_700_000_000_000), entry)], UnixMillis(1_700_000_065_000));
    let row = table.lines().nth(1).unwrap();
    for part in ["deadbeef", "web01 → web01_clone", "kvm1 → kvm2", "running", "25 %, steps 3/10", "1m 5s"] {
        assert!(row.contains(part), "{part}: {table}");
    }
}

#[test]
fn an_interrupted_transaction_says_how_to_go_on_and_what_that_does() {
    let journal = Journal::begun().did(1, 0..3).then(1, EventV1::Suspended { failure: failure("kvm2: gone") });
    let text = human(&log(&journal, false, None), true, "kvm-clone --state-dir /s");
    for part in [
        "interrupted",
        "kvm2: gone",
        "hint: look at the link",
        "kvm-clone --state-dir /s resume 0198c0de-1111-7000-8000-0000deadbeef",
        "kvm-clone --state-dir /s rollback 0198c0de-1111-7000-8000-0000deadbeef",
        "removes the 3 things it made on kvm2",
        "does the 7 steps that are left",
        "attempt_opened",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn only_what_a_status_allows_is_suggested() {
    let begun = || Journal::begun().did(1, 0..7);
    let commands = |journal: &Journal| -> Vec<&str> {
        choices(&log(journal, false, None)).into_iter().map(|(command, _)| command).collect()
    };
    assert_eq!(commands(&begun()), ["resume", "rollback"]);
    let back = begun().then(1, EventV1::RollingBack { failure: failure("no") });
    assert_eq!(commands(&back), ["rollback"]);
    assert_eq!(commands(&back.then(1, stuck())), ["rollback", "abandon"]);
    assert_eq!(commands(&begun().then(1, EventV1::Committed)), ["resume"]);
    assert_eq!(commands(&begun().committed(1)), [""; 0]);
    assert_eq!(next(&log(&begun().committed(1), false, None), "kvm-clone"), "");
}

#[test]
fn a_stuck_transaction_shows_what_was_found_and_what_to_type() {
    let text = human(&log(&Journal::begun().then(1, stuck()), false, None), false, "kvm-clone");
    for part in ["A person must act", "our image", "somebody else's", "$ ls -li /srv/vm"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_clone_that_was_removed_after_its_commit_is_not_said_to_be_there() {
    let step = StepRef::CleanUp(0);
    let journal = Journal::begun()
        .did(1, 0..7)
        .then(1, EventV1::Committed)
        .then(2, EventV1::Started { step })
        .then(2, EventV1::Done { step, outcome: OutcomeV1::AlreadySo });
    let log = log(&journal, false, None);
    let domain = log.resources.iter().find(|resource| resource.resource_type == "domain").unwrap();
    assert_eq!(domain.state, "removed");
    let text = human(&log, false, "kvm-clone");
    assert!(text.contains("the VM web01_clone was no longer defined on kvm2"), "{text}");
}

#[test]
fn a_journal_without_a_plan_is_no_transaction() {
    assert!(TransactionLog::of(&[], false, None).is_err());
}

#[test]
fn a_plan_is_shown_whole() {
    let (plan, report) = (plan(), Report::default());
    let foresight = Foresight::of(&report, Some(&plan)).unwrap();
    let text = foresight.human();
    for part in [
        "web01 on kvm1",
        "web01_clone on kvm2",
        "1.00 GB to move",
        "transfer vda",
        "-- commit",
        "4.00 GB",
        "domain/name               web01 ",
        "7b2f3f0e-0d5d-4b55-9c1d-0123456789ab\n",
        "<clone transaction=\"0198c0de-1111-7000-8000-0000deadbeef\">",
        "Nothing is in the way. Nothing was touched.\n",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let view = foresight.plan.unwrap();
    let changed: Vec<_> = view.changes.iter().map(|change| change.path.as_str()).collect();
    assert_eq!(changed, ["domain/name", "domain/uuid", "domain/metadata", "domain/metadata/clone"]);
    assert_eq!(view.steps.len(), 10);
    assert_eq!(view.estimated_seconds, 10, "5 s to move and 5 s to read back");
}

#[test]
fn all_that_is_in_the_way_is_one_table() {
    let blocker = |message: &str| Blocker {
        kind: BlockerKind::Space,
        host: "kvm2".into(),
        message: message.into(),
        advice: "Do something.".into(),
    };
    let warning = Warning { kind: WarningKind::Cpus, host: "b".into(), message: "few".into(), advice: String::new() };
    let report = Report { blockers: vec![blocker("too\nlittle"), blocker("again")], warnings: vec![warning] };
    let foresight = Foresight::of(&report, None).unwrap();
    assert_eq!(
        foresight.human(),
        "PREFLIGHT  HOST  WHAT, AND WHAT TO DO\n\
         blocker    kvm2  too little Do something.\n\
         blocker    kvm2  again Do something.\n\
         warning    b     few\n\
         \nNothing was touched.\n"
    );
    let json = serde_json::to_value(&foresight).unwrap();
    assert_eq!(json["plan"], serde_json::Value::Null);
    assert_eq!((&json["blockers"][1]["kind"], &json["warnings"][0]["kind"]), (&"space".into(), &"cpus".into()));
}
