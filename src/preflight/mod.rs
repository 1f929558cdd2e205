//! Survey + request → every problem at once, before anything is touched. Pure but for `prepare`, which puts survey,
//! check, plan and rehearsal in their order; nothing here changes a host.

mod devices;
mod disk_map;
mod fit;
mod left_behind;
mod place;
mod replace;
mod snapshots;
pub mod space;
#[cfg(test)]
mod tests;
mod vm;

use std::fmt;

use journal_format::{ControllerId, PlanV1, TxnId};
use serde::Serialize;

use crate::plan::{Circumstances, PlanError, plan};
use crate::request::Request;
use crate::survey::{self, Survey, SurveyError};
use crate::world::Host;

/// Something that is in the way, or that an operator should know: what, where and why in the message, what to do in
/// the advice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem<K> {
    /// Which one, for programs.
    pub kind: K,
    /// The host's name, as the user gave it.
    pub host: String,
    /// What is wrong, where, and why; complete sentences, the host named where it matters.
    pub message: String,
    /// What to do about it.
    pub advice: String,
}

impl<K> fmt::Display for Problem<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if self.advice.is_empty() { Ok(()) } else { write!(f, " {}", self.advice) }
    }
}

/// Without a cure for this there is no clone.
pub type Blocker = Problem<BlockerKind>;
/// There is a clone, and the operator should know.
pub type Warning = Problem<WarningKind>;

/// What can be in the way of a clone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockerKind {
    /// The clone would be the source itself.
    SameVm,
    /// The hosts are two, and have one machine-id.
    MachineId,
    /// The source VM is not shut off.
    Running,
    /// The source VM has no definition on disk.
    Transient,
    /// libvirt holds a saved memory image of the source VM.
    ManagedSave,
    /// A libvirt snapshot of the source VM cannot be carried.
    Snapshots,
    /// The source VM has checkpoints.
    Checkpoints,
    /// The definition holds something that is not carried.
    Uncarried,
    /// The definition, though libvirt's own, cannot be worked with.
    Definition,
    /// A disk's file does not exist.
    DiskMissing,
    /// A disk's file cannot be read.
    DiskUnreadable,
    /// What is at a disk's path is no file.
    DiskKind,
    /// A qcow2 disk has a header that is none.
    DiskHeader,
    /// The tables of a qcow2 disk contradict each other.
    DiskTables,
    /// What a disk's image is on top of cannot be carried.
    Chain,
    /// A domain of the clone's name exists.
    NameTaken,
    /// The VM to be replaced has no definition on disk.
    OldVmTransient,
    /// The definition of the VM to be replaced cannot be read.
    OldVmDefinition,
    /// The VM to be replaced runs, and may not be stopped.
    OldVmRunning,
    /// The VM to be replaced cannot be kept under another name.
    OldVmKept,
    /// The VM to be replaced has the UUID that the clone is to keep.
    OldVmSameUuid,
    /// Another VM has the UUID that the clone is to keep.
    UuidTaken,
    /// A transaction of this controller has reserved the clone's name.
    NameClaimed,
    /// A transaction of another controller has reserved the clone's name.
    NameHeld,
    /// A file is there that libvirt would take for the clone's own.
    Leftover,
    /// A pool that was asked for cannot take images.
    Pool,
    /// A directory does not exist.
    DirectoryMissing,
    /// What is at a directory's path is no directory.
    NotADirectory,
    /// A filesystem is mounted read-only.
    ReadOnly,
    /// A directory cannot be written to, though its filesystem can.
    NotWritable,
    /// A filesystem has no hard links.
    NoHardLinks,
    /// `.kvm-clone` in a directory is something else than a directory of the same filesystem.
    StagingParent,
    /// A filesystem has too little space.
    Space,
    /// A filesystem has too few inodes.
    Inodes,
    /// A network does not exist.
    NetworkMissing,
    /// A network is not active, and the clone is to be started.
    NetworkInactive,
    /// A bridge does not exist.
    BridgeMissing,
    /// A network mapping names something that the VM does not use.
    MappingUnused,
    /// A disk that is not copied is not on the destination.
    MediumMissing,
    /// The destination has no emulator for the VM.
    Emulator,
    /// The destination's CPU lacks what the VM must have.
    Cpu,
    /// The destination's libvirt refuses the clone's definition.
    Rehearsal,
    /// The destination has other firmware than the VM's variables belong to.
    Firmware,
    /// A disk mapping names a disk that is not copied.
    DiskMapUnused,
    /// The place that a disk was given is taken.
    PathTaken,
    /// A block device cannot take a disk.
    Device,
    /// A transaction has reserved the block device.
    DeviceClaimed,
    /// Another controller's transaction has reserved the block device.
    DeviceHeld,
}

