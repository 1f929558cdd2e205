//! What a journal's events mean now: the one word that `list` and `show` give a transaction. Pure.

use std::fmt;

use journal_format::EndV1;
use serde::{Serialize, Serializer};

use crate::history::History;

/// What a transaction is, in one word. The words are part of the command line's promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// A process drives it now.
    Running,
    /// Nobody drives it; it can be resumed or rolled back.
    Interrupted,
    /// It turned back and its effects are not all gone yet; `rollback` goes on.
    RollingBack,
    /// A person must act.
    Stuck,
    /// The clone is committed and something of the transaction is still to be cleared away.
    CleaningUp,
    /// The clone is there and nothing is left to do.
    Committed,
    /// The world is as it was before.
    RolledBack,
    /// A person closed it.
    Abandoned,
}

impl Status {
    /// The status of a transaction with this past; `held`: a living process has its lock.
    pub fn of(history: &History, held: bool) -> Self {
        match history {
            History { finished: Some((EndV1::Committed, _)), .. } => Self::Committed,
            History { finished: Some((EndV1::RolledBack, _)), .. } => Self::RolledBack,
            History { abandoned: Some(_), .. } => Self::Abandoned,
            History { stuck: Some(_), .. } => Self::Stuck,
            History { committed: true, .. } => Self::CleaningUp,
            History { rolling_back: Some(_), .. } => Self::RollingBack,
            _ if held => Self::Running,
            _ => Self::Interrupted,
        }
    }

    /// Whether anything is left to do: by `resume`, `rollback` or a person.
    pub fn is_unfinished(self) -> bool {
        !matches!(self, Self::Committed | Self::RolledBack | Self::Abandoned)
    }

    /// The word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Interrupted => "interrupted",
            Self::RollingBack => "rolling_back",
            Self::Stuck => "stuck",
            Self::CleaningUp => "cleaning_up",
            Self::Committed => "committed",
            Self::RolledBack => "rolled_back",
            Self::Abandoned => "abandoned",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl Serialize for Status {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}
