//! What programs ask of a filesystem.

use kvm_clone::world::DeviceFacts;

use super::*;

impl Filesystem {
    pub fn stat(&self, path: &str) -> Option<FileStat> {
        let id = self.find(path)?;
        let node = self.node(id);
        let (kind, size, allocated) = match &node.body {
            Body::File(content) if self.devices.contains(&id) => (FileKind::BlockDevice, content.size(), 0),
            Body::File(content) => (FileKind::File, content.size(), content.allocated_bytes()),
            Body::Directory(_) => (FileKind::Directory, BLOCK_BYTES, BLOCK_BYTES),
            Body::Symlink(target) => (FileKind::Symlink, target.len() as u64, 0),
        };
        Some(FileStat {
            kind,
            inode: Inode(id.inode),
            device: self.device(id.mount),
            size,
            allocated,
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            links: self.links(id).max(1),
            mtime_ns: if kind == FileKind::BlockDevice { 0 } else { node.mtime_ns },
            ctime_ns: node.ctime_ns,
        })
    }

    /// A file is a block device from now on.
    pub fn make_device(&mut self, path: &str) {
        let id = self.find(path).expect("it is there");
        self.change_file(id, 0, Content::allocate).expect("it is a file");
        self.devices.insert(id);
    }

    /// What names a block device for good; `None`: it is none.
    pub fn identity(&self, device: NodeId) -> Option<String> {
        let word = if self.exchanged.contains(&device) { "other" } else { "serial" };
        self.devices.contains(&device).then(|| format!("{word}-{}", device.inode))
    }

    pub fn device_facts(&self, path: &str) -> Option<DeviceFacts> {
        let node = self.find(path)?;
        Some(DeviceFacts {
            inode: Inode(node.inode),
            bytes: self.stat(path)?.size,
            identity: Some(self.identity(node)?),
            in_use: self.mounted.contains(&node),
            read_only: false,
        })
    }

    pub fn devices_like(&self, identity: &str) -> Vec<String> {
        let is_named =
            |path: &String| self.device_facts(path).is_some_and(|facts| facts.identity.as_deref() == Some(identity));
        self.walk().into_keys().filter(is_named).collect()
    }

    /// A device number is another one after every boot.
    fn device(&self, mount: usize) -> u64 {
        0x100 * (self.boots + 1) + mount as u64
    }

