//! A libvirt snapshot's document: what it says of memory and disks, and the definitions of the domain that are in it. A revert
//! puts those in the place of the domain's own, so a clone's go through the rewrite that its definition goes through.

use std::collections::BTreeSet;
use std::ops::Range;

use journal_format::DropKindV1;
use roxmltree::Node;

use super::definition::{attribute, text_of};
use super::leave_behind::leave_behind;
use super::rewrite::{Rewrite, rewrite};
use super::xml::{Edits, child, content, is_plain, named, parse};
use super::{Definition, DomainError};

/// The elements that hold a definition of the domain: as it was, and, of one that ran, as it was defined.
const DEFINITIONS: [&str; 2] = ["domain", "inactiveDomain"];

/// A snapshot's document that was read whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotDefinition {
    text: String,
    /// Its name.
    pub name: String,
    /// The name of the snapshot that it stands on.
    pub parent: Option<String>,
    /// When it was made, as written: seconds since 1970.
    pub created: Option<String>,
    /// Where the memory is.
    pub memory: Kept,
    /// The disks, by target name, and where what was on them is.
    pub disks: Vec<(String, Kept)>,
    inside: Vec<Inside>,
}

/// Where a snapshot keeps what it keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It keeps nothing of it.
    Nowhere,
    /// In the disk's own image; memory in one of them.
    Internally,
    /// In another file, or in nobody knows what.
    Elsewhere,
}

/// A definition of the domain inside a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Inside {
    span: Range<usize>,
    element: &'static str,
    definition: Definition,
}

impl SnapshotDefinition {
    /// Reads a snapshot's document.
    pub fn parse(text: &str) -> Result<Self, DomainError> {
        let document = parse(text)?;
        let root = document.root_element();
        if !is_plain(root, "domainsnapshot") {
            return Err(DomainError::NotADomain { found: root.tag_name().name().to_owned() });
        }
        let mut inside = Vec::new();
        for element in DEFINITIONS {
            if named(root, element).count() > 1 {
                return Err(DomainError::Repeated { what: element });
            }
            if let Some(node) = child(root, element) {
                let markup = renamed(&text[node.range()], element, "domain");
                let definition = Definition::parse(&markup)?;
                inside.push(Inside { span: node.range(), element, definition });
            }
        }
        if inside.first().is_none_or(|first| first.element != "domain") {
            return Err(DomainError::Missing { what: "domain".into() });
        }
        let disks = child(root, "disks").into_iter().flat_map(|disks| named(disks, "disk"));
        Ok(Self {
            name: name_in(root).ok_or_else(|| DomainError::Missing { what: "name".into() })?,
            parent: child(root, "parent").and_then(name_in),
            created: text_of(root, "creationTime"),
            memory: child(root, "memory").map_or(Kept::Nowhere, kept),
            disks: disks.map(|disk| (attribute(disk, "name").unwrap_or_default(), kept(disk))).collect(),
            inside,
            text: text.to_owned(),
        })
    }

    /// The definitions of the domain that are in it.
    pub fn definitions(&self) -> impl Iterator<Item = &Definition> {
        self.inside.iter().map(|inside| &inside.definition)
    }

    /// The document, as it was read.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The document without the devices that are left behind, in any of these definitions, and what it says of such disks.
    pub fn without(&self, kinds: &[DropKindV1]) -> Result<Self, DomainError> {
        let text =
            self.edited(|definition| Ok::<_, DomainError>(leave_behind(definition, kinds)?.0.text().to_owned()))?;
        let kept = Self::parse(&text)?;
        let mut gone = self.targets();
        gone.retain(|target| !kept.targets().contains(target));
        let document = parse(&text)?;
        let mut edits = Edits::new(&text);
        let disks = child(document.root_element(), "disks").into_iter().flat_map(|disks| named(disks, "disk"));
        disks
            .filter(|disk| disk.attribute("name").is_some_and(|name| gone.contains(name)))
            .for_each(|disk| edits.remove(disk));
        Self::parse(&edits.apply()?)
    }

    /// Target names of the disks in any of these definitions.
    fn targets(&self) -> BTreeSet<&str> {
        let disks = self.definitions().flat_map(|definition| &definition.disks);
        disks.map(|disk| disk.target.as_str()).collect()
    }

    /// The document with each of these definitions rewritten.
    pub fn rewritten<E: From<DomainError>>(
        &self,
        mut changes: impl FnMut(&Definition) -> Result<Rewrite, E>,
    ) -> Result<String, E> {
        self.edited(|definition| Ok(rewrite(definition, &changes(definition)?)?))
    }

    fn edited<E: From<DomainError>>(
        &self,
        mut edit: impl FnMut(&Definition) -> Result<String, E>,
    ) -> Result<String, E> {
        let mut edits = Edits::new(&self.text);
        for inside in &self.inside {
            let markup = edit(&inside.definition)?;
            edits.replace(inside.span.clone(), renamed(&markup, "domain", inside.element));
        }
        let text = edits.apply()?;
        // Every span was right if what was written is read again.
        Self::parse(&text)?;
        Ok(text)
    }
}

