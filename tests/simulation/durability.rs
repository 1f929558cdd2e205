//! What a power cut leaves of a filesystem: data that was synced, names whose directory was synced, and of the rest
//! whatever it likes.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::content::Content;
use crate::filesystem::{Body, Filesystem, NameChange, Node, NodeId, ROOT_INODE, Refusal, no_entry};
use crate::seed::Seed;

/// How much of what was not synced survives a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survival {
    /// Nothing.
    Nothing,
    /// Everything.
    Everything,
    /// Changes of names up to one of them, as a journaling filesystem in order.
    Prefix(u64),
    /// Any subset that its seed picks.
    Subset(u64),
}

impl Filesystem {
    /// What a power cut that spares nothing would leave of a file whose path has no symlink in it.
    pub fn durable_content(&self, path: &str) -> Option<&Content> {
        match &self.disk.get(&self.durable_node(path)?)?.body {
            Body::File(content) => Some(content),
            _ => None,
        }
    }

    /// Which file that is.
    pub fn durable_node(&self, path: &str) -> Option<NodeId> {
        self.node_in(&self.disk, path)
    }

    /// Mode, owner and group that it would have then.
    pub fn durable_attributes(&self, path: &str) -> Option<(u32, (u32, u32))> {
        let node = self.disk.get(&self.durable_node(path)?)?;
        Some((node.mode, (node.uid, node.gid)))
    }

    /// `fsync`: a file's data, or a directory's names.
    pub fn sync(&mut self, path: &str) -> Result<(), Refusal> {
        let Some(id) = self.real(path, true).and_then(|real| self.node_at(&real)) else { return no_entry(path) };
        self.sync_node(id);
        Ok(())
    }

    /// `fdatasync`: the bytes and the size, but not the times.
    pub fn sync_data(&mut self, path: &str) -> Result<(), Refusal> {
        let id = self.expect(path)?;
        self.syncs += 1;
        let body = self.live[&id].body.clone();
        let on_disk = self.disk.get_mut(&id).expect("every live node has a place on the disk");
        Rc::make_mut(on_disk).body = body;
        Ok(())
    }

    /// A byte turns on the disk, and nobody is told: no time changes.
    pub fn decay(&mut self, path: &str, offset: u64) {
        let Some(id) = self.find(path) else { return };
        for nodes in [&mut self.live, &mut self.disk] {
            if let Some(node) = nodes.get_mut(&id)
                && let Body::File(content) = &mut Rc::make_mut(node).body
                && offset < content.size()
            {
                let byte = content.read(offset, 1)[0];
                content.write(offset, &[!byte]);
            }
        }
    }

