//! Disks and drives: a plain raw or qcow2 file is carried, an empty drive too, everything else is named.

use std::collections::BTreeMap;

use roxmltree::Node;

use super::{Findings, LEAVE_OUT};
use crate::domain::xml::{child, elements, is_plain};
use crate::domain::{Definition, Disk, DiskDevice, DiskSource};

/// The longest target name; file names are made of it.
const TARGET_BYTES_MAX: usize = 16;

const KNOWN: &[&str] = &[
    "acpi",
    "address",
    "alias",
    "auth",
    "backenddomain",
    "backingStore",
    "blockio",
    "boot",
    "driver",
    "encryption",
    "geometry",
    "iotune",
    "mirror",
    "privateData",
    "product",
    "readonly",
    "serial",
    "shareable",
    "source",
    "target",
    "throttlefilters",
    "transient",
    "vendor",
    "wwn",
];

const SOURCE_KNOWN: &[&str] = &["address", "dataStore", "encryption", "reservations", "seclabel", "slices", "auth"];

pub(super) fn look(findings: &mut Findings, node: Node<'_, '_>) {
    let target = child(node, "target").and_then(|target| target.attribute("dev")).unwrap_or("?");
    let place = format!("disk {target}");
    findings.know_children(node, &place, KNOWN);
    // Any other kind of source is refused as a whole.
    let is_carried = matches!(node.attribute("type"), None | Some("file" | "block" | "volume"));
    if let Some(source) = child(node, "source").filter(|_| is_carried) {
        findings.know_children(source, &place, SOURCE_KNOWN);
    }
    look_hidden(findings, node, &place);
}

/// What lies behind a disk's source, or is needed to read it.
fn look_hidden(findings: &mut Findings, node: Node<'_, '_>, place: &str) {
    let source = child(node, "source");
    let either = |name: &str| child(node, name).or_else(|| source.and_then(|source| child(source, name)));
    let mut block = |found: Option<Node<'_, '_>>, what: &str, why: &str, advice: &str| {
        if let Some(found) = found {
            findings.block_node(found, place, what, why, advice);
        }
    };
    // An empty <backingStore/> says that there is nothing below.
    let mut stores = child(node, "backingStore")
        .into_iter()
        .flat_map(|store| store.descendants())
        .filter(|store| is_plain(*store, "backingStore") && elements(*store).next().is_some());
    block(
        stores.find(|store| !is_file_layer(*store)),
        "a backing chain that is not made of image files",
        "what lies below is not known here",
        "Put it all into one image first: with the VM shut off, `qemu-img convert -O qcow2 IMAGE NEW`, and use NEW",
    );
    block(either("encryption"), "an encrypted image", "its secret is not carried", LEAVE_OUT);
    block(either("auth"), "a secret of the host's libvirt", "secrets are not carried", LEAVE_OUT);
    let source_has = |name: &str| source.and_then(|source| child(source, name));
    block(source_has("slices"), "a slice of a file", "only whole files are carried", LEAVE_OUT);
    block(source_has("dataStore"), "an external data file", "it is not carried yet", LEAVE_OUT);
    block(source_has("reservations"), "SCSI reservations", "they belong to a device of the host", LEAVE_OUT);
    let label = source_has("seclabel").filter(|label| label.attribute("relabel") != Some("no"));
    block(label, "a security label of its own", "the destination may not know it", LEAVE_OUT);
    block(child(node, "mirror"), "a running copy (mirror)", "it must end first", "`virsh blockjob` shows and ends it");
    block(child(node, "backenddomain"), "a backend domain", "it is not carried", LEAVE_OUT);
}

/// A layer of a chain that is a file and nothing more.
fn is_file_layer(store: Node<'_, '_>) -> bool {
    const LAYER_KNOWN: &[&str] = &["format", "source", "backingStore"];
    matches!(store.attribute("type"), None | Some("file"))
        && elements(store).all(|element| LAYER_KNOWN.contains(&element.tag_name().name()))
        && child(store, "source").is_some_and(|source| {
            source.attribute("file").is_some_and(|file| file.starts_with('/')) && elements(source).next().is_none()
        })
}

