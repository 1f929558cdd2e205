//! A directory for final names that did not exist: a TPM's state lies in directories of its own. It stays with the
//! clone; only an empty one is ever removed.

use journal_format::{NewDirectoryV1, OutcomeV1, StepV1};

use super::host_record::parent_of;
use super::{Applied, Context, Probe, Step};
use crate::failure::Failure;
use crate::history::Last;
use crate::world::{Fault, FaultKind, FileKind, FileStat, Host};

pub(super) struct MakeDirectory {
    pub(super) directory: u32,
}

impl Step for MakeDirectory {
    fn expected(&self, context: &Context) -> String {
        context
            .new_directory(self.directory)
            .map_or_else(|_| String::new(), |planned| format!("the directory {}", planned.path))
    }

    fn probe(&self, context: &Context) -> Result<Probe, Failure> {
        let (host, planned) = (&context.destination, context.new_directory(self.directory)?);
        let history = context.history_of(StepV1::MakeDirectory { directory: self.directory });
        let last = history.map_or(Last::None, |step| step.last);
        let begun = !matches!(last, Last::None | Last::Undone);
        let Some(stat) = host.stat(&planned.path)? else {
            // The parent alone may be what an apply or undo of ours, broken off, left.
            let parent_is_left = begun && planned.makes_parent && is_empty(host.as_ref(), parent_of(&planned.path))?;
            return Ok(if parent_is_left { Probe::Partial } else { Probe::Absent });
        };
        let found = OutcomeV1::Made { inode: stat.inode };
        let is_other =
            last == Last::Done && history.and_then(|step| step.outcome.as_ref()).is_some_and(|made| *made != found);
        Ok(match stat.kind {
            // It is made exclusively: before we began, and after it was removed, one that is there is somebody else's.
            FileKind::Directory if begun && !is_other => {
                if is_finished(planned, &stat) {
                    Probe::Ours(found)
                } else {
                    Probe::Partial
                }
            }
            _ => Probe::Foreign(format!("{} is not the directory that we made", planned.path)),
        })
    }

    fn apply(&self, context: &mut Context) -> Result<Applied, Failure> {
        let (host, planned) = (&context.destination, context.new_directory(self.directory)?);
        if planned.makes_parent {
            match host.make_dir(parent_of(&planned.path), PARENT_MODE) {
                Err(fault) if fault.kind != FaultKind::AlreadyExists => return Err(fault.into()),
                _ => {}
            }
        }
        let inode = match host.make_dir(&planned.path, UNFINISHED_MODE) {
            Err(fault) if fault.kind == FaultKind::AlreadyExists => match host.stat(&planned.path)? {
                // An earlier apply of ours was broken off, or is repeated.
                Some(stat) if is_unfinished(&stat) || is_finished(planned, &stat) => stat.inode,
                _ => {
                    return Err(Failure::turn_back(
                        format!("{} on {} was taken by somebody else meanwhile", planned.path, host.name()),
                        "see what it is, then clone again",
                    ));
                }
            },
            made => made?,
        };
        // Its attributes come last: by them a finished one is known.
        host.set_attributes(&planned.path, inode, planned.owner.0, planned.owner.1, planned.mode)?;
        Ok(Applied::Done(OutcomeV1::Made { inode }))
    }

    fn settle(&self, context: &Context) -> Result<(), Failure> {
        let (host, planned) = (&context.destination, context.new_directory(self.directory)?);
        let parent = parent_of(&planned.path);
        host.sync(&planned.path)?;
        host.sync(parent)?;
        if planned.makes_parent {
            host.sync(parent_of(parent))?;
        }
        Ok(())
    }

    fn undo(&self, context: &mut Context) -> Result<(), Failure> {
        let (host, planned) = (&context.destination, context.new_directory(self.directory)?);
        remove_if_empty(host.as_ref(), &planned.path)?;
        let parent = parent_of(&planned.path);
        if planned.makes_parent { remove_if_empty(host.as_ref(), parent) } else { Ok(()) }
    }
}

/// What libvirt gives the directory that holds the states of all TPMs.
const PARENT_MODE: u32 = 0o711;
/// No finished directory has it.
const UNFINISHED_MODE: u32 = 0;

fn is_unfinished(stat: &FileStat) -> bool {
    stat.kind == FileKind::Directory && stat.mode == UNFINISHED_MODE
}

fn is_finished(planned: &NewDirectoryV1, stat: &FileStat) -> bool {
    stat.kind == FileKind::Directory && stat.mode == planned.mode && (stat.uid, stat.gid) == planned.owner
}

fn is_empty(host: &dyn Host, path: &str) -> Result<bool, Fault> {
    Ok(host.list(path)?.is_some_and(|names| names.is_empty()))
}

/// Removes a directory durably. With something in it somebody else uses it: all that was ours in it is gone by now.
fn remove_if_empty(host: &dyn Host, path: &str) -> Result<(), Failure> {
    if is_empty(host, path)? {
        match host.remove_dir(path) {
            Err(fault) if fault.kind == FaultKind::NotEmpty => {}
            removed => removed?,
        }
    }
    match host.sync(parent_of(path)) {
        // What it was in is gone too, and any name with it.
        Err(fault) if fault.kind == FaultKind::NotFound => Ok(()),
        synced => Ok(synced?),
    }
}
