//! What other people do to both hosts meanwhile. Each act tells the oracle what it changed: that must stay.

use std::cell::RefCell;
use std::rc::Rc;

use journal_format::{DomainUuid, EventV1, NewDirectoryV1, PlanV1, StepRef, StepV1};
use kvm_clone::world::{FileKind, Side};

use crate::content::Content;
use crate::faults::Fault;
use crate::filesystem::split;
use crate::flattened::DATA_AT;
use crate::history::History;
use crate::libvirt::DEFINITIONS;
use crate::machine::HOST_RECORDS;
use crate::notebook::Durable;
use crate::oracle::{Cause, Changed, Oracle};
use crate::scene::{QCOW2_HEADER_BYTES, definition};
use crate::seed::Seed;
use crate::world::{Core, SimWorld};

/// The UUID of a stranger's domain.
pub const STRANGER: DomainUuid = DomainUuid([0x5a; 16]);

/// An act of a stranger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Takes a disk's final path.
    TakePath,
    /// Defines a domain of the clone's name.
    TakeName,
    /// `virsh start` of the clone.
    StartClone,
    /// A bit of a staged image flips, before it was read back.
    FlipBit,
    /// Removes a staged or a published image.
    RemoveImage,
    /// Writes to a disk of the source.
    ChangeSource,
    /// Changes the source's definition.
    RedefineSource,
    /// Refreshes all pools.
    RefreshPools,
    /// Restarts libvirt on one of the hosts.
    RestartLibvirt,
    /// A byte flips on its way into a staged image that will be read back.
    FlipOnTheWire,
    /// `virsh start` of the source VM.
    StartSource,
    /// Puts a file into our staging directory.
    LitterStaging,
    /// Puts a file where the claim on the name would be.
    TakeClaim,
    /// `virsh start` of the old VM.
    StartOldVm,
    /// Changes the old VM's definition.
    RedefineOldVm,
}

impl Act {
    /// For the tally.
    pub fn name(self) -> &'static str {
        match self {
            Self::TakePath => "stranger takes a final path",
            Self::TakeName => "stranger takes the name",
            Self::StartClone => "stranger starts the clone",
            Self::FlipBit => "bit flips on the disk",
            Self::RemoveImage => "stranger removes an image",
            Self::ChangeSource => "stranger changes the source's disk",
            Self::RedefineSource => "stranger changes the source's definition",
            Self::RefreshPools => "stranger refreshes pools",
            Self::RestartLibvirt => "libvirt restart",
            Self::FlipOnTheWire => "byte flips on the wire",
            Self::StartSource => "stranger starts the source",
            Self::LitterStaging => "stranger's file in staging",
            Self::TakeClaim => "stranger's file in the claim's place",
            Self::StartOldVm => "stranger starts the old VM",
            Self::RedefineOldVm => "stranger changes the old VM's definition",
        }
    }
}

/// Acts that may stop or turn back a transaction.
pub const DISTURBING: [Act; 13] = [
    Act::TakePath,
    Act::TakeName,
    Act::StartClone,
    Act::FlipBit,
    Act::RemoveImage,
    Act::ChangeSource,
    Act::RedefineSource,
    Act::FlipOnTheWire,
    Act::StartSource,
    Act::LitterStaging,
    Act::TakeClaim,
    Act::StartOldVm,
    Act::RedefineOldVm,
];

/// Acts that must not matter.
pub const HARMLESS: [Act; 2] = [Act::RefreshPools, Act::RestartLibvirt];

/// What acts need to know.
#[derive(Clone)]
pub struct Strangers {
    plan: Rc<PlanV1>,
    oracle: Rc<RefCell<Oracle>>,
    durable: Rc<RefCell<Durable>>,
}

impl Strangers {
    pub fn of(history: &History) -> Self {
        Self {
            plan: Rc::new(history.scene.plan.clone()),
            oracle: Rc::clone(&history.oracle),
            durable: Rc::clone(&history.durable),
        }
    }

