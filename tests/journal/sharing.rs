//! One process drives a transaction, others see who it is and read along; how transactions are found.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;

use journal_format::{EventV1, TxnId};
use kvm_clone::journal::verify::{Verdict, export, verify};
use kvm_clone::journal::{self, FileJournal, Journal, JournalError, StateDir, StateDirError, TxnLock};

use super::{Home, chunk, example, first_records};

/// Set for a child process: the state directory whose transaction it holds.
const HOLD_VARIABLE: &str = "KVM_CLONE_TEST_HOLD";

/// Not a test of its own: what the child of the tests below does. It opens, says so, and waits for its end.
#[test]
fn hold_in_a_child() {
    let Some(state) = std::env::var_os(HOLD_VARIABLE) else { return };
    let state = StateDir::at(std::path::Path::new(&state)).unwrap();
    let (_journal, _) = FileJournal::open(&state, example::txn()).unwrap();
    println!("\nholding");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

struct HoldingChild {
    child: Child,
    _output: BufReader<ChildStdout>,
}

impl HoldingChild {
    fn start(home: &Home) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sharing::hold_in_a_child", "--nocapture"])
            .env(HOLD_VARIABLE, home.state.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while line != "holding\n" {
            line.clear();
            assert_ne!(output.read_line(&mut line).unwrap(), 0, "the child ended");
        }
        Self { child, _output: output }
    }
}

impl Drop for HoldingChild {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_lock_names_its_holder_and_is_free_when_the_holder_is_dead() {
    let home = Home::with(3);
    assert_eq!(TxnLock::holder(&home.directory()).unwrap(), None);
    let mut child = HoldingChild::start(&home);
    let pid = child.child.id();

    let holder = TxnLock::holder(&home.directory()).unwrap().unwrap();
    assert_eq!(holder.pid, pid);
    assert_eq!(holder.host, nix::unistd::gethostname().unwrap().to_string_lossy());
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let started = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().parse::<u64>().unwrap();
    assert_eq!(holder.started, started);
    assert!(holder.since.starts_with("20") && holder.since.ends_with('Z'), "{}", holder.since);
    match home.open_error() {
        JournalError::Held { pid: named, since, .. } => assert_eq!((named, since), (pid, holder.since.clone())),
        error => panic!("{error}"),
    }
    // Readers see it held, and all of it.
    let snapshot = journal::read(&home.state, example::txn()).unwrap();
    assert_eq!((snapshot.records, snapshot.holder), (first_records(3), Some(holder)));
    let report = verify(&home.state, example::txn()).unwrap();
    assert_eq!((report.copies.len(), report.verdict), (1, Verdict::Sound));

    child.child.kill().unwrap();
    child.child.wait().unwrap();
    assert_eq!(TxnLock::holder(&home.directory()).unwrap(), None);
    assert_eq!(home.open().1, []);
}

#[test]
fn the_same_process_cannot_open_twice() {
    let home = Home::with(2);
    let (_first, _) = home.open();
    assert!(matches!(home.open_error(), JournalError::Held { pid, .. } if pid == std::process::id()));
}

#[test]
fn a_reader_sees_a_growing_prefix_while_another_writes() {
    let home = Home::new();
    let mut journal = home.write(2);
    let count = 400;
    let state = home.state.clone();
    let reader = thread::spawn(move || {
        let (mut seen, mut reads) = (0, 0_u64);
        while seen < count {
            let snapshot = journal::read(&state, example::txn()).unwrap();
            assert!(snapshot.records.len() >= seen, "records went away");
            assert!(snapshot.holder.is_some());
            seen = snapshot.records.len();
            reads += 1;
        }
        reads
    });
    for number in 2..count as u64 {
        journal.append(number, example::record(number, 1, EventV1::Committed)).unwrap();
        journal.record_chunks(0, &[chunk(number)]).unwrap();
    }
    assert!(reader.join().unwrap() > 10);
}

#[test]
fn an_export_is_the_log() {
    let home = Home::with(6);
    let mut exported = Vec::new();
    assert_eq!(export(&home.state, example::txn(), &mut exported).unwrap(), 6);
    assert_eq!(exported, std::fs::read(home.log()).unwrap());
    let report = verify(&home.state, example::txn()).unwrap();
    assert_eq!(report.verdict, Verdict::Sound);
    assert_eq!(report.copies[0].frames, report.copies[1].frames);
    assert_eq!(report.copies[0].frames.len(), 6);
}

#[test]
fn transactions_are_found_by_the_ends_of_their_ids() {
    let home = Home::new();
    let mut ids = Vec::new();
    for last in [1_u8, 2] {
        let mut id = example::txn();
        id.0[15] = last;
        let plan = journal_format::PlanV1 { txn: id, ..example::plan() };
        drop(FileJournal::create(&home.state, example::record(0, 0, EventV1::Begun { plan: Box::new(plan) })).unwrap());
        ids.push(id);
    }
    let text = ids[0].to_string();
    let find = |given: &str| home.state.find(given);
    assert_eq!(find(&text).unwrap(), ids[0]);
    assert_eq!(find(&text[text.len() - 8..].to_uppercase()).unwrap(), ids[0]);
    assert_eq!(find(&text.replace('-', "")).unwrap(), ids[0]);
    assert!(matches!(find(&text[..8]), Err(StateDirError::Ambiguous { candidates, .. }) if candidates == ids));
    assert!(matches!(find("001"), Err(StateDirError::TooShort { .. })));
    assert!(matches!(find("ffffffff"), Err(StateDirError::Unknown { .. })));
    for given in ["", "web01", "../../etc", &"0".repeat(33)] {
        assert!(matches!(find(given), Err(StateDirError::NotATxn { .. })), "{given}");
    }
    assert_eq!(home.state.transactions().unwrap(), ids);
}

#[test]
fn looking_makes_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let state = StateDir::at(&temp.path().join("none")).unwrap();
    assert_eq!(state.transactions().unwrap(), []);
    assert!(matches!(state.find("0123abcd"), Err(StateDirError::Unknown { .. })));
    assert!(FileJournal::open(&state, TxnId([1; 16])).is_err());
    assert!(journal::read(&state, TxnId([1; 16])).is_err());
    assert!(!state.path().exists());
}
