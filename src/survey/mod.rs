//! The read-only facts of both hosts that a clone is planned from. Nothing here changes anything, and nothing here
//! judges: what is odd is written down as a fact, and `preflight` says what it means.

mod accounts;
mod bases;
mod chain;
mod destination;
mod firmware;
mod neighbours;
pub mod old_vm;
pub mod placement;
#[cfg(test)]
pub(crate) mod sample;
mod snapshots;
mod source;

pub use self::bases::BaseFacts;
pub use self::firmware::FirmwareFacts;
use std::collections::{BTreeMap, BTreeSet};

use journal_format::owner::OwnerV1;
use journal_format::{ImageFormat, ImageRoleV1, SourceKindV1, SourceStampV1};

use crate::domain::qcow2::Header;
use crate::domain::{Definition, Disk, DomainError, DomainName, NameError, SnapshotDefinition, Uncarried};
use crate::request::{Request, VmSelector};
use crate::steps;
use crate::world::{
    DeviceFacts, DomainBrief, DomainFacts, Fault, FaultKind, FileKind, FileStat, FilesystemFacts, Host, HostFacts,
    ImageCheck, Layer, NetworkFacts, PoolFacts, SnapshotFacts,
};

const BOOT_ID_BYTES_MAX: u64 = 64;
/// VMs that a message names, at most.
pub const VMS_NAMED_MAX: usize = 20;

/// Everything that preflight and plan know of the world.
#[derive(Debug, Clone)]
pub struct Survey {
    /// The host and VM to be cloned.
    pub source: SourceSurvey,
    /// The host that receives the clone.
    pub destination: DestinationSurvey,
    /// The clone's name.
    pub new_name: DomainName,
}

impl Survey {
    /// The image of the destination that a file of the source need not be copied for.
    pub fn base_of(&self, file: &SourceFile) -> Option<&BaseFacts> {
        self.destination.bases.iter().find(|base| base.role == file.role)
    }

    /// Whether source and destination are one machine.
    pub fn one_machine(&self) -> bool {
        self.source.host.machine_id == self.destination.host.machine_id
    }
}

/// What the source's host says.
#[derive(Debug, Clone)]
pub struct SourceSurvey {
    /// The host's name, as the user gave it.
    pub name: String,
    /// The host as a whole.
    pub host: HostFacts,
    /// The VM.
    pub vm: DomainFacts,
    /// Its definition, read, without what is left behind.
    pub definition: Definition,
    /// The devices that are left behind, and why each is not carried.
    pub left_behind: Vec<Uncarried>,
    /// Its files that are to be copied: the disks in the order of the definition first.
    pub files: Vec<SourceFile>,
    /// The firmware in flash memory that the host starts it with, for a VM that has variables of it.
    pub firmware: Option<FirmwareFacts>,
    /// The version of swtpm, for a VM with an emulated TPM.
    pub swtpm: Option<String>,
    /// What `qemu-img check` says of the qcow2 images of a VM that is off, by their real paths.
    pub checks: BTreeMap<String, ImageCheck>,
    /// The directories of its TPM's state, outermost first; none without such a state.
    pub tpm_directories: Vec<DirectoryAttributes>,
    /// All domains of the host, the VM among them.
    pub neighbours: Vec<Neighbour>,
    /// libvirt's snapshots of the VM, each after the one that it stands on.
    pub snapshots: Vec<SnapshotSurvey>,
}

impl SourceSurvey {
    /// The VM's definition, and those inside its snapshots: what the clone may be started with.
    pub fn definitions(&self) -> impl Iterator<Item = &Definition> {
        let documents = self.snapshots.iter().filter_map(|snapshot| snapshot.document.as_ref().ok());
        std::iter::once(&self.definition).chain(documents.flat_map(SnapshotDefinition::definitions))
    }

