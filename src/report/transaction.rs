//! The transaction log as plain data: what `show --json` prints and the human view is made of. The field names are the
//! command line's promise. How it is made of records: `reading`.

use std::collections::BTreeMap;

use journal_format::{CountsV1, StepRef};
use serde::Serialize;

use super::live::LiveProgress;
use super::replaced::ReplacedView;
use super::status::Status;

/// One transaction, whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TransactionLog {
    /// All 36 characters.
    pub transaction_id: String,
    /// Always `clone`.
    pub operation_type: &'static str,
    /// RFC 3339, UTC.
    pub started_at: String,
    /// When it finished or was abandoned; RFC 3339, UTC.
    pub completed_at: Option<String>,
    /// One word.
    pub status: Status,
    /// The VM that is cloned.
    pub source: VmView,
    /// The clone.
    pub destination: VmView,
    /// The VM that gives way to the clone.
    pub replaces: Option<ReplacedView>,
    /// What was asked for besides.
    pub options: OptionsView,
    /// How far it is.
    pub progress: ProgressView,
    /// Every thing that the transaction makes on a host.
    pub resources: Vec<ResourceView>,
    /// The disks with their counters.
    pub disks: Vec<DiskView>,
    /// The steps of the plan, in order.
    pub steps: Vec<StepView>,
    /// Lives of a controller in this transaction.
    pub attempts: Vec<AttemptView>,
    /// What went wrong, oldest first.
    pub failures: Vec<FailureView>,
    /// What a person must look at, oldest first.
    pub findings: Vec<FindingView>,
    /// What an operator should know that changes nothing.
    pub warnings: Vec<String>,
    /// In a person's words, why it was abandoned.
    pub abandoned_because: Option<String>,
    /// Every event of the journal, oldest first.
    pub events: Vec<EventView>,
    /// The program that planned it.
    pub program_version: String,
    /// What the agents did, once it is finished and where it is known.
    pub counted: Option<CountedView>,
}

impl TransactionLog {
    /// What the journal says may be on the destination now: type and name of each thing.
    pub fn may_be_left(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let there = self.resources.iter().filter(|resource| matches!(resource.state, "present" | "in_progress"));
        there.map(|resource| (resource.resource_type, resource.resource_id.as_str()))
    }
}

/// What the agents did, as they counted it themselves; `null`: not known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CountedView {
    /// The one that looked at the source before there was a plan.
    pub survey_of_source: Option<CountsView>,
    /// The one that looked at the destination then.
    pub survey_of_destination: Option<CountsView>,
    /// The source's in the attempt that committed.
    pub source: Option<CountsView>,
    /// The destination's in the attempt that finished.
    pub destination: Option<CountsView>,
}

/// What one agent did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CountsView {
    /// Requests, but for signs of life.
    pub requests: u64,
    /// Bytes of images that were read to be copied or hashed; holes are not read.
    pub image_bytes_read: u64,
    /// Bytes of images that were written.
    pub image_bytes_written: u64,
    /// Bytes of small files, and of the headers of images, that were read.
    pub file_bytes_read: u64,
    /// Calls of libvirt that were relayed.
    pub libvirt_calls: u64,
}

impl From<CountsV1> for CountsView {
    fn from(counts: CountsV1) -> Self {
        Self {
            requests: counts.requests,
            image_bytes_read: counts.image_bytes_read,
            image_bytes_written: counts.image_bytes_written,
            file_bytes_read: counts.file_bytes_read,
            libvirt_calls: counts.libvirt_calls,
        }
    }
}

/// A VM and the host it is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VmView {
    /// The host as the user named it.
    pub host: String,
    /// The host's `/etc/machine-id`.
    pub machine_id: String,
    /// The VM's name.
    pub vm_name: String,
    /// The VM's UUID.
    pub vm_uuid: String,
}

/// The request's options.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "they mirror the request's switches")]
pub struct OptionsView {
    /// Start the clone once it is finished.
    pub start: bool,
    /// Read every chunk back before publishing.
    pub verify: bool,
    /// Keep MAC addresses.
    pub preserve_mac: bool,
    /// Keep the UUID.
    pub preserve_uuid: bool,
    /// Allocate images whole.
    pub preallocate: bool,
    /// Limit that was asked for when it began.
    pub bandwidth_limit_bytes_per_second: Option<u64>,
    /// Bytes of a chunk.
    pub chunk_size_bytes: u32,
    /// Kinds of what was left behind where it could not be carried, as `--drop` names them.
    pub dropped: Vec<&'static str>,
}