    /// The act as something that goes wrong.
    pub fn fault(&self, act: Act, seed: u64) -> Fault {
        let strangers = self.clone();
        Fault::Meanwhile(act.name(), Rc::new(move |world| strangers.act(world, act, seed)))
    }

    /// Does it.
    pub fn act(&self, world: &SimWorld, act: Act, seed: u64) {
        let mut seed = Seed::new(seed);
        world.with(|core| match act {
            Act::TakePath => self.take_path(core, &mut seed),
            Act::TakeName => self.take_name(core),
            Act::StartClone => self.start_clone(core),
            Act::FlipBit => self.flip_bit(core, &mut seed),
            Act::RemoveImage => self.remove_image(core, &mut seed),
            Act::ChangeSource => self.change_source(core, &mut seed),
            Act::RedefineSource => self.redefine_source(core),
            Act::RefreshPools => {
                let machine = core.machine_mut(Side::Destination);
                let names: Vec<_> = machine.libvirt.pools.iter().map(|pool| pool.name.clone()).collect();
                for name in names {
                    machine.libvirt.refresh_pool(&machine.files, &name).unwrap();
                }
            }
            Act::RestartLibvirt => {
                let side = if seed.chance(80) { Side::Destination } else { Side::Source };
                core.machine_mut(side).restart_libvirt();
            }
            Act::FlipOnTheWire => self.flip_on_the_wire(core),
            Act::StartSource => self.start_source(core),
            Act::LitterStaging => self.litter_staging(core),
            Act::TakeClaim => self.take_claim(core),
            Act::StartOldVm => self.start_old_vm(core),
            Act::RedefineOldVm => self.redefine_old_vm(core),
        });
    }

    /// Tells the judge what was done, and what it may lead to.
    fn accept(&self, core: &Core, side: Side, cause: Cause, paths: Vec<String>, domains: Vec<String>) {
        let mut oracle = self.oracle.borrow_mut();
        oracle.causes.insert(cause);
        oracle.accept(core, side, &Changed { paths, domains });
    }

    fn some_disk(&self, seed: &mut Seed) -> usize {
        usize::try_from(seed.below(self.plan.images.len() as u64)).unwrap()
    }

    fn take_path(&self, core: &mut Core, seed: &mut Seed) {
        let path = self.plan.images[self.some_disk(seed)].final_path.clone();
        // A directory of ours that is still being made gets its owner and mode, whoever put something there meanwhile.
        let files = &core.machine(Side::Destination).files;
        let is_unfinished = |planned: &NewDirectoryV1| {
            let made = files.stat(&planned.path);
            made.is_some_and(|made| (made.mode & 0o7777, (made.uid, made.gid)) != (planned.mode, planned.owner))
        };
        let mut parents = self.plan.new_directories.iter().filter(|directory| split(&path).0 == directory.path);
        if !parents.any(is_unfinished) {
            self.put(core, path, Cause::PathTaken);
        }
    }

    fn take_name(&self, core: &mut Core) {
        let name = self.plan.request.new_name.clone();
        let machine = core.machine_mut(Side::Destination);
        let text = definition(&name, STRANGER, &[]);
        if machine.libvirt.define(&mut machine.files, &text).is_ok() {
            machine.files.sync(DEFINITIONS).unwrap();
            let paths = vec![format!("{DEFINITIONS}/{name}.xml")];
            self.accept(core, Side::Destination, Cause::NameTaken, paths, vec![name]);
        }
    }

    fn start_clone(&self, core: &mut Core) {
        if core.machine_mut(Side::Destination).start(self.plan.clone_uuid).is_ok() {
            let mut oracle = self.oracle.borrow_mut();
            oracle.touched = true;
            oracle.causes.insert(Cause::CloneStarted);
        }
    }

