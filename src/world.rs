//! The world as the engine and the steps see it: primitive operations on two hosts, the clock and randomness.
//!
//! Two implementations exist: real hosts (`host/`) and one in memory (`tests/simulation/`). One conformance suite
//! passes on both. Nothing here may know what a step is; an operation that would be "do step X" does not belong here.
//!
//! All methods take `&self` and block; an implementation keeps its state behind interior mutability. The engine is
//! single-threaded.

use std::fmt;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use journal_format::{ChunkRecordV1, CountsV1, DomainUuid, ImageFormat, Inode, UnixMillis};

/// One of the two hosts of a clone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// Where the source VM is. Nothing is ever written there.
    Source,
    /// Where the clone will be.
    Destination,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Destination => "destination",
        })
    }
}

/// Why a primitive operation did not do what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// No such file, directory, domain, pool or process.
    NotFound,
    /// The name is taken (`EEXIST`, or a domain of that name).
    AlreadyExists,
    /// The directory holds something.
    NotEmpty,
    /// No space or quota left.
    NoSpace,
    /// Permission denied.
    Denied,
    /// The disk or the kernel reports an error.
    Io,
    /// The filesystem, kernel or libvirt cannot do this.
    Unsupported,
    /// The path is no longer the inode that was named.
    Changed,
    /// Somebody holds an image lock that conflicts, or the domain is running.
    InUse,
    /// libvirt answered, and the answer is no.
    Refused,
    /// libvirt did not answer, or its socket is gone; the agent lives.
    LibvirtDown,
    /// The agent or the link to it is gone. What it was asked last may or may not have happened.
    Unreachable,
    /// No answer in time. What was asked may or may not have happened, or may happen later.
    TimedOut,
    /// Ctrl-C or SIGTERM.
    Interrupted,
    /// The agent refuses to write because it does not hold the owner lock.
    Fenced,
    /// Credentials, host key, address, or an agent that cannot run: the host cannot be used as asked.
    Unusable,
    /// What the sink of a copy or hash said no to; the caller knows why.
    Sink,
}

/// A failed primitive operation, in words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{host}: {operation}: {detail}")]
pub struct Fault {
    /// Which kind.
    pub kind: FaultKind,
    /// The host's name, as the user gave it.
    pub host: String,
    /// What was tried, with its object, such as `link /a/b to /c/d`.
    pub operation: String,
    /// What the host answered.
    pub detail: String,
}

/// `None`: what was asked for cannot be had, and others on that host can. A fault of the host or of the link to it stays one.
pub fn readable<T>(answer: Result<T, Fault>) -> Result<Option<T>, Fault> {
    use FaultKind::{Changed, Denied, Io, NotFound, Refused, Unsupported};
    match answer {
        Err(fault) if matches!(fault.kind, NotFound | Denied | Io | Unsupported | Changed | Refused) => Ok(None),
        answer => answer.map(Some),
    }
}

/// Kind of a directory entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStat {
    /// What it is.
    pub kind: FileKind,
    /// Its inode.
    pub inode: Inode,
    /// Device number: comparable within one attempt only.
    pub device: u64,
    /// Bytes.
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

/// A filesystem, as `statfs` and a trial see it.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// Reached over a network (NFS, CIFS, Ceph, Gluster).
    pub network: bool,
}

/// A block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Its node's inode.
    pub inode: Inode,
    /// Its capacity.
    pub bytes: u64,
    /// What names it for good, over boots and under any path, fit for the name of a file; `None`: nothing does.
    pub identity: Option<String>,
    /// A filesystem, swap space or another device uses it, or a part of it; or it has partitions.
    pub in_use: bool,
    /// It cannot be written to.
    pub read_only: bool,
}

/// An attempt at an exclusive lock on the owner file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnerLock {
    /// The agent holds it until it ends, and may write from now on.
    Held {
        /// The file that is locked: compare with the path afterwards.
        inode: Inode,
    },
    /// Another process holds it.
    Taken,
    /// There is no such file.
    Missing,
}

