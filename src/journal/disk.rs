//! File operations of the stores, each durable in the way its comment says, each error naming path and operation.
//! Directories are 0700 and files 0600: a plan holds definitions, and those may hold secrets.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::JournalError;

/// Permission bits of every directory of a journal.
pub(super) const DIRECTORY_MODE: u32 = 0o700;
/// Permission bits of every file of a journal.
pub(super) const FILE_MODE: u32 = 0o600;

/// Names the path and the operation of an I/O error.
pub(super) fn failed(path: &Path, operation: &'static str) -> impl FnOnce(io::Error) -> JournalError {
    move |source| JournalError::Io { path: path.display().to_string(), operation, source }
}

/// Makes a directory. Its name is durable after `sync_dir` of its parent.
pub(super) fn make_dir(path: &Path) -> Result<(), JournalError> {
    DirBuilder::new().mode(DIRECTORY_MODE).create(path).map_err(failed(path, "make directory"))
}

/// Makes a directory and every missing one above it, each durable in its parent.
pub(super) fn make_dirs_durably(path: &Path) -> Result<(), JournalError> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_dirs_durably(parent)?;
        match make_dir(path) {
            Err(JournalError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
        sync_dir(parent)?;
    }
    Ok(())
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(path: &Path) -> Result<(), JournalError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(failed(path, "fsync directory"))
}

/// Makes a new file for reading and writing; fails when the name is taken.
pub(super) fn make_file(path: &Path) -> Result<File, JournalError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(path)
        .map_err(failed(path, "make file"))
}

/// Copies a file's content into a new file, durably; the name needs `sync_dir`.
pub(super) fn copy_file(from: &Path, to: &Path) -> Result<(), JournalError> {
    let mut source = File::open(from).map_err(failed(from, "open"))?;
    let mut target = make_file(to)?;
    io::copy(&mut source, &mut target).map_err(failed(to, "copy"))?;
    target.sync_all().map_err(failed(to, "fsync"))
}

/// Makes every file in a directory private and durable, and then their names.
pub(super) fn settle_files(directory: &Path) -> Result<(), JournalError> {
    for name in list(directory)? {
        let path = directory.join(name);
        let file = File::open(&path).map_err(failed(&path, "open"))?;
        if file.metadata().map_err(failed(&path, "stat"))?.is_file() {
            file.set_permissions(fs::Permissions::from_mode(FILE_MODE)).map_err(failed(&path, "chmod"))?;
        }
        file.sync_all().map_err(failed(&path, "fsync"))?;
    }
    sync_dir(directory)
}

/// Names in a directory that are valid UTF-8 (no other is ever made here), sorted.
pub(super) fn list(directory: &Path) -> Result<Vec<String>, JournalError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed(directory, "list"))? {
        if let Ok(name) = entry.map_err(failed(directory, "list"))?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Removes a file that may be gone already.
pub(super) fn remove_file(path: &Path) -> Result<bool, JournalError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed(path, "remove")(error)),
    }
}

/// Removes a directory with all that is in it; it may be gone already.
pub(super) fn remove_dir_all(path: &Path) -> Result<(), JournalError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(path, "remove directory")(error)),
        _ => Ok(()),
    }
}

/// Whether an error says that no space or quota is left.
pub(super) fn is_no_space(error: &JournalError) -> bool {
    matches!(error, JournalError::Io { source, .. }
        if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
}
