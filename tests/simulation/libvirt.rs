//! libvirt of one host, as measured: definitions are files whose directory it never syncs, what it was asked it may
//! carry out late, and a restart believes what is on the disk.

use std::collections::{BTreeMap, BTreeSet};

use journal_format::DomainUuid;
use kvm_clone::world::{DomainBrief, DomainFacts, DomainState, FaultKind, NetworkFacts, PoolFacts};

use crate::content::Content;
use crate::definition::Definition;
use crate::filesystem::{Filesystem, NodeId, Refusal, split};
use crate::snapshots::{self, Snapshots};

/// Where libvirt keeps definitions.
pub const DEFINITIONS: &str = "/etc/libvirt/qemu";
/// Where it keeps which of them start with the host.
pub const AUTOSTART: &str = "/etc/libvirt/qemu/autostart";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    pub definition: Definition,
    pub active: bool,
    pub snapshots: Snapshots,
}

/// What a saved memory begins with once it is whole.
const SAVED: &str = "whole memory";

#[derive(Debug, Clone)]
pub struct Pool {
    pub name: String,
    pub path: String,
    /// What it saw when it looked last.
    pub volumes: Vec<String>,
}

#[derive(Debug, Clone, Default)]
pub struct Libvirt {
    pub domains: BTreeMap<DomainUuid, Domain>,
    pub pools: Vec<Pool>,
    pub networks: Vec<String>,
    /// Its socket is gone.
    pub down: bool,
    /// What each running guest has in its memory: a number of its own for each boot.
    pub memories: BTreeMap<DomainUuid, u64>,
    pub boots: u64,
    /// Guests that do not listen when they are asked to shut down.
    pub deaf: BTreeSet<DomainUuid>,
}

fn refuse<T>(kind: FaultKind, detail: impl Into<String>) -> Result<T, Refusal> {
    Err((kind, detail.into()))
}

fn definition_path(name: &str) -> String {
    format!("{DEFINITIONS}/{name}.xml")
}

fn autostart_path(name: &str) -> String {
    format!("{AUTOSTART}/{name}.xml")
}

impl Libvirt {
    fn named(&self, name: &str) -> Option<DomainUuid> {
        self.domains.iter().find(|(_, domain)| domain.definition.name == name).map(|(uuid, _)| *uuid)
    }

    fn expect(&self, uuid: DomainUuid) -> Result<&Domain, Refusal> {
        self.domains.get(&uuid).map_or_else(|| refuse(FaultKind::NotFound, format!("no domain {uuid}")), Ok)
    }

    pub fn briefs(&self) -> Vec<DomainBrief> {
        self.domains.iter().map(|(uuid, domain)| brief(*uuid, domain)).collect()
    }

    pub fn facts(&self, files: &Filesystem, uuid: DomainUuid) -> Option<DomainFacts> {
        let domain = self.domains.get(&uuid)?;
        Some(DomainFacts {
            brief: brief(uuid, domain),
            persistent: true,
            autostart: files.stat(&autostart_path(&domain.definition.name)).is_some(),
            managed_save: false,
            saving: false,
            snapshots: u32::try_from(domain.snapshots.len()).unwrap(),
            checkpoints: 0,
            definition: domain.definition.text.clone(),
        })
    }

    pub fn facts_named(&self, files: &Filesystem, name: &str) -> Option<DomainFacts> {
        self.facts(files, self.named(name)?)
    }

    pub fn define(&mut self, files: &mut Filesystem, text: &str) -> Result<(), Refusal> {
        let definition = Definition::parse(text)?;
        if let Some(other) = self.named(&definition.name).filter(|other| *other != definition.uuid) {
            let detail = format!("domain '{}' already exists with uuid {other}", definition.name);
            return refuse(FaultKind::AlreadyExists, detail);
        }
        if let Some(there) = self.domains.get(&definition.uuid)
            && there.definition.name != definition.name
        {
            let detail = format!("domain '{}' is already defined with uuid {}", there.definition.name, definition.uuid);
            return refuse(FaultKind::Refused, detail);
        }
        save(files, &definition)?;
        let there = self.domains.remove(&definition.uuid);
        let active = there.as_ref().is_some_and(|there| there.active);
        let snapshots = there.map(|there| there.snapshots).unwrap_or_default();
        self.domains.insert(definition.uuid, Domain { definition, active, snapshots });
        Ok(())
    }