/// A process on a host: both numbers together name it for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessId {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot (`/proc/<pid>/stat`, field 22).
    pub started: u64,
}

/// What a domain is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DomainState {
    /// Shut off (or crashed): no process.
    ShutOff,
    /// Anything with a process: running, paused, shutting down, suspended.
    Active,
}

/// A domain in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainBrief {
    /// Its UUID.
    pub uuid: DomainUuid,
    /// Its name.
    pub name: String,
    /// What it is doing.
    pub state: DomainState,
}

/// A domain, whole.
#[allow(clippy::struct_excessive_bools)] // what libvirt says of it, each its own
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainFacts {
    /// UUID, name, state.
    pub brief: DomainBrief,
    /// Has a definition on disk.
    pub persistent: bool,
    /// Starts with its host.
    pub autostart: bool,
    /// Has a saved memory image of libvirt's.
    pub managed_save: bool,
    /// Its memory is being saved just now: once that is through, it is off.
    pub saving: bool,
    /// Number of libvirt snapshots.
    pub snapshots: u32,
    /// Number of checkpoints.
    pub checkpoints: u32,
    /// The inactive definition with secrets (`VIR_DOMAIN_XML_INACTIVE | SECURE`).
    pub definition: String,
}

/// A snapshot of a domain, as libvirt knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotFacts {
    /// Its name.
    pub name: String,
    /// It is the one that the domain was brought to last.
    pub current: bool,
    /// Its document with secrets (`VIR_DOMAIN_SNAPSHOT_XML_SECURE`): definitions of the domain are in it.
    pub definition: String,
}

/// A storage pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolFacts {
    /// Its name.
    pub name: String,
    /// Is it active?
    pub active: bool,
    /// Its type, such as `dir`, `fs`, `netfs`, `logical`.
    pub kind: String,
    /// Target directory, for those that have one.
    pub path: Option<String>,
}

/// A virtual network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkFacts {
    /// Its name.
    pub name: String,
    /// Is it active?
    pub active: bool,
}

/// What there is to know of a host as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// `uname -n`.
    pub hostname: String,
    /// libvirt's version as libvirt encodes it: 1,000,000 × major + 1,000 × minor + release.
    pub libvirt_version: u64,
    /// QEMU's version, encoded alike.
    pub hypervisor_version: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// CPUs online.
    pub cpus: u32,
    /// How far its clock is ahead of the controller's, about: milliseconds, negative where it is behind.
    pub clock_ahead_ms: i64,
    /// The host's capabilities document (`virConnectGetCapabilities`).
    pub capabilities: String,
}

/// What `qemu-img check` says of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageCheck {
    /// Its tables are whole.
    Whole,
    /// Clusters are lost, which takes space and does no harm.
    Leaks(String),
    /// Its tables contradict each other; in its words.
    Broken(String),
    /// It could not be checked; why.
    Unchecked(String),
    /// The host has no `qemu-img`.
    NoTool,
}

/// What a copy or a hash reports while it runs; errors end it with `FaultKind::Sink`.
pub trait ChunkSink {
    /// These chunks are durable on the destination (copy), or have these values (hash). At most `BATCH_CHUNKS_MAX`.
    fn chunks(&mut self, records: &[ChunkRecordV1]) -> Result<(), SinkClosed>;
    /// These chunks are holes of the source that were skipped (copy), or are holes (hash).
    fn holes(&mut self, chunks: Range<u64>) -> Result<(), SinkClosed>;
    /// These chunks have these values, read from the destination's disk after they were durable: only of a copy that was
    /// asked for it. At most `BATCH_CHUNKS_MAX`.
    fn read_back(&mut self, _records: &[ChunkRecordV1]) -> Result<(), SinkClosed> {
        Ok(())
    }
}