impl BlockerKind {
    /// The exit status that belongs to it.
    pub fn exit(self) -> u8 {
        if matches!(self, Self::NameHeld | Self::DeviceHeld) { 7 } else { 5 }
    }
}

/// What an operator should know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WarningKind {
    /// Something is carried otherwise than an operator may think.
    Carriage,
    /// Something of the source VM will be left behind, as was asked.
    LeftBehind,
    /// Something may be left behind that the source VM does not have.
    DropUnused,
    /// A VM will be replaced.
    Replaces,
    /// A file of the VM to be replaced will be left.
    OldFileLeft,
    /// A block device will be written over.
    DeviceOverwritten,
    /// The clone will stand on an image that is there and is not its own.
    SharedBase,
    /// The clone's definition names a device by a name that may become another's.
    DeviceName,
    /// The clone will be the same machine as its source to everything that looks at it.
    SameIdentity,
    /// The clone's disks go to a network filesystem.
    NetworkFilesystem,
    /// A network is not active.
    NetworkInactive,
    /// The VM has more memory than the destination.
    Memory,
    /// The VM has more CPUs than the destination.
    Cpus,
    /// The destination's CPU lacks what the VM is to have, and it starts without.
    CpuFeatures,
    /// The tables of a qcow2 disk could not be checked, or have lost space.
    DiskTables,
    /// The clock of a host differs from the controller's.
    Clock,
    /// The destination's swtpm is older than the source's, or not known.
    OlderSwtpm,
    /// The destination's libvirt is older than the source's.
    OlderLibvirt,
    /// The destination's QEMU is older than the source's.
    OlderHypervisor,
    /// Another VM has the same MAC address.
    MacShared,
    /// A medium is not on the destination, and its drive is emptied.
    DriveEmptied,
    /// The destination has another build of the firmware.
    FirmwareBuild,
    /// The emulator has another path on the destination.
    EmulatorPath,
    /// A disk's owner does not exist on the destination.
    OwnerUnknown,
    /// A snapshot holds the memory of a guest.
    SnapshotMemory,
}

/// An unfinished transaction of this controller, or one that was abandoned without its destination being reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// Which one.
    pub txn: TxnId,
    /// The machine-id of its destination.
    pub destination_machine_id: String,
    /// The name that it clones to.
    pub new_name: String,
    /// The machine-id of its source.
    pub source_machine_id: String,
    /// The VM that it clones.
    pub vm_uuid: String,
    /// A process drives it now.
    pub running: bool,
    /// It was abandoned: in the way only where its claim is still on the destination.
    pub abandoned: bool,
    /// What to do about it.
    pub advice: String,
}

impl Unfinished {
    /// Is it the same request: source host, VM, destination host, new name?
    fn is_for(&self, survey: &Survey) -> bool {
        let (source, destination) = (&survey.source, &survey.destination);
        self.source_machine_id == source.host.machine_id
            && self.vm_uuid == source.vm.brief.uuid.to_string()
            && self.destination_machine_id == destination.host.machine_id
            && self.new_name == survey.new_name.as_str()
    }
}

/// All that preflight found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Report {
    /// In the way.
    pub blockers: Vec<Blocker>,
    /// To be known.
    pub warnings: Vec<Warning>,
}

