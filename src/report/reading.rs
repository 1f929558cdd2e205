//! From records to the transaction log: a pure fold.

use std::collections::BTreeMap;

use journal_format::{
    AttemptPurpose, CleanUpStepV1, EventV1, FailureClassV1, FailureV1, FindingV1, ImageFormat, ImageRoleV1, ImageV1,
    OutcomeV1, PlanV1, RecordV1, StepRef, StepV1,
};

use super::live::LiveProgress;
use super::quantity::percent;
use super::replaced::ReplacedView;
use super::status::Status;
use super::step::{all_steps, describe, forward, image_of_bytes};
use super::transaction::{
    AttemptView, CountedView, DiskView, EventView, FailureView, FindingView, OptionsView, ProgressView, ResourceView,
    StepId, StepView, TransactionLog, VmView,
};
use crate::history::{History, IllegalRecord, Last, StepHistory};

impl TransactionLog {
    /// Folds a journal's records. `held`: a living process drives it. `live`: what was last reported by one, if
    /// anything was.
    pub fn of(records: &[RecordV1], held: bool, live: Option<LiveProgress>) -> Result<Self, IllegalRecord> {
        let history = History::of(records)?;
        let plan = &*history.plan;
        let status = Status::of(&history, held);
        let mut chronicle = Chronicle::default();
        for (sequence, record) in records.iter().enumerate() {
            chronicle.take(plan, sequence, record);
        }
        let live = live.filter(|_| status.is_unfinished());
        let reading = Reading { history: &history, plan, live: live.as_ref() };
        let starts = |step: StepRef| chronicle.starts.get(&step).copied().unwrap_or(0);
        let steps: Vec<StepView> = all_steps(plan).map(|step| reading.step(step, starts(step))).collect();
        let abandoned_at = history.abandoned.as_ref().map(|_| history.last_at);
        Ok(Self {
            transaction_id: plan.txn.to_string(),
            operation_type: "clone",
            started_at: plan.created_at.to_string(),
            completed_at: history.finished.map(|(_, at)| at).or(abandoned_at).map(|at| at.to_string()),
            status,
            source: VmView {
                host: plan.request.source.address.clone(),
                machine_id: plan.request.source.machine_id.clone(),
                vm_name: plan.request.vm_name.clone(),
                vm_uuid: plan.request.vm_uuid.to_string(),
            },
            destination: VmView {
                host: plan.request.destination.address.clone(),
                machine_id: plan.request.destination.machine_id.clone(),
                vm_name: plan.request.new_name.clone(),
                vm_uuid: plan.clone_uuid.to_string(),
            },
            replaces: ReplacedView::of(plan),
            options: options(plan),
            progress: reading.progress(&steps),
            resources: reading.resources(),
            disks: (0..).zip(&plan.images).map(|(index, disk)| reading.disk(index, disk)).collect(),
            warnings: reading.warnings(),
            steps,
            attempts: chronicle.attempts,
            failures: chronicle.failures,
            findings: chronicle.findings,
            abandoned_because: history.abandoned.clone(),
            events: chronicle.events,
            program_version: plan.program_version.clone(),
            counted: counted(&history),
        })
    }
}

/// The last step of the clean-up tells.
fn counted(history: &History) -> Option<CountedView> {
    match history.clean_up.last()?.outcome.as_ref()? {
        OutcomeV1::Counted { survey, source, destination } => Some(CountedView {
            survey_of_source: survey.map(|[source, _]| source.into()),
            survey_of_destination: survey.map(|[_, destination]| destination.into()),
            source: source.map(Into::into),
            destination: destination.map(Into::into),
        }),
        _ => None,
    }
}

fn options(plan: &PlanV1) -> OptionsView {
    let options = &plan.request.options;
    OptionsView {
        start: options.start,
        verify: options.verify,
        preserve_mac: options.preserve_mac,
        preserve_uuid: options.preserve_uuid,
        preallocate: options.preallocate,
        bandwidth_limit_bytes_per_second: options.bandwidth_limit_bytes_per_second,
        chunk_size_bytes: options.chunk_size_bytes,
        dropped: options.dropped.iter().map(|kind| kind.word()).collect(),
    }
}

/// What the history does not keep: everything in its order.
#[derive(Debug, Default)]
struct Chronicle {
    starts: BTreeMap<StepRef, u32>,
    attempts: Vec<AttemptView>,
    failures: Vec<FailureView>,
    findings: Vec<FindingView>,
    events: Vec<EventView>,
}

