//! The clone starts with its host, as the source did.

use journal_format::{CleanUpStepV1, OutcomeV1};

use super::claim_device::must_lead_to_devices;
use super::define_domain::LIBVIRT_DEFINITIONS;
use super::finish_domain::{GONE, our_clone};
use super::{CleanUpStep, Context, Probe};
use crate::failure::Failure;

pub(super) struct SetAutostart;

/// libvirt's links to the definitions that start with the host. It never syncs this directory itself.
pub(super) const LIBVIRT_AUTOSTART: &str = "/etc/libvirt/qemu/autostart";

impl CleanUpStep for SetAutostart {
    fn expected(&self, context: &Context) -> String {
        format!("{} starting with its host", context.plan.request.new_name)
    }

    fn probe(&self, context: &Context) -> Result<Probe, Failure> {
        // Set once, it may have been changed since: that is its owner's affair.
        if context.is_cleaned_up(CleanUpStepV1::SetAutostart) {
            return Ok(Probe::Ours(OutcomeV1::Nothing));
        }
        let Some(domain) = our_clone(context)? else { return Ok(GONE) };
        Ok(if domain.autostart { Probe::Ours(OutcomeV1::Nothing) } else { Probe::Absent })
    }

    fn apply(&self, context: &mut Context) -> Result<OutcomeV1, Failure> {
        must_lead_to_devices(context)?;
        context.destination.set_autostart(context.plan.clone_uuid, true)?;
        Ok(OutcomeV1::Nothing)
    }

    fn settle(&self, context: &Context) -> Result<(), Failure> {
        context.destination.sync(LIBVIRT_AUTOSTART)?;
        Ok(context.destination.sync(LIBVIRT_DEFINITIONS)?)
    }

    fn lands_late(&self) -> bool {
        true
    }
}
