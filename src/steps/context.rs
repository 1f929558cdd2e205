//! What a step may use: the plan, what happened so far, the two hosts, the ledger.

use std::collections::BTreeMap;
use std::rc::Rc;

use journal_format::{
    BaseV1, ChunkState, CleanUpStepV1, ControllerId, CountsV1, DeviceV1, ImageV1, NewDirectoryV1, OutcomeV1, PlanV1,
    SnapshotV1, StepRef, StepV1,
};

use super::claim_device::claim_of;
use super::host_record::HostRecord;
use crate::failure::Failure;
use crate::history::{Last, StepHistory};
use crate::journal::recorder::Recorder;
use crate::world::{ChunkGeometry, Host, World};

/// One attempt, as its steps see it.
pub struct Context<'a> {
    /// The clock, randomness and the copy between the hosts.
    pub world: &'a dyn World,
    /// The plan.
    pub plan: Rc<PlanV1>,
    /// Who acts.
    pub controller: ControllerId,
    /// Journal, history, ledger, observer.
    pub recorder: Recorder<'a>,
    /// The destination: its agent holds the owner lock once there is a host record.
    pub destination: Rc<dyn Host>,
    /// The source; only an attempt that goes forward has one.
    pub source: Option<Rc<dyn Host>>,
    /// Where the host record is.
    pub record: HostRecord,
    /// Clean-up leaves the host record with its mark: the controller whose journal knows nothing of the commit must see it.
    pub keeps_record: bool,
    /// Image bytes per second at most.
    pub bandwidth_limit_bytes_per_second: Option<u64>,
    /// Chunks of each staged image that were read back from the disk while it was copied, in this attempt, and not judged yet.
    pub read_back: BTreeMap<u32, BTreeMap<u64, ChunkState>>,
    /// What agents that are gone by now did.
    pub counted: Counted,
}

/// What the agents did that looked before there was a plan (the source's, the destination's), and the source's in this attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counted {
    /// `None`: they were another process's.
    pub survey: Option<[CountsV1; 2]>,
    /// `None`: there was none, or it lives.
    pub source: Option<CountsV1>,
}

impl Context<'_> {
    /// The source, for a step that goes forward.
    pub fn source(&self) -> Result<Rc<dyn Host>, Failure> {
        self.source
            .clone()
            .ok_or_else(|| Failure::suspend("the source is not connected in this attempt", "resume to go forward"))
    }

    /// The name that the clone is defined by until the commit: its own, or one beside the old VM.
    pub fn defined_name(&self) -> &str {
        self.plan.replaced.as_ref().map_or(&self.plan.request.new_name, |old| &old.clone_name)
    }

    /// One disk of the plan.
    pub fn image(&self, image: u32) -> Result<&ImageV1, Failure> {
        self.plan.images.get(image as usize).ok_or_else(|| inconsistent("image", image))
    }

    /// One image that is used as it is there.
    pub fn base(&self, base: u32) -> Result<&BaseV1, Failure> {
        self.plan.bases.get(base as usize).ok_or_else(|| inconsistent("base", base))
    }

    /// The block device that an image is written to, with its node's path.
    pub fn device(&self, image: u32) -> Result<(&str, &DeviceV1), Failure> {
        let planned = self.image(image)?;
        let device = planned.device().ok_or_else(|| inconsistent("device of image", image))?;
        Ok((&planned.final_path, device))
    }

    /// Every claim of this transaction: on the clone's name, and on block devices.
    pub fn claims(&self) -> Vec<String> {
        let devices = self.plan.images.iter().filter_map(ImageV1::device).map(claim_of);
        std::iter::once(self.record.claim.clone()).chain(devices).collect()
    }

    /// One directory of the plan: `(path, staging, nonce)`.
    pub fn directory(&self, directory: u32) -> Result<&journal_format::DirectoryV1, Failure> {
        self.plan.directories.get(directory as usize).ok_or_else(|| inconsistent("directory", directory))
    }

    /// One directory of the plan that is made for final names.
    pub fn new_directory(&self, directory: u32) -> Result<&NewDirectoryV1, Failure> {
        self.plan.new_directories.get(directory as usize).ok_or_else(|| inconsistent("new directory", directory))
    }

    /// One snapshot of the plan.
    pub fn snapshot(&self, snapshot: u32) -> Result<&SnapshotV1, Failure> {
        self.plan.snapshots.get(snapshot as usize).ok_or_else(|| inconsistent("snapshot", snapshot))
    }

    /// What happened to a step.
    pub fn history_of(&self, step: StepV1) -> Option<&StepHistory> {
        self.recorder.history().of_step(step)
    }

    /// The last event of a step.
    pub fn last_of(&self, step: StepV1) -> Last {
        self.history_of(step).map_or(Last::None, |step| step.last)
    }

    /// The outcome of a step that is done.
    pub fn outcome_of(&self, step: StepV1) -> Option<&OutcomeV1> {
        self.history_of(step)?.outcome.as_ref()
    }

    /// Is this clean-up step done?
    pub fn is_cleaned_up(&self, step: CleanUpStepV1) -> bool {
        let place = self.plan.clean_up.iter().position(|planned| *planned == step);
        place.and_then(|place| self.recorder.history().clean_up.get(place)).is_some_and(|step| step.last == Last::Done)
    }

    /// Was this clean-up step begun, and is not through? What it asked of libvirt may have been torn by a power cut.
    pub fn is_under_way(&self, step: CleanUpStepV1) -> bool {
        let place = self.plan.clean_up.iter().position(|planned| *planned == step);
        place
            .and_then(|place| self.recorder.history().clean_up.get(place))
            .is_some_and(|step| step.last == Last::Started)
    }

    /// What a clean-up step came to, if it is through.
    pub fn outcome_of_clean_up(&self, step: CleanUpStepV1) -> Option<&OutcomeV1> {
        let place = self.plan.clean_up.iter().position(|planned| *planned == step)?;
        self.recorder.history().clean_up.get(place).filter(|step| step.last == Last::Done)?.outcome.as_ref()
    }

    /// Where a step stands in the plan.
    pub fn place_of(&self, step: StepV1) -> Result<StepRef, Failure> {
        let index = self.plan.steps.iter().position(|planned| *planned == step);
        let index = index.and_then(|index| u32::try_from(index).ok());
        index.map(StepRef::Forward).ok_or_else(|| inconsistent("step", 0))
    }

    /// Size and chunks of an image, from the source's stamp that the ledger belongs to.
    pub fn geometry(&self, image: u32) -> Result<ChunkGeometry, Failure> {
        let source = self.recorder.history().sources.get(image as usize).ok_or_else(|| inconsistent("image", image))?;
        Ok(ChunkGeometry { image_bytes: source.stamp.size, chunk_bytes: self.plan.request.options.chunk_size_bytes })
    }
}

/// The plan names a table entry that it does not have.
fn inconsistent(what: &str, index: u32) -> Failure {
    Failure::stop(None, format!("a plan that has {what} {index}"), "a plan without it: the journal is not consistent")
}
