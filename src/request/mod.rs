//! What the user asked for, as validated types. Nothing here contacts a host: what is wrong with the words themselves
//! is said before (exit 2), what is wrong with the world is `preflight`'s to say.

mod chain;
mod disk_map;
mod quantity;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use journal_format::{DomainUuid, DropKindV1, StopModeV1};

use crate::domain::{DomainName, NameError};
use crate::host::Address;

pub use self::chain::Chain;
pub use self::disk_map::{DiskMapping, DiskPlace};
pub use self::quantity::{
    ByteRate, CHUNK_SIZE_DEFAULT_BYTES, CHUNK_SIZE_MAX_BYTES, CHUNK_SIZE_MIN_BYTES, ChunkSize,
    RATE_MIN_BYTES_PER_SECOND,
};

/// One clone, as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // one an option of the command line
pub struct Request {
    /// Where the source VM is.
    pub source: Address,
    /// Where the clone will be.
    pub destination: Address,
    /// Which VM.
    pub vm: VmSelector,
    /// The clone's name; `None`: `<vm>_clone`.
    pub new_name: Option<DomainName>,
    /// Where the clone's disks go.
    pub target: Target,
    /// Networks and bridges that have another name on the destination.
    pub network_map: Vec<NetworkMapping>,
    /// Start the clone once it is finished.
    pub start: bool,
    /// Keep the source's MAC addresses.
    pub preserve_mac: bool,
    /// Keep the UUID.
    pub preserve_uuid: bool,
    /// What becomes of a VM that has the clone's name.
    pub occupied: Occupied,
    /// How it may be stopped.
    pub stop: StopModeV1,
    /// It stays, under another name.
    pub keep_replaced: bool,
    /// What becomes of a TPM's state.
    pub tpm: TpmState,
    /// Copy what lies in drives too, and disks that are only read or shared.
    pub copy_media: bool,
    /// Re-read every chunk from the destination's disk before publishing.
    pub verify: bool,
    /// Allocate the destination's images whole.
    pub preallocate: bool,
    /// Limit of the transfer.
    pub bandwidth_limit: Option<ByteRate>,
    /// Bytes of a chunk.
    pub chunk_size: ChunkSize,
    /// Private key file for both hosts.
    pub key_file: Option<PathBuf>,
    /// Disks that go elsewhere than the others, under names of their own.
    pub disk_map: Vec<DiskMapping>,
    /// Block devices of the destination that are written over.
    pub overwritten: Vec<String>,
    /// What is left behind where it cannot be carried; in the order of the kinds, each once.
    pub dropped: Vec<DropKindV1>,
    /// What becomes of the images that a disk stands on.
    pub chain: Chain,
}

impl Request {
    /// The plainest clone of a VM: everything else as it is by default.
    pub fn new(source: Address, destination: Address, vm: VmSelector) -> Self {
        Self {
            source,
            destination,
            vm,
            new_name: None,
            target: Target::LikeSource,
            network_map: Vec::new(),
            start: false,
            preserve_mac: false,
            preserve_uuid: false,
            occupied: Occupied::Refuse,
            stop: StopModeV1::Shutdown,
            keep_replaced: false,
            tpm: TpmState::Copy,
            copy_media: false,
            verify: true,
            preallocate: false,
            bandwidth_limit: None,
            chunk_size: ChunkSize::default(),
            key_file: None,
            disk_map: Vec::new(),
            overwritten: Vec::new(),
            dropped: Vec::new(),
            chain: Chain::Keep,
        }
    }

