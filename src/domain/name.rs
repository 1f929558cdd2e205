//! The name of a domain that kvm-clone makes. A value of this type is safe to send to libvirt and to build file names of.

use std::fmt;
use std::str::FromStr;

use journal_format::TxnId;

/// libvirt's own bound for a domain's name, in bytes: measured, of 246 it fails at the start with UEFI.
pub const DOMAIN_NAME_BYTES_MAX: usize = 245;
/// What a file name may have on every usual file system, in bytes.
pub const FILE_NAME_BYTES_MAX: usize = 255;
/// `.new-` and a whole transaction id: a clone beside the VM that it will replace.
const NEW_SUFFIX_BYTES: usize = 5 + 36;
/// The longest that is hung on a domain's name to make a file's: libvirt's `.xml.new`, its `_VARS.fd` with our `.new`,
/// `-` and a target of up to 16 bytes, `-1234abcd.qcow2`.
const FILE_SUFFIX_BYTES: usize = 1 + 16 + 15;
/// What is left for the name itself.
pub const NAME_BYTES_MAX: usize = smaller(
    DOMAIN_NAME_BYTES_MAX - NEW_SUFFIX_BYTES,
    smaller(FILE_NAME_BYTES_MAX - FILE_SUFFIX_BYTES, FILE_NAME_BYTES_MAX - NEW_SUFFIX_BYTES - ".xml.new".len()),
);

const fn smaller(a: usize, b: usize) -> usize {
    if a < b { a } else { b }
}

/// A name that libvirt accepts, that is a safe file name, and from which every name that a transaction derives is one too.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainName(String);

impl DomainName {
    /// Checks a name.
    pub fn new(name: &str) -> Result<Self, NameError> {
        let refuse = |why: NameFault| Err(NameError { name: name.to_owned(), why });
        if name.is_empty() {
            return refuse(NameFault::Empty);
        }
        if name == "." || name == ".." {
            return refuse(NameFault::Dots);
        }
        if name.contains('/') {
            return refuse(NameFault::Slash);
        }
        if let Some(character) = name.chars().find(|character| is_unprintable(*character)) {
            return refuse(NameFault::Unprintable(character));
        }
        if name.trim() != name {
            return refuse(NameFault::Blank);
        }
        if name.len() > NAME_BYTES_MAX {
            return refuse(NameFault::TooLong { bytes: name.len() });
        }
        Ok(Self(name.to_owned()))
    }

    /// The name of a clone of `source` for which the user gave none: `<source>_clone`.
    pub fn clone_of(source: &str) -> Result<Self, NameError> {
        Self::new(&format!("{source}_clone"))
    }

    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The clone's name while the VM that it replaces still has this one.
    pub fn beside(&self, txn: TxnId) -> String {
        format!("{}.new-{txn}", self.0)
    }

    /// The replaced VM's name when it is kept.
    pub fn replaced(&self, txn: TxnId) -> String {
        format!("{}.replaced-{}", self.0, txn.short())
    }

    /// The file name of a disk of the clone: `NAME-vda-1234abcd.qcow2`. `target` is at most 16 bytes of a target name.
    pub fn disk_file(&self, target: &str, txn: TxnId, extension: &str) -> String {
        format!("{}-{target}-{}.{extension}", self.0, txn.short())
    }

    /// The name of the UEFI variables' file that libvirt would make for this name; `extension` is `fd` or `qcow2`.
    pub fn variables_file(&self, extension: &str) -> String {
        format!("{}_VARS.{extension}", self.0)
    }
}

