//! Back: every step undone in the opposite order, by the table, until the world is as it was.

use journal_format::owner::DirectionV1;
use journal_format::{EndV1, EventV1, FailureClassV1, FailureV1, StepRef, StepV1};

use super::attempt::{read_owner, write_owner};
use super::finding::finding;
use super::forward::{LateLanding, stopped};
use super::table::{Decision, Direction, decide};
use crate::failure::Failure;
use crate::history::Last;
use crate::steps::{self, Context, Probe};
use crate::world::FaultKind;

/// Rolls back to the end. The look for the commit mark was made under the owner lock, which is still held.
pub(super) fn roll_back(context: &mut Context, why: FailureV1) -> Result<(), Failure> {
    context.recorder.append(context.world.now(), EventV1::RollingBack { failure: why })?;
    if let Some(owner) = read_owner(context)?.filter(|owner| owner.direction != DirectionV1::RollingBack) {
        write_owner(context, &owner, DirectionV1::RollingBack)?;
    }
    for (index, directory) in (0u32..).zip(&context.plan.directories) {
        let staging = context.last_of(StepV1::CreateStaging { directory: index });
        if !matches!(staging, Last::None | Last::Undone) {
            steps::must_be_in_place(context.destination.as_ref(), directory)?;
        }
    }
    keep_still(context)?;
    let mut late = LateLanding::default();
    let plan = context.plan.clone();
    let steps: Vec<(StepRef, StepV1)> = (0u32..).map(StepRef::Forward).zip(plan.steps.iter().copied()).collect();
    // The record goes last, and only after one more probe of everything else.
    let (record, others): (Vec<_>, Vec<_>) = steps.into_iter().partition(|(_, step)| *step == StepV1::ReserveRecord);
    for (place, planned) in others.iter().rev().chain(others.iter().rev()) {
        context.world.check_interrupted()?;
        retreat(context, *place, *planned, &mut late)?;
    }
    // While there is an owner lock: without one the agent changes nothing, and a crash after it leaves nobody to do this.
    refresh_pools(context);
    for (place, planned) in &record {
        retreat(context, *place, *planned, &mut late)?;
    }
    Ok(context.recorder.append(context.world.now(), EventV1::Finished { end: EndV1::RolledBack })?)
}

/// Nobody shall start the clone, or write to its disks, between a look at them and their removal.
fn keep_still(context: &Context) -> Result<(), Failure> {
    for planned in &context.plan.steps {
        let step = steps::step(*planned);
        if !matches!(context.last_of(*planned), Last::None | Last::Undone)
            && matches!(planned, StepV1::PublishImage { .. })
            && matches!(step.probe(context)?, Probe::Ours(_))
        {
            step.hold(context)?;
        }
    }
    Ok(())
}

fn retreat(context: &mut Context, place: StepRef, planned: StepV1, late: &mut LateLanding) -> Result<(), Failure> {
    let step = steps::step(planned);
    let last = context.last_of(planned);
    let probe = match late.probe(context, step.as_ref(), last)? {
        // An undo that was broken off may have taken our name away, and somebody else may use it since.
        Probe::Foreign(_) if step.has_only_lost_its_name(context)? => Probe::Absent,
        probe => probe,
    };
    match decide(last, &probe, Direction::Back) {
        Decision::Nothing => return Ok(()),
        // What is there is not ours: an undo has no business with it.
        Decision::RecordUndone if matches!(probe, Probe::Foreign(_)) => {}
        // Nothing of ours is seen; an undo that was broken off may have removed it and not synced, so it is done again.
        Decision::RecordUndone | Decision::Undo => {
            step.undo(context).map_err(|failure| undo_refused(context, place, failure))?;
        }
        Decision::Apply | Decision::RecordDone | Decision::Reopen | Decision::TurnBack | Decision::Stop => {
            return Err(stopped(context, step.as_ref(), place, &probe));
        }
    }
    Ok(context.recorder.append(context.world.now(), EventV1::Undone { step: place })?)
}

/// An undo that is refused for good cannot turn back any further: a person must act.
fn undo_refused(context: &Context, place: StepRef, failure: Failure) -> Failure {
    match failure {
        Failure::Refusal(refusal) if refusal.class == FailureClassV1::TurnBack => {
            finding(context, place, "an undo that is allowed".to_owned(), &refusal.message)
        }
        Failure::Finding(found) => finding(context, place, found.expected, &found.found),
        other => other,
    }
}

/// The host record vanished without a commit: nothing of the transaction may be left, or a person must look.
pub(super) fn must_be_untouched(context: &Context) -> Result<(), Failure> {
    for directory in &context.plan.directories {
        steps::must_be_in_place(context.destination.as_ref(), directory)?;
    }
    for (index, planned) in (0u32..).zip(&context.plan.steps) {
        let step = steps::step(*planned);
        // Three leave nothing, and what is left of the record itself is a removal that was broken off. What was on a device before
        // does not come back.
        let on_device = matches!(planned, StepV1::TransferImage { image } if context.device(*image).is_ok());
        let leaves_nothing =
            matches!(planned, StepV1::DetectSharedStorage | StepV1::VerifyImage { .. } | StepV1::HoldBase { .. });
        if on_device || leaves_nothing || *planned == StepV1::ReserveRecord {
            continue;
        }
        let probe = step.probe(context)?;
        if !matches!(probe, Probe::Absent | Probe::Foreign(_)) {
            let expected =
                format!("nothing of this transaction, as its host record is gone; but {}", step.expected(context));
            return Err(finding(context, StepRef::Forward(index), expected, "it is there"));
        }
    }
    Ok(())
}

fn refresh_pools(context: &mut Context) {
    for pool in &context.plan.pools {
        let refreshed = context.destination.refresh_pool(pool);
        // Without an owner lock there was no host record, and so nothing of ours in any pool, or it was refreshed before.
        if let Err(fault) = refreshed
            && fault.kind != FaultKind::Fenced
        {
            context.recorder.observer.warning(&format!("the pool was not refreshed: {fault}"));
        }
    }
}