    fn start_old_vm(&self, core: &mut Core) {
        let Some(old) = &self.plan.replaced else { return };
        let machine = core.machine_mut(Side::Destination);
        let off = machine.libvirt.domains.get(&old.uuid).is_some_and(|domain| !domain.active);
        if off && machine.start(old.uuid).is_ok() {
            let mut oracle = self.oracle.borrow_mut();
            oracle.causes.insert(Cause::OldVmStarted);
            oracle.old_touched = true;
        }
    }

    fn redefine_old_vm(&self, core: &mut Core) {
        let Some(old) = &self.plan.replaced else { return };
        let machine = core.machine_mut(Side::Destination);
        let mark = format!("{HOST_RECORDS}/{}/committed", self.plan.txn);
        if machine.files.stat(&mark).is_some() || !machine.libvirt.domains.contains_key(&old.uuid) {
            return;
        }
        let text = old.definition.replace("<vcpu>1<", "<vcpu>3<");
        // A full disk refuses a person too.
        if machine.libvirt.define(&mut machine.files, &text).is_err() {
            return;
        }
        machine.files.sync(DEFINITIONS).unwrap();
        let name = self.plan.request.new_name.clone();
        let path = format!("{DEFINITIONS}/{name}.xml");
        // What its guest has in its memory is not the stranger's affair.
        let mut oracle = self.oracle.borrow_mut();
        oracle.causes.insert(Cause::OldVmChanged);
        oracle.accept_definition(core, &path, &name);
    }

    /// Is this disk still to be read back?
    fn is_unread(&self, disk: usize) -> bool {
        let disk = u32::try_from(disk).unwrap();
        let verify = StepV1::VerifyImage { image: disk };
        let Some(place) = self.plan.steps.iter().position(|step| *step == verify) else { return false };
        let place = StepRef::Forward(u32::try_from(place).unwrap());
        let durable = self.durable.borrow();
        let last = durable.records.iter().rev().find_map(|record| match &record.event {
            EventV1::Started { step } | EventV1::Done { step, .. } if *step == place => Some(false),
            EventV1::Reopened { step, .. } if *step == place => Some(true),
            _ => None,
        });
        last.unwrap_or(true)
    }

    fn flip_bit(&self, core: &mut Core, seed: &mut Seed) {
        let disk = self.some_disk(seed);
        let path = &self.plan.images[disk].staging_path;
        let files = &mut core.machine_mut(Side::Destination).files;
        let size = files.stat(path).map_or(0, |stat| stat.size);
        if size == 0 || !self.is_unread(disk) {
            return;
        }
        let position = seed.below(size);
        if !core.is_read_back(path, position / u64::from(self.plan.request.options.chunk_size_bytes)) {
            core.machine_mut(Side::Destination).files.decay(path, position);
            self.decay();
        }
    }

    fn remove_image(&self, core: &mut Core, seed: &mut Seed) {
        let disk = &self.plan.images[self.some_disk(seed)];
        let path = if seed.chance(50) { &disk.staging_path } else { &disk.final_path };
        let mark = format!("{HOST_RECORDS}/{}/committed", self.plan.txn);
        if disk.device().is_some() {
            return;
        }
        let files = &mut core.machine_mut(Side::Destination).files;
        // After the commit the clone is somebody's.
        if files.stat(&mark).is_some() {
            return;
        }
        // Both at the published name in one moment: whose look was first is nobody's to say.
        if core.operation.contains(&disk.final_path) {
            return;
        }
        let files = &mut core.machine_mut(Side::Destination).files;
        if let Some(stat) = files.stat(path) {
            // Its staging name is what proves that a published image is ours: without it, it is nobody's and stays.
            let orphaned = path == &disk.staging_path && files.find(&disk.final_path) == files.find(path);
            files.unlink(path, stat.inode).unwrap();
            files.sync(split(path).0).unwrap();
            self.oracle.borrow_mut().removed = true;
            let orphan = orphaned.then(|| disk.final_path.clone());
            let paths = [path.clone()].into_iter().chain(orphan).collect();
            self.accept(core, Side::Destination, Cause::ImageRemoved, paths, vec![]);
        }
    }