/// Characters that libvirt, XML or a terminal cannot take as part of a name.
fn is_unprintable(character: char) -> bool {
    // Beside the control characters: what XML cannot express, line separators, and marks that turn the reading direction.
    character.is_control()
        || matches!(character, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{fffe}' | '\u{ffff}')
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for DomainName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

/// A name that cannot be a clone's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} cannot be a VM's name: {why}. Choose another one with --new-name")]
pub struct NameError {
    /// The name.
    pub name: String,
    /// What is wrong with it.
    pub why: NameFault,
}

/// What is wrong with a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameFault {
    /// No characters.
    #[error("it is empty")]
    Empty,
    /// `.` or `..`.
    #[error("libvirt would take it for a directory and delete its own state there")]
    Dots,
    /// Holds a `/`.
    #[error("it holds a '/', and files are named after it")]
    Slash,
    /// Holds a character that does not show, or that XML cannot hold.
    #[error("it holds the unprintable character {0:?}")]
    Unprintable(char),
    /// Begins or ends with white space.
    #[error("it begins or ends with white space, which libvirt's tools would lose")]
    Blank,
    /// Too long for what is derived from it.
    #[error(
        "it has {bytes} bytes and may have {NAME_BYTES_MAX}: libvirt's bound is {DOMAIN_NAME_BYTES_MAX}, and a clone is called \
         NAME.new-<transaction> while it replaces a VM"
    )]
    TooLong {
        /// Its bytes.
        bytes: usize,
    },
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn fault(name: &str) -> NameFault {
        DomainName::new(name).unwrap_err().why
    }

    #[test]
    fn refuses_what_libvirt_or_a_file_system_cannot_take() {
        assert_eq!(fault(""), NameFault::Empty);
        assert_eq!(fault("."), NameFault::Dots);
        assert_eq!(fault(".."), NameFault::Dots);
        assert_eq!(fault("a/b"), NameFault::Slash);
        assert_eq!(fault("/"), NameFault::Slash);
        assert_eq!(fault("a\nb"), NameFault::Unprintable('\n'));
        assert_eq!(fault("a\0"), NameFault::Unprintable('\0'));
        assert_eq!(fault("a\u{7f}"), NameFault::Unprintable('\u{7f}'));
        assert_eq!(fault("a\u{85}"), NameFault::Unprintable('\u{85}'));
        assert_eq!(fault("a\u{202e}b"), NameFault::Unprintable('\u{202e}'));
        assert_eq!(fault(" a"), NameFault::Blank);
        assert_eq!(fault("a "), NameFault::Blank);
        assert_eq!(fault("\u{a0}a"), NameFault::Blank);
        assert_eq!(fault(&"x".repeat(NAME_BYTES_MAX + 1)), NameFault::TooLong { bytes: NAME_BYTES_MAX + 1 });
        assert_eq!(
            fault(&"ä".repeat(NAME_BYTES_MAX / 2 + 1)),
            NameFault::TooLong { bytes: NAME_BYTES_MAX / 2 * 2 + 2 }
        );
    }

    #[test]
    fn accepts_what_operators_use() {
        for name in ["web01", "web 01", "web.prod", "wéb", "-x", "web'\"<&>", "...", "web_clone", "a..b"] {
            assert_eq!(DomainName::new(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn everything_derived_from_the_longest_name_fits() {
        let name = DomainName::new(&"x".repeat(NAME_BYTES_MAX)).unwrap();
        let txn = TxnId([0xab; 16]);
        assert!(name.beside(txn).len() <= DOMAIN_NAME_BYTES_MAX);
        assert!(name.replaced(txn).len() <= DOMAIN_NAME_BYTES_MAX);
        assert!(name.replaced(txn).ends_with(".replaced-abababab"));
        for file in [
            format!("{}.xml.new", name.beside(txn)),
            format!("{}.new", name.variables_file("qcow2")),
            name.disk_file(&"v".repeat(16), txn, "qcow2"),
        ] {
            assert!(file.len() <= FILE_NAME_BYTES_MAX, "{}", file.len());
        }
    }

    #[test]
    fn the_message_says_why_and_what_to_do() {
        let text = DomainName::new("..").unwrap_err().to_string();
        assert!(
            text.contains("\"..\"") && text.contains("delete its own state") && text.contains("--new-name"),
            "{text}"
        );
    }
}