    /// The place among its files of what a disk of one of these definitions is, or was when a snapshot was made.
    pub fn file_of(&self, disk: &Disk) -> Option<usize> {
        let alike = || self.definition.disks.iter().filter(|own| own.source == disk.source);
        let own = alike().find(|own| own.target == disk.target).or_else(|| alike().next())?;
        self.files.iter().position(|file| file.index == Some(own.index))
    }

    /// The places among its files of what the file at `top` stands on, from the top down.
    pub fn chain_below(&self, top: usize) -> impl Iterator<Item = usize> + '_ {
        let below = |at: usize| match self.files.get(at)?.below {
            Below::Image { file, .. } => Some(file),
            Below::Nothing | Below::Refused(_) => None,
        };
        // A chain that bites its own tail ends too.
        std::iter::successors(below(top), move |at| below(*at)).take(self.files.len())
    }

    /// Names of the virtual networks that they need, each once.
    pub fn networks(&self) -> BTreeSet<&str> {
        self.definitions().flat_map(Definition::networks).collect()
    }

    /// Names of the host's bridges that they need, each once.
    pub fn bridges(&self) -> BTreeSet<&str> {
        self.definitions().flat_map(Definition::bridges).collect()
    }
}

/// A libvirt snapshot of the VM.
#[derive(Debug, Clone)]
pub struct SnapshotSurvey {
    /// As libvirt has it.
    pub facts: SnapshotFacts,
    /// Its document, read.
    pub document: Result<SnapshotDefinition, DomainError>,
    /// The real paths of the images that its definitions name below others, by the paths that they name. `None`: there is nothing.
    pub layers: BTreeMap<String, Option<String>>,
}

impl SnapshotSurvey {
    /// The name of the snapshot that it stands on.
    pub fn parent(&self) -> Option<&str> {
        self.document.as_ref().ok()?.parent.as_deref()
    }
}

/// A file of the source VM.
#[derive(Debug, Clone)]
pub struct SourceFile {
    /// What of the VM it is.
    pub role: ImageRoleV1,
    /// For a disk's own image: its place among all disks of the definition.
    pub index: Option<usize>,
    /// Format by the definition, never probed.
    pub format: ImageFormat,
    /// The path by which the VM reaches it.
    pub path: String,
    /// What is there.
    pub image: SourceImage,
    /// What lies below it in a chain of images.
    pub below: Below,
    /// What may be at that path, by the definition.
    pub named_as: NamedAs,
    /// The images below it that are to be read through it, from the top down. Where there are any, nothing else is `below`.
    pub flattened: Vec<FlattenedLayer>,
}

/// An image below another one that is read through it.
#[derive(Debug, Clone)]
pub struct FlattenedLayer {
    /// The reference in the header of the image above it, as written.
    pub reference: String,
    /// The image.
    pub file: SourceFile,
}

/// What a definition says of the kind of thing that keeps an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamedAs {
    /// A regular file.
    File,
    /// A block device.
    Device,
    /// Whichever a pool has for a volume.
    Volume,
}

/// What an image is on top of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Below {
    /// Nothing.
    Nothing,
    /// Another image.
    Image {
        /// The reference in its header, as written.
        reference: String,
        /// The place of that image among the VM's files.
        file: usize,
    },
    /// Something that cannot be carried; why.
    Refused(String),
}

/// Who may do what in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryAttributes {
    /// Permission bits.
    pub mode: u32,
    /// Who owns it.
    pub owner: OwnerNames,
}

/// What stands at a file's path.
#[derive(Debug, Clone)]
pub enum SourceImage {
    /// Something that can be read.
    Readable(ImageFacts),
    /// Nothing.
    Missing,
    /// Something that the agent, though root, cannot read; in the host's words.
    Unreadable(String),
}

/// A source image.
#[derive(Debug, Clone)]
pub struct ImageFacts {
    /// The real path, behind all symlinks.
    pub path: String,
    /// What `stat` says of it.
    pub stat: FileStat,
    /// Who owns it.
    pub owner: OwnerNames,
    /// Its first bytes, `HEADER_READ_BYTES` at most.
    pub head: Vec<u8>,
}

