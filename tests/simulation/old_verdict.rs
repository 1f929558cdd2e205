//! The judge of an old VM: whole and in place until the commit mark, at most stopped; then replaced by the clone, or kept whole
//! under its other name. Never neither, never both under one name.

use std::collections::BTreeMap;

use journal_format::{ImageRoleV1, OldFileFateV1, OldFileV1, ReplacedV1, StopModeV1};

use crate::content::Content;
use crate::filesystem::Filesystem;
use crate::libvirt::{AUTOSTART, DEFINITIONS};
use crate::machine::Machine;
use crate::old_vm;
use crate::oracle::{Oracle, Snapshot};

/// What a guest writes when it boots or halts, at the beginning of each disk.
const WRITTEN_BY_GUESTS_BYTES: u64 = 6;

impl Oracle {
    fn old_definition_path(&self) -> String {
        format!("{DEFINITIONS}/{}.xml", self.plan.request.new_name)
    }

    /// Names that belong to the old VM, or to what becomes of it.
    pub fn names_of_old(&self) -> Vec<String> {
        let Some(old) = &self.plan.replaced else { return Vec::new() };
        let name = &self.plan.request.new_name;
        let mut names = vec![old.kept_name.clone(), name.clone(), self.old_definition_path()];
        names.push(format!("{DEFINITIONS}/{}.xml", old.kept_name));
        names.push(format!("{AUTOSTART}/{name}.xml"));
        names.extend(old.files.iter().flat_map(|file| places(old, file)));
        names
    }

    /// After every operation: before the mark nothing of the old VM goes, and never both are gone.
    pub fn watch_old(&self, machine: &Machine, marked: bool) -> Result<(), String> {
        let Some(old) = self.plan.replaced.as_ref().filter(|_| !self.old_touched) else { return Ok(()) };
        let files = &machine.files;
        let name = &self.plan.request.new_name;
        let names = |content: Option<&Content>, uuid: &str| content.is_some_and(|content| content.contains(uuid));
        let path = self.old_definition_path();
        let uuid = old.uuid.to_string();
        let defined = machine.libvirt.domains.get(&old.uuid).is_some_and(|domain| domain.definition.name == *name);
        let durably_defined = names(files.durable_content(&path), &uuid);
        let at = |path: &String, file: &OldFileV1| files.stat(path).is_some_and(|stat| stat.inode == file.stamp.inode);
        let there = old.files.iter().all(|file| places(old, file).iter().any(|path| at(path, file)));
        let durably = |file: &OldFileV1| places(old, file).iter().any(|path| files.durable_node(path).is_some());
        let durably_there = old.files.iter().all(durably);
        let whole = defined && there;
        if !whole && !marked && !self.committed {
            return Err("the old VM is not whole any more, and there is no commit mark".to_owned());
        }
        let durably_whole = durably_defined && durably_there;
        if !durably_whole && !self.committed {
            return Err("a power cut would take the old VM, and the commit mark is not durable".to_owned());
        }
        if there && durably_there {
            return Ok(());
        }
        let clone = self.plan.clone_uuid.to_string();
        if names(files.content(&path), &clone) && names(files.durable_content(&path), &clone) {
            return Ok(());
        }
        Err("files of the old VM are deleted, and the clone has not got its name durably".to_owned())
    }

    /// The world before, with what stopping and starting the old VM may have changed: nothing, if it was never stopped.
    pub fn before_with_old(&self, now: &Snapshot) -> Result<Snapshot, String> {
        let mut before = self.before[1].clone();
        let Some(old) = &self.plan.replaced else { return Ok(before) };
        let name = &self.plan.request.new_name;
        let (Some(was), Some(is)) = (before.domains.get(name).cloned(), now.domains.get(name).cloned()) else {
            return Ok(before);
        };
        let cut = now.boots > self.boots;
        if was == is && !cut {
            return Ok(before);
        }
        if was.1.is_some() && is.1 != was.1 && !cut && !self.old_touched {
            if is.1.is_none() {
                return Err("the old VM was running, and is not running again".to_owned());
            }
            if old.stop == StopModeV1::Save {
                return Err("the old VM runs again, but not with its memory".to_owned());
            }
        }
        if was.1.is_none() && is.1.is_some() && !cut && !self.old_touched {
            return Err("the old VM was off, and runs now".to_owned());
        }
        before.domains.insert(name.clone(), (was.0, is.1));
        self.adopt_guest_writes(old, &mut before, now)?;
        Ok(before)
    }

