//! What the agent refuses by itself: before attaching, by role, by the owner lock, by the list.

use std::fs;

use journal_format::Inode;
use kvm_clone_agent::protocol::{
    Attach, FailureKind, Geometry, Overrides, ProcessId, ReceiveJob, RelayPurpose, Reply, Request, Role,
};

use crate::client::{Client, Destination, TXN, inode_of, text};

/// Every request that changes something, on a path.
fn changes(path: &str, inode: Inode) -> Vec<Request> {
    let path = || path.to_owned();
    let geometry = Geometry { image_bytes: 1024, chunk_bytes: 1024 };
    vec![
        Request::MakeDir { path: path(), mode: 0o700 },
        Request::MakeFile { path: path(), mode: 0o600, content: vec![1] },
        Request::WriteAt { path: path(), inode, offset: 0, bytes: vec![1] },
        Request::SetSize { path: path(), inode, bytes: 1, allocate: false },
        Request::SetAttributes { path: path(), inode, uid: 1, gid: 1, mode: 0o777 },
        Request::Link { from: path(), to: format!("{}.link", path()) },
        Request::Rename { from: path(), to: format!("{}.new", path()) },
        Request::Unlink { path: path(), inode },
        Request::RemoveDir { path: path() },
        Request::ReceiveChunks(ReceiveJob { path: path(), inode, geometry, read_back: false }),
    ]
}

#[test]
fn nothing_goes_before_attach_and_attach_goes_once() {
    let mut client = Client::start();
    assert_eq!(client.call(Request::Ping), Ok(Reply::Pong));
    assert_eq!(client.kind(Request::Stat { path: "/".into() }), Some(FailureKind::Protocol));
    assert_eq!(client.kind(Request::OpenRelay { purpose: RelayPurpose::Look }), Some(FailureKind::Protocol));
    assert_eq!(client.kind(Request::Allow { paths: vec![] }), Some(FailureKind::Protocol));
    let attach = |txn, role, silence_seconds| {
        Request::Attach(Attach { txn, role, silence_seconds, overrides: Overrides::default() })
    };
    for refused in
        [attach(None, Role::Destination, 30), attach(Some(TXN), Role::Source, 31), attach(Some(TXN), Role::Source, 0)]
    {
        assert_eq!(client.kind(refused), Some(FailureKind::Protocol));
    }
    assert_eq!(client.call(attach(None, Role::Look, 30)), Ok(Reply::Done));
    assert_eq!(client.kind(attach(Some(TXN), Role::Destination, 30)), Some(FailureKind::Protocol));
}

#[test]
fn source_and_look_change_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = text(&directory.path().join("image"));
    fs::write(&path, vec![7; 1024]).unwrap();
    let inode = inode_of(&path);
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    for role in [Role::Source, Role::Look] {
        let mut client = Client::attach(role, Overrides::default());
        client.call(Request::Allow { paths: vec![text(directory.path())] }).unwrap();
        let mut refused = changes(&path, inode);
        refused.push(Request::Sync { path: path.clone() });
        refused.push(Request::SyncFilesystem { path: path.clone() });
        refused.push(Request::LockOwner { path: format!("/var/lib/kvm-clone/host/{TXN}/owner") });
        refused.push(Request::KillAgent { agent: ProcessId { pid: std::process::id(), started: 0 } });
        for request in refused {
            assert_eq!(client.kind(request.clone()), Some(FailureKind::Denied), "{role:?} {request:?}");
        }
    }
    assert_eq!(fs::read(&path).unwrap(), vec![7; 1024]);
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    let mut look = Client::attach(Role::Look, Overrides::default());
    assert_eq!(look.kind(Request::LockImage { path }), Some(FailureKind::Denied));
}

