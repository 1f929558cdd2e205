//! The bytes of an image: what the ledger does not have is sent, and recorded once it is durable.

use std::collections::{BTreeMap, BTreeSet};

use journal_format::{ChunkState, ChunkValue, EventV1, ImageV1, OutcomeV1, SourceKindV1, SourceStampV1, StepV1};

use super::source::{below, known_stamp, look_at_source};
use super::{Applied, Context, Probe, Step};
use crate::domain::qcow2::{HEADER_READ_BYTES, renamed_backing};
use crate::failure::Failure;
use crate::history::Last;
use crate::transfer::{self, CompareSink, LedgerSink, manifest};
use crate::world::{ChunkGeometry, CopyJob, FileKind, FileStat, HashJob, Patch, ZeroChunks};

pub(super) struct TransferImage {
    pub(super) image: u32,
}

impl Step for TransferImage {
    fn expected(&self, context: &Context) -> String {
        context.image(self.image).map_or_else(|_| String::new(), |image| format!("all of {}", image.source_path))
    }

    fn probe(&self, context: &Context) -> Result<Probe, Failure> {
        let image = context.image(self.image)?;
        let Some(stat) = context.destination.stat(&image.staging_path)? else { return Ok(Probe::Absent) };
        let image = image.clone();
        let history = context.history_of(StepV1::TransferImage { image: self.image });
        if let Some(step) = history.filter(|step| step.last == Last::Done) {
            return Ok(match &step.outcome {
                Some(outcome) if is_unchanged(&image, outcome, &stat) => Probe::Ours(outcome.clone()),
                _ => Probe::Partial,
            });
        }
        // What is not in the ledger is not known to be there: an effect begins with the first recorded chunk.
        Ok(if context.recorder.chunks(self.image)?.is_empty() { Probe::Absent } else { Probe::Partial })
    }

    fn apply(&self, context: &mut Context) -> Result<Applied, Failure> {
        self.follow_source(context)?;
        let history = context.history_of(StepV1::TransferImage { image: self.image });
        let reopened = history.is_some_and(|step| step.last == Last::Reopened);
        let read_back = history.is_some_and(|step| step.differed > 0);
        // What Verify read back is out of the ledger already.
        if (reopened && !read_back) || !context.plan.request.options.verify {
            self.drop_unproven(context)?;
        }
        let step = context.place_of(StepV1::TransferImage { image: self.image })?;
        let geometry = context.geometry(self.image)?;
        let ledger = context.recorder.chunks(self.image)?;
        let wanted = transfer::missing(geometry, &ledger);
        let missing_bytes = transfer::bytes_of(geometry, &wanted);
        let to_inode = self.right_size(context, geometry)?.inode;
        let patches = patches(context, self.image)?;
        let image = context.image(self.image)?;
        let source = context.recorder.history().sources.get(self.image as usize);
        let job = CopyJob {
            from: image.source_path.clone(),
            to: image.staging_path.clone(),
            to_inode,
            geometry,
            wanted,
            patches: patches.clone(),
            below: below(image),
            // What was sent before, and is not in the ledger, may lie under what is zero now; on a device, anything.
            zero_chunks: if source.is_some_and(|source| source.changed) || reopened || image.device().is_some() {
                ZeroChunks::Punch
            } else {
                ZeroChunks::Skip
            },
            read_back: context.plan.request.options.verify,
            bandwidth_limit_bytes_per_second: context.bandwidth_limit_bytes_per_second,
        };
        let mut sink = LedgerSink::new(&mut context.recorder, step, self.image, geometry, missing_bytes);
        let copied = context.world.copy_chunks(&job, &mut sink);
        let hole_bytes = sink.hole_bytes;
        if let Some(error) = sink.error {
            return Err(error.into());
        }
        let read_back = sink.read_back;
        let summary = copied?;
        context.read_back.insert(self.image, read_back);
        context.destination.sync(&job.to)?;

        let ledger = context.recorder.chunks(self.image)?;
        let root = manifest::root(geometry, &ledger);
        let source_root = self.source_root(context, geometry, ledger, &patches)?;
        let stat = self.staged(context)?;
        let stamp = known_stamp(context, self.image)?;
        Ok(Applied::Done(OutcomeV1::Transferred {
            inode: stat.inode,
            root,
            source_root,
            source_size: stamp.size,
            source_mtime_ns: stamp.mtime_ns,
            mtime_ns: time_of(context.image(self.image)?, &stat),
            missing_bytes: missing_bytes.saturating_sub(hole_bytes),
            sent_bytes: summary.sent_bytes,
        }))
    }

