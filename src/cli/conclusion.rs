//! How an attempt ended, in words and as JSON: what the world is now, and what to do next.

use serde_json::{Map, Value, json};

use super::error::CliError;
use super::exit::ExitStatus;
use super::run::Told;
use super::terminal::Terminal;
use crate::engine::Ending;
use crate::report::quantity::{bytes, printable};
use crate::report::show::{stuck, suggestions};
use crate::report::status::Status;
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
            Ending::CloneGone { missing, orphans, warnings: left } => {
                warnings = left;
                let (message, hint) = clone_gone(&log.transaction_id, &log.destination.host, &missing, &orphans);
                error = Some(CliError::new(status, message, hint));
            }
            Ending::RolledBack { failure: None } => done = Some(rolled_back(&log)),
            Ending::RolledBack { failure: Some(failure) } => {
                let message = format!("{}\n{}", failure.message, rolled_back(&log));
                error = Some(CliError::new(status, message, failure.advice));
            }
            Ending::Suspended(failure) => {
                let message = format!("{}\nThe transaction is suspended; nothing is lost.", failure.message);
                error = Some(CliError::new(status, message, failure.advice));
            }
            Ending::Stuck(finding) => {
                let message =
                    format!("transaction {} is stuck{}", log.transaction_id, stuck(&log.destination.host, &finding));
                error = Some(CliError::new(status, message, "once that is gone, look again:"));
            }
            Ending::Abandoned { left } => done = Some(abandoned(&log, left)),
            Ending::Refused(failure) => error = Some(CliError::new(status, failure.message, failure.advice)),
        }
        if let Some(error) = &mut error {
            error.suggestions = suggestions(&log, program);
        }
        Self { status, log, warnings, done, error }
    }

    /// Of an attempt that found everything ended before, and so asked no host: nothing is claimed of the world as it is now.
    #[must_use]
    pub fn of_before(mut self) -> Self {
        if self.done.is_some() {
            self.warnings.extend(self.log.warnings.iter().cloned());
            self.done = Some(ended_before(&self.log));
        }
        self
    }

    /// Tells all of it: the end of a command that made one attempt.
    pub fn tell(&self, terminal: &Terminal) -> ExitStatus {
        self.say(terminal);
        terminal.result(&self.json(), || self.human());
        self.status
    }

    /// All of it, for whoever sums several up; what went wrong is said now.
    pub fn told(&self, terminal: &Terminal) -> Told {
        self.say(terminal);
        let (word, txn) = (self.log.status.to_string(), Some(self.log.transaction_id.clone()));
        Told { status: self.status, word, txn, value: self.json(), text: self.human() }
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
    let disks = log.disks.iter().filter(|disk| disk.kind == "disk").count();
    format!(
        "{} on {} is a clone of {} on {}: {disks} {}, {} sent. Transaction {}.",
        clone.vm_name,
        clone.host,
        source.vm_name,
        source.host,
        if disks == 1 { "disk" } else { "disks" },
        bytes(sent),
        log.transaction_id,
    )
}

fn ended_before(log: &TransactionLog) -> String {
    let what = if log.status == Status::RolledBack { "was already rolled back" } else { "already finished" };
    let when = log.completed_at.as_deref().unwrap_or("an unknown time");
    format!(
        "Transaction {} ({} → {} on {}) {what} at {when}: nothing was done now, and no host was asked.",
        log.transaction_id, log.source.vm_name, log.destination.vm_name, log.destination.host
    )
}

/// What is said of a clone that somebody removed after its commit: message and hint.
pub fn clone_gone(txn: &str, host: &str, missing: &[String], orphans: &[String]) -> (String, String) {
    let lines =
        |start: String, what: &[String]| what.iter().fold(start, |text, line| format!("{text}\n  {}", printable(line)));
    let host = printable(host);
    let gone = format!(
        "transaction {txn} was committed, but somebody removed the clone or a part of it since. No longer on {host}:"
    );
    let mut message = lines(gone, missing);
    if !orphans.is_empty() {
        message = lines(format!("{message}\nLeft on {host}, and used by no VM that kvm-clone made:"), orphans);
    }
    (message, "if that was not meant, run the clone again; what is left is for you to remove".to_owned())
}