    /// What its guest wrote at the beginning of its disks is what is expected.
    fn adopt_guest_writes(&self, old: &ReplacedV1, before: &mut Snapshot, now: &Snapshot) -> Result<(), String> {
        for file in &old.files {
            let (Some(was), Some(is)) = (before.entries.get(&file.path), now.entries.get(&file.path)) else { continue };
            let beheaded = |content: Option<&Content>| {
                content.map(|content| content.read(WRITTEN_BY_GUESTS_BYTES, content.size() - WRITTEN_BY_GUESTS_BYTES))
            };
            if (was.node, was.attributes) != (is.node, is.attributes)
                || beheaded(was.content()) != beheaded(is.content())
            {
                return Err(format!("{} changed otherwise than by its guest", file.path));
            }
            before.entries.insert(file.path.clone(), is.clone());
        }
        Ok(())
    }

    /// After the commit: gone with the files that were to be deleted, or kept whole under its other name.
    pub fn old_gave_way(&self, machine: &Machine, now: &Snapshot) -> Result<(), String> {
        let Some(old) = &self.plan.replaced else { return Ok(()) };
        let name = &self.plan.request.new_name;
        let mut before = self.before[1].clone();
        self.adopt_guest_writes(old, &mut before, now)?;
        let there = |file: &str| now.entries.get(file) == before.entries.get(file);
        let Some(kept) = machine.libvirt.domains.get(&old.uuid) else {
            if old.keep {
                return Err("the old VM was to be kept, and is gone".to_owned());
            }
            for file in &old.files {
                match file.fate {
                    OldFileFateV1::Deleted { .. }
                        if now.entries.contains_key(&file.path)
                            && !self.reached.contains(&file.path)
                            && !self.may_be_left =>
                    {
                        return Err(format!("{} of the old VM is left", file.path));
                    }
                    OldFileFateV1::Left { .. } if !there(&file.path) => {
                        return Err(format!("{} of the old VM was not to be deleted", file.path));
                    }
                    _ => {}
                }
                if self.reached.contains(&file.path) && !there(&file.path) {
                    return Err(format!("{} of the old VM is gone, and others reach it", file.path));
                }
            }
            return Ok(());
        };
        if !old.keep && now.boots == self.boots && !self.old_touched {
            return Err("the old VM was to go, and is there".to_owned());
        }
        // A person may start it.
        if (kept.active && !self.old_touched) || kept.definition.name != old.kept_name {
            return Err(format!("the old VM is kept as {}, running: {}", kept.definition.name, kept.active));
        }
        let named =
            |text: &str| text.replace(&format!("<name>{}</name>", old.kept_name), &format!("<name>{name}</name>"));
        if self.old_definition.as_ref().is_none_or(|text| named(&kept.definition.text) != *text) {
            return Err("the old VM is kept, but not as it was".to_owned());
        }
        for file in &old.files {
            let now_at = places(old, file).pop().unwrap_or_default();
            if now.entries.get(&now_at) != before.entries.get(&file.path) {
                return Err(format!("the old VM is kept, but not its {}", file.path));
            }
            if now_at != file.path && now.entries.contains_key(&file.path) {
                return Err(format!("{} would be found by the next VM of that name too", file.path));
            }
        }
        Ok(())
    }

    /// The clone's definition, by the names it may have.
    pub fn definition_paths(&self) -> Vec<String> {
        let names = [Some(&self.plan.request.new_name), self.plan.replaced.as_ref().map(|old| &old.clone_name)];
        names.into_iter().flatten().map(|name| format!("{DEFINITIONS}/{name}.xml")).collect()
    }

    /// What a step of the clean-up promised to have made durable.
    pub fn old_recorded(&self, files: &Filesystem, retired: bool, deleted: Option<u32>) -> Result<(), String> {
        let Some(old) = &self.plan.replaced else { return Ok(()) };
        let text = files.durable_content(&self.old_definition_path()).map(Content::bytes).unwrap_or_default();
        if retired && String::from_utf8_lossy(&text).contains(&old.uuid.to_string()) {
            return Err("the old VM gave way, and a power cut would bring it back".to_owned());
        }
        let path = deleted.and_then(|file| old.files.get(file as usize)).map(|file| &file.path);
        match path.filter(|path| files.durable_node(path).is_some()) {
            Some(path) => Err(format!("{path} is deleted, and not durably")),
            None => Ok(()),
        }
    }
}

/// Where a file of the old VM may be; last where it is once that is kept. libvirt finds the variables by the domain's name.
fn places(old: &ReplacedV1, file: &OldFileV1) -> Vec<String> {
    let kept = (file.role == ImageRoleV1::Nvram).then(|| old_vm::variables(&old.kept_name));
    std::iter::once(file.path.clone()).chain(kept).collect()
}

/// What a domain is known by in a snapshot: its definition, and its guest's memory while it runs.
pub type Domains = BTreeMap<String, (String, Option<u64>)>;
