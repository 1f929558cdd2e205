//! How an attempt ended, in words and as JSON: what the world is now, and what to do next.

use serde_json::{Map, Value, json};

use super::error::CliError;
use super::exit::ExitStatus;
use super::terminal::Terminal;
use crate::engine::Ending;
use crate::report::quantity::bytes;
use crate::report::show::{next, stuck};
use crate::report::transaction::TransactionLog;

/// The end of one attempt.
pub struct Conclusion {
    /// How the program ends, as far as this transaction goes.
    pub status: ExitStatus,
    log: TransactionLog,
    warnings: Vec<String>,
    /// What was reached, where something was.
    done: Option<String>,
    /// What was not.
    error: Option<CliError>,
}

impl Conclusion {
    /// From an ending; `log` is the transaction as it is now, `program` how this program is called.
    pub fn new(ending: Ending, log: TransactionLog, program: &str) -> Self {
        let status = ExitStatus::of_ending(&ending);
        let mut warnings = Vec::new();
        let (mut done, mut error) = (None, None);
        match ending {
            Ending::Committed { warnings: left } => {
                warnings = left;
                done = Some(cloned(&log));
            }
            Ending::RolledBack { failure: None } => done = Some(rolled_back(&log)),
            Ending::RolledBack { failure: Some(failure) } => {
                let hint =
                    join(&failure.advice, &format!("{} Run it again once the cause is gone.", rolled_back(&log)));
                error = Some(CliError::new(status, failure.message, hint));
            }
            Ending::Suspended(failure) => {
                let message = format!("{}\nThe transaction is suspended; nothing is lost.", failure.message);
                error = Some(CliError::new(status, message, join(&failure.advice, &next(&log, program))));
            }
            Ending::Stuck(finding) => {
                let view = crate::report::transaction::FindingView {
                    at: String::new(),
                    step: finding.step.map(Into::into),
                    expected: finding.expected,
                    found: finding.found,
                    commands: finding.commands,
                };
                let message = format!("transaction {} is stuck{}", log.transaction_id, stuck(&view));
                error = Some(CliError::new(status, message, join("then:", &next(&log, program))));
            }
            Ending::Refused(failure) => {
                error = Some(CliError::new(status, failure.message, join(&failure.advice, &next(&log, program))));
            }
        }
        Self { status, log, warnings, done, error }
    }

    /// Tells all of it: the end of a command that made one attempt.
    pub fn tell(&self, terminal: &Terminal) -> ExitStatus {
        self.say(terminal);
        terminal.result(&self.json(), || self.human());
        self.status
    }

    /// Says on standard error what went wrong and what an operator should know.
    pub fn say(&self, terminal: &Terminal) {
        for warning in &self.warnings {
            terminal.warning(warning);
        }
        if let Some(error) = &self.error {
            terminal.complain(error);
        }
    }

    /// What was reached, for people.
    pub fn human(&self) -> String {
        self.done.as_ref().map_or_else(String::new, |done| format!("{done}\n"))
    }

    /// The JSON form: `id`, `status`, `transaction` with the whole log, `exit_status`, `warnings`, and `error` where there is one.
    pub fn json(&self) -> Value {
        let mut object = Map::new();
        object.insert("id".into(), json!(self.log.transaction_id));
        object.insert("status".into(), json!(self.log.status));
        object.insert("exit_status".into(), json!(self.status as u8));
        object.insert("warnings".into(), json!(self.warnings));
        if let Some(error) = &self.error {
            object.insert("error".into(), json!(error.view()));
        }
        object.insert("transaction".into(), json!(self.log));
        Value::Object(object)
    }
}

fn cloned(log: &TransactionLog) -> String {
    let (source, clone) = (&log.source, &log.destination);
    let sent: u64 = log.disks.iter().filter_map(|disk| disk.sent_bytes).sum();
    format!(
        "{} on {} is a clone of {} on {}: {} disks, {} sent. Transaction {}.",
        clone.vm_name,
        clone.host,
        source.vm_name,
        source.host,
        log.disks.len(),
        bytes(sent),
        log.transaction_id,
    )
}

fn rolled_back(log: &TransactionLog) -> String {
    format!("Transaction {} is rolled back: nothing of it is left on {}.", log.transaction_id, log.destination.host)
}

fn join(advice: &str, more: &str) -> String {
    let parts: Vec<&str> = [advice.trim(), more.trim_end()].into_iter().filter(|part| !part.is_empty()).collect();
    parts.join("\n")
}
