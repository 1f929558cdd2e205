//! What a host looks like at one moment, names and domains, and in words what another moment has otherwise.

use std::collections::BTreeMap;

use super::Changed;
use crate::content::Content;
use crate::filesystem::{Body, NodeId};
use crate::machine::Machine;
use crate::old_verdict::Domains;

pub(super) const OUR_STATE: &str = "/var/lib/kvm-clone";

/// One name on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub node: NodeId,
    /// `None` for a directory: what is in it has names of its own.
    body: Option<Body>,
    pub attributes: (u32, u32, u32),
    mtime_ns: Option<i128>,
}

impl Entry {
    /// A file's bytes.
    pub fn content(&self) -> Option<&Content> {
        match self.body.as_ref()? {
            Body::File(content) => Some(content),
            _ => None,
        }
    }
}

/// A host's names and domains.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    pub entries: BTreeMap<String, Entry>,
    /// Definition by name, and what its guest has in its memory while it runs.
    pub domains: Domains,
    /// How often the host was booted.
    pub boots: u64,
}

impl Snapshot {
    pub fn of(machine: &Machine) -> Self {
        let files = &machine.files;
        let entry = |node: NodeId| {
            let there = files.node(node);
            let directory = matches!(there.body, Body::Directory(_));
            Entry {
                node,
                body: (!directory).then(|| there.body.clone()),
                attributes: (there.mode, there.uid, there.gid),
                mtime_ns: (!directory).then_some(there.mtime_ns),
            }
        };
        let entries: BTreeMap<_, _> = files.walk().into_iter().map(|(path, node)| (path, entry(node))).collect();
        let domains = machine.libvirt.domains.iter().map(|(uuid, domain)| {
            let memory = machine.libvirt.memories.get(uuid).copied().filter(|_| domain.active);
            (domain.definition.name.clone(), (domain.definition.text.clone(), memory))
        });
        Self { entries, domains: domains.collect(), boots: files.boots }.without_our_empty_directories()
    }

    /// Empty directories under our own state directory may stay.
    fn without_our_empty_directories(mut self) -> Self {
        let ours = |path: &str| path == OUR_STATE || path.starts_with("/var/lib/kvm-clone/");
        let paths: Vec<String> = self.entries.keys().rev().filter(|path| ours(path)).cloned().collect();
        for path in paths {
            let empty = !self.entries.keys().any(|other| other.strip_prefix(&path).is_some_and(|r| r.starts_with('/')));
            if self.entries[&path].body.is_none() && empty {
                self.entries.remove(&path);
            }
        }
        self
    }

    /// Somebody else changed this path, or this domain: from now on that is what must stay.
    pub fn accept(&mut self, now: &Self, changed: &Changed) {
        for path in &changed.paths {
            match now.entries.get(path) {
                Some(entry) => self.entries.insert(path.clone(), entry.clone()),
                None => self.entries.remove(path),
            };
        }
        self.boots = now.boots;
        for name in &changed.domains {
            match now.domains.get(name) {
                Some(domain) => self.domains.insert(name.clone(), domain.clone()),
                None => self.domains.remove(name),
            };
        }
    }

    /// Without what doing something a second time may change: times, and inode numbers but for which names share one.
    pub fn without_times_and_numbers(mut self) -> Self {
        let mut numbers = BTreeMap::new();
        for entry in self.entries.values_mut() {
            let next = numbers.len() as u64;
            entry.node.inode = *numbers.entry(entry.node).or_insert(next);
            entry.mtime_ns = None;
        }
        self
    }

    /// Nothing is otherwise.
    pub fn is(&self, other: &Self) -> Result<(), String> {
        complain("something changed", &self.differences(other, &|_| false))
    }

    /// In words, what is not as it was; names for which `excused` holds are passed over.
    pub(super) fn differences(&self, now: &Self, excused: &dyn Fn(&str) -> bool) -> Vec<String> {
        let mut found = Vec::new();
        for (path, entry) in &self.entries {
            match now.entries.get(path) {
                None if !excused(path) => found.push(format!("{path} is gone")),
                Some(there) if there != entry && !excused(path) => found.push(format!("{path} changed")),
                _ => {}
            }
        }
        for path in now.entries.keys() {
            if !self.entries.contains_key(path) && !excused(path) {
                found.push(format!("{path} was left"));
            }
        }
        for (name, domain) in &self.domains {
            match now.domains.get(name) {
                None if !excused(name) => found.push(format!("domain {name} is gone")),
                // A power cut stops a guest.
                Some(there) if there.0 == domain.0 && now.boots > self.boots => {}
                Some(there) if there != domain && !excused(name) => found.push(format!("domain {name} changed")),
                _ => {}
            }
        }
        for name in now.domains.keys() {
            if !self.domains.contains_key(name) && !excused(name) {
                found.push(format!("domain {name} was left"));
            }
        }
        found
    }
}

pub(super) fn complain(when: &str, differences: &[String]) -> Result<(), String> {
    if differences.is_empty() { Ok(()) } else { Err(format!("{when}: {}", differences.join(", "))) }
}