impl Chronicle {
    fn take(&mut self, plan: &PlanV1, sequence: usize, record: &RecordV1) {
        let at = record.at.to_string();
        let (event, step, text) = words(plan, &record.event);
        self.events.push(EventView {
            sequence,
            at: at.clone(),
            epoch: record.epoch.0,
            event,
            step: step.map(StepId::from),
            text,
        });
        match &record.event {
            EventV1::Started { step } => *self.starts.entry(*step).or_default() += 1,
            EventV1::Failed { failure, .. }
            | EventV1::LeftBehind { failure, .. }
            | EventV1::RollingBack { failure }
            | EventV1::Suspended { failure } => self.failures.push(failure_view(at, event, step, failure)),
            EventV1::Stuck { finding } => self.findings.push(finding_view(at, finding)),
            EventV1::AttemptOpened { epoch, purpose, pid } => self.attempts.push(AttemptView {
                epoch: epoch.0,
                purpose: purpose_word(*purpose),
                pid: *pid,
                opened_at: at,
            }),
            EventV1::Begun { .. }
            | EventV1::Done { .. }
            | EventV1::Reopened { .. }
            | EventV1::Undone { .. }
            | EventV1::Committed
            | EventV1::Abandoned { .. }
            | EventV1::Finished { .. }
            | EventV1::SourceChanged { .. } => {}
        }
    }
}

/// A history and what was reported besides, read for one view after the other.
struct Reading<'a> {
    history: &'a History,
    plan: &'a PlanV1,
    live: Option<&'a LiveProgress>,
}

impl Reading<'_> {
    fn step(&self, step: StepRef, attempts: u32) -> StepView {
        let words = describe(self.plan, step);
        let history = self.history.step(step);
        let state = match history {
            Some(StepHistory { left_behind: Some(_), .. }) => "left_behind",
            Some(history) => last_word(history.last),
            None => "pending",
        };
        StepView {
            id: step.into(),
            kind: words.kind,
            object: words.object,
            description: words.line,
            state,
            attempts,
            started_at: history.and_then(|history| history.started_at).map(|at| at.to_string()),
            completed_at: history.and_then(|history| history.done_at).map(|at| at.to_string()),
        }
    }

    fn is_done(&self, step: StepRef) -> bool {
        self.history.step(step).is_some_and(|history| history.last == Last::Done)
    }

    fn progress(&self, steps: &[StepView]) -> ProgressView {
        let (mut done, mut total) = (0, 0);
        for step in all_steps(self.plan) {
            let Some(disk) = image_of_bytes(self.plan, step) else { continue };
            total += disk.source_stamp.size;
            if self.is_done(step) {
                done += disk.source_stamp.size;
            } else if let Some(live) = self.live.filter(|live| live.step_ref() == step) {
                done += live.done_bytes.min(disk.source_stamp.size);
            }
        }
        ProgressView {
            steps_done: steps.iter().filter(|step| step.state == "done").count(),
            steps_total: steps.len(),
            percent: percent(done, total),
            live: self.live.cloned(),
        }
    }

    /// The outcome of a step that is done.
    fn outcome(&self, wanted: StepV1) -> Option<&OutcomeV1> {
        self.history.of_step(wanted).filter(|history| history.last == Last::Done)?.outcome.as_ref()
    }

    fn disk(&self, index: u32, disk: &ImageV1) -> DiskView {
        let transfer = self.outcome(StepV1::TransferImage { image: index });
        let (roots, missing_bytes, sent_bytes) = match transfer {
            Some(OutcomeV1::Transferred { root, source_root, missing_bytes, sent_bytes, .. }) => {
                (Some((root, source_root)), Some(*missing_bytes), Some(*sent_bytes))
            }
            _ => (None, None, None),
        };
        let of_this =
            |live: &&LiveProgress| forward(self.plan, live.step_ref()) == Some(StepV1::TransferImage { image: index });
        let reported = self.live.filter(of_this);
        let verified = self.outcome(StepV1::VerifyImage { image: index }).is_some();
        DiskView {
            target: disk.role.to_string(),
            kind: match disk.role {
                ImageRoleV1::Disk { .. } => "disk",
                ImageRoleV1::Layer { .. } => "layer",
                ImageRoleV1::Medium { .. } => "medium",
                ImageRoleV1::Nvram => "nvram",
                ImageRoleV1::Tpm => "tpm",
            },
            format: match disk.clone_format() {
                ImageFormat::Raw => "raw",
                ImageFormat::Qcow2 => "qcow2",
            },
            source_path: disk.source_path.clone(),
            flattened: disk.flattened.iter().map(|layer| layer.source_path.clone()).collect(),
            final_path: disk.final_path.clone(),
            size_bytes: disk.source_stamp.size,
            allocated_bytes: disk.allocated_bytes,
            ledger_bytes: match transfer {
                Some(OutcomeV1::Transferred { source_size, .. }) => Some(*source_size),
                _ => reported.map(|live| live.done_bytes),
            },
            missing_bytes,
            sent_bytes,
            root: roots.map(|(root, _)| root.to_string()),
            source_root: roots.filter(|(root, source)| root != source).map(|(_, source)| source.to_string()),
            verification: match (verified, self.plan.request.options.verify) {
                (true, _) => "re-read",
                (false, true) => "pending",
                (false, false) => "not re-read",
            },
        }
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if !self.plan.request.options.verify {
            warnings.push("the clone's disks are not re-read before publishing (--no-verify)".to_owned());
        }
        if self.is_clone_gone() {
            warnings.push(format!(
                "the VM {} was no longer defined on {} when the clean-up came to it: somebody removed it after the commit",
                self.plan.request.new_name, self.plan.request.destination.address
            ));
        }
        for step in all_steps(self.plan) {
            if let Some(OutcomeV1::Left { why }) = self.history.step(step).and_then(|history| history.outcome.as_ref())
            {
                warnings.push(why.clone());
            }
            if let Some(failure) = self.history.step(step).and_then(|history| history.left_behind.as_ref()) {
                warnings.push(format!("left behind: {}: {}", describe(self.plan, step).line, failure.message));
            }
        }
        warnings
    }

    /// Was the clone found removed after its commit?
    fn is_clone_gone(&self) -> bool {
        let finish = self.plan.clean_up.iter().position(|step| *step == CleanUpStepV1::FinishDomain);
        let history = finish.and_then(|place| self.history.clean_up.get(place));
        history.is_some_and(|step| step.outcome == Some(OutcomeV1::AlreadySo))
    }

    fn resources(&self) -> Vec<ResourceView> {
        let plan = self.plan;
        let mut resources = Vec::new();
        for step in all_steps(plan) {
            let Some(kind) = forward(plan, step) else { continue };
            let Some((resource_type, resource_id, metadata)) = resource_of(plan, kind) else { continue };
            let state = self.resource_state(kind, step);
            resources.push(ResourceView {
                resource_type,
                resource_id: self.staged(kind, state).unwrap_or(resource_id),
                host: plan.request.destination.address.clone(),
                state,
                metadata,
            });
        }
        resources
    }

    /// Where an image is that is there and has no final name yet.
    fn staged(&self, kind: StepV1, state: &str) -> Option<String> {
        let StepV1::CreateImage { image } = kind else { return None };
        let published = self.history.of_step(StepV1::PublishImage { image }).map_or(Last::None, |step| step.last);
        let is_staged = matches!(published, Last::None | Last::Undone) && matches!(state, "present" | "in_progress");
        let image = usize::try_from(image).ok().and_then(|image| self.plan.images.get(image));
        image.filter(|_| is_staged).map(|image| image.staging_path.clone())
    }

    fn resource_state(&self, kind: StepV1, step: StepRef) -> &'static str {
        let cleared = remover(kind).is_some_and(|remover| {
            (0..)
                .zip(&self.plan.clean_up)
                .any(|(index, step)| *step == remover && self.is_done(StepRef::CleanUp(index)))
        });
        match self.history.step(step).map_or(Last::None, |history| history.last) {
            _ if cleared => "removed",
            _ if matches!(kind, StepV1::DefineDomain | StepV1::DefineSnapshot { .. }) && self.is_clone_gone() => {
                "removed"
            }
            Last::None => "planned",
            Last::Done => "present",
            Last::Undone => "removed",
            Last::Started | Last::Reopened | Last::Failed => "in_progress",
        }
    }
}