/// The caller's sink wants no more: the operation ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SinkClosed;

/// Chunks a sink is given at once, at most.
pub const BATCH_CHUNKS_MAX: usize = 256;

/// An image cut into chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkGeometry {
    /// Bytes of the image.
    pub image_bytes: u64,
    /// Bytes of a chunk: a power of two of at least 1024.
    pub chunk_bytes: u32,
}

impl ChunkGeometry {
    /// How many chunks there are, the last one perhaps short.
    pub fn chunk_count(&self) -> u64 {
        self.image_bytes.div_ceil(u64::from(self.chunk_bytes))
    }

    /// Bytes of one chunk.
    pub fn chunk_len(&self, index: u64) -> u64 {
        let start = index * u64::from(self.chunk_bytes);
        u64::from(self.chunk_bytes).min(self.image_bytes.saturating_sub(start))
    }
}

/// What to do on the destination with a chunk that is zero on the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZeroChunks {
    /// Nothing: the file is ours from its creation and holds nothing there.
    Skip,
    /// Punch a hole, or write zeros, and make that durable.
    Punch,
}

/// Bytes of an image that are to be other ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch {
    /// Where, in bytes from the beginning of the image.
    pub offset: u64,
    /// What is to stand there.
    pub bytes: Vec<u8>,
}

/// An image below another one in a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The file, absolute.
    pub path: String,
    /// Its format, never probed.
    pub format: ImageFormat,
}

/// A copy of chunks from a file of the source's host to one of the destination's.
#[derive(Debug, Clone)]
pub struct CopyJob {
    /// The source's image, absolute.
    pub from: String,
    /// The staged image, absolute.
    pub to: String,
    /// What the staged image must be.
    pub to_inode: Inode,
    /// Size and chunks.
    pub geometry: ChunkGeometry,
    /// Chunks to be copied: ascending, disjoint.
    pub wanted: Vec<Range<u64>>,
    /// Bytes that are other ones in the copy. They lie in data, not in holes.
    pub patches: Vec<Patch>,
    /// The images below the source's, from the top down. Where there are any, it is qcow2, and what is copied is what a guest
    /// sees through all of them: `geometry` is about that, and nothing is patched.
    pub below: Vec<Layer>,
    /// What to do with zeros.
    pub zero_chunks: ZeroChunks,
    /// Whether what was sent is read back from the disk too, once it is durable.
    pub read_back: bool,
    /// Image bytes per second at most.
    pub bandwidth_limit_bytes_per_second: Option<u64>,
}

/// What a copy moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CopySummary {
    /// Image bytes that crossed the wire.
    pub sent_bytes: u64,
}

/// Hashing chunks of one file, on its host, read from the disk and not from memory where `reread` is set.
#[derive(Debug, Clone)]
pub struct HashJob {
    /// The file, absolute.
    pub path: String,
    /// What it must be, where that is known.
    pub inode: Option<Inode>,
    /// Size and chunks.
    pub geometry: ChunkGeometry,
    /// Chunks to be hashed: ascending, disjoint.
    pub wanted: Vec<Range<u64>>,
    /// Bytes that are taken for other ones.
    pub patches: Vec<Patch>,
    /// The images below the file, as in [`CopyJob::below`]: what is hashed is what a guest sees. Then no inode is named.
    pub below: Vec<Layer>,
    /// Go to the disk: `O_DIRECT`, or the page cache dropped first.
    pub reread: bool,
}

/// The primitive operations on one host. A path is absolute and never ends in `/`.
///
/// No operation that changes something makes it durable, unless it says so: `sync` does.
pub trait Host {
    /// The host's name, as the user gave it, for messages.
    fn name(&self) -> String;
    /// What there is to know of the host.
    fn facts(&self) -> Result<HostFacts, Fault>;
    /// The agent that does all this.
    fn agent(&self) -> Result<ProcessId, Fault>;
    /// What that agent did in its life, as it counted it itself.
    fn counts(&self) -> Result<CountsV1, Fault>;

