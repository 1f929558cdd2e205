//! The reservation of the clone's name: a hard link to the owner file, so that it says whose it is.

use journal_format::OutcomeV1;
use journal_format::owner::decode_owner_file;

use super::host_record::{CLAIMS, OWNER_BYTES_MAX};
use super::{Applied, Context, Probe, Step};
use crate::failure::Failure;
use crate::world::FaultKind;

pub(super) struct ClaimName;

impl Step for ClaimName {
    fn expected(&self, context: &Context) -> String {
        format!("the claim {}", context.record.claim)
    }

    fn probe(&self, context: &Context) -> Result<Probe, Failure> {
        let (host, record) = (&context.destination, &context.record);
        let Some(claim) = host.stat(&record.claim)? else { return Ok(Probe::Absent) };
        for name in [record.owner(), record.committed()] {
            if host.stat(&name)?.is_some_and(|owner| owner.inode == claim.inode) {
                return Ok(Probe::Ours(OutcomeV1::Nothing));
            }
        }
        Ok(Probe::Foreign(holder(context)?.into_refusal().message))
    }

    fn apply(&self, context: &mut Context) -> Result<Applied, Failure> {
        match context.destination.link(&context.record.owner(), &context.record.claim) {
            Ok(()) => Ok(Applied::Done(OutcomeV1::Nothing)),
            Err(fault) if fault.kind == FaultKind::AlreadyExists => match self.probe(context)? {
                Probe::Ours(outcome) => Ok(Applied::Done(outcome)),
                _ => Err(holder(context)?),
            },
            Err(fault) => Err(fault.into()),
        }
    }

    fn settle(&self, context: &Context) -> Result<(), Failure> {
        Ok(context.destination.sync(CLAIMS)?)
    }

    fn undo(&self, context: &mut Context) -> Result<(), Failure> {
        let (host, record) = (&context.destination, &context.record);
        if let Some(owner) = host.stat(&record.owner())?
            && host.stat(&record.claim)?.is_some_and(|claim| claim.inode == owner.inode)
        {
            host.unlink(&record.claim, owner.inode)?;
        }
        match host.sync(CLAIMS) {
            // Somebody removed all that kvm-clone keeps there, and with it the claim.
            Err(fault) if fault.kind == FaultKind::NotFound => Ok(()),
            synced => Ok(synced?),
        }
    }

    fn has_only_lost_its_name(&self, context: &Context) -> Result<bool, Failure> {
        Ok(context.destination.stat(&context.record.owner())?.is_some())
    }

    fn foreign(&self, context: &Context) -> Option<Failure> {
        holder(context).ok()
    }
}

/// Who holds the name: exit 5 for a transaction of this controller, 7 for another's or for one that runs now. A `run` saw
/// the name free a moment before its first attempt, so whoever claimed it since is at work.
fn holder(context: &Context) -> Result<Failure, Failure> {
    let name = &context.plan.request.new_name;
    let bytes = context.destination.read(&context.record.claim, OWNER_BYTES_MAX)?.unwrap_or_default();
    let Ok(slot) = decode_owner_file(&bytes) else {
        return Ok(Failure::turn_back_with(
            7,
            format!(
                "the name {name} is claimed on {} by an unreadable {}",
                context.destination.name(),
                context.record.claim
            ),
            "wait a moment and run again",
        ));
    };
    let txn = slot.txn;
    Ok(if slot.controller == context.controller && context.recorder.history().attempts <= 1 {
        Failure::turn_back_with(
            7,
            format!("the name {name} was claimed on {} meanwhile by transaction {txn}", context.destination.name()),
            format!("wait for its end (`kvm-clone show {txn}`), or choose another name with --new-name"),
        )
    } else if slot.controller == context.controller {
        Failure::turn_back_with(
            5,
            format!("the name {name} is claimed on {} by transaction {txn}", context.destination.name()),
            format!("`kvm-clone resume {txn}` or `kvm-clone rollback {txn}` first"),
        )
    } else {
        Failure::turn_back_with(
            7,
            format!(
                "the name {name} is claimed on {} by transaction {txn} of the controller {} (machine {})",
                context.destination.name(),
                slot.controller.state_dir,
                slot.controller.machine_id
            ),
            "wait for that transaction, or choose another name",
        )
    })
}
