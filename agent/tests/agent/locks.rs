//! QEMU's image locks, against another holder and against QEMU itself.

use std::fs::{self, File};
use std::process::Command;

use kvm_clone_agent::protocol::{FailureKind, Reply, Request};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::client::{Client, Destination, inode_of, text};

/// Another process' lock on one byte: this one's, on a descriptor of its own.
fn hold(path: &str, byte: i64, kind: i32) -> Option<File> {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let lock = libc::flock { l_type: i16::try_from(kind).unwrap(), l_whence: 0, l_start: byte, l_len: 1, l_pid: 0 };
    fcntl(&file, FcntlArg::F_OFD_SETLK(&lock)).is_ok().then_some(file)
}

fn image(directory: &tempfile::TempDir) -> String {
    let path = text(&directory.path().join("image.raw"));
    let file = File::create(&path).unwrap();
    file.set_len(1 << 20).unwrap();
    path
}

#[test]
fn a_writer_and_a_reader_who_shares_nothing_are_seen() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    let mut client = Client::source();
    for byte in [101, 103, 200] {
        let holder = hold(&path, byte, libc::F_RDLCK).unwrap();
        assert_eq!(client.kind(Request::LockImage { path: path.clone() }), Some(FailureKind::InUse), "byte {byte}");
        drop(holder);
    }
    // Nothing of a refused attempt is left.
    for byte in [100, 201, 203] {
        drop(hold(&path, byte, libc::F_WRLCK).expect("free"));
    }
    // Readers, and those who share as much as we do, do not disturb.
    let _reader = (hold(&path, 100, libc::F_RDLCK), hold(&path, 201, libc::F_RDLCK), hold(&path, 203, libc::F_RDLCK));
    assert_eq!(client.made(Request::LockImage { path: path.clone() }), inode_of(&path));
}

#[test]
fn locks_stay_until_they_are_given_back_or_the_agent_ends() {
    let mut destination = Destination::locked();
    let (path, renamed) = (destination.path("image.raw"), destination.path("renamed"));
    fs::write(&path, vec![1; 4096]).unwrap();
    let mut other = Client::source();
    let client = &mut destination.client;
    let lock = Request::LockImage { path: path.clone() };
    let inode = client.made(lock.clone());
    assert_eq!(client.made(lock.clone()), inode);
    assert_eq!(other.made(lock.clone()), inode, "two readers share");
    assert_eq!(other.call(Request::UnlockImage { path: path.clone() }), Ok(Reply::Done));

    let free = |path: &str| [100, 201, 203].map(|byte| hold(path, byte, libc::F_WRLCK).is_some());
    assert_eq!(free(&path), [false; 3]);
    // Through link, rename and the agent's own writing and closing.
    client.call(Request::Link { from: path.clone(), to: renamed.clone() }).unwrap();
    client.call(Request::WriteAt { path: path.clone(), inode, offset: 0, bytes: vec![2] }).unwrap();
    client.call(Request::Unlink { path: path.clone(), inode }).unwrap();
    assert_eq!(free(&renamed), [false; 3]);
    assert_eq!(client.call(Request::UnlockImage { path: renamed.clone() }), Ok(Reply::Done));
    assert_eq!(free(&renamed), [true; 3]);

    // By the name it was locked under, once that is gone.
    client.made(Request::LockImage { path: renamed.clone() });
    fs::rename(&renamed, &path).unwrap();
    assert_eq!(client.call(Request::UnlockImage { path: renamed.clone() }), Ok(Reply::Done));
    assert_eq!(free(&path), [true; 3]);
    assert_eq!(client.call(Request::UnlockImage { path: renamed }), Ok(Reply::Done));

    other.made(lock);
    assert_eq!(free(&path), [false; 3]);
    other.child.kill().unwrap();
    other.child.wait().unwrap();
    assert_eq!(free(&path), [true; 3]);
}

#[test]
fn what_is_no_image_is_not_locked() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    let link = text(&directory.path().join("link"));
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let mut client = Client::source();
    let mut kind = |path: String| client.kind(Request::LockImage { path });
    assert_eq!(kind(text(directory.path())), Some(FailureKind::Unsupported));
    assert_eq!(kind(link), Some(FailureKind::Unsupported));
    assert_eq!(kind(format!("{path}.none")), Some(FailureKind::NotFound));
}

#[test]
fn qemu_sees_the_locks() {
    let Ok(version) = Command::new("qemu-io").arg("--version").output() else {
        eprintln!("skipped: qemu-io is not installed");
        return;
    };
    assert!(version.status.success());
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    let write = || Command::new("qemu-io").args(["-f", "raw", "-c", "write 0 512", &path]).output().unwrap();
    let read = || Command::new("qemu-io").args(["-r", "-f", "raw", "-c", "read 0 512", &path]).output().unwrap();
    let mut client = Client::source();
    client.made(Request::LockImage { path: path.clone() });
    let refused = write();
    assert!(!refused.status.success());
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(words.contains("lock"), "{words}");
    assert!(read().status.success());
    client.call(Request::UnlockImage { path: path.clone() }).unwrap();
    assert!(write().status.success());

    // And the other way round: a QEMU that writes is found.
    let mut qemu = Command::new("qemu-io")
        .args(["-f", "raw", &path])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = std::time::Instant::now() + crate::client::WAIT;
    while hold(&path, 101, libc::F_WRLCK).is_some() {
        assert!(std::time::Instant::now() < deadline, "qemu-io never locked its image");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(client.kind(Request::LockImage { path: path.clone() }), Some(FailureKind::InUse));
    qemu.kill().unwrap();
    qemu.wait().unwrap();
    client.made(Request::LockImage { path });
}
