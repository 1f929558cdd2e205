//! The primitive operations on files: one system call's worth each, never following a symlink at the end of a path.
//!
//! Whether one is allowed is `guard`'s business; by the time a function here is called, that is decided.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, fchown};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use journal_format::Inode;
use kvm_clone_agent::protocol::{Failure, FailureKind, FileKind, FileStat, READ_BYTES_MAX};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, FallocateFlags, RenameFlags, fallocate, renameat2};
use nix::libc;
use nix::sys::statfs::fstatfs;
use nix::unistd::{LinkatFlags, Whence, linkat, lseek64};

use crate::counts;
use crate::failure::{errno, failure, refused};
use crate::filesystem::available_bytes;

/// Permission bits that a request may set.
const MODE_BITS: u32 = 0o7777;
/// Unit of `st_blocks`, whatever the filesystem's own (`stat(2)`).
const STAT_BLOCK_BYTES: u64 = 512;

/// Opens what is there, without following a symlink and without waiting for a FIFO's other end.
pub fn open(path: &str, options: &mut OpenOptions) -> io::Result<File> {
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

/// Opens a file that must be this inode, to change it.
fn open_inode(operation: &str, path: &str, inode: Inode, options: &mut OpenOptions) -> Result<File, Failure> {
    let file = open(path, options).map_err(|error| refused(format!("{operation} {path}"), errno(&error)))?;
    let found = file.metadata().map_err(|error| refused(format!("{operation} {path}"), errno(&error)))?.ino();
    if found != inode.0 {
        return Err(changed(operation, path, inode, found));
    }
    Ok(file)
}

/// The path is not the inode that was named.
pub fn changed(operation: &str, path: &str, expected: Inode, found: u64) -> Failure {
    let expected = expected.0;
    failure(FailureKind::Changed, format!("{operation} {path}: it is inode {found} now, expected {expected}"))
}

/// There is nothing of that name, or a part of the path is no directory.
fn absent(error: &io::Error) -> bool {
    matches!(errno(error), Errno::ENOENT | Errno::ENOTDIR)
}

/// `lstat`.
pub fn stat(path: &str) -> Result<Option<FileStat>, Failure> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if absent(&error) => return Ok(None),
        Err(error) => return Err(refused(format!("stat {path}"), errno(&error))),
    };
    let kind = match found.file_type() {
        kind if kind.is_file() => FileKind::File,
        kind if kind.is_dir() => FileKind::Directory,
        kind if kind.is_symlink() => FileKind::Symlink,
        kind if kind.is_block_device() => FileKind::BlockDevice,
        _ => FileKind::Other,
    };
    let size = if kind == FileKind::BlockDevice { device_bytes(path)? } else { found.size() };
    let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
    Ok(Some(FileStat {
        kind,
        inode: Inode(found.ino()),
        device: found.dev(),
        size,
        allocated: found.blocks() * STAT_BLOCK_BYTES,
        mode: found.mode() & MODE_BITS,
        uid: found.uid(),
        gid: found.gid(),
        links: found.nlink(),
        mtime_ns: nanoseconds(found.mtime(), found.mtime_nsec()),
        ctime_ns: nanoseconds(found.ctime(), found.ctime_nsec()),
    }))
}

fn device_bytes(path: &str) -> Result<u64, Failure> {
    open(path, OpenOptions::new().read(true))
        .and_then(|file| image_bytes(&file))
        .map_err(|error| refused(format!("size of {path}"), errno(&error)))
}

/// Bytes of a regular file or block device.
pub fn image_bytes(file: &File) -> io::Result<u64> {
    let found = file.metadata()?;
    if found.file_type().is_block_device() {
        return Ok(lseek64(file, 0, Whence::SeekEnd)?.unsigned_abs());
    }
    Ok(found.len())
}

/// The first bytes of a regular file or block device.
pub fn read(path: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, Failure> {
    let operation = || format!("read {path}");
    if max_bytes > READ_BYTES_MAX {
        return Err(failure(FailureKind::Protocol, format!("read {path}: more than {READ_BYTES_MAX} bytes at once")));
    }
    let file = match open(path, OpenOptions::new().read(true)) {
        Ok(file) => file,
        Err(error) if absent(&error) => return Ok(None),
        Err(error) => return Err(refused(operation(), errno(&error))),
    };
    let kind = file.metadata().map_err(|error| refused(operation(), errno(&error)))?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(failure(FailureKind::Unsupported, format!("read {path}: not a file or block device")));
    }
    let mut content = Vec::new();
    file.take(max_bytes).read_to_end(&mut content).map_err(|error| refused(operation(), errno(&error)))?;
    counts::file_read(content.len());
    Ok(Some(content))
}

