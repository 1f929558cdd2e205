//! The state machine: run, resume, rollback, clean-up, and the recovery table. Knows nothing of ssh, libvirt or sled.

use journal_format::{FailureV1, FindingV1};

pub use crate::observer::{Observer, Progress};

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The clone is there (exit 0); what clean-up had to leave is listed.
    Committed {
        /// For people.
        warnings: Vec<String>,
    },
    /// The world is as before: because it was asked for (`None`, exit 0) or after a failure (exit 1, or its own).
    RolledBack {
        /// Why.
        failure: Option<FailureV1>,
    },
    /// It can go on (exit 3, or 7 when somebody else holds it).
    Suspended(FailureV1),
    /// A person must act (exit 4).
    Stuck(FindingV1),
    /// What was asked does not fit the transaction's state; nothing was done (exit 5).
    Refused(FailureV1),
}
