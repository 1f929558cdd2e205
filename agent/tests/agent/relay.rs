//! The relay to libvirt's socket.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use kvm_clone_agent::protocol::{
    FailureKind, FrameHeader, FrameKind, Message, Overrides, OwnerLock, RELAY_BYTES_MAX, RELAY_CREDIT_BYTES,
    RelayPurpose, Reply, Request, Role, Steer,
};

use crate::client::{Client, Destination, Event, TXN, text};

const LOOK: Request = Request::OpenRelay { purpose: RelayPurpose::Look };
const CHANGE: Request = Request::OpenRelay { purpose: RelayPurpose::Change };

fn bytes(client: &mut Client, id: u32, bytes: &[u8]) {
    for part in bytes.chunks(RELAY_BYTES_MAX) {
        let payload_bytes = u32::try_from(part.len()).unwrap();
        let header = FrameHeader { kind: FrameKind::Bytes, id, payload_bytes };
        client.write(&[&header.encode()[..], part].concat());
    }
}

fn connected(directory: &tempfile::TempDir) -> (Client, UnixListener) {
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let overrides = Overrides { libvirt_socket: Some(text(&path)), ..Overrides::default() };
    (Client::attach(Role::Look, overrides), listener)
}

fn open(client: &mut Client, listener: &UnixListener) -> (u32, UnixStream) {
    let id = client.send(&LOOK);
    assert!(matches!(client.next(id), Event::Message(Message::Opened)));
    (id, listener.accept().unwrap().0)
}

fn ended(client: &mut Client, id: u32) -> Result<(), FailureKind> {
    loop {
        match client.next(id) {
            Event::Message(Message::Ended(end)) => return end.map_err(|failure| failure.kind),
            Event::Bytes(_) | Event::Steer(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn bytes_cross_both_ways_within_the_credit() {
    let directory = tempfile::tempdir().unwrap();
    let (mut client, listener) = connected(&directory);
    let (id, socket) = open(&mut client, &listener);
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let mut echo_in = socket.try_clone().unwrap();
    let mut echo_out = socket;
    let echo = thread::spawn(move || std::io::copy(&mut echo_in, &mut echo_out).unwrap());
    let mut received = Vec::new();
    let mut credit = usize::try_from(RELAY_CREDIT_BYTES).unwrap();
    let mut position = 0;
    while received.len() < sent.len() {
        let part = credit.min(sent.len() - position);
        if part > 0 {
            bytes(&mut client, id, &sent[position..position + part]);
            position += part;
            credit -= part;
        }
        match client.next(id) {
            Event::Bytes(bytes) => {
                client.steer(id, Steer::Grant { bytes: bytes.len() as u64 });
                received.extend(bytes);
            }
            Event::Steer(Steer::Grant { bytes }) => credit += usize::try_from(bytes).unwrap(),
            other => panic!("{other:?}"),
        }
    }
    assert!(received == sent);
    client.steer(id, Steer::Cancel);
    assert_eq!(ended(&mut client, id), Err(FailureKind::Cancelled));
    echo.join().unwrap();
}

#[test]
fn without_credit_nothing_more_is_read_from_libvirt() {
    let directory = tempfile::tempdir().unwrap();
    let (mut client, listener) = connected(&directory);
    let (id, mut socket) = open(&mut client, &listener);
    let writer = thread::spawn(move || socket.write_all(&vec![5; 2_000_000]).is_ok());
    let mut received = 0;
    while let Some(event) = client.next_within(id, Duration::from_millis(300)) {
        let Event::Bytes(bytes) = event else { panic!("{event:?}") };
        received += bytes.len() as u64;
    }
    assert_eq!(received, RELAY_CREDIT_BYTES);
    client.steer(id, Steer::Grant { bytes: RELAY_CREDIT_BYTES });
    assert!(matches!(client.next(id), Event::Bytes(_)));
    client.steer(id, Steer::Cancel);
    ended(&mut client, id).unwrap_err();
    writer.join().unwrap();
}

#[test]
fn libvirts_end_is_the_relays_end_and_another_can_be_opened() {
    let directory = tempfile::tempdir().unwrap();
    let (mut client, listener) = connected(&directory);
    for _ in 0..20 {
        let (id, mut socket) = open(&mut client, &listener);
        bytes(&mut client, id, b"hello");
        let mut heard = [0; 5];
        socket.read_exact(&mut heard).unwrap();
        socket.write_all(b"bye").unwrap();
        socket.shutdown(Shutdown::Both).unwrap();
        let mut said = Vec::new();
        loop {
            match client.next(id) {
                Event::Bytes(bytes) => said.extend(bytes),
                Event::Steer(_) => {}
                Event::Message(Message::Ended(end)) => break assert_eq!(end, Ok(())),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(said, b"bye");
        // What still arrives for it is dropped.
        bytes(&mut client, id, b"late");
    }
}

#[test]
fn no_libvirt_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("none");
    let overrides = Overrides { libvirt_socket: Some(text(&path)), ..Overrides::default() };
    let mut client = Client::attach(Role::Look, overrides);
    let id = client.send(&LOOK);
    let Event::Message(Message::Ended(Err(failure))) = client.next(id) else { panic!() };
    assert_eq!(failure.kind, FailureKind::LibvirtDown);
    assert!(failure.detail.contains(&text(&path)), "{failure}");
    // A socket that nobody listens to is no libvirt either.
    drop(UnixListener::bind(&path).unwrap());
    let id = client.send(&LOOK);
    assert_eq!(ended(&mut client, id), Err(FailureKind::LibvirtDown));
}

#[test]
fn only_the_owner_locks_holder_relays_changes() {
    for role in [Role::Source, Role::Look] {
        let mut client = Client::attach(role, Overrides::default());
        assert_eq!(client.kind(CHANGE), Some(FailureKind::Denied), "{role:?}");
    }
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
    let socket = Some(text(&directory.path().join("socket")));
    let mut destination = Destination::unlocked_with(socket.clone());
    assert_eq!(destination.client.kind(CHANGE), Some(FailureKind::Fenced));
    let (_, _looked) = open(&mut destination.client, &listener);
    // Both relays of the one that holds it; then it lets go, because the record that counts is another one.
    let mut destination = Destination::locked_with(socket);
    let (look, _looked_at) = open(&mut destination.client, &listener);
    let change = destination.client.send(&CHANGE);
    assert!(matches!(destination.client.next(change), Event::Message(Message::Opened)));
    let mut changed = listener.accept().unwrap().0;
    let gone = text(&destination.root.join(format!(".gone-{TXN}/owner")));
    let taken = destination.client.call(Request::LockOwner { path: gone });
    assert_eq!(taken, Ok(Reply::OwnerLock(OwnerLock::Missing)));
    assert_eq!(ended(&mut destination.client, change), Err(FailureKind::Cancelled));
    assert_eq!(changed.read(&mut [0; 1]).unwrap(), 0, "libvirt's end is closed");
    assert_eq!(destination.client.kind(CHANGE), Some(FailureKind::Fenced));
    assert!(destination.client.next_within(look, Duration::from_millis(100)).is_none(), "looking goes on");
}
