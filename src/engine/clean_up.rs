//! Clean-up, after the commit: forward only. What fails is named, left and tried again; it never fails the clone.

use journal_format::{CleanUpStepV1, EndV1, EventV1, FailureV1, ImageV1, OutcomeV1, StepRef, StepV1};

use super::Ending;
use super::forward::LateLanding;
use crate::failure::Failure;
use crate::history::Last;
use crate::steps::{self, CleanUpStep, Context, LIBVIRT_DEFINITIONS, Probe};
use crate::world::Side;

/// Cleans up as far as it goes. `record`: the host record is still there.
pub(super) fn clean_up(context: &mut Context, record: bool) -> Result<Ending, Failure> {
    // It tells nothing but what it did: a source that does not answer any more keeps no clone from its end.
    context.counted.source = context.source.take().and_then(|source| source.counts().ok());
    context.world.disconnect(Side::Source);
    keep_still(context, record);
    let plan = context.plan.clone();
    let mut left: Vec<FailureV1> = Vec::new();
    let mut late = LateLanding::default();
    // Without the record the clean-up had ended: what became of the clone since is its owner's affair.
    let present = if record { present_images(context) } else { Vec::new() };
    for (index, planned) in (0u32..).zip(&plan.clean_up) {
        // Without the record everything before its removal had ended; people may have changed the clone since.
        if !record && *planned != CleanUpStepV1::RemoveRecord {
            continue;
        }
        if !is_ready(context, *planned) {
            continue;
        }
        let outcome = match planned {
            CleanUpStepV1::RemoveRecord if !left.is_empty() || context.keeps_record => continue,
            CleanUpStepV1::RemoveRecord => before_the_record_goes(context, record, &mut late)
                .and_then(|()| advance(context, index, *planned, &mut late)),
            _ => advance(context, index, *planned, &mut late),
        };
        match outcome {
            Ok(()) => {}
            Err(Failure::Journal(error)) => return Err(Failure::Journal(error)),
            Err(failure) => {
                let failure = failure.into_refusal();
                let step = StepRef::CleanUp(index);
                context.recorder.append(context.world.now(), EventV1::LeftBehind { step, failure: failure.clone() })?;
                left.push(failure);
            }
        }
    }
    let finished = !record || has_its_end(context);
    let stays = context.recorder.history().clean_up.iter().filter_map(|step| match &step.outcome {
        Some(OutcomeV1::Left { why }) => Some(why.clone()),
        _ => None,
    });
    let warnings: Vec<_> = left.iter().map(|failure| failure.message.clone()).chain(stays).collect();
    if left.is_empty() {
        context.recorder.append(context.world.now(), EventV1::Finished { end: EndV1::Committed })?;
    }
    match left.into_iter().next() {
        Some(failure) if !finished => Ok(Ending::Suspended(FailureV1 { exit: 3, ..failure })),
        Some(_) | None => Ok(ending(context, &present, warnings)),
    }
}

/// Nobody shall start a clone that has not got its name yet: one that runs cannot be renamed. What does not let itself be
/// locked is somebody's already, and is seen at the renaming.
fn keep_still(context: &Context, record: bool) {
    if record && context.plan.replaced.is_some() && !context.is_cleaned_up(CleanUpStepV1::FinishDomain) {
        for image in context.plan.images.iter().filter(|image| image.device().is_none()) {
            drop(context.destination.lock_image(&image.final_path));
        }
        for base in &context.plan.bases {
            drop(context.destination.lock_image(&base.path));
        }
    }
}

/// The clone has name and state, or it is settled that it will not get them.
fn has_its_end(context: &Context) -> bool {
    context.is_cleaned_up(CleanUpStepV1::FinishDomain) || keeps_other_name(context)
}

/// The clone stays beside an old VM that is kept: what follows its getting its name never happens.
fn keeps_other_name(context: &Context) -> bool {
    matches!(context.outcome_of_clean_up(CleanUpStepV1::RenameClone), Some(OutcomeV1::Left { .. }))
}

/// May this step be begun, after what the steps before it came to?
fn is_ready(context: &Context, step: CleanUpStepV1) -> bool {
    let replaces = context.history_of(StepV1::StopOldVm).is_some();
    let named = !replaces || (context.is_cleaned_up(CleanUpStepV1::RenameClone) && !keeps_other_name(context));
    match step {
        CleanUpStepV1::RenameClone => context.is_cleaned_up(CleanUpStepV1::RetireOldVm),
        CleanUpStepV1::FinishDomain | CleanUpStepV1::SetAutostart | CleanUpStepV1::StartDomain => named,
        CleanUpStepV1::DeleteOldFile { .. } => named && context.is_cleaned_up(CleanUpStepV1::FinishDomain),
        // The staging names show whoever knows nothing else that nobody used the clone yet.
        CleanUpStepV1::ReleaseClaim | CleanUpStepV1::RemoveStaging { .. } => has_its_end(context),
        CleanUpStepV1::RetireOldVm | CleanUpStepV1::RefreshPool { .. } | CleanUpStepV1::RemoveRecord => true,
    }
}