    fn redefine(
        &mut self,
        files: &mut Filesystem,
        uuid: DomainUuid,
        change: impl FnOnce(&Definition) -> Result<Definition, Refusal>,
    ) -> Result<(), Refusal> {
        let definition = change(&self.expect(uuid)?.definition)?;
        save(files, &definition)?;
        if let Some(domain) = self.domains.get_mut(&uuid) {
            domain.definition = definition;
        }
        Ok(())
    }

    pub fn set_metadata(
        &mut self,
        files: &mut Filesystem,
        uuid: DomainUuid,
        element: Option<&str>,
    ) -> Result<(), Refusal> {
        self.redefine(files, uuid, |definition| definition.with_metadata(element))
    }

    pub fn set_title(&mut self, files: &mut Filesystem, uuid: DomainUuid, title: Option<&str>) -> Result<(), Refusal> {
        self.redefine(files, uuid, |definition| definition.with_title(title))
    }

    pub fn undefine(&mut self, files: &mut Filesystem, uuid: DomainUuid) -> Result<(), Refusal> {
        let Some(domain) = self.domains.get(&uuid) else { return Ok(()) };
        if domain.active {
            return refuse(FaultKind::InUse, "the domain is running");
        }
        snapshots::remove_all(files, &domain.definition.name, &domain.snapshots)?;
        for path in [definition_path(&domain.definition.name), autostart_path(&domain.definition.name)] {
            if let Some(stat) = files.stat(&path) {
                files.unlink(&path, stat.inode)?;
            }
        }
        self.domains.remove(&uuid);
        Ok(())
    }

    pub fn set_autostart(&mut self, files: &mut Filesystem, uuid: DomainUuid, on: bool) -> Result<(), Refusal> {
        let name = &self.expect(uuid)?.definition.name;
        let link = autostart_path(name);
        match (files.stat(&link), on) {
            (None, true) => {
                if files.stat(AUTOSTART).is_none() {
                    files.make_dir(AUTOSTART, 0o755)?;
                }
                files.make_symlink(&link, &definition_path(name)).map(|_| ())
            }
            (Some(stat), false) => files.unlink(&link, stat.inode),
            _ => Ok(()),
        }
    }

    /// Starts a domain, unless somebody's image locks are on its disks. A guest writes at once.
    pub fn start(
        &mut self,
        files: &mut Filesystem,
        image_locks: &BTreeSet<NodeId>,
        uuid: DomainUuid,
    ) -> Result<(), Refusal> {
        let domain = self.expect(uuid)?;
        if domain.active {
            return Ok(());
        }
        let disks = domain.definition.disks.clone();
        for disk in &disks {
            let Some(node) = files.find(disk) else {
                return refuse(FaultKind::Refused, format!("Cannot access storage file '{disk}'"));
            };
            // QEMU opens a device in a `/dev` of its own, where it is another inode.
            let locked = image_locks.contains(&node) && !files.devices.contains(&node);
            if locked || self.written().any(|path| files.find(path) == Some(node)) {
                return refuse(FaultKind::InUse, format!("{disk}: Failed to get \"write\" lock"));
            }
        }
        // The guest's own process writes, whatever becomes of the daemon meanwhile.
        files.break_off_after(None);
        for disk in &disks {
            if let Some(stat) = files.stat(disk).filter(|stat| stat.size > 0) {
                files.write_at(disk, stat.inode, 0, b"booted")?;
            }
        }
        self.boots += 1;
        self.run(uuid, self.boots);
        Ok(())
    }

    fn run(&mut self, uuid: DomainUuid, memory: u64) {
        if let Some(domain) = self.domains.get_mut(&uuid) {
            domain.active = true;
            self.memories.insert(uuid, memory);
        }
    }

    /// Its process ends, whatever was in its memory.
    pub fn stop(&mut self, uuid: DomainUuid) {
        if let Some(domain) = self.domains.get_mut(&uuid) {
            domain.active = false;
        }
        self.memories.remove(&uuid);
    }

