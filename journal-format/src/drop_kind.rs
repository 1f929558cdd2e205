//! What of a VM may be left behind where it cannot be carried.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A kind of thing that a clone is made without, because it was asked for (`--drop`). Only what is not carried is left behind:
/// a device of such a kind that can be carried arrives. Variants are only appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DropKindV1 {
    /// libvirt's snapshots of the VM. What they hold inside of an image stays in its copy.
    Snapshots,
    /// libvirt's checkpoints of the VM. Their bitmaps stay inside of the copied images.
    Checkpoints,
    /// A saved memory state.
    ManagedSave,
    /// `<hostdev>`.
    Hostdev,
    /// `<filesystem>`.
    Filesystem,
    /// `<shmem>`.
    Shmem,
    /// `<lease>`.
    Lease,
    /// `<pstore>`.
    Pstore,
    /// `<smartcard>`.
    Smartcard,
    /// `<vsock>`.
    Vsock,
    /// `<channel>`.
    Channel,
    /// `<serial>`.
    Serial,
    /// `<parallel>`.
    Parallel,
    /// `<console>`.
    Console,
    /// `<redirdev>`.
    Redirdev,
    /// `<rng>`.
    Rng,
    /// `<tpm>`.
    Tpm,
    /// `<interface>`.
    Interface,
    /// `<disk>`.
    Disk,
}

impl DropKindV1 {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::Snapshots,
        Self::Checkpoints,
        Self::ManagedSave,
        Self::Hostdev,
        Self::Filesystem,
        Self::Shmem,
        Self::Lease,
        Self::Pstore,
        Self::Smartcard,
        Self::Vsock,
        Self::Channel,
        Self::Serial,
        Self::Parallel,
        Self::Console,
        Self::Redirdev,
        Self::Rng,
        Self::Tpm,
        Self::Interface,
        Self::Disk,
    ];

    /// Its word on the command line; for a device also the name of its element.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Snapshots => "snapshots",
            Self::Checkpoints => "checkpoints",
            Self::ManagedSave => "managed-save",
            Self::Hostdev => "hostdev",
            Self::Filesystem => "filesystem",
            Self::Shmem => "shmem",
            Self::Lease => "lease",
            Self::Pstore => "pstore",
            Self::Smartcard => "smartcard",
            Self::Vsock => "vsock",
            Self::Channel => "channel",
            Self::Serial => "serial",
            Self::Parallel => "parallel",
            Self::Console => "console",
            Self::Redirdev => "redirdev",
            Self::Rng => "rng",
            Self::Tpm => "tpm",
            Self::Interface => "interface",
            Self::Disk => "disk",
        }
    }

    /// The kind of that word.
    pub fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.word() == word)
    }

    /// The kind of a device by its element's name.
    pub fn of_device(element: &str) -> Option<Self> {
        Self::of_word(element).filter(|kind| kind.is_device())
    }

    /// Is it a device of the definition, and nothing that libvirt keeps beside it?
    pub const fn is_device(self) -> bool {
        !matches!(self, Self::Snapshots | Self::Checkpoints | Self::ManagedSave)
    }
}

impl fmt::Display for DropKindV1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}
