//! Single facts of libvirt's other documents, and of definitions whose rest does not matter. A host wrote them: they go
//! through the same bounded parser as a definition that is cloned.

use journal_format::DomainUuid;
use roxmltree::Node;

use super::DomainError;
use super::xml::{self, child, content};

/// What a storage pool's document says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolDocument {
    /// Its type, such as `dir`; empty where none is given.
    pub kind: String,
    /// Its target directory, for those that have one.
    pub path: Option<String>,
}

impl PoolDocument {
    /// Reads `/pool/@type` and `/pool/target/path`.
    pub fn parse(text: &str) -> Result<Self, DomainError> {
        let document = xml::parse(text)?;
        let root = document.root_element();
        let path = child(root, "target").and_then(|target| child(target, "path")).map(content);
        Ok(Self { kind: root.attribute("type").unwrap_or_default().to_owned(), path })
    }
}

/// Name and UUID of a definition, where they can be read.
pub fn name_and_uuid(definition: &str) -> (Option<String>, Option<DomainUuid>) {
    let Ok(document) = xml::parse(definition) else { return (None, None) };
    let text = |tag| child(document.root_element(), tag).map(trimmed);
    (text("name"), text("uuid").and_then(|uuid| uuid.parse().ok()))
}

/// The emulator that domain capabilities name (`/domainCapabilities/path`), if it is an absolute path.
pub fn emulator(capabilities: &str) -> Option<String> {
    let document = xml::parse(capabilities).ok()?;
    child(document.root_element(), "path").map(trimmed).filter(|path| path.starts_with('/'))
}

/// The file with the firmware's code, from a command line for QEMU as libvirt makes it; `None` when there is no firmware in
/// flash memory in it.
pub fn flash_code(command: &str) -> Option<String> {
    let objects = command.match_indices("{\"driver\"").filter_map(|(at, _)| {
        serde_json::Deserializer::from_str(&command[at..]).into_iter::<serde_json::Value>().next()?.ok()
    });
    let mut flash = objects.filter(|object| object["node-name"] == "libvirt-pflash0-storage");
    let newer = flash.find_map(|object| Some(object["filename"].as_str()?.to_owned()));
    // Before libvirt 5.10.
    let older = || {
        let drives = command.split_whitespace().filter_map(|word| word.strip_prefix("file="));
        let mut flash = drives.filter(|drive| drive.contains(",if=pflash") && drive.contains(",unit=0"));
        flash.find_map(|drive| Some(drive.split_once(",if=")?.0.to_owned()))
    };
    newer.or_else(older)
}

fn trimmed(node: Node<'_, '_>) -> String {
    content(node).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_in_flash_memory_is_found_in_both_forms() {
        let newer = r#"/usr/bin/qemu -blockdev '{"driver":"file","filename":"/usr/share/OVMF/OVMF_CODE_4M.fd","node-name":"libvirt-pflash0-storage","auto-read-only":true}' \
            -blockdev '{"driver":"file","filename":"/n/a_VARS.fd","node-name":"libvirt-pflash1-storage"}'"#;
        assert_eq!(flash_code(newer).as_deref(), Some("/usr/share/OVMF/OVMF_CODE_4M.fd"));
        let older = "qemu -drive file=/c/OVMF_CODE.fd,if=pflash,format=raw,unit=0,readonly=on -drive file=/n/v.fd,if=pflash,format=raw,unit=1";
        assert_eq!(flash_code(older).as_deref(), Some("/c/OVMF_CODE.fd"));
        for other in ["", "qemu -bios /b.bin", "{\"driver\"", "-blockdev '{\"driver\":\"file\",\"filename\":7}'"] {
            assert_eq!(flash_code(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_there_is_read_and_what_is_not_is_none() {
        let pool = PoolDocument::parse("<pool type='dir'><target><path>/srv/a &amp; b</path></target></pool>");
        assert_eq!(pool, Ok(PoolDocument { kind: "dir".into(), path: Some("/srv/a & b".into()) }));
        assert_eq!(PoolDocument::parse("<pool/>"), Ok(PoolDocument { kind: String::new(), path: None }));
        assert!(matches!(PoolDocument::parse("<pool"), Err(DomainError::NotXml { .. })));
        let uuid = "0198c0de-1111-7000-8000-0000deadbeef";
        let (name, read) = name_and_uuid(&format!("<domain><name> a </name><uuid>{uuid}</uuid></domain>"));
        assert_eq!((name.as_deref(), read), (Some("a"), uuid.parse().ok()));
        assert_eq!(name_and_uuid("<domain"), (None, None));
        assert_eq!(
            emulator("<domainCapabilities><path> /bin/q </path></domainCapabilities>").as_deref(),
            Some("/bin/q")
        );
        assert_eq!(emulator("<domainCapabilities><path>q</path></domainCapabilities>"), None);
    }
}