/// User and group by name, where the host's own files name them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwnerNames {
    /// The user.
    pub user: Option<String>,
    /// The group.
    pub group: Option<String>,
}

/// User and group by number, where the host knows their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OwnerNumbers {
    /// The user.
    pub user: Option<u32>,
    /// The group.
    pub group: Option<u32>,
}

impl SourceFile {
    /// What it is, for people.
    pub fn what(&self) -> String {
        match &self.role {
            ImageRoleV1::Disk { target } => format!("disk {target}"),
            ImageRoleV1::Layer { target, .. } => format!("the chain below disk {target}"),
            ImageRoleV1::Medium { target } => format!("medium in {target}"),
            ImageRoleV1::Nvram => "UEFI variables".to_owned(),
            ImageRoleV1::Tpm => "TPM state".to_owned(),
        }
    }

    /// Itself, and what is read through it.
    pub fn layers(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(self.flattened.iter().map(|layer| &layer.file))
    }

    /// Format of the clone's image.
    pub fn clone_format(&self) -> ImageFormat {
        if self.flattened.is_empty() { self.format } else { ImageFormat::Raw }
    }

    /// What the image looks like that is to be copied: itself, or what its guest sees of the whole chain. `None`: not all of it
    /// can be read.
    pub fn stamp(&self) -> Option<SourceStampV1> {
        let kind = self.source_kind();
        let stats = self.layers().map(|layer| Some(layer.image()?.stat)).collect::<Option<Vec<_>>>()?;
        match &stats[..] {
            [alone] => Some(steps::stamp_of(kind, alone)),
            _ => Some(steps::stamp_of_chain(kind, self.guest_bytes()?, &stats)),
        }
    }

    /// What keeps it.
    pub fn source_kind(&self) -> SourceKindV1 {
        match self.image() {
            Some(image) if image.stat.kind == FileKind::BlockDevice => SourceKindV1::Device,
            _ => SourceKindV1::File,
        }
    }

    /// The images that are read through it.
    pub fn below_it(&self) -> Vec<Layer> {
        let layers = self.flattened.iter();
        layers
            .filter_map(|layer| Some(Layer { path: layer.file.image()?.path.clone(), format: layer.file.format }))
            .collect()
    }

    /// Bytes that its guest sees. `None`: it cannot be said.
    pub fn guest_bytes(&self) -> Option<u64> {
        let image = self.image()?;
        match self.format {
            ImageFormat::Raw => Some(image.stat.size),
            ImageFormat::Qcow2 => Header::read(&image.head).ok().map(|header| header.virtual_size_bytes),
        }
    }

    /// Bytes that are allocated for it, and may come to be for the clone's image: of a chain, those of all its layers, and no
    /// more than its guest sees. What is compressed takes more in a flattened image, how much only reading it would say.
    /// `None`: not all of it can be read.
    pub fn allocated_bytes(&self) -> Option<u64> {
        let bytes = if self.flattened.is_empty() { self.image()?.stat.size } else { self.guest_bytes()? };
        let allocated = |all: u64, layer: &Self| Some(all.saturating_add(layer.image()?.stat.allocated));
        // Blocks beyond the end of the image are not moved.
        self.layers().try_fold(0, allocated).map(|allocated| allocated.min(bytes))
    }

    /// The image, if there is one that can be read.
    pub fn image(&self) -> Option<&ImageFacts> {
        match &self.image {
            SourceImage::Readable(image) => Some(image),
            SourceImage::Missing | SourceImage::Unreadable(_) => None,
        }
    }
}

/// Another domain of a host: what of it can clash with the clone.
#[derive(Debug, Clone)]
pub struct Neighbour {
    /// UUID, name, state.
    pub brief: DomainBrief,
    /// Its MAC addresses, in lower case.
    pub macs: BTreeSet<String>,
    /// Files and devices that its disks name.
    pub paths: BTreeSet<String>,
}

