//! A domain's definition as the simulated libvirt reads and edits it: as text, by spans.

use journal_format::DomainUuid;
use kvm_clone::domain::metadata::NAMESPACE;
use kvm_clone::world::FaultKind;

use crate::filesystem::Refusal;

/// What libvirt knows of a definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    pub text: String,
    pub name: String,
    pub uuid: DomainUuid,
    /// Files and devices of its writable disks.
    pub disks: Vec<String>,
}

fn refused(detail: impl Into<String>) -> Refusal {
    (FaultKind::Refused, format!("XML error: {}", detail.into()))
}

impl Definition {
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let document = roxmltree::Document::parse(text).map_err(|error| refused(error.to_string()))?;
        let root = document.root_element();
        if !root.has_tag_name("domain") {
            return Err(refused("not a domain"));
        }
        let child = |tag| root.children().find(|node| node.has_tag_name(tag)).and_then(|node| node.text());
        let name = child("name").ok_or_else(|| refused("no name"))?.to_owned();
        if name.is_empty() || name.contains('/') {
            return Err(refused(format!("name {name} cannot be used")));
        }
        let uuid = child("uuid").and_then(|text| text.trim().parse().ok()).ok_or_else(|| refused("no UUID"))?;
        let is_disk = |node: &roxmltree::Node| {
            node.has_tag_name("disk")
                && node.attribute("device").unwrap_or("disk") == "disk"
                && !node.children().any(|child| child.has_tag_name("readonly"))
        };
        let disks = root
            .descendants()
            .filter(is_disk)
            .filter_map(|disk| disk.children().find(|node| node.has_tag_name("source")))
            .filter_map(|source| source.attribute("file").or_else(|| source.attribute("dev")))
            .map(str::to_owned)
            .collect();
        Ok(Self { text: text.to_owned(), name, uuid, disks })
    }

    /// With this name.
    pub fn with_name(&self, name: &str) -> Result<Self, Refusal> {
        let document = roxmltree::Document::parse(&self.text).map_err(|error| refused(error.to_string()))?;
        let old = document.root_element().children().find(|node| node.has_tag_name("name"));
        let old = old.ok_or_else(|| refused("no name"))?;
        Self::parse(&splice(&self.text, old.range(), &format!("<name>{}</name>", escape(name))))
    }

    /// With this title, or none.
    pub fn with_title(&self, title: Option<&str>) -> Result<Self, Refusal> {
        let document = roxmltree::Document::parse(&self.text).map_err(|error| refused(error.to_string()))?;
        let root = document.root_element();
        let new = title.map_or(String::new(), |title| format!("<title>{}</title>", escape(title)));
        let span = match root.children().find(|node| node.has_tag_name("title")) {
            Some(old) => old.range(),
            None => end_of(&root, "uuid")?,
        };
        Self::parse(&splice(&self.text, span, &new))
    }

    /// With this element, put into our namespace as libvirt does it, in place of the one there, or without that one.
    pub fn with_metadata(&self, element: Option<&str>) -> Result<Self, Refusal> {
        let document = roxmltree::Document::parse(&self.text).map_err(|error| refused(error.to_string()))?;
        let root = document.root_element();
        let element = element.map_or_else(|| Ok(String::new()), qualified)?;
        let Some(metadata) = root.children().find(|node| node.has_tag_name("metadata")) else {
            let new = if element.is_empty() { String::new() } else { format!("<metadata>{element}</metadata>") };
            return Self::parse(&splice(&self.text, end_of(&root, "uuid")?, &new));
        };
        let of_namespace = |node: &roxmltree::Node| node.tag_name().namespace() == Some(NAMESPACE);
        if let Some(old) = metadata.children().find(of_namespace) {
            return Self::parse(&splice(&self.text, old.range(), &element));
        }
        let others: String =
            metadata.children().filter(roxmltree::Node::is_element).map(|node| &self.text[node.range()]).collect();
        Self::parse(&splice(&self.text, metadata.range(), &format!("<metadata>{others}{element}</metadata>")))
    }
}

/// An element without a namespace, in ours.
fn qualified(element: &str) -> Result<String, Refusal> {
    let document = roxmltree::Document::parse(element).map_err(|error| refused(error.to_string()))?;
    let name = document.root_element().tag_name().name();
    let declared = format!("<{name} xmlns='{NAMESPACE}'");
    Ok(element.replacen(&format!("<{name}"), &declared, 1))
}

fn end_of(root: &roxmltree::Node, tag: &str) -> Result<std::ops::Range<usize>, Refusal> {
    let node = root.children().find(|node| node.has_tag_name(tag)).ok_or_else(|| refused(format!("no {tag}")))?;
    Ok(node.range().end..node.range().end)
}

fn splice(text: &str, span: std::ops::Range<usize>, new: &str) -> String {
    format!("{}{new}{}", &text[..span.start], &text[span.end..])
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
