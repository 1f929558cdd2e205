//! The judge: what the destination and the source were, what they are, and what was promised. It knows the plan, but
//! nothing of the engine or its steps.

mod snapshot;
mod whole;

use std::cell::Cell;
use std::collections::BTreeSet;

use journal_format::owner::decode_owner_file;
use journal_format::{ChunkRecordV1, ChunkState, CleanUpStepV1, EventV1, ImageV1, OutcomeV1, PlanV1, StepRef, StepV1};
use kvm_clone::world::{ChunkGeometry, Side};

pub use self::snapshot::Snapshot;
use self::snapshot::{OUR_STATE, complain};
use crate::content::Content;
use crate::copy::chunk_value;
use crate::durability::Survival;
use crate::filesystem::{Filesystem, split};
use crate::flattened::in_the_clone;
use crate::libvirt::{AUTOSTART, DEFINITIONS};
use crate::machine::{HOST_RECORDS, Machine};
use crate::scene::Scene;
use crate::snapshots;
use crate::world::Core;

/// What somebody else did.
#[derive(Debug, Clone, Default)]
pub struct Changed {
    pub paths: Vec<String>,
    pub domains: Vec<String>,
}

/// Something that is not kvm-clone's doing, and that can end a transaction otherwise than it was meant to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// A file stands at a final path, or in the place of the claim.
    PathTaken,
    /// A domain has the clone's name.
    NameTaken,
    /// A person started the clone.
    CloneStarted,
    /// Bytes changed on the disk or on the way to it.
    BytesFlipped,
    /// A person removed an image.
    ImageRemoved,
    /// A disk of the source was written to, by a person or by its guest.
    SourceChanged,
    /// The source's definition changed.
    SourceRedefined,
    /// A file of somebody else lies in our staging directory.
    Littered,
    /// Another transaction wanted the same name.
    Rival,
    /// A host refused an operation.
    Refused,
    /// The old VM was off, and runs: a person started it, or its host when it came up again.
    OldVmStarted,
    /// A person changed the old VM.
    OldVmChanged,
}

impl Cause {
    /// May a person have to look?
    const fn may_stop(self) -> bool {
        matches!(self, Self::CloneStarted | Self::ImageRemoved | Self::Littered | Self::Refused)
    }

    /// May the clone be rolled back, though nobody asked for it?
    const fn may_turn_back(self) -> bool {
        !matches!(self, Self::Littered)
    }
}

/// What the judge knows of one history.
pub struct Oracle {
    pub plan: PlanV1,
    /// What others did in this history that may end the transaction otherwise than asked.
    pub causes: BTreeSet<Cause>,
    /// By side.
    pub before: [Snapshot; 2],
    /// Contents that each disk's source has had since the plan, newest last.
    versions: Vec<Vec<Content>>,
    /// A person started the clone, or wrote to its disks: they are that person's now.
    pub touched: bool,
    /// A person removed an image: it need not be there, but if it is it must be whole.
    pub removed: bool,
    /// The destination's disk lost bytes by itself: what is recorded of them is true no longer.
    pub decayed: bool,
    /// The commit mark was durable at some moment.
    pub committed: bool,
    /// The clone was running at some moment.
    ran: bool,
    /// A person used or changed the old VM.
    pub old_touched: bool,
    /// It was said that a pool may not show what there is.
    pub pools_given_up: bool,
    /// Files of the old VM that others reach.
    pub reached: BTreeSet<String>,
    /// Files of the old VM may be left: nobody knows whether the source's host sees them.
    pub may_be_left: bool,
    /// The old VM's definition, which a stranger may have changed.
    pub old_definition: Option<String>,
    /// How often the destination had been booted at the beginning.
    pub boots: u64,
    /// The clone is being renamed: a power cut may tear that.
    renaming: Cell<bool>,
}

