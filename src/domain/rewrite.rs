//! From the source's definition to the clone's: edits of the text by spans. What is not named here stays byte for byte.

use std::collections::{BTreeMap, BTreeSet};

use journal_format::DomainUuid;
use roxmltree::Node;

use super::definition::{Definition, sysinfo_uuid};
use super::metadata::{CloneMark, NAMESPACE};
use super::name::DomainName;
use super::xml::{Edits, child, elements, escape_attribute, escape_text, is_plain, named, parse};
use super::{DiskSource, DomainError, InterfaceSource};

/// What is to become of an optional part.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Change<T> {
    /// Stays as it is.
    #[default]
    Keep,
    /// Becomes this, and is made where it is missing.
    Set(T),
    /// Goes.
    Remove,
}

/// Who the clone is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The domain's UUID; an SMBIOS UUID follows it, as libvirt demands.
    pub uuid: DomainUuid,
    /// The generation id: used only where the definition has one with a value. A clone must have its own: the guest's
    /// random numbers and its Active Directory hang on it.
    pub genid: DomainUuid,
}

/// The edits. The default changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rewrite {
    /// The new name, exactly as it is sent: a `DomainName`, or one derived from it.
    pub name: Option<String>,
    /// The new identity; `None` keeps the source's.
    pub identity: Option<Identity>,
    /// The title.
    pub title: Change<String>,
    /// Path of the emulator.
    pub emulator: Option<String>,
    /// Image files, by the index of the disk. A device or a volume becomes a file.
    pub disk_files: BTreeMap<usize, String>,
    /// Block devices, likewise. A file or a volume becomes a device.
    pub disk_devices: BTreeMap<usize, String>,
    /// Files below a disk's own image, from the top down, by the index of the disk; as many as the definition names.
    pub chain_files: BTreeMap<usize, Vec<String>>,
    /// Disks that become raw images which stand on nothing, by the index of the disk.
    pub flattened: BTreeSet<usize>,
    /// Drives that are emptied, by the index of the disk.
    pub emptied: BTreeSet<usize>,
    /// The file of the UEFI variables; made explicit where the definition names none.
    pub variables: Option<String>,
    /// MAC addresses, by the index of the interface.
    pub macs: BTreeMap<usize, String>,
    /// The network or bridge that takes the place of the one named, by the index of the interface.
    pub networks: BTreeMap<usize, String>,
    /// Our metadata element. A source's own is replaced or removed, never copied: a finished plan has no `Keep` here.
    pub mark: Change<CloneMark>,
}

impl Rewrite {
    /// Sets the name.
    #[must_use]
    pub fn named(mut self, name: &DomainName) -> Self {
        self.name = Some(name.as_str().to_owned());
        self
    }
}

/// Rewrites a definition. The result is a definition again, or this is an error.
pub fn rewrite(definition: &Definition, rewrite: &Rewrite) -> Result<String, DomainError> {
    let document = parse(definition.text())?;
    let domain = document.root_element();
    let mut edits = Edits::new(definition.text());
    if let Some(name) = &rewrite.name {
        edits.set_content(required(domain, "name")?, name)?;
    }
    if let Some(identity) = rewrite.identity {
        edits.set_content(required(domain, "uuid")?, &identity.uuid.to_string())?;
        if let Some(entry) = sysinfo_uuid(domain) {
            edits.set_content(entry, &identity.uuid.to_string())?;
        }
        // An empty one is filled by libvirt when the domain is defined.
        if let (Some(genid), Some(_)) = (child(domain, "genid"), &definition.genid) {
            edits.set_content(genid, &identity.genid.to_string())?;
        }
    }
    rewrite_title(&mut edits, domain, &rewrite.title)?;
    rewrite_mark(&mut edits, domain, &rewrite.mark)?;
    rewrite_variables(&mut edits, domain, rewrite.variables.as_deref())?;
    rewrite_devices(&mut edits, definition, domain, rewrite)?;
    let text = edits.apply()?;
    // Every span was right if what was written is read again.
    Definition::parse(&text)?;
    Ok(text)
}

