//! What a host looks like from outside, without asking kvm-clone: files, VMs, pools. Two looks can be compared.
//!
//! Left out is only what libvirt itself changes by running: its logs, sockets, process ids, leases, running guests'
//! directories. Empty directories below /var/lib/kvm-clone count for nothing.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::Host;

/// Directories that are looked at, with all that is below them.
const ROOTS: [&str; 7] =
    ["/etc/libvirt", "/var/lib/libvirt", "/var/lib/kvm-clone", "/var/tmp", "/tmp", "/srv", "/run/kvm-clone"];
/// Where empty directories count for nothing.
const OWN_STATE: &str = "/var/lib/kvm-clone";
/// Directories that libvirt changes by itself.
const LIBVIRTS_OWN: [&str; 2] = ["/var/lib/libvirt/dnsmasq", "/var/lib/libvirt/qemu/channel"];
/// This repository, which the hosts see too.
const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

/// A host as it was when it was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outside {
    host: String,
    /// A line for each file and directory, by its path.
    pub files: BTreeMap<PathBuf, String>,
    /// For each VM, by its name: state, autostart, snapshots, whole definition.
    pub domains: BTreeMap<String, String>,
    /// For each pool, by its name: state and volumes.
    pub pools: BTreeMap<String, String>,
}

impl Outside {
    pub(super) fn of(host: &Host) -> Self {
        let root = host.path("/");
        let mut files = BTreeMap::new();
        for start in ROOTS {
            look_at(&root, Path::new(start), &mut files);
        }
        Self { host: host.name().to_owned(), files, domains: domains(host), pools: pools(host) }
    }

    /// What is different in `later`, a line each; empty when nothing is.
    pub fn changes(&self, later: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        let (before, after) = (files_by_text(&self.files), files_by_text(&later.files));
        compare("file", &before, &after, &mut changes);
        compare("domain", &self.domains, &later.domains, &mut changes);
        compare("pool", &self.pools, &later.pools, &mut changes);
        changes
    }

    /// Panics, with what is different, unless `later` looks the same.
    #[track_caller]
    pub fn assert_same(&self, later: &Self, when: &str) {
        let changes = self.changes(later);
        assert!(changes.is_empty(), "host {} is not as it was, {when}:\n{}", self.host, changes.join("\n"));
    }
}

fn files_by_text(files: &BTreeMap<PathBuf, String>) -> BTreeMap<String, String> {
    files.iter().map(|(path, line)| (path.display().to_string(), line.clone())).collect()
}

fn compare(kind: &str, before: &BTreeMap<String, String>, after: &BTreeMap<String, String>, changes: &mut Vec<String>) {
    for (name, then) in before {
        match after.get(name) {
            None => changes.push(format!("- {kind} {name}: {then}")),
            Some(now) if now != then => changes.push(format!("! {kind} {name}:\n    was {then}\n    is  {now}")),
            Some(_) => {}
        }
    }
    for (name, now) in after.iter().filter(|(name, _)| !before.contains_key(*name)) {
        changes.push(format!("+ {kind} {name}: {now}"));
    }
}

/// Records what is at `path` on the host and below it. Says whether there is anything that counts.
fn look_at(root: &Path, path: &Path, files: &mut BTreeMap<PathBuf, String>) -> bool {
    let real = root.join(path.strip_prefix("/").expect("absolute"));
    // Gone between the listing and now: it is not there.
    let Ok(metadata) = fs::symlink_metadata(&real) else { return false };
    if left_out(path, &metadata) {
        return false;
    }
    let mut line = format!("mode {:o}, owner {}:{}", metadata.mode(), metadata.uid(), metadata.gid());
    if metadata.is_dir() {
        let mut names: Vec<_> =
            fs::read_dir(&real).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.file_name())).collect();
        names.sort();
        let mut counts = !path.starts_with(OWN_STATE);
        for name in names {
            counts |= look_at(root, &path.join(name), files);
        }
        if counts {
            files.insert(path.to_owned(), format!("directory, {line}"));
        }
        return counts;
    }
    if metadata.is_symlink() {
        write!(line, ", to {}", fs::read_link(&real).unwrap_or_default().display()).expect("write to a string");
    } else if metadata.is_file() {
        write!(
            line,
            ", {} bytes, inode {}, {} names, mtime {}.{:09}, BLAKE3 {}",
            metadata.size(),
            metadata.ino(),
            metadata.nlink(),
            metadata.mtime(),
            metadata.mtime_nsec(),
            hash_file(&real)
        )
        .expect("write to a string");
    }
    files.insert(path.to_owned(), line);
    true
}

fn left_out(path: &Path, metadata: &Metadata) -> bool {
    let kind = metadata.file_type();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    kind.is_socket()
        || kind.is_fifo()
        || Path::new(name.as_ref()).extension().is_some_and(|extension| extension == "pid")
        || LIBVIRTS_OWN.iter().any(|own| path == Path::new(own))
        || path == Path::new(REPOSITORY)
        || (path.parent() == Some(Path::new("/var/lib/libvirt/qemu")) && name.starts_with("domain-"))
}

/// BLAKE3 of a file, holes read as the zeros they are.
pub fn hash_file(path: &Path) -> blake3::Hash {
    let mut file = File::open(path).unwrap_or_else(|error| panic!("open {}: {error}", path.display()));
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
        if count == 0 {
            return hasher.finalize();
        }
        hasher.update(&buffer[..count]);
    }
}

fn domains(host: &Host) -> BTreeMap<String, String> {
    let names = host.virsh(["list", "--all", "--name"]);
    names
        .lines()
        .filter(|name| !name.is_empty())
        .map(|name| {
            let facts = host.virsh(["list", "--all", "--autostart", "--name"]);
            let autostart = facts.lines().any(|line| line == name);
            let state = host.virsh(["domstate", name]);
            let snapshots = host.virsh(["snapshot-list", "--name", name]);
            let definition = host.virsh(["dumpxml", "--inactive", "--security-info", name]);
            (name.to_owned(), format!("{state}, autostart {autostart}, snapshots [{snapshots}], {definition}"))
        })
        .collect()
}

fn pools(host: &Host) -> BTreeMap<String, String> {
    let names = host.virsh(["pool-list", "--all", "--name"]);
    names
        .lines()
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let volumes = host.try_virsh(["vol-list", name]);
            let mut lines: Vec<_> = String::from_utf8_lossy(&volumes.stdout).lines().map(str::to_owned).collect();
            lines.sort();
            (name.to_owned(), format!("active {}, volumes {lines:?}", volumes.status.success()))
        })
        .collect()
}
