//! The records of a kvm-clone transaction and their bytes.
//!
//! Everything here is plain data: no I/O, no clock, no runtime. A type whose name ends in `V1` is part of
//! the format: once released its fields and the order of its variants never change (see SPEC.md).

pub mod drop_kind;
pub mod event;
pub mod frame;
pub mod identity;
pub mod ledger;
pub mod old_vm;
pub mod owner;
pub mod plan;
mod wire;

pub use drop_kind::DropKindV1;
pub use event::{
    AttemptPurpose, ChunkRecordV1, ChunkState, CountsV1, EndV1, EventV1, FailureClassV1, FailureV1, FindingV1,
    OutcomeV1, RecordV1, ReopenCauseV1, StepRef,
};
pub use frame::{ChainEnd, EncodeError, Envelope, Frame, FrameError, FrameHash};
pub use identity::{ChunkValue, ControllerId, DomainUuid, Epoch, Inode, TxnId, UnixMillis};
pub use ledger::{LedgerError, LedgerSeal};
pub use old_vm::{FileStampV1, OldFileFateV1, OldFileV1, OldVmRecordError, OldVmRecordV1, ReplacedV1, StopModeV1};
pub use owner::{DirectionV1, OwnerError, OwnerV1, SlotError};
pub use plan::{
    BackingV1, BaseV1, CleanUpStepV1, DeviceV1, DirectoryV1, EndpointV1, ImageFormat, ImageRoleV1, ImageV1, LayerV1,
    NewDirectoryV1, OptionsV1, PlaceV1, PlanV1, RequestV1, SnapshotV1, SourceKindV1, SourceStampV1, StepV1,
};
pub use wire::VALUE_BYTES_MAX;
