//! A check: the staged image is read back from the disk, not from memory: in part while it was copied, and the rest here. What
//! differs is sent again, once.

use journal_format::{OutcomeV1, ReopenCauseV1, StepV1};

use super::transfer_image::{is_unchanged, time_of};
use super::{Applied, Context, Probe, Step};
use crate::failure::Failure;
use crate::history::Last;
use crate::transfer::{self, CompareSink, manifest};
use crate::world::HashJob;

pub(super) struct VerifyImage {
    pub(super) image: u32,
}

impl Step for VerifyImage {
    fn expected(&self, context: &Context) -> String {
        context.image(self.image).map_or_else(|_| String::new(), |image| format!("{} read back", image.staging_path))
    }

    fn probe(&self, context: &Context) -> Result<Probe, Failure> {
        let history = context.history_of(StepV1::VerifyImage { image: self.image });
        let Some(outcome) = history.filter(|step| step.last == Last::Done).and_then(|step| step.outcome.as_ref())
        else {
            return Ok(Probe::Absent);
        };
        let stat = context.destination.stat(&context.image(self.image)?.staging_path)?;
        Ok(match stat {
            Some(stat) if is_unchanged(context.image(self.image)?, outcome, &stat) => Probe::Ours(outcome.clone()),
            _ => Probe::Absent,
        })
    }

    fn apply(&self, context: &mut Context) -> Result<Applied, Failure> {
        let this = StepV1::VerifyImage { image: self.image };
        let step = context.place_of(this)?;
        let geometry = context.geometry(self.image)?;
        let mut ledger = context.recorder.chunks(self.image)?;
        let earlier = StepV1::TransferImage { image: self.image };
        let root = transferred_root(context, self.image).ok_or_else(|| {
            Failure::stop(None, "a transfer that ended with a root", "no record of it: the journal is not consistent")
        })?;
        // An earlier attempt may have died after it took a difference out of the ledger and before it told: then the ledger
        // cannot judge what is read.
        if context.recorder.history().attempts > 1 && manifest::root(geometry, &ledger) != root {
            let why = format!("{}: the ledger is not what was transferred", context.image(self.image)?.role);
            return Ok(Applied::Reopen { earlier, cause: ReopenCauseV1::EffectGone, why });
        }
        let path = context.image(self.image)?.staging_path.clone();
        let host = context.destination.clone();
        let stat = host
            .stat(&path)?
            .ok_or_else(|| Failure::suspend(format!("{path} on {} is gone", host.name()), "resume makes it again"))?;
        // What was read back is known of the image as the transfer left it.
        let image = context.image(self.image)?.clone();
        let unchanged = context.outcome_of(earlier).is_some_and(|outcome| is_unchanged(&image, outcome, &stat));
        let read_back = context.read_back.remove(&self.image).filter(|_| unchanged).unwrap_or_default();
        let job = HashJob {
            path: path.clone(),
            inode: Some(stat.inode),
            geometry,
            wanted: transfer::missing(geometry, &read_back),
            patches: Vec::new(),
            below: Vec::new(),
            reread: true,
        };
        let mut sink = CompareSink::new(&mut context.recorder, step, &ledger, geometry, geometry.image_bytes);
        sink.take_known(&read_back);
        host.hash_chunks(&job, &mut sink)?;
        let differing = sink.differing;
        let Some(first) = differing.first() else {
            return Ok(Applied::Done(OutcomeV1::Verified {
                inode: stat.inode,
                size: geometry.image_bytes,
                mtime_ns: time_of(&image, &stat),
                root,
            }));
        };
        let why = format!(
            "{path} on {}: {} of {} chunks were read back otherwise than they were sent (the first at byte {})",
            host.name(),
            differing.len(),
            geometry.chunk_count(),
            first * u64::from(geometry.chunk_bytes)
        );
        if context.history_of(this).is_some_and(|step| step.differed > 0) {
            return Err(Failure::turn_back(
                format!("{why}, twice"),
                "check that host's disk and memory, then clone again",
            ));
        }
        ledger.retain(|index, _| !differing.contains(index));
        context.recorder.replace_chunks(self.image, &ledger)?;
        Ok(Applied::Reopen { earlier, cause: ReopenCauseV1::ReadBackDiffers, why })
    }

    fn undo(&self, _context: &mut Context) -> Result<(), Failure> {
        Ok(())
    }
}

/// The root that Transfer found.
fn transferred_root(context: &Context, image: u32) -> Option<journal_format::ChunkValue> {
    match context.outcome_of(StepV1::TransferImage { image })? {
        OutcomeV1::Transferred { root, .. } => Some(*root),
        _ => None,
    }
}
