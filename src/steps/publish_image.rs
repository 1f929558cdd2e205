//! The staged image under its final name, by link: that fails when the name is taken. The staging name stays until
//! clean-up and proves that the file is ours.

use journal_format::{OutcomeV1, ReopenCauseV1, SourceKindV1, StepV1};

use super::host_record::parent_of;
use super::source::{known_stamp, look_at_source};
use super::transfer_image::{Origin, device_differs};
use super::{Applied, Context, Probe, Step, publishes};
use crate::failure::Failure;
use crate::history::Last;
use crate::world::{DomainState, FaultKind};

pub(super) struct PublishImage {
    pub(super) image: u32,
}

impl Step for PublishImage {
    fn expected(&self, context: &Context) -> String {
        context.image(self.image).map_or_else(|_| String::new(), |image| format!("our image {}", image.final_path))
    }

    fn probe(&self, context: &Context) -> Result<Probe, Failure> {
        let (host, image) = (&context.destination, context.image(self.image)?);
        let Some(last) = host.stat(&image.final_path)? else { return Ok(Probe::Absent) };
        let Some(staged) = host.stat(&image.staging_path)?.filter(|staged| staged.inode == last.inode) else {
            return Ok(Probe::Foreign(format!("{} is another file (inode {})", image.final_path, last.inode.0)));
        };
        Ok(match context.outcome_of(StepV1::TransferImage { image: self.image }) {
            Some(OutcomeV1::Transferred { source_size, mtime_ns, .. })
                if (*source_size, *mtime_ns) != (staged.size, staged.mtime_ns) =>
            {
                Probe::InUse(format!("{} was written to since it was published", image.final_path))
            }
            _ => Probe::Ours(OutcomeV1::Made { inode: last.inode }),
        })
    }

    fn apply(&self, context: &mut Context) -> Result<Applied, Failure> {
        if let Some(reopened) = look_at_source_again(context, StepV1::PublishImage { image: self.image })? {
            return Ok(reopened);
        }
        let (host, image) = (&context.destination, context.image(self.image)?);
        match host.link(&image.staging_path, &image.final_path) {
            Ok(()) => {}
            Err(fault) if fault.kind == FaultKind::AlreadyExists => {
                if let Probe::Ours(outcome) = self.probe(context)? {
                    return Ok(Applied::Done(outcome));
                }
                return Err(Failure::turn_back(
                    format!("{} on {} was taken by somebody else meanwhile", image.final_path, host.name()),
                    "run again: another path is chosen",
                ));
            }
            Err(fault) => return Err(fault.into()),
        }
        let unlabelled = host.relabel(&image.final_path)?;
        let warning =
            unlabelled.map(|why| format!("{} on {} has no label of its own: {why}", image.final_path, host.name()));
        let inode = host.stat(&image.final_path)?.map(|stat| stat.inode).ok_or_else(|| {
            Failure::suspend(format!("{} on {} vanished at once", image.final_path, host.name()), "resume looks again")
        })?;
        if let Some(warning) = warning {
            context.recorder.observer.warning(&warning);
        }
        Ok(Applied::Done(OutcomeV1::Made { inode }))
    }

    fn settle(&self, context: &Context) -> Result<(), Failure> {
        let (host, image) = (&context.destination, context.image(self.image)?);
        host.sync(parent_of(&image.staging_path))?;
        Ok(host.sync(parent_of(&image.final_path))?)
    }

    fn undo(&self, context: &mut Context) -> Result<(), Failure> {
        let (host, image) = (&context.destination, context.image(self.image)?);
        let staged = host.stat(&image.staging_path)?;
        let published = host.stat(&image.final_path)?;
        if let (Some(staged), Some(published)) = (staged, published)
            && staged.inode == published.inode
        {
            host.unlink(&image.final_path, staged.inode)?;
        }
        match host.sync(parent_of(&image.final_path)) {
            // The directory is gone, and with it any name in it.
            Err(fault) if fault.kind == FaultKind::NotFound => Ok(()),
            synced => Ok(synced?),
        }
    }

    fn has_only_lost_its_name(&self, context: &Context) -> Result<bool, Failure> {
        Ok(context.destination.stat(&context.image(self.image)?.staging_path)?.is_some())
    }

    fn hold(&self, context: &Context) -> Result<(), Failure> {
        let (host, image) = (&context.destination, context.image(self.image)?);
        match host.lock_image(&image.final_path) {
            Ok(_) => Ok(()),
            Err(fault) if fault.kind == FaultKind::InUse => {
                let place = context.place_of(StepV1::PublishImage { image: self.image })?;
                Err(Failure::stop(Some(place), format!("{} used by nobody", image.final_path), fault.to_string()))
            }
            Err(fault) => Err(fault.into()),
        }
    }
}

/// What is published may become a VM, and not everybody asks for a lock who writes to a file, or can be asked to for a device:
/// before the first image is, or where none is before the definition, the source's images are looked at once more. Otherwise
/// a mixture could be defined until the barrier finds it.
pub(super) fn look_at_source_again(context: &mut Context, this: StepV1) -> Result<Option<Applied>, Failure> {
    let mut others = context.plan.steps.iter().filter(|step| **step != this && publishes(**step));
    if others.any(|step| context.last_of(*step) != Last::None) {
        return Ok(None);
    }
    let (source, name) = (context.source()?, context.plan.request.vm_name.clone());
    let images: Vec<_> = (0_u32..).zip(context.plan.images.clone()).collect();
    if images.iter().any(|(_, image)| image.source_kind == SourceKindV1::Device) {
        let domain = source.domain(context.plan.request.vm_uuid)?;
        if domain.is_some_and(|domain| domain.brief.state == DomainState::Active) {
            return Err(Failure::suspend(
                format!("the source VM {name} on {} is running", source.name()),
                "shut it off, then resume; or roll back",
            ));
        }
    }
    for (index, image) in images {
        let known = known_stamp(context, index)?;
        let (_, seen) = look_at_source(context, index)?;
        // A ctime alone says nothing: a refused start moves it. A device that grew may still begin with what was sent of it.
        let restamped = (seen.size, seen.mtime_ns) != (known.size, known.mtime_ns);
        let is_device = image.source_kind == SourceKindV1::Device;
        if restamped || (is_device && device_differs(context, index, Origin::Source)?) {
            let why = format!("{} on {} changed since it was read", image.source_path, source.name());
            if context.recorder.history().sources.get(index as usize).is_some_and(|known| known.changed) {
                return Err(Failure::turn_back(
                    format!("{why}, not for the first time"),
                    "see who writes to it, then clone again",
                ));
            }
            let earlier = StepV1::TransferImage { image: index };
            return Ok(Some(Applied::Reopen { earlier, cause: ReopenCauseV1::SourceChanged, why }));
        }
    }
    Ok(None)
}
