//! A domain's definition, read: what plan and preflight need to know of it. The text is kept as libvirt gave it.
//!
//! Nothing is guessed: what is not written in the text is `None`, and a disk's format is never probed.

use journal_format::{DomainUuid, ImageFormat};
use roxmltree::Node;

use super::DomainError;
use super::xml::{child, content, elements, is_plain, named, parse};

/// A definition that was read whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    text: String,
    /// The domain's name, exactly as written.
    pub name: String,
    /// Its UUID.
    pub uuid: DomainUuid,
    /// Its title.
    pub title: Option<String>,
    /// Its description.
    pub description: Option<String>,
    /// `kvm`, `qemu`, …
    pub virt_type: String,
    /// Bytes of memory at most.
    pub memory_bytes: u64,
    /// CPUs at most.
    pub vcpus: u32,
    /// Machine and firmware.
    pub os: Os,
    /// Path of the emulator.
    pub emulator: Option<String>,
    /// `mode` of `<cpu>`, such as `host-passthrough`.
    pub cpu_mode: Option<String>,
    /// The whole `<cpu>`, as written.
    pub cpu: Option<String>,
    /// `check` of `<cpu>`: `none` starts with what the host has, whatever is missing.
    pub cpu_check: Option<String>,
    /// The UUID that the guest sees in its SMBIOS tables, where the definition names one.
    pub sysinfo_uuid: Option<String>,
    /// The VM generation id, where the definition has one with a value.
    pub genid: Option<String>,
    /// All disks, drives included, in the order of the text.
    pub disks: Vec<Disk>,
    /// All network interfaces, in the order of the text.
    pub interfaces: Vec<Interface>,
    /// All graphical consoles, in the order of the text.
    pub graphics: Vec<Graphics>,
    /// The emulated TPM.
    pub tpm: Option<Tpm>,
}

/// Machine and firmware.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Os {
    /// `hvm` for a full virtual machine.
    pub kind: String,
    /// Such as `x86_64`.
    pub arch: Option<String>,
    /// Such as `pc-q35-7.2`.
    pub machine: Option<String>,
    /// `efi` or `bios` where libvirt chooses the image itself.
    pub firmware: Option<String>,
    /// Path of the firmware's code.
    pub loader: Option<String>,
    /// `rom` or `pflash`.
    pub loader_type: Option<String>,
    /// Where the UEFI variables are, if the firmware keeps any.
    pub variables: Option<Variables>,
}

/// The variables of UEFI firmware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variables {
    /// Their file, where the definition names it; otherwise libvirt makes its name of the domain's.
    pub path: Option<String>,
    /// Format of that file.
    pub format: ImageFormat,
}

/// An emulated TPM, which keeps its state on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tpm {
    /// Version 1.2.
    V1,
    /// Version 2.0.
    V2,
}

/// What kind of device a disk looks like to its guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskDevice {
    /// A hard disk.
    Disk,
    /// A CD-ROM drive.
    Cdrom,
    /// A floppy drive.
    Floppy,
    /// A SCSI device passed through.
    Lun,
    /// Not known to this program.
    Other(String),
}

/// Where a disk's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskSource {
    /// Nowhere: an empty drive.
    Empty,
    /// An image file.
    File(String),
    /// A block device of the host.
    Device(String),
    /// Anything else, such as an image on a server.
    Elsewhere {
        /// The `type` attribute: `volume`, `network`, …
        kind: String,
        /// What it names, for people.
        what: String,
    },
    /// A volume of a pool: where that is, only the host's libvirt can say.
    Volume {
        /// The pool's name.
        pool: String,
        /// The volume's name.
        volume: String,
    },
}

/// A disk or a drive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its place among all `<disk>` elements, from 0: what a rewrite names it by.
    pub index: usize,
    /// What it looks like to the guest.
    pub device: DiskDevice,
    /// Where its bytes are.
    pub source: DiskSource,
    /// `type` of `<driver>`, as written.
    pub format: Option<String>,
    /// Such as `vda`.
    pub target: String,
    /// Such as `virtio`.
    pub bus: Option<String>,
    /// Has `<readonly/>`.
    pub readonly: bool,
    /// Has `<shareable/>`.
    pub shareable: bool,
    /// Has `<transient/>`.
    pub transient: bool,
    /// What the definition says lies below its image, from the top down; `None`: it leaves that to the images.
    pub chain: Option<Vec<ChainLayer>>,
    /// Whether the domain may start without it: `mandatory`, `requisite`, `optional`.
    pub startup_policy: Option<String>,
}

