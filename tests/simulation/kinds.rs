//! The kinds of steps by name. A new variant does not compile until it stands here, and what stands here must be
//! visited by every harness that goes through all kinds.

use journal_format::{CleanUpStepV1, StepV1};

macro_rules! kinds {
    ($all:ident, $name_of:ident, $steps:ident: $($variant:ident),+) => {
        /// All of them.
        pub const $all: &[&str] = &[$(stringify!($variant)),+];

        /// Which of them it is.
        pub fn $name_of(step: $steps) -> &'static str {
            match step {
                $($steps::$variant { .. } => stringify!($variant)),+
            }
        }
    };
}

kinds!(STEPS, name_of_step, StepV1:
    ReserveRecord, ClaimName, CreateStaging, DetectSharedStorage, CreateImage, TransferImage, VerifyImage, PublishImage,
    MakeDirectory, DefineDomain, StopOldVm, DefineSnapshot, ClaimDevice, HoldBase);

kinds!(CLEAN_UP_STEPS, name_of_clean_up_step, CleanUpStepV1:
    FinishDomain, ReleaseClaim, SetAutostart, StartDomain, RemoveStaging, RefreshPool, RemoveRecord, RetireOldVm, RenameClone, DeleteOldFile);
