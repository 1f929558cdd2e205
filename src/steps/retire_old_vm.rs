//! The old VM gives way: what it is goes into the host record first, then it is undefined, or renamed where it is kept. An old
//! VM that was used since it was stopped is always kept, and so is every one whose clone is not whole any more.

use journal_format::{CleanUpStepV1, OldVmRecordV1, OutcomeV1, ReplacedV1, StopModeV1};

use super::define_domain::LIBVIRT_DEFINITIONS;
use super::old_vm::{
    Kept, autostart_link, is_off, is_stale, lock_images, missing_of_clone, named, remove_stale, replaced, stamps,
    stamps_when_stopped, stop, unlock_images, unrenamable,
};
use super::set_autostart::LIBVIRT_AUTOSTART;
use super::{CleanUpStep, Context, Probe, define_snapshot, old_variables};
use crate::failure::Failure;
use crate::world::FileStat;

pub(super) struct RetireOldVm;

impl CleanUpStep for RetireOldVm {
    fn expected(&self, context: &Context) -> String {
        format!("no old VM {}", context.plan.request.new_name)
    }

    fn probe(&self, context: &Context) -> Result<Probe, Failure> {
        let (old, host, name) = (replaced(&context.plan)?, &context.destination, &context.plan.request.new_name);
        let stale = is_stale(host.as_ref(), name, old.uuid)?;
        let Some(domain) = host.domain(old.uuid)? else {
            if lost(context)?.is_some() {
                return Ok(Probe::Partial);
            }
            let whole = !stale && left_autostart_link(context)?.is_none();
            return Ok(if whole { Probe::Ours(OutcomeV1::Nothing) } else { Probe::Partial });
        };
        if domain.brief.name == old.kept_name {
            let whole =
                !stale && left_autostart_link(context)?.is_none() && !old_variables::have_both_names(context, old)?;
            return Ok(if whole { Probe::Ours(kept(context, old)) } else { Probe::Partial });
        }
        if domain.brief.name != *name {
            let why = format!("the old VM {name} was renamed to {} by somebody: it is left", domain.brief.name);
            return Ok(Probe::Ours(OutcomeV1::Left { why }));
        }
        // What was done survives a power cut: it cannot have come back by itself.
        if context.is_cleaned_up(CleanUpStepV1::RetireOldVm) {
            let why = format!("the old VM {name} was defined again by somebody: it is left");
            return Ok(Probe::Ours(OutcomeV1::Left { why }));
        }
        Ok(match missing_of_clone(context)? {
            Some(missing) => Probe::Ours(OutcomeV1::Left {
                why: format!(
                    "{missing} was removed by somebody: the old VM {name} is kept, and stays off until it is started"
                ),
            }),
            None => Probe::Absent,
        })
    }

    fn apply(&self, context: &mut Context) -> Result<OutcomeV1, Failure> {
        let plan = context.plan.clone();
        let (old, host, name) = (replaced(&plan)?, context.destination.clone(), &plan.request.new_name);
        if let Probe::Ours(outcome) = self.probe(context)? {
            return Ok(outcome);
        }
        if host.domain(old.uuid)?.is_some_and(|domain| domain.brief.name == *name) {
            if host.domain(old.uuid)?.is_some_and(|domain| !is_off(&domain)) {
                unlock_images(context, old)?;
                stop_again(context, old)?;
            }
            if !lock_images(context, old)? {
                return Err(Failure::suspend(
                    format!("the old VM {name} on {} is off, and somebody else writes to its disks", host.name()),
                    "end that, then resume",
                ));
            }
            give_way(context, old)?;
        }
        if let Some(definition) = lost(context)? {
            host.define(&definition)?;
        }
        remove_stale(host.as_ref(), name, old.uuid)?;
        if host.domain(old.uuid)?.is_some_and(|domain| domain.brief.name == old.kept_name)
            && old_variables::have_both_names(context, old)?
        {
            // Not before a power cut can no longer bring the name back.
            host.sync(LIBVIRT_DEFINITIONS)?;
            old_variables::drop_first_name(context, old)?;
        }
        if let Some(link) = left_autostart_link(context)? {
            host.unlink(&autostart_link(name), link.inode)?;
        }
        Ok(if host.domain(old.uuid)?.is_some() { kept(context, old) } else { OutcomeV1::Nothing })
    }