#[test]
fn without_the_owner_lock_a_destination_is_fenced() {
    let mut destination = Destination::unlocked();
    let path = destination.path("image");
    fs::write(&path, vec![7; 1024]).unwrap();
    let inode = inode_of(&path);
    for request in changes(&path, inode) {
        assert_eq!(destination.client.kind(request.clone()), Some(FailureKind::Fenced), "{request:?}");
    }
    let claim = text(&destination.root.join("names/web"));
    assert_eq!(destination.client.kind(Request::Unlink { path: claim, inode }), Some(FailureKind::Fenced));
    assert_eq!(fs::read(&path).unwrap(), vec![7; 1024]);
    assert_eq!(fs::read_dir(&destination.work).unwrap().count(), 1);
}

#[test]
fn with_the_owner_lock_only_what_was_named_is_changed() {
    let mut destination = Destination::locked();
    let outside = text(&destination.work.parent().unwrap().join("outside"));
    fs::write(&outside, vec![7; 1024]).unwrap();
    for request in changes(&outside, inode_of(&outside)) {
        assert_eq!(destination.client.kind(request.clone()), Some(FailureKind::Denied), "{request:?}");
    }
    let inside = destination.path("f");
    let moved = Request::Rename { from: outside.clone(), to: inside.clone() };
    assert_eq!(destination.client.kind(moved), Some(FailureKind::Denied));
    assert_eq!(destination.client.kind(Request::Link { from: outside, to: inside }), Some(FailureKind::Denied));
    let wandering = format!("{}/../outside2", text(&destination.work));
    let made = destination.client.kind(Request::MakeDir { path: wandering, mode: 0o700 });
    assert_eq!(made, Some(FailureKind::Protocol));
}

#[test]
fn a_lock_on_a_record_that_was_replaced_is_worth_nothing() {
    let mut destination = Destination::locked();
    let path = destination.path("d");
    let at = |name: &str| text(&destination.root.join(name));
    let client = &mut destination.client;
    let (record, new, gone) = (format!("{TXN}"), format!(".new-{TXN}"), format!(".gone-{TXN}"));
    client.made(Request::MakeDir { path: at(&new), mode: 0o700 });
    client.made(Request::MakeFile { path: at(&format!("{new}/owner")), mode: 0o600, content: vec![0; 8192] });
    assert_eq!(client.call(Request::Rename { from: at(&record), to: at(&gone) }), Ok(Reply::Done));
    assert_eq!(client.call(Request::Rename { from: at(&new), to: at(&record) }), Ok(Reply::Done));
    let owner = Request::WriteAt {
        path: at(&format!("{record}/owner")),
        inode: inode_of(at(&format!("{record}/owner"))),
        offset: 0,
        bytes: vec![1],
    };
    for request in [owner, Request::MakeDir { path, mode: 0o700 }] {
        assert_eq!(client.kind(request.clone()), Some(FailureKind::Fenced), "{request:?}");
    }
}

#[test]
fn a_host_record_comes_and_goes() {
    let mut destination = Destination::locked();
    let client = &mut destination.client;
    let at = |name: &str| text(&destination.root.join(name));
    let record = format!("{TXN}");
    let gone = format!(".gone-{TXN}");
    client.made(Request::MakeDir { path: at("names"), mode: 0o700 });
    let owner = inode_of(at(&format!("{record}/owner")));
    let claim = Request::Link { from: at(&format!("{record}/owner")), to: at("names/web") };
    assert_eq!(client.call(claim.clone()), Ok(Reply::Done));
    assert_eq!(client.kind(claim), Some(FailureKind::AlreadyExists));
    let mark = Request::Rename { from: at(&format!("{record}/owner")), to: at(&format!("{record}/committed")) };
    assert_eq!(client.call(mark), Ok(Reply::Done));
    assert_eq!(client.call(Request::Unlink { path: at("names/web"), inode: owner }), Ok(Reply::Done));
    assert_eq!(client.call(Request::Rename { from: at(&record), to: at(&gone) }), Ok(Reply::Done));
    assert_eq!(client.call(Request::Unlink { path: at(&format!("{gone}/committed")), inode: owner }), Ok(Reply::Done));
    assert_eq!(client.call(Request::RemoveDir { path: at(&gone) }), Ok(Reply::Done));
    assert_eq!(client.kind(Request::RemoveDir { path: at("names") }), Some(FailureKind::Denied));
}
