//! The files of one host twice over: as programs see them now, and as a power cut would leave them.
//!
//! Data becomes durable by `sync` of the file, names by `sync` of the directory that holds them; a rename is one
//! effect. Inode numbers are given again once nothing remembers them, as ext4 does. It must never be kinder than a
//! real filesystem is.

mod operations;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use journal_format::Inode;
use kvm_clone::world::{FaultKind, FileKind, FileStat, FilesystemFacts};

use crate::content::{BLOCK_BYTES, Content};

/// Symlinks followed on one path, at most.
const SYMLINKS_MAX: u32 = 40;
pub const ROOT_INODE: u64 = 2;
const FIRST_FREE_INODE: u64 = 11;

/// A refusal: its kind, and what the kernel or libvirt would say.
pub type Refusal = (FaultKind, String);

/// A file of one host: mount and inode number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeId {
    pub mount: usize,
    pub inode: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    File(Content),
    Directory(BTreeMap<String, NodeId>),
    Symlink(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub body: Body,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime_ns: i128,
    pub ctime_ns: i128,
}

/// A change of names that is one effect, for programs and for a power cut.
#[derive(Debug, Clone)]
pub enum NameChange {
    Link { directory: NodeId, name: String, node: NodeId },
    Unlink { directory: NodeId, name: String, node: NodeId },
    Rename { from: (NodeId, String), to: (NodeId, String), node: NodeId },
}

/// A mounted filesystem.
#[derive(Debug, Clone)]
pub struct Mount {
    path: String,
    kind: &'static str,
    capacity_bytes: u64,
    /// Hard links are refused.
    linkless: bool,
    /// Every allocation is refused.
    full: bool,
}

#[derive(Debug, Clone)]
pub struct Filesystem {
    pub mounts: Vec<Mount>,
    pub live: BTreeMap<NodeId, Rc<Node>>,
    /// What is on the disks. Nodes whose names are not durable yet wait here too.
    pub disk: BTreeMap<NodeId, Rc<Node>>,
    /// Changes of names that are not durable, oldest first.
    pub pending: Vec<NameChange>,
    pub boots: u64,
    /// Files that somebody has open: their inode numbers are not given again.
    pub open: BTreeSet<NodeId>,
    /// Block devices: their bytes are kept like a file's, without holes, and no time says when they were written.
    pub devices: BTreeSet<NodeId>,
    /// Those that are mounted.
    pub mounted: BTreeSet<NodeId>,
    /// Devices that are others than their names say.
    pub exchanged: BTreeSet<NodeId>,
    pub now_ns: i128,
    /// Grows whenever something becomes durable.
    pub syncs: u64,
    /// Whoever changes files dies after so many changes more.
    changes_left: Option<u64>,
}

fn refuse<T>(kind: FaultKind, detail: impl Into<String>) -> Result<T, Refusal> {
    Err((kind, detail.into()))
}

pub fn no_entry<T>(path: &str) -> Result<T, Refusal> {
    refuse(FaultKind::NotFound, format!("{path}: no such file or directory"))
}

/// No path begins like this.
fn unmounted(path: &str) -> String {
    format!("unmounted:{path}")
}

/// Directory and last name of an absolute path.
pub fn split(path: &str) -> (&str, &str) {
    let at = path.rfind('/').expect("a path is absolute");
    (if at == 0 { "/" } else { &path[..at] }, &path[at + 1..])
}