    fn undo(&self, context: &mut Context) -> Result<(), Failure> {
        // The bytes go with the file, which Create made.
        Ok(context.recorder.replace_chunks(self.image, &BTreeMap::new())?)
    }
}

impl TransferImage {
    fn staged(&self, context: &Context) -> Result<FileStat, Failure> {
        let image = context.image(self.image)?;
        context.destination.stat(&image.staging_path)?.ok_or_else(|| {
            Failure::suspend(
                format!("{} on {} is gone", image.staging_path, context.destination.name()),
                "resume makes it again",
            )
        })
    }

    /// The staged image, as long as the source's; a device is what it is. Create made it so, but a power cut may have kept its mode, by which it is
    /// known, and not its size; and what ends in a hole is never written to.
    fn right_size(&self, context: &Context, geometry: ChunkGeometry) -> Result<FileStat, Failure> {
        let staged = self.staged(context)?;
        let image = context.image(self.image)?;
        if image.device().is_some() {
            let fits = staged.size >= geometry.image_bytes;
            return if fits { Ok(staged) } else { Err(too_small(context, &image.final_path)) };
        }
        if staged.size != geometry.image_bytes {
            let path = &image.staging_path;
            let preallocate = context.plan.request.options.preallocate;
            context.destination.set_size(path, staged.inode, geometry.image_bytes, preallocate)?;
        }
        Ok(staged)
    }

    /// Where the source's image is no longer what the ledger belongs to, takes out of the ledger what differs.
    fn follow_source(&self, context: &mut Context) -> Result<(), Failure> {
        let known = known_stamp(context, self.image)?;
        let (_, seen) = look_at_source(context, self.image)?;
        let mut ledger = context.recorder.chunks(self.image)?;
        if seen == known {
            return match context.image(self.image)?.source_kind {
                SourceKindV1::File => Ok(()),
                SourceKindV1::Device => self.follow_device(context, seen, ledger),
            };
        }
        if seen.size == known.size {
            let geometry = context.geometry(self.image)?;
            let differing = self.differing(context, geometry, &ledger, Origin::Source)?;
            ledger.retain(|index, _| !differing.contains(index));
            context.recorder.replace_chunks(self.image, &ledger)?;
        } else {
            context.recorder.replace_chunks(self.image, &BTreeMap::new())?;
            let staged = self.staged(context)?;
            let path = context.image(self.image)?.staging_path.clone();
            if context.image(self.image)?.device().is_none() {
                context.destination.set_size(&path, staged.inode, 0, false)?;
                let preallocate = context.plan.request.options.preallocate;
                context.destination.set_size(&path, staged.inode, seen.size, preallocate)?;
            } else if staged.size < seen.size {
                return Err(too_small(context, &path));
            }
        }
        let event = EventV1::SourceChanged { image: self.image, stamp: seen };
        Ok(context.recorder.append(context.world.now(), event)?)
    }

    /// Nothing but its bytes says whether a device is still what the ledger belongs to.
    fn follow_device(
        &self,
        context: &mut Context,
        stamp: SourceStampV1,
        mut ledger: BTreeMap<u64, ChunkState>,
    ) -> Result<(), Failure> {
        let geometry = context.geometry(self.image)?;
        let differing = self.differing(context, geometry, &ledger, Origin::Source)?;
        if differing.is_empty() {
            return Ok(());
        }
        // The event first: a later attempt would no more find what differs, and skip what became zero.
        let event = EventV1::SourceChanged { image: self.image, stamp };
        context.recorder.append(context.world.now(), event)?;
        ledger.retain(|index, _| !differing.contains(index));
        Ok(context.recorder.replace_chunks(self.image, &ledger)?)
    }

    /// The root of the source's own image, whose header may name another one below than the copy's does.
    fn source_root(
        &self,
        context: &Context,
        geometry: ChunkGeometry,
        mut ledger: BTreeMap<u64, ChunkState>,
        patches: &[Patch],
    ) -> Result<ChunkValue, Failure> {
        let chunk_bytes = u64::from(geometry.chunk_bytes);
        let touched = patches.iter().flat_map(|patch| {
            let last = patch.offset + (patch.bytes.len() as u64).saturating_sub(1);
            patch.offset / chunk_bytes..=last / chunk_bytes
        });
        let wanted = transfer::ranges_of(touched.collect::<BTreeSet<_>>());
        if !wanted.is_empty() {
            let path = context.image(self.image)?.source_path.clone();
            let (patches, below) = (Vec::new(), Vec::new());
            let job = HashJob { path, inode: None, geometry, wanted, patches, below, reread: false };
            context.source()?.hash_chunks(&job, &mut transfer::GatherSink(&mut ledger))?;
        }
        Ok(manifest::root(geometry, &ledger))
    }

