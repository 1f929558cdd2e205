//! What happened (records) and what that means now: one exhaustive fold. An illegal pair is a typed error.

use std::rc::Rc;

use journal_format::{
    EndV1, Epoch, EventV1, FailureV1, FindingV1, OutcomeV1, PlanV1, RecordV1, ReopenCauseV1, SourceStampV1, StepRef,
    StepV1, UnixMillis,
};

/// The last event of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// Nothing was recorded of it.
    None,
    /// Its effect may exist.
    Started,
    /// To be applied again.
    Reopened,
    /// Refused for good; its effect may exist in part.
    Failed,
    /// Its effect exists.
    Done,
    /// Its effect is gone.
    Undone,
}

/// One step's past.
#[derive(Debug, Clone)]
pub struct StepHistory {
    /// Its last event.
    pub last: Last,
    /// Its outcome, from its last `Done`.
    pub outcome: Option<OutcomeV1>,
    /// When it was first started.
    pub started_at: Option<UnixMillis>,
    /// When it was last done.
    pub done_at: Option<UnixMillis>,
    /// Why it could not be cleaned up, if so.
    pub left_behind: Option<FailureV1>,
    /// How often reading back differed.
    pub differed: u32,
}

impl StepHistory {
    fn new() -> Self {
        Self { last: Last::None, outcome: None, started_at: None, done_at: None, left_behind: None, differed: 0 }
    }
}

/// An image's source as the ledger knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceStamp {
    /// The stamp that the ledger belongs to.
    pub stamp: SourceStampV1,
    /// It changed since the plan: the destination may hold data where the source is zero now.
    pub changed: bool,
}

/// A record that cannot follow those before it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("record {sequence} ({event}) cannot follow the records before it")]
pub struct IllegalRecord {
    /// Which record.
    pub sequence: u64,
    /// What it says, shortened.
    pub event: String,
}

/// A transaction's past, folded.
#[derive(Debug, Clone)]
pub struct History {
    /// The plan of `Begun`.
    pub plan: Rc<PlanV1>,
    /// By `StepRef::Forward`.
    pub forward: Vec<StepHistory>,
    /// By `StepRef::CleanUp`.
    pub clean_up: Vec<StepHistory>,
    /// By image.
    pub sources: Vec<SourceStamp>,
    /// Number of records.
    pub records: u64,
    /// When the last record was appended.
    pub last_at: UnixMillis,
    /// The highest epoch recorded.
    pub epoch: Epoch,
    /// How many attempts were opened.
    pub attempts: u32,
    /// From here on only back, and why.
    pub rolling_back: Option<FailureV1>,
    /// From here on only forward.
    pub committed: bool,
    /// What made it stop, until something happens again.
    pub stuck: Option<FindingV1>,
    /// What suspended the last attempt.
    pub suspended: Option<FailureV1>,
    /// Why it was given up.
    pub abandoned: Option<String>,
    /// How and when it ended.
    pub finished: Option<(EndV1, UnixMillis)>,
}

impl History {
    /// Folds a journal.
    pub fn of(records: &[RecordV1]) -> Result<Self, IllegalRecord> {
        let (first, rest) = records.split_first().ok_or_else(|| illegal(0, &"nothing"))?;
        let EventV1::Begun { plan } = &first.event else {
            return Err(illegal(0, &first.event));
        };
        let mut history = Self {
            forward: vec![StepHistory::new(); plan.steps.len()],
            clean_up: vec![StepHistory::new(); plan.clean_up.len()],
            sources: plan
                .images
                .iter()
                .map(|image| SourceStamp { stamp: image.source_stamp, changed: false })
                .collect(),
            plan: Rc::new(plan.as_ref().clone()),
            records: 1,
            last_at: first.at,
            epoch: first.epoch,
            attempts: 0,
            rolling_back: None,
            committed: false,
            stuck: None,
            suspended: None,
            abandoned: None,
            finished: None,
        };
        for record in rest {
            history.push(record)?;
        }
        Ok(history)
    }

