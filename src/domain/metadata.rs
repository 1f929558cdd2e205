//! Our element in a domain's `<metadata>`: what made the clone, from what, and what it looked like when it was finished.
//!
//! Together with the UUID it is what makes a domain ours. It is changed with `virDomainSetMetadata`, never by defining again.

use journal_format::{ChunkValue, ControllerId, DomainUuid, Inode, TxnId};
use roxmltree::Node;

use super::DomainError;
use super::xml::{child, elements, escape_attribute, parse};

/// The namespace of the element. The number at its end changes when an older program would misread it.
pub const NAMESPACE: &str = "https://kvm-clone.org/ns/domain/1";
/// The prefix: `key` of `virDomainSetMetadata`.
pub const PREFIX: &str = "kvm-clone";

/// How far a marked domain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MarkState {
    /// Its transaction is not through: it was not "made by kvm-clone".
    Unfinished,
    /// It has its name.
    Finished,
}

/// Size and time of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageMark {
    /// Bytes.
    pub size: u64,
    /// Nanoseconds since 1970.
    pub mtime_ns: i128,
}

/// Size, time and content of a source's image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceMark {
    /// Size and time when the bytes were read.
    pub image: ImageMark,
    /// Plain BLAKE3 of the image.
    pub root: ChunkValue,
}

/// One disk of a clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskMark {
    /// Such as `vda`.
    pub target: String,
    /// The source's image.
    pub source: SourceMark,
    /// The clone's image once all was durable.
    pub clone: ImageMark,
    /// Its inode, where it is a file.
    pub inode: Option<Inode>,
}

/// What tells whether a source's definition, and its snapshots (each with whether it is the current one), are still those that
/// were cloned.
pub fn definition_value<'a>(definition: &str, snapshots: impl Iterator<Item = (&'a str, bool)>) -> ChunkValue {
    let mut hasher = blake3::Hasher::new();
    hasher.update(definition.as_bytes());
    for (snapshot, current) in snapshots {
        hasher.update(blake3::hash(snapshot.as_bytes()).as_bytes()).update(&[u8::from(current)]);
    }
    ChunkValue(*hasher.finalize().as_bytes())
}

/// The whole element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloneMark {
    /// The transaction that made the domain.
    pub txn: TxnId,
    /// Whose transaction it is.
    pub controller: ControllerId,
    /// The source host's machine-id.
    pub source_machine_id: String,
    /// The source host's address, as the user named it: for people.
    pub source_host: String,
    /// The source VM's UUID.
    pub source_uuid: DomainUuid,
    /// BLAKE3 of the source's definition and snapshots, as they were then.
    pub source_definition: Option<ChunkValue>,
    /// The domain's own UUID: a mark that names another one was copied by somebody and says nothing.
    pub clone_uuid: DomainUuid,
    /// It has its source's UUID: only one of the two may run.
    pub same_identity: bool,
    /// How far it is.
    pub state: MarkState,
    /// The disks that were copied, in the order of the definition.
    pub disks: Vec<DiskMark>,
    /// The images that it stands on and that were there, which are not its own.
    pub bases: Vec<DiskMark>,
}

impl CloneMark {
    /// The element for `virDomainSetMetadata`: without a namespace, which libvirt puts in from `NAMESPACE` and `PREFIX`.
    pub fn to_element(&self) -> Result<String, DomainError> {
        self.write("", "")
    }

    /// The element for the inside of a definition: what libvirt makes of the other one.
    pub fn to_qualified_element(&self) -> Result<String, DomainError> {
        self.write(&format!("{PREFIX}:"), &format!(" xmlns:{PREFIX}='{NAMESPACE}'"))
    }

    fn write(&self, prefix: &str, declaration: &str) -> Result<String, DomainError> {
        let state = match self.state {
            MarkState::Unfinished => "unfinished",
            MarkState::Finished => "finished",
        };
        let identity = if self.same_identity { " identity='source'" } else { "" };
        let definition = self.source_definition.map(|value| format!(" definition='{value}'")).unwrap_or_default();
        let controller = &self.controller;
        let mut disks = String::new();
        for (name, mark) in
            self.disks.iter().map(|disk| ("disk", disk)).chain(self.bases.iter().map(|base| ("base", base)))
        {
            disks += &mark.write(prefix, name)?;
        }
        Ok(format!(
            "<{prefix}clone{declaration} transaction='{}' state='{state}' uuid='{}'{identity}>\
             <{prefix}controller machine='{}' state-dir='{}'/>\
             <{prefix}source host='{}' machine='{}' uuid='{}'{definition}/>{disks}</{prefix}clone>",
            self.txn,
            self.clone_uuid,
            escape_attribute("machine-id", &controller.machine_id)?,
            escape_attribute("state directory", &controller.state_dir)?,
            escape_attribute("host", &self.source_host)?,
            escape_attribute("machine-id", &self.source_machine_id)?,
            self.source_uuid,
        ))
    }