/// What a step makes, if it makes a thing: type, name, metadata.
fn resource_of(
    plan: &PlanV1,
    kind: StepV1,
) -> Option<(&'static str, String, BTreeMap<&'static str, serde_json::Value>)> {
    let at = |index: u32| usize::try_from(index).ok();
    let mut metadata = BTreeMap::new();
    let (resource_type, id) = match kind {
        StepV1::ReserveRecord => ("host_record", plan.txn.to_string()),
        StepV1::ClaimName => ("name_claim", plan.request.new_name.clone()),
        StepV1::ClaimDevice { image } => ("device_claim", plan.images.get(at(image)?)?.device()?.identity.clone()),
        StepV1::CreateStaging { directory } => {
            let directory = plan.directories.get(at(directory)?)?;
            metadata.insert("directory", directory.path.clone().into());
            ("staging_directory", directory.staging.clone())
        }
        StepV1::CreateImage { image } => {
            let image = plan.images.get(at(image)?)?;
            metadata.insert("target", image.role.to_string().into());
            metadata.insert("staging_path", image.staging_path.clone().into());
            metadata.insert("final_path", image.final_path.clone().into());
            metadata.insert("source_path", image.source_path.clone().into());
            if !image.flattened.is_empty() {
                let layers: Vec<_> = image.flattened.iter().map(|layer| layer.source_path.clone()).collect();
                metadata.insert("flattened", layers.into());
            }
            metadata.insert("size_bytes", image.source_stamp.size.into());
            ("disk", image.final_path.clone())
        }
        StepV1::MakeDirectory { directory } => ("directory", plan.new_directories.get(at(directory)?)?.path.clone()),
        StepV1::DefineDomain => {
            metadata.insert("name", plan.request.new_name.clone().into());
            ("domain", plan.clone_uuid.to_string())
        }
        StepV1::DefineSnapshot { snapshot } => ("snapshot", plan.snapshots.get(at(snapshot)?)?.name.clone()),
        StepV1::StopOldVm
        | StepV1::DetectSharedStorage
        | StepV1::HoldBase { .. }
        | StepV1::TransferImage { .. }
        | StepV1::VerifyImage { .. }
        | StepV1::PublishImage { .. } => return None,
    };
    Some((resource_type, id, metadata))
}

