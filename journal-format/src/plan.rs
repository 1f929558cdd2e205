//! The plan of a transaction: complete, with every name, UUID, MAC and path already chosen.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::drop_kind::DropKindV1;
use crate::identity::{ChunkValue, ControllerId, DomainUuid, Inode, TxnId, UnixMillis};
use crate::old_vm::{FileStampV1, ReplacedV1};

/// One clone, planned whole. Written in `Begun` before anything is touched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanV1 {
    /// The transaction's name.
    pub txn: TxnId,
    /// When it was planned.
    pub created_at: UnixMillis,
    /// Version of the program that planned it, for messages only.
    pub program_version: String,
    /// The controller that planned it.
    pub controller: ControllerId,
    /// What was asked for.
    pub request: RequestV1,
    /// The clone's UUID.
    pub clone_uuid: DomainUuid,
    /// The source's definition as libvirt gave it (inactive, with secrets). Compared at each attempt.
    pub source_definition: String,
    /// The clone's definition as it will be sent, but for the title and the metadata element that `DefineDomain` puts in.
    pub definition: String,
    /// The clone's own title: what stands in `definition`, restored when the clone is finished. `None`: it has none.
    pub title: Option<String>,
    /// Whether the source starts with its host, and so the clone.
    pub autostart: bool,
    /// Directories on the destination that receive final names. Each gets a staging directory.
    pub directories: Vec<DirectoryV1>,
    /// Directories that are made for final names, parents first.
    pub new_directories: Vec<NewDirectoryV1>,
    /// The files to be copied: the disks in the order of the definition first.
    pub images: Vec<ImageV1>,
    /// The old VM: it has the clone's name, and gives way to the clone after the commit. `None`: the name is free.
    pub replaced: Option<ReplacedV1>,
    /// Active pools of the destination that hold a touched directory; refreshed at the end.
    pub pools: Vec<String>,
    /// What is done before the commit, in this order; undone in the opposite order.
    pub steps: Vec<StepV1>,
    /// What is done after the commit, forward only.
    pub clean_up: Vec<CleanUpStepV1>,
    /// libvirt's snapshots of the source, each after the one that it stands on.
    pub snapshots: Vec<SnapshotV1>,
    /// Images at the bottom of the source's chains that the destination has already: they are not copied.
    pub bases: Vec<BaseV1>,
}

/// An image of the destination that has the bytes of one of the source's. The clone stands on it; it is not the clone's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseV1 {
    /// What of the VM it is: a layer.
    pub role: ImageRoleV1,
    /// The path by which the source VM reaches its own, absolute. At each attempt it still has to lead to `source_path`.
    pub reached_by: String,
    /// The source's: its real path, behind all symlinks.
    pub source_path: String,
    /// What the source's looked like when it was planned.
    pub source_stamp: SourceStampV1,
    /// The destination's: its real path.
    pub path: String,
    /// The inode of the directory that holds it: where its filesystem is not mounted, another has that name.
    pub directory: Inode,
    /// What the destination's looked like when it was planned.
    pub stamp: FileStampV1,
    /// Plain BLAKE3 of both.
    pub root: ChunkValue,
}

/// One libvirt snapshot. What it holds of the disks is inside their images; this is what libvirt itself knows of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotV1 {
    /// Its name, the same on both hosts.
    pub name: String,
    /// The source's, as libvirt gave it (with secrets). Compared at each attempt.
    pub source_definition: String,
    /// The clone's as it will be sent, but for the metadata elements that `DefineSnapshot` puts in. The domain inside has the
    /// clone's final name.
    pub definition: String,
    /// It is the current one.
    pub current: bool,
}

/// What makes two runs the same clone, and what was asked besides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestV1 {
    /// Where the source VM is.
    pub source: EndpointV1,
    /// The source VM's UUID.
    pub vm_uuid: DomainUuid,
    /// The source VM's name when it was surveyed.
    pub vm_name: String,
    /// Where the clone will be.
    pub destination: EndpointV1,
    /// The clone's name.
    pub new_name: String,
    /// Everything else that was asked for.
    pub options: OptionsV1,
}

/// How a host is reached, as the user named it. What `~/.ssh/config` makes of it is looked up at each attempt.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EndpointV1 {
    /// `local`, `[user@]host[:port]` or an alias, exactly as given.
    pub address: String,
    /// The host's machine-id when it was surveyed: another machine under the same name is refused.
    pub machine_id: String,
    /// The private key file that the user named, absolute. Never its content.
    pub key_file: Option<String>,
}

