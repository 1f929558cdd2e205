//! The clone gets its own name, which the old VM had. libvirt writes the new file before it removes the old one: torn, both are
//! there, and the stale one would come back at a later start of the daemon. Its snapshots get another directory with it.

use journal_format::{CleanUpStepV1, OldVmRecordV1, OutcomeV1};

use super::define_domain::LIBVIRT_DEFINITIONS;
use super::define_snapshot::{self, define_lost, is_left, lost_snapshots, remove_left};
use super::finish_domain::{GONE, our_clone};
use super::old_vm::{Kept, is_stale, missing_image, named, remove_stale, replaced};
use super::{CleanUpStep, Context, Probe};
use crate::failure::Failure;
use crate::world::{DomainState, FaultKind};

pub(super) struct RenameClone;

impl CleanUpStep for RenameClone {
    fn expected(&self, context: &Context) -> String {
        format!("the clone under its name {}", context.plan.request.new_name)
    }

    fn probe(&self, context: &Context) -> Result<Probe, Failure> {
        let (old, host, name) = (replaced(&context.plan)?, &context.destination, &context.plan.request.new_name);
        let Some(clone) = our_clone(context)? else {
            return Ok(if torn(context)?.is_some() { Probe::Partial } else { GONE });
        };
        let stale = |name: &str| is_stale(host.as_ref(), name, context.plan.clone_uuid);
        if clone.brief.name == *name {
            let half = stale(&old.clone_name)? || is_left(context, &old.clone_name)? || lost_something(context)?;
            return Ok(if half { Probe::Partial } else { Probe::Ours(OutcomeV1::Nothing) });
        }
        if clone.brief.name != old.clone_name {
            let why = format!("the clone was renamed to {} by somebody: it is left", clone.brief.name);
            return Ok(Probe::Ours(OutcomeV1::Left { why }));
        }
        Ok(match host.domain_named(name)? {
            Some(other) if other.brief.uuid == old.uuid => Probe::Ours(OutcomeV1::Left {
                why: format!("the clone keeps the name {}, as the old VM {name} is kept", old.clone_name),
            }),
            Some(other) => Probe::Foreign(format!("another domain {name} (UUID {})", other.brief.uuid)),
            None if clone.brief.state == DomainState::Active => {
                Probe::InUse(format!("{} was started, and cannot be renamed while it runs", old.clone_name))
            }
            None if stale(name)? => Probe::Partial,
            None => Probe::Absent,
        })
    }

    fn apply(&self, context: &mut Context) -> Result<OutcomeV1, Failure> {
        let plan = context.plan.clone();
        let (old, host, name) = (replaced(&plan)?, context.destination.clone(), &plan.request.new_name);
        if let Some(definition) = torn(context)? {
            host.define(&named(&definition, name)?)?;
        } else if let Some(clone) = our_clone(context)?.filter(|clone| clone.brief.name == old.clone_name) {
            Kept::Renaming.write(context, &OldVmRecordV1::Renaming { definition: clone.definition })?;
        }
        match host.rename_domain(plan.clone_uuid, name) {
            Err(fault) if matches!(fault.kind, FaultKind::Refused | FaultKind::AlreadyExists) => {
                return Err(Failure::suspend(
                    format!("the clone {} on {} does not get its name {name}: {fault}", old.clone_name, host.name()),
                    "shut it off, and see that no other VM has that name, then resume",
                ));
            }
            renamed => renamed?,
        }
        remove_stale(host.as_ref(), &old.clone_name, plan.clone_uuid)?;
        if is_left(context, &old.clone_name)? {
            remove_left(context, &old.clone_name)?;
        }
        define_lost(context)?;
        Ok(OutcomeV1::Nothing)
    }

    fn settle(&self, context: &Context) -> Result<(), Failure> {
        if !context.plan.snapshots.is_empty() {
            define_snapshot::settle(context.destination.as_ref(), &context.plan.request.new_name)?;
        }
        Ok(context.destination.sync(LIBVIRT_DEFINITIONS)?)
    }

    fn lands_late(&self) -> bool {
        true
    }
}

/// A renaming that was broken off by a power cut may have lost snapshots.
fn lost_something(context: &Context) -> Result<bool, Failure> {
    Ok(context.is_under_way(CleanUpStepV1::RenameClone) && !lost_snapshots(context)?.is_empty())
}

/// The clone's definition, if a power cut tore the renaming and left neither name, though the images are there.
fn torn(context: &Context) -> Result<Option<String>, Failure> {
    if !context.is_under_way(CleanUpStepV1::RenameClone)
        || context.destination.domain(context.plan.clone_uuid)?.is_some()
        || missing_image(context)?.is_some()
    {
        return Ok(None);
    }
    definition_before(context)
}

/// The clone's definition before it got its name, once that was begun.
pub(super) fn definition_before(context: &Context) -> Result<Option<String>, Failure> {
    Ok(match Kept::Renaming.read(context)? {
        Some(OldVmRecordV1::Renaming { definition }) => Some(definition),
        _ => None,
    })
}
