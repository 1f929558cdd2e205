//! A check: an image that the clone stands on as it is there. It has not changed since its bytes were compared with the source's,
//! nobody writes to it until the commit, and a power cut leaves it as it is. It is not ours: nothing is ever undone.

use journal_format::{BaseV1, OutcomeV1, StepV1};

use super::host_record::parent_of;
use super::{Applied, Context, Probe, Step};
use crate::failure::Failure;
use crate::history::Last;
use crate::transfer::root_of;
use crate::world::{FaultKind, FileKind, FileStat};

pub(super) struct HoldBase {
    pub(super) base: u32,
}

impl Step for HoldBase {
    fn expected(&self, context: &Context) -> String {
        context.base(self.base).map_or_else(|_| String::new(), |base| format!("{} as it was", base.path))
    }

    fn probe(&self, context: &Context) -> Result<Probe, Failure> {
        let base = context.base(self.base)?;
        if context.last_of(self.as_step()) != Last::Done {
            return Ok(Probe::Absent);
        }
        let stat = context.destination.stat(&base.path)?;
        let is_still = stat.is_some_and(|stat| is_unchanged(base, &stat));
        Ok(if is_still { Probe::Ours(OutcomeV1::Nothing) } else { Probe::Absent })
    }

    fn apply(&self, context: &mut Context) -> Result<Applied, Failure> {
        let (host, base) = (&context.destination, context.base(self.base)?);
        // The lock first: what is seen then stays so.
        self.hold(context)?;
        match host.stat(&base.path)? {
            None => Err(self.gone(context, base)),
            Some(stat) if is_unchanged(base, &stat) && self.has_its_bytes(context)? => {
                Ok(Applied::Done(OutcomeV1::Nothing))
            }
            Some(_) => Err(in_the_way(
                context,
                base,
                "changed since it was compared with the source's, or has another name too",
            )),
        }
    }

    fn settle(&self, context: &Context) -> Result<(), Failure> {
        let (host, base) = (&context.destination, context.base(self.base)?);
        host.sync(&base.path)?;
        Ok(host.sync(parent_of(&base.path))?)
    }

    fn undo(&self, _context: &mut Context) -> Result<(), Failure> {
        Ok(())
    }

    fn hold(&self, context: &Context) -> Result<(), Failure> {
        let base = context.base(self.base)?;
        match context.destination.lock_image(&base.path) {
            Ok(_) => Ok(()),
            Err(fault) if fault.kind == FaultKind::InUse => Err(in_the_way(context, base, "is written to by somebody")),
            Err(fault) if fault.kind == FaultKind::NotFound => Err(self.gone(context, base)),
            Err(fault) => Err(fault.into()),
        }
    }
}

impl HoldBase {
    fn as_step(&self) -> StepV1 {
        StepV1::HoldBase { base: self.base }
    }

    /// What was held once may be on a filesystem that is not mounted just now. Before that nothing was copied yet.
    fn gone(&self, context: &Context, base: &BaseV1) -> Failure {
        let was_held = context.history_of(self.as_step()).is_some_and(|step| step.done_at.is_some());
        if was_held {
            let advice = "mount its filesystem or bring it back, then resume; if it is gone for good, roll back";
            Failure::suspend(is_gone(context, base), advice)
        } else {
            in_the_way(context, base, "is not there any more")
        }
    }

    /// It was read before anybody synced it: a power cut since may have kept its size and time, and not its bytes.
    fn has_its_bytes(&self, context: &Context) -> Result<bool, Failure> {
        let (host, base) = (&context.destination, context.base(self.base)?);
        if context.recorder.history().attempts <= 1 {
            return Ok(true);
        }
        host.sync(&base.path)?;
        Ok(root_of(host.as_ref(), &base.path, Vec::new(), base.stamp.size)? == base.root)
    }
}

/// The file that was read when the clone was planned, under one name alone: a staged image has two.
fn is_unchanged(base: &BaseV1, stat: &FileStat) -> bool {
    stat.kind == FileKind::File
        && stat.links == 1
        && (stat.inode, stat.size, stat.mtime_ns) == (base.stamp.inode, base.stamp.size, base.stamp.mtime_ns)
}

fn in_the_way(context: &Context, base: &BaseV1, what: &str) -> Failure {
    let what = format!("{} on {}, which the clone was to stand on, {what}", base.path, context.destination.name());
    Failure::turn_back(what, "clone again, with --chain keep if it is to be copied")
}

/// What became of it: `None`, nothing; in words, what it is not any more. An error where its filesystem is not mounted.
pub fn broken_base(context: &Context, base: &BaseV1) -> Result<Option<String>, Failure> {
    let host = &context.destination;
    match host.stat(&base.path)? {
        Some(stat) if is_unchanged(base, &stat) => return Ok(None),
        Some(_) => return Ok(Some(format!("{} as it was", base.path))),
        None => {}
    }
    match host.stat(parent_of(&base.path))? {
        Some(directory) if directory.inode == base.directory => Ok(Some(base.path.clone())),
        _ => Err(Failure::suspend(is_gone(context, base), "mount its filesystem, then resume")),
    }
}

fn is_gone(context: &Context, base: &BaseV1) -> String {
    format!("{} on {}, which the clone is to stand on, is not there", base.path, context.destination.name())
}
