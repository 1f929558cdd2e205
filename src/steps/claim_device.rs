//! The reservation of a block device that an image is written to: a hard link to the owner file, under what names the device
//! for good. What the device holds is given up with the first byte of the transfer; giving the claim back brings nothing back.

use journal_format::owner::decode_owner_file;
use journal_format::{DeviceV1, ImageV1, OutcomeV1, StepV1};

use super::host_record::{DEVICE_CLAIMS, OWNER_BYTES_MAX, ensure_dir};
use super::{Applied, Context, Probe, Step};
use crate::failure::Failure;
use crate::world::FaultKind;

pub(super) struct ClaimDevice {
    pub(super) image: u32,
}

impl Step for ClaimDevice {
    fn expected(&self, context: &Context) -> String {
        context
            .device(self.image)
            .map_or_else(|_| String::new(), |(_, device)| format!("the claim {}", claim_of(device)))
    }

    fn probe(&self, context: &Context) -> Result<Probe, Failure> {
        let (host, (_, device)) = (&context.destination, context.device(self.image)?);
        let Some(claim) = host.stat(&claim_of(device))? else { return Ok(Probe::Absent) };
        for name in [context.record.owner(), context.record.committed()] {
            if host.stat(&name)?.is_some_and(|owner| owner.inode == claim.inode) {
                return Ok(Probe::Ours(OutcomeV1::Nothing));
            }
        }
        Ok(Probe::Foreign(holder(context, device)?.into_refusal().message))
    }

    fn apply(&self, context: &mut Context) -> Result<Applied, Failure> {
        let (path, device) = context.device(self.image)?;
        let (path, claim) = (path.to_owned(), claim_of(device));
        let host = context.destination.clone();
        // Before anything is written, a device that is not the planned one is only a reason to turn back.
        host.hold_device(&path, &device.identity).map_err(|fault| match fault.kind {
            FaultKind::Changed | FaultKind::InUse | FaultKind::NotFound | FaultKind::Unsupported => {
                Failure::turn_back(fault.to_string(), "look at that device, then clone again")
            }
            _ => fault.into(),
        })?;
        ensure_dir(host.as_ref(), DEVICE_CLAIMS, 0o700)?;
        match host.link(&context.record.owner(), &claim) {
            Ok(()) => Ok(Applied::Done(OutcomeV1::Nothing)),
            Err(fault) if fault.kind == FaultKind::AlreadyExists => match self.probe(context)? {
                Probe::Ours(outcome) => Ok(Applied::Done(outcome)),
                _ => Err(holder(context, context.device(self.image)?.1)?),
            },
            Err(fault) => Err(fault.into()),
        }
    }

    fn settle(&self, context: &Context) -> Result<(), Failure> {
        Ok(context.destination.sync(DEVICE_CLAIMS)?)
    }

    fn undo(&self, context: &mut Context) -> Result<(), Failure> {
        let (host, record) = (&context.destination, &context.record);
        let claim = claim_of(context.device(self.image)?.1);
        if let Some(owner) = host.stat(&record.owner())?
            && host.stat(&claim)?.is_some_and(|claim| claim.inode == owner.inode)
        {
            host.unlink(&claim, owner.inode)?;
        }
        match host.sync(DEVICE_CLAIMS) {
            Err(fault) if fault.kind == FaultKind::NotFound => Ok(()),
            synced => Ok(synced?),
        }
    }

    fn has_only_lost_its_name(&self, context: &Context) -> Result<bool, Failure> {
        Ok(context.destination.stat(&context.record.owner())?.is_some())
    }

    fn foreign(&self, context: &Context) -> Option<Failure> {
        holder(context, context.device(self.image).ok()?.1).ok()
    }

    fn hold(&self, context: &Context) -> Result<(), Failure> {
        hold_device(context, self.image)
    }
}

/// Holds the device of an image for as long as this attempt's agent lives. It must be the planned one: what has its name after a
/// boot may be another.
pub fn hold_device(context: &Context, image: u32) -> Result<(), Failure> {
    let (host, (path, device)) = (&context.destination, context.device(image)?);
    match host.hold_device(path, &device.identity) {
        Ok(_) => Ok(()),
        Err(fault) if matches!(fault.kind, FaultKind::Changed | FaultKind::InUse | FaultKind::Unsupported) => {
            let place = context.place_of(StepV1::ClaimDevice { image })?;
            let expected = format!("the device {} as {path}, used by nobody", device.identity);
            Err(Failure::stop(Some(place), expected, fault.to_string()))
        }
        Err(fault) if fault.kind == FaultKind::NotFound => Err(Failure::suspend(
            format!("the device {path} on {} is not there", host.name()),
            "bring it back, then resume; or roll back",
        )),
        Err(fault) => Err(fault.into()),
    }
}

/// After the commit nothing holds them any more, and after a boot their names may lead elsewhere: no guest is started on that.
pub(super) fn must_lead_to_devices(context: &Context) -> Result<(), Failure> {
    let host = &context.destination;
    for device in context.plan.images.iter().filter_map(ImageV1::device) {
        let node = host.resolve(&device.named)?;
        let found = node.map_or(Ok(None), |node| host.device(&node))?;
        if found.and_then(|facts| facts.identity).as_ref() != Some(&device.identity) {
            return Err(Failure::suspend(
                format!(
                    "{} on {} does not lead to the device {}, which was written",
                    device.named,
                    host.name(),
                    device.identity
                ),
                "let that name lead there again, then resume",
            ));
        }
    }
    Ok(())
}

/// Where the claim on a device is.
pub(super) fn claim_of(device: &DeviceV1) -> String {
    format!("{DEVICE_CLAIMS}/{}", device.identity)
}

/// Who holds the device: exit 5 for a transaction of this controller, 7 for another's.
fn holder(context: &Context, device: &DeviceV1) -> Result<Failure, Failure> {
    let (host, claim) = (&context.destination, claim_of(device));
    let bytes = host.read(&claim, OWNER_BYTES_MAX)?.unwrap_or_default();
    let what = format!("the device {} is claimed on {}", device.identity, host.name());
    Ok(match decode_owner_file(&bytes) {
        Ok(slot) if slot.controller == context.controller => {
            let advice = format!("`kvm-clone resume {0}` or `kvm-clone rollback {0}` first", slot.txn);
            Failure::turn_back_with(5, format!("{what} by transaction {}", slot.txn), advice)
        }
        Ok(slot) => Failure::turn_back_with(
            7,
            format!("{what} by transaction {} of the controller {}", slot.txn, slot.controller.state_dir),
            "wait for that transaction, or give another device",
        ),
        Err(_) => Failure::turn_back_with(7, format!("{what} by an unreadable {claim}"), "wait a moment and run again"),
    })
}