    /// The guest shuts down: it writes to its disks a last time.
    pub fn power_off(&mut self, files: &mut Filesystem, uuid: DomainUuid) {
        let disks = self.domains.get(&uuid).map(|domain| domain.definition.disks.clone()).unwrap_or_default();
        files.break_off_after(None);
        for disk in disks {
            if let Some(stat) = files.stat(&disk).filter(|stat| stat.size > 0) {
                let _ = files.write_at(&disk, stat.inode, 0, b"halted");
            }
        }
        self.stop(uuid);
    }

    /// `virsh save`: the file first, and only then the process ends.
    pub fn save(&mut self, files: &mut Filesystem, uuid: DomainUuid, path: &str) -> Result<(), Refusal> {
        let domain = self.expect(uuid)?;
        let Some(memory) = self.memories.get(&uuid).filter(|_| domain.active) else {
            return refuse(FaultKind::Refused, "domain is not running");
        };
        let whole = format!("{SAVED} {uuid} {memory}");
        if let Some(stale) = files.stat(path) {
            files.unlink(path, stale.inode)?;
        }
        let inode = files.make_file(path, 0o600, Content::of(b"part"))?;
        files.write_at(path, inode, 0, whole.as_bytes())?;
        self.stop(uuid);
        Ok(())
    }

    /// `virsh restore`: on from where it was saved. Nothing is written to a disk.
    pub fn restore(
        &mut self,
        files: &mut Filesystem,
        image_locks: &BTreeSet<NodeId>,
        path: &str,
    ) -> Result<(), Refusal> {
        let text = files.content(path).map(|content| String::from_utf8_lossy(&content.bytes()).into_owned());
        let Some(text) = text else { return refuse(FaultKind::NotFound, format!("no {path}")) };
        let parts = text.strip_prefix(SAVED).map(|rest| rest.split_whitespace().collect::<Vec<_>>());
        let Some((uuid, memory)) = parts.as_deref().and_then(|parts| match parts {
            [uuid, memory] => Some((uuid.parse().ok()?, memory.parse().ok()?)),
            _ => None,
        }) else {
            return refuse(FaultKind::Refused, "save image is incomplete");
        };
        let domain = self.expect(uuid)?;
        if domain.active {
            return refuse(FaultKind::Refused, "domain is already active");
        }
        for disk in &domain.definition.disks {
            if files.find(disk).is_none_or(|node| image_locks.contains(&node)) {
                return refuse(FaultKind::InUse, format!("{disk}: Failed to get \"write\" lock"));
            }
        }
        self.run(uuid, memory);
        Ok(())
    }

    /// `virDomainRename`: the new file is written before the old one is removed.
    pub fn rename(&mut self, files: &mut Filesystem, uuid: DomainUuid, name: &str) -> Result<(), Refusal> {
        let domain = self.expect(uuid)?;
        let old = domain.definition.name.clone();
        if old == name {
            return Ok(());
        }
        if domain.active {
            return refuse(FaultKind::Refused, "cannot rename active domain");
        }
        if self.named(name).is_some() {
            return refuse(FaultKind::AlreadyExists, format!("domain {name} exists already"));
        }
        let (definition, snapshots) = (domain.definition.with_name(name)?, domain.snapshots.clone());
        snapshots::save_all(files, name, &snapshots)?;
        save(files, &definition)?;
        if let Some(link) = files.stat(&autostart_path(&old)) {
            if files.stat(&autostart_path(name)).is_none() {
                files.make_symlink(&autostart_path(name), &definition_path(name))?;
            }
            files.unlink(&autostart_path(&old), link.inode)?;
        }
        let path = definition_path(&old);
        if let Some(stat) = files.stat(&path) {
            files.unlink(&path, stat.inode)?;
        }
        snapshots::remove_all(files, &old, &snapshots)?;
        if let Some(domain) = self.domains.get_mut(&uuid) {
            domain.definition = definition;
        }
        Ok(())
    }

