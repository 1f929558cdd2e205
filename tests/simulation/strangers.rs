//! What other people do to both hosts meanwhile. Each act tells the oracle what it changed: that must stay.

use std::cell::RefCell;
use std::rc::Rc;

use journal_format::{DomainUuid, EventV1, PlanV1, StepRef, StepV1};
use kvm_clone::world::Side;

use crate::content::Content;
use crate::faults::Fault;
use crate::filesystem::split;
use crate::history::History;
use crate::libvirt::DEFINITIONS;
use crate::machine::HOST_RECORDS;
use crate::notebook::Durable;
use crate::oracle::{Changed, Oracle};
use crate::scene::{QCOW2_HEADER_BYTES, definition};
use crate::seed::Seed;
use crate::world::{Core, SimWorld};

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
    /// Restarts the destination's libvirt.
    RestartLibvirt,
}

/// Acts that may stop or turn back a transaction.
pub const DISTURBING: [Act; 7] = [
    Act::TakePath,
    Act::TakeName,
    Act::StartClone,
    Act::FlipBit,
    Act::RemoveImage,
    Act::ChangeSource,
    Act::RedefineSource,
];

/// Acts that must not matter.
pub const HARMLESS: [Act; 2] = [Act::RefreshPools, Act::RestartLibvirt];

/// What acts need to know.
#[derive(Clone)]
pub struct Strangers {
    plan: Rc<PlanV1>,
    oracle: Rc<RefCell<Oracle>>,
    durable: Rc<RefCell<Durable>>,
    disturbed: Rc<RefCell<bool>>,
}

impl Strangers {
    pub fn of(history: &History) -> Self {
        Self {
            plan: Rc::new(history.scene.plan.clone()),
            oracle: Rc::clone(&history.oracle),
            durable: Rc::clone(&history.durable),
            disturbed: Rc::clone(&history.disturbed),
        }
    }

    /// The act as something that goes wrong.
    pub fn fault(&self, act: Act, seed: u64) -> Fault {
        let strangers = self.clone();
        let name = match act {
            Act::TakePath => "TakePath",
            Act::TakeName => "TakeName",
            Act::StartClone => "StartClone",
            Act::FlipBit => "FlipBit",
            Act::RemoveImage => "RemoveImage",
            Act::ChangeSource => "ChangeSource",
            Act::RedefineSource => "RedefineSource",
            Act::RefreshPools => "RefreshPools",
            Act::RestartLibvirt => "RestartLibvirt",
        };
        Fault::Meanwhile(name, Rc::new(move |world| strangers.act(world, act, seed)))
    }

    /// Does it.
    pub fn act(&self, world: &SimWorld, act: Act, seed: u64) {
        let mut seed = Seed::new(seed);
        if DISTURBING.contains(&act) {
            *self.disturbed.borrow_mut() = true;
        }
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
                let machine = core.machine_mut(Side::Destination);
                machine.late.retain(|late| late.agent.is_some());
                machine.libvirt.load(&mut machine.files, false);
            }
        });
    }

    fn accept(&self, core: &Core, side: Side, paths: Vec<String>, domains: Vec<String>) {
        self.oracle.borrow_mut().accept(core, side, &Changed { paths, domains });
    }

    fn some_disk(&self, seed: &mut Seed) -> usize {
        usize::try_from(seed.below(self.plan.disks.len() as u64)).unwrap()
    }

    fn take_path(&self, core: &mut Core, seed: &mut Seed) {
        let path = self.plan.disks[self.some_disk(seed)].final_path.clone();
        let files = &mut core.machine_mut(Side::Destination).files;
        if files.make_file(&path, 0o600, Content::of(b"a stranger's")).is_ok() {
            files.sync(&path).unwrap();
            files.sync(split(&path).0).unwrap();
            self.accept(core, Side::Destination, vec![path], vec![]);
        }
    }

    fn take_name(&self, core: &mut Core) {
        let name = self.plan.request.new_name.clone();
        let machine = core.machine_mut(Side::Destination);
        let text = definition(&name, DomainUuid([0x5a; 16]), &[]);
        if machine.libvirt.define(&mut machine.files, &text).is_ok() {
            machine.files.sync(DEFINITIONS).unwrap();
            self.accept(core, Side::Destination, vec![format!("{DEFINITIONS}/{name}.xml")], vec![name]);
        }
    }

    fn start_clone(&self, core: &mut Core) {
        if core.machine_mut(Side::Destination).start(self.plan.clone_uuid).is_ok() {
            self.oracle.borrow_mut().touched = true;
        }
    }

    /// Is this disk still to be read back?
    fn is_unread(&self, disk: usize) -> bool {
        let disk = u32::try_from(disk).unwrap();
        let verify = StepV1::VerifyDisk { disk };
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
        let path = &self.plan.disks[disk].staging_path;
        let files = &mut core.machine_mut(Side::Destination).files;
        let size = files.stat(path).map_or(0, |stat| stat.size);
        if size > 0 && self.is_unread(disk) {
            files.decay(path, seed.below(size));
            self.oracle.borrow_mut().decayed = true;
        }
    }

    fn remove_image(&self, core: &mut Core, seed: &mut Seed) {
        let disk = &self.plan.disks[self.some_disk(seed)];
        let path = if seed.chance(50) { &disk.staging_path } else { &disk.final_path };
        let mark = format!("{HOST_RECORDS}/{}/committed", self.plan.txn);
        let files = &mut core.machine_mut(Side::Destination).files;
        // After the commit the clone is somebody's.
        if files.stat(&mark).is_some() {
            return;
        }
        if let Some(stat) = files.stat(path) {
            files.unlink(path, stat.inode).unwrap();
            files.sync(split(path).0).unwrap();
            self.oracle.borrow_mut().removed = true;
            self.accept(core, Side::Destination, vec![path.clone()], vec![]);
        }
    }

    fn change_source(&self, core: &mut Core, seed: &mut Seed) {
        let path = self.plan.disks[self.some_disk(seed)].source_path.clone();
        let files = &mut core.machine_mut(Side::Source).files;
        let Some(stat) = files.stat(&path).filter(|stat| stat.size > QCOW2_HEADER_BYTES) else { return };
        let mut bytes = [0; 700];
        if seed.chance(70) {
            seed.fill(&mut bytes);
        }
        let offset = seed.below(stat.size).max(QCOW2_HEADER_BYTES);
        let len = usize::try_from((stat.size - offset).min(700)).unwrap();
        files.write_at(&path, stat.inode, offset, &bytes[..len]).unwrap();
        if seed.chance(20) {
            files.set_size(&path, stat.inode, stat.size + 5000, false).unwrap();
        }
        files.sync(&path).unwrap();
        self.accept(core, Side::Source, vec![path], vec![]);
    }

    fn redefine_source(&self, core: &mut Core) {
        let machine = core.machine_mut(Side::Source);
        let text = self.plan.source_definition.replace("<vcpu>1<", "<vcpu>3<");
        machine.libvirt.define(&mut machine.files, &text).unwrap();
        machine.files.sync(DEFINITIONS).unwrap();
        let name = self.plan.request.vm_name.clone();
        self.accept(core, Side::Source, vec![format!("{DEFINITIONS}/{name}.xml")], vec![name]);
    }
}