    pub fn read(&self, path: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, Refusal> {
        let Some(id) = self.find(path) else { return Ok(None) };
        match &self.node(id).body {
            Body::File(content) => Ok(Some(content.read(0, max_bytes))),
            _ => refuse(FaultKind::Unsupported, format!("{path} is not a regular file")),
        }
    }

    pub fn content(&self, path: &str) -> Option<&Content> {
        match &self.node(self.find(path)?).body {
            Body::File(content) => Some(content),
            _ => None,
        }
    }

    pub fn list(&self, directory: &str) -> Result<Option<Vec<String>>, Refusal> {
        let Some(id) = self.real(directory, true).and_then(|real| self.node_at(&real)) else { return Ok(None) };
        Ok(Some(self.entries(id)?.keys().cloned().collect()))
    }

    pub fn resolve(&self, path: &str) -> Option<String> {
        let real = self.real(path, true)?;
        self.node_at(&real).map(|_| real)
    }

    pub fn facts(&self, path: &str) -> Result<FilesystemFacts, Refusal> {
        let Some(real) = self.resolve(path) else { return no_entry(path) };
        let mount = self.mount_of(&real);
        Ok(FilesystemFacts {
            device: self.device(mount),
            available_bytes: self.available_bytes(mount),
            available_inodes: None,
            kind: self.mounts[mount].kind.to_owned(),
            read_only: false,
            writable: true,
            network: false,
        })
    }

    pub fn make_dir(&mut self, path: &str, mode: u32) -> Result<Inode, Refusal> {
        self.insert(path, mode, Body::Directory(BTreeMap::new()))
    }

    pub fn make_file(&mut self, path: &str, mode: u32, content: Content) -> Result<Inode, Refusal> {
        if self.changes_left.is_some() {
            let inode = self.insert(path, mode, Body::File(Content::default()))?;
            self.write_at(path, inode, 0, &content.bytes())?;
            return Ok(inode);
        }
        self.insert(path, mode, Body::File(content))
    }

    pub fn make_symlink(&mut self, path: &str, target: &str) -> Result<Inode, Refusal> {
        self.insert(path, 0o777, Body::Symlink(target.to_owned()))
    }

    fn change_file(&mut self, id: NodeId, new_bytes: u64, change: impl FnOnce(&mut Content)) -> Result<(), Refusal> {
        self.allow(id.mount, new_bytes)?;
        let now_ns = self.now_ns;
        let node = self.change(id);
        match &mut node.body {
            Body::File(content) => change(content),
            _ => return refuse(FaultKind::Unsupported, "not a regular file"),
        }
        (node.mtime_ns, node.ctime_ns) = (now_ns, now_ns);
        Ok(())
    }

    fn file(&self, id: NodeId) -> Result<&Content, Refusal> {
        match &self.node(id).body {
            Body::File(content) => Ok(content),
            _ => refuse(FaultKind::Unsupported, "not a regular file"),
        }
    }

    pub fn write_at(&mut self, path: &str, inode: Inode, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        let id = self.expect_inode(path, inode)?;
        let missing = self.file(id)?.blocks_missing(offset, bytes.len() as u64) * BLOCK_BYTES;
        if self.spend().is_err() {
            let half = &bytes[..bytes.len() / 2];
            self.change_file(id, missing, |content| content.write(offset, half))?;
            return refuse(FaultKind::Io, "broken off");
        }
        self.change_file(id, missing, |content| content.write(offset, bytes))
    }

    pub fn punch(&mut self, path: &str, inode: Inode, range: std::ops::Range<u64>) -> Result<(), Refusal> {
        let id = self.expect_inode(path, inode)?;
        self.spend()?;
        let zeros = vec![0; usize::try_from(range.end - range.start).expect("a few chunks")];
        let is_device = self.devices.contains(&id);
        self.change_file(
            id,
            0,
            |content| if is_device { content.write(range.start, &zeros) } else { content.punch(range) },
        )
    }

    pub fn set_size(&mut self, path: &str, inode: Inode, bytes: u64, allocate: bool) -> Result<(), Refusal> {
        let id = self.expect_inode(path, inode)?;
        self.spend()?;
        let missing = if allocate { self.file(id)?.blocks_missing(0, bytes) * BLOCK_BYTES } else { 0 };
        self.change_file(id, missing, |content| {
            content.set_size(bytes);
            if allocate {
                content.allocate();
            }
        })
    }

    pub fn set_attributes(&mut self, path: &str, inode: Inode, uid: u32, gid: u32, mode: u32) -> Result<(), Refusal> {
        let id = self.expect_inode(path, inode)?;
        self.spend()?;
        let now_ns = self.now_ns;
        let node = self.change(id);
        (node.uid, node.gid, node.mode, node.ctime_ns) = (uid, gid, mode, now_ns);
        Ok(())
    }

    pub fn link(&mut self, from: &str, to: &str) -> Result<(), Refusal> {
        let node = self.expect(from)?;
        let (directory, name) = self.parent(to)?;
        if self.entries(directory)?.contains_key(&name) {
            return refuse(FaultKind::AlreadyExists, format!("{to}: file exists"));
        }
        if directory.mount != node.mount {
            return refuse(FaultKind::Unsupported, "invalid cross-device link");
        }
        if self.mounts[node.mount].linkless || matches!(self.node(node).body, Body::Directory(_)) {
            return refuse(FaultKind::Unsupported, "operation not permitted");
        }
        self.allow(node.mount, 1)?;
        self.spend()?;
        self.add_name(directory, &name, node);
        self.change(node).ctime_ns = self.now_ns;
        self.pending.push(NameChange::Link { directory, name, node });
        Ok(())
    }

    pub fn rename(&mut self, from: &str, to: &str) -> Result<(), Refusal> {
        let (to_directory, to_name) = self.parent(to)?;
        if self.entries(to_directory)?.contains_key(&to_name) {
            return refuse(FaultKind::AlreadyExists, format!("{to}: file exists"));
        }
        self.rename_over(from, to)
    }

    /// `rename(2)`: takes the place of a file that is there.
    pub fn rename_over(&mut self, from: &str, to: &str) -> Result<(), Refusal> {
        let node = self.expect(from)?;
        let (from_directory, from_name) = self.parent(from)?;
        let (to_directory, to_name) = self.parent(to)?;
        if to_directory.mount != node.mount {
            return refuse(FaultKind::Unsupported, "invalid cross-device link");
        }
        self.spend()?;
        let replaced = self.entries(to_directory)?.get(&to_name).copied();
        self.drop_name(from_directory, &from_name);
        self.add_name(to_directory, &to_name, node);
        if let Some(replaced) = replaced {
            self.forget_unnamed(replaced);
        }
        self.change(node).ctime_ns = self.now_ns;
        self.pending.push(NameChange::Rename { from: (from_directory, from_name), to: (to_directory, to_name), node });
        Ok(())
    }

    fn remove(&mut self, path: &str, node: NodeId) -> Result<(), Refusal> {
        let (directory, name) = self.parent(path)?;
        self.spend()?;
        self.drop_name(directory, &name);
        self.forget_unnamed(node);
        self.pending.push(NameChange::Unlink { directory, name, node });
        Ok(())
    }

    pub fn unlink(&mut self, path: &str, inode: Inode) -> Result<(), Refusal> {
        if self.find(path).is_none() {
            return Ok(());
        }
        let id = self.expect_inode(path, inode)?;
        if matches!(self.node(id).body, Body::Directory(_)) {
            return refuse(FaultKind::Unsupported, format!("{path} is a directory"));
        }
        self.remove(path, id)
    }

    pub fn remove_dir(&mut self, path: &str) -> Result<(), Refusal> {
        let Some(id) = self.find(path) else { return Ok(()) };
        if !self.entries(id)?.is_empty() {
            return refuse(FaultKind::NotEmpty, format!("{path}: directory not empty"));
        }
        self.remove(path, id)
    }

    /// Every path with its node, directories included, mount points left out.
    pub fn walk(&self) -> BTreeMap<String, NodeId> {
        let mut paths = BTreeMap::new();
        for mount in 0..self.mounts.len() {
            let root = self.mounts[mount].path.trim_end_matches('/').to_owned();
            let mut open = vec![(root, NodeId { mount, inode: ROOT_INODE })];
            while let Some((path, id)) = open.pop() {
                if let Body::Directory(entries) = &self.live[&id].body {
                    for (name, child) in entries {
                        let child_path = format!("{path}/{name}");
                        paths.insert(child_path.clone(), *child);
                        open.push((child_path, *child));
                    }
                }
            }
        }
        paths
    }
}
