//! The claim on the name is given back: the domain itself holds it now.

use journal_format::OutcomeV1;

use super::host_record::CLAIMS;
use super::{CleanUpStep, Context, Probe};
use crate::failure::Failure;

pub(super) struct ReleaseClaim;

impl CleanUpStep for ReleaseClaim {
    fn expected(&self, context: &Context) -> String {
        format!("no claim {}", context.record.claim)
    }

    fn probe(&self, context: &Context) -> Result<Probe, Failure> {
        let (host, record) = (&context.destination, &context.record);
        let owner = host.stat(&record.committed())?;
        let claim = host.stat(&record.claim)?;
        Ok(match (owner, claim) {
            (Some(owner), Some(claim)) if owner.inode == claim.inode => Probe::Absent,
            // Another transaction may have claimed the name since.
            _ => Probe::Ours(OutcomeV1::Nothing),
        })
    }

    fn apply(&self, context: &mut Context) -> Result<OutcomeV1, Failure> {
        let (host, record) = (&context.destination, &context.record);
        if let Some(owner) = host.stat(&record.committed())?
            && host.stat(&record.claim)?.is_some_and(|claim| claim.inode == owner.inode)
        {
            host.unlink(&record.claim, owner.inode)?;
        }
        Ok(OutcomeV1::Nothing)
    }

    fn settle(&self, context: &Context) -> Result<(), Failure> {
        Ok(context.destination.sync(CLAIMS)?)
    }
}
