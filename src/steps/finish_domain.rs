//! The clone is finished: its own title, and the mark says so. From here on it may be started.

use journal_format::{CleanUpStepV1, OutcomeV1};

use super::define_domain::{LIBVIRT_DEFINITIONS, is_ours, mark, unusable};
use super::{CleanUpStep, Context, Probe, old_vm};
use crate::domain::Definition;
use crate::domain::metadata::{CloneMark, MarkState};
use crate::failure::Failure;
use crate::world::DomainFacts;

pub(super) struct FinishDomain;

impl CleanUpStep for FinishDomain {
    fn expected(&self, context: &Context) -> String {
        format!("the finished domain {}", context.plan.request.new_name)
    }

    fn probe(&self, context: &Context) -> Result<Probe, Failure> {
        let Some(domain) = our_clone(context)? else { return Ok(GONE) };
        let finished =
            CloneMark::read(&domain.definition).ok().flatten().is_some_and(|mark| mark.state == MarkState::Finished);
        // Given once, the title may have been changed since: that is its owner's affair.
        let titled = context.is_cleaned_up(CleanUpStepV1::FinishDomain)
            || Definition::parse(&domain.definition).map_err(|error| unusable(&error))?.title == context.plan.title;
        Ok(if finished && titled { Probe::Ours(OutcomeV1::Nothing) } else { Probe::Absent })
    }

    fn apply(&self, context: &mut Context) -> Result<OutcomeV1, Failure> {
        let (host, uuid) = (&context.destination, context.plan.clone_uuid);
        host.set_title(uuid, context.plan.title.as_deref())?;
        let element = mark(context, MarkState::Finished)?.to_element().map_err(|error| unusable(&error))?;
        host.set_metadata(uuid, Some(&element))?;
        Ok(OutcomeV1::Nothing)
    }

    fn settle(&self, context: &Context) -> Result<(), Failure> {
        context.destination.sync(LIBVIRT_DEFINITIONS)?;
        for image in &context.plan.images {
            context.destination.unlock_image(&image.final_path)?;
        }
        for base in &context.plan.bases {
            context.destination.unlock_image(&base.path)?;
        }
        if let Some(old) = &context.plan.replaced {
            old_vm::unlock_images(context, old)?;
        }
        Ok(())
    }

    fn lands_late(&self) -> bool {
        true
    }
}

/// The clone, if it is still there.
pub(super) fn our_clone(context: &Context) -> Result<Option<DomainFacts>, Failure> {
    Ok(context.destination.domain(context.plan.clone_uuid)?.filter(|domain| is_ours(context, domain)))
}

/// Somebody removed the clone after the commit. Nothing is left to do to it, and waiting for it would keep the
/// transaction open for ever; the outcome tells that it was so.
pub(super) const GONE: Probe = Probe::Ours(OutcomeV1::AlreadySo);
