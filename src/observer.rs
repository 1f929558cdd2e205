//! Who watches a transaction: terminals and logs. Nothing is ever read back from an observer.

use journal_format::{RecordV1, StepRef};

/// Is told what happens while it happens.
pub trait Observer {
    /// A record became durable.
    fn appended(&mut self, sequence: u64, record: &RecordV1);
    /// A step that moves bytes moved some.
    fn progress(&mut self, progress: &Progress);
    /// Something an operator should know that changes nothing.
    fn warning(&mut self, message: &str);
}

/// How far a step that moves bytes is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Which step.
    pub step: StepRef,
    /// Image bytes dealt with, holes included.
    pub done_bytes: u64,
    /// Image bytes in all.
    pub total_bytes: u64,
}