    /// Names what the agent may change: these paths, and all below those that end in `/`. Adds to earlier calls.
    /// The host record and the claims need no naming. Everything else is refused by the agent itself (`Denied`).
    fn allow(&self, paths: &[String]) -> Result<(), Fault>;

    /// `lstat`; `None` when there is nothing.
    fn stat(&self, path: &str) -> Result<Option<FileStat>, Fault>;
    /// A small file's content, at most `max_bytes` of it; `None` when there is nothing. Follows no symlink at the end.
    fn read(&self, path: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, Fault>;
    /// Names in a directory, sorted, without `.` and `..`; `None` when there is nothing.
    fn list(&self, directory: &str) -> Result<Option<Vec<String>>, Fault>;
    /// The real path behind symlinks; `None` when there is nothing.
    fn resolve(&self, path: &str) -> Result<Option<String>, Fault>;
    /// The filesystem that holds a path which exists.
    fn filesystem(&self, path: &str) -> Result<FilesystemFacts, Fault>;
    /// Number of a user and of a group by name.
    fn ids_of(&self, user: &str, group: &str) -> Result<(Option<u32>, Option<u32>), Fault>;

    /// What `qemu-img check` says of a qcow2 image, which it only reads. Within a bound of its own.
    fn check_qcow2(&self, path: &str) -> Result<ImageCheck, Fault>;
    /// The version of swtpm, such as `0.7.1`; `None` where there is none.
    fn swtpm_version(&self) -> Result<Option<String>, Fault>;

    /// Makes a directory; `AlreadyExists` when the name is taken.
    fn make_dir(&self, path: &str, mode: u32) -> Result<Inode, Fault>;
    /// Makes a file with this content; `AlreadyExists` when the name is taken.
    fn make_file(&self, path: &str, mode: u32, content: &[u8]) -> Result<Inode, Fault>;
    /// Writes into a file that is there and is that inode (`Changed` otherwise).
    fn write_at(&self, path: &str, inode: Inode, offset: u64, bytes: &[u8]) -> Result<(), Fault>;
    /// Sets a file's length; with `allocate` its blocks too (`NoSpace` when they are not to be had).
    fn set_size(&self, path: &str, inode: Inode, bytes: u64, allocate: bool) -> Result<(), Fault>;
    /// Sets owner, group and permission bits.
    fn set_attributes(&self, path: &str, inode: Inode, uid: u32, gid: u32, mode: u32) -> Result<(), Fault>;
    /// Gives a file the security label that its path has by default, where the host has such labels. What came of it where it
    /// went wrong, in words; `None`: it has its label, or there is none to give.
    fn relabel(&self, path: &str) -> Result<Option<String>, Fault>;
    /// `fsync` of a file or directory: its data, or its names, survive a power cut from now on.
    fn sync(&self, path: &str) -> Result<(), Fault>;
    /// `syncfs` of the filesystem that holds a path.
    fn sync_filesystem(&self, path: &str) -> Result<(), Fault>;
    /// A second name for a file; `AlreadyExists` when it is taken.
    fn link(&self, from: &str, to: &str) -> Result<(), Fault>;
    /// A new name for a file or directory; `AlreadyExists` when it is taken.
    fn rename(&self, from: &str, to: &str) -> Result<(), Fault>;
    /// Removes a name if it is that inode (`Changed` otherwise). Already gone is `Ok`.
    fn unlink(&self, path: &str, inode: Inode) -> Result<(), Fault>;
    /// Removes an empty directory (`NotEmpty` otherwise). Already gone is `Ok`.
    fn remove_dir(&self, path: &str) -> Result<(), Fault>;

    /// Takes the owner lock for as long as the agent lives; until then the agent changes nothing outside
    /// the host record it builds.
    fn lock_owner(&self, path: &str) -> Result<OwnerLock, Fault>;
    /// Kills an agent of ours that is still there and waits for its end, up to a bound. Already gone is `Ok`.
    fn kill_agent(&self, agent: ProcessId) -> Result<(), Fault>;
    /// Takes QEMU's image locks as a reader that shares neither writing nor resizing, for as long as the agent
    /// lives or until `unlock_image`; `InUse` when a writer has it. A second time is `Ok`.
    fn lock_image(&self, path: &str) -> Result<Inode, Fault>;
    /// Lets go of an image. Not held is `Ok`.
    fn unlock_image(&self, path: &str) -> Result<(), Fault>;
    /// `unlink`, unless anybody else has a lock on the file (`InUse`): looked at in the same action. Our own image lock on it is
    /// let go of, whatever comes of this.
    fn unlink_unused(&self, path: &str, inode: Inode) -> Result<(), Fault>;

    /// What a block device is; `None` when there is nothing, or no block device.
    fn device(&self, path: &str) -> Result<Option<DeviceFacts>, Fault>;
    /// Nodes of the block devices that share bytes with the one that this names: itself, its partitions, and what it is a
    /// partition of.
    fn devices_like(&self, identity: &str) -> Result<Vec<String>, Fault>;
    /// Opens a block device that must be this one (`Changed`), and that no filesystem and no other device uses (`InUse`), for as
    /// long as the agent lives: until then it stays so, and may be written to. A second time is `Ok`.
    fn hold_device(&self, path: &str, identity: &str) -> Result<Inode, Fault>;

    /// Chunk values of a file, in ascending order, to the sink.
    fn hash_chunks(&self, job: &HashJob, sink: &mut dyn ChunkSink) -> Result<(), Fault>;

    /// All domains.
    fn domains(&self) -> Result<Vec<DomainBrief>, Fault>;
    /// One domain; `None` when there is none of that UUID.
    fn domain(&self, uuid: DomainUuid) -> Result<Option<DomainFacts>, Fault>;
    /// One domain by name; `None` when there is none.
    fn domain_named(&self, name: &str) -> Result<Option<DomainFacts>, Fault>;
    /// Defines with `VALIDATE`. The same name and UUID again replaces the definition; the name under another UUID is `AlreadyExists`.
    fn define(&self, definition: &str) -> Result<(), Fault>;
    /// Undefines, keeping NVRAM and TPM state always. No such domain is `Ok`.
    fn undefine(&self, uuid: DomainUuid) -> Result<(), Fault>;
    /// Undefines likewise, and with it goes what libvirt keeps for it: a saved memory image, checkpoints.
    fn undefine_whole(&self, uuid: DomainUuid) -> Result<(), Fault>;
    /// Gives a domain that is off another name; `AlreadyExists` when it is taken. Its own name again is `Ok`.
    fn rename_domain(&self, uuid: DomainUuid, name: &str) -> Result<(), Fault>;
    /// The definition that a running domain runs with, with secrets; `None` when it is off, or there is none.
    fn live_definition(&self, uuid: DomainUuid) -> Result<Option<String>, Fault>;
    /// All snapshots of a domain, by name; none where there is no such domain.
    fn snapshots(&self, uuid: DomainUuid) -> Result<Vec<SnapshotFacts>, Fault>;
    /// One snapshot; `None` when there is no such domain or snapshot.
    fn snapshot(&self, uuid: DomainUuid, name: &str) -> Result<Option<SnapshotFacts>, Fault>;
    /// Tells libvirt of a snapshot that the disks hold already (`REDEFINE`), in place of one of the same name that its guest
    /// could not tell from it; `Refused` where the one that it stands on is not there. Not `current`: the current one stays.
    fn define_snapshot(&self, uuid: DomainUuid, definition: &str, current: bool) -> Result<(), Fault>;
    /// Lets libvirt forget a snapshot, and touches no disk. The one that it stands on becomes the current one in its place.
    /// Already gone is `Ok`.
    fn forget_snapshot(&self, uuid: DomainUuid, name: &str) -> Result<(), Fault>;
    /// Sets (or, with `None`, removes) our metadata element in the definition.
    fn set_metadata(&self, uuid: DomainUuid, element: Option<&str>) -> Result<(), Fault>;
    /// Sets (or removes) the title in the definition.
    fn set_title(&self, uuid: DomainUuid, title: Option<&str>) -> Result<(), Fault>;
    /// Sets whether the domain starts with its host.
    fn set_autostart(&self, uuid: DomainUuid, autostart: bool) -> Result<(), Fault>;
    /// Starts a domain. Already running is `Ok`.
    fn start(&self, uuid: DomainUuid) -> Result<(), Fault>;
    /// Asks a running guest to shut down (ACPI); it takes its time, or does not listen. Already off is `Ok`.
    fn shut_down(&self, uuid: DomainUuid) -> Result<(), Fault>;
    /// Switches a domain off. Already off is `Ok`.
    fn destroy(&self, uuid: DomainUuid) -> Result<(), Fault>;
    /// Saves a running domain's memory to a new file and ends it.
    fn save(&self, uuid: DomainUuid, path: &str) -> Result<(), Fault>;
    /// Runs the domain of a saved memory on from there; `Refused` when the file is not whole.
    fn restore(&self, path: &str) -> Result<(), Fault>;
    /// What QEMU would be started with (`virConnectDomainXMLToNative`); creates nothing. `Refused` with libvirt's words.
    fn native_command(&self, definition: &str) -> Result<String, Fault>;
    /// `virConnectGetDomainCapabilities` for an architecture, machine and virtualization type.
    fn domain_capabilities(&self, arch: &str, machine: &str, virt_type: &str) -> Result<String, Fault>;
    /// What the host's QEMU lacks of a `<cpu>` (`virConnectCompareHypervisorCPU`), in libvirt's words; `None`: nothing, or it
    /// cannot be said. An empty architecture or machine lets libvirt choose.
    fn lacks_of_cpu(&self, arch: &str, machine: &str, virt_type: &str, cpu: &str) -> Result<Option<String>, Fault>;
    /// All networks.
    fn networks(&self) -> Result<Vec<NetworkFacts>, Fault>;
    /// All pools.
    fn pools(&self) -> Result<Vec<PoolFacts>, Fault>;
    /// The path of a pool's volume; `None` when there is no such pool or volume. `Refused` with libvirt's words where it
    /// cannot say, as of a pool that is not active.
    fn volume_path(&self, pool: &str, volume: &str) -> Result<Option<String>, Fault>;
    /// Lets a pool look at its directory again.
    fn refresh_pool(&self, name: &str) -> Result<(), Fault>;
    /// Drops the connection to libvirt, so that the next call uses a fresh relay.
    fn renew_libvirt(&self) -> Result<(), Fault>;
}

/// Both hosts, the clock and randomness.
pub trait World {
    /// Connects to a host: a new agent. Nothing reconnects by itself within an attempt.
    fn connect(&self, side: Side) -> Result<Rc<dyn Host>, Fault>;
    /// Ends the agent, and with it its locks. Not connected is fine.
    fn disconnect(&self, side: Side);
    /// Copies chunks between the two connected hosts. A chunk is reported once it is durable on the destination.
    fn copy_chunks(&self, job: &CopyJob, sink: &mut dyn ChunkSink) -> Result<CopySummary, Fault>;

    /// The time.
    fn now(&self) -> UnixMillis;
    /// Random bytes.
    fn random(&self) -> [u8; 16];
    /// Lets time pass; `Interrupted` when a signal comes meanwhile.
    fn wait(&self, time: Duration) -> Result<(), Fault>;
    /// `Interrupted` once Ctrl-C or SIGTERM came.
    fn check_interrupted(&self) -> Result<(), Fault>;
}
