//! How an agent ends: with the link, in silence, by another agent, and never half.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kvm_clone_agent::protocol::{
    Attach, FailureKind, Overrides, OwnerLock, PROTOCOL_VERSION, ProcessId, Reply, Request, Role, encode_request,
};

use crate::client::{Client, Destination, TXN, WAIT, agent, text};

fn attach_briefly(client: &mut Client) {
    let attach = Attach { txn: None, role: Role::Look, silence_seconds: 1, overrides: Overrides::default() };
    assert_eq!(client.call(Request::Attach(attach)), Ok(Reply::Done));
}

#[test]
fn a_closed_link_ends_it_at_once() {
    let mut client = Client::source();
    drop(client.stdin.take());
    assert_eq!(client.end_within(Duration::from_secs(2)).code(), Some(0));
}

#[test]
fn silence_ends_it_and_pings_keep_it() {
    let mut client = Client::start();
    attach_briefly(&mut client);
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(2500) {
        assert_eq!(client.call(Request::Ping), Ok(Reply::Pong));
        std::thread::sleep(Duration::from_millis(100));
    }
    let silent = Instant::now();
    assert_eq!(client.end_within(Duration::from_secs(4)).code(), Some(4));
    assert!(silent.elapsed() > Duration::from_millis(500));
    assert!(client.last_words().contains("silent"));
}

#[test]
fn silence_ends_it_while_nobody_reads_what_it_writes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("f");
    fs::write(&path, vec![1; 3 << 20]).unwrap();
    let mut child =
        Command::new(agent()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let attach = Attach { txn: None, role: Role::Look, silence_seconds: 1, overrides: Overrides::default() };
    let mut frames = encode_request(1, &Request::Attach(attach)).unwrap();
    for id in 2..20 {
        frames.extend(encode_request(id, &Request::Read { path: text(&path), max_bytes: 3 << 20 }).unwrap());
    }
    std::io::Write::write_all(&mut input, &frames).unwrap();
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(began.elapsed() < Duration::from_secs(5), "it is blocked for ever");
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(status.code(), Some(4));
}

#[test]
fn bytes_that_are_not_the_protocol_end_it() {
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 64]] {
        let mut client = Client::source();
        client.write(bytes);
        assert_eq!(client.end_within(WAIT).code(), Some(3));
        assert!(client.last_words().contains("not a frame"));
    }
    // A newer controller is named as such.
    let mut client = Client::source();
    let mut frame = encode_request(1, &Request::Ping).unwrap();
    frame[2] = PROTOCOL_VERSION + 1;
    client.write(&frame);
    assert_eq!(client.end_within(WAIT).code(), Some(3));
    assert!(client.last_words().contains("version"));
}

#[test]
fn its_locks_end_with_it_and_one_agent_ends_another() {
    let mut first = Destination::locked();
    let owner = text(&first.root.join(format!("{TXN}/owner")));
    let overrides = Overrides { host_record_root: Some(text(&first.root)), ..Overrides::default() };
    let mut second = Client::attach(Role::Destination, overrides.clone());
    let lock = Request::LockOwner { path: owner };
    assert_eq!(second.call(lock.clone()), Ok(Reply::OwnerLock(OwnerLock::Taken)));

    // Neither another process nor the same pid with another start time.
    let agent = first.client.hello.agent;
    let wrong = ProcessId { started: agent.started + 1, ..agent };
    assert_eq!(second.call(Request::KillAgent { agent: wrong }), Ok(Reply::Done));
    assert!(first.client.child.try_wait().unwrap().is_none());
    let stat = fs::read_to_string(format!("/proc/{}/stat", std::process::id())).unwrap();
    let started = stat[stat.rfind(')').unwrap() + 1..].split_whitespace().nth(19).unwrap().parse().unwrap();
    let itself = ProcessId { pid: std::process::id(), started };
    assert_eq!(second.kind(Request::KillAgent { agent: itself }), Some(FailureKind::Denied));
    let suicide = second.hello.agent;
    assert_eq!(second.kind(Request::KillAgent { agent: suicide }), Some(FailureKind::Protocol));

    assert_eq!(second.call(Request::KillAgent { agent }), Ok(Reply::Done));
    let Ok(Reply::OwnerLock(OwnerLock::Held { .. })) = second.call(lock.clone()) else {
        panic!("the lock outlived its agent");
    };
    assert_eq!(first.client.end_within(WAIT).code(), None);
    assert_eq!(second.call(Request::KillAgent { agent }), Ok(Reply::Done));

    drop(second.stdin.take());
    second.end_within(WAIT);
    let mut third = Client::attach(Role::Destination, overrides);
    assert!(matches!(third.call(lock), Ok(Reply::OwnerLock(OwnerLock::Held { .. }))));
}

#[test]
fn the_owner_lock_is_the_one_at_the_path() {
    let mut destination = Destination::locked();
    let missing = text(&destination.root.join(format!(".gone-{TXN}/owner")));
    let client = &mut destination.client;
    assert_eq!(client.call(Request::LockOwner { path: missing }), Ok(Reply::OwnerLock(OwnerLock::Missing)));
    // What it held before, it holds no longer.
    let path = text(&destination.work.join("d"));
    assert_eq!(client.kind(Request::MakeDir { path, mode: 0o700 }), Some(FailureKind::Fenced));
}

#[test]
fn a_copy_of_it_removes_itself_and_says_its_version() {
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("an-agent");
    fs::copy(agent(), &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o700)).unwrap();
    let version = Command::new(&copy).arg("--version").output().unwrap();
    let expected = format!("kvm-clone-agent {} (protocol {PROTOCOL_VERSION})\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8(version.stdout).unwrap(), expected);
    assert_eq!(Command::new(&copy).arg("--nonsense").stderr(Stdio::null()).status().unwrap().code(), Some(2));

    let mut child =
        Command::new(&copy).arg("--unlink-self").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut byte = [0];
    child.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
    assert!(!copy.exists(), "it greets before it is gone");
    // Known by its process name, although its file had another.
    assert_eq!(fs::read_to_string(format!("/proc/{}/comm", child.id())).unwrap().trim(), "kvm-clone-agent");
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn pings_overtake_work() {
    let mut destination = Destination::locked();
    let client = &mut destination.client;
    let slow: Vec<_> = (0..5).map(|_| client.send(&Request::SyncFilesystem { path: "/".into() })).collect();
    assert_eq!(client.call(Request::Ping), Ok(Reply::Pong));
    for id in slow {
        assert!(matches!(client.next(id), crate::client::Event::Reply(Ok(Reply::Done))));
    }
}