fn rewrite_title(edits: &mut Edits<'_>, domain: Node<'_, '_>, change: &Change<String>) -> Result<(), DomainError> {
    match (change, child(domain, "title")) {
        (Change::Keep, _) | (Change::Remove, None) => {}
        (Change::Remove, Some(title)) => edits.remove(title),
        (Change::Set(text), title) => {
            if text.chars().any(char::is_control) {
                // libvirt refuses a line break in a title.
                return Err(DomainError::Inexpressible { what: "title".into(), value: text.clone() });
            }
            match title {
                Some(title) => edits.set_content(title, text)?,
                None => edits.insert_after(head(domain, None)?, &element("title", text)?),
            }
        }
    }
    Ok(())
}

/// The element of `<domain>`'s beginning that a new one is put after. The schema takes any order; people read this one.
fn head<'a, 'i>(domain: Node<'a, 'i>, last: Option<&str>) -> Result<Node<'a, 'i>, DomainError> {
    let preferred = [last, Some("uuid"), Some("name")];
    let found = preferred.into_iter().flatten().find_map(|name| child(domain, name));
    found.ok_or_else(|| DomainError::Missing { what: "name".into() })
}

fn rewrite_mark(edits: &mut Edits<'_>, domain: Node<'_, '_>, change: &Change<CloneMark>) -> Result<(), DomainError> {
    let markup = match change {
        Change::Keep => return Ok(()),
        Change::Set(mark) => Some(mark.to_qualified_element()?),
        Change::Remove => None,
    };
    let Some(metadata) = child(domain, "metadata") else {
        if let Some(markup) = markup {
            let after = ["description", "title"].into_iter().find(|name| child(domain, name).is_some());
            let after = head(domain, after)?;
            edits.insert_after(after, &format!("<metadata>{markup}</metadata>"));
        }
        return Ok(());
    };
    let mut ours = elements(metadata).filter(|element| element.tag_name().namespace() == Some(NAMESPACE));
    match (markup, ours.next()) {
        (Some(markup), Some(element)) => edits.replace(element.range(), markup),
        (Some(markup), None) => edits.append_inside(metadata, &markup),
        (None, Some(element)) => edits.remove(element),
        (None, None) => {}
    }
    ours.for_each(|element| edits.remove(element));
    Ok(())
}

fn rewrite_variables(edits: &mut Edits<'_>, domain: Node<'_, '_>, path: Option<&str>) -> Result<(), DomainError> {
    let Some(path) = path else { return Ok(()) };
    let os = required(domain, "os")?;
    let Some(nvram) = child(os, "nvram") else {
        let after = child(os, "loader").map_or_else(|| required(os, "type"), Ok)?;
        edits.insert_after(after, &element("nvram", path)?);
        return Ok(());
    };
    match child(nvram, "source") {
        Some(source) => edits.set_attribute(source, "file", path),
        None => edits.set_content(nvram, path),
    }
}

fn rewrite_devices(
    edits: &mut Edits<'_>,
    definition: &Definition,
    domain: Node<'_, '_>,
    rewrite: &Rewrite,
) -> Result<(), DomainError> {
    let plugs = !rewrite.macs.is_empty() || !rewrite.networks.is_empty();
    if rewrite.emulator.is_none()
        && rewrite.disk_files.is_empty()
        && rewrite.disk_devices.is_empty()
        && rewrite.chain_files.is_empty()
        && rewrite.flattened.is_empty()
        && rewrite.emptied.is_empty()
        && !plugs
    {
        return Ok(());
    }
    let devices = required(domain, "devices")?;
    if let Some(emulator) = &rewrite.emulator {
        match child(devices, "emulator") {
            Some(node) => edits.set_content(node, emulator)?,
            None => edits.prepend_inside(devices, &element("emulator", emulator)?),
        }
    }
    let files = rewrite.disk_files.iter().map(|place| (place, ("file", "file")));
    let devices_to = rewrite.disk_devices.iter().map(|place| (place, ("block", "dev")));
    for ((index, path), kind) in files.chain(devices_to) {
        let missing = || DomainError::NoSuchTarget { what: format!("disk {index} (counted from 0)") };
        let disk = named(devices, "disk").nth(*index).ok_or_else(missing)?;
        let was = definition.disks.get(*index).map(|disk| &disk.source);
        rewrite_disk(edits, disk, was.ok_or_else(missing)?, kind, path)?.ok_or_else(missing)?;
    }
    for (index, files) in &rewrite.chain_files {
        let missing = || DomainError::NoSuchTarget { what: format!("the chain of disk {index} (counted from 0)") };
        let mut above = named(devices, "disk").nth(*index).ok_or_else(missing)?;
        for file in files {
            above = child(above, "backingStore").ok_or_else(missing)?;
            edits.set_attribute(child(above, "source").ok_or_else(missing)?, "file", file)?;
        }
    }
    for index in &rewrite.flattened {
        let missing = || DomainError::NoSuchTarget { what: format!("the format of disk {index} (counted from 0)") };
        let disk = named(devices, "disk").nth(*index).ok_or_else(missing)?;
        flatten_disk(edits, disk)?.ok_or_else(missing)?;
    }
    for index in &rewrite.emptied {
        let missing = || DomainError::NoSuchTarget { what: format!("a medium in disk {index} (counted from 0)") };
        let drive = named(devices, "disk").nth(*index).ok_or_else(missing)?;
        edits.remove(child(drive, "source").ok_or_else(missing)?);
    }
    rewrite_interfaces(edits, definition, devices, rewrite)
}

