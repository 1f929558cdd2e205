//! What a command says when it does not do what was asked: what, where, why, and what to do next.

use std::io::ErrorKind;

use serde::Serialize;

use super::exit::ExitStatus;
use crate::domain::NameError;
use crate::host::AddressError;
use crate::journal::{JournalError, StateDirError};
use crate::report::show::Suggestion;
use crate::request::RequestError;
use crate::world::{Fault, FaultKind};

/// A command's failure, ready to be shown.
#[derive(Debug, Clone)]
pub struct CliError {
    /// How the program ends.
    pub exit: ExitStatus,
    /// What went wrong, where, and why.
    pub message: String,
    /// What to do next; empty where the message says all.
    pub hint: String,
    /// Single problems, where there are several.
    pub problems: Vec<Problem>,
    /// Commands that would go on from here.
    pub suggestions: Vec<Suggestion>,
}

/// One of several problems.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Which one, for programs.
    pub kind: serde_json::Value,
    /// The host it is on.
    pub host: String,
    /// What is wrong, where, and why.
    pub message: String,
    /// What to do about it; empty where the message says all.
    pub hint: String,
}

/// A failure as JSON: `{"error": {…}}`.
#[derive(Debug, Serialize)]
pub struct ErrorView<'a> {
    exit_status: u8,
    message: &'a str,
    hint: &'a str,
    #[serde(skip_serializing_if = "<[Problem]>::is_empty")]
    problems: &'a [Problem],
    #[serde(skip_serializing_if = "<[Suggestion]>::is_empty")]
    suggestions: &'a [Suggestion],
}

impl CliError {
    /// A failure with one problem.
    pub fn new(exit: ExitStatus, message: impl Into<String>, hint: impl Into<String>) -> Self {
        let (message, hint) = (message.into(), hint.into());
        Self { exit, message, hint, problems: Vec::new(), suggestions: Vec::new() }
    }

    /// What was typed cannot be meant.
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(ExitStatus::Usage, message, hint)
    }

    /// A journal that cannot be used. `otherwise`: how it ends if only the disk below the journal is in trouble.
    pub fn journal(error: &JournalError, otherwise: ExitStatus) -> Self {
        let hint = match error {
            JournalError::Damaged { path, .. } => {
                format!(
                    "nothing was written, both copies are kept as they are below {path}; \
                     `kvm-clone journal verify TXN` says whether one mends the other: then resume or rollback does it; \
                     if neither does, move that directory away, and `kvm-clone recover --from HOST` clears the destination by its own record"
                )
            }
            JournalError::Newer { .. } => "nothing was written".to_owned(),
            JournalError::Held { pid, host, .. } => {
                format!("wait until process {pid} on {host} has ended, or end it; it suspends cleanly on SIGTERM")
            }
            JournalError::Conflict { .. } => "another process went on with it; look with `kvm-clone show`".to_owned(),
            JournalError::Io { source, .. }
                if matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) =>
            {
                "make room on the disk that holds the state directory, then run this again".to_owned()
            }
            JournalError::Io { .. } | JournalError::Poisoned { .. } => {
                "look at the disk that holds the state directory (space, permissions, errors), then go on".to_owned()
            }
        };
        Self::new(ExitStatus::of_journal_error(error, otherwise), error.to_string(), hint)
    }

    /// A host that cannot be used as asked, before there is a transaction: nothing was touched.
    pub fn before_begun(fault: &Fault) -> Self {
        let message = match fault.kind {
            FaultKind::Interrupted => format!("{}; nothing was touched", fault.detail),
            _ => fault.to_string(),
        };
        let host = &fault.host;
        let hint = match fault.kind {
            FaultKind::Interrupted => "run it again",
            FaultKind::Unreachable | FaultKind::TimedOut => {
                return Self::new(
                    ExitStatus::Refused,
                    message,
                    format!("see that {host} is up and answers, then run it again; nothing was touched"),
                );
            }
            FaultKind::LibvirtDown => {
                "start libvirtd (or virtqemud) on that host, then run it again; nothing was touched"
            }
            _ => "remove the cause, then run it again; nothing was touched",
        };
        Self::new(ExitStatus::Refused, message, hint)
    }

    /// The JSON form.
    pub fn view(&self) -> ErrorView<'_> {
        ErrorView {
            exit_status: self.exit as u8,
            message: &self.message,
            hint: &self.hint,
            problems: &self.problems,
            suggestions: &self.suggestions,
        }
    }
}

impl From<RequestError> for CliError {
    fn from(error: RequestError) -> Self {
        Self::usage(error.to_string(), "no host was contacted")
    }
}

impl From<AddressError> for CliError {
    fn from(error: AddressError) -> Self {
        Self::usage(error.to_string(), "no host was contacted")
    }
}

impl From<NameError> for CliError {
    fn from(error: NameError) -> Self {
        Self::usage(error.to_string(), "no host was contacted")
    }
}

impl From<StateDirError> for CliError {
    fn from(error: StateDirError) -> Self {
        match error {
            StateDirError::Journal(error) => Self::journal(&error, ExitStatus::Refused),
            error => Self::usage(error.to_string(), ""),
        }
    }
}
