//! The host record goes, last: from here on the destination knows nothing of the transaction but the clone's mark.

use journal_format::OutcomeV1;

use super::host_record::{HOST_ROOT, remove_record};
use super::{CleanUpStep, Context, Counted, Probe};
use crate::failure::Failure;

pub(super) struct RemoveRecord;

impl CleanUpStep for RemoveRecord {
    fn expected(&self, context: &Context) -> String {
        format!("no {}", context.record.directory)
    }

    fn probe(&self, context: &Context) -> Result<Probe, Failure> {
        let (host, record) = (&context.destination, &context.record);
        if host.stat(&record.directory)?.is_some() {
            return Ok(Probe::Absent);
        }
        Ok(if host.stat(&record.gone)?.is_some() { Probe::Partial } else { Probe::Ours(OutcomeV1::Nothing) })
    }

    fn apply(&self, context: &mut Context) -> Result<OutcomeV1, Failure> {
        let destination = context.destination.counts().ok();
        remove_record(context.destination.as_ref(), &context.record)?;
        let Counted { survey, source } = context.counted;
        Ok(OutcomeV1::Counted { survey, source, destination })
    }

    fn settle(&self, context: &Context) -> Result<(), Failure> {
        Ok(context.destination.sync(HOST_ROOT)?)
    }
}
