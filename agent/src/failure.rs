//! Failures in the words of the protocol, from what the kernel says.

use std::fmt::Display;
use std::io;

use kvm_clone_agent::protocol::{Failure, FailureKind};
use nix::errno::Errno;

/// A failure of this kind.
pub fn failure(kind: FailureKind, detail: impl Into<String>) -> Failure {
    Failure { kind, detail: detail.into() }
}

/// What the kernel said to an operation on an object.
pub fn refused(operation: impl Display, error: impl Into<Errno>) -> Failure {
    let error = error.into();
    failure(kind_of(error), format!("{operation}: {}", error.desc()))
}

/// The number in an error of the standard library.
pub fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn kind_of(error: Errno) -> FailureKind {
    match error {
        Errno::ENOENT | Errno::ENOTDIR | Errno::ESRCH => FailureKind::NotFound,
        Errno::EEXIST => FailureKind::AlreadyExists,
        Errno::ENOTEMPTY => FailureKind::NotEmpty,
        Errno::ENOSPC | Errno::EDQUOT => FailureKind::NoSpace,
        Errno::EACCES | Errno::EPERM => FailureKind::Denied,
        Errno::ESTALE => FailureKind::Changed,
        Errno::EOPNOTSUPP
        | Errno::ENOSYS
        | Errno::EINVAL
        | Errno::EXDEV
        | Errno::EMLINK
        | Errno::ENAMETOOLONG
        | Errno::ELOOP
        | Errno::EISDIR
        | Errno::EFBIG
        | Errno::ENOLCK => FailureKind::Unsupported,
        // A filesystem that turned read-only did so after an error of its disk.
        _ => FailureKind::Io,
    }
}
