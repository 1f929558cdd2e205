//! One file a kind of step: probe, apply, undo, written once above World.
//!
//! A step knows nothing of ssh, libvirt or sled, and never decides what its probe means: the recovery table does
//! (`engine/table.rs`). Every apply and undo may be repeated: the second time changes nothing.

mod claim_device;
mod claim_name;
mod context;
mod create_image;
mod create_staging;
mod define_domain;
mod define_snapshot;
mod delete_old_file;
mod detect_shared_storage;
mod finish_domain;
mod hold_base;
pub mod host_record;
mod make_directory;
mod old_variables;
mod old_vm;
mod publish_image;
mod refresh_pool;
mod release_claim;
mod remove_record;
mod remove_staging;
mod rename_clone;
mod reserve_record;
mod retire_old_vm;
mod set_autostart;
mod source;
mod start_domain;
mod stop_old_vm;
mod transfer_image;
mod verify_image;

use journal_format::{CleanUpStepV1, OutcomeV1, ReopenCauseV1, StepV1};

pub use self::claim_device::hold_device;
pub use self::context::{Context, Counted};
pub use self::create_staging::must_be_in_place;
pub use self::define_domain::{LIBVIRT_DEFINITIONS, torn_definition, transfers_of_mark};
pub use self::define_snapshot::snapshot_directory;
pub use self::delete_old_file::tpm_directories;
pub use self::hold_base::broken_base;
pub use self::old_variables::variables_by_name;
pub use self::old_vm::{autostart_link, definition_file};
pub use self::source::{look_at_source, paths_read, source_not_there, stamp_of, stamp_of_chain};
pub use self::transfer_image::{Origin, device_differs};
use crate::failure::Failure;

/// What a probe says of a step's effect. A host that does not answer is an error, not an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// No effect.
    Absent,
    /// Some of it, all ours.
    Partial,
    /// All of it.
    Ours(OutcomeV1),
    /// Ours, but started, locked or changed since; what was found.
    InUse(String),
    /// Something that is not ours is there; what was found.
    Foreign(String),
}

/// What an apply came to.
#[derive(Debug)]
pub enum Applied {
    /// The effect is there.
    Done(OutcomeV1),
    /// An earlier step has to be applied again, and this one after it.
    Reopen {
        /// That step.
        earlier: StepV1,
        /// Why.
        cause: ReopenCauseV1,
        /// Why, for people.
        why: String,
    },
}

/// A step before the commit.
pub trait Step {
    /// What should be there, for people.
    fn expected(&self, context: &Context) -> String;
    /// Looks, and changes nothing.
    fn probe(&self, context: &Context) -> Result<Probe, Failure>;
    /// Makes the effect, from nothing or from a part of it.
    fn apply(&self, context: &mut Context) -> Result<Applied, Failure>;
    /// Makes an effect that is there survive a power cut of its host. Nothing is Done before.
    fn settle(&self, _context: &Context) -> Result<(), Failure> {
        Ok(())
    }
    /// Settles what an apply completed.
    fn settle_if_done(&self, context: &Context, applied: Applied) -> Result<Applied, Failure> {
        if matches!(applied, Applied::Done(_)) {
            self.settle(context)?;
        }
        Ok(applied)
    }
    /// Takes the effect away, durably.
    fn undo(&self, context: &mut Context) -> Result<(), Failure>;
    /// Takes the locks that keep a done effect still. Attempt state: taken anew in each attempt, never journalled.
    fn hold(&self, _context: &Context) -> Result<(), Failure> {
        Ok(())
    }
    /// Something foreign is in the effect's place: is nothing of ours lost but the name? Then an undo that was broken off gave
    /// that up, and another's object under it says nothing else.
    fn has_only_lost_its_name(&self, _context: &Context) -> Result<bool, Failure> {
        Ok(false)
    }
    /// The refusal for something foreign in this step's place, where it is more than "taken".
    fn foreign(&self, _context: &Context) -> Option<Failure> {
        None
    }
    /// May a call that was accepted before a crash still land after its agent's death?
    fn lands_late(&self) -> bool {
        false
    }
}

/// A step after the commit: forward only.
pub trait CleanUpStep {
    /// What should be there, for people.
    fn expected(&self, context: &Context) -> String;
    /// Looks, and changes nothing.
    fn probe(&self, context: &Context) -> Result<Probe, Failure>;
    /// Makes the effect, or says why it is left.
    fn apply(&self, context: &mut Context) -> Result<OutcomeV1, Failure>;
    /// Makes it survive a power cut of its host.
    fn settle(&self, _context: &Context) -> Result<(), Failure> {
        Ok(())
    }
    /// May a call that was accepted before a crash still land after its agent's death?
    fn lands_late(&self) -> bool {
        false
    }
}

