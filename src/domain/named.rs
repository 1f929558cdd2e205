//! What files a definition names: its disks' images with their formats, and whether it names a path anywhere at all.

use std::collections::BTreeSet;

use roxmltree::{Document, Node};

use super::DomainError;
use super::definition::{Definition, attribute};
use super::places;
use super::xml::{child, is_plain, parse};

/// An image that a definition names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedImage {
    /// Where it is.
    pub place: ImagePlace,
    /// Its format, where the definition says it.
    pub format: Option<String>,
}

/// Where an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImagePlace {
    /// A file or device of this path.
    Path(String),
    /// A volume of a pool.
    Volume {
        /// The pool's name.
        pool: String,
        /// The volume's name.
        volume: String,
    },
}

/// The images of all disks and drives: top ones, those below that the definition names itself, and mirrors. Of a snapshot too,
/// with those of the definitions in it.
pub fn named_images(definition: &str) -> Result<Vec<NamedImage>, DomainError> {
    let document = parse(definition)?;
    let is_in_disk = |node: &Node<'_, '_>| node.ancestors().any(|above| is_plain(above, "disk"));
    let sources = document.descendants().filter(|node| is_plain(*node, "source") && is_in_disk(node));
    Ok(sources.filter_map(named_image).collect())
}

fn named_image(source: Node<'_, '_>) -> Option<NamedImage> {
    let place = match (attribute(source, "file").or_else(|| attribute(source, "dev")), attribute(source, "pool")) {
        (Some(path), _) => ImagePlace::Path(path),
        (None, Some(pool)) => ImagePlace::Volume { pool, volume: attribute(source, "volume")? },
        (None, None) => return None,
    };
    let owner = source.parent_element()?;
    let said_by = if is_plain(owner, "disk") { "driver" } else { "format" };
    Some(NamedImage { place, format: child(owner, said_by).and_then(|node| attribute(node, "type")) })
}

/// Does it name this path anywhere in an attribute or text, as QEMU's own options do among others?
pub fn names_path(definition: &str, path: &str) -> Result<bool, DomainError> {
    Ok(texts(&parse(definition)?).any(|text| holds(text, path)))
}

/// Whatever is nothing but an absolute path, in an attribute or text: of firmware, variables, files of devices.
pub fn named_paths(definition: &str) -> Result<BTreeSet<String>, DomainError> {
    let document = parse(definition)?;
    let is_path = |text: &&str| text.starts_with('/') && !text.contains(char::is_control);
    Ok(texts(&document).filter(is_path).map(str::to_owned).collect())
}

fn texts<'a>(document: &'a Document<'_>) -> impl Iterator<Item = &'a str> {
    let values = |node: Node<'a, '_>| node.attributes().map(|attribute| attribute.value()).collect::<Vec<_>>();
    document.descendants().flat_map(move |node| values(node).into_iter().chain(node.text().map(str::trim)))
}

/// Is this path in a text, and does it end there?
fn holds(text: &str, path: &str) -> bool {
    let goes_on = |c: char| c.is_alphanumeric() || "._-/".contains(c);
    text.match_indices(path).any(|(at, path)| !text[at + path.len()..].starts_with(goes_on))
}

impl Definition {
    /// The file of its firmware variables: as written, or where libvirt puts those of its name.
    pub fn variables_path(&self) -> Option<String> {
        let variables = self.os.variables.as_ref()?;
        Some(variables.path.clone().unwrap_or_else(|| places::variables(&self.name, variables.format)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const DEFINITION: &str = "<domain type='kvm'><name>web</name><uuid>11111111-2222-4333-8444-555555555555</uuid>
      <memory>1024</memory><os firmware='efi'><type>hvm</type></os>
      <devices>
        <disk type='file'><driver type='qcow2'/><source file='/a/top.qcow2'/><target dev='vda'/>
          <backingStore type='file'><format type='raw'/><source file='/a/base.img'/></backingStore>
          <mirror type='file'><format type='qcow2'/><source file='/b/copy.qcow2'/></mirror></disk>
        <disk type='block'><source dev='/dev/sdx'/><target dev='vdb'/></disk>
        <disk type='volume'><driver type='raw'/><source pool='images' volume='v.img'/><target dev='vdc'/></disk>
        <disk type='file' device='cdrom'><target dev='sda'/></disk>
        <serial type='file'><source path='/var/log/serial'/></serial>
      </devices></domain>";

    #[test]
    fn images_below_and_beside_are_named_with_their_formats() {
        let path = |path: &str, format: Option<&str>| NamedImage {
            place: ImagePlace::Path(path.into()),
            format: format.map(Into::into),
        };
        let volume = ImagePlace::Volume { pool: "images".into(), volume: "v.img".into() };
        assert_eq!(
            named_images(DEFINITION).unwrap(),
            [
                path("/a/top.qcow2", Some("qcow2")),
                path("/a/base.img", Some("raw")),
                path("/b/copy.qcow2", Some("qcow2")),
                path("/dev/sdx", None),
                NamedImage { place: volume, format: Some("raw".into()) },
            ]
        );
    }

    #[test]
    fn images_of_a_snapshot_are_named_with_those_of_its_definitions() {
        let snapshot = format!(
            "<domainsnapshot><name>monday</name><disks><disk name='vda' snapshot='external'><driver type='qcow2'/>
             <source file='/a/monday.qcow2'/></disk></disks>{DEFINITION}</domainsnapshot>"
        );
        let images = named_images(&snapshot).unwrap();
        assert_eq!(images.len(), 6);
        assert_eq!(images[0].place, ImagePlace::Path("/a/monday.qcow2".into()));
    }

    #[test]
    fn a_path_is_named_wherever_it_stands() {
        for path in ["/a/base.img", "/var/log/serial"] {
            assert!(names_path(DEFINITION, path).unwrap(), "{path}");
        }
        let paths = ["/a/base.img", "/a/top.qcow2", "/b/copy.qcow2", "/dev/sdx", "/var/log/serial"];
        assert_eq!(named_paths(DEFINITION).unwrap(), paths.map(str::to_owned).into());
        assert!(!names_path(DEFINITION, "/a/bas").unwrap());
        let options = "file=/a/old.qcow2,format=qcow2,if=none";
        assert!(holds(options, "/a/old.qcow2") && !holds(options, "/a/old"));
        assert!(names_path("<domain", "/a").is_err());
    }
}