/// How far a transaction is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProgressView {
    /// Steps whose effect is there.
    pub steps_done: usize,
    /// Steps in all.
    pub steps_total: usize,
    /// Of the bytes to be moved and read back: whole per cent. The journal knows whole steps; what a running
    /// transaction reports besides is added.
    pub percent: u64,
    /// The step that moves bytes now, or did when it was last seen.
    pub live: Option<LiveProgress>,
}

/// A thing on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ResourceView {
    /// `host_record`, `name_claim`, `device_claim`, `staging_directory`, `disk` or `domain`.
    pub resource_type: &'static str,
    /// What names it: a path, a name or a UUID.
    pub resource_id: String,
    /// The host as the user named it.
    pub host: String,
    /// `planned`, `in_progress`, `present` or `removed`.
    pub state: &'static str,
    /// What else is known, such as `final_path`.
    pub metadata: BTreeMap<&'static str, serde_json::Value>,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiskView {
    /// Target in the definition, such as `vda`.
    pub target: String,
    /// `disk`, `layer` (below a disk), `medium`, `nvram` or `tpm`.
    pub kind: &'static str,
    /// `raw` or `qcow2`.
    pub format: &'static str,
    /// The image on the source.
    pub source_path: String,
    /// The images below it that are read through it, from the top down.
    pub flattened: Vec<String>,
    /// The image's final name on the destination.
    pub final_path: String,
    /// Bytes of the image file, holes included.
    pub size_bytes: u64,
    /// Bytes allocated on the source when it was planned.
    pub allocated_bytes: u64,
    /// Bytes of the image that the ledger held when they were last reported; `None` where nobody reported any.
    pub ledger_bytes: Option<u64>,
    /// Image bytes that were missing on the destination when the attempt that completed the transfer began.
    pub missing_bytes: Option<u64>,
    /// Image bytes that crossed the wire in that attempt.
    pub sent_bytes: Option<u64>,
    /// Plain BLAKE3 of the image, as `b3sum` prints it.
    pub root: Option<String>,
    /// The same of the source's image, where that is another: it stands on images of other names.
    pub source_root: Option<String>,
    /// `re-read`, `pending`, or `not re-read` where `--no-verify` was asked for.
    pub verification: &'static str,
}

/// One step of the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StepView {
    /// Which one.
    #[serde(flatten)]
    pub id: StepId,
    /// Its kind, such as `transfer_image`.
    pub kind: &'static str,
    /// What it is about.
    pub object: String,
    /// One line for people.
    pub description: String,
    /// `pending`, `started`, `done`, `failed`, `reopened`, `undone` or `left_behind`.
    pub state: &'static str,
    /// How often it was started.
    pub attempts: u32,
    /// When it was first started; RFC 3339, UTC.
    pub started_at: Option<String>,
    /// When it was last done; RFC 3339, UTC.
    pub completed_at: Option<String>,
}

/// A step by its place in the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct StepId {
    /// `forward` or `clean_up`.
    pub phase: &'static str,
    /// From 0.
    pub index: u32,
}

impl From<StepRef> for StepId {
    fn from(step: StepRef) -> Self {
        match step {
            StepRef::Forward(index) => Self { phase: "forward", index },
            StepRef::CleanUp(index) => Self { phase: "clean_up", index },
        }
    }
}

/// One life of a controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AttemptView {
    /// Its number.
    pub epoch: u64,
    /// `run`, `resume` or `rollback`.
    pub purpose: &'static str,
    /// The controller's process.
    pub pid: u32,
    /// RFC 3339, UTC.
    pub opened_at: String,
}

/// Something that went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FailureView {
    /// RFC 3339, UTC.
    pub at: String,
    /// `suspended`, `failed`, `rolling_back` or `left_behind`.
    pub event: &'static str,
    /// The step, where it concerns one.
    pub step: Option<StepId>,
    /// `suspend`, `turn_back` or `stop`.
    pub class: &'static str,
    /// What, where and why.
    pub message: String,
    /// What to do next.
    pub advice: String,
}

/// Something that a person must look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FindingView {
    /// RFC 3339, UTC.
    pub at: String,
    /// The step in whose place it was found.
    pub step: Option<StepId>,
    /// What should have been there.
    pub expected: String,
    /// What was there.
    pub found: String,
    /// Commands that a person would type.
    pub commands: Vec<String>,
}

/// One event of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EventView {
    /// Its place in the journal, from 0.
    pub sequence: usize,
    /// RFC 3339, UTC.
    pub at: String,
    /// The attempt that appended it.
    pub epoch: u64,
    /// Its kind, such as `started`.
    pub event: &'static str,
    /// The step, where it concerns one.
    pub step: Option<StepId>,
    /// One line for people.
    pub text: String,
}
