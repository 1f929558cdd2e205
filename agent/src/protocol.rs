//! The wire protocol between controller and agent: its words and their bytes, shared by both ends.
//!
//! Pure encoding and decoding over slices, no I/O. Every size has a bound, and no bytes make a decoder panic.
//!
//! The agent writes [`PREAMBLE`], then `Hello` as the reply to request 0. The controller sends `Attach` first.
//! Every request is answered by exactly one `Reply` frame of its id, in the order of the requests (`Ping` overtakes) —
//! but those that open a stream: they are answered by frames of the stream, whose id is the request's, and the last
//! frame of every stream is `Message::Ended`. Frames for a stream that has ended are dropped without a word.
//!
//! | stream | controller sends | agent sends |
//! | --- | --- | --- |
//! | `HashChunks` | `Cancel` | `Hashed`, `Holes`, ascending; `Ended` |
//! | `SendChunks` | `Grant`, `Cancel` | `Piece`, `Holes`, `Zeros`, ascending; `Ended` |
//! | `ReceiveChunks` | `Piece`, `Punch`, then `Finish`; `Cancel` | `Grant`, `Durable`, `ReadBack`; `Ended` |
//! | `OpenRelay` | `Bytes`, `Grant`, `Cancel` | `Opened`, `Bytes`, `Grant`; `Ended` |
//!
//! **Credit.** The sender of pieces or bytes may have as many bytes outstanding as it was granted. `SendChunks` says how
//! many bytes it starts with; `ReceiveChunks` starts with [`RECEIVE_CREDIT_BYTES`], and each `Punch` costs
//! [`PUNCH_CREDIT_BYTES`] of it; both directions of a relay start with [`RELAY_CREDIT_BYTES`]. Only bytes of chunks or of
//! the relay count, headers do not.

use std::ops::Range;

use journal_format::{ChunkRecordV1, ImageFormat, Inode, TxnId};
use serde::{Deserialize, Serialize};

pub use crate::chunk::Geometry;
pub use codec::{
    ProtocolError, decode_message, decode_reply, decode_request, decode_steer, encode_message, encode_reply,
    encode_request, encode_steer,
};
pub use facts::{Counts, DeviceFacts, FileKind, FileStat, FilesystemFacts, Hello, OwnerLock, ProcessId, Ran, Tool};
pub use frame::{
    CONTROL_BYTES_MAX, FRAME_HEADER_BYTES, Frame, FrameHeader, FrameKind, PIECE_BYTES_MAX, PIECE_HEADER_BYTES,
    PREAMBLE, PROTOCOL_VERSION, PieceHeader, RELAY_BYTES_MAX, split_frame,
};

mod codec;
mod facts;
mod frame;

/// The transactions' host records on a destination.
pub const HOST_RECORD_ROOT: &str = "/var/lib/kvm-clone/host";
/// Name of an agent's process (`/proc/<pid>/comm`): what `KillAgent` looks for before it kills.
pub const AGENT_COMM: &str = "kvm-clone-agent";
/// The agent exits by itself after so much silence of the controller.
pub const SILENCE_SECONDS_MAX: u32 = 30;
/// The controller pings at least this often.
pub const PING_INTERVAL_SECONDS: u32 = 5;
/// Streams of chunks (not relays) that an agent has open at a time, at most; one more ends with `Busy`.
pub const CHUNK_STREAMS_MAX: usize = 6;
/// Relays that an agent has open at a time, at most; one more ends with `Busy`.
pub const RELAYS_MAX: usize = 8;
/// Requests waiting in an agent at most; one more is answered with `Busy`.
pub const REQUESTS_WAITING_MAX: usize = 256;
/// Chunks in one `Hashed`, `Durable` or `ReadBack`, at most.
pub const BATCH_CHUNKS_MAX: usize = 256;
/// Ranges in a job at most: a job for more is given in parts.
pub const WANTED_RANGES_MAX: usize = 100_000;
/// Patches in a job at most.
pub const PATCHES_MAX: usize = 16;
/// Bytes of a patch at most.
pub const PATCH_BYTES_MAX: usize = 4096;
/// Bytes of what names a block device at most: it is the name of a file.
pub const IDENTITY_BYTES_MAX: usize = 200;
/// Bytes of a file that `Read` gives at most.
pub const READ_BYTES_MAX: u64 = 3 << 20;
/// How long a tool may run: a host with a busy disk takes its time for the tables of a large image.
pub const TOOL_SECONDS_MAX: u64 = 20;
/// Bytes of what a tool says at most.
pub const TOOL_WORDS_BYTES_MAX: usize = 4096;
/// Bytes outstanding on a stream of chunks at most; a grant beyond it is cut to it. At least two chunks of any size.
pub const CREDIT_BYTES_MAX: u64 = 32 << 20;
/// What the controller may send on a `ReceiveChunks` stream before the first grant.
pub const RECEIVE_CREDIT_BYTES: u64 = CREDIT_BYTES_MAX;
/// What a `Punch` costs.
pub const PUNCH_CREDIT_BYTES: u64 = 4096;
/// What either end may send on a relay before the first grant.
pub const RELAY_CREDIT_BYTES: u64 = 256 << 10;