    /// Checks what the parts cannot see alone. To be called before any host is contacted.
    pub fn check(&self) -> Result<(), RequestError> {
        for (index, mapping) in self.network_map.iter().enumerate() {
            if self.network_map[..index].iter().any(|earlier| earlier.from == mapping.from) {
                return Err(RequestError::NetworkMappedTwice { name: mapping.from.clone() });
            }
        }
        disk_map::check(&self.disk_map, &self.overwritten)?;
        if let VmSelector::Name(name) = &self.vm {
            let new_name = self.clone_name(name)?;
            if self.source == self.destination && new_name.as_str() == name {
                return Err(RequestError::SameVm { name: name.clone(), host: self.source.to_string() });
            }
        }
        if self.keep_replaced && self.occupied == Occupied::Refuse {
            return Err(RequestError::NothingReplaced);
        }
        if self.key_file.as_ref().is_some_and(|path| !path.is_absolute()) {
            return Err(RequestError::KeyFileNotAbsolute);
        }
        Ok(())
    }

    /// The clone's name for a source VM of this name.
    pub fn clone_name(&self, vm_name: &str) -> Result<DomainName, NameError> {
        self.new_name.clone().map_or_else(|| DomainName::clone_of(vm_name), Ok)
    }

    /// What a network or bridge of the source is called on the destination.
    pub fn mapped_network<'a>(&'a self, name: &'a str) -> &'a str {
        self.network_map.iter().find(|mapping| mapping.from == name).map_or(name, |mapping| &mapping.to)
    }
}

/// Which VM of the source host is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmSelector {
    /// The VM of this name.
    Name(String),
    /// The VM of this UUID.
    Uuid(DomainUuid),
}

impl fmt::Display for VmSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Uuid(uuid) => uuid.fmt(f),
        }
    }
}

impl FromStr for VmSelector {
    type Err = RequestError;

    /// A text in the form of a UUID (36 characters) means the UUID, everything else is a name.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() == 36
            && let Ok(uuid) = text.parse()
        {
            return Ok(Self::Uuid(uuid));
        }
        if text.is_empty() || text == "." || text == ".." || text.contains(|c: char| c == '/' || c.is_control()) {
            return Err(RequestError::VmName { name: text.to_owned() });
        }
        Ok(Self::Name(text.to_owned()))
    }
}

/// What becomes of a VM that has the clone's name already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occupied {
    /// Nothing: the clone is refused.
    Refuse,
    /// It is replaced.
    Replace,
    /// It is replaced, unless it is a clone of the same VM and neither was changed since.
    ReplaceIfChanged,
}

/// How a VM that is replaced may be stopped, as it is written on the command line.
pub fn stop_mode(text: &str) -> Result<StopModeV1, RequestError> {
    match text {
        "shutdown" => Ok(StopModeV1::Shutdown),
        "save" => Ok(StopModeV1::Save),
        "destroy" => Ok(StopModeV1::Destroy),
        "never" => Ok(StopModeV1::Never),
        other => Err(RequestError::StopMode { text: other.to_owned() }),
    }
}

/// What becomes of the state of an emulated TPM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TpmState {
    /// The clone gets a copy: keys that its guest sealed stay readable.
    Copy,
    /// The clone begins with a new TPM.
    Fresh,
}

impl FromStr for TpmState {
    type Err = RequestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "copy" => Ok(Self::Copy),
            "fresh" => Ok(Self::Fresh),
            _ => Err(RequestError::TpmState { text: text.to_owned() }),
        }
    }
}

/// Where the clone's disks go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Into the directory of the same path as on the source, else into the pool `default`.
    LikeSource,
    /// Into the directory of this pool.
    Pool(String),
    /// Into this directory: absolute, in its shortest form.
    Directory(String),
}

impl Target {
    /// A pool by name.
    pub fn pool(name: &str) -> Result<Self, RequestError> {
        if name.is_empty() || name.contains(char::is_control) {
            return Err(RequestError::PoolName { name: name.to_owned() });
        }
        Ok(Self::Pool(name.to_owned()))
    }