    fn change_source(&self, core: &mut Core, seed: &mut Seed) {
        let image = &self.plan.images[self.some_disk(seed)];
        let (path, begin) = match image.flattened.len() as u64 {
            0 => (image.source_path.clone(), QCOW2_HEADER_BYTES),
            layers => match usize::try_from(seed.below(layers + 1)).unwrap().checked_sub(1) {
                None => (image.source_path.clone(), DATA_AT),
                Some(layer) => (image.flattened[layer].source_path.clone(), DATA_AT),
            },
        };
        let files = &mut core.machine_mut(Side::Source).files;
        let Some(stat) = files.stat(&path).filter(|stat| stat.size > begin) else { return };
        let mut bytes = [0; 700];
        if seed.chance(70) {
            seed.fill(&mut bytes);
        }
        let offset = seed.below(stat.size).max(begin);
        let len = usize::try_from((stat.size - offset).min(700)).unwrap();
        files.write_at(&path, stat.inode, offset, &bytes[..len]).unwrap();
        if seed.chance(20) {
            let is_device = stat.kind == FileKind::BlockDevice;
            files.set_size(&path, stat.inode, stat.size + 5000, is_device).unwrap();
        }
        files.sync(&path).unwrap();
        self.accept(core, Side::Source, Cause::SourceChanged, vec![path], vec![]);
    }

    fn redefine_source(&self, core: &mut Core) {
        let machine = core.machine_mut(Side::Source);
        let text = self.plan.source_definition.replace("<vcpu>1<", "<vcpu>3<");
        machine.libvirt.define(&mut machine.files, &text).unwrap();
        machine.files.sync(DEFINITIONS).unwrap();
        let name = self.plan.request.vm_name.clone();
        let paths = vec![format!("{DEFINITIONS}/{name}.xml")];
        self.accept(core, Side::Source, Cause::SourceRedefined, paths, vec![name]);
    }

    fn decay(&self) {
        let mut oracle = self.oracle.borrow_mut();
        oracle.decayed = true;
        oracle.causes.insert(Cause::BytesFlipped);
    }

    /// What the agents' hashes in flight cannot see: a byte that turns between the last check and the disk.
    fn flip_on_the_wire(&self, core: &mut Core) {
        if self.plan.request.options.verify {
            core.flips_next_write = true;
            self.decay();
        }
    }

    fn start_source(&self, core: &mut Core) {
        if core.machine_mut(Side::Source).start(self.plan.request.vm_uuid).is_ok() {
            let files = &mut core.machine_mut(Side::Source).files;
            self.plan.images.iter().for_each(|disk| files.sync(&disk.source_path).unwrap());
            let paths = self.plan.images.iter().map(|disk| disk.source_path.clone()).collect();
            let domains = vec![self.plan.request.vm_name.clone()];
            self.accept(core, Side::Source, Cause::SourceChanged, paths, domains);
        }
    }

    /// A file of somebody else's, and the directories that it keeps from being empty.
    fn put(&self, core: &mut Core, path: String, cause: Cause) {
        let files = &mut core.machine_mut(Side::Destination).files;
        if files.make_file(&path, 0o600, Content::of(b"a stranger's")).is_ok() {
            files.sync(&path).unwrap();
            let directories: Vec<_> = path.match_indices('/').skip(1).map(|(end, _)| path[..end].to_owned()).collect();
            // A power cut would take it along with a directory of ours that is not durable yet.
            for directory in &directories {
                files.sync(directory).unwrap();
            }
            self.accept(core, Side::Destination, cause, [directories, vec![path]].concat(), vec![]);
        }
    }

    fn litter_staging(&self, core: &mut Core) {
        self.put(core, format!("{}/note", self.plan.directories[0].staging), Cause::Littered);
    }

    fn take_claim(&self, core: &mut Core) {
        self.put(core, format!("{HOST_RECORDS}/names/{}", self.plan.request.new_name), Cause::PathTaken);
    }
}