/// What the controller asks of the agent. A path is absolute, without `.`, `..`, `//` or a `/` at the end; its last
/// component is never followed if it is a symlink.
///
/// *Changing* requests are refused (`Denied`) in the roles `Source` and `Look`. In the role `Destination` they are
/// refused (`Fenced`) while the agent does not hold the owner lock, except on the host record that the transaction
/// builds or clears; and always (`Denied`) outside the host record, the claims, and what `Allow` named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Who asks, and as what. Once, first. Reply: `Done`.
    Attach(Attach),
    /// Answered at once, whatever the agent is doing. Reply: `Pong`.
    Ping,
    /// Paths that may be changed; one that ends in `/` means everything below it and not itself. Added to those named
    /// before. Reply: `Done`.
    Allow {
        /// At least two components each.
        paths: Vec<String>,
    },

    /// `lstat`. Reply: `Stat`.
    Stat {
        /// What.
        path: String,
    },
    /// A file's first bytes. Reply: `Content`.
    Read {
        /// Which regular file.
        path: String,
        /// At most [`READ_BYTES_MAX`].
        max_bytes: u64,
    },
    /// Names in a directory, sorted; what is not UTF-8 in them becomes U+FFFD. Reply: `Names`.
    List {
        /// Which directory.
        directory: String,
    },
    /// The real path behind symlinks. Reply: `Resolved`.
    Resolve {
        /// May end in a symlink.
        path: String,
    },
    /// `statfs`. Reply: `Filesystem`.
    Filesystem {
        /// Something on it.
        path: String,
    },
    /// Numbers of a user and of a group by name, from `/etc/passwd` and `/etc/group`. Reply: `Ids`.
    IdsOf {
        /// User's name.
        user: String,
        /// Group's name.
        group: String,
    },

    /// Runs a program that only looks, within [`TOOL_SECONDS_MAX`] (`TimedOut`). Only in the role `Look`. Reply: `Ran`.
    RunTool {
        /// Which.
        tool: Tool,
    },

    /// Makes a directory with exactly these permission bits. Changing. Reply: `Made`.
    MakeDir {
        /// Its name, free so far.
        path: String,
        /// Permission bits.
        mode: u32,
    },
    /// Makes a file with exactly these permission bits. If its content cannot be written, it is removed again.
    /// Changing. Reply: `Made`.
    MakeFile {
        /// Its name, free so far.
        path: String,
        /// Permission bits.
        mode: u32,
        /// All of it.
        content: Vec<u8>,
    },
    /// Writes into a file that is there. Changing. Reply: `Done`.
    WriteAt {
        /// Which file.
        path: String,
        /// What it must be.
        inode: Inode,
        /// Where, in bytes.
        offset: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// Sets a file's length; with `allocate` its blocks too, all or none. Changing. Reply: `Done`.
    SetSize {
        /// Which file.
        path: String,
        /// What it must be.
        inode: Inode,
        /// Its new length.
        bytes: u64,
        /// Its blocks too.
        allocate: bool,
    },
    /// Sets owner, group and permission bits. Changing. Reply: `Done`.
    SetAttributes {
        /// Which file or directory.
        path: String,
        /// What it must be.
        inode: Inode,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Permission bits.
        mode: u32,
    },
    /// `fsync` of a file or directory. Refused in `Source` and `Look`, never fenced. Reply: `Done`.
    Sync {
        /// What.
        path: String,
    },
    /// `syncfs`. Refused in `Source` and `Look`, never fenced. Reply: `Done`.
    SyncFilesystem {
        /// Something on it.
        path: String,
    },
    /// A second name for a file. Changing (`to` counts). Reply: `Done`.
    Link {
        /// A name that it has.
        from: String,
        /// The other, free so far.
        to: String,
    },
    /// A new name, never in place of another. Changing (both count). Reply: `Done`.
    Rename {
        /// Its name.
        from: String,
        /// The new one, free so far.
        to: String,
    },
    /// Removes a name if it is that inode. Already gone is fine. Changing. Reply: `Done`.
    Unlink {
        /// Which name.
        path: String,
        /// What it must be.
        inode: Inode,
    },
    /// Removes an empty directory. Already gone is fine. Changing. Reply: `Done`.
    RemoveDir {
        /// Which directory.
        path: String,
    },

    /// Takes an exclusive OFD lock on a file of the transaction's host record and keeps it until the agent ends, or
    /// until another inode is asked for. Only in the role `Destination`. Reply: `OwnerLock`.
    LockOwner {
        /// In `<root>/<txn>`, `<root>/.new-<txn>` or `<root>/.gone-<txn>`.
        path: String,
    },
    /// Kills an agent, only if pid, start time and [`AGENT_COMM`] are right, and waits for its end. Already gone is
    /// fine. Only in the role `Destination`. Reply: `Done`.
    KillAgent {
        /// Whom.
        agent: ProcessId,
    },
    /// Takes QEMU's image locks as a reader that shares neither writing nor resizing, until `UnlockImage` or the
    /// agent's end; they follow the file through link and rename. A second time is fine. Reply: `Made` with its inode.
    LockImage {
        /// Which image.
        path: String,
    },
    /// Lets go of an image, under whatever name. Not held is fine. Reply: `Done`.
    UnlockImage {
        /// Which image.
        path: String,
    },

    /// Opens a stream of chunk values.
    HashChunks(HashJob),
    /// Opens a stream of chunks: the source half of a copy.
    SendChunks(SendJob),
    /// Opens a stream of chunks: the destination half of a copy. Changing; a block device must be held (`Fenced`).
    ReceiveChunks(ReceiveJob),
    /// Opens a stream of bytes to libvirt's socket. For `Change` it is open only while the owner lock is held.
    OpenRelay {
        /// What libvirt will be asked.
        purpose: RelayPurpose,
    },

    /// `Unlink`, unless anybody else holds a lock on the file, QEMU's or any other (`InUse`): looked at in the same action,
    /// under image locks of our own. They are let go of, whatever comes of it. Changing. Reply: `Done`.
    UnlinkUnused {
        /// Which name.
        path: String,
        /// What it must be.
        inode: Inode,
    },

    /// What this agent did until now, this request included. Reply: `Counts`.
    Counts,

    /// Gives a file the security label that its path has by default, where the host enforces such labels and has the tools
    /// (`restorecon`), within [`TOOL_SECONDS_MAX`] (`TimedOut`). Changing. Reply: `Ran`; `None`: there are none to give.
    Relabel {
        /// Which file.
        path: String,
    },

    /// What a block device is. Reply: `Device`.
    Device {
        /// Its node.
        path: String,
    },
    /// Which block devices share bytes with the one of this name: itself under any node, its partitions, and what it is a
    /// partition of. Reply: `Names` with their nodes.
    DevicesLike {
        /// What names it, as `Device` told, here or on another host.
        identity: String,
    },
    /// Opens a block device, which must be this one (`Changed`) and used by no filesystem and no other device (`InUse`), and
    /// keeps it until the agent ends: until then it stays so, and may be written to by `ReceiveChunks`. A second time is fine.
    /// Changing. Reply: `Made` with its node's inode.
    HoldDevice {
        /// Its node.
        path: String,
        /// What names it, as `Device` told.
        identity: String,
    },
}

