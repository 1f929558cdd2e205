//! The rows of `list` and `recover`: one short object a transaction, and the table made of them.

use std::time::Duration;

use journal_format::UnixMillis;
use serde::Serialize;

use super::quantity::duration;
use super::status::Status;
use super::table::lay_out;
use super::transaction::TransactionLog;

/// One transaction in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListEntry {
    /// All 36 characters.
    pub id: String,
    /// One word.
    pub status: Status,
    /// The VM that is cloned.
    pub vm: String,
    /// The clone's name.
    pub new_name: String,
    /// The source host as the user named it.
    pub source: String,
    /// The destination host as the user named it.
    pub destination: String,
    /// RFC 3339, UTC.
    pub started_at: String,
    /// RFC 3339, UTC.
    pub completed_at: Option<String>,
    /// Steps whose effect is there.
    pub steps_done: usize,
    /// Steps in all.
    pub steps_total: usize,
    /// Whole per cent of the bytes to be moved and read back.
    pub percent: u64,
    /// The kind and the object of the step that moves bytes now, such as `transfer_image vda`.
    pub step: Option<String>,
}

impl From<&TransactionLog> for ListEntry {
    fn from(log: &TransactionLog) -> Self {
        let live = log.progress.live.as_ref().filter(|_| log.status == Status::Running);
        let step = live.and_then(|live| log.steps.iter().find(|step| step.id == live.step_ref().into()));
        Self {
            id: log.transaction_id.clone(),
            status: log.status,
            vm: log.source.vm_name.clone(),
            new_name: log.destination.vm_name.clone(),
            source: log.source.host.clone(),
            destination: log.destination.host.clone(),
            started_at: log.started_at.clone(),
            completed_at: log.completed_at.clone(),
            steps_done: log.progress.steps_done,
            steps_total: log.progress.steps_total,
            percent: log.progress.percent,
            step: step.map(|step| format!("{} {}", step.kind, step.object)),
        }
    }
}

/// The table of `list`; each entry stands with the time at which it was planned.
pub fn table(entries: &[(UnixMillis, ListEntry)], now: UnixMillis) -> String {
    let rows: Vec<[String; 7]> = entries
        .iter()
        .map(|(started, entry)| {
            let age = Duration::from_millis(now.0.saturating_sub(started.0));
            [
                short(&entry.id).to_owned(),
                format!("{} → {}", entry.vm, entry.new_name),
                format!("{} → {}", entry.source, entry.destination),
                entry.status.to_string(),
                progress(entry),
                entry.started_at.clone(),
                duration(age),
            ]
        })
        .collect();
    lay_out(["TXN", "VM → CLONE", "HOSTS", "STATUS", "PROGRESS", "STARTED", "AGE"], &rows)
}

/// The last 8 digits of an id: what tables show.
pub fn short(id: &str) -> &str {
    id.get(id.len().saturating_sub(8)..).unwrap_or(id)
}

fn progress(entry: &ListEntry) -> String {
    match entry.status {
        Status::Committed => "100 %".to_owned(),
        Status::RolledBack | Status::Abandoned => "-".to_owned(),
        _ => format!("{} %, steps {}/{}", entry.percent, entry.steps_done, entry.steps_total),
    }
}
