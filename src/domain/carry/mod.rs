//! What of a definition cannot be carried yet: each thing by name, where it is, why, and what to do.
//!
//! What is known to be carried is listed; everything else is named. An element that this code does not know is never dropped in
//! silence, and a path of the source host that nobody looked at stops the clone (`path`).

mod device;
mod disk;
mod interface;
mod machine;
mod path;

use std::collections::BTreeSet;
use std::ops::Range;

use journal_format::DropKindV1;
use roxmltree::Node;

use super::qcow2::{Compression, Encryption, Header};
use super::xml::{elements, is_plain, named, parse};
use super::{Definition, DomainError};

/// Something that is not carried, or not as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uncarried {
    /// What it is, such as `a backing chain`.
    pub what: String,
    /// Where in the definition, such as `disk vda`.
    pub where_: String,
    /// Why it is not carried, or what becomes of it.
    pub why: String,
    /// What to do about it.
    pub advice: String,
    /// The device that the clone could be made without.
    pub device: Option<Droppable>,
}

/// A device that is left behind where that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Droppable {
    /// How it is asked for.
    pub kind: DropKindV1,
    /// Where its element is in the definition's text.
    pub span: Range<usize>,
}

impl std::fmt::Display for Uncarried {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}: {}. {}", self.where_, self.what, self.why, self.advice)
    }
}

/// All that is not carried of one VM.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Carriage {
    /// With these there is no clone.
    pub blockers: Vec<Uncarried>,
    /// With these there is, and the operator should know.
    pub warnings: Vec<Uncarried>,
}

/// What of a definition is not carried.
pub fn uncarried(definition: &Definition) -> Result<Carriage, DomainError> {
    let document = parse(definition.text())?;
    let domain = document.root_element();
    let mut findings = Findings::default();
    machine::look(&mut findings, domain);
    for node in named(domain, "devices").flat_map(elements) {
        findings.turn_to(Some(node));
        device::look(&mut findings, node);
    }
    let all = |name: &'static str| named(domain, "devices").flat_map(move |devices| named(devices, name)).collect();
    let (disks, interfaces): (Vec<_>, Vec<_>) = (all("disk"), all("interface"));
    disk::look_together(&mut findings, definition, &disks);
    interface::look_together(&mut findings, definition, &interfaces);
    path::look(&mut findings, domain);
    Ok(findings.carriage)
}

/// What of a qcow2 image is not carried; `place` says what of the VM it is, such as `disk vda`.
pub fn uncarried_image(place: &str, header: &Header) -> Carriage {
    let mut findings = Findings::default();
    if header.external_data || header.data_file.is_some() {
        let file = header.data_file.as_deref().unwrap_or("a file that the header does not name");
        findings.block(
            place,
            &format!("an external data file ({file})"),
            "the guest's data is not in the image itself",
            "Convert it first: with the VM shut off, `qemu-img convert -O qcow2 IMAGE NEW`, and use NEW",
        );
    }
    if header.encryption != Encryption::None {
        let kind = match header.encryption {
            Encryption::Luks => "LUKS".to_owned(),
            Encryption::Unknown(method) => format!("method {method}"),
            Encryption::Aes | Encryption::None => "AES".to_owned(),
        };
        findings.block(place, &format!("an encrypted image ({kind})"), "its secret is not carried", LEAVE_OUT);
    }
    if !header.unknown_features.is_empty() {
        findings.block(
            place,
            &format!("features of qcow2 that are not known here ({})", header.unknown_features.join(", ")),
            "what they mean for a copy cannot be said",
            "Convert it first: with the VM shut off, `qemu-img convert -O qcow2 IMAGE NEW`, and use NEW",
        );
    }
    if header.corrupt {
        findings.block(
            place,
            "an image that QEMU marked as corrupt",
            "it would only be opened to read, and its copy too",
            "Repair it first: `qemu-img check -r all IMAGE`",
        );
    }
    findings.carriage
}

