//! An empty staged image of the right size, mode and owner.

use std::collections::BTreeMap;

use journal_format::{OutcomeV1, StepV1};

use super::host_record::parent_of;
use super::{Applied, Context, Probe, Step};
use crate::failure::Failure;
use crate::history::Last;
use crate::world::FileKind;

pub(super) struct CreateDisk {
    pub(super) disk: u32,
}

impl Step for CreateDisk {
    fn expected(&self, context: &Context) -> String {
        context.disk(self.disk).map_or_else(|_| String::new(), |disk| format!("the staged image {}", disk.staging_path))
    }

    fn probe(&self, context: &Context) -> Result<Probe, Failure> {
        let disk = context.disk(self.disk)?;
        let Some(stat) = context.destination.stat(&disk.staging_path)? else { return Ok(Probe::Absent) };
        let found = OutcomeV1::Made { inode: stat.inode };
        let history = context.history_of(StepV1::CreateDisk { disk: self.disk });
        Ok(match history {
            Some(step) if step.last == Last::Done && step.outcome.as_ref() != Some(&found) => {
                Probe::Foreign(format!("{} is another file (inode {})", disk.staging_path, stat.inode.0))
            }
            _ if stat.kind != FileKind::File => Probe::Foreign(format!("{} is not a file", disk.staging_path)),
            // Its size follows the source's, so only the mode tells that it was finished: it is set last.
            _ if stat.mode == disk.mode && (stat.uid, stat.gid) == disk.owner => Probe::Ours(found),
            _ => Probe::Partial,
        })
    }

    fn apply(&self, context: &mut Context) -> Result<Applied, Failure> {
        // The ledger tells of another file.
        context.recorder.replace_chunks(self.disk, &BTreeMap::new())?;
        let (host, disk) = (&context.destination, context.disk(self.disk)?);
        if let Some(stat) = host.stat(&disk.staging_path)? {
            host.unlink(&disk.staging_path, stat.inode)?;
        }
        let inode = host.make_file(&disk.staging_path, UNFINISHED_MODE, &[])?;
        let bytes = context.geometry(self.disk)?.image_bytes;
        host.set_size(&disk.staging_path, inode, bytes, context.plan.request.options.preallocate)?;
        host.set_attributes(&disk.staging_path, inode, disk.owner.0, disk.owner.1, disk.mode)?;
        Ok(Applied::Done(OutcomeV1::Made { inode }))
    }

    fn settle(&self, context: &Context) -> Result<(), Failure> {
        let (host, disk) = (&context.destination, context.disk(self.disk)?);
        host.sync(&disk.staging_path)?;
        Ok(host.sync(parent_of(&disk.staging_path))?)
    }

    fn undo(&self, context: &mut Context) -> Result<(), Failure> {
        let (host, disk) = (&context.destination, context.disk(self.disk)?);
        if let Some(stat) = host.stat(&disk.staging_path)? {
            host.unlink(&disk.staging_path, stat.inode)?;
        }
        match host.stat(parent_of(&disk.staging_path))? {
            Some(_) => Ok(host.sync(parent_of(&disk.staging_path))?),
            None => Ok(()),
        }
    }
}

/// No finished image has it.
const UNFINISHED_MODE: u32 = 0;
