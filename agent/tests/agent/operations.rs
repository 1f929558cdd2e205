//! Each operation on files, with what it must refuse.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use journal_format::Inode;
use kvm_clone_agent::protocol::{
    FailureKind, FileKind, FileStat, FilesystemFacts, Overrides, READ_BYTES_MAX, Reply, Request, Role,
    TOOL_WORDS_BYTES_MAX, Tool,
};

use crate::client::{Client, Destination, inode_of, text};

fn stat(client: &mut Client, path: &str) -> Option<FileStat> {
    match client.call(Request::Stat { path: path.into() }) {
        Ok(Reply::Stat(stat)) => stat,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_greeting_says_who_and_where() {
    let client = Client::start();
    assert_eq!(client.hello.agent.pid, client.child.id());
    let fields = fs::read_to_string(format!("/proc/{}/stat", client.child.id())).unwrap();
    assert_eq!(client.hello.agent.started.to_string(), fields.split(' ').nth(21).unwrap());
    assert_eq!(client.hello.hostname, fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim());
    assert_eq!(client.hello.version, env!("CARGO_PKG_VERSION"));
    assert!(client.hello.memory_bytes > 1 << 20 && client.hello.cpus > 0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    assert!(u64::try_from(now.as_millis()).unwrap().abs_diff(client.hello.clock_ms) < 60_000);
    assert_eq!(client.hello.uid, nix::unistd::geteuid().as_raw());
}

#[test]
fn tools_run_only_while_looking_and_say_little() {
    let directory = tempfile::tempdir().unwrap();
    let path = text(&directory.path().join("no.qcow2"));
    fs::write(&path, b"no image").unwrap();
    let check = |path: &str| Request::RunTool { tool: Tool::CheckQcow2 { path: path.into() } };
    assert_eq!(Client::source().call(check(&path)).unwrap_err().kind, FailureKind::Denied);
    let mut client = Client::attach(Role::Look, Overrides::default());
    assert_eq!(client.call(check("no/path")).unwrap_err().kind, FailureKind::Protocol);
    match client.call(check(&path)) {
        Ok(Reply::Ran(Some(ran))) => {
            assert_eq!(ran.status, Some(1), "{ran:?}");
            assert!(ran.words.contains("no.qcow2") && ran.words.len() <= TOOL_WORDS_BYTES_MAX, "{ran:?}");
        }
        Ok(Reply::Ran(None)) => eprintln!("not tested: there is no qemu-img"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(client.call(Request::RunTool { tool: Tool::SwtpmVersion }), Ok(Reply::Ran(_))));
}

#[test]
fn looking_sees_what_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| text(&directory.path().join(name));
    fs::write(path("file"), b"0123456789").unwrap();
    fs::create_dir(path("dir")).unwrap();
    symlink("file", path("link")).unwrap();
    let mut client = Client::source();

    let found = stat(&mut client, &path("file")).unwrap();
    let metadata = fs::metadata(path("file")).unwrap();
    assert_eq!((found.kind, found.inode, found.size, found.links), (FileKind::File, inode_of(path("file")), 10, 1));
    assert_eq!((found.mode, found.uid, found.device), (metadata.mode() & 0o7777, metadata.uid(), metadata.dev()));
    assert_eq!(found.mtime_ns, i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()));
    assert_eq!(found.allocated, metadata.blocks() * 512);
    assert_eq!(stat(&mut client, &path("dir")).unwrap().kind, FileKind::Directory);
    assert_eq!(stat(&mut client, &path("link")).unwrap().kind, FileKind::Symlink);
    assert_eq!(stat(&mut client, &path("none")), None);
    assert_eq!(stat(&mut client, &path("file/below")), None);

    let mut read = |name: &str, max_bytes| client.call(Request::Read { path: path(name), max_bytes });
    assert_eq!(read("file", 4), Ok(Reply::Content(Some(b"0123".to_vec()))));
    assert_eq!(read("file", 100), Ok(Reply::Content(Some(b"0123456789".to_vec()))));
    assert_eq!(read("none", 100), Ok(Reply::Content(None)));
    assert_eq!(read("link", 100).unwrap_err().kind, FailureKind::Unsupported);
    assert_eq!(read("dir", 100).unwrap_err().kind, FailureKind::Unsupported);
    assert_eq!(read("file", READ_BYTES_MAX + 1).unwrap_err().kind, FailureKind::Protocol);

    let mut list = |name: &str| client.call(Request::List { directory: path(name) });
    assert_eq!(list("dir"), Ok(Reply::Names(Some(vec![]))));
    assert_eq!(list("none"), Ok(Reply::Names(None)));
    assert_eq!(list("file").unwrap_err().kind, FailureKind::Unsupported);
    let names = client.call(Request::List { directory: text(directory.path()) });
    assert_eq!(names, Ok(Reply::Names(Some(vec!["dir".into(), "file".into(), "link".into()]))));

    let mut resolve = |name: &str| client.call(Request::Resolve { path: path(name) });
    assert_eq!(resolve("link"), Ok(Reply::Resolved(Some(text(&fs::canonicalize(path("file")).unwrap())))));
    assert_eq!(resolve("none"), Ok(Reply::Resolved(None)));

    let Ok(Reply::Filesystem(facts)) = client.call(Request::Filesystem { path: path("dir") }) else { panic!() };
    let FilesystemFacts { device, available_bytes, read_only, network, writable, .. } = facts;
    assert!(writable);
    assert_eq!((device, read_only, network), (metadata.dev(), false, false));
    assert!(available_bytes > 0);
    let proc = client.call(Request::Filesystem { path: path("none") });
    assert_eq!(proc.unwrap_err().kind, FailureKind::NotFound);

    let ids = client.call(Request::IdsOf { user: "root".into(), group: "no such group".into() });
    assert_eq!(ids, Ok(Reply::Ids { user: Some(0), group: None }));
}

#[test]
fn a_content_too_large_for_a_frame_is_refused_in_words() {
    // In memory: so many names are too much for some disks.
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut client = Client::source();
    for number in 0..20_000 {
        fs::write(directory.path().join(format!("{number:0>240}")), b"").unwrap();
    }
    let failure = client.call(Request::List { directory: text(directory.path()) }).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unsupported);
    assert_eq!(client.call(Request::Ping), Ok(Reply::Pong));
}

#[test]
fn making_never_replaces() {
    let mut destination = Destination::locked();
    let path = |name: &str| text(&destination.work.join(name));
    let client = &mut destination.client;
    let directory = client.made(Request::MakeDir { path: path("d"), mode: 0o2771 });
    let file = client.made(Request::MakeFile { path: path("f"), mode: 0o666, content: b"hello".to_vec() });
    assert_eq!((directory, file), (inode_of(path("d")), inode_of(path("f"))));
    // Exactly the bits that were named, whatever the umask was.
    assert_eq!(fs::metadata(path("d")).unwrap().mode() & 0o777, 0o771);
    assert_eq!(fs::metadata(path("f")).unwrap().mode() & 0o7777, 0o666);
    symlink("/nowhere", path("l")).unwrap();
    for name in ["d", "f", "l"] {
        let made = client.kind(Request::MakeDir { path: path(name), mode: 0o700 });
        assert_eq!(made, Some(FailureKind::AlreadyExists), "{name}");
        let made = client.kind(Request::MakeFile { path: path(name), mode: 0o600, content: vec![] });
        assert_eq!(made, Some(FailureKind::AlreadyExists), "{name}");
        let linked = client.kind(Request::Link { from: path("f"), to: path(name) });
        assert_eq!(linked, Some(FailureKind::AlreadyExists), "{name}");
        for from in ["d", "f"] {
            let renamed = client.kind(Request::Rename { from: path(from), to: path(name) });
            assert_eq!(renamed, Some(FailureKind::AlreadyExists), "{from} to {name}");
        }
    }
    assert_eq!(fs::read(path("f")).unwrap(), b"hello");
    let lost = client.kind(Request::MakeFile { path: path("none/f"), mode: 0o600, content: vec![] });
    assert_eq!(lost, Some(FailureKind::NotFound));

    assert_eq!(client.call(Request::Link { from: path("f"), to: path("g") }), Ok(Reply::Done));
    assert_eq!(inode_of(path("g")), file);
    assert_eq!(client.call(Request::Rename { from: path("g"), to: path("h") }), Ok(Reply::Done));
    assert_eq!(client.call(Request::Rename { from: path("d"), to: path("e") }), Ok(Reply::Done));
    assert_eq!((inode_of(path("h")), inode_of(path("e"))), (file, directory));
    assert_eq!(client.kind(Request::Rename { from: path("g"), to: path("i") }), Some(FailureKind::NotFound));
    for path in [path("f"), path("e"), text(&destination.work)] {
        assert_eq!(client.call(Request::Sync { path: path.clone() }), Ok(Reply::Done), "{path}");
        assert_eq!(client.call(Request::SyncFilesystem { path: path.clone() }), Ok(Reply::Done), "{path}");
    }
    assert_eq!(client.kind(Request::Sync { path: path("none") }), Some(FailureKind::NotFound));
}

#[test]
fn a_file_is_changed_only_if_it_is_the_one_that_was_named() {
    let mut destination = Destination::locked();
    let path = |name: &str| text(&destination.work.join(name));
    let client = &mut destination.client;
    let inode = client.made(Request::MakeFile { path: path("f"), mode: 0o600, content: b"0123456789".to_vec() });
    let other = Inode(inode.0 + 1);
    symlink("f", path("l")).unwrap();

    let write = |inode, name: &str| Request::WriteAt { path: path(name), inode, offset: 3, bytes: b"xy".to_vec() };
    assert_eq!(client.call(write(inode, "f")), Ok(Reply::Done));
    assert_eq!(client.kind(write(other, "f")), Some(FailureKind::Changed));
    assert_eq!(client.kind(write(inode, "l")), Some(FailureKind::Unsupported));
    assert_eq!(client.kind(write(inode, "none")), Some(FailureKind::NotFound));
    assert_eq!(fs::read(path("f")).unwrap(), b"012xy56789");

    let size = |inode, bytes, allocate| Request::SetSize { path: path("f"), inode, bytes, allocate };
    assert_eq!(client.kind(size(other, 1, false)), Some(FailureKind::Changed));
    assert_eq!(client.call(size(inode, 1 << 20, false)), Ok(Reply::Done));
    let sparse = fs::metadata(path("f")).unwrap();
    assert_eq!(sparse.len(), 1 << 20);
    assert!(sparse.blocks() * 512 < 1 << 20);
    assert_eq!(client.call(size(inode, 1 << 20, true)), Ok(Reply::Done));
    assert!(fs::metadata(path("f")).unwrap().blocks() * 512 >= 1 << 20);

    let attributes = |inode, mode| Request::SetAttributes { path: path("f"), inode, uid: 12, gid: 34, mode };
    if nix::unistd::geteuid().is_root() {
        assert_eq!(client.kind(attributes(other, 0o640)), Some(FailureKind::Changed));
        assert_eq!(client.call(attributes(inode, 0o640)), Ok(Reply::Done));
        let found = fs::metadata(path("f")).unwrap();
        assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (12, 34, 0o640));
    }

    assert_eq!(client.kind(Request::Unlink { path: path("f"), inode: other }), Some(FailureKind::Changed));
    assert_eq!(client.call(Request::Unlink { path: path("f"), inode }), Ok(Reply::Done));
    assert_eq!(client.call(Request::Unlink { path: path("f"), inode }), Ok(Reply::Done));

    client.made(Request::MakeDir { path: path("d"), mode: 0o700 });
    client.made(Request::MakeFile { path: path("d/f"), mode: 0o600, content: vec![] });
    assert_eq!(client.kind(Request::RemoveDir { path: path("d") }), Some(FailureKind::NotEmpty));
    fs::remove_file(path("d/f")).unwrap();
    assert_eq!(client.call(Request::RemoveDir { path: path("d") }), Ok(Reply::Done));
    assert_eq!(client.call(Request::RemoveDir { path: path("d") }), Ok(Reply::Done));
}

#[test]
fn an_allocation_that_does_not_fit_gives_everything_back() {
    let mut destination = Destination::locked();
    let path = destination.path("f");
    let client = &mut destination.client;
    let inode = client.made(Request::MakeFile { path: path.clone(), mode: 0o600, content: vec![] });
    let Ok(Reply::Filesystem(facts)) = client.call(Request::Filesystem { path: path.clone() }) else { panic!() };
    let bytes = facts.available_bytes + (1 << 40);
    let refused = client.kind(Request::SetSize { path: path.clone(), inode, bytes, allocate: true });
    assert_eq!(refused, Some(FailureKind::NoSpace));
    let left = fs::metadata(&path).unwrap();
    assert_eq!((left.len(), left.blocks()), (0, 0));
}