/// An image below a disk's own, as a definition names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainLayer {
    /// Its file.
    pub path: String,
    /// Its format, as written.
    pub format: Option<String>,
}

impl Disk {
    /// The image file of a hard disk that is the VM's own: what is copied.
    pub fn image(&self) -> Option<&str> {
        match (&self.device, &self.source) {
            (DiskDevice::Disk, DiskSource::File(path)) if !self.is_common() => Some(path),
            _ => None,
        }
    }

    /// What lies in a drive, and what the VM only reads or shares with others: not its own, and copied only where that
    /// is asked for.
    pub fn medium(&self) -> Option<&str> {
        let is_drive = matches!(self.device, DiskDevice::Cdrom | DiskDevice::Floppy);
        match &self.source {
            DiskSource::File(path) | DiskSource::Device(path)
                if is_drive || (self.device == DiskDevice::Disk && self.is_common()) =>
            {
                Some(path)
            }
            _ => None,
        }
    }

    /// A hard disk that is the VM's own, in a file, on a device or in a volume: what is copied.
    pub fn is_own(&self) -> bool {
        let is_image = matches!(self.source, DiskSource::File(_) | DiskSource::Device(_) | DiskSource::Volume { .. });
        self.device == DiskDevice::Disk && is_image && !self.is_common()
    }

    /// Does the VM only read it, or share it with others?
    pub fn is_common(&self) -> bool {
        self.readonly || self.shareable
    }

    /// The image's format, when it is one that is carried.
    pub fn image_format(&self) -> Option<ImageFormat> {
        match self.format.as_deref() {
            Some("raw") => Some(ImageFormat::Raw),
            Some("qcow2") => Some(ImageFormat::Qcow2),
            _ => None,
        }
    }
}

/// What a network interface is plugged into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InterfaceSource {
    /// A virtual network of libvirt's.
    Network(String),
    /// A bridge of the host.
    Bridge(String),
    /// QEMU's own user-mode network.
    User,
    /// Anything else.
    Other {
        /// The `type` attribute.
        kind: String,
        /// What it names, for people.
        what: String,
    },
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its place among all `<interface>` elements, from 0: what a rewrite names it by.
    pub index: usize,
    /// What it is plugged into.
    pub source: InterfaceSource,
    /// Its MAC address, as written.
    pub mac: Option<String>,
    /// Name of its tap device on the host, where one is written.
    pub target: Option<String>,
    /// Port group within the network.
    pub portgroup: Option<String>,
    /// Such as `virtio`.
    pub model: Option<String>,
}

/// A graphical console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Graphics {
    /// `vnc`, `spice`, …
    pub kind: String,
    /// TCP ports that it is fixed to; none when libvirt chooses them.
    pub fixed_ports: Vec<u16>,
    /// Addresses that it listens on, where any are written.
    pub listens: Vec<String>,
}