/// What libvirt is asked through a relay. The agent does not understand what it relays, so the controller says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RelayPurpose {
    /// Questions only.
    Look,
    /// Changes too: for the holder of the owner lock alone (`Fenced` otherwise).
    Change,
}

/// What the agent answers to a request that opens no stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The agent is there; the answer to no request (id 0).
    Hello(Hello),
    /// It is done.
    Done,
    /// To `Ping`.
    Pong,
    /// What was made, or locked.
    Made {
        /// Its inode.
        inode: Inode,
    },
    /// To `Stat`; `None`: there is nothing.
    Stat(Option<FileStat>),
    /// To `Read`; `None`: there is nothing.
    Content(Option<Vec<u8>>),
    /// To `List`; `None`: there is nothing.
    Names(Option<Vec<String>>),
    /// To `Resolve`; `None`: there is nothing.
    Resolved(Option<String>),
    /// To `Filesystem`.
    Filesystem(FilesystemFacts),
    /// To `IdsOf`; `None`: no such name.
    Ids {
        /// The user's number.
        user: Option<u32>,
        /// The group's number.
        group: Option<u32>,
    },
    /// To `LockOwner`.
    OwnerLock(OwnerLock),
    /// To `RunTool` and `Relabel`; `None`: the host does not have it.
    Ran(Option<Ran>),
    /// To `Counts`.
    Counts(Counts),
    /// To `Device`; `None`: there is nothing, or no block device.
    Device(Option<DeviceFacts>),
}