    pub fn live_definition(&self, uuid: DomainUuid) -> Option<String> {
        self.domains.get(&uuid).filter(|domain| domain.active).map(|domain| domain.definition.text.clone())
    }

    /// Files that running guests write to.
    pub fn written(&self) -> impl Iterator<Item = &String> {
        self.domains.values().filter(|domain| domain.active).flat_map(|domain| &domain.definition.disks)
    }

    pub fn network_facts(&self) -> Vec<NetworkFacts> {
        self.networks.iter().map(|name| NetworkFacts { name: name.clone(), active: true }).collect()
    }

    pub fn pool_facts(&self) -> Vec<PoolFacts> {
        let facts = |pool: &Pool| PoolFacts {
            name: pool.name.clone(),
            active: true,
            kind: "dir".to_owned(),
            path: Some(pool.path.clone()),
        };
        self.pools.iter().map(facts).collect()
    }

    /// Where a volume is that the pool knows.
    pub fn volume_path(&self, pool: &str, volume: &str) -> Option<String> {
        let pool = self.pools.iter().find(|known| known.name == pool)?;
        pool.volumes.iter().any(|known| known == volume).then(|| format!("{}/{volume}", pool.path))
    }

    pub fn refresh_pool(&mut self, files: &Filesystem, name: &str) -> Result<(), Refusal> {
        let Some(pool) = self.pools.iter_mut().find(|pool| pool.name == name) else {
            return refuse(FaultKind::NotFound, format!("no storage pool {name}"));
        };
        pool.volumes = files.list(&pool.path)?.unwrap_or_default();
        Ok(())
    }

    /// The daemon starts: it believes what it finds. Guests went on running, unless the host was booted.
    pub fn load(&mut self, files: &mut Filesystem, booted: bool) {
        let running: BTreeSet<DomainUuid> =
            self.domains.iter().filter(|(_, domain)| domain.active && !booted).map(|(uuid, _)| *uuid).collect();
        self.domains.clear();
        for name in files.list(DEFINITIONS).ok().flatten().unwrap_or_default() {
            let path = format!("{DEFINITIONS}/{name}");
            let Some(content) = name.strip_suffix(".xml").and_then(|_| files.content(&path)) else { continue };
            let text = String::from_utf8_lossy(&content.bytes()).into_owned();
            // One that does not parse, or has another name than its file, is not loaded; of two with one UUID, one is.
            if let Ok(definition) = Definition::parse(&text)
                && definition_path(&definition.name) == path
            {
                let active = running.contains(&definition.uuid);
                let snapshots = snapshots::load(files, &definition.name);
                self.domains.entry(definition.uuid).or_insert(Domain { definition, active, snapshots });
            }
        }
        let names: Vec<String> = self.pools.iter().map(|pool| pool.name.clone()).collect();
        for name in names {
            let _ = self.refresh_pool(files, &name);
        }
        if booted {
            self.memories.clear();
            let starting: Vec<DomainUuid> = self
                .domains
                .iter()
                .filter(|(_, domain)| files.stat(&autostart_path(&domain.definition.name)).is_some())
                .map(|(uuid, _)| *uuid)
                .collect();
            for uuid in starting {
                // Nobody holds an image lock on a host that was just booted.
                let _ = self.start(files, &BTreeSet::new(), uuid);
            }
        }
    }
}

fn brief(uuid: DomainUuid, domain: &Domain) -> DomainBrief {
    let state = if domain.active { DomainState::Active } else { DomainState::ShutOff };
    DomainBrief { uuid, name: domain.definition.name.clone(), state }
}

/// `virXMLSaveFile`: a new file, synced, takes the place of the old one. The directory is never synced.
fn save(files: &mut Filesystem, definition: &Definition) -> Result<(), Refusal> {
    let path = definition_path(&definition.name);
    let new = format!("{path}.new");
    debug_assert_eq!(split(&path).0, DEFINITIONS);
    if let Some(stale) = files.stat(&new) {
        files.unlink(&new, stale.inode)?;
    }
    files.make_file(&new, 0o600, Content::of(definition.text.as_bytes()))?;
    files.sync(&new)?;
    files.rename_over(&new, &path)
}