    /// Reads the mark of a domain from its definition. `None`: it has none. Attributes and elements that are not known here are
    /// passed over: a later program may have added them.
    pub fn read(definition: &str) -> Result<Option<Self>, DomainError> {
        let document = parse(definition)?;
        let marks = child(document.root_element(), "metadata").into_iter().flat_map(elements);
        let mut marks = marks.filter(|element| element.tag_name().namespace() == Some(NAMESPACE));
        let Some(mark) = marks.next() else { return Ok(None) };
        if marks.next().is_some() {
            return Err(DomainError::BadMark { why: "it is there twice".into() });
        }
        read_mark(mark).map(Some)
    }
}

impl DiskMark {
    fn write(&self, prefix: &str, name: &str) -> Result<String, DomainError> {
        let (source, clone) = (self.source.image, self.clone);
        let inode = self.inode.map(|inode| format!(" inode='{}'", inode.0)).unwrap_or_default();
        Ok(format!(
            "<{prefix}{name} target='{}'>\
             <{prefix}source size='{}' mtime-ns='{}' root='{}'/><{prefix}image size='{}' mtime-ns='{}'{inode}/>\
             </{prefix}{name}>",
            escape_attribute("target", &self.target)?,
            source.size,
            source.mtime_ns,
            self.source.root,
            clone.size,
            clone.mtime_ns,
        ))
    }
}

fn read_mark(mark: Node<'_, '_>) -> Result<CloneMark, DomainError> {
    if mark.tag_name().name() != "clone" {
        return Err(DomainError::BadMark { why: format!("it is called <{}>", mark.tag_name().name()) });
    }
    let state = match required(mark, "state")? {
        "unfinished" => MarkState::Unfinished,
        "finished" => MarkState::Finished,
        other => return Err(DomainError::BadMark { why: format!("its state is {other:?}") }),
    };
    let controller = part(mark, "controller")?;
    let source = part(mark, "source")?;
    let disks = |name: &'static str| elements(mark).filter(move |element| is_ours(*element, name)).map(read_disk);
    Ok(CloneMark {
        txn: value(mark, "transaction")?,
        controller: ControllerId {
            machine_id: required(controller, "machine")?.to_owned(),
            state_dir: required(controller, "state-dir")?.to_owned(),
        },
        source_machine_id: required(source, "machine")?.to_owned(),
        source_host: required(source, "host")?.to_owned(),
        source_uuid: value(source, "uuid")?,
        source_definition: source.attribute("definition").and_then(read_root),
        clone_uuid: value(mark, "uuid")?,
        same_identity: mark.attribute("identity") == Some("source"),
        state,
        disks: disks("disk").collect::<Result<_, _>>()?,
        bases: disks("base").collect::<Result<_, _>>()?,
    })
}

fn read_disk(disk: Node<'_, '_>) -> Result<DiskMark, DomainError> {
    let source = part(disk, "source")?;
    let root = required(source, "root")?;
    let root = read_root(root).ok_or_else(|| DomainError::BadMark { why: format!("root is {root:?}") })?;
    let image = part(disk, "image")?;
    Ok(DiskMark {
        target: required(disk, "target")?.to_owned(),
        source: SourceMark { image: read_image(source)?, root },
        clone: read_image(image)?,
        inode: image.attribute("inode").map(|_| value(image, "inode").map(Inode)).transpose()?,
    })
}

fn read_image(node: Node<'_, '_>) -> Result<ImageMark, DomainError> {
    Ok(ImageMark { size: value(node, "size")?, mtime_ns: value(node, "mtime-ns")? })
}

fn read_root(text: &str) -> Option<ChunkValue> {
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut root = [0; 32];
    for (at, byte) in root.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(at * 2..at * 2 + 2)?, 16).ok()?;
    }
    Some(ChunkValue(root))
}

fn is_ours(node: Node<'_, '_>, name: &str) -> bool {
    node.tag_name().namespace() == Some(NAMESPACE) && node.tag_name().name() == name
}

fn part<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Result<Node<'a, 'i>, DomainError> {
    let found = elements(node).find(|element| is_ours(*element, name));
    found.ok_or_else(|| DomainError::BadMark { why: format!("it has no <{name}>") })
}

fn required<'a>(node: Node<'a, '_>, name: &str) -> Result<&'a str, DomainError> {
    node.attribute(name)
        .ok_or_else(|| DomainError::BadMark { why: format!("<{}> has no {name}", node.tag_name().name()) })
}

