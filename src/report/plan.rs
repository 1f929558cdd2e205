//! What `plan` says: everything that is in the way or to be known, and of a plan every step, the bytes, where they go, what
//! the clone's definition has otherwise, and about how long it takes.

use std::fmt::Write;
use std::time::Duration;

use journal_format::{ImageFormat, PlanV1};
use serde::Serialize;

use super::quantity::{bytes, duration, printable};
use super::replaced::ReplacedView;
use super::step::{all_steps, describe};
use super::table::lay_out;
use super::transaction::StepId;
use crate::domain::{Difference, DomainError};
use crate::plan::changes::changes;
use crate::preflight::{Blocker, Report, Warning};

/// What a relay over one ssh connection is reckoned to move where nothing limits it: an estimate for people.
const ESTIMATED_BYTES_PER_SECOND: u64 = 200_000_000;

/// What `plan --json` gives.
#[derive(Debug, Serialize)]
pub struct Foresight<'a> {
    /// The plan; `None` where something is in the way.
    pub plan: Option<PlanView>,
    /// What is in the way.
    pub blockers: &'a [Blocker],
    /// What is to be known.
    pub warnings: &'a [Warning],
}

impl<'a> Foresight<'a> {
    /// Of what was found, and of what would be done.
    pub fn of(report: &'a Report, plan: Option<&PlanV1>) -> Result<Self, DomainError> {
        let plan = plan.map(PlanView::of).transpose()?;
        Ok(Self { plan, blockers: &report.blockers, warnings: &report.warnings })
    }

    /// For people: the plan, then what was found.
    pub fn human(&self) -> String {
        let mut text = self.plan.as_ref().map(human).unwrap_or_default();
        let blockers = self.blockers.iter().map(|one| ["blocker".to_owned(), one.host.clone(), one.to_string()]);
        let warnings = self.warnings.iter().map(|one| ["warning".to_owned(), one.host.clone(), one.to_string()]);
        let rows: Vec<_> = blockers.chain(warnings).map(|row| row.map(|cell| cell.replace('\n', " "))).collect();
        if rows.is_empty() {
            text.push_str("Nothing is in the way.");
        } else {
            text.push_str(&lay_out(["PREFLIGHT", "HOST", "WHAT, AND WHAT TO DO"], &rows));
        }
        let _ = writeln!(text, "{}Nothing was touched.", if rows.is_empty() { " " } else { "\n" });
        text
    }
}

/// A plan as `plan --json` gives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlanView {
    /// The source host as the user named it.
    pub source: String,
    /// The VM that would be cloned.
    pub vm: String,
    /// The destination host as the user named it.
    pub destination: String,
    /// The clone's name.
    pub new_name: String,
    /// The clone's UUID in this plan; another run would choose another.
    pub clone_uuid: String,
    /// The disks.
    pub disks: Vec<PlannedDisk>,
    /// Images that are there already, and on which the clone would stand as they are.
    pub bases: Vec<PlannedBase>,
    /// Bytes that are allocated on the source and so would be moved.
    pub allocated_bytes: u64,
    /// Seconds that moving and reading back would take, about.
    pub estimated_seconds: u64,
    /// The VM that would be replaced.
    pub replaces: Option<ReplacedView>,
    /// What the clone's definition has otherwise than the source's.
    pub changes: Vec<Difference>,
    /// Every step, in order.
    pub steps: Vec<PlannedStep>,
}

/// A disk in a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedDisk {
    /// Target in the definition.
    pub target: String,
    /// `raw` or `qcow2`.
    pub format: &'static str,
    /// The image on the source.
    pub source_path: String,
    /// The images below it that are read through it, from the top down.
    pub flattened: Vec<String>,
    /// The image's final name.
    pub final_path: String,
    /// Bytes of the image file, holes included.
    pub size_bytes: u64,
    /// Bytes allocated on the source.
    pub allocated_bytes: u64,
}

/// An image that would not be copied, because the destination has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedBase {
    /// What of the VM it is, such as `vda/1`.
    pub target: String,
    /// The image on the source.
    pub source_path: String,
    /// The image on the destination.
    pub path: String,
    /// Bytes of either.
    pub size_bytes: u64,
    /// Plain BLAKE3 of either.
    pub root: String,
}

