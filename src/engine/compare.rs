//! Is what was planned and sent still so? The source with its images locked, and the devices that were written to; asked where
//! an attempt goes forward, and again at the barrier.

use std::collections::BTreeSet;

use journal_format::{BaseV1, DropKindV1, ImageFormat, ImageRoleV1, ImageV1, ReopenCauseV1, SourceKindV1, StepV1};

use super::attempt::connect;
use super::{is_anything_published, reopen};
use crate::domain::qcow2::{HEADER_READ_BYTES, Header};
use crate::domain::{Definition, DiskSource, same, uncarried_image, unflattened_image};
use crate::failure::Failure;
use crate::history::Last;
use crate::reach::{Leaving, Reached};
use crate::steps::{self, Context, Origin};
use crate::world::{DomainFacts, DomainState, FaultKind, FileKind, Host, Side};

/// Connects to the source, locks its images and compares it with the plan. What changed reopens the transfer.
pub(super) fn open_source(context: &mut Context) -> Result<(), Failure> {
    let source = connect(context.world, Side::Source, &context.plan.request.source.machine_id)?;
    context.source = Some(source.clone());
    let bases = context.plan.bases.iter().map(|base| base.source_path.as_str());
    for path in context.plan.images.iter().flat_map(steps::paths_read).chain(bases) {
        match source.lock_image(path) {
            Err(fault) if fault.kind == FaultKind::NotFound => {
                return Err(steps::source_not_there(source.as_ref(), path));
            }
            locked => drop(locked?),
        }
    }
    compare_source(context)
}

/// Compares the source with the plan, its locks held. Reopens what a changed image makes wrong.
pub(super) fn compare_source(context: &mut Context) -> Result<(), Failure> {
    let source = context.source()?;
    let request = &context.plan.request;
    let (name, host) = (request.vm_name.clone(), source.name());
    let domain = must_be_off(context)?;
    let is_carried = |kind| !request.options.dropped.contains(&kind);
    let more = [
        (!domain.persistent, "is no longer defined"),
        (
            domain.managed_save && is_carried(DropKindV1::ManagedSave),
            "has a saved memory state now, without which its disks are not consistent",
        ),
        (
            domain.checkpoints > 0 && is_carried(DropKindV1::Checkpoints),
            "has checkpoints now, which cannot be carried yet",
        ),
    ];
    if let Some((_, what)) = more.into_iter().find(|(found, _)| *found) {
        return Err(Failure::turn_back(format!("the source VM {name} on {host} {what}"), "clone again"));
    }
    let unchanged = same(&domain.definition, &context.plan.source_definition)
        .map_err(|error| Failure::turn_back(format!("{name} on {host}: {error}"), "clone again"))?;
    if !unchanged {
        return Err(Failure::turn_back(
            format!("the definition of {name} on {host} changed since this clone was planned"),
            "clone again: the new definition is then the one that is cloned",
        ));
    }
    if is_carried(DropKindV1::Snapshots) && (domain.snapshots > 0 || !context.plan.snapshots.is_empty()) {
        still_has_its_snapshots(context)?;
    }
    still_has_its_volumes(context)?;
    for image in 0..u32::try_from(context.plan.images.len()).unwrap_or(u32::MAX) {
        still_leads_to_image(context, image)?;
        compare_image(context, image)?;
    }
    for base in &context.plan.bases {
        compare_base(source.as_ref(), base)?;
    }
    if context.plan.images.iter().any(|image| image.source_kind == SourceKindV1::Device) {
        // QEMU's locks do nothing for a device: its domain may have been started while it was read.
        must_be_off(context)?;
    }
    Ok(())
}

/// The source VM, which must be there and shut off.
fn must_be_off(context: &Context) -> Result<DomainFacts, Failure> {
    let source = context.source()?;
    let (name, host) = (&context.plan.request.vm_name, source.name());
    let Some(domain) = source.domain(context.plan.request.vm_uuid)? else {
        return Err(Failure::turn_back(format!("the source VM {name} on {host} is gone"), "clone another VM"));
    };
    if domain.brief.state == DomainState::Active {
        return Err(Failure::suspend(
            format!("the source VM {name} on {host} is running"),
            "shut it off, then resume; or roll back",
        ));
    }
    Ok(domain)
}