/// About a stream, ahead of everything that waits in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Steer {
    /// So many bytes more may be sent.
    Grant {
        /// Bytes.
        bytes: u64,
    },
    /// Controller to agent: enough. The stream ends with `Cancelled` (or as it just did anyway).
    Cancel,
}

/// In a stream, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Values of chunks, ascending; at most [`BATCH_CHUNKS_MAX`]. Allocated zeros are `Zero` too.
    Hashed {
        /// Them.
        records: Vec<ChunkRecordV1>,
    },
    /// Chunks that lie in holes of the file.
    Holes {
        /// Which.
        chunks: Range<u64>,
    },
    /// Chunks that were read and hold only zeros.
    Zeros {
        /// Which.
        chunks: Range<u64>,
    },
    /// Controller to agent: make these chunks zero, by a hole where the filesystem can.
    Punch {
        /// Which.
        chunks: Range<u64>,
    },
    /// Controller to agent: nothing more comes; sync, acknowledge, end.
    Finish,
    /// These chunks are on the disk and survive a power cut; at most [`BATCH_CHUNKS_MAX`], in no order.
    Durable {
        /// Them.
        records: Vec<ChunkRecordV1>,
    },
    /// These chunks were read back from the disk after they were told to be durable; at most [`BATCH_CHUNKS_MAX`], in no
    /// order.
    ReadBack {
        /// What was read.
        records: Vec<ChunkRecordV1>,
    },
    /// The relay is connected.
    Opened,
    /// Nothing more comes, and this is why. A relay ends with `Ok` when libvirt closed it.
    Ended(Result<(), Failure>),
}

/// What the controller opens with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// The transaction; `None` only in the role `Look`.
    pub txn: Option<TxnId>,
    /// What the agent is for.
    pub role: Role,
    /// The agent ends after so much silence, from 1 s to [`SILENCE_SECONDS_MAX`].
    pub silence_seconds: u32,
    /// For tests.
    pub overrides: Overrides,
}

/// Other places than the real ones, for tests. All `None` in earnest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overrides {
    /// In place of libvirt's sockets.
    pub libvirt_socket: Option<String>,
    /// In place of [`HOST_RECORD_ROOT`].
    pub host_record_root: Option<String>,
}

