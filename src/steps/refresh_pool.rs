//! A pool of the destination learns of the clone's files.

use journal_format::{CleanUpStepV1, OutcomeV1};

use super::{CleanUpStep, Context, Probe, must_be_in_place};
use crate::failure::Failure;

pub(super) struct RefreshPool {
    pub(super) pool: u32,
}

impl CleanUpStep for RefreshPool {
    fn expected(&self, context: &Context) -> String {
        format!("the pool {} refreshed", self.name(context))
    }

    fn probe(&self, context: &Context) -> Result<Probe, Failure> {
        let done = context.is_cleaned_up(CleanUpStepV1::RefreshPool { pool: self.pool });
        Ok(if done { Probe::Ours(OutcomeV1::Nothing) } else { Probe::Absent })
    }

    fn apply(&self, context: &mut Context) -> Result<OutcomeV1, Failure> {
        let (host, name) = (&context.destination, self.name(context));
        // Where its filesystem is not mounted a pool would learn that everything in it is gone.
        for directory in &context.plan.directories {
            must_be_in_place(host.as_ref(), directory)?;
        }
        // A pool that is gone or stopped learns of the files when it is started.
        if host.pools()?.iter().any(|pool| pool.name == name && pool.active) {
            host.refresh_pool(name)?;
        }
        Ok(OutcomeV1::Nothing)
    }
}

impl RefreshPool {
    fn name<'c>(&self, context: &'c Context) -> &'c str {
        context.plan.pools.get(self.pool as usize).map_or("", String::as_str)
    }
}
