//! Exit statuses: part of the command line's promise, for scripts that never read a message.

use std::process::ExitCode;

use journal_format::FailureV1;

use crate::engine::Ending;
use crate::journal::JournalError;

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitStatus {
    /// Done; also a rollback that was asked for and is done, and the resume of a finished transaction.
    Done = 0,
    /// Failed, and rolled back: the world is as before.
    RolledBack = 1,
    /// Wrong usage or input; no host was contacted.
    Usage = 2,
    /// Suspended: can be resumed or rolled back.
    Suspended = 3,
    /// Stuck: a person must act.
    Stuck = 4,
    /// Refused after looking, nothing touched, or what was reserved was undone; also the rollback of a committed transaction and the resume of one that
    /// is rolling back.
    Refused = 5,
    /// A journal is damaged, or newer than this program.
    Journal = 6,
    /// Held by another controller or process.
    Held = 7,
}

impl ExitStatus {
    /// All of them, worst first: what counts where several transactions end differently.
    pub const WORST_FIRST: [Self; 8] = [
        Self::Journal,
        Self::Stuck,
        Self::Suspended,
        Self::RolledBack,
        Self::Refused,
        Self::Held,
        Self::Usage,
        Self::Done,
    ];

    /// In a word or two, for tables.
    pub fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::RolledBack => "rolled back",
            Self::Usage => "wrong usage",
            Self::Suspended => "suspended",
            Self::Stuck => "stuck",
            Self::Refused => "refused",
            Self::Journal => "journal damaged or newer",
            Self::Held => "held",
        }
    }

    /// The worse of two.
    #[must_use]
    pub fn worse(self, other: Self) -> Self {
        let either = |status: &Self| *status == self || *status == other;
        Self::WORST_FIRST.into_iter().find(either).unwrap_or(other)
    }

    /// The status for the way in which an attempt ended.
    pub fn of_ending(ending: &Ending) -> Self {
        match ending {
            Ending::Committed { .. } | Ending::RolledBack { failure: None } | Ending::Abandoned { .. } => Self::Done,
            Ending::RolledBack { failure: Some(failure) } => Self::of_failure(failure, Self::RolledBack),
            Ending::Suspended(failure) => Self::of_failure(failure, Self::Suspended),
            // A person removed it, and a person must know: a script must not take it for a clone.
            Ending::Stuck(_) | Ending::CloneGone { .. } => Self::Stuck,
            Ending::Refused(failure) => Self::of_failure(failure, Self::Refused),
        }
    }

    /// The status that a failure names, if it is one that a failed attempt can end with.
    fn of_failure(failure: &FailureV1, otherwise: Self) -> Self {
        let named = Self::WORST_FIRST.into_iter().find(|status| *status as u8 == failure.exit);
        named.filter(|status| !matches!(status, Self::Done | Self::Usage)).unwrap_or(otherwise)
    }

    /// The status for a journal that cannot be used; `otherwise` is for trouble with the disk below it.
    pub fn of_journal_error(error: &JournalError, otherwise: Self) -> Self {
        match error {
            JournalError::Damaged { .. } | JournalError::Newer { .. } => Self::Journal,
            JournalError::Held { .. } | JournalError::Conflict { .. } => Self::Held,
            JournalError::Io { .. } | JournalError::Poisoned { .. } => otherwise,
        }
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status as u8)
    }
}

#[cfg(test)]
mod tests {
    use journal_format::FailureClassV1;

    use super::*;

    fn failure(exit: u8) -> FailureV1 {
        FailureV1 { class: FailureClassV1::TurnBack, exit, message: String::new(), advice: String::new() }
    }

    #[test]
    fn the_worst_counts() {
        assert_eq!(ExitStatus::Done.worse(ExitStatus::Usage), ExitStatus::Usage);
        assert_eq!(ExitStatus::Suspended.worse(ExitStatus::RolledBack), ExitStatus::Suspended);
        assert_eq!(ExitStatus::Journal.worse(ExitStatus::Stuck), ExitStatus::Journal);
        assert_eq!(ExitStatus::Held.worse(ExitStatus::Refused), ExitStatus::Refused);
    }

    #[test]
    fn an_ending_has_its_status_and_never_pretends_success() {
        for (ending, status) in [
            (Ending::Committed { warnings: vec!["left".into()] }, ExitStatus::Done),
            (Ending::RolledBack { failure: None }, ExitStatus::Done),
            (Ending::RolledBack { failure: Some(failure(1)) }, ExitStatus::RolledBack),
            (Ending::RolledBack { failure: Some(failure(5)) }, ExitStatus::Refused),
            (Ending::RolledBack { failure: Some(failure(0)) }, ExitStatus::RolledBack),
            (Ending::Suspended(failure(3)), ExitStatus::Suspended),
            (Ending::Suspended(failure(7)), ExitStatus::Held),
            (Ending::Suspended(failure(99)), ExitStatus::Suspended),
            (Ending::Refused(failure(5)), ExitStatus::Refused),
            (
                Ending::CloneGone { missing: vec!["the VM web02".into()], orphans: Vec::new(), warnings: Vec::new() },
                ExitStatus::Stuck,
            ),
        ] {
            assert_eq!(ExitStatus::of_ending(&ending), status, "{ending:?}");
        }
    }
}