    /// A directory by absolute path; slashes at the end are taken off.
    pub fn directory(path: &str) -> Result<Self, RequestError> {
        let bad = |why| RequestError::Directory { path: path.to_owned(), why };
        let trimmed = path.trim_end_matches('/');
        if !path.starts_with('/') {
            return Err(bad("it is not absolute"));
        }
        if trimmed.is_empty() {
            return Err(bad("it is the root directory"));
        }
        if trimmed == "/dev" || trimmed.starts_with("/dev/") {
            return Err(bad("it holds devices, and no files"));
        }
        if trimmed.contains(char::is_control) {
            return Err(bad("it holds a control character"));
        }
        if trimmed[1..].split('/').any(|part| part.is_empty() || part == "." || part == "..") {
            return Err(bad("it holds an empty part, `.` or `..`"));
        }
        Ok(Self::Directory(trimmed.to_owned()))
    }
}

/// A network or bridge of the source VM and the one that takes its place on the destination, given as `A=B`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkMapping {
    /// Its name in the source's definition.
    pub from: String,
    /// The name on the destination.
    pub to: String,
}

impl FromStr for NetworkMapping {
    type Err = RequestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let usable = |name: &str| !name.is_empty() && !name.contains(|c: char| c == '/' || c.is_control());
        match text.split_once('=') {
            Some((from, to)) if usable(from) && usable(to) => Ok(Self { from: from.to_owned(), to: to.to_owned() }),
            _ => Err(RequestError::NetworkMapping { text: text.to_owned() }),
        }
    }
}

