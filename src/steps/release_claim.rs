//! The claims are given back: the domain itself holds its name, and names its devices.

use journal_format::OutcomeV1;

use super::host_record::parent_of;
use super::{CleanUpStep, Context, Probe};
use crate::failure::Failure;

pub(super) struct ReleaseClaim;

impl CleanUpStep for ReleaseClaim {
    fn expected(&self, context: &Context) -> String {
        format!("no claim {}", context.claims().join(" or "))
    }

    fn probe(&self, context: &Context) -> Result<Probe, Failure> {
        let (host, record) = (&context.destination, &context.record);
        let Some(owner) = host.stat(&record.committed())? else { return Ok(Probe::Ours(OutcomeV1::Nothing)) };
        for claim in context.claims() {
            // Another transaction may have claimed the same since.
            if host.stat(&claim)?.is_some_and(|claim| claim.inode == owner.inode) {
                return Ok(Probe::Absent);
            }
        }
        Ok(Probe::Ours(OutcomeV1::Nothing))
    }

    fn apply(&self, context: &mut Context) -> Result<OutcomeV1, Failure> {
        let (host, record) = (&context.destination, &context.record);
        let Some(owner) = host.stat(&record.committed())? else { return Ok(OutcomeV1::Nothing) };
        for claim in context.claims() {
            if host.stat(&claim)?.is_some_and(|claim| claim.inode == owner.inode) {
                host.unlink(&claim, owner.inode)?;
            }
        }
        Ok(OutcomeV1::Nothing)
    }

    fn settle(&self, context: &Context) -> Result<(), Failure> {
        for claim in context.claims() {
            context.destination.sync(parent_of(&claim))?;
        }
        Ok(())
    }
}