/// The very snapshots that were planned, and no other.
fn still_has_its_snapshots(context: &Context) -> Result<(), Failure> {
    let (source, plan) = (context.source()?, &context.plan);
    let name = &plan.request.vm_name;
    let changed = |what: String| {
        Failure::turn_back(
            format!("{what} of the source VM {name} on {} since this clone was planned", source.name()),
            "clone again: the snapshots are then those that are cloned",
        )
    };
    let mut now = source.snapshots(plan.request.vm_uuid)?;
    for planned in &plan.snapshots {
        let Some(at) = now.iter().position(|snapshot| snapshot.name == planned.name) else {
            return Err(changed(format!("somebody deleted the snapshot {}", planned.name)));
        };
        let found = now.swap_remove(at);
        let unchanged = same(&found.definition, &planned.source_definition)
            .map_err(|error| Failure::turn_back(format!("{name} on {}: {error}", source.name()), "clone again"))?;
        if !unchanged || found.current != planned.current {
            return Err(changed(format!("somebody changed the snapshot {}", planned.name)));
        }
    }
    match now.first() {
        Some(new) => Err(changed(format!("somebody made the snapshot {}", new.name))),
        None => Ok(()),
    }
}

/// A pool may have been given another directory: then its volume is another file.
fn still_has_its_volumes(context: &Context) -> Result<(), Failure> {
    let source = context.source()?;
    let definition = Definition::parse(&context.plan.source_definition)
        .map_err(|error| Failure::turn_back(format!("{}: {error}", context.plan.request.vm_name), "clone again"))?;
    for disk in &definition.disks {
        let DiskSource::Volume { pool, volume } = &disk.source else { continue };
        let role = ImageRoleV1::Disk { target: disk.target.clone() };
        let Some(planned) = context.plan.images.iter().find(|image| image.role == role) else { continue };
        let what = format!("the volume {volume} of pool {pool} on {}", source.name());
        let suspended = |why: &str| {
            Failure::suspend(format!("{what} {why}"), "start that pool and refresh it, then resume; or roll back")
        };
        let path = match source.volume_path(pool, volume) {
            Err(fault) if fault.kind == FaultKind::Refused => return Err(suspended(&fault.detail)),
            path => path?.ok_or_else(|| suspended("is not there"))?,
        };
        if path != planned.reached_by {
            let planned = &planned.reached_by;
            return Err(Failure::turn_back(format!("{what} is {path} now, not {planned}"), "clone again"));
        }
    }
    Ok(())
}

/// The path that the VM knows may be a symlink, and lead elsewhere now.
fn still_leads_to_image(context: &Context, image: u32) -> Result<(), Failure> {
    let (source, planned) = (context.source()?, context.image(image)?);
    let layers = planned.flattened.iter().map(|layer| (&layer.reached_by, &layer.source_path));
    for (reached_by, source_path) in std::iter::once((&planned.reached_by, &planned.source_path)).chain(layers) {
        still_leads_to(source.as_ref(), &planned.role, reached_by, source_path)?;
    }
    Ok(())
}

fn still_leads_to(source: &dyn Host, role: &ImageRoleV1, reached_by: &str, source_path: &str) -> Result<(), Failure> {
    let Some(now) = source.resolve(reached_by)? else {
        return Err(steps::source_not_there(source, reached_by));
    };
    if now != source_path {
        let what = format!("{role} of the source VM: {reached_by} leads to {now} now, not to {source_path}");
        return Err(Failure::turn_back(what, "clone again"));
    }
    Ok(())
}

/// What the clone stands on has the bytes that the source's image had when it was planned.
fn compare_base(source: &dyn Host, base: &BaseV1) -> Result<(), Failure> {
    let path = &base.source_path;
    still_leads_to(source, &base.role, &base.reached_by, path)?;
    let stat = source.stat(path)?.ok_or_else(|| steps::source_not_there(source, path))?;
    if (stat.size, stat.mtime_ns) == (base.source_stamp.size, base.source_stamp.mtime_ns) {
        return Ok(());
    }
    let what = format!("{path} on {} changed since it was compared with {}", source.name(), base.path);
    Err(Failure::turn_back(what, "clone again"))
}

/// An image that was written to may have got a backing file, internal snapshots or anything else that is not carried.
fn must_be_carried(context: &Context, image: &ImageV1) -> Result<(), Failure> {
    let source = context.source()?;
    let kept = image.backing.as_ref().map(|backing| &backing.source);
    let references = image.flattened.iter().map(|layer| Some(&layer.reference)).chain([kept]);
    let formats = std::iter::once(image.format).chain(image.flattened.iter().map(|layer| layer.format));
    let layers = steps::paths_read(image).zip(references).zip(formats);
    for ((path, reference), _) in layers.filter(|(_, format)| *format == ImageFormat::Qcow2) {
        let head = source.read(path, HEADER_READ_BYTES as u64)?.unwrap_or_default();
        let refuse = |what: String| {
            Failure::turn_back(format!("{path} on {}: {what}", source.name()), "clone again: it says more")
        };
        let header = Header::read(&head).map_err(|error| refuse(error.to_string()))?;
        if header.backing_file.as_ref() != reference {
            let now = header.backing_file.unwrap_or_else(|| "nothing".to_owned());
            return Err(refuse(format!("it is on top of {now} now")));
        }
        let place = image.role.to_string();
        let mut blockers = uncarried_image(&place, &header).blockers;
        if !image.flattened.is_empty() {
            blockers.extend(unflattened_image(&place, &header).blockers);
        }
        if let Some(found) = blockers.first() {
            return Err(refuse(format!("{}: {}", found.what, found.why)));
        }
    }
    Ok(())
}

