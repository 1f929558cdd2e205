//! The keys that hosts are known by: OpenSSH's `known_hosts` files, read as ssh reads them.
//!
//! A key that is not there makes a host unknown, another key of the same type makes it changed, a revoked one is refused
//! before anything else. Lines of certificate authorities know no host here: they are only named in the message.

use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit, Mac};
use russh::keys::ssh_key::known_hosts::{Entry, HostPatterns, Marker};
use russh::keys::ssh_key::public::KeyData;
use russh::keys::{Algorithm, PublicKey};
use sha1::Sha1;

use super::pattern;

/// Bytes of one file of known hosts, at most.
const KNOWN_HOSTS_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Every line that speaks of one host.
#[derive(Debug, Default)]
pub(super) struct KnownHost {
    lines: Vec<Line>,
}

#[derive(Debug)]
struct Line {
    path: PathBuf,
    number: usize,
    marker: Option<Marker>,
    key: PublicKey,
}

/// What the files say of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is the host's.
    Known,
    /// The host has no key of this type there.
    Unknown {
        /// Where a certificate authority is named that could vouch for it.
        authority: Option<String>,
    },
    /// Another key of this type is there.
    Changed {
        /// File and line.
        place: String,
    },
    /// It must not be used for this host.
    Revoked {
        /// File and line.
        place: String,
    },
}

/// Reads what the files say of a host. A file that is not there says nothing; a line that is no entry is skipped, as ssh does.
pub(super) fn read(files: &[PathBuf], host: &str, port: u16) -> std::io::Result<KnownHost> {
    let name = name_in_file(host, port);
    let mut known = KnownHost::default();
    for path in files {
        let Some(text) = read_file(path)? else { continue };
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let Ok(entry) = line.split_whitespace().collect::<Vec<_>>().join(" ").parse::<Entry>() else { continue };
            if names_host(entry.host_patterns(), &name) {
                known.lines.push(Line {
                    path: path.clone(),
                    number: index + 1,
                    marker: entry.marker().copied(),
                    key: entry.public_key().clone(),
                });
            }
        }
    }
    Ok(known)
}

/// A host as the files name it: `[host]:port` for any port but 22, in lower case.
pub(super) fn name_in_file(host: &str, port: u16) -> String {
    let host = host.to_ascii_lowercase();
    if port == 22 { host } else { format!("[{host}]:{port}") }
}

/// Writes a host's key down, at the end of a file that need not be there.
pub(super) fn add(file: Option<&PathBuf>, name: &str, key: &PublicKey) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    let file = file.ok_or_else(|| std::io::Error::other("no file of known hosts is configured"))?;
    if let Some(parent) = file.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    let text = key.to_openssh().map_err(std::io::Error::other)?;
    let unfinished = read_file(file)?.is_some_and(|text| !text.is_empty() && !text.ends_with('\n'));
    let line = format!("{}{name} {text}\n", if unfinished { "\n" } else { "" });
    let mut file = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(file)?;
    file.write_all(line.as_bytes())
}

impl KnownHost {
    /// What the files say of this key. Any line that has it makes it known, unless one revokes it.
    pub(super) fn judge(&self, offered: &KeyData) -> Verdict {
        let same = |line: &&Line| line.key.key_data() == offered;
        let is = |marker: Option<Marker>| move |line: &&Line| line.marker == marker;
        if let Some(line) = self.lines.iter().filter(is(Some(Marker::Revoked))).find(same) {
            return Verdict::Revoked { place: line.place() };
        }
        let plain = || self.lines.iter().filter(is(None));
        if plain().any(|line| same(&line)) {
            return Verdict::Known;
        }
        if let Some(line) = plain().find(|line| line.key.key_data().algorithm() == offered.algorithm()) {
            return Verdict::Changed { place: line.place() };
        }
        let authority = self.lines.iter().find(is(Some(Marker::CertAuthority))).map(Line::place);
        Verdict::Unknown { authority }
    }