/// What an agent is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// On the source: reads, hashes, locks images. Changes nothing.
    Source,
    /// On the destination: changes what the transaction owns.
    Destination,
    /// Survey: changes nothing.
    Look,
}

/// Hashing chunks of one file, or chain of files. What is hashed must be as large as the geometry says (`Changed` otherwise).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HashJob {
    /// The file.
    pub path: String,
    /// What it must be, where that is known.
    pub inode: Option<Inode>,
    /// Size and chunks.
    pub geometry: Geometry,
    /// Which chunks: ascending, disjoint; at most [`WANTED_RANGES_MAX`] ranges.
    pub wanted: Vec<Range<u64>>,
    /// Go to the disk: `O_DIRECT`, or the page cache dropped first.
    pub reread: bool,
    /// Bytes that are taken for other ones; at most [`PATCHES_MAX`].
    pub patches: Vec<Patch>,
    /// The images below the file, from the top down; at most [`crate::flat::LAYERS_MAX`] with it. Where there are any, the file is
    /// qcow2, and what is hashed is what a guest sees through all of them; `geometry` is about that.
    pub below: Vec<Layer>,
}

/// An image below another one in a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// The file.
    pub path: String,
    /// Its format, never probed.
    pub format: ImageFormat,
}

/// Bytes of an image that are read as other ones. They lie within the image, in data: a hole is not read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patch {
    /// Where, in bytes from the beginning of the image.
    pub offset: u64,
    /// What stands there; at most [`PATCH_BYTES_MAX`].
    pub bytes: Vec<u8>,
}

/// The source half of a copy. What is sent must be as large as the geometry says (`Changed` otherwise).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendJob {
    /// The image.
    pub path: String,
    /// Size and chunks.
    pub geometry: Geometry,
    /// Which chunks: ascending, disjoint; at most [`WANTED_RANGES_MAX`] ranges.
    pub wanted: Vec<Range<u64>>,
    /// Bytes that may be sent before the first grant; at most [`CREDIT_BYTES_MAX`]. A chunk is read once the credit covers
    /// a full one, so an end that never lets it reach `chunk_bytes` waits for ever.
    pub credit_bytes: u64,
    /// Bytes that are sent as other ones; at most [`PATCHES_MAX`].
    pub patches: Vec<Patch>,
    /// The images below the image, as in [`HashJob::below`]: what is sent is what a guest sees.
    pub below: Vec<Layer>,
}

/// The destination half of a copy. The file must be as large as the geometry says (`Changed` otherwise).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiveJob {
    /// The image.
    pub path: String,
    /// What it must be.
    pub inode: Inode,
    /// Size and chunks.
    pub geometry: Geometry,
    /// Chunks of data are read back from the disk once they are durable, and their values told.
    pub read_back: bool,
}

/// Why a request was not carried out, or a stream ended early.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{detail}")]
pub struct Failure {
    /// Which kind.
    pub kind: FailureKind,
    /// In words, with the object.
    pub detail: String,
}

/// Kinds of failure. They map one to one onto the engine's, but for those that say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// No such thing.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// The directory holds something.
    NotEmpty,
    /// No space or quota left.
    NoSpace,
    /// The kernel denies it, or the agent's role or list does.
    Denied,
    /// The disk or the kernel reports an error.
    Io,
    /// The filesystem or the kernel cannot do this.
    Unsupported,
    /// The path is no longer the inode, or the size, that was named.
    Changed,
    /// Somebody holds an image lock that conflicts.
    InUse,
    /// libvirt's socket is not there, or nobody answers.
    LibvirtDown,
    /// Something did not happen within its bound.
    TimedOut,
    /// The agent does not hold the owner lock.
    Fenced,
    /// A chunk arrived with bytes that do not have its value (an I/O error of the wire).
    Mismatch,
    /// The controller cancelled the stream.
    Cancelled,
    /// Too much at a time (the controller broke a bound).
    Busy,
    /// The controller said something that makes no sense here.
    Protocol,
}