fn abandoned(log: &TransactionLog, left: Option<Vec<String>>) -> String {
    let host = &log.destination.host;
    let (what, left) = match left {
        Some(left) if left.is_empty() => return closed(log, &format!("Nothing of it is left on {host}.")),
        Some(left) => (format!("Left on {host}, for you to remove:"), left),
        None => {
            let may_be = log.may_be_left().map(|(kind, id)| format!("{kind} {id}")).collect();
            (format!("{host} was not reached. If it ever comes back, abandon it again; it may hold:"), may_be)
        }
    };
    closed(log, &left.iter().fold(what, |text, line| format!("{text}\n  {}", printable(line))))
}

fn closed(log: &TransactionLog, rest: &str) -> String {
    format!("Transaction {} is abandoned: nobody acts on it any more. {rest}", log.transaction_id)
}

fn rolled_back(log: &TransactionLog) -> String {
    format!("Transaction {} is rolled back: nothing of it is left on {}.", log.transaction_id, log.destination.host)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use journal_format::{EventV1, FindingV1};

    use super::*;
    use crate::report::fixture::{Journal, failure};

    fn conclude(ending: Ending, journal: &Journal) -> Conclusion {
        Conclusion::new(ending, TransactionLog::of(&journal.records, false, None).unwrap(), "kvm-clone")
    }

    #[test]
    fn a_committed_clone_is_reported_with_what_was_left() {
        let journal = Journal::begun().did(1, 0..7).committed(1);
        let conclusion = conclude(Ending::Committed { warnings: vec!["a directory was left".into()] }, &journal);
        let json = conclusion.json();
        assert_eq!((json["exit_status"].as_u64(), json["status"].as_str()), (Some(0), Some("committed")));
        assert_eq!(json["warnings"][0], "a directory was left");
        assert!(json.get("error").is_none(), "{json}");
        assert!(conclusion.human().contains("web01_clone on kvm2 is a clone of web01 on kvm1: 1 disk, 610.00 MB sent"));
    }

    #[test]
    fn what_did_not_succeed_says_why_and_how_to_go_on() {
        let suspended = Journal::begun().did(1, 0..3).then(1, EventV1::Suspended { failure: failure("kvm2: gone") });
        let finding = FindingV1 {
            step: None,
            expected: "our image".into(),
            found: "another".into(),
            commands: vec!["ls -li /srv/vm".into()],
        };
        let stuck = Journal::begun().did(1, 0..3).then(1, EventV1::Stuck { finding: finding.clone() });
        for (ending, journal, status, words, commands) in [
            (Ending::Suspended(failure("kvm2: gone")), &suspended, 3, "suspended", &["resume", "rollback"][..]),
            (Ending::Stuck(finding), &stuck, 4, "$ ls -li /srv/vm", &["resume", "rollback", "abandon"]),
            (Ending::Refused(failure("kvm2: gone")), &Journal::begun().did(1, 0..7).committed(1), 3, "kvm2: gone", &[]),
        ] {
            let conclusion = conclude(ending, journal);
            assert_eq!(conclusion.human(), "");
            let error = &conclusion.json()["error"];
            assert_eq!(error["exit_status"], status);
            assert!(error["message"].as_str().unwrap().contains(words), "{error}");
            let suggested = error["suggestions"].as_array().cloned().unwrap_or_default();
            assert_eq!(suggested.len(), commands.len(), "{error}");
            for (suggestion, command) in suggested.iter().zip(commands) {
                let reason = if *command == "abandon" { " --reason TEXT" } else { "" };
                let typed = format!("kvm-clone {command} 0198c0de-1111-7000-8000-0000deadbeef{reason}");
                assert_eq!(suggestion["command"], typed);
            }
        }
    }
}