/// What of an image keeps a chain that it belongs to from being flattened, or is lost by that; `place` as above.
pub fn unflattened_image(place: &str, header: &Header) -> Carriage {
    const KEEP: &str = "Clone it with --chain keep";
    let mut findings = Findings::default();
    if header.snapshots > 0 {
        let what = format!("internal snapshots ({})", header.snapshots);
        let advice = "Clone it with --chain keep, or delete them first (`qemu-img snapshot -d`)";
        findings.block(place, &what, "a flattened image has none", advice);
    }
    let method = match header.compression {
        Compression::Deflate => None,
        Compression::Zstd => Some("zstd".to_owned()),
        Compression::Unknown(method) => Some(format!("method {method}")),
    };
    if let Some(method) = method {
        let what = format!("an image that is compressed by another method than deflate ({method})");
        findings.block(place, &what, "it cannot be read here", KEEP);
    }
    if header.subclusters {
        findings.block(place, "an image with subclusters (extended_l2)", "it cannot be read here", KEEP);
    }
    if header.dirty {
        let advice = "Clone it with --chain keep, or repair it first: `qemu-img check -r all IMAGE`";
        findings.block(
            place,
            "an image that was not closed (dirty)",
            "QEMU would repair it before it reads it",
            advice,
        );
    }
    if !header.virtual_size_bytes.is_multiple_of(SECTOR_BYTES) {
        let what = format!("an image whose size for its guest is no multiple of {SECTOR_BYTES} bytes");
        findings.block(place, &what, "what its guest sees of the last sector cannot be said", KEEP);
    }
    if header.bitmaps > 0 {
        let what = format!("bitmaps of what changed since a backup ({})", header.bitmaps);
        findings.warn(place, &what, "the clone has none", "Begin its backups with a full one");
    }
    findings.carriage
}

/// What a guest's disk is made of.
const SECTOR_BYTES: u64 = 512;

/// The advice for what a VM can do without.
const LEAVE_OUT: &str = "Take it out of the source's definition first (virsh edit), or clone this VM by hand";

/// What was found so far, and which elements were dealt with whole.
#[derive(Default)]
struct Findings {
    carriage: Carriage,
    /// The device that is looked at.
    device: Option<Droppable>,
    /// Elements about which all was said; paths below them are not named again.
    settled: BTreeSet<usize>,
}

impl Findings {
    /// What is found from now on is about the device that this node is, or is in.
    fn turn_to(&mut self, node: Option<Node<'_, '_>>) {
        let is_device = |node: &Node<'_, '_>| node.parent().is_some_and(|parent| is_plain(parent, "devices"));
        self.device = node.and_then(|node| node.ancestors().find(is_device)).and_then(|device| {
            let plain = is_plain(device, device.tag_name().name());
            let kind = DropKindV1::of_device(device.tag_name().name()).filter(|_| plain)?;
            Some(Droppable { kind, span: device.range() })
        });
    }

    fn block(&mut self, place: &str, what: &str, why: &str, advice: &str) {
        let found = finding(place, what, why, advice);
        self.carriage.blockers.push(Uncarried { device: self.device.clone(), ..found });
    }

    /// Names an element as a whole.
    fn block_node(&mut self, node: Node<'_, '_>, place: &str, what: &str, why: &str, advice: &str) {
        self.settle([node]);
        self.block(place, what, why, advice);
    }

    /// All was said about these elements.
    fn settle<'a, 'i: 'a>(&mut self, nodes: impl IntoIterator<Item = Node<'a, 'i>>) {
        self.settled.extend(nodes.into_iter().map(|node| node.id().get_usize()));
    }

    fn is_settled(&self, node: Node<'_, '_>) -> bool {
        self.settled.contains(&node.id().get_usize())
    }

    fn warn(&mut self, place: &str, what: &str, why: &str, advice: &str) {
        self.carriage.warnings.push(finding(place, what, why, advice));
    }

    /// Names every child element that is not in the list.
    fn know_children(&mut self, node: Node<'_, '_>, place: &str, known: &[&str]) {
        for element in elements(node) {
            if element.tag_name().namespace().is_some() || !known.contains(&element.tag_name().name()) {
                self.block_unknown(element, place);
            }
        }
    }

    fn block_unknown(&mut self, node: Node<'_, '_>, place: &str) {
        let what = format!("the element <{}>", shown_name(node));
        self.block_node(node, place, &what, "this version of kvm-clone does not know what it needs", LEAVE_OUT);
    }
}

fn finding(place: &str, what: &str, why: &str, advice: &str) -> Uncarried {
    Uncarried { what: what.into(), where_: place.into(), why: why.into(), advice: advice.into(), device: None }
}

/// An element's name for people; with its namespace, if it is not libvirt's own.
fn shown_name(node: Node<'_, '_>) -> String {
    let name = node.tag_name().name();
    node.tag_name().namespace().map_or_else(|| name.to_owned(), |namespace| format!("{name} xmlns='{namespace}'"))
}