    /// Types of the keys that are there: to be asked for first, so that the host shows one that can be judged.
    pub(super) fn algorithms(&self) -> Vec<Algorithm> {
        self.lines.iter().filter(|line| line.marker.is_none()).map(|line| line.key.algorithm()).collect()
    }
}

impl Line {
    fn place(&self) -> String {
        format!("{} line {}", self.path.display(), self.number)
    }
}

fn read_file(path: &Path) -> std::io::Result<Option<String>> {
    use std::io::Read;
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(KNOWN_HOSTS_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

fn names_host(patterns: &HostPatterns, name: &str) -> bool {
    match patterns {
        HostPatterns::Patterns(patterns) => pattern::list_matches(patterns.iter().map(String::as_str), name),
        HostPatterns::HashedName { salt, hash } => {
            Hmac::<Sha1>::new_from_slice(salt).is_ok_and(|mac| mac.chain_update(name).verify_slice(hash).is_ok())
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ONE: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
    const TWO: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILIG2T/B0l0gaqj3puu510tu9N1OkQ4znY3LYuEm5zCF";
    const HASHED: &str = "|1|O33ESRMWPVkMYIwJ1Uw+n877jTo=|nuuC5vEqXlEZ/8BXQR7m619W6Ak=";

    fn judge(content: &str, host: &str, port: u16, key: &str) -> Verdict {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("known_hosts");
        std::fs::write(&path, content).unwrap();
        let known = read(&[directory.path().join("missing"), path], host, port).unwrap();
        known.judge(key.parse::<PublicKey>().unwrap().key_data())
    }

    #[test]
    fn plain_hashed_and_port_forms_are_known() {
        assert_eq!(judge(&format!("web,10.0.0.1 {ONE} me@here\n"), "10.0.0.1", 22, ONE), Verdict::Known);
        assert_eq!(judge(&format!("[web]:2222   {ONE}\n"), "WEB", 2222, ONE), Verdict::Known);
        assert_eq!(judge(&format!("{HASHED} {TWO}\n"), "example.com", 22, TWO), Verdict::Known);
        assert_eq!(judge(&format!("*.org,!bad.org {ONE}\n"), "good.org", 22, ONE), Verdict::Known);
    }

    #[test]
    fn another_name_port_or_comment_does_not_make_it_known() {
        let unknown = Verdict::Unknown { authority: None };
        assert_eq!(judge(&format!("web {ONE}\n"), "db", 22, ONE), unknown);
        assert_eq!(judge(&format!("web {ONE}\n"), "web", 2222, ONE), unknown);
        assert_eq!(judge(&format!("{HASHED} {TWO}\n"), "example.org", 22, TWO), unknown);
        assert_eq!(judge(&format!("#web {ONE}\ngarbage\nweb notakey AAAA\n"), "web", 22, ONE), unknown);
        assert_eq!(judge(&format!("*.org,!bad.org {ONE}\n"), "bad.org", 22, ONE), unknown);
    }

    #[test]
    fn one_matching_line_of_several_is_enough_and_another_key_is_a_change() {
        assert_eq!(judge(&format!("web {TWO}\nweb {ONE}\n"), "web", 22, ONE), Verdict::Known);
        let Verdict::Changed { place } = judge(&format!("\nweb {TWO}\n"), "web", 22, ONE) else {
            unreachable!("the key changed")
        };
        assert!(place.ends_with("known_hosts line 2"), "{place}");
    }

    #[test]
    fn a_revoked_key_is_refused_even_if_it_is_known() {
        let content = format!("web {ONE}\n@revoked * {ONE}\n");
        assert!(matches!(judge(&content, "web", 22, ONE), Verdict::Revoked { .. }));
    }

    #[test]
    fn an_authority_makes_no_key_known() {
        let content = format!("@cert-authority * {ONE}\n");
        assert!(matches!(judge(&content, "web", 22, ONE), Verdict::Unknown { authority: Some(_) }));
    }
}