    /// Takes in one more record.
    pub fn push(&mut self, record: &RecordV1) -> Result<(), IllegalRecord> {
        let sequence = self.records;
        let refuse = || illegal(sequence, &record.event);
        if self.finished.is_some() || self.abandoned.is_some() {
            return Err(refuse());
        }
        match &record.event {
            EventV1::Begun { .. } => return Err(refuse()),
            EventV1::AttemptOpened { epoch, .. } => {
                if *epoch <= self.epoch {
                    return Err(refuse());
                }
                self.epoch = *epoch;
                self.attempts += 1;
                self.suspended = None;
                self.stuck = None;
            }
            EventV1::Started { step } => {
                let entry = self.step_mut(*step).ok_or_else(refuse)?;
                entry.last = Last::Started;
                entry.started_at.get_or_insert(record.at);
                entry.left_behind = None;
            }
            EventV1::Done { step, outcome } => {
                let entry = self.step_mut(*step).ok_or_else(refuse)?;
                entry.last = Last::Done;
                entry.outcome = Some(outcome.clone());
                entry.done_at = Some(record.at);
                entry.left_behind = None;
            }
            EventV1::Failed { step, failure } => {
                self.forward_only(*step).ok_or_else(refuse)?.last = Last::Failed;
                self.rolling_back.get_or_insert_with(|| failure.clone());
            }
            EventV1::Reopened { step, cause, .. } => {
                let entry = self.forward_only(*step).ok_or_else(refuse)?;
                if entry.last != Last::Done && entry.last != Last::Started {
                    return Err(refuse());
                }
                entry.last = Last::Reopened;
                entry.differed += u32::from(*cause == ReopenCauseV1::ReadBackDiffers);
            }
            EventV1::RollingBack { failure } => {
                if self.committed {
                    return Err(refuse());
                }
                self.rolling_back = Some(failure.clone());
            }
            EventV1::Undone { step } => {
                if self.committed {
                    return Err(refuse());
                }
                self.forward_only(*step).ok_or_else(refuse)?.last = Last::Undone;
            }
            // The mark outranks any direction in the journal.
            EventV1::Committed => {
                self.committed = true;
                self.rolling_back = None;
            }
            EventV1::Stuck { finding } => self.stuck = Some(finding.clone()),
            EventV1::Abandoned { reason } => {
                if self.committed {
                    return Err(refuse());
                }
                self.abandoned = Some(reason.clone());
            }
            EventV1::Suspended { failure } => self.suspended = Some(failure.clone()),
            EventV1::Finished { end } => {
                if (*end == EndV1::Committed) != self.committed {
                    return Err(refuse());
                }
                self.finished = Some((*end, record.at));
            }
            EventV1::SourceChanged { image, stamp } => {
                let source = self.sources.get_mut(*image as usize).ok_or_else(refuse)?;
                *source = SourceStamp { stamp: *stamp, changed: true };
            }
            EventV1::LeftBehind { step, failure } => {
                self.step_mut(*step).ok_or_else(refuse)?.left_behind = Some(failure.clone());
            }
        }
        self.records += 1;
        self.last_at = record.at;
        Ok(())
    }

    /// The past of a step of this plan.
    pub fn step(&self, step: StepRef) -> Option<&StepHistory> {
        match step {
            StepRef::Forward(index) => self.forward.get(index as usize),
            StepRef::CleanUp(index) => self.clean_up.get(index as usize),
        }
    }

    /// The past of a forward step, by what it is.
    pub fn of_step(&self, wanted: StepV1) -> Option<&StepHistory> {
        let index = self.plan.steps.iter().position(|step| *step == wanted)?;
        self.forward.get(index)
    }

    fn step_mut(&mut self, step: StepRef) -> Option<&mut StepHistory> {
        match step {
            StepRef::Forward(index) => self.forward.get_mut(index as usize),
            StepRef::CleanUp(index) => self.clean_up.get_mut(index as usize),
        }
    }

    fn forward_only(&mut self, step: StepRef) -> Option<&mut StepHistory> {
        match step {
            StepRef::Forward(index) => self.forward.get_mut(index as usize),
            StepRef::CleanUp(_) => None,
        }
    }
}

fn illegal(sequence: u64, event: &dyn std::fmt::Debug) -> IllegalRecord {
    let mut event = format!("{event:?}");
    event.truncate(event.char_indices().nth(80).map_or(event.len(), |(at, _)| at));
    IllegalRecord { sequence, event }
}
