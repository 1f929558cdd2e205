//! The staged image under its final name, by link: that fails when the name is taken. The staging name stays until
//! clean-up and proves that the file is ours.

use journal_format::{OutcomeV1, StepV1};

use super::host_record::parent_of;
use super::{Applied, Context, Probe, Step};
use crate::failure::Failure;
use crate::world::FaultKind;

pub(super) struct PublishDisk {
    pub(super) disk: u32,
}

impl Step for PublishDisk {
    fn expected(&self, context: &Context) -> String {
        context.disk(self.disk).map_or_else(|_| String::new(), |disk| format!("our image {}", disk.final_path))
    }

    fn probe(&self, context: &Context) -> Result<Probe, Failure> {
        let (host, disk) = (&context.destination, context.disk(self.disk)?);
        let Some(last) = host.stat(&disk.final_path)? else { return Ok(Probe::Absent) };
        let Some(staged) = host.stat(&disk.staging_path)?.filter(|staged| staged.inode == last.inode) else {
            return Ok(Probe::Foreign(format!("{} is another file (inode {})", disk.final_path, last.inode.0)));
        };
        Ok(match context.outcome_of(StepV1::TransferDisk { disk: self.disk }) {
            Some(OutcomeV1::Transferred { source_size, mtime_ns, .. })
                if (*source_size, *mtime_ns) != (staged.size, staged.mtime_ns) =>
            {
                Probe::InUse(format!("{} was written to since it was published", disk.final_path))
            }
            _ => Probe::Ours(OutcomeV1::Made { inode: last.inode }),
        })
    }

    fn apply(&self, context: &mut Context) -> Result<Applied, Failure> {
        let (host, disk) = (&context.destination, context.disk(self.disk)?);
        match host.link(&disk.staging_path, &disk.final_path) {
            Ok(()) => {}
            Err(fault) if fault.kind == FaultKind::AlreadyExists => {
                if let Probe::Ours(outcome) = self.probe(context)? {
                    return Ok(Applied::Done(outcome));
                }
                return Err(Failure::turn_back(
                    format!("{} on {} was taken by somebody else meanwhile", disk.final_path, host.name()),
                    "run again: another path is chosen",
                ));
            }
            Err(fault) => return Err(fault.into()),
        }
        let stat = host.stat(&disk.final_path)?;
        let inode = stat.map(|stat| stat.inode);
        inode.map(|inode| Applied::Done(OutcomeV1::Made { inode })).ok_or_else(|| {
            Failure::suspend(format!("{} on {} vanished at once", disk.final_path, host.name()), "resume looks again")
        })
    }

    fn settle(&self, context: &Context) -> Result<(), Failure> {
        let (host, disk) = (&context.destination, context.disk(self.disk)?);
        host.sync(parent_of(&disk.staging_path))?;
        Ok(host.sync(parent_of(&disk.final_path))?)
    }

    fn undo(&self, context: &mut Context) -> Result<(), Failure> {
        let (host, disk) = (&context.destination, context.disk(self.disk)?);
        let staged = host.stat(&disk.staging_path)?;
        let published = host.stat(&disk.final_path)?;
        if let (Some(staged), Some(published)) = (staged, published)
            && staged.inode == published.inode
        {
            host.unlink(&disk.final_path, staged.inode)?;
        }
        Ok(host.sync(parent_of(&disk.final_path))?)
    }

    fn hold(&self, context: &Context) -> Result<(), Failure> {
        let (host, disk) = (&context.destination, context.disk(self.disk)?);
        match host.lock_image(&disk.final_path) {
            Ok(_) => Ok(()),
            Err(fault) if fault.kind == FaultKind::InUse => {
                let place = context.place_of(StepV1::PublishDisk { disk: self.disk })?;
                Err(Failure::stop(Some(place), format!("{} used by nobody", disk.final_path), fault.to_string()))
            }
            Err(fault) => Err(fault.into()),
        }
    }
}