/// Names in a directory, sorted.
pub fn list(directory: &str) -> Result<Option<Vec<String>>, Failure> {
    let operation = || format!("list {directory}");
    match fs::symlink_metadata(directory) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Err(failure(FailureKind::Unsupported, format!("list {directory}: not a directory"))),
        Err(error) if absent(&error) => return Ok(None),
        Err(error) => return Err(refused(operation(), errno(&error))),
    }
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if absent(&error) => return Ok(None),
        Err(error) => return Err(refused(operation(), errno(&error))),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| refused(operation(), errno(&error)))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(Some(names))
}

/// The real path behind symlinks.
pub fn resolve(path: &str) -> Result<Option<String>, Failure> {
    match fs::canonicalize(path) {
        Ok(real) => match real.into_os_string().into_string() {
            Ok(real) => Ok(Some(real)),
            Err(_) => Err(failure(FailureKind::Unsupported, format!("resolve {path}: its real path is not UTF-8"))),
        },
        Err(error) if absent(&error) => Ok(None),
        Err(error) => Err(refused(format!("resolve {path}"), errno(&error))),
    }
}

/// Makes a directory.
pub fn make_dir(path: &str, mode: u32) -> Result<Inode, Failure> {
    fs::DirBuilder::new()
        .mode(mode & MODE_BITS)
        .create(path)
        .and_then(|()| fs::symlink_metadata(path))
        .map(|made| Inode(made.ino()))
        .map_err(|error| refused(format!("make directory {path}"), errno(&error)))
}

/// Makes a file with this content, or none.
pub fn make_file(path: &str, mode: u32, content: &[u8]) -> Result<Inode, Failure> {
    let operation = || format!("make file {path}");
    let mut options = OpenOptions::new();
    let file = open(path, options.write(true).create_new(true).mode(mode & MODE_BITS))
        .map_err(|error| refused(operation(), errno(&error)))?;
    let written = file.metadata().and_then(|made| file.write_all_at(content, 0).map(|()| Inode(made.ino())));
    written.map_err(|error| {
        // It was made exclusively a moment ago, so the name is still ours.
        let _ = fs::remove_file(path);
        refused(operation(), errno(&error))
    })
}

/// Writes into a file that is there.
pub fn write_at(path: &str, inode: Inode, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
    let file = open_inode("write", path, inode, OpenOptions::new().write(true))?;
    file.write_all_at(bytes, offset).map_err(|error| refused(format!("write {path} at {offset}"), errno(&error)))
}

/// Sets a file's length, and its blocks with `allocate`: all of them, or none beyond those it had.
pub fn set_size(path: &str, inode: Inode, bytes: u64, allocate: bool) -> Result<(), Failure> {
    let operation = || format!("set size of {path} to {bytes}");
    let file = open_inode("set size of", path, inode, OpenOptions::new().write(true))?;
    let before = file.metadata().map_err(|error| refused(operation(), errno(&error)))?;
    if allocate {
        // An allocation that fails half way has taken all the space there was, for a moment, from every guest on that filesystem.
        let room = fstatfs(&file).map_err(|error| refused(operation(), error))?;
        if bytes.saturating_sub(before.blocks() * STAT_BLOCK_BYTES) > available_bytes(&room) {
            return Err(refused(operation(), Errno::ENOSPC));
        }
    }
    file.set_len(bytes).map_err(|error| refused(operation(), errno(&error)))?;
    if !allocate || bytes == 0 {
        return Ok(());
    }
    let length = libc::off_t::try_from(bytes).map_err(|_| refused(operation(), Errno::EFBIG))?;
    let allocated = loop {
        match fallocate(&file, FallocateFlags::empty(), 0, length) {
            Err(Errno::EINTR) => {}
            result => break result,
        }
    };
    allocated.map_err(|error| {
        // A partial allocation would keep others from their space. A file without any blocks had nothing to lose.
        if before.blocks() == 0 {
            let _ = file.set_len(0);
        }
        let _ = file.set_len(before.len());
        refused(operation(), error)
    })
}