impl Definition {
    /// Reads a definition.
    pub fn parse(text: &str) -> Result<Self, DomainError> {
        let document = parse(text)?;
        let domain = document.root_element();
        if !is_plain(domain, "domain") {
            return Err(DomainError::NotADomain { found: domain.tag_name().name().to_owned() });
        }
        for what in ["name", "uuid", "title", "metadata", "memory", "os", "genid", "devices"] {
            if named(domain, what).count() > 1 {
                return Err(DomainError::Repeated { what });
            }
        }
        let name = child(domain, "name").map(content).filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| DomainError::Missing { what: "name".into() })?;
        let written = text_of(domain, "uuid").ok_or_else(|| DomainError::Missing { what: "UUID".into() })?;
        let uuid = written.parse().map_err(|_| bad("UUID", &written, "a UUID"))?;
        let devices = child(domain, "devices");
        let all = |kind: &'static str| devices.into_iter().flat_map(move |devices| named(devices, kind));
        let mut disks = Vec::new();
        for (index, node) in all("disk").enumerate() {
            disks.push(read_disk(index, node)?);
        }
        let interfaces = all("interface").enumerate().map(|(index, node)| read_interface(index, node)).collect();
        Ok(Self {
            name,
            uuid,
            title: text_of(domain, "title"),
            description: text_of(domain, "description"),
            virt_type: attribute(domain, "type").unwrap_or_default(),
            memory_bytes: read_memory(domain)?,
            vcpus: read_vcpus(domain)?,
            os: child(domain, "os").map(read_os).unwrap_or_default(),
            emulator: devices.and_then(|devices| text_of(devices, "emulator")),
            cpu_mode: child(domain, "cpu").and_then(|cpu| attribute(cpu, "mode")),
            cpu: child(domain, "cpu").map(|cpu| text[cpu.range()].to_owned()),
            cpu_check: child(domain, "cpu").and_then(|cpu| attribute(cpu, "check")),
            sysinfo_uuid: sysinfo_uuid(domain).map(|entry| content(entry).trim().to_owned()),
            genid: text_of(domain, "genid"),
            disks,
            interfaces,
            graphics: all("graphics").map(read_graphics).collect(),
            tpm: all("tpm").find_map(read_tpm),
            text: text.to_owned(),
        })
    }

    /// The text that was read.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The disks and drives with something in them that is not the VM's own, in the order of the text.
    pub fn media(&self) -> impl Iterator<Item = &Disk> {
        self.disks.iter().filter(|disk| disk.medium().is_some())
    }

    /// The disks whose images are copied, in the order of the text.
    pub fn images(&self) -> impl Iterator<Item = &Disk> {
        self.disks.iter().filter(|disk| disk.is_own())
    }

    /// Names of the virtual networks that must exist, each once.
    pub fn networks(&self) -> Vec<&str> {
        once_each(self.interfaces.iter().filter_map(|interface| match &interface.source {
            InterfaceSource::Network(name) => Some(name.as_str()),
            _ => None,
        }))
    }

    /// Names of the host's bridges that must exist, each once.
    pub fn bridges(&self) -> Vec<&str> {
        once_each(self.interfaces.iter().filter_map(|interface| match &interface.source {
            InterfaceSource::Bridge(name) => Some(name.as_str()),
            _ => None,
        }))
    }

    /// MAC addresses, in small letters.
    pub fn macs(&self) -> impl Iterator<Item = String> {
        self.interfaces.iter().filter_map(|interface| Some(interface.mac.as_ref()?.to_ascii_lowercase()))
    }
}

fn once_each<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    names.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
}

fn bad(what: &str, value: &str, expected: &'static str) -> DomainError {
    DomainError::BadValue { what: what.to_owned(), value: value.to_owned(), expected }
}

/// An attribute of no namespace.
pub(super) fn attribute(node: Node<'_, '_>, name: &str) -> Option<String> {
    node.attribute(name).map(str::to_owned)
}