/// The code of a step.
pub fn step(step: StepV1) -> Box<dyn Step> {
    match step {
        StepV1::ReserveRecord => Box::new(reserve_record::ReserveRecord),
        StepV1::ClaimName => Box::new(claim_name::ClaimName),
        StepV1::CreateStaging { directory } => Box::new(create_staging::CreateStaging { directory }),
        StepV1::DetectSharedStorage => Box::new(detect_shared_storage::DetectSharedStorage),
        StepV1::CreateImage { image } => Box::new(create_image::CreateImage { image }),
        StepV1::TransferImage { image } => Box::new(transfer_image::TransferImage { image }),
        StepV1::VerifyImage { image } => Box::new(verify_image::VerifyImage { image }),
        StepV1::PublishImage { image } => Box::new(publish_image::PublishImage { image }),
        StepV1::MakeDirectory { directory } => Box::new(make_directory::MakeDirectory { directory }),
        StepV1::DefineDomain => Box::new(define_domain::DefineDomain),
        StepV1::StopOldVm => Box::new(stop_old_vm::StopOldVm),
        StepV1::DefineSnapshot { snapshot } => Box::new(define_snapshot::DefineSnapshot { snapshot }),
        StepV1::ClaimDevice { image } => Box::new(claim_device::ClaimDevice { image }),
        StepV1::HoldBase { base } => Box::new(hold_base::HoldBase { base }),
    }
}

/// The code of a clean-up step.
pub fn clean_up_step(step: CleanUpStepV1) -> Box<dyn CleanUpStep> {
    match step {
        CleanUpStepV1::FinishDomain => Box::new(finish_domain::FinishDomain),
        CleanUpStepV1::ReleaseClaim => Box::new(release_claim::ReleaseClaim),
        CleanUpStepV1::SetAutostart => Box::new(set_autostart::SetAutostart),
        CleanUpStepV1::StartDomain => Box::new(start_domain::StartDomain),
        CleanUpStepV1::RemoveStaging { directory } => Box::new(remove_staging::RemoveStaging { directory }),
        CleanUpStepV1::RefreshPool { pool } => Box::new(refresh_pool::RefreshPool { pool }),
        CleanUpStepV1::RemoveRecord => Box::new(remove_record::RemoveRecord),
        CleanUpStepV1::RetireOldVm => Box::new(retire_old_vm::RetireOldVm),
        CleanUpStepV1::RenameClone => Box::new(rename_clone::RenameClone),
        CleanUpStepV1::DeleteOldFile { file } => Box::new(delete_old_file::DeleteOldFile { file }),
    }
}

/// The image a step is about, if it is about one.
pub fn image_of(step: StepV1) -> Option<u32> {
    match step {
        StepV1::CreateImage { image }
        | StepV1::TransferImage { image }
        | StepV1::VerifyImage { image }
        | StepV1::PublishImage { image }
        | StepV1::ClaimDevice { image } => Some(image),
        StepV1::ReserveRecord
        | StepV1::ClaimName
        | StepV1::CreateStaging { .. }
        | StepV1::DetectSharedStorage
        | StepV1::MakeDirectory { .. }
        | StepV1::DefineDomain
        | StepV1::DefineSnapshot { .. }
        | StepV1::HoldBase { .. }
        | StepV1::StopOldVm => None,
    }
}

/// Does it leave something on the destination? The bytes of an image go with the file that Create made.
pub fn makes_something(step: StepV1) -> bool {
    match step {
        StepV1::ReserveRecord
        | StepV1::ClaimName
        | StepV1::CreateStaging { .. }
        | StepV1::CreateImage { .. }
        | StepV1::PublishImage { .. }
        | StepV1::MakeDirectory { .. }
        | StepV1::DefineDomain
        | StepV1::DefineSnapshot { .. }
        | StepV1::StopOldVm
        | StepV1::ClaimDevice { .. } => true,
        StepV1::DetectSharedStorage
        | StepV1::HoldBase { .. }
        | StepV1::TransferImage { .. }
        | StepV1::VerifyImage { .. } => false,
    }
}

/// Is it about what is in an image, rather than about where things are?
pub fn concerns_content(step: StepV1) -> bool {
    matches!(step, StepV1::CreateImage { .. } | StepV1::TransferImage { .. } | StepV1::VerifyImage { .. })
}

/// Does it give the clone something that others reach: a final name, or its definition? From the first such step on no content
/// is sent again.
pub fn publishes(step: StepV1) -> bool {
    matches!(step, StepV1::PublishImage { .. } | StepV1::DefineDomain)
}