    /// Re-reads what the ledger says is on the destination and takes out what is not.
    fn drop_unproven(&self, context: &mut Context) -> Result<(), Failure> {
        let mut ledger = context.recorder.chunks(self.image)?;
        if ledger.is_empty() {
            return Ok(());
        }
        let geometry = context.geometry(self.image)?;
        let differing = self.differing(context, geometry, &ledger, Origin::Destination)?;
        if !differing.is_empty() {
            ledger.retain(|index, _| !differing.contains(index));
            context.recorder.replace_chunks(self.image, &ledger)?;
        }
        Ok(())
    }

    fn differing(
        &self,
        context: &mut Context,
        geometry: ChunkGeometry,
        ledger: &BTreeMap<u64, ChunkState>,
        origin: Origin,
    ) -> Result<BTreeSet<u64>, Failure> {
        let image = context.image(self.image)?;
        let (host, path, patches, below) = match origin {
            Origin::Source => {
                (context.source()?, image.source_path.clone(), patches(context, self.image)?, below(image))
            }
            Origin::Destination => (context.destination.clone(), image.staging_path.clone(), Vec::new(), Vec::new()),
        };
        let step = context.place_of(StepV1::TransferImage { image: self.image })?;
        let wanted = transfer::ranges_of(ledger.keys().copied());
        let bytes = transfer::bytes_of(geometry, &wanted);
        let reread = origin == Origin::Destination || image.source_kind == SourceKindV1::Device;
        let job = HashJob { path, inode: None, geometry, wanted, patches, below, reread };
        let mut sink = CompareSink::new(&mut context.recorder, step, ledger, geometry, bytes);
        host.hash_chunks(&job, &mut sink)?;
        Ok(sink.differing)
    }
}

/// Whose bytes are compared with the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The source's image.
    Source,
    /// What was written of it.
    Destination,
}

fn too_small(context: &Context, path: &str) -> Failure {
    Failure::turn_back(
        format!("{path} on {} has become too small for the image", context.destination.name()),
        "give a larger device, then clone again",
    )
}

/// The bytes by which the copy names another image below than the source's does. The header is read anew: who changed
/// the image may have moved them.
fn patches(context: &Context, image: u32) -> Result<Vec<Patch>, Failure> {
    let planned = context.image(image)?;
    let Some(backing) = &planned.backing else { return Ok(Vec::new()) };
    let source = context.source()?;
    let head = source.read(&planned.source_path, HEADER_READ_BYTES as u64)?.unwrap_or_default();
    let renamed = renamed_backing(&head, &backing.clone).map_err(|error| {
        let what = format!("{} on {}: {error}", planned.source_path, source.name());
        Failure::turn_back(what, "look at it with `qemu-img check`, then clone again")
    })?;
    Ok(renamed.into_iter().map(|(offset, bytes)| Patch { offset, bytes }).collect())
}

/// Does a device, of the source or written to, hold other bytes than those that were sent? Reads it whole, from the disk. Its
/// size is the recorded one.
pub fn device_differs(context: &mut Context, image: u32, origin: Origin) -> Result<bool, Failure> {
    let (ledger, geometry) = (context.recorder.chunks(image)?, context.geometry(image)?);
    let transfer = TransferImage { image };
    Ok(!transfer.differing(context, geometry, &ledger, origin)?.is_empty())
}

/// When an image was last written to. The times of a device's node say nothing of its bytes.
pub(super) fn time_of(image: &ImageV1, stat: &FileStat) -> i128 {
    if image.device().is_some() { 0 } else { stat.mtime_ns }
}

/// Is the staged image as it was when all of it was durable? Of a device that is not to be seen: each attempt reads it again.
pub(super) fn is_unchanged(image: &ImageV1, outcome: &OutcomeV1, stat: &FileStat) -> bool {
    match outcome {
        OutcomeV1::Transferred { source_size: size, .. } | OutcomeV1::Verified { size, .. }
            if image.device().is_some() =>
        {
            stat.kind == FileKind::BlockDevice && stat.size >= *size
        }
        OutcomeV1::Transferred { inode, source_size: size, mtime_ns, .. }
        | OutcomeV1::Verified { inode, size, mtime_ns, .. } => {
            (*inode, *size, *mtime_ns) == (stat.inode, stat.size, stat.mtime_ns)
        }
        _ => false,
    }
}