/// What the disks are, and whether they get along. `nodes`: their elements.
pub(super) fn look_together(findings: &mut Findings, definition: &Definition, nodes: &[Node<'_, '_>]) {
    let mut users: BTreeMap<String, &str> = BTreeMap::new();
    let mut targets: BTreeMap<&str, usize> = BTreeMap::new();
    for disk in &definition.disks {
        findings.turn_to(nodes.get(disk.index).copied());
        let place = format!("disk {}", disk.target);
        look_target(findings, disk, &place);
        if targets.insert(&disk.target, disk.index).is_some() {
            let what = "two disks of one target name";
            findings.block(&place, what, "libvirt refuses that", "Give each its own (virsh edit)");
        }
        match &disk.device {
            DiskDevice::Disk => look_hard_disk(findings, disk, &place),
            DiskDevice::Cdrom | DiskDevice::Floppy
                if matches!(disk.source, DiskSource::Elsewhere { .. } | DiskSource::Volume { .. }) =>
            {
                findings.block(
                    &place,
                    &format!("a medium in a drive ({})", source_text(disk)),
                    "only media in files and devices are known here",
                    "Eject it first: `virsh change-media VM TARGET --eject --config`",
                );
            }
            DiskDevice::Cdrom | DiskDevice::Floppy => {}
            DiskDevice::Lun => {
                findings.block(&place, "a SCSI device of the host", "only image files are carried", LEAVE_OUT);
            }
            DiskDevice::Other(kind) => {
                let what = format!("a device of a kind that is not known here ({kind})");
                findings.block(&place, &what, "what it needs cannot be said", LEAVE_OUT);
            }
        }
        if disk.is_own()
            && let image = source_text(disk)
            && let Some(other) = users.insert(image.clone(), &disk.target)
        {
            let what = format!("the same image as disk {other} ({image})");
            findings.block(&place, &what, "each disk needs an image of its own", LEAVE_OUT);
        }
    }
}

fn look_target(findings: &mut Findings, disk: &Disk, place: &str) {
    let plain = disk.target.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    if !plain || disk.target.is_empty() || disk.target.len() > TARGET_BYTES_MAX {
        findings.block(
            place,
            "a target name that no file can be named after",
            "it should look like vda",
            "Change it in the source's definition (virsh edit)",
        );
    }
}

fn look_hard_disk(findings: &mut Findings, disk: &Disk, place: &str) {
    match &disk.source {
        DiskSource::File(path) | DiskSource::Device(path) if !path.starts_with('/') => {
            let what = format!("an image without an absolute path ({path})");
            findings.block(place, &what, "what it is relative to cannot be said", "Write it in full (virsh edit)");
        }
        DiskSource::Empty => findings.block(place, "a disk without an image", "there is nothing to copy", LEAVE_OUT),
        DiskSource::Device(path) if disk.is_common() => {
            let what = format!("a block device that is only read or shared (dev={path})");
            findings.block(place, &what, "whose it is on the destination cannot be said", LEAVE_OUT);
        }
        DiskSource::Volume { pool, volume } if disk.is_common() => {
            let what = format!("a volume of a pool that is only read or shared (pool={pool} volume={volume})");
            findings.block(place, &what, "only files are known to be there on the destination", LEAVE_OUT);
        }
        DiskSource::File(_) | DiskSource::Device(_) | DiskSource::Volume { .. } => look_format(findings, disk, place),
        DiskSource::Elsewhere { kind, what } => {
            let kind = match kind.as_str() {
                "volume" => "a volume of a pool that QEMU itself connects to",
                "network" => "a network disk",
                "nvme" => "an NVMe device of the host",
                "dir" => "a directory shown as a disk",
                "vhostuser" | "vhostvdpa" => "a disk served by another process",
                other => &format!("a disk of type {other}"),
            };
            findings.block(place, &format!("{kind} ({what})"), "only image files are carried yet", LEAVE_OUT);
        }
    }
    if disk.transient {
        let why = "libvirt keeps what the guest writes in a file of its own, and loses it";
        findings.block(place, "a transient disk", why, LEAVE_OUT);
    }
}

fn look_format(findings: &mut Findings, disk: &Disk, place: &str) {
    match (disk.image_format(), &disk.format) {
        (Some(_), _) => {}
        (None, Some(format)) => {
            let what = format!("an image of format {format:?}");
            findings.block(place, &what, "only raw and qcow2 are carried", "Convert it first (qemu-img convert)");
        }
        (None, None) => findings.block(
            place,
            "an image whose format is not said",
            "it is never guessed: a raw disk may begin like any other",
            "Write <driver name='qemu' type='raw'/> or 'qcow2' into the disk (virsh edit)",
        ),
    }
}

fn source_text(disk: &Disk) -> String {
    match &disk.source {
        DiskSource::Empty => "none".to_owned(),
        DiskSource::File(path) | DiskSource::Device(path) => path.clone(),
        DiskSource::Elsewhere { what, .. } => what.clone(),
        DiskSource::Volume { pool, volume } => format!("pool={pool} volume={volume}"),
    }
}
