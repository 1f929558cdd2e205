//! The locks an agent holds for its controller: the owner lock, and QEMU's image locks. All of them are OFD locks on
//! descriptors that live as long as the agent, so that its death lets go of everything.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use journal_format::Inode;
use kvm_clone_agent::protocol::{Failure, FailureKind, OwnerLock};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::failure::{errno, failure, refused};
use crate::files::{changed, open, unlink};

/// Image locks that one agent holds at most.
const IMAGES_MAX: usize = 1024;

/// QEMU's `RAW_LOCK_PERM_BASE` (block/file-posix.c): a holder of permission p locks byte 100+p, shared.
const PERMISSION_BYTE: i64 = 100;
/// QEMU's `RAW_LOCK_SHARED_BASE`: who does not share permission p locks byte 200+p, shared.
const UNSHARED_BYTE: i64 = 200;
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// What this agent holds.
#[derive(Debug, Default)]
pub struct Locks {
    owner: Option<(Inode, File)>,
    images: HashMap<(u64, u64), Image>,
}

#[derive(Debug)]
struct Image {
    /// The name it was locked under: what is left to find it by once that name is gone.
    path: String,
    /// Keeps the lock.
    file: File,
}

impl Locks {
    /// Whether the owner lock is held.
    pub fn owner_held(&self) -> bool {
        self.owner.is_some()
    }

    /// Whether it is held on what one of these names leads to now: a record that was put in the place of the one that was
    /// locked is somebody else's.
    pub fn owner_held_at(&self, owner_files: &[String]) -> bool {
        let leads_there = |inode: &Inode, path: &String| fs::symlink_metadata(path).is_ok_and(|at| at.ino() == inode.0);
        self.owner.as_ref().is_some_and(|(held, _)| owner_files.iter().any(|path| leads_there(held, path)))
    }

    /// Takes the owner lock. One on another inode is given up first: the record that counts is the one at the path.
    pub fn lock_owner(&mut self, path: &str) -> Result<OwnerLock, Failure> {
        let operation = || format!("lock owner {path}");
        let file = match open(path, OpenOptions::new().read(true).write(true)) {
            Ok(file) => file,
            Err(error) if matches!(errno(&error), Errno::ENOENT | Errno::ENOTDIR) => {
                self.owner = None;
                return Ok(OwnerLock::Missing);
            }
            Err(error) => return Err(refused(operation(), errno(&error))),
        };
        let inode = Inode(file.metadata().map_err(|error| refused(operation(), errno(&error)))?.ino());
        if self.owner.as_ref().is_some_and(|(held, _)| *held == inode) {
            return Ok(OwnerLock::Held { inode });
        }
        self.owner = None;
        match set(&file, libc::F_WRLCK, 0, 0) {
            Ok(()) => {
                self.owner = Some((inode, file));
                Ok(OwnerLock::Held { inode })
            }
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(OwnerLock::Taken),
            Err(error) => Err(refused(operation(), error)),
        }
    }

    /// Takes QEMU's locks on an image as a reader that shares neither writing nor resizing.
    pub fn lock_image(&mut self, path: &str) -> Result<Inode, Failure> {
        let operation = || format!("lock image {path}");
        let file = open(path, OpenOptions::new().read(true)).map_err(|error| refused(operation(), errno(&error)))?;
        let found = file.metadata().map_err(|error| refused(operation(), errno(&error)))?;
        if !found.is_file() && !found.file_type().is_block_device() {
            return Err(failure(FailureKind::Unsupported, format!("lock image {path}: not a file or block device")));
        }
        let key = (found.dev(), found.ino());
        let inode = Inode(found.ino());
        if self.images.contains_key(&key) {
            return Ok(inode);
        }
        if self.images.len() >= IMAGES_MAX {
            return Err(failure(FailureKind::Busy, format!("lock image {path}: {IMAGES_MAX} are locked already")));
        }
        // As QEMU does: first say what we do and do not share, then look for those who do what we do not share, or who
        // do not share what we do. Two who come at once see each other.
        for byte in [PERMISSION_BYTE + CONSISTENT_READ, UNSHARED_BYTE + WRITE, UNSHARED_BYTE + RESIZE] {
            set(&file, libc::F_RDLCK, byte, 1).map_err(|error| match error {
                Errno::EAGAIN | Errno::EACCES => in_use(path, byte),
                error => refused(operation(), error),
            })?;
        }
        for byte in [PERMISSION_BYTE + WRITE, PERMISSION_BYTE + RESIZE, UNSHARED_BYTE + CONSISTENT_READ] {
            if is_locked(&file, byte, 1).map_err(|error| refused(operation(), error))? {
                return Err(in_use(path, byte));
            }
        }
        self.images.insert(key, Image { path: path.to_owned(), file });
        Ok(inode)
    }

    /// Lets go of an image, by what the path is now, or by the name it was locked under if that is gone.
    pub fn unlock_image(&mut self, path: &str) -> Result<(), Failure> {
        match fs::symlink_metadata(path) {
            Ok(found) => {
                self.images.remove(&(found.dev(), found.ino()));
                Ok(())
            }
            Err(error) if matches!(errno(&error), Errno::ENOENT | Errno::ENOTDIR) => {
                self.images.retain(|_, image| image.path != path);
                Ok(())
            }
            Err(error) => Err(refused(format!("unlock image {path}"), errno(&error))),
        }
    }

    /// Removes a name if it is that inode and nobody else has a lock on the file: neither QEMU, to write or only to read, nor
    /// swtpm. Our own lock keeps a guest that starts meanwhile from writing; it is let go of, whatever comes of this.
    pub fn unlink_unused(&mut self, path: &str, inode: Inode) -> Result<(), Failure> {
        let locked = match self.lock_image(path) {
            Err(failed) if failed.kind == FailureKind::NotFound => return Ok(()),
            locked => locked?,
        };
        let operation = || format!("unlink {path}");
        let found = fs::symlink_metadata(path).map_err(|error| refused(operation(), errno(&error)))?;
        let image = self.images.remove(&(found.dev(), found.ino()));
        let Some(image) = image.filter(|_| locked == inode) else {
            return Err(changed("unlink", path, inode, found.ino()));
        };
        if is_locked(&image.file, 0, 0).map_err(|error| refused(operation(), error))? {
            return Err(failure(FailureKind::InUse, format!("unlink {path}: another process has a lock on it")));
        }
        unlink(path, inode)
    }
}

fn in_use(path: &str, byte: i64) -> Failure {
    let what = if byte < UNSHARED_BYTE { "writes to it" } else { "wants it alone" };
    failure(FailureKind::InUse, format!("lock image {path}: another process {what} (QEMU's lock on byte {byte})"))
}

fn flock(kind: libc::c_int, start: i64, length: i64) -> libc::flock {
    #[allow(clippy::cast_possible_truncation)] // Constants below 10.
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: length,
        l_pid: 0,
    }
}

fn set(file: &File, kind: libc::c_int, start: i64, length: i64) -> Result<(), Errno> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&flock(kind, start, length))).map(drop)
}

/// Whether anybody else holds any lock on these bytes; a length of 0 means all that follow.
fn is_locked(file: &File, start: i64, length: i64) -> Result<bool, Errno> {
    let mut lock = flock(libc::F_WRLCK, start, length);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(libc::c_int::from(lock.l_type) != libc::F_UNLCK)
}