impl Oracle {
    pub fn new(scene: &Scene) -> Self {
        let before = scene
            .world
            .with(|core| [Snapshot::of(core.machine(Side::Source)), Snapshot::of(core.machine(Side::Destination))]);
        let boots = before[1].boots;
        let old_definition = before[1].domains.get(&scene.plan.request.new_name).map(|(text, _)| text.clone());
        let versions = scene.world.with(|core| {
            let files = &core.machine(Side::Source).files;
            let images = scene.plan.images.iter();
            images.map(|image| vec![in_the_clone(files, image).expect("it is there")]).collect()
        });
        Self {
            plan: scene.plan.clone(),
            causes: BTreeSet::new(),
            before,
            versions,
            touched: false,
            removed: false,
            decayed: false,
            committed: false,
            ran: false,
            old_touched: false,
            pools_given_up: false,
            reached: BTreeSet::new(),
            may_be_left: false,
            old_definition,
            boots,
            renaming: Cell::new(false),
        }
    }

    fn record(&self, name: &str) -> String {
        format!("{HOST_RECORDS}/{}/{name}", self.plan.txn)
    }

    fn definition_path(&self) -> String {
        format!("{DEFINITIONS}/{}.xml", self.plan.request.new_name)
    }

    /// The commit mark is there, durable or not.
    pub fn is_marked(&self, core: &Core) -> bool {
        self.committed || core.machine(Side::Destination).files.stat(&self.record("committed")).is_some()
    }

    /// A stranger acted on that side: what it changed must stay as it is now.
    pub fn accept(&mut self, core: &Core, side: Side, changed: &Changed) {
        let now = Snapshot::of(core.machine(side));
        self.before[usize::from(side == Side::Destination)].accept(&now, changed);
        if side == Side::Source {
            for (disk, versions) in self.plan.images.iter().zip(&mut self.versions) {
                if let Some(content) = in_the_clone(&core.machine(side).files, disk)
                    && versions.last() != Some(&content)
                {
                    versions.push(content);
                }
            }
        }
    }

    /// A stranger changed the definition of a domain: that must stay, whatever becomes of its guest.
    pub fn accept_definition(&mut self, core: &Core, path: &str, name: &str) {
        let now = Snapshot::of(core.machine(Side::Destination));
        let memory = self.before[1].domains.get(name).and_then(|domain| domain.1);
        self.before[1].accept(&now, &Changed { paths: vec![path.to_owned()], domains: vec![name.to_owned()] });
        if let Some(domain) = self.before[1].domains.get_mut(name) {
            domain.1 = memory;
            self.old_definition = Some(domain.0.clone());
        }
    }

    /// After every operation: no half clone can be started, now or after a power cut, and the mark means what it says.
    pub fn watch(&mut self, core: &Core) -> Result<(), String> {
        let machine = core.machine(Side::Destination);
        let files = &machine.files;
        let clone = machine.libvirt.domains.get(&self.plan.clone_uuid);
        let defined = clone.is_some();
        self.ran |= clone.is_some_and(|clone| clone.active);
        let uuid = self.plan.clone_uuid.to_string();
        let ours = |content: Option<&Content>| content.is_some_and(|content| content.contains(&uuid));
        let definitions = self.definition_paths();
        let definition_is_durable = definitions.iter().any(|path| ours(files.durable_content(path)));
        let marked = files.stat(&self.record("committed")).is_some();
        self.committed |= files.durable_content(&self.record("committed")).is_some();
        let old = self.plan.replaced.as_ref().filter(|old| !old.running);
        if old.is_some_and(|old| machine.libvirt.memories.contains_key(&old.uuid)) {
            self.causes.insert(Cause::OldVmStarted);
        }
        self.watch_old(machine, marked)?;
        let written = definitions.iter().any(|path| ours(files.content(path)));
        if self.touched || !(defined || marked || definition_is_durable || written) {
            return Ok(());
        }
        // Whatever subset of it survives, each disk is there as it is now, or as it is on the disk, or not at all.
        let disks = || self.plan.images.iter().enumerate();
        let states = |path: &str| [files.content(path), files.durable_content(path)].into_iter().flatten();
        let startable = disks().all(|(_, disk)| states(&disk.final_path).next().is_some());
        // What a stranger writes to a device is seen at the barrier, and no lock keeps it away.
        let is_strangers = |disk: &ImageV1| disk.device().is_some() && self.decayed;
        let is_half = |index: usize, disk: &ImageV1| {
            !is_strangers(disk) && !states(&disk.final_path).all(|now| self.is_whole(index, now))
        };
        // Somebody's own file in the place of one that was removed is somebody's own affair.
        let by_strangers = self.removed && self.causes.contains(&Cause::PathTaken);
        if startable
            && !by_strangers
            && let Some((_, disk)) = disks().find(|(index, disk)| is_half(*index, disk))
        {
            return Err(format!("a half clone can be started: {}", disk.final_path));
        }
        if marked && !(defined && definition_is_durable) && !self.renaming.get() {
            return Err("the commit mark is there, but the clone's definition is not durable".to_owned());
        }
        if marked
            && !self.removed
            && let Some((_, disk)) = disks().find(|(_, disk)| files.durable_content(&disk.final_path).is_none())
        {
            return Err(format!("the commit mark is there, but {} is not durable", disk.final_path));
        }
        Ok(())
    }