fn value<T: std::str::FromStr>(node: Node<'_, '_>, name: &str) -> Result<T, DomainError> {
    let text = required(node, name)?;
    text.parse().map_err(|_| DomainError::BadMark { why: format!("{name} is {text:?}") })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn mark() -> CloneMark {
        let image = ImageMark { size: 1 << 30, mtime_ns: 1_700_000_000_123_456_789 };
        CloneMark {
            txn: TxnId([1; 16]),
            controller: ControllerId { machine_id: "m1".into(), state_dir: "/var/lib/it's & <so>".into() },
            source_machine_id: "m2".into(),
            source_host: "root@a:22".into(),
            source_uuid: DomainUuid([2; 16]),
            source_definition: Some(ChunkValue([0x17; 32])),
            clone_uuid: DomainUuid([3; 16]),
            same_identity: false,
            state: MarkState::Unfinished,
            disks: vec![
                DiskMark {
                    target: "vda".into(),
                    source: SourceMark { image, root: ChunkValue([0xa5; 32]) },
                    clone: ImageMark { size: 1 << 30, mtime_ns: -1 },
                    inode: Some(Inode(77)),
                },
                DiskMark {
                    target: "vdb".into(),
                    source: SourceMark { image, root: ChunkValue([0; 32]) },
                    clone: image,
                    inode: None,
                },
            ],
            bases: vec![DiskMark {
                target: "vdb/1".into(),
                source: SourceMark { image, root: ChunkValue([7; 32]) },
                clone: image,
                inode: Some(Inode(u64::MAX)),
            }],
        }
    }

    fn definition(inside: &str) -> String {
        format!("<domain><metadata>{inside}</metadata></domain>")
    }

    #[test]
    fn reads_what_it_wrote() {
        for (state, same_identity) in [(MarkState::Unfinished, false), (MarkState::Finished, true)] {
            let mark = CloneMark { same_identity, state, ..mark() };
            let text = definition(&mark.to_qualified_element().unwrap());
            assert_eq!(CloneMark::read(&text).unwrap(), Some(mark));
        }
    }

    #[test]
    fn both_forms_are_the_same_element_but_for_the_namespace() {
        let plain = mark().to_element().unwrap();
        let qualified = mark().to_qualified_element().unwrap();
        assert!(!plain.contains(PREFIX) && !plain.contains("xmlns"));
        let stripped =
            qualified.replace(&format!(" xmlns:{PREFIX}='{NAMESPACE}'"), "").replace(&format!("{PREFIX}:"), "");
        assert_eq!(plain, stripped);
    }

    #[test]
    fn any_prefix_serves() {
        let text = mark().to_qualified_element().unwrap().replace("kvm-clone:", "k:").replace(":kvm-clone=", ":k=");
        assert_eq!(CloneMark::read(&definition(&text)).unwrap(), Some(mark()));
        let text = mark().to_element().unwrap().replacen("<clone", &format!("<clone xmlns='{NAMESPACE}'"), 1);
        assert_eq!(CloneMark::read(&definition(&text)).unwrap(), Some(mark()));
    }

    #[test]
    fn a_source_without_snapshots_is_its_definition_and_any_change_of_one_is_another() {
        let of = |snapshots: &[(&'static str, bool)]| definition_value("<domain/>", snapshots.iter().copied());
        assert_eq!(of(&[]), ChunkValue(*blake3::hash(b"<domain/>").as_bytes()));
        let all = [of(&[]), of(&[("one", false)]), of(&[("one", true)]), of(&[("two", false)]), of(&[("", false); 2])];
        for (at, value) in all.iter().enumerate() {
            assert!(!all[..at].contains(value), "{at}");
        }
    }

    #[test]
    fn none_is_none() {
        assert_eq!(CloneMark::read("<domain/>").unwrap(), None);
        assert_eq!(CloneMark::read(&definition("<clone xmlns='https://elsewhere' state='finished'/>")).unwrap(), None);
    }

    #[test]
    fn damage_is_named() {
        let good = mark().to_qualified_element().unwrap();
        let twice = format!("{good}{good}");
        let root = "a5".repeat(32);
        let damaged = [
            (good.replace("state='unfinished'", "state='done'"), "\"done\""),
            (good.replace(" state='unfinished'", ""), "no state"),
            (good.replace("mtime-ns='-1'", "mtime-ns='soon'"), "\"soon\""),
            (good.replace("inode='77'", "inode='-77'"), "inode is \"-77\""),
            (good.replace(&root, "a5"), "root"),
            (good.replace(&root, &"é".repeat(32)), "root"),
            (good.replace("kvm-clone:controller", "kvm-clone:other"), "no <controller>"),
            (good.replace("kvm-clone:clone", "kvm-clone:clown"), "<clown>"),
            (twice, "twice"),
        ];
        for (text, what) in damaged {
            let error = CloneMark::read(&definition(&text)).unwrap_err();
            assert!(matches!(error, DomainError::BadMark { .. }), "{text}");
            assert!(error.to_string().contains(what), "{error} should name {what}");
        }
    }
}