/// A step in a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedStep {
    /// Which one.
    #[serde(flatten)]
    pub id: StepId,
    /// Its kind.
    pub kind: &'static str,
    /// What it is about.
    pub object: String,
    /// One line for people.
    pub description: String,
}

impl PlanView {
    /// Of a plan whose definitions can be read, as those of a new one can.
    pub fn of(plan: &PlanV1) -> Result<Self, DomainError> {
        let options = &plan.request.options;
        let allocated_bytes = plan.images.iter().map(|disk| disk.allocated_bytes).sum();
        let rate = options
            .bandwidth_limit_bytes_per_second
            .map_or(ESTIMATED_BYTES_PER_SECOND, |limit| limit.clamp(1, ESTIMATED_BYTES_PER_SECOND));
        let reading_back = if options.verify { allocated_bytes / ESTIMATED_BYTES_PER_SECOND } else { 0 };
        Ok(Self {
            source: plan.request.source.address.clone(),
            vm: plan.request.vm_name.clone(),
            destination: plan.request.destination.address.clone(),
            new_name: plan.request.new_name.clone(),
            clone_uuid: plan.clone_uuid.to_string(),
            disks: plan
                .images
                .iter()
                .map(|disk| PlannedDisk {
                    target: disk.role.to_string(),
                    format: match disk.clone_format() {
                        ImageFormat::Raw => "raw",
                        ImageFormat::Qcow2 => "qcow2",
                    },
                    source_path: disk.source_path.clone(),
                    flattened: disk.flattened.iter().map(|layer| layer.source_path.clone()).collect(),
                    final_path: disk.final_path.clone(),
                    size_bytes: disk.source_stamp.size,
                    allocated_bytes: disk.allocated_bytes,
                })
                .collect(),
            bases: plan
                .bases
                .iter()
                .map(|base| PlannedBase {
                    target: base.role.to_string(),
                    source_path: base.source_path.clone(),
                    path: base.path.clone(),
                    size_bytes: base.stamp.size,
                    root: base.root.to_string(),
                })
                .collect(),
            allocated_bytes,
            estimated_seconds: allocated_bytes.div_ceil(rate) + reading_back,
            replaces: ReplacedView::of(plan),
            changes: changes(plan)?,
            steps: all_steps(plan)
                .map(|step| {
                    let words = describe(plan, step);
                    let (kind, object, description) = (words.kind, words.object, words.line);
                    PlannedStep { id: step.into(), kind, object, description }
                })
                .collect(),
        })
    }
}

/// The plan for people.
fn human(plan: &PlanView) -> String {
    let mut text = format!(
        "{} on {} would be cloned to {} on {}\n\n",
        printable(&plan.vm),
        printable(&plan.source),
        printable(&plan.new_name),
        printable(&plan.destination)
    );
    let rows: Vec<[String; 6]> = plan
        .disks
        .iter()
        .map(|disk| {
            [
                disk.target.clone(),
                disk.format.to_owned(),
                bytes(disk.size_bytes),
                bytes(disk.allocated_bytes),
                disk.source_path.clone(),
                disk.final_path.clone(),
            ]
        })
        .collect();
    text.push_str(&lay_out(["DISK", "FORMAT", "SIZE", "ALLOCATED", "FROM", "TO"], &rows));
    text.push_str("\nSteps\n");
    for (number, step) in plan.steps.iter().enumerate() {
        if step.id == (StepId { phase: "clean_up", index: 0 }) {
            text.push_str("      -- commit: from here on only forward --\n");
        }
        let _ = writeln!(text, "  {:>2}  {}", number + 1, printable(&step.description));
    }
    let part = |part: &Option<String>| part.as_deref().map_or_else(|| "-".to_owned(), str::to_owned);
    let rows: Vec<_> =
        plan.changes.iter().map(|change| [change.path.clone(), part(&change.old), part(&change.new)]).collect();
    let _ = write!(text, "\n{}", lay_out(["CHANGE OF THE DEFINITION", "SOURCE", "CLONE"], &rows));
    let time = duration(Duration::from_secs(plan.estimated_seconds));
    let replaced = match &plan.replaces {
        Some(old) => format!("Would be replaced: {}.", printable(&old.line())),
        None => "Nothing would be replaced.".to_owned(),
    };
    let _ = writeln!(text, "\n{} to move, about {time}. {replaced}\n", bytes(plan.allocated_bytes));
    text
}