/// Options of a request that the engine needs again after a crash.
#[allow(clippy::struct_excessive_bools)] // switches of one command line, each its own
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OptionsV1 {
    /// Start the clone once it is finished.
    pub start: bool,
    /// Re-read every chunk from the destination's disk before publishing.
    pub verify: bool,
    /// Keep the source's MAC addresses.
    pub preserve_mac: bool,
    /// Keep the source's UUID.
    pub preserve_uuid: bool,
    /// Bytes per second at most over the wire; changeable on resume.
    pub bandwidth_limit_bytes_per_second: Option<u64>,
    /// Allocate the destination's images whole.
    pub preallocate: bool,
    /// Size of a chunk: a power of two between 64 KiB and 16 MiB.
    pub chunk_size_bytes: u32,
    /// What is left behind where it cannot be carried, in the order of the kinds, each once.
    pub dropped: Vec<DropKindV1>,
}

/// A directory of the destination that has a staging directory. Final names are in it, or below it on the same filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryV1 {
    /// The directory itself, absolute. Existed before.
    pub path: String,
    /// Its inode when it was planned: where its filesystem is not mounted, another directory has its name.
    pub inode: Inode,
    /// The staging directory: `<path>/.kvm-clone/<txn>`.
    pub staging: String,
    /// Content of the nonce file in the staging directory, looked for from the source's host.
    pub nonce: [u8; 16],
}

/// A directory that is made on the destination and stays with the clone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewDirectoryV1 {
    /// Absolute.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Owner and group by number on the destination.
    pub owner: (u32, u32),
    /// Whether the directory above it did not exist either, which others may make too: it is made where it is missing, and
    /// removed again where it is empty.
    pub makes_parent: bool,
}

/// One file to be copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageV1 {
    /// What of the VM it is.
    pub role: ImageRoleV1,
    /// Format of the source's image, from the definition, never probed.
    pub format: ImageFormat,
    /// The path by which the source VM reaches it, absolute. At each attempt it still has to lead to `source_path`.
    pub reached_by: String,
    /// The image on the source: its real path, behind all symlinks.
    pub source_path: String,
    /// What the source's image looked like when it was planned.
    pub source_stamp: SourceStampV1,
    /// Bytes allocated on the source when it was planned: an estimate for space and progress.
    pub allocated_bytes: u64,
    /// What keeps it on the destination.
    pub place: PlaceV1,
    /// The staged image, inside that directory's staging.
    pub staging_path: String,
    /// The image's final name.
    pub final_path: String,
    /// Permission bits of the final image.
    pub mode: u32,
    /// Owner and group by number on the destination.
    pub owner: (u32, u32),
    /// The image below it in its chain; `None`: it stands alone.
    pub backing: Option<BackingV1>,
    /// What keeps the image on the source.
    pub source_kind: SourceKindV1,
    /// The images below it that are read through it, from the top down: the clone's image is raw, and has what a guest sees of
    /// all of them. None: it is copied as it is.
    pub flattened: Vec<LayerV1>,
}

/// An image of the source below another one, that is read through it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerV1 {
    /// As the header of the image above names it. Another one there means another chain.
    pub reference: String,
    /// The path that this leads to, absolute. At each attempt it still has to lead to `source_path`.
    pub reached_by: String,
    /// Its real path, behind all symlinks.
    pub source_path: String,
    /// Its format, as the image above or the definition says, never probed.
    pub format: ImageFormat,
}

impl ImageV1 {
    /// Format of the clone's image.
    pub fn clone_format(&self) -> ImageFormat {
        if self.flattened.is_empty() { self.format } else { ImageFormat::Raw }
    }

    /// Index into `PlanV1::directories`, of an image that becomes a file.
    pub fn directory(&self) -> Option<u32> {
        match self.place {
            PlaceV1::Directory { directory } => Some(directory),
            PlaceV1::Device { .. } => None,
        }
    }

    /// The block device that is written over.
    pub fn device(&self) -> Option<&DeviceV1> {
        match &self.place {
            PlaceV1::Device { device } => Some(device),
            PlaceV1::Directory { .. } => None,
        }
    }
}

/// What keeps an image on the destination. Variants are only appended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PlaceV1 {
    /// A file of its own, which is staged.
    Directory {
        /// Index into `PlanV1::directories`.
        directory: u32,
    },
    /// A block device, whose node is both `staging_path` and `final_path`: nothing is staged, and nothing published.
    Device {
        /// Which one.
        device: DeviceV1,
    },
}

/// A block device of the destination that is written over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceV1 {
    /// What names it for good, over boots and under any path; fit for the name of a file.
    pub identity: String,
    /// Its bytes when it was planned: at least those of the image.
    pub bytes: u64,
    /// The path that the clone's definition names it by, as it was typed: a boot may give its node another name.
    pub named: String,
}

/// What keeps an image on the source. Variants are only appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceKindV1 {
    /// A regular file.
    File,
    /// A block device. No time tells whether its bytes changed, so they are read again, and its stamp's times are zero.
    Device,
}

