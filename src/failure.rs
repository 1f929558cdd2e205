//! The three classes of failure (suspend, turn back, stop) and which class a fault of the world falls into.

use journal_format::{FailureClassV1, FailureV1, FindingV1, StepRef};

use crate::journal::JournalError;
use crate::world::{Fault, FaultKind};

/// What a step, or an attempt, could not do.
#[derive(Debug)]
pub enum Failure {
    /// Suspend or turn back.
    Refusal(FailureV1),
    /// A person must act.
    Finding(FindingV1),
    /// The controller's own journal; suspends, and cannot be recorded.
    Journal(JournalError),
}

impl Failure {
    /// Nothing is undone, everything can go on (exit 3).
    pub fn suspend(message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::refusal(FailureClassV1::Suspend, 3, message, advice)
    }

    /// Somebody else drives this transaction (exit 7).
    pub fn held(message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::refusal(FailureClassV1::Suspend, 7, message, advice)
    }

    /// A definite refusal: roll back (exit 1).
    pub fn turn_back(message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::refusal(FailureClassV1::TurnBack, 1, message, advice)
    }

    /// Roll back with another exit status: 5 or 7 for a name that is taken.
    pub fn turn_back_with(exit: u8, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::refusal(FailureClassV1::TurnBack, exit, message, advice)
    }

    /// Something that is not ours, or no longer as we left it, is in our place (exit 4).
    pub fn stop(step: Option<StepRef>, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self::Finding(FindingV1 { step, expected: expected.into(), found: found.into(), commands: Vec::new() })
    }

    fn refusal(class: FailureClassV1, exit: u8, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::Refusal(FailureV1 { class, exit, message: message.into(), advice: advice.into() })
    }

    /// May the journal still be written after this?
    pub fn is_recordable(&self) -> bool {
        !matches!(self, Self::Journal(_))
    }

    /// In words, for a place where only a refusal fits.
    pub fn into_refusal(self) -> FailureV1 {
        match self {
            Self::Refusal(failure) => failure,
            Self::Finding(finding) => FailureV1 {
                class: FailureClassV1::Stop,
                exit: 4,
                message: format!("expected {}, found {}", finding.expected, finding.found),
                advice: finding.commands.join("; "),
            },
            Self::Journal(error) => journal_failure(&error),
        }
    }
}

/// A journal that cannot be written suspends; a damaged, newer or held one says so with its own exit status.
pub fn journal_failure(error: &JournalError) -> FailureV1 {
    let (exit, advice) = match error {
        JournalError::Damaged { .. } | JournalError::Newer { .. } => (6, "see `kvm-clone journal verify`"),
        JournalError::Held { .. } => (7, "wait for that process, or end it"),
        JournalError::Io { .. } | JournalError::Poisoned { .. } | JournalError::Conflict { .. } => {
            (3, "make room or repair the disk of the state directory, then resume")
        }
    };
    FailureV1 { class: FailureClassV1::Suspend, exit, message: error.to_string(), advice: advice.to_owned() }
}

impl From<JournalError> for Failure {
    fn from(error: JournalError) -> Self {
        Self::Journal(error)
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        let message = fault.to_string();
        match fault.kind {
            FaultKind::Denied | FaultKind::Unsupported | FaultKind::Refused | FaultKind::AlreadyExists => {
                Self::turn_back(message, "remove the cause on that host, then run the clone again")
            }
            // The world is not what a probe saw a moment ago: the next attempt looks again and decides by the table.
            FaultKind::NotFound | FaultKind::Changed | FaultKind::NotEmpty => {
                Self::suspend(message, "something changed on that host meanwhile; resume looks again")
            }
            FaultKind::InUse => Self::suspend(message, "shut the virtual machine off, then resume"),
            FaultKind::NoSpace => Self::suspend(message, "make room on that host, then resume"),
            FaultKind::Io => Self::suspend(message, "repair the disk of that host, then resume"),
            FaultKind::LibvirtDown => Self::suspend(message, "start libvirtd (or virtqemud) on that host, then resume"),
            FaultKind::Unreachable | FaultKind::TimedOut => {
                Self::suspend(message, "when the host answers again, resume")
            }
            FaultKind::Unusable => Self::suspend(message, "make the host reachable as the message says, then resume"),
            FaultKind::Interrupted => Self::suspend(fault.detail, "resume to go on, rollback to undo"),
            FaultKind::Fenced => Self::held(message, "another attempt has taken over this transaction"),
            FaultKind::Sink => Self::suspend(message, "resume"),
        }
    }
}