fn compare_image(context: &mut Context, image: u32) -> Result<(), Failure> {
    let source = context.source()?;
    let planned = context.image(image)?;
    let (path, target) = (planned.source_path.clone(), planned.role.to_string());
    let kind = planned.source_kind;
    let (stat, seen) = steps::look_at_source(context, image)?;
    let is_device = stat.kind == FileKind::BlockDevice;
    if is_device != (kind == SourceKindV1::Device) {
        let now = if is_device { "a block device" } else { "no block device" };
        return Err(Failure::turn_back(format!("{path} on {} is {now} now", source.name()), "clone again"));
    }
    let transfer = StepV1::TransferImage { image };
    let known = context.recorder.history().sources.get(image as usize).map(|source| source.stamp);
    let last = context.last_of(transfer);
    // Before its transfer is done, that reads a device again by itself.
    let differs = kind == SourceKindV1::Device
        && last == Last::Done
        && known == Some(seen)
        && steps::device_differs(context, image, Origin::Source)?;
    // Also what was sent again within this attempt, and not looked at as it is now.
    let changed = context.recorder.history().sources.get(image as usize).is_some_and(|source| source.changed);
    if known != Some(seen) || differs || changed {
        must_be_carried(context, context.image(image)?)?;
    }
    if (known == Some(seen) && !differs) || last != Last::Done {
        return Ok(());
    }
    let why = format!("{path} on {} changed since it was read", source.name());
    let published = context.last_of(StepV1::PublishImage { image }) != Last::None;
    let rewritten = differs || known.is_none_or(|known| (known.size, known.mtime_ns) != (seen.size, seen.mtime_ns));
    if published && !rewritten {
        // Only its ctime moved, as a refused start does: no byte was written.
        return Ok(());
    }
    if is_anything_published(context) {
        return Err(Failure::turn_back(format!("{why}, after the first image was published"), "clone again"));
    }
    context.recorder.observer.warning(&format!("{target}: {why}; what differs is sent again"));
    reopen(context, transfer, ReopenCauseV1::SourceChanged, &why)
}

/// Compares the devices that were written to with what was sent: no time and no lock tells whether somebody wrote to them since.
/// Each is held from here on. One that somebody else has by now is theirs: nothing more is written to it, and once the clone is
/// defined, it turns back.
pub(super) fn compare_devices(context: &mut Context) -> Result<(), Failure> {
    let (plan, host) = (context.plan.clone(), context.destination.clone());
    let is_done = |context: &Context, step| context.last_of(step) == Last::Done;
    // Claiming one looks at it too.
    let is_claimed = |image| is_done(context, StepV1::ClaimDevice { image });
    let images = (0_u32..).zip(&plan.images);
    let claimed: Vec<_> = images.filter(|(image, planned)| planned.device().is_some() && is_claimed(*image)).collect();
    if claimed.is_empty() {
        return Ok(());
    }
    for (image, _) in &claimed {
        steps::hold_device(context, *image)?;
    }
    let clone = Leaving { vm: plan.clone_uuid, files: BTreeSet::new() };
    let reached = Reached::on(host.as_ref(), Some(&clone))?;
    for (image, planned) in claimed {
        let is_at = |what: &str| format!("{} on {}: {what}", planned.final_path, host.name());
        // Or something could not be read just now that may.
        if let Some(who) = reached.by(&planned.final_path)? {
            return Err(Failure::suspend(is_at(&who), "see that nobody else uses it, then resume; or roll back"));
        }
        let transferred = is_done(context, StepV1::TransferImage { image });
        if !transferred || !steps::device_differs(context, image, Origin::Destination)? {
            continue;
        }
        let found = is_at("it was written to by somebody else");
        if is_anything_published(context) {
            return Err(Failure::turn_back(found, "see who uses it, then clone again"));
        }
        let place = context.place_of(StepV1::ClaimDevice { image })?;
        return Err(Failure::stop(Some(place), format!("{} used by nobody else", planned.final_path), found));
    }
    Ok(())
}