impl Report {
    /// The exit status of a refusal: 5, or 7 when that is all there is; `None` when nothing is in the way.
    pub fn exit(&self) -> Option<u8> {
        // 5 counts more than 7 where both are there.
        self.blockers.iter().map(|blocker| blocker.kind.exit()).min()
    }

    fn block(&mut self, kind: BlockerKind, host: &str, message: String, advice: impl Into<String>) {
        let blocker = Blocker { kind, host: host.to_owned(), message, advice: advice.into() };
        // Two disks in one directory need not say the same thing twice.
        if !self.blockers.contains(&blocker) {
            self.blockers.push(blocker);
        }
    }

    fn warn(&mut self, kind: WarningKind, host: &str, message: String, advice: impl Into<String>) {
        let warning = Warning { kind, host: host.to_owned(), message, advice: advice.into() };
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }
}

/// Looks for everything that survey and request show to be in the way.
pub fn check(request: &Request, survey: &Survey, controller: &ControllerId, unfinished: &[Unfinished]) -> Report {
    let mut report = Report::default();
    vm::check(&mut report, survey);
    left_behind::check(&mut report, request, survey);
    snapshots::check(&mut report, survey);
    place::check_machine(&mut report, survey);
    place::check_name(&mut report, survey, controller, unfinished);
    replace::check(&mut report, request, survey);
    // What is there already needs no room, and runs as it is.
    if !replace::is_up_to_date(request, survey) {
        place::check_directories(&mut report, request, survey);
        place::warn_of_bases(&mut report, survey);
        devices::check(&mut report, request, survey, controller);
        fit::check(&mut report, request, survey);
    }
    disk_map::check(&mut report, request, survey);
    report
}

/// Everything that is known before a transaction begins.
#[derive(Debug)]
pub struct Prepared {
    /// The facts.
    pub survey: Survey,
    /// What is in the way, and what is to be known.
    pub report: Report,
    /// The plan; `None` when something is in the way, or there is nothing to do.
    pub plan: Option<PlanV1>,
    /// What is there is a clone of this VM, and neither was changed since: there is nothing to do.
    pub up_to_date: bool,
    /// An unfinished transaction of the very same request.
    pub unfinished: Option<TxnId>,
}

/// Surveys both hosts, looks for problems, plans, and lets the destination's libvirt say what it makes of the clone's
/// definition. Touches nothing. `unfinished`: what this controller has not brought to its end.
pub fn prepare(
    source: &dyn Host,
    destination: &dyn Host,
    request: &Request,
    circumstances: &mut Circumstances<'_>,
    unfinished: &[Unfinished],
) -> Result<Prepared, SurveyError> {
    let survey = survey::survey(source, destination, request)?;
    let same_request = unfinished.iter().find(|one| one.is_for(&survey)).map(|one| one.txn);
    let mut report = check(request, &survey, circumstances.controller, unfinished);
    let up_to_date = replace::is_up_to_date(request, &survey) && report.blockers.is_empty();
    if up_to_date {
        return Ok(Prepared { survey, report, plan: None, up_to_date, unfinished: same_request });
    }
    let plan = match plan(request, &survey, circumstances) {
        Ok(plan) => {
            let rehearsal = survey::rehearse(destination, &plan.definition)?;
            fit::check_rehearsal(&mut report, &survey, &rehearsal);
            snapshots::rehearse(&mut report, destination, &plan)?;
            replace::warn(&mut report, request, &survey, &plan);
            Some(plan)
        }
        Err(PlanError::NoImage { .. } | PlanError::NoDirectory { .. } | PlanError::NoDevice { .. })
            if !report.blockers.is_empty() =>
        {
            None
        }
        Err(error) => {
            let message = format!("{}: {error}.", survey.source.name);
            report.block(BlockerKind::Definition, &survey.source.name, message, "");
            None
        }
    };
    let plan = plan.filter(|_| report.blockers.is_empty());
    Ok(Prepared { survey, report, plan, up_to_date, unfinished: same_request })
}