impl Filesystem {
    /// A root and further mounts: path, type, capacity in bytes.
    pub fn new(mounts: &[(&str, &'static str, u64)]) -> Self {
        let mut files = Self {
            mounts: Vec::new(),
            live: BTreeMap::new(),
            disk: BTreeMap::new(),
            pending: Vec::new(),
            boots: 0,
            open: BTreeSet::new(),
            devices: BTreeSet::new(),
            mounted: BTreeSet::new(),
            exchanged: BTreeSet::new(),
            now_ns: 0,
            syncs: 0,
            changes_left: None,
        };
        for (index, (path, kind, capacity_bytes)) in mounts.iter().enumerate() {
            let id = NodeId { mount: index, inode: ROOT_INODE };
            let node = Rc::new(Node {
                body: Body::Directory(BTreeMap::new()),
                mode: 0o755,
                uid: 0,
                gid: 0,
                mtime_ns: 0,
                ctime_ns: 0,
            });
            files.live.insert(id, node.clone());
            files.disk.insert(id, node);
            files.mounts.push(Mount {
                path: (*path).to_owned(),
                kind,
                capacity_bytes: *capacity_bytes,
                linkless: false,
                full: false,
            });
        }
        files
    }

    pub fn refuse_links(&mut self, path: &str) {
        let mount = self.mount_of(path);
        self.mounts[mount].linkless = true;
    }

    /// Takes a mount away; its mount point is an empty directory of what is below.
    pub fn unmount(&mut self, path: &str) {
        let mount = self.mount_of(path);
        assert_eq!(self.mounts[mount].path, path, "something is mounted there");
        self.mounts[mount].path = unmounted(path);
        let parents: Vec<_> = path.match_indices('/').skip(1).map(|(at, _)| &path[..at]).chain([path]).collect();
        for directory in parents {
            if self.node_at(directory).is_none() {
                self.make_dir(directory, 0o711).expect("an empty mount point");
            }
            self.sync(split(directory).0).expect("its parent is there");
        }
    }

    /// Mounts again what was taken away.
    pub fn mount(&mut self, path: &str) {
        self.remove_dir(path).expect("an empty mount point");
        self.sync(split(path).0).expect("its parent is there");
        let mount = self.mounts.iter_mut().find(|mount| mount.path == unmounted(path));
        path.clone_into(&mut mount.expect("it was mounted before").path);
    }

    pub fn break_off_after(&mut self, changes: Option<u64>) {
        self.changes_left = changes;
    }

    /// One change more.
    fn spend(&mut self) -> Result<(), Refusal> {
        match &mut self.changes_left {
            Some(0) => refuse(FaultKind::Io, "broken off"),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    pub fn set_full(&mut self, full: bool) {
        self.mounts.iter_mut().for_each(|mount| mount.full = full);
    }

    pub fn mount_of(&self, path: &str) -> usize {
        let holds = |mount: &Mount| {
            mount.path == "/"
                || path == mount.path
                || path.strip_prefix(&mount.path).is_some_and(|rest| rest.starts_with('/'))
        };
        (0..self.mounts.len())
            .filter(|index| holds(&self.mounts[*index]))
            .max_by_key(|index| self.mounts[*index].path.len())
            .expect("the root is mounted")
    }

    /// The node at a path with no symlink in it.
    pub fn node_at(&self, path: &str) -> Option<NodeId> {
        self.node_in(&self.live, path)
    }

    pub fn node_in(&self, nodes: &BTreeMap<NodeId, Rc<Node>>, path: &str) -> Option<NodeId> {
        let mount = self.mount_of(path);
        let below = if self.mounts[mount].path == "/" { path } else { &path[self.mounts[mount].path.len()..] };
        let mut id = NodeId { mount, inode: ROOT_INODE };
        for name in below.split('/').filter(|name| !name.is_empty()) {
            match &nodes.get(&id)?.body {
                Body::Directory(entries) => id = *entries.get(name)?,
                _ => return None,
            }
        }
        Some(id)
    }

    /// The path behind symlinks; the last name is followed only where asked.
    pub fn real(&self, path: &str, follow_last: bool) -> Option<String> {
        let mut rest: Vec<String> = path.split('/').rev().filter(|n| !n.is_empty()).map(str::to_owned).collect();
        let mut real = String::new();
        let mut followed = 0;
        // What is at `real`, so that no path is walked anew for each of its names.
        let mut at = self.node_at("/");
        while let Some(name) = rest.pop() {
            if name == ".." {
                real.truncate(real.rfind('/').unwrap_or(0));
                at = self.node_at(&real);
                continue;
            }
            let here = format!("{real}/{name}");
            let node = self.node_below(at, &here, &name);
            if let (Some(id), true) = (node, follow_last || !rest.is_empty())
                && let Body::Symlink(target) = &self.live[&id].body
            {
                followed += 1;
                if followed > SYMLINKS_MAX {
                    return None;
                }
                if target.starts_with('/') {
                    real.clear();
                    at = self.node_at("/");
                }
                rest.extend(target.split('/').rev().filter(|n| !n.is_empty() && *n != ".").map(str::to_owned));
                continue;
            }
            real = here;
            at = node;
        }
        Some(if real.is_empty() { "/".to_owned() } else { real })
    }

    /// The node at a path, symlinks on the way followed, the last name not.
    pub fn find(&self, path: &str) -> Option<NodeId> {
        // A path that leads somewhere by names of directories alone has no symlink in it.
        self.node_at(path).or_else(|| self.node_at(&self.real(path, false)?))
    }

    /// What has this name in a directory, or is mounted over it.
    fn node_below(&self, directory: Option<NodeId>, path: &str, name: &str) -> Option<NodeId> {
        if let Some(mount) = self.mounts.iter().position(|mount| mount.path == path) {
            return Some(NodeId { mount, inode: ROOT_INODE });
        }
        match &self.live.get(&directory?)?.body {
            Body::Directory(entries) => entries.get(name).copied(),
            _ => None,
        }
    }

    fn parent(&self, path: &str) -> Result<(NodeId, String), Refusal> {
        let (directory, name) = split(path);
        match self.real(directory, true).and_then(|real| self.node_at(&real)) {
            Some(id) if matches!(self.live[&id].body, Body::Directory(_)) => Ok((id, name.to_owned())),
            _ => no_entry(path),
        }
    }

    pub fn expect(&self, path: &str) -> Result<NodeId, Refusal> {
        self.find(path).map_or_else(|| no_entry(path), Ok)
    }

    fn expect_inode(&self, path: &str, inode: Inode) -> Result<NodeId, Refusal> {
        let id = self.expect(path)?;
        if id.inode == inode.0 {
            return Ok(id);
        }
        refuse(FaultKind::Changed, format!("{path} is inode {}, not {}", id.inode, inode.0))
    }

    pub fn node(&self, id: NodeId) -> &Node {
        &self.live[&id]
    }

    fn change(&mut self, id: NodeId) -> &mut Node {
        Rc::make_mut(self.live.get_mut(&id).expect("a found node is there"))
    }

    fn entries(&self, id: NodeId) -> Result<&BTreeMap<String, NodeId>, Refusal> {
        match &self.live[&id].body {
            Body::Directory(entries) => Ok(entries),
            _ => refuse(FaultKind::Unsupported, "not a directory"),
        }
    }

    fn links(&self, node: NodeId) -> u64 {
        let holds = |body: &Body| match body {
            Body::Directory(entries) => entries.values().filter(|id| **id == node).count() as u64,
            _ => 0,
        };
        self.live.values().map(|there| holds(&there.body)).sum()
    }

    fn used_bytes(&self, mount: usize) -> u64 {
        let of = |node: &Node| match &node.body {
            Body::File(content) => content.allocated_bytes(),
            _ => BLOCK_BYTES,
        };
        self.live.iter().filter(|(id, _)| id.mount == mount).map(|(_, node)| of(node)).sum()
    }

    fn available_bytes(&self, mount: usize) -> u64 {
        if self.mounts[mount].full {
            return 0;
        }
        self.mounts[mount].capacity_bytes.saturating_sub(self.used_bytes(mount))
    }

    fn allow(&self, mount: usize, bytes: u64) -> Result<(), Refusal> {
        if bytes > 0 && self.available_bytes(mount) < bytes {
            return refuse(FaultKind::NoSpace, "no space left on device");
        }
        Ok(())
    }

    fn free_inode(&self, mount: usize) -> u64 {
        let mut used: BTreeSet<NodeId> = self.live.keys().chain(&self.open).copied().collect();
        for node in self.disk.values() {
            if let Body::Directory(entries) = &node.body {
                used.extend(entries.values());
            }
        }
        for change in &self.pending {
            match change {
                NameChange::Link { directory, node, .. } | NameChange::Unlink { directory, node, .. } => {
                    used.extend([*directory, *node]);
                }
                NameChange::Rename { from, to, node } => used.extend([from.0, to.0, *node]),
            }
        }
        (FIRST_FREE_INODE..).find(|inode| !used.contains(&NodeId { mount, inode: *inode })).expect("u64 is large")
    }

    fn insert(&mut self, path: &str, mode: u32, body: Body) -> Result<Inode, Refusal> {
        let (directory, name) = self.parent(path)?;
        if self.entries(directory)?.contains_key(&name) || self.mounts.iter().any(|mount| mount.path == path) {
            return refuse(FaultKind::AlreadyExists, format!("{path}: file exists"));
        }
        let bytes = match &body {
            Body::File(content) => content.allocated_bytes().max(1),
            _ => BLOCK_BYTES,
        };
        self.allow(directory.mount, bytes)?;
        self.spend()?;
        let id = NodeId { mount: directory.mount, inode: self.free_inode(directory.mount) };
        let (mtime_ns, ctime_ns) = (self.now_ns, self.now_ns);
        // The inode itself is in the same journal transaction as its name; its data is not.
        let bare = match &body {
            Body::File(_) => Body::File(Content::default()),
            Body::Directory(_) => Body::Directory(BTreeMap::new()),
            Body::Symlink(target) => Body::Symlink(target.clone()),
        };
        let node = Node { body, mode, uid: 0, gid: 0, mtime_ns, ctime_ns };
        self.disk.insert(id, Rc::new(Node { body: bare, ..node.clone() }));
        self.live.insert(id, Rc::new(node));
        self.add_name(directory, &name, id);
        self.pending.push(NameChange::Link { directory, name, node: id });
        Ok(Inode(id.inode))
    }

    fn add_name(&mut self, directory: NodeId, name: &str, node: NodeId) {
        let now_ns = self.now_ns;
        let parent = self.change(directory);
        parent.mtime_ns = now_ns;
        if let Body::Directory(entries) = &mut parent.body {
            entries.insert(name.to_owned(), node);
        }
    }

    fn drop_name(&mut self, directory: NodeId, name: &str) {
        let now_ns = self.now_ns;
        let parent = self.change(directory);
        parent.mtime_ns = now_ns;
        if let Body::Directory(entries) = &mut parent.body {
            entries.remove(name);
        }
    }

    fn forget_unnamed(&mut self, node: NodeId) {
        if self.links(node) == 0 {
            self.live.remove(&node);
        } else {
            self.change(node).ctime_ns = self.now_ns;
        }
    }
}