    fn sync_node(&mut self, id: NodeId) {
        self.syncs += 1;
        if !matches!(self.live[&id].body, Body::Directory(_)) {
            self.disk.insert(id, self.live[&id].clone());
            return;
        }
        // A rename is one effect: making it durable here makes it durable in its other directory, and with it what
        // happened there before.
        let mut directories = BTreeSet::from([id]);
        loop {
            let before = directories.len();
            for change in &self.pending {
                if let NameChange::Rename { from, to, .. } = change
                    && (directories.contains(&from.0) || directories.contains(&to.0))
                {
                    directories.extend([from.0, to.0]);
                }
            }
            if directories.len() == before {
                break;
            }
        }
        let touches = |change: &NameChange| match change {
            NameChange::Link { directory, .. } | NameChange::Unlink { directory, .. } => {
                directories.contains(directory)
            }
            NameChange::Rename { from, .. } => directories.contains(&from.0),
        };
        let (durable, pending): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending).into_iter().partition(touches);
        self.pending = pending;
        for change in durable {
            replay(&mut self.disk, &change, true);
        }
        let live = self.live[&id].clone();
        let on_disk = Rc::make_mut(self.disk.get_mut(&id).expect("every live node has a place on the disk"));
        (on_disk.mode, on_disk.uid, on_disk.gid) = (live.mode, live.uid, live.gid);
        (on_disk.mtime_ns, on_disk.ctime_ns) = (live.mtime_ns, live.ctime_ns);
    }

    /// `syncfs`.
    pub fn sync_mount(&mut self, path: &str) -> Result<(), Refusal> {
        let Some(real) = self.resolve(path) else { return no_entry(path) };
        let mount = self.mount_of(&real);
        let ids: Vec<NodeId> = self.live.keys().copied().filter(|id| id.mount == mount).collect();
        for id in ids {
            self.sync_node(id);
        }
        Ok(())
    }

    /// Everything is on the disks.
    pub fn sync_all(&mut self) {
        let ids: Vec<NodeId> = self.live.keys().copied().collect();
        for id in ids {
            self.sync_node(id);
        }
    }

    /// What was not durable is gone, but for what survives.
    pub fn cut_power(&mut self, survival: Survival) {
        let mut seed = match survival {
            Survival::Prefix(seed) | Survival::Subset(seed) => Seed::new(seed),
            Survival::Nothing | Survival::Everything => Seed::new(0),
        };
        let pending = std::mem::take(&mut self.pending);
        let prefix = match survival {
            Survival::Prefix(_) => seed.below(pending.len() as u64 + 1),
            _ => 0,
        };
        for (index, change) in pending.iter().enumerate() {
            let survives = match survival {
                Survival::Nothing => false,
                Survival::Everything => true,
                Survival::Prefix(_) => (index as u64) < prefix,
                Survival::Subset(_) => seed.chance(50),
            };
            if survives {
                replay(&mut self.disk, change, false);
            }
        }
        if survival != Survival::Nothing {
            for (id, live) in &self.live {
                let on_disk = self.disk.get_mut(id).expect("every live node has a place on the disk");
                let whole = survival == Survival::Everything;
                let on_disk = Rc::make_mut(on_disk);
                if let (Body::File(now), Body::File(synced)) = (&live.body, &mut on_disk.body) {
                    *synced = if whole { now.clone() } else { now.torn(synced, &mut seed) };
                }
                if whole || seed.chance(50) {
                    (on_disk.mode, on_disk.uid, on_disk.gid) = (live.mode, live.uid, live.gid);
                    (on_disk.mtime_ns, on_disk.ctime_ns) = (live.mtime_ns, live.ctime_ns);
                }
            }
        }
        self.keep_reachable();
        self.live = self.disk.clone();
        self.boots += 1;
    }

    /// Could this path be there after a power cut, whatever survives? And the content that is surely there then.
    pub fn after_power_cut(&self, survival: Survival) -> Self {
        let mut after = self.clone();
        after.cut_power(survival);
        after
    }

    fn keep_reachable(&mut self) {
        let mut reached = BTreeSet::new();
        let mut open: Vec<NodeId> = (0..self.mounts.len()).map(|mount| NodeId { mount, inode: ROOT_INODE }).collect();
        while let Some(id) = open.pop() {
            if reached.insert(id)
                && let Body::Directory(entries) = &self.disk[&id].body
            {
                open.extend(entries.values());
            }
        }
        self.disk.retain(|id, _| reached.contains(id));
    }
}

/// Puts a change of names on the disk. One that survived without what it was built on is dropped, unless it was synced.
fn replay(disk: &mut BTreeMap<NodeId, Rc<Node>>, change: &NameChange, synced: bool) {
    let entry = |disk: &BTreeMap<NodeId, Rc<Node>>, directory: &NodeId, name: &str| {
        disk.get(directory).and_then(|node| match &node.body {
            Body::Directory(entries) => entries.get(name).copied(),
            _ => None,
        })
    };
    let set = |disk: &mut BTreeMap<NodeId, Rc<Node>>, directory: &NodeId, name: &str, to: Option<NodeId>| {
        if let Some(node) = disk.get_mut(directory)
            && let Body::Directory(entries) = &mut Rc::make_mut(node).body
        {
            match to {
                Some(id) => entries.insert(name.to_owned(), id),
                None => entries.remove(name),
            };
        }
    };
    match change {
        NameChange::Link { directory, name, node } => {
            if synced || (disk.contains_key(node) && entry(disk, directory, name).is_none()) {
                set(disk, directory, name, Some(*node));
            }
        }
        NameChange::Unlink { directory, name, node } => {
            let empty = disk.get(node).is_none_or(|there| match &there.body {
                Body::Directory(entries) => entries.is_empty(),
                _ => true,
            });
            if synced || (empty && entry(disk, directory, name) == Some(*node)) {
                set(disk, directory, name, None);
            }
        }
        NameChange::Rename { from, to, node } => {
            if synced || entry(disk, &from.0, &from.1) == Some(*node) {
                set(disk, &from.0, &from.1, None);
                set(disk, &to.0, &to.1, Some(*node));
            }
        }
    }
}