    /// The names of devices: what they held does not come back.
    fn devices(&self) -> Vec<&str> {
        let devices = self.plan.images.iter().filter(|image| image.device().is_some());
        devices.map(|image| image.final_path.as_str()).collect()
    }

    /// What of a device is the image's, which is as long as one version of the source is; a file is all of it.
    fn images_on<'a>(&'a self, disk: usize, content: &'a Content) -> impl Iterator<Item = Content> + 'a {
        let on_device = self.plan.images[disk].device().is_some();
        let sizes: BTreeSet<u64> = if on_device {
            self.versions[disk].iter().map(Content::size).collect()
        } else {
            BTreeSet::from([content.size()])
        };
        sizes.into_iter().map(|size| {
            let mut image = content.clone();
            image.set_size(size);
            image
        })
    }

    fn is_whole(&self, disk: usize, content: &Content) -> bool {
        self.images_on(disk, content).any(|image| {
            self.versions[disk].iter().any(|version| version.same_bytes(&image) || booted(version).same_bytes(&image))
        })
    }

    /// What is put into the ledger must be on the destination's disk.
    pub fn ledger(&self, core: &Core, disk: u32, records: &[ChunkRecordV1]) -> Result<(), String> {
        let planned = &self.plan.images[disk as usize];
        let files = &core.machine(Side::Destination).files;
        let Some(content) = files.durable_content(&planned.staging_path) else {
            return Err(format!("a chunk is recorded, but {} is not durable", planned.staging_path));
        };
        let images: Vec<Content> = self.images_on(disk as usize, content).collect();
        let chunk_bytes = self.plan.request.options.chunk_size_bytes;
        for record in records {
            let is_on = |image: &Content| {
                let geometry = ChunkGeometry { image_bytes: image.size(), chunk_bytes };
                if record.index >= geometry.chunk_count() {
                    return false;
                }
                let bytes = image.read(record.index * u64::from(chunk_bytes), geometry.chunk_len(record.index));
                match record.state {
                    ChunkState::Zero => bytes.iter().all(|byte| *byte == 0),
                    ChunkState::Data(value) => value == chunk_value(geometry, record.index, &bytes),
                }
            };
            if !images.iter().any(is_on) && !self.decayed {
                return Err(format!("chunk {} of {} is recorded and not durable", record.index, planned.staging_path));
            }
        }
        Ok(())
    }

