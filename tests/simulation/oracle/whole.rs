//! What a committed clone must be, as one looks at it from outside.

use journal_format::ImageRoleV1;
use kvm_clone::domain::{CloneMark, MarkState, read_back};
use kvm_clone::world::ChunkGeometry;

use super::Oracle;
use crate::content::Content;
use crate::filesystem::Filesystem;
use crate::libvirt::AUTOSTART;
use crate::machine::Machine;
use crate::snapshots;

impl Oracle {
    /// The clone is defined, finished, and whole.
    pub fn clone_is_whole(&self, machine: &Machine) -> Result<(), String> {
        let name = &self.plan.request.new_name;
        let Some(domain) = machine.libvirt.domains.get(&self.plan.clone_uuid) else {
            return Err("committed, but the clone is not defined".to_owned());
        };
        if domain.definition.name != *name {
            return Err(format!("the clone is called {}", domain.definition.name));
        }
        let disks = self.plan.images.iter().filter(|image| matches!(image.role, ImageRoleV1::Disk { .. }));
        let paths: Vec<_> = disks.map(|disk| disk.final_path.clone()).collect();
        if domain.definition.disks != paths {
            return Err(format!("the clone's disks are {:?}", domain.definition.disks));
        }
        let mark = CloneMark::read(&domain.definition.text).map_err(|error| error.to_string())?;
        if mark.is_none_or(|mark| mark.state != MarkState::Finished || mark.txn != self.plan.txn) {
            return Err("the clone is not marked as finished".to_owned());
        }
        self.snapshots_are_whole(machine)?;
        let title = kvm_clone::domain::Definition::parse(&domain.definition.text).map_err(|e| e.to_string())?.title;
        if title != self.plan.title {
            return Err(format!("the clone's title is {title:?}"));
        }
        // What a person took an image from cannot be started; that is named, and left.
        if self.plan.request.options.start && !self.ran && !self.removed {
            return Err("the clone was to be started".to_owned());
        }
        if machine.files.stat(&format!("{AUTOSTART}/{name}.xml")).is_some() != self.plan.autostart {
            return Err("autostart is not as planned".to_owned());
        }
        self.files_are_whole(&machine.files)
    }

    /// The very snapshots that were planned, each of the clone itself, the current one kept.
    fn snapshots_are_whole(&self, machine: &Machine) -> Result<(), String> {
        let there = machine.libvirt.snapshots(self.plan.clone_uuid);
        let told = |name: &str, current: bool| format!("{name}{}", if current { " (current)" } else { "" });
        let planned: Vec<_> = self.plan.snapshots.iter().map(|planned| told(&planned.name, planned.current)).collect();
        let names: Vec<_> = there.iter().map(|there| told(&there.name, there.current)).collect();
        if names != planned {
            return Err(format!("the clone's snapshots are {names:?}"));
        }
        for (planned, there) in self.plan.snapshots.iter().zip(&there) {
            read_back(&planned.definition, &there.definition)
                .map_err(|error| format!("the snapshot {}: {error}", there.name))?;
            if !there.definition.contains(&self.plan.txn.to_string()) {
                return Err(format!("the clone would lose its mark by the snapshot {}", there.name));
            }
        }
        Ok(())
    }

    /// Where a snapshot of the clone is, by the names that the clone may have.
    pub(super) fn snapshot_paths(&self, snapshot: &str) -> Vec<String> {
        let names = [Some(&self.plan.request.new_name), self.plan.replaced.as_ref().map(|old| &old.clone_name)];
        names.into_iter().flatten().map(|name| snapshots::path(name, snapshot)).collect()
    }

    /// The clone's files, byte for byte those of the source, with one name each, sparse, its owner's.
    pub(super) fn files_are_whole(&self, files: &Filesystem) -> Result<(), String> {
        if files.stat(&self.definition_path()).is_none() {
            return Err("the clone's definition is not on the disk".to_owned());
        }
        let name = &self.plan.request.new_name;
        let mut files_of_snapshots = self.plan.snapshots.iter().map(|snapshot| snapshots::path(name, &snapshot.name));
        if let Some(path) = files_of_snapshots.find(|path| files.stat(path).is_none()) {
            return Err(format!("{path} is not on the disk"));
        }
        self.bases_are_whole(files)?;
        for (index, disk) in self.plan.images.iter().enumerate() {
            let path = &disk.final_path;
            let (Some(stat), Some(content)) = (files.stat(path), files.content(path)) else {
                if self.removed {
                    continue;
                }
                return Err(format!("{path} is not there"));
            };
            // A source that changed behind its locks after the last look is cloned as it was at that look.
            if !self.is_whole(index, content) && !self.touched {
                return Err(format!("{path} is not what the source is"));
            }
            if disk.device().is_some() {
                continue;
            }
            if (stat.mode, (stat.uid, stat.gid)) != (disk.mode, disk.owner) {
                return Err(format!("{path} has other attributes than planned"));
            }
            let most = self.versions[index].iter().map(|version| self.bytes_of_data(version)).max().unwrap_or(0);
            if content.allocated_bytes() > most && !self.ran && !self.plan.request.options.preallocate {
                return Err(format!("{path} is not sparse"));
            }
        }
        Ok(())
    }

    /// Bytes of the chunks that are not all zero: what a sparse image may have allocated, whichever pieces of a chunk its source has.
    fn bytes_of_data(&self, content: &Content) -> u64 {
        let chunk_bytes = self.plan.request.options.chunk_size_bytes;
        let geometry = ChunkGeometry { image_bytes: content.size(), chunk_bytes };
        let chunk = |index| content.read(index * u64::from(chunk_bytes), geometry.chunk_len(index));
        let has_data = |index: &u64| chunk(*index).iter().any(|byte| *byte != 0);
        (0..geometry.chunk_count()).filter(has_data).count() as u64 * u64::from(chunk_bytes)
    }

    /// What the clone stands on and did not bring has the bytes of the source's.
    fn bases_are_whole(&self, files: &Filesystem) -> Result<(), String> {
        for base in &self.plan.bases {
            let Some(content) = files.content(&base.path) else { return Err(format!("{} is not there", base.path)) };
            if blake3::hash(&content.bytes()).as_bytes() != &base.root.0 {
                return Err(format!("{} is not what the source stood on", base.path));
            }
        }
        Ok(())
    }
}