/// An element's markup under another name. One that has no end tag is no definition, and is found to be none.
fn renamed(markup: &str, from: &str, to: &str) -> String {
    let begun = markup.strip_prefix(&format!("<{from}")).unwrap_or(markup);
    match begun.rsplit_once(&format!("</{from}")) {
        Some((inside, end)) => format!("<{to}{inside}</{to}{end}"),
        None => format!("<{to}{begun}"),
    }
}

/// A name, exactly as written.
fn name_in(node: Node<'_, '_>) -> Option<String> {
    child(node, "name").map(content).filter(|name| !name.is_empty())
}

fn kept(node: Node<'_, '_>) -> Kept {
    match node.attribute("snapshot") {
        Some("no") => Kept::Nowhere,
        Some("internal") => Kept::Internally,
        _ => Kept::Elsewhere,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn domain(element: &str) -> String {
        format!(
            "<{element} type='kvm'>\n    <name>web</name>\n    <uuid>11111111-2222-4333-8444-555555555555</uuid>\n    \
             <memory>1024</memory>\n    <os><type>hvm</type></os>\n    <devices><disk type='file' device='disk'>\
             <driver type='qcow2'/><source file='/a.qcow2'/><target dev='vda'/></disk></devices>\n  </{element}>"
        )
    }

    fn document(inside: &str) -> String {
        format!(
            "<domainsnapshot>\n  <name>a &amp; b</name>\n  <state>running</state>\n  <parent><name>first</name></parent>\n  \
             <creationTime>1795824045</creationTime>\n  <memory snapshot='internal'/>\n  <disks>\
             <disk name='vda' snapshot='internal'/><disk name='sda' snapshot='no'/>\
             <disk name='vdb' snapshot='external' type='file'><source file='/x'/></disk></disks>\n  {inside}\n</domainsnapshot>\n"
        )
    }

    #[test]
    fn all_that_matters_is_read() {
        let text = document(&format!("{}\n  {}", domain("domain"), domain("inactiveDomain")));
        let snapshot = SnapshotDefinition::parse(&text).unwrap();
        assert_eq!((snapshot.name.as_str(), snapshot.parent.as_deref()), ("a & b", Some("first")));
        assert_eq!((snapshot.created.as_deref(), snapshot.memory), (Some("1795824045"), Kept::Internally));
        let disks = [("vda", Kept::Internally), ("sda", Kept::Nowhere), ("vdb", Kept::Elsewhere)];
        assert_eq!(snapshot.disks, disks.map(|(target, kept)| (target.to_owned(), kept)));
        assert_eq!(snapshot.definitions().count(), 2);
        assert!(snapshot.definitions().all(|definition| definition.disks[0].image() == Some("/a.qcow2")));
    }

    #[test]
    fn every_definition_is_rewritten_and_nothing_else() {
        let text = document(&format!("{}\n  {}", domain("domain"), domain("inactiveDomain")));
        let snapshot = SnapshotDefinition::parse(&text).unwrap();
        let kept = snapshot.rewritten(|_| Ok::<_, DomainError>(Rewrite::default())).unwrap();
        assert_eq!(kept, text);
        let changes = Rewrite {
            name: Some("clone".into()),
            disk_files: [(0, "/b.qcow2".to_owned())].into(),
            ..Rewrite::default()
        };
        let rewritten = snapshot.rewritten(|_| Ok::<_, DomainError>(changes.clone())).unwrap();
        assert_eq!(rewritten, text.replace("<name>web<", "<name>clone<").replace("/a.qcow2", "/b.qcow2"));
    }

    #[test]
    fn a_disk_that_is_left_behind_goes_from_all_that_is_said_of_it() {
        let far = "<disk type='network' device='disk'><driver type='raw'/><source protocol='rbd' name='p/i'/>                   <target dev='vdb'/></disk>";
        let (with, without) = (domain("domain").replace("</devices>", &format!("{far}</devices>")), domain("domain"));
        let snapshot = SnapshotDefinition::parse(&document(&with)).unwrap();
        let left = snapshot.without(&[DropKindV1::Disk]).unwrap();
        let said = "<disk name='vdb' snapshot='external' type='file'><source file='/x'/></disk>";
        assert_eq!(left.text(), document(&without).replace(said, ""));
        assert_eq!(snapshot.without(&[]).unwrap(), snapshot);
    }

    #[test]
    fn what_is_no_snapshot_with_a_definition_is_refused() {
        let two = format!("{}{}", domain("domain"), domain("domain"));
        let old = "<domain>\n<uuid>11111111-2222-4333-8444-555555555555</uuid>\n</domain>".to_owned();
        for inside in [String::new(), old, two, domain("inactiveDomain"), "<domain/>".into()] {
            assert!(SnapshotDefinition::parse(&document(&inside)).is_err(), "{inside}");
        }
        assert!(SnapshotDefinition::parse(&domain("domain")).is_err());
        let nameless = document(&domain("domain")).replace("<name>a &amp; b</name>", "<name/>");
        assert!(SnapshotDefinition::parse(&nameless).is_err());
    }
}