    /// What the journal says of a step survives a power cut of the destination.
    pub fn recorded(&self, core: &Core, event: &EventV1) -> Result<(), String> {
        let files = &core.machine(Side::Destination).files;
        let clean_up = |step: u32| self.plan.clean_up[step as usize];
        let (step, done) = match event {
            EventV1::Started { step: StepRef::CleanUp(step) } if clean_up(*step) == CleanUpStepV1::RenameClone => {
                self.renaming.set(true);
                return Ok(());
            }
            EventV1::Done { step: StepRef::CleanUp(step), .. } if clean_up(*step) == CleanUpStepV1::RenameClone => {
                self.renaming.set(false);
                return Ok(());
            }
            EventV1::Done { step: StepRef::CleanUp(step), outcome: OutcomeV1::Nothing } => {
                let retired = clean_up(*step) == CleanUpStepV1::RetireOldVm;
                let deleted = match clean_up(*step) {
                    CleanUpStepV1::DeleteOldFile { file } => Some(file),
                    _ => None,
                };
                return self.old_recorded(files, retired, deleted);
            }
            EventV1::Done { step: StepRef::Forward(step), .. } => (*step, true),
            EventV1::Undone { step: StepRef::Forward(step) } => (*step, false),
            EventV1::Committed if files.durable_content(&self.record("committed")).is_none() => {
                return Err("Committed is recorded, and the commit mark is not durable".to_owned());
            }
            _ => return Ok(()),
        };
        let node = |path: &str| files.durable_node(path);
        let text = |path: &str| files.durable_content(path).map(Content::bytes).unwrap_or_default();
        let (what, is_there) = match self.plan.steps[step as usize] {
            StepV1::ReserveRecord => {
                let owner = self.record("owner");
                (owner.clone(), node(&owner).is_some())
            }
            StepV1::ClaimName => {
                let claim = format!("{HOST_RECORDS}/names/{}", self.plan.request.new_name);
                let owner = decode_owner_file(&text(&claim)).ok();
                (claim, owner.is_some_and(|owner| owner.txn == self.plan.txn))
            }
            StepV1::ClaimDevice { image } => {
                let device = self.plan.images[image as usize].device().expect("it goes onto a device");
                let claim = format!("{HOST_RECORDS}/devices/{}", device.identity);
                let owner = decode_owner_file(&text(&claim)).ok();
                (claim, owner.is_some_and(|owner| owner.txn == self.plan.txn))
            }
            StepV1::CreateStaging { directory } => {
                let directory = &self.plan.directories[directory as usize];
                let nonce = format!("{}/nonce", directory.staging);
                let is_there = text(&nonce) == directory.nonce;
                (nonce, is_there)
            }
            StepV1::CreateImage { image } => {
                let image = &self.plan.images[image as usize];
                let attributes = files.durable_attributes(&image.staging_path);
                // Done: with everything that tells a finished image. Undone: without its name.
                let is_there = if done { attributes == Some((image.mode, image.owner)) } else { attributes.is_some() };
                (image.staging_path.clone(), is_there)
            }
            StepV1::PublishImage { image } => {
                let image = &self.plan.images[image as usize];
                let published = node(&image.final_path);
                (image.final_path.clone(), published.is_some() && published == node(&image.staging_path))
            }
            StepV1::MakeDirectory { directory } => {
                let made = &self.plan.new_directories[directory as usize];
                // One with something in it is used by somebody else by now.
                let used =
                    !done && files.list(&made.path).is_ok_and(|names| names.is_some_and(|names| !names.is_empty()));
                (made.path.clone(), node(&made.path).is_some() && !used)
            }
            StepV1::DefineDomain => {
                let definitions = self.definition_paths();
                let uuid = self.plan.clone_uuid.to_string();
                let is_there = |path: &String| files.durable_content(path).is_some_and(|text| text.contains(&uuid));
                (definitions.join(" or "), definitions.iter().any(is_there))
            }
            StepV1::DefineSnapshot { snapshot } => {
                let uuid = self.plan.clone_uuid.to_string();
                let paths = self.snapshot_paths(&self.plan.snapshots[snapshot as usize].name);
                let is_there = |path: &String| files.durable_content(path).is_some_and(|text| text.contains(&uuid));
                (paths.join(" or "), paths.iter().any(is_there))
            }
            StepV1::StopOldVm => {
                let stopping = self.record("old-vm-stopping");
                let is_there = node(&stopping).is_some();
                (stopping, is_there)
            }
            StepV1::DetectSharedStorage
            | StepV1::HoldBase { .. }
            | StepV1::TransferImage { .. }
            | StepV1::VerifyImage { .. } => return Ok(()),
        };
        if is_there == done || self.removed {
            return Ok(());
        }
        Err(format!("{event:?} is recorded, and {what} is {} durable", if done { "not" } else { "still" }))
    }