/// What is wrong with a request in itself. Exit status 2; no host was contacted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The VM's name cannot be one.
    #[error(
        "VM {name:?}: not a VM's name: it is empty, `.`, `..`, or holds `/` or a control character; `kvm-clone vms HOST` lists the VMs of a host"
    )]
    VmName {
        /// As given.
        name: String,
    },
    /// The clone's name, given or made from the VM's, cannot be used.
    #[error(transparent)]
    NewName(#[from] NameError),
    /// Source and clone would be the same VM.
    #[error("VM {name} on {host}: the clone would be the source itself; choose another name with --new-name")]
    SameVm {
        /// The VM's name.
        name: String,
        /// The host's address.
        host: String,
    },
    /// Not a pool's name.
    #[error("pool {name:?}: not a pool's name; `virsh pool-list --all` lists the pools of a host")]
    PoolName {
        /// As given.
        name: String,
    },
    /// Not a usable directory.
    #[error("directory {path:?}: {why}; give the absolute path of a directory on the destination")]
    Directory {
        /// As given.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Nothing is replaced, and so nothing can be kept.
    #[error("--keep-replaced: nothing is replaced without --force or --idempotent")]
    NothingReplaced,
    /// Not a way to stop a VM.
    #[error("--stop {text:?}: expected shutdown, save, destroy or never")]
    StopMode {
        /// As given.
        text: String,
    },
    /// Not `A=B`.
    #[error(
        "network mapping {text:?}: expected A=B, the network or bridge on the source and the one on the destination"
    )]
    NetworkMapping {
        /// As given.
        text: String,
    },
    /// One network is mapped twice.
    #[error("network mapping: {name} is mapped twice; give --network-map {name}=… once")]
    NetworkMappedTwice {
        /// The network's name on the source.
        name: String,
    },
    /// Not a way to deal with a chain.
    #[error("--chain {text:?}: expected keep, share or flatten")]
    Chain {
        /// As given.
        text: String,
    },
    /// Neither `copy` nor `fresh`.
    #[error("TPM state {text:?}: expected copy or fresh")]
    TpmState {
        /// As given.
        text: String,
    },
    /// Not a rate.
    #[error("rate {text:?}: {why}; write 100M or 1.5G (bytes per second) or 800Mbit")]
    Rate {
        /// As given.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Not a chunk size.
    #[error("chunk size {text:?}: expected a power of two from 64K to 16M, such as 1M (1,048,576 bytes)")]
    ChunkSize {
        /// As given.
        text: String,
    },
    /// A relative key file would mean something else at a resume.
    #[error("key file: expected an absolute path")]
    KeyFileNotAbsolute,
    /// A device would be written over, and nobody said that it may.
    #[error(
        "disk mapping {target}={path}: that is a block device, and what it holds would be lost for good; if that is meant, add --overwrite-device {path}"
    )]
    DeviceNotNamed {
        /// The disk's target name.
        target: String,
        /// The device.
        path: String,
    },
    /// A device may be written over that takes no disk, or was named before.
    #[error("--overwrite-device {path}: no disk goes there, or it is named twice; --disk-map TARGET={path} says which")]
    NothingOverwritten {
        /// As given.
        path: String,
    },
    /// Neither `TARGET=POOL/NAME` nor `TARGET=/ABS/PATH`.
    #[error("disk mapping {text:?}: {why}; write TARGET=POOL/NAME, or TARGET=/PATH in a directory that exists")]
    DiskMapping {
        /// As given.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// One disk is mapped twice.
    #[error("disk mapping: disk {target} is mapped twice; give --disk-map {target}=… once")]
    DiskMappedTwice {
        /// Its target name.
        target: String,
    },
    /// Two disks would be one file.
    #[error("disk mapping: disks {} and {} would both be {place}; give each a place of its own", targets[0], targets[1])]
    DisksMappedTogether {
        /// Their target names.
        targets: [String; 2],
        /// Where.
        place: String,
    },
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn request(source: &str, destination: &str, vm: VmSelector) -> Request {
        Request::new(source.parse().unwrap(), destination.parse().unwrap(), vm)
    }

    #[test]
    fn a_vm_is_named_or_numbered() {
        let uuid = "6a1f3f0e-0d5d-4b55-9c1d-0123456789ab";
        assert_eq!(uuid.parse(), Ok(VmSelector::Uuid(uuid.parse().unwrap())));
        assert_eq!("web01".parse(), Ok(VmSelector::Name("web01".into())));
        // Without hyphens it may well be somebody's name.
        assert!(matches!("6a1f3f0e0d5d4b559c1d0123456789ab".parse(), Ok(VmSelector::Name(_))));
        for text in ["", ".", "..", "a/b", "a\nb"] {
            assert!(text.parse::<VmSelector>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn directories_are_absolute_and_plain() {
        assert_eq!(Target::directory("/srv/vm//"), Ok(Target::Directory("/srv/vm".into())));
        for path in ["", "srv", "/", "//", "/dev", "/dev/", "/dev/shm", "/a//b", "/a/../b", "/a/./b", "/a\nb"] {
            assert!(Target::directory(path).is_err(), "{path:?}");
        }
        assert!(Target::pool("").is_err());
    }

    #[test]
    fn network_mappings() {
        assert_eq!("default=lab".parse(), Ok(NetworkMapping { from: "default".into(), to: "lab".into() }));
        for text in ["", "a", "=b", "a=", "a/b=c", "a=../c"] {
            assert!(text.parse::<NetworkMapping>().is_err(), "{text:?}");
        }
        let mut request = request("a", "b", VmSelector::Name("web".into()));
        request.network_map = vec!["x=y".parse().unwrap(), "x=z".parse().unwrap()];
        assert_eq!(request.check(), Err(RequestError::NetworkMappedTwice { name: "x".into() }));
    }

    #[test]
    fn the_source_cannot_be_its_own_clone() {
        let mut request = request("kvm1", "kvm1", VmSelector::Name("web".into()));
        assert_eq!(request.check(), Ok(()), "the default name differs");
        request.new_name = Some(DomainName::new("web").unwrap());
        assert!(matches!(request.check(), Err(RequestError::SameVm { .. })));
        request.destination = "kvm2".parse().unwrap();
        assert_eq!(request.check(), Ok(()));
    }

    #[test]
    fn a_name_that_grows_too_long_is_said_before_any_host_is_asked() {
        let request = request("a", "b", VmSelector::Name("x".repeat(244)));
        assert!(matches!(request.check(), Err(RequestError::NewName(_))));
    }
}