/// The clean-up step that removes what a step made, where the thing is not meant to stay.
fn remover(kind: StepV1) -> Option<CleanUpStepV1> {
    match kind {
        StepV1::ReserveRecord => Some(CleanUpStepV1::RemoveRecord),
        StepV1::ClaimName | StepV1::ClaimDevice { .. } => Some(CleanUpStepV1::ReleaseClaim),
        StepV1::CreateStaging { directory } => Some(CleanUpStepV1::RemoveStaging { directory }),
        _ => None,
    }
}

fn last_word(last: Last) -> &'static str {
    match last {
        Last::None => "pending",
        Last::Started => "started",
        Last::Reopened => "reopened",
        Last::Failed => "failed",
        Last::Done => "done",
        Last::Undone => "undone",
    }
}

fn failure_view(at: String, event: &'static str, step: Option<StepRef>, failure: &FailureV1) -> FailureView {
    FailureView {
        at,
        event,
        step: step.map(StepId::from),
        class: match failure.class {
            FailureClassV1::Suspend => "suspend",
            FailureClassV1::TurnBack => "turn_back",
            FailureClassV1::Stop => "stop",
        },
        message: failure.message.clone(),
        advice: failure.advice.clone(),
    }
}

fn finding_view(at: String, finding: &FindingV1) -> FindingView {
    FindingView {
        at,
        step: finding.step.map(StepId::from),
        expected: finding.expected.clone(),
        found: finding.found.clone(),
        commands: finding.commands.clone(),
    }
}

fn purpose_word(purpose: AttemptPurpose) -> &'static str {
    match purpose {
        AttemptPurpose::Run => "run",
        AttemptPurpose::Resume => "resume",
        AttemptPurpose::Rollback => "rollback",
    }
}

/// An event's kind, the step it concerns, and one line for people.
fn words(plan: &PlanV1, event: &EventV1) -> (&'static str, Option<StepRef>, String) {
    let line = |step: &StepRef| describe(plan, *step).line;
    match event {
        EventV1::Begun { .. } => ("begun", None, format!("planned: {} steps", all_steps(plan).count())),
        EventV1::AttemptOpened { epoch, purpose, pid } => {
            ("attempt_opened", None, format!("attempt {} by {} (process {pid})", epoch.0, purpose_word(*purpose)))
        }
        EventV1::Started { step } => ("started", Some(*step), line(step)),
        EventV1::Done { step, .. } => ("done", Some(*step), line(step)),
        EventV1::Failed { step, failure } => ("failed", Some(*step), format!("{}: {}", line(step), failure.message)),
        EventV1::Reopened { step, why, .. } => ("reopened", Some(*step), format!("{}: {why}", line(step))),
        EventV1::RollingBack { failure } => ("rolling_back", None, failure.message.clone()),
        EventV1::Undone { step } => ("undone", Some(*step), line(step)),
        EventV1::Committed => ("committed", None, "the clone is committed: from here on only forward".to_owned()),
        EventV1::Stuck { finding } => {
            ("stuck", finding.step, format!("expected {}; found {}", finding.expected, finding.found))
        }
        EventV1::Abandoned { reason } => ("abandoned", None, reason.clone()),
        EventV1::Suspended { failure } => ("suspended", None, failure.message.clone()),
        EventV1::Finished { .. } => ("finished", None, "nothing is left to do".to_owned()),
        EventV1::SourceChanged { image, .. } => {
            let target = usize::try_from(*image).ok().and_then(|image| plan.images.get(image));
            let target = target.map_or_else(|| "a disk".to_owned(), |image| image.role.to_string());
            ("source_changed", None, format!("the source's image of {target} changed; it was hashed again"))
        }
        EventV1::LeftBehind { step, failure } => {
            ("left_behind", Some(*step), format!("{}: {}", line(step), failure.message))
        }
    }
}