    /// Was there a cause for a stop that is not kvm-clone's own?
    pub fn may_stop(&self) -> bool {
        // What a stranger wrote to a device is the stranger's.
        let on_device = self.causes.contains(&Cause::BytesFlipped) && !self.devices().is_empty();
        on_device || self.causes.iter().any(|cause| cause.may_stop())
    }

    /// Was there a cause for a rollback that nobody asked for?
    pub fn may_turn_back(&self) -> bool {
        self.causes.iter().any(|cause| cause.may_turn_back())
    }

    /// The source is as it was, but for what strangers did.
    pub fn source(&self, core: &Core) -> Result<(), String> {
        let now = Snapshot::of(core.machine(Side::Source));
        complain("the source was changed", &self.before[0].differences(&now, &|_| false))
    }

    /// Whatever happened: what is not ours is as it was.
    pub fn strangers(&self, core: &Core) -> Result<(), String> {
        let now = Snapshot::of(core.machine(Side::Destination));
        let before = &self.before[1];
        let of_old = self.names_of_old();
        // An image that lost its staging name is nobody's, and the clone's all the same: its guest writes.
        let started = self.ran && (self.committed || self.touched);
        let ran = |name: &str| started && self.plan.images.iter().any(|image| image.final_path == name);
        let ours = |name: &str| {
            ran(name)
                || self.devices().contains(&name)
                || (!before.entries.contains_key(name) && !before.domains.contains_key(name))
                || of_old.iter().any(|old| old == name)
        };
        complain("what is not ours was changed", &before.differences(&now, &ours))
    }

    /// After a rollback: the world as before, also after a power cut.
    pub fn rolled_back(&self, core: &Core) -> Result<(), String> {
        if self.committed {
            return Err("rolled back in spite of a durable commit mark".to_owned());
        }
        let machine = core.machine(Side::Destination);
        self.pools(machine, false)?;
        self.undone(core)
    }

    /// After every step was undone: all files and domains as before, also after a power cut.
    pub fn undone(&self, core: &Core) -> Result<(), String> {
        let machine = core.machine(Side::Destination);
        let now = Snapshot::of(machine);
        let before = self.before_with_old(&now)?;
        complain("after the rollback", &before.differences(&now, &|name| self.devices().contains(&name)))?;
        let old_files: Vec<_> = self.plan.replaced.iter().flat_map(|old| &old.files).map(|file| &file.path).collect();
        // What a guest wrote and nobody synced is its own affair.
        let excused = |name: &str| old_files.iter().any(|path| *path == name) || self.devices().contains(&name);
        self.after_cuts(machine, &|files| {
            let cut = Snapshot { domains: before.domains.clone(), ..Snapshot::of(&view(files)) };
            complain("after the rollback and a power cut", &before.differences(&cut, &excused))
        })
    }

    /// After it was given up: the name is free for others, the record says so, and that survives a power cut.
    pub fn abandoned(&self, core: &Core) -> Result<(), String> {
        if self.committed {
            return Err("abandoned in spite of a durable commit mark".to_owned());
        }
        let machine = core.machine(Side::Destination);
        let closed = |files: &Filesystem| {
            if self.holds_claim(files) {
                return Err("the claim of an abandoned transaction is still there".to_owned());
            }
            match files.stat(&self.record("owner")) {
                Some(_) => Err("the record of an abandoned transaction still has an owner".to_owned()),
                None => Ok(()),
            }
        };
        closed(&machine.files)?;
        self.after_cuts(machine, &closed)
    }

