//! The old VM as plans and transaction logs show it.

use journal_format::{OldFileFateV1, PlanV1, StopModeV1};
use serde::Serialize;

/// A VM that gives way to the clone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReplacedView {
    /// Its name: the clone's.
    pub vm_name: String,
    /// Its UUID.
    pub vm_uuid: String,
    /// It was running when it was planned.
    pub running: bool,
    /// `shutdown`, `save`, `destroy` or `never`.
    pub stop: &'static str,
    /// Its name from the commit on, where it is kept.
    pub kept_as: Option<String>,
    /// Its files that are deleted after the commit.
    pub deleted: Vec<String>,
    /// Its files that are left.
    pub left: Vec<LeftFile>,
}

/// A file of the old VM that stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftFile {
    /// Which one.
    pub path: String,
    /// Why.
    pub why: String,
}

/// As it is written on the command line.
pub fn stop_word(stop: StopModeV1) -> &'static str {
    match stop {
        StopModeV1::Shutdown => "shutdown",
        StopModeV1::Save => "save",
        StopModeV1::Destroy => "destroy",
        StopModeV1::Never => "never",
    }
}

impl ReplacedView {
    /// Of a plan; `None`: it replaces nothing.
    pub fn of(plan: &PlanV1) -> Option<Self> {
        let old = plan.replaced.as_ref()?;
        let (mut deleted, mut left) = (Vec::new(), Vec::new());
        for file in &old.files {
            match &file.fate {
                OldFileFateV1::Deleted { .. } => deleted.push(file.path.clone()),
                OldFileFateV1::Left { why } => left.push(LeftFile { path: file.path.clone(), why: why.clone() }),
            }
        }
        Some(Self {
            vm_name: plan.request.new_name.clone(),
            vm_uuid: old.uuid.to_string(),
            running: old.running,
            stop: stop_word(old.stop),
            kept_as: old.keep.then(|| old.kept_name.clone()),
            deleted,
            left,
        })
    }

    /// In one line.
    pub fn line(&self) -> String {
        let state = if self.running { "running" } else { "shut off" };
        let end = match &self.kept_as {
            Some(name) => format!("kept as {name}"),
            None => format!("{} of its files deleted, {} left", self.deleted.len(), self.left.len()),
        };
        format!("VM {} ({}), {state}: {end}", self.vm_name, self.vm_uuid)
    }
}