/// The trimmed text of the first child element of that name; `None` when it is empty.
pub(super) fn text_of(node: Node<'_, '_>, name: &str) -> Option<String> {
    let text = content(child(node, name)?).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// The SMBIOS system UUID: libvirt refuses a definition in which it differs from the domain's.
pub(super) fn sysinfo_uuid<'a, 'i>(domain: Node<'a, 'i>) -> Option<Node<'a, 'i>> {
    named(domain, "sysinfo")
        .flat_map(|sysinfo| named(sysinfo, "system"))
        .flat_map(|system| named(system, "entry"))
        .find(|entry| entry.attribute("name") == Some("uuid"))
}

fn read_memory(domain: Node<'_, '_>) -> Result<u64, DomainError> {
    // `maxMemory` is only what could be plugged in later; `memory` is what the guest has at its start.
    let node = child(domain, "memory").ok_or_else(|| DomainError::Missing { what: "memory size".into() })?;
    let text = content(node);
    scaled_bytes(&text, node.attribute("unit"))
        .ok_or_else(|| bad("memory size", text.trim(), "a number of a known unit"))
}

/// A size as libvirt writes it: `KiB` where no unit is given. `None` for anything that is no size, or beyond 64 bits.
pub(super) fn scaled_bytes(text: &str, unit: Option<&str>) -> Option<u64> {
    let number: u64 = text.trim().parse().ok()?;
    let scale: u64 = match unit.unwrap_or("KiB").to_ascii_lowercase().as_str() {
        "b" | "byte" | "bytes" => 1,
        "kb" => 1_000,
        "k" | "kib" => 1 << 10,
        "mb" => 1_000_000,
        "m" | "mib" => 1 << 20,
        "gb" => 1_000_000_000,
        "g" | "gib" => 1 << 30,
        "tb" => 1_000_000_000_000,
        "t" | "tib" => 1 << 40,
        "pb" => 1_000_000_000_000_000,
        "p" | "pib" => 1 << 50,
        "eb" => 1_000_000_000_000_000_000,
        "e" | "eib" => 1 << 60,
        _ => return None,
    };
    number.checked_mul(scale)
}

fn read_vcpus(domain: Node<'_, '_>) -> Result<u32, DomainError> {
    // libvirt's own default.
    text_of(domain, "vcpu").map_or(Ok(1), |text| text.parse().map_err(|_| bad("number of CPUs", &text, "a number")))
}

fn read_os(os: Node<'_, '_>) -> Os {
    let kind = child(os, "type");
    let loader = child(os, "loader");
    Os {
        kind: text_of(os, "type").unwrap_or_default(),
        arch: kind.and_then(|kind| attribute(kind, "arch")),
        machine: kind.and_then(|kind| attribute(kind, "machine")),
        firmware: attribute(os, "firmware"),
        loader: text_of(os, "loader"),
        loader_type: loader.and_then(|loader| attribute(loader, "type")),
        variables: read_variables(os),
    }
}

/// libvirt keeps variables for UEFI that it chooses itself and for firmware in flash memory, unless it is told not to.
fn read_variables(os: Node<'_, '_>) -> Option<Variables> {
    let (loader, nvram) = (child(os, "loader"), child(os, "nvram"));
    let of_loader = |name: &str| loader.and_then(|loader| loader.attribute(name));
    let is_uefi = os.attribute("firmware") == Some("efi") || of_loader("type") == Some("pflash");
    if of_loader("stateless") == Some("yes") || !(is_uefi || nvram.is_some()) {
        return None;
    }
    let text = nvram.map(content).map(|path| path.trim().to_owned()).filter(|path| !path.is_empty());
    let path = text.or_else(|| attribute(child(nvram?, "source")?, "file"));
    let format = nvram.and_then(|nvram| nvram.attribute("format")).or_else(|| of_loader("format"));
    let format = if format == Some("qcow2") { ImageFormat::Qcow2 } else { ImageFormat::Raw };
    Some(Variables { path, format })
}

fn read_tpm(node: Node<'_, '_>) -> Option<Tpm> {
    let backend = child(node, "backend").filter(|backend| backend.attribute("type") == Some("emulator"))?;
    // libvirt writes the version down when a domain is defined.
    Some(if backend.attribute("version") == Some("1.2") { Tpm::V1 } else { Tpm::V2 })
}

fn read_disk(index: usize, node: Node<'_, '_>) -> Result<Disk, DomainError> {
    let target = child(node, "target");
    let name = target.and_then(|target| attribute(target, "dev"));
    let name = name.ok_or_else(|| DomainError::Missing { what: format!("target name of disk {}", index + 1) })?;
    let device = match node.attribute("device").unwrap_or("disk") {
        "disk" => DiskDevice::Disk,
        "cdrom" => DiskDevice::Cdrom,
        "floppy" => DiskDevice::Floppy,
        "lun" => DiskDevice::Lun,
        other => DiskDevice::Other(other.to_owned()),
    };
    let source = child(node, "source");
    Ok(Disk {
        index,
        device,
        source: read_disk_source(node.attribute("type").unwrap_or("file"), source),
        format: child(node, "driver").and_then(|driver| attribute(driver, "type")),
        target: name,
        bus: target.and_then(|target| attribute(target, "bus")),
        readonly: child(node, "readonly").is_some(),
        shareable: child(node, "shareable").is_some(),
        transient: child(node, "transient").is_some(),
        chain: child(node, "backingStore").map(read_chain),
        startup_policy: source.and_then(|source| attribute(source, "startupPolicy")),
    })
}

/// Layers in files, from the top down; what is no file ends the list, and `carry` names it.
fn read_chain(store: Node<'_, '_>) -> Vec<ChainLayer> {
    let mut layers = Vec::new();
    let mut next = Some(store);
    while let Some(store) = next {
        let Some(path) = child(store, "source").and_then(|source| attribute(source, "file")) else { break };
        let format = child(store, "format").and_then(|format| attribute(format, "type"));
        layers.push(ChainLayer { path, format });
        next = child(store, "backingStore");
    }
    layers
}

fn read_disk_source(kind: &str, source: Option<Node<'_, '_>>) -> DiskSource {
    // A drive without a medium may still have `<source startupPolicy='optional'/>`.
    let Some(source) = source.filter(|source| {
        source.attributes().any(|attribute| !matches!(attribute.name(), "startupPolicy" | "index"))
            || elements(*source).next().is_some()
    }) else {
        return DiskSource::Empty;
    };
    match (kind, source.attribute("file")) {
        ("file", Some("")) => DiskSource::Empty,
        ("file", Some(file)) => DiskSource::File(file.to_owned()),
        _ if kind == "block" && source.has_attribute("dev") => {
            DiskSource::Device(source.attribute("dev").unwrap_or_default().to_owned())
        }
        // In `direct` mode the guest's QEMU speaks to the pool's server itself.
        _ if kind == "volume" && source.attribute("mode") != Some("direct") => {
            match (attribute(source, "pool"), attribute(source, "volume")) {
                (Some(pool), Some(volume)) => DiskSource::Volume { pool, volume },
                _ => DiskSource::Elsewhere { kind: kind.to_owned(), what: describe(source) },
            }
        }
        _ => DiskSource::Elsewhere { kind: kind.to_owned(), what: describe(source) },
    }
}

/// The attributes of an element in one line, for people.
pub(super) fn describe(node: Node<'_, '_>) -> String {
    let all: Vec<_> =
        node.attributes().map(|attribute| format!("{}={}", attribute.name(), attribute.value())).collect();
    all.join(" ")
}

fn read_interface(index: usize, node: Node<'_, '_>) -> Interface {
    let source = child(node, "source");
    let from = |name: &str| source.and_then(|source| attribute(source, name));
    let kind = node.attribute("type").unwrap_or_default();
    let source = match (kind, from("network"), from("bridge")) {
        ("network", Some(network), _) => InterfaceSource::Network(network),
        ("bridge", _, Some(bridge)) => InterfaceSource::Bridge(bridge),
        ("user", ..) => InterfaceSource::User,
        _ => InterfaceSource::Other { kind: kind.to_owned(), what: source.map(describe).unwrap_or_default() },
    };
    Interface {
        index,
        source,
        mac: child(node, "mac").and_then(|mac| attribute(mac, "address")),
        target: child(node, "target").and_then(|target| attribute(target, "dev")),
        portgroup: from("portgroup"),
        model: child(node, "model").and_then(|model| attribute(model, "type")),
    }
}

fn read_graphics(node: Node<'_, '_>) -> Graphics {
    let automatic = node.attribute("autoport") == Some("yes");
    // -1 and 0 mean that libvirt chooses; so does `autoport`, whatever number stands beside it. It does not cover `websocket`.
    let ports = [("port", automatic), ("tlsPort", automatic), ("websocket", false)];
    let fixed = ports.into_iter().filter(|(_, automatic)| !automatic);
    let fixed_ports =
        fixed.filter_map(|(name, _)| node.attribute(name)?.parse().ok()).filter(|port| *port != 0).collect();
    let children = named(node, "listen").filter_map(|listen| attribute(listen, "address"));
    let mut listens: Vec<_> = attribute(node, "listen").into_iter().chain(children).collect();
    listens.dedup();
    Graphics { kind: attribute(node, "type").unwrap_or_default(), fixed_ports, listens }
}

/// A tap device's name that libvirt makes anew at each start, and does not keep in a definition.
pub(super) fn is_automatic_tap(target: &str) -> bool {
    ["vnet", "vif", "macvtap", "macvlan"].into_iter().any(|prefix| {
        target
            .strip_prefix(prefix)
            .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
    })
}
