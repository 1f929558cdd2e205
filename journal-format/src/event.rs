//! What happened: one event is one fact appended to a transaction's journal.

use serde::{Deserialize, Serialize};

use crate::identity::{ChunkValue, Epoch, Inode, UnixMillis};
use crate::plan::{PlanV1, SourceStampV1};

/// The payload of a frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordV1 {
    /// When it was appended, by the controller's clock.
    pub at: UnixMillis,
    /// The attempt that appended it; 0 before the first attempt opened.
    pub epoch: Epoch,
    /// What happened.
    pub event: EventV1,
}

/// A step of the plan, by its place in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum StepRef {
    /// Index into `PlanV1::steps`.
    Forward(u32),
    /// Index into `PlanV1::clean_up`.
    CleanUp(u32),
}

/// One fact. Variants are only appended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventV1 {
    /// The transaction exists. Always the first event, and nothing was touched before it.
    Begun {
        /// The whole plan.
        plan: Box<PlanV1>,
    },
    /// A life of a controller with its agents begins.
    AttemptOpened {
        /// Its epoch: written here before it is written into the owner file.
        epoch: Epoch,
        /// What it was opened for.
        purpose: AttemptPurpose,
        /// The controller's process.
        pid: u32,
    },
    /// The step's effect may exist from here on.
    Started {
        /// Which step.
        step: StepRef,
    },
    /// The step's effect exists and is durable on its host.
    Done {
        /// Which step.
        step: StepRef,
        /// What later steps need to know of it.
        outcome: OutcomeV1,
    },
    /// The step was refused for good: the transaction turns back. Its effect may exist in part.
    Failed {
        /// Which step.
        step: StepRef,
        /// Why.
        failure: FailureV1,
    },
    /// A done step is to be applied again.
    Reopened {
        /// Which step.
        step: StepRef,
        /// Why.
        cause: ReopenCauseV1,
        /// Why, for people.
        why: String,
    },
    /// From here on only back. Appended after the look for the commit mark.
    RollingBack {
        /// Why.
        failure: FailureV1,
    },
    /// The step's effect is gone, durably.
    Undone {
        /// Which step.
        step: StepRef,
    },
    /// The commit mark is durable: from here on only forward.
    Committed,
    /// A person must act; nothing is done until then.
    Stuck {
        /// What was found.
        finding: FindingV1,
    },
    /// A person closed it.
    Abandoned {
        /// In the person's words.
        reason: String,
    },
    /// The attempt ended before the transaction did; everything can go on.
    Suspended {
        /// Why.
        failure: FailureV1,
    },
    /// The end.
    Finished {
        /// Which one.
        end: EndV1,
    },
    /// A source's image has another stamp than before; what of the ledger is no longer so has been taken out of it.
    SourceChanged {
        /// Index into `PlanV1::images`.
        image: u32,
        /// The stamp that the ledger belongs to from here on.
        stamp: SourceStampV1,
    },
    /// A clean-up step could not be carried out; it is left for `recover`.
    LeftBehind {
        /// Which step.
        step: StepRef,
        /// Why.
        failure: FailureV1,
    },
}

/// Why a done step is applied again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReopenCauseV1 {
    /// Its effect is gone or incomplete.
    EffectGone,
    /// The source's image changed.
    SourceChanged,
    /// What was read back from the destination is not what was sent.
    ReadBackDiffers,
}

/// What an attempt was opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AttemptPurpose {
    /// The first one, by `run`.
    Run,
    /// `resume`.
    Resume,
    /// `rollback`.
    Rollback,
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndV1 {
    /// The clone is there.
    Committed,
    /// The world is as before.
    RolledBack,
}

/// What a failure means for the transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureClassV1 {
    /// Nothing is undone, everything can go on (exit 3).
    Suspend,
    /// A definite refusal: roll back (exit 1, or 5 where nothing but reservations had been made).
    TurnBack,
    /// A person must act (exit 4).
    Stop,
}

/// A failure, in words for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureV1 {
    /// What it means for the transaction.
    pub class: FailureClassV1,
    /// The exit status that belongs to it, if the attempt ends with it.
    pub exit: u8,
    /// What went wrong, where and why.
    pub message: String,
    /// What to do next.
    pub advice: String,
}

/// What made a transaction stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindingV1 {
    /// The step in whose place it was found; `None`: the transaction as a whole.
    pub step: Option<StepRef>,
    /// What should have been there.
    pub expected: String,
    /// What was there.
    pub found: String,
    /// Commands that a person would type.
    pub commands: Vec<String>,
}

/// What later steps, and later attempts, need to know of a step that is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutcomeV1 {
    /// Nothing.
    Nothing,
    /// A file or directory of ours is there.
    Made {
        /// Its inode.
        inode: Inode,
    },
    /// What the nonces told.
    SharedStorage {
        /// Indices of the plan's directories that the source's host sees too.
        directories: Vec<u32>,
    },
    /// The image's bytes are durable on the destination.
    Transferred {
        /// The staged image.
        inode: Inode,
        /// Plain BLAKE3 of the image.
        root: ChunkValue,
        /// Plain BLAKE3 of the source's image: another one where the copy names another image below.
        source_root: ChunkValue,
        /// The source's size and mtime that these bytes belong to.
        source_size: u64,
        /// Nanoseconds since 1970.
        source_mtime_ns: i128,
        /// The staged image's mtime once all was durable: nobody wrote to it after us.
        mtime_ns: i128,
        /// Image bytes that were missing on the destination when the attempt that completed it began (holes not counted).
        missing_bytes: u64,
        /// Image bytes that crossed the wire in that attempt.
        sent_bytes: u64,
    },
    /// The image was read back.
    Verified {
        /// The staged image.
        inode: Inode,
        /// Bytes.
        size: u64,
        /// Nanoseconds since 1970.
        mtime_ns: i128,
        /// Plain BLAKE3 of the image.
        root: ChunkValue,
    },
    /// Was already so before `Started`: nothing to undo.
    AlreadySo,
    /// The old VM is shut off.
    Stopped {
        /// It ran, and a rollback starts it again.
        was_running: bool,
    },
    /// A clean-up step found a good reason not to do it; what it is about stays as it is.
    Left {
        /// Why, for people.
        why: String,
    },
    /// The host record is gone, and so much the agents had done by then; `None`: not known.
    Counted {
        /// Those that looked before there was a plan: the source's, the destination's.
        survey: Option<[CountsV1; 2]>,
        /// The source's in the attempt that committed, where that ended the clean-up too.
        source: Option<CountsV1>,
        /// The destination's in the attempt that ended the clean-up.
        destination: Option<CountsV1>,
    },
}

/// What an agent did in its life, as it counted it itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CountsV1 {
    /// Requests, but for signs of life.
    pub requests: u64,
    /// Bytes of images that were read to be copied or hashed. Holes are not read.
    pub image_bytes_read: u64,
    /// Bytes of images that were written.
    pub image_bytes_written: u64,
    /// Bytes of small files, and of the headers of images, that were read.
    pub file_bytes_read: u64,
    /// Calls of libvirt that were relayed.
    pub libvirt_calls: u64,
}

/// What is known of one chunk on the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChunkState {
    /// Data, durable, with this value.
    Data(ChunkValue),
    /// Zero, durable: a hole, or punched.
    Zero,
}

/// One entry of a disk's ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkRecordV1 {
    /// Number of the chunk within its image, from 0.
    pub index: u64,
    /// What is durable there.
    pub state: ChunkState,
}