/// A file, a device or a volume gives way to a file or a device, by the disk's type and its source's attribute; `None`: anything
/// else would need more than that.
fn rewrite_disk(
    edits: &mut Edits<'_>,
    disk: Node<'_, '_>,
    was: &DiskSource,
    (kind, attribute): (&str, &str),
    path: &str,
) -> Result<Option<()>, DomainError> {
    let Some(source) = child(disk, "source") else { return Ok(None) };
    let before = match was {
        DiskSource::File(_) => "file",
        DiskSource::Device(_) => "dev",
        DiskSource::Volume { .. } => {
            edits.remove_attribute(source, "volume");
            edits.remove_attribute(source, "mode");
            "pool"
        }
        DiskSource::Empty | DiskSource::Elsewhere { .. } => return Ok(None),
    };
    if before == attribute {
        return edits.set_attribute(source, attribute, path).map(Some);
    }
    edits.rename_attribute(source, (before, attribute), path)?;
    edits.set_attribute(disk, "type", kind).map(Some)
}

/// A raw image on nothing: what libvirt knows of chains and of qcow2 alone goes. `None`: its format is not written.
fn flatten_disk(edits: &mut Edits<'_>, disk: Node<'_, '_>) -> Result<Option<()>, DomainError> {
    let Some(driver) = child(disk, "driver").filter(|driver| driver.has_attribute("type")) else { return Ok(None) };
    edits.set_attribute(driver, "type", "raw")?;
    edits.remove_attribute(driver, "discard_no_unref");
    named(driver, "metadata_cache").chain(named(disk, "backingStore")).for_each(|node| edits.remove(node));
    Ok(Some(()))
}

fn rewrite_interfaces(
    edits: &mut Edits<'_>,
    definition: &Definition,
    devices: Node<'_, '_>,
    rewrite: &Rewrite,
) -> Result<(), DomainError> {
    let missing =
        |index: &usize| DomainError::NoSuchTarget { what: format!("network interface {index} (counted from 0)") };
    for (index, mac) in &rewrite.macs {
        let interface = named(devices, "interface").nth(*index).ok_or_else(|| missing(index))?;
        if let Some(node) = child(interface, "mac") {
            edits.set_attribute(node, "address", mac)?;
        } else {
            let address = escape_attribute("MAC address", mac)?;
            edits.prepend_inside(interface, &format!("<mac address='{address}'/>"));
        }
    }
    for (index, name) in &rewrite.networks {
        let interface = named(devices, "interface").nth(*index).ok_or_else(|| missing(index))?;
        let source = child(interface, "source").ok_or_else(|| missing(index))?;
        // A network gives way to a network and a bridge to a bridge: the interface's type stays.
        let attribute = match definition.interfaces.get(*index).map(|interface| &interface.source) {
            Some(InterfaceSource::Network(_)) => "network",
            Some(InterfaceSource::Bridge(_)) => "bridge",
            _ => return Err(missing(index)),
        };
        edits.set_attribute(source, attribute, name)?;
    }
    Ok(())
}

fn element(name: &str, text: &str) -> Result<String, DomainError> {
    Ok(format!("<{name}>{}</{name}>", escape_text(name, text)?))
}

fn required<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Result<Node<'a, 'i>, DomainError> {
    elements(node)
        .find(|element| is_plain(*element, name))
        .ok_or_else(|| DomainError::NoSuchTarget { what: format!("the element <{name}>") })
}
