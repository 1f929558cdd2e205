//! The clone is started, as asked: once.

use journal_format::{CleanUpStepV1, OutcomeV1};

use super::claim_device::must_lead_to_devices;
use super::finish_domain::{GONE, our_clone};
use super::{CleanUpStep, Context, Probe};
use crate::failure::Failure;
use crate::world::DomainState;

pub(super) struct StartDomain;

impl CleanUpStep for StartDomain {
    fn expected(&self, context: &Context) -> String {
        format!("{} running", context.plan.request.new_name)
    }

    fn probe(&self, context: &Context) -> Result<Probe, Failure> {
        // Started once, it may have been shut off since: that is its owner's affair.
        if context.is_cleaned_up(CleanUpStepV1::StartDomain) {
            return Ok(Probe::Ours(OutcomeV1::Nothing));
        }
        let Some(domain) = our_clone(context)? else { return Ok(GONE) };
        Ok(if domain.brief.state == DomainState::Active { Probe::Ours(OutcomeV1::Nothing) } else { Probe::Absent })
    }

    fn apply(&self, context: &mut Context) -> Result<OutcomeV1, Failure> {
        must_lead_to_devices(context)?;
        context.destination.start(context.plan.clone_uuid)?;
        Ok(OutcomeV1::Nothing)
    }

    fn lands_late(&self) -> bool {
        true
    }
}