/// What the clone is now: somebody may have removed it since the commit. `present`: its disks under their final names, by
/// image, before the staging names went; `None` where that cannot be told.
fn ending(context: &Context, present: &[Option<bool>], warnings: Vec<String>) -> Ending {
    let defined = !matches!(context.outcome_of_clean_up(CleanUpStepV1::FinishDomain), Some(OutcomeV1::AlreadySo));
    let mut missing = Vec::new();
    if !defined {
        missing.push(format!("the VM {}", context.plan.request.new_name));
    }
    let images = || context.plan.images.iter().zip(present).map(|(image, present)| (&image.final_path, *present));
    missing.extend(images().filter(|(_, present)| *present == Some(false)).map(|(path, _)| path.clone()));
    if keeps_other_name(context) {
        // What its name was kept from it for.
        missing.extend(context.plan.bases.iter().filter_map(|base| steps::broken_base(context, base).ok().flatten()));
    }
    if missing.is_empty() {
        return Ending::Committed { warnings };
    }
    let orphans = images().filter(|(_, present)| !defined && *present == Some(true)).map(|(path, _)| path.clone());
    Ending::CloneGone { orphans: orphans.collect(), missing, warnings }
}

/// Which disks of the clone are there under their final names. Where a filesystem is not mounted nothing is known.
fn present_images(context: &Context) -> Vec<Option<bool>> {
    let host = context.destination.as_ref();
    let look = |image: &ImageV1| {
        // A device is no file that somebody deletes.
        let directory = context.directory(image.directory()?).ok()?;
        steps::must_be_in_place(host, directory).ok()?;
        Some(host.stat(&image.final_path).ok()?.is_some())
    };
    context.plan.images.iter().map(look).collect()
}

fn advance(context: &mut Context, index: u32, planned: CleanUpStepV1, late: &mut LateLanding) -> Result<(), Failure> {
    let step = steps::clean_up_step(planned);
    let place = StepRef::CleanUp(index);
    let last = context.recorder.history().step(place).map_or(Last::None, |step| step.last);
    let known = context.outcome_of_clean_up(planned).cloned();
    let outcome = match late.look_twice(context, step.lands_late(), last, &|| step.probe(context))? {
        // A clone that somebody removed is recorded as such, also when that came after it was finished.
        Probe::Ours(seen)
            if last == Last::Done && (planned != CleanUpStepV1::FinishDomain || known.as_ref() == Some(&seen)) =>
        {
            return Ok(());
        }
        Probe::Ours(outcome) => outcome,
        Probe::Absent | Probe::Partial | Probe::InUse(_) => {
            if last != Last::Started {
                context.recorder.append(context.world.now(), EventV1::Started { step: place })?;
            }
            step.apply(context)?
        }
        Probe::Foreign(found) => return Err(foreign(context, step.as_ref(), &found)),
    };
    step.settle(context)?;
    Ok(context.recorder.append(context.world.now(), EventV1::Done { step: place, outcome })?)
}

/// Everything durable, and one more probe of everything: after this the destination forgets the transaction.
fn before_the_record_goes(context: &mut Context, record: bool, late: &mut LateLanding) -> Result<(), Failure> {
    if !record {
        return Ok(());
    }
    let directories = context.plan.directories.iter().map(|directory| directory.path.clone());
    for path in directories.chain([LIBVIRT_DEFINITIONS.to_owned()]) {
        if context.destination.stat(&path)?.is_some() {
            context.destination.sync_filesystem(&path)?;
        }
    }
    let plan = context.plan.clone();
    for (index, planned) in (0u32..).zip(&plan.clean_up).filter(|(_, step)| **step != CleanUpStepV1::RemoveRecord) {
        if is_ready(context, *planned) {
            advance(context, index, *planned, late)?;
        }
    }
    Ok(())
}

fn foreign(context: &Context, step: &dyn CleanUpStep, found: &str) -> Failure {
    Failure::suspend(
        format!("{} on {}: found {found}", step.expected(context), context.destination.name()),
        "look at it, then `kvm-clone resume`",
    )
}