/// What the destination's host says.
#[derive(Debug, Clone)]
pub struct DestinationSurvey {
    /// The host's name, as the user gave it.
    pub name: String,
    /// The host as a whole.
    pub host: HostFacts,
    /// All its domains.
    pub neighbours: Vec<Neighbour>,
    /// Its virtual networks.
    pub networks: Vec<NetworkFacts>,
    /// Those bridges which the clone needs and the host has.
    pub bridges: BTreeSet<String>,
    /// Its pools.
    pub pools: Vec<PoolSurvey>,
    /// Every directory that may receive a disk, by the path it is known by; one that does not exist is left out.
    pub directories: BTreeMap<String, DirectoryFacts>,
    /// What keeps the host record: `/var/lib/kvm-clone/host`, or the nearest directory above it that exists.
    pub record: DirectoryFacts,
    /// Paths that a disk of the clone could have had, but which exist.
    pub taken: BTreeSet<String>,
    /// The block devices that may be written over, by their paths as they were typed.
    pub devices: BTreeMap<String, TargetDevice>,
    /// Of the media that are not copied, by their paths: is there something there?
    pub media: BTreeMap<String, bool>,
    /// Files that libvirt would take for the clone's own.
    pub leftovers: Vec<String>,
    /// The VM that has the clone's name, where it may be replaced.
    pub old: Option<old_vm::OldVm>,
    /// Images that it has already, with the bytes of some of the source's.
    pub bases: Vec<BaseFacts>,
    /// It has the source's machine-id, and is another machine.
    pub is_twin: bool,
    /// Who has reserved the clone's name.
    pub claim: Option<ClaimFacts>,
    /// What the host's QEMU makes of the VM's architecture, machine type and virtualization.
    pub emulator: EmulatorFacts,
    /// What its QEMU lacks of the VM's CPU, in libvirt's words.
    pub cpu_lacks: Option<String>,
    /// The version of swtpm, for a VM with an emulated TPM.
    pub swtpm: Option<String>,
    /// Numbers of the owners that the source's images have by name.
    pub owners: BTreeMap<OwnerNames, OwnerNumbers>,
}

/// A pool of the destination.
#[derive(Debug, Clone)]
pub struct PoolSurvey {
    /// As libvirt has it.
    pub facts: PoolFacts,
    /// The real path of its directory, where it exists.
    pub real_path: Option<String>,
}

/// A directory of the destination that exists.
#[derive(Debug, Clone)]
pub struct DirectoryFacts {
    /// Its real path, behind all symlinks.
    pub path: String,
    /// What it is.
    pub stat: FileStat,
    /// The filesystem that holds it.
    pub filesystem: FilesystemFacts,
    /// What is at `.kvm-clone` in it, if anything is.
    pub staging_parent: Option<FileStat>,
}

/// A block device that an image is to be written to.
#[derive(Debug, Clone)]
pub struct TargetDevice {
    /// Its node, behind all symlinks.
    pub path: String,
    /// What it is; `None`: there is no block device.
    pub facts: Option<DeviceFacts>,
    /// Who reaches it on that host, in words.
    pub reached: Option<String>,
    /// Who has reserved it.
    pub claim: Option<ClaimFacts>,
    /// Who uses the same device, or a part of it, on the source's host, in words.
    pub used_on_source: Option<String>,
}

impl TargetDevice {
    /// What names it for good, on every host that has it. A loop device's own number says nothing on another host.
    fn identity(&self) -> Option<&String> {
        let identity = self.facts.as_ref()?.identity.as_ref();
        identity.filter(|identity| !identity.starts_with("loop-"))
    }
}

/// A reservation of the clone's name, or of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimFacts {
    /// The claim's path.
    pub path: String,
    /// The owner file, or why it cannot be read.
    pub owner: Result<OwnerV1, String>,
}

