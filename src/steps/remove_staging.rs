//! A staging directory goes, with the second names of what was published.

use journal_format::OutcomeV1;

use super::host_record::parent_of;
use super::{CleanUpStep, Context, Probe};
use super::{create_staging, old_vm};
use crate::failure::Failure;

pub(super) struct RemoveStaging {
    pub(super) directory: u32,
}

impl CleanUpStep for RemoveStaging {
    fn expected(&self, context: &Context) -> String {
        context.directory(self.directory).map_or_else(|_| String::new(), |dir| format!("no {}", dir.staging))
    }

    fn probe(&self, context: &Context) -> Result<Probe, Failure> {
        let (host, dir) = (&context.destination, context.directory(self.directory)?);
        create_staging::must_be_in_place(host.as_ref(), dir)?;
        let left = host.stat(&dir.staging)?.is_some() || create_staging::is_parent_unused(host.as_ref(), dir)?;
        Ok(if left { Probe::Absent } else { Probe::Ours(OutcomeV1::Nothing) })
    }

    fn apply(&self, context: &mut Context) -> Result<OutcomeV1, Failure> {
        let host = &context.destination;
        for image in context.plan.images.iter().filter(|image| image.directory() == Some(self.directory)) {
            if let Some(staged) = host.stat(&image.staging_path)? {
                host.unlink(&image.staging_path, staged.inode)?;
            }
        }
        let dir = context.directory(self.directory)?;
        if let Some(old) = context.plan.replaced.as_ref().filter(|old| parent_of(&old.saved_path) == dir.staging) {
            old_vm::remove_saved(context, old)?;
        }
        create_staging::remove_staging(host.as_ref(), dir)?;
        Ok(OutcomeV1::Nothing)
    }
}