    fn settle(&self, context: &Context) -> Result<(), Failure> {
        if context.destination.stat(LIBVIRT_AUTOSTART)?.is_some() {
            context.destination.sync(LIBVIRT_AUTOSTART)?;
        }
        old_variables::settle(context, replaced(&context.plan)?)?;
        // Snapshots that a power cut brought back would be taken for those of the clone, once it has that name.
        for name in [&context.plan.request.new_name, &replaced(&context.plan)?.kept_name] {
            define_snapshot::settle(context.destination.as_ref(), name)?;
        }
        Ok(context.destination.sync(LIBVIRT_DEFINITIONS)?)
    }

    fn lands_late(&self) -> bool {
        true
    }
}

/// The link by which the next domain of that name would start with its host. A power cut brings it back, of a kept VM too.
fn left_autostart_link(context: &Context) -> Result<Option<FileStat>, Failure> {
    let (host, name) = (&context.destination, &context.plan.request.new_name);
    Ok(if host.domain_named(name)?.is_none() { host.stat(&autostart_link(name))? } else { None })
}

/// The kept VM's definition, if a power cut tore its renaming and left neither name.
fn lost(context: &Context) -> Result<Option<String>, Failure> {
    let old = replaced(&context.plan)?;
    let renaming = match Kept::Retiring.read(context)? {
        Some(OldVmRecordV1::Retiring { definition, kept: true, .. }) => Some(definition),
        _ => None,
    };
    let Some(definition) = renaming.filter(|_| context.is_under_way(CleanUpStepV1::RetireOldVm)) else {
        return Ok(None);
    };
    if context.destination.domain(old.uuid)?.is_some() {
        return Ok(None);
    }
    named(&definition, &old.kept_name).map(Some)
}

/// It is off, and kept still.
fn give_way(context: &Context, old: &ReplacedV1) -> Result<(), Failure> {
    let host = &context.destination;
    let Some(domain) = host.domain(old.uuid)? else { return Ok(()) };
    let used_since = stamps_when_stopped(context)? != Some(stamps(context, old)?);
    let kept = old.keep || used_since;
    if kept && let Some(what) = unrenamable(&domain) {
        return Err(Failure::suspend(
            format!(
                "the old VM {} on {} is to be kept under another name, and has {what}, with which libvirt renames no VM",
                context.plan.request.new_name,
                host.name()
            ),
            "remove that (`virsh managedsave-remove`, `virsh checkpoint-delete --metadata`), then resume",
        ));
    }
    let retiring = OldVmRecordV1::Retiring {
        definition: domain.definition,
        autostart: domain.autostart,
        kept,
        snapshots: host.snapshots(old.uuid)?.into_iter().map(|snapshot| snapshot.definition).collect(),
    };
    Kept::Retiring.write(context, &retiring)?;
    if !kept {
        return Ok(host.undefine_whole(old.uuid)?);
    }
    // Two that start with their host, with one content: only the clone may.
    host.set_autostart(old.uuid, false)?;
    old_variables::name_anew(context, old)?;
    Ok(host.rename_domain(old.uuid, &old.kept_name)?)
}

/// It runs again, after a power cut or because somebody started it. Memory would be saved for nobody: it is kept as it is on its
/// disks.
fn stop_again(context: &mut Context, old: &ReplacedV1) -> Result<(), Failure> {
    match old.stop {
        StopModeV1::Never => Err(Failure::suspend(
            format!(
                "the old VM {} on {} is running again, and --stop never forbids to stop it",
                context.plan.request.new_name,
                context.destination.name()
            ),
            "shut it down, then resume",
        )),
        StopModeV1::Save => stop(context, old, StopModeV1::Shutdown),
        StopModeV1::Shutdown | StopModeV1::Destroy => stop(context, old, old.stop),
    }
}

/// It stays under another name: as asked, or because it was used since.
fn kept(context: &Context, old: &ReplacedV1) -> OutcomeV1 {
    if old.keep {
        return OutcomeV1::Nothing;
    }
    OutcomeV1::Left {
        why: format!(
            "the old VM {} was used after it was stopped: it is kept as {} with all its files",
            context.plan.request.new_name, old.kept_name
        ),
    }
}