/// Whether the destination has an emulator for the VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EmulatorFacts {
    /// This program.
    Path(String),
    /// None; in libvirt's words.
    Refused(String),
}

/// What the destination's libvirt makes of the clone's whole definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rehearsal {
    /// It could start QEMU with it.
    Accepted {
        /// The firmware in flash memory that it would start.
        firmware: Option<FirmwareFacts>,
    },
    /// It could not; in libvirt's words.
    Refused(String),
}

/// Why there is no survey.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    /// A host did not answer a question.
    #[error(transparent)]
    Host(#[from] Fault),
    /// There is no such VM.
    #[error("{host}: there is no VM {vm}. {}", known_vms(known))]
    NoSuchVm {
        /// The source's host.
        host: String,
        /// As it was asked for.
        vm: VmSelector,
        /// Names of the VMs that there are.
        known: Vec<String>,
    },
    /// The VM's definition cannot be read.
    #[error("{host}: the definition of VM {vm} cannot be read: {source}. Look at it with `virsh dumpxml --inactive`.")]
    Definition {
        /// The source's host.
        host: String,
        /// The VM's name.
        vm: String,
        /// What is wrong with it.
        source: DomainError,
    },
    /// The clone's name cannot be made from the VM's.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// The VMs of a host, in a sentence.
fn known_vms(known: &[String]) -> String {
    match known.len() {
        0 => "It has none that this user can see.".to_owned(),
        count if count <= VMS_NAMED_MAX => format!("It has: {}.", known.join(", ")),
        count => format!(
            "It has {count}, among them {}; `kvm-clone vms` lists all.",
            known.get(..VMS_NAMED_MAX).unwrap_or(known).join(", ")
        ),
    }
}

/// Asks both hosts for everything that a clone is planned from.
pub fn survey(source: &dyn Host, destination: &dyn Host, request: &Request) -> Result<Survey, SurveyError> {
    let (source_host, destination_host) = (source, destination);
    let source = source::survey(source_host, request)?;
    let new_name = request.clone_name(&source.vm.brief.name)?;
    let mut destination = destination::survey(destination_host, request, &source, &new_name)?;
    let is_one_machine = source.host.machine_id == destination.host.machine_id;
    destination.is_twin = is_one_machine && boot_id(source_host)? != boot_id(destination_host)?;
    for device in destination.devices.values_mut().filter(|_| !is_one_machine) {
        device.used_on_source = destination::used_on_source(source_host, device)?;
    }
    let of_source = (source_host, &source);
    destination.old = old_vm::survey(destination_host, request, of_source, new_name.as_str())?;
    destination.bases = bases::bases(destination_host, of_source, request, &destination)?;
    Ok(Survey { source, destination, new_name })
}

/// What no two machines have in common, as long as they run.
fn boot_id(host: &dyn Host) -> Result<Option<Vec<u8>>, Fault> {
    host.read("/proc/sys/kernel/random/boot_id", BOOT_ID_BYTES_MAX)
}

/// Asks the destination what it would start with the clone's definition. Creates nothing.
pub fn rehearse(destination: &dyn Host, definition: &str) -> Result<Rehearsal, Fault> {
    Ok(match words_of_refusal(destination.native_command(definition))? {
        Ok(command) => Rehearsal::Accepted { firmware: firmware::look(destination, &command)? },
        Err(words) => Rehearsal::Refused(words),
    })
}

/// Keeps libvirt's definite no apart from a question that was not answered.
fn words_of_refusal<T>(answer: Result<T, Fault>) -> Result<Result<T, String>, Fault> {
    match answer {
        Ok(value) => Ok(Ok(value)),
        Err(fault) if matches!(fault.kind, FaultKind::Refused | FaultKind::Unsupported) => Ok(Err(fault.detail)),
        Err(fault) => Err(fault),
    }
}