/// What of a VM a file is. `Display` gives its word in messages and marks, which no two images of a plan share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageRoleV1 {
    /// What a disk writes to.
    Disk {
        /// Target name in the definition, such as `vda`.
        target: String,
    },
    /// What lies below, in a chain of images.
    Layer {
        /// Target name of the first disk that stands on it.
        target: String,
        /// How far below that disk's own image, from 1.
        depth: u32,
    },
    /// The variables of UEFI firmware.
    Nvram,
    /// The state of a virtual TPM.
    Tpm,
    /// What lies in a drive, or on a disk that is only read or shared.
    Medium {
        /// Target name of the drive.
        target: String,
    },
}

impl ImageRoleV1 {
    /// QEMU locks such a file while a guest uses it.
    pub const fn is_locked_by_qemu(&self) -> bool {
        matches!(self, Self::Disk { .. } | Self::Layer { .. } | Self::Medium { .. })
    }

    /// Does that one stand on this one, in the chain of one disk?
    pub fn is_below(&self, above: &Self) -> bool {
        match (self, above) {
            (Self::Layer { target, .. }, Self::Disk { target: above }) => target == above,
            (Self::Layer { target, depth }, Self::Layer { target: above, depth: height }) => {
                target == above && depth > height
            }
            _ => false,
        }
    }
}

impl fmt::Display for ImageRoleV1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk { target } | Self::Medium { target } => f.write_str(target),
            Self::Layer { target, depth } => write!(f, "{target}/{depth}"),
            Self::Nvram => f.write_str("nvram"),
            Self::Tpm => f.write_str("tpm"),
        }
    }
}

/// A reference from one image of a chain to the one below, as the headers name it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackingV1 {
    /// In the source's image. Another one there means another chain.
    pub source: String,
    /// In the copy, which is written with this one.
    pub clone: String,
}

/// What tells whether a source's image changed: size and mtime do, ctime alone only makes it re-hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStampV1 {
    /// Bytes of the image; of a flattened chain, those that its guest sees.
    pub size: u64,
    /// Nanoseconds since 1970; of a flattened chain, a digest of the sizes and mtimes of all its layers.
    pub mtime_ns: i128,
    /// Nanoseconds since 1970; of a flattened chain, a digest of the ctimes of all its layers.
    pub ctime_ns: i128,
}

/// Format of a disk image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageFormat {
    /// Raw bytes.
    Raw,
    /// QEMU's copy-on-write format, versions 2 and 3.
    Qcow2,
}

/// A step before the commit. Numbers are indices into the plan's tables. Variants are only appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StepV1 {
    /// The host record: directory, owner file, copy of the plan.
    ReserveRecord,
    /// The reservation of the clone's name.
    ClaimName,
    /// One staging directory with its nonce file.
    CreateStaging {
        /// Which directory.
        directory: u32,
    },
    /// A check: does the source's host see the nonces beside its disks (shared storage)?
    DetectSharedStorage,
    /// An empty staged image of the right size, mode and owner.
    CreateImage {
        /// Which image.
        image: u32,
    },
    /// The bytes of the image.
    TransferImage {
        /// Which image.
        image: u32,
    },
    /// A check: the staged image, read back from the disk, is the source's.
    VerifyImage {
        /// Which image.
        image: u32,
    },
    /// The staged image under its final name, by link.
    PublishImage {
        /// Which image.
        image: u32,
    },
    /// The clone's definition, marked unfinished.
    DefineDomain,
    /// A directory for final names that did not exist.
    MakeDirectory {
        /// Index into `PlanV1::new_directories`.
        directory: u32,
    },
    /// The old VM is shut off, and what it was is written into the host record.
    StopOldVm,
    /// What libvirt knows of one snapshot, in the clone's words.
    DefineSnapshot {
        /// Index into `PlanV1::snapshots`.
        snapshot: u32,
    },
    /// The reservation of the block device that takes an image.
    ClaimDevice {
        /// Which image.
        image: u32,
    },
    /// A check: an image that is used as it is there has not changed, and nobody writes to it.
    HoldBase {
        /// Index into `PlanV1::bases`.
        base: u32,
    },
}

/// A step after the commit. Forward only. Variants are only appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CleanUpStepV1 {
    /// Metadata state `finished`, the clone's own title.
    FinishDomain,
    /// The claim on the name is given back.
    ReleaseClaim,
    /// The clone starts with its host, as the source did.
    SetAutostart,
    /// The clone is started, as asked.
    StartDomain,
    /// One staging directory goes, with what is left in it.
    RemoveStaging {
        /// Which directory.
        directory: u32,
    },
    /// A pool learns of the new files.
    RefreshPool {
        /// Index into `PlanV1::pools`.
        pool: u32,
    },
    /// The host record goes, last.
    RemoveRecord,
    /// The old VM is undefined, or renamed where it is kept.
    RetireOldVm,
    /// The clone gets its own name, which the old VM had.
    RenameClone,
    /// One file of the old VM is deleted.
    DeleteOldFile {
        /// Index into `ReplacedV1::files`.
        file: u32,
    },
}