    /// The clone's name is reserved for this transaction.
    pub fn holds_claim(&self, files: &Filesystem) -> bool {
        let claim = format!("{HOST_RECORDS}/names/{}", self.plan.request.new_name);
        let owner = files.content(&claim).and_then(|content| decode_owner_file(&content.bytes()).ok());
        owner.is_some_and(|owner| owner.txn == self.plan.txn)
    }

    /// There is a host record, in whatever state.
    pub fn has_record(&self, core: &Core) -> bool {
        let files = &core.machine(Side::Destination).files;
        files.stat(&format!("{HOST_RECORDS}/{}", self.plan.txn)).is_some()
    }

    /// After a commit: one whole clone of the planned name, durable; no leftovers unless some were named.
    pub fn committed(&self, core: &Core, warned: bool) -> Result<(), String> {
        let machine = core.machine(Side::Destination);
        self.clone_is_whole(machine)?;
        let ours = [self.own_names(), self.names_of_old()].concat();
        let staging = |name: &str| warned && (name.contains("/.kvm-clone") || name.starts_with(OUR_STATE));
        let excused = |name: &str| ours.iter().any(|our| our == name) || staging(name);
        let now = Snapshot::of(machine);
        self.old_gave_way(machine, &now)?;
        complain("after the commit", &self.before[1].differences(&now, &excused))?;
        if !warned {
            self.pools(machine, true)?;
        }
        self.after_cuts(machine, &|files| {
            let cut = Snapshot { domains: now.domains.clone(), ..Snapshot::of(&view(files)) };
            complain("after the commit and a power cut", &self.before[1].differences(&cut, &excused))?;
            self.files_are_whole(files)
        })
    }

    fn own_names(&self) -> Vec<String> {
        let name = &self.plan.request.new_name;
        let mut names = vec![name.clone(), self.definition_path()];
        if self.plan.autostart {
            names.push(format!("{AUTOSTART}/{name}.xml"));
        }
        names.extend(self.plan.images.iter().map(|image| image.final_path.clone()));
        if !self.plan.snapshots.is_empty() {
            names.push(snapshots::directory(name));
            names.extend(self.plan.snapshots.iter().map(|snapshot| snapshots::path(name, &snapshot.name)));
        }
        for made in &self.plan.new_directories {
            names.extend(made.makes_parent.then(|| split(&made.path).0.to_owned()));
            names.push(made.path.clone());
        }
        names
    }

    fn pools(&self, machine: &Machine, there: bool) -> Result<(), String> {
        for pool in machine.libvirt.pools.iter().filter(|_| !self.removed && !self.pools_given_up) {
            for disk in self.plan.images.iter().filter(|disk| split(&disk.final_path).0 == pool.path) {
                let name = split(&disk.final_path).1;
                let foreign = self.before[1].entries.contains_key(&disk.final_path);
                if pool.volumes.iter().any(|volume| volume == name) != there && !foreign {
                    return Err(format!("pool {} {} {name}", pool.name, if there { "misses" } else { "still shows" }));
                }
            }
        }
        Ok(())
    }

    fn after_cuts(&self, machine: &Machine, judge: &dyn Fn(&Filesystem) -> Result<(), String>) -> Result<(), String> {
        for survival in [Survival::Nothing, Survival::Subset(1), Survival::Subset(2)] {
            judge(&machine.files.after_power_cut(survival))?;
        }
        Ok(())
    }
}

/// A machine of nothing but these files.
fn view(files: &Filesystem) -> Machine {
    Machine { files: files.clone(), ..crate::scene::machine("view", "view") }
}

/// What a guest makes of its first disk when it is started.
fn booted(content: &Content) -> Content {
    let mut booted = content.clone();
    if booted.size() > 0 {
        booted.write(0, b"booted");
    }
    booted
}