/// Sets owner, group and permission bits.
pub fn set_attributes(path: &str, inode: Inode, uid: u32, gid: u32, mode: u32) -> Result<(), Failure> {
    let file = open_inode("set attributes of", path, inode, OpenOptions::new().read(true))?;
    // The owner first: changing it clears the set-id bits.
    fchown(&file, Some(uid), Some(gid))
        .and_then(|()| file.set_permissions(fs::Permissions::from_mode(mode & MODE_BITS)))
        .map_err(|error| refused(format!("set attributes of {path}"), errno(&error)))
}

/// `fsync`.
pub fn sync(path: &str) -> Result<(), Failure> {
    open(path, OpenOptions::new().read(true))
        .and_then(|file| file.sync_all())
        .map_err(|error| refused(format!("sync {path}"), errno(&error)))
}

/// `syncfs`.
pub fn sync_filesystem(path: &str) -> Result<(), Failure> {
    open(path, OpenOptions::new().read(true))
        .and_then(|file| nix::unistd::syncfs(&file).map_err(io::Error::from))
        .map_err(|error| refused(format!("sync the filesystem of {path}"), errno(&error)))
}

/// A second name for a file.
pub fn link(from: &str, to: &str) -> Result<(), Failure> {
    linkat(AT_FDCWD, from, AT_FDCWD, to, LinkatFlags::empty())
        .map_err(|error| refused(format!("link {from} to {to}"), error))
}

/// A new name, never in place of another.
pub fn rename(from: &str, to: &str) -> Result<(), Failure> {
    let operation = || format!("rename {from} to {to}");
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        // NFS, Gluster and older ZFS do not know the flag.
        Err(Errno::EINVAL | Errno::ENOSYS) => rename_in_two_steps(from, to),
        result => result.map_err(|error| refused(operation(), error)),
    }
}

/// Where the kernel cannot refuse to replace: by link for a file; for a directory by looking first (a rename puts a
/// directory in place of an empty directory at most).
fn rename_in_two_steps(from: &str, to: &str) -> Result<(), Failure> {
    let operation = || format!("rename {from} to {to}");
    let found = fs::symlink_metadata(from).map_err(|error| refused(operation(), errno(&error)))?;
    if found.is_dir() {
        if fs::symlink_metadata(to).is_ok() {
            return Err(refused(operation(), Errno::EEXIST));
        }
        return fs::rename(from, to).map_err(|error| refused(operation(), errno(&error)));
    }
    // Both names of one file: this very rename was broken off between its steps.
    if !fs::symlink_metadata(to).is_ok_and(|there| (there.dev(), there.ino()) == (found.dev(), found.ino())) {
        link(from, to)?;
    }
    fs::remove_file(from).map_err(|error| refused(operation(), errno(&error)))
}

/// Removes a name if it is that inode.
pub fn unlink(path: &str, inode: Inode) -> Result<(), Failure> {
    let operation = || format!("unlink {path}");
    match fs::symlink_metadata(path) {
        Ok(found) if found.ino() == inode.0 => {}
        Ok(found) => return Err(changed("unlink", path, inode, found.ino())),
        Err(error) if absent(&error) => return Ok(()),
        Err(error) => return Err(refused(operation(), errno(&error))),
    }
    match fs::remove_file(path) {
        Err(error) if !absent(&error) => Err(refused(operation(), errno(&error))),
        _ => Ok(()),
    }
}

/// Removes an empty directory.
pub fn remove_dir(path: &str) -> Result<(), Failure> {
    match fs::remove_dir(Path::new(path)) {
        Err(error) if errno(&error) == Errno::ENOENT => Ok(()),
        result => result.map_err(|error| refused(format!("remove directory {path}"), errno(&error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rename_without_the_kernels_help_replaces_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        make_file(&path("a"), 0o600, b"a").unwrap();
        make_file(&path("b"), 0o600, b"b").unwrap();
        make_dir(&path("c"), 0o700).unwrap();
        make_dir(&path("d"), 0o700).unwrap();
        for (from, to) in [("a", "b"), ("a", "c"), ("c", "d"), ("c", "b")] {
            let kind = rename_in_two_steps(&path(from), &path(to)).unwrap_err().kind;
            assert_eq!(kind, FailureKind::AlreadyExists, "{from} to {to}");
        }
        link(&path("a"), &path("e")).unwrap();
        rename_in_two_steps(&path("a"), &path("e")).unwrap();
        rename_in_two_steps(&path("c"), &path("f")).unwrap();
        let names = list(directory.path().to_str().unwrap()).unwrap().unwrap();
        assert_eq!(names, ["b", "d", "e", "f"]);
        assert_eq!(read(&path("e"), 10).unwrap().unwrap(), b"a");
    }
}
