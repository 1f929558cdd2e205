//! An empty staged image of the right size, mode and owner.

use std::collections::BTreeMap;

use journal_format::{OutcomeV1, StepV1};

use super::host_record::parent_of;
use super::{Applied, Context, Probe, Step};
use crate::failure::Failure;
use crate::history::Last;
use crate::world::FileKind;

pub(super) struct CreateImage {
    pub(super) image: u32,
}

impl Step for CreateImage {
    fn expected(&self, context: &Context) -> String {
        context
            .image(self.image)
            .map_or_else(|_| String::new(), |image| format!("the staged image {}", image.staging_path))
    }

    fn probe(&self, context: &Context) -> Result<Probe, Failure> {
        let image = context.image(self.image)?;
        let Some(stat) = context.destination.stat(&image.staging_path)? else { return Ok(Probe::Absent) };
        let found = OutcomeV1::Made { inode: stat.inode };
        let history = context.history_of(StepV1::CreateImage { image: self.image });
        Ok(match history {
            Some(step) if step.last == Last::Done && step.outcome.as_ref() != Some(&found) => {
                Probe::Foreign(format!("{} is another file (inode {})", image.staging_path, stat.inode.0))
            }
            _ if stat.kind != FileKind::File => Probe::Foreign(format!("{} is not a file", image.staging_path)),
            // Its size follows the source's, so only the mode tells that it was finished: it is set last.
            _ if stat.mode == image.mode && (stat.uid, stat.gid) == image.owner => Probe::Ours(found),
            _ => Probe::Partial,
        })
    }

    fn apply(&self, context: &mut Context) -> Result<Applied, Failure> {
        // The ledger tells of another file.
        context.recorder.replace_chunks(self.image, &BTreeMap::new())?;
        let (host, image) = (&context.destination, context.image(self.image)?);
        if let Some(stat) = host.stat(&image.staging_path)? {
            host.unlink(&image.staging_path, stat.inode)?;
        }
        let inode = host.make_file(&image.staging_path, UNFINISHED_MODE, &[])?;
        let bytes = context.geometry(self.image)?.image_bytes;
        host.set_size(&image.staging_path, inode, bytes, context.plan.request.options.preallocate)?;
        host.set_attributes(&image.staging_path, inode, image.owner.0, image.owner.1, image.mode)?;
        Ok(Applied::Done(OutcomeV1::Made { inode }))
    }

    fn settle(&self, context: &Context) -> Result<(), Failure> {
        let (host, image) = (&context.destination, context.image(self.image)?);
        host.sync(&image.staging_path)?;
        Ok(host.sync(parent_of(&image.staging_path))?)
    }

    fn undo(&self, context: &mut Context) -> Result<(), Failure> {
        let (host, image) = (&context.destination, context.image(self.image)?);
        if let Some(stat) = host.stat(&image.staging_path)? {
            host.unlink(&image.staging_path, stat.inode)?;
        }
        match host.stat(parent_of(&image.staging_path))? {
            Some(_) => Ok(host.sync(parent_of(&image.staging_path))?),
            None => Ok(()),
        }
    }
}

/// No finished image has it.
const UNFINISHED_MODE: u32 = 0;
