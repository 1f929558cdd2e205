//! What an agent says of its host: itself, files, filesystems, locks.

use journal_format::Inode;
use serde::{Deserialize, Serialize};

/// Who the agent is, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`super::PROTOCOL_VERSION`]; also in every frame header.
    pub protocol: u8,
    /// The agent's own version.
    pub version: String,
    /// Its process.
    pub agent: ProcessId,
    /// Its effective user: 0, or hardly anything will work.
    pub uid: u32,
    /// `/etc/machine-id`; empty where there is none.
    pub machine_id: String,
    /// `uname -n`.
    pub hostname: String,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// CPUs online.
    pub cpus: u32,
    /// Its clock: milliseconds since 1970.
    pub clock_ms: u64,
}

/// A process on a host: both numbers together name it for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot (`/proc/<pid>/stat`, field 22).
    pub started: u64,
}

/// Kind of a directory entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A block device.
    BlockDevice,
    /// Anything else.
    Other,
}

/// What `lstat` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStat {
    /// What it is.
    pub kind: FileKind,
    /// Its inode.
    pub inode: Inode,
    /// Device number: comparable until the next mount.
    pub device: u64,
    /// Bytes; of a block device its capacity.
    pub size: u64,
    /// Bytes allocated (`st_blocks` × 512).
    pub allocated: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names it has.
    pub links: u64,
    /// Nanoseconds since 1970.
    pub mtime_ns: i128,
    /// Nanoseconds since 1970.
    pub ctime_ns: i128,
}

/// What `statfs` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesystemFacts {
    /// Device number: two paths with the same number share the space.
    pub device: u64,
    /// Bytes that root may still write.
    pub available_bytes: u64,
    /// Inodes free; `None` where the filesystem does not count them.
    pub available_inodes: Option<u64>,
    /// Type by name, such as `ext4`, or its magic in hexadecimal.
    pub kind: String,
    /// Mounted read-only.
    pub read_only: bool,
    /// The path itself may be written to, as far as the kernel says beforehand.
    pub writable: bool,
    /// Reached over a network.
    pub network: bool,
}

/// A block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceFacts {
    /// Its node's inode.
    pub inode: Inode,
    /// Its capacity.
    pub bytes: u64,
    /// What names it for good, over boots and under any path: its world-wide name or serial number, of a partition with where it
    /// begins, or what a loop device stands on. Fit for the name of a file, at most [`super::IDENTITY_BYTES_MAX`]. `None`:
    /// nothing does.
    pub identity: Option<String>,
    /// A filesystem, swap space or another device uses it, or a part of it; or it has partitions.
    pub in_use: bool,
    /// It cannot be written to.
    pub read_only: bool,
}

/// A program of the host that only looks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tool {
    /// `qemu-img check`: are the tables of an image whole?
    CheckQcow2 {
        /// Which image.
        path: String,
    },
    /// `swtpm --version`.
    SwtpmVersion,
}

/// What a tool said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ran {
    /// Its exit status; `None`: a signal ended it.
    pub status: Option<i32>,
    /// Its first words: what it printed, else its complaints; at most [`super::TOOL_WORDS_BYTES_MAX`].
    pub words: String,
}

/// An attempt at the owner lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OwnerLock {
    /// The agent holds it.
    Held {
        /// The file that is locked: compare with the path afterwards.
        inode: Inode,
    },
    /// Another process holds it.
    Taken,
    /// There is no such file.
    Missing,
}

/// What an agent did in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Requests, but for signs of life.
    pub requests: u64,
    /// Bytes of images that were read to be copied or hashed. Holes are not read.
    pub image_bytes_read: u64,
    /// Bytes of images that were written.
    pub image_bytes_written: u64,
    /// Bytes of small files, and of the headers of images, that were read.
    pub file_bytes_read: u64,
    /// Calls of libvirt that were relayed.
    pub libvirt_calls: u64,
}
