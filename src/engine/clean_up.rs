//! Clean-up, after the commit: forward only. What fails is named, left and tried again; it never fails the clone.

use journal_format::{CleanUpStepV1, EndV1, EventV1, FailureV1, ImageV1, OutcomeV1, StepRef};

use super::Ending;
use super::forward::LateLanding;
use crate::failure::Failure;
use crate::history::Last;
use crate::steps::{self, CleanUpStep, Context, LIBVIRT_DEFINITIONS, Probe};
use crate::world::Side;

/// Cleans up as far as it goes. `record`: the host record is still there.
pub(super) fn clean_up(context: &mut Context, record: bool) -> Result<Ending, Failure> {
    context.source = None;
    context.world.disconnect(Side::Source);
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
        let outcome = match planned {
            CleanUpStepV1::ReleaseClaim if !context.is_cleaned_up(CleanUpStepV1::FinishDomain) => continue,
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
    if left.is_empty() {
        context.recorder.append(context.world.now(), EventV1::Finished { end: EndV1::Committed })?;
    }
    let finished = !record || context.is_cleaned_up(CleanUpStepV1::FinishDomain);
    match left.first() {
        Some(failure) if !finished => Ok(Ending::Suspended(FailureV1 { exit: 3, ..failure.clone() })),
        Some(_) | None => {
            let warnings = left.into_iter().map(|failure| failure.message).collect();
            Ok(gone(context, &present).unwrap_or(Ending::Committed { warnings }))
        }
    }
}

/// What somebody removed since the commit. `present`: the clone's disks under their final names, by image, before the staging
/// names went; `None` where that cannot be told.
fn gone(context: &Context, present: &[Option<bool>]) -> Option<Ending> {
    let defined = !matches!(context.clean_up_outcome(CleanUpStepV1::FinishDomain), Some(OutcomeV1::AlreadySo));
    let mut missing = Vec::new();
    if !defined {
        missing.push(format!("the VM {}", context.plan.request.new_name));
    }
    let images = || context.plan.images.iter().zip(present).map(|(image, present)| (&image.final_path, *present));
    missing.extend(images().filter(|(_, present)| *present == Some(false)).map(|(path, _)| path.clone()));
    let orphans = images().filter(|(_, present)| !defined && *present == Some(true)).map(|(path, _)| path.clone());
    (!missing.is_empty()).then(|| Ending::CloneGone { orphans: orphans.collect(), missing })
}

/// Which disks of the clone are there under their final names. Where a filesystem is not mounted nothing is known.
fn present_images(context: &Context) -> Vec<Option<bool>> {
    let host = context.destination.as_ref();
    let look = |image: &ImageV1| {
        let directory = context.directory(image.directory).ok()?;
        steps::must_be_in_place(host, directory).ok()?;
        Some(host.stat(&image.final_path).ok()?.is_some())
    };
    context.plan.images.iter().map(look).collect()
}

fn advance(context: &mut Context, index: u32, planned: CleanUpStepV1, late: &mut LateLanding) -> Result<(), Failure> {
    let step = steps::clean_up_step(planned);
    let place = StepRef::CleanUp(index);
    let last = context.recorder.history().step(place).map_or(Last::None, |step| step.last);
    // A clone that somebody removed is recorded as such, also when that came after it was finished.
    let mut outcome = OutcomeV1::Nothing;
    let known = context.clean_up_outcome(planned).cloned();
    match late.look_twice(context, step.lands_late(), last, &|| step.probe(context))? {
        Probe::Ours(seen) if last == Last::Done && (seen == OutcomeV1::Nothing || known.as_ref() == Some(&seen)) => {
            return Ok(());
        }
        Probe::Ours(seen) => outcome = seen,
        Probe::Absent | Probe::Partial | Probe::InUse(_) => {
            if last != Last::Started {
                context.recorder.append(context.world.now(), EventV1::Started { step: place })?;
            }
            step.apply(context)?;
        }
        Probe::Foreign(found) => return Err(foreign(context, step.as_ref(), &found)),
    }
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
        advance(context, index, *planned, late)?;
    }
    Ok(())
}

fn foreign(context: &Context, step: &dyn CleanUpStep, found: &str) -> Failure {
    Failure::suspend(
        format!("{} on {}: found {found}", step.expected(context), context.destination.name()),
        "look at it, then `kvm-clone resume`",
    )
}
