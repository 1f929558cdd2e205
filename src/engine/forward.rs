//! Forward: each step by the table, then the barrier and the commit mark.

use std::time::Duration;

use journal_format::{EventV1, FailureClassV1, ReopenCauseV1, StepRef, StepV1};

use super::finding::finding;
use super::table::{Decision, Direction, decide};
use super::{compare, is_anything_published, reopen};
use crate::failure::Failure;
use crate::history::Last;
use crate::steps::{self, Applied, Context, LIBVIRT_DEFINITIONS, Probe, Step};
use crate::world::FaultKind;

/// Two probes that far apart must agree before `Absent` is believed of a call that may land late.
const LATE_LANDING_WAIT: Duration = Duration::from_secs(5);
/// Reopenings in one attempt. More means that something undoes our work as fast as we do it.
const REOPENINGS_MAX: u32 = 16;
/// Where libvirt keeps what it generates.
const LIBVIRT_STATE: &str = "/var/lib/libvirt";

/// Goes to the commit. Everything but a commit is an error: its class says what it means.
pub(super) fn forward(context: &mut Context) -> Result<(), Failure> {
    compare::open_source(context)?;
    for directory in &context.plan.directories {
        steps::must_be_in_place(context.destination.as_ref(), directory)?;
    }
    name_must_be_free(context)?;
    compare::compare_devices(context)?;
    let mut late = LateLanding::default();
    for _ in 0..REOPENINGS_MAX {
        if all_steps(context, &mut late)? == Pass::Through && ready(context)? {
            return commit(context);
        }
    }
    Err(Failure::suspend(
        format!("steps had to be opened again {REOPENINGS_MAX} times"),
        "see what removes or changes our files on the destination, then resume",
    ))
}

/// The claim keeps other clones away, and nobody else. A name that is taken is told before the transfer, not after it.
fn name_must_be_free(context: &mut Context) -> Result<(), Failure> {
    let step = steps::step(StepV1::DefineDomain);
    if context.last_of(StepV1::DefineDomain) != Last::None {
        return Ok(());
    }
    let Probe::Foreign(found) = step.probe(context)? else { return Ok(()) };
    let place = context.place_of(StepV1::DefineDomain)?;
    let failure = taken(context, step.as_ref(), &found);
    Err(failed(context, place, failure)?)
}

/// Somebody else has what a step needs.
fn taken(context: &Context, step: &dyn Step, found: &str) -> Failure {
    step.foreign(context).unwrap_or_else(|| {
        Failure::turn_back(
            format!("expected {} on {}, found {found}", step.expected(context), context.destination.name()),
            "remove it or choose another name, then clone again",
        )
    })
}

#[derive(PartialEq, Eq)]
enum Pass {
    Through,
    Again,
}

fn all_steps(context: &mut Context, late: &mut LateLanding) -> Result<Pass, Failure> {
    let plan = context.plan.clone();
    for (index, planned) in (0u32..).zip(&plan.steps) {
        context.world.check_interrupted()?;
        if advance(context, StepRef::Forward(index), *planned, late)? == Pass::Again {
            return Ok(Pass::Again);
        }
    }
    Ok(Pass::Through)
}

fn advance(context: &mut Context, place: StepRef, planned: StepV1, late: &mut LateLanding) -> Result<Pass, Failure> {
    let step = steps::step(planned);
    let last = context.last_of(planned);
    let probe = late.probe(context, step.as_ref(), last)?;
    match decide(last, &probe, Direction::Forward) {
        Decision::Nothing => {}
        Decision::RecordDone => {
            step.settle(context)?;
            if let Probe::Ours(outcome) = probe {
                context.recorder.append(context.world.now(), EventV1::Done { step: place, outcome })?;
            }
        }
        Decision::Apply => {
            if last == Last::None {
                context.recorder.append(context.world.now(), EventV1::Started { step: place })?;
            }
            match step.apply(context).and_then(|applied| step.settle_if_done(context, applied)) {
                Ok(Applied::Done(outcome)) => {
                    context.recorder.append(context.world.now(), EventV1::Done { step: place, outcome })?;
                }
                Ok(Applied::Reopen { earlier, cause, why }) => {
                    context.recorder.observer.warning(&format!("{why}; sent again"));
                    reopen(context, earlier, cause, &why)?;
                    return Ok(Pass::Again);
                }
                Err(failure) => return Err(failed(context, place, failure)?),
            }
        }
        Decision::Reopen => {
            let expected = step.expected(context);
            if steps::concerns_content(planned) && is_anything_published(context) {
                return Err(Failure::turn_back(
                    format!(
                        "{expected} on {} is gone or changed after a disk was published",
                        context.destination.name()
                    ),
                    "see who touches these files, then clone again",
                ));
            }
            reopen(context, planned, ReopenCauseV1::EffectGone, &format!("{expected} is gone or incomplete"))?;
            return Ok(Pass::Again);
        }
        Decision::TurnBack => {
            let Probe::Foreign(found) = probe else { return Err(impossible(context, place)) };
            let failure = taken(context, step.as_ref(), &found);
            return Err(failed(context, place, failure)?);
        }
        Decision::Stop | Decision::Undo | Decision::RecordUndone => {
            return Err(stopped(context, step.as_ref(), place, &probe));
        }
    }
    step.hold(context)?;
    Ok(Pass::Through)
}

/// A definite refusal is recorded with the step that met it, so that this step is undone like the others.
fn failed(context: &mut Context, place: StepRef, failure: Failure) -> Result<Failure, Failure> {
    if let Failure::Refusal(refusal) = &failure
        && refusal.class == FailureClassV1::TurnBack
    {
        let event = EventV1::Failed { step: place, failure: refusal.clone() };
        context.recorder.append(context.world.now(), event)?;
    }
    Ok(failure)
}

/// The barrier's questions: is the source still what was cloned, is everything durable, is every step still so?
fn ready(context: &mut Context) -> Result<bool, Failure> {
    compare::compare_source(context)?;
    compare::compare_devices(context)?;
    let directories = context.plan.directories.iter().map(|directory| directory.path.clone());
    for path in directories.chain([LIBVIRT_DEFINITIONS.to_owned(), LIBVIRT_STATE.to_owned()]) {
        if context.destination.stat(&path)?.is_some() {
            context.destination.sync_filesystem(&path)?;
        }
    }
    for planned in &context.plan.steps {
        if !matches!(steps::step(*planned).probe(context)?, Probe::Ours(_)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The commit mark: from here on only forward.
fn commit(context: &mut Context) -> Result<(), Failure> {
    context.world.check_interrupted()?;
    context.destination.rename(&context.record.owner(), &context.record.committed())?;
    // The mark can be seen now. Whatever its sync says, even a definite refusal, nothing may turn back any more.
    context.destination.sync(&context.record.directory).map_err(|fault| {
        Failure::suspend(format!("the commit mark is there, not yet durable: {fault}"), "resume to finish the clone")
    })?;
    Ok(context.recorder.append(context.world.now(), EventV1::Committed)?)
}

/// What a probe found where it must not be.
pub(super) fn stopped(context: &Context, step: &dyn Step, place: StepRef, probe: &Probe) -> Failure {
    let found = match probe {
        Probe::InUse(found) | Probe::Foreign(found) => found.clone(),
        Probe::Ours(_) | Probe::Partial => "it is there, and nothing in the journal says that we made it".to_owned(),
        Probe::Absent => "nothing".to_owned(),
    };
    finding(context, place, step.expected(context), &found)
}

fn impossible(context: &Context, place: StepRef) -> Failure {
    finding(context, place, "an answer that the recovery table knows".to_owned(), "another one")
}

/// What an earlier attempt asked of libvirt may still wait for a worker, or for what QEMU says of itself; so does this
/// question, after it. The lookups of a probe overtake both.
fn queue_behind(context: &Context) -> Result<(), Failure> {
    match context.destination.native_command(&context.plan.definition) {
        Err(fault) if !matches!(fault.kind, FaultKind::Refused | FaultKind::Unsupported) => Err(fault.into()),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// The one wait of an attempt for libvirt calls that an earlier attempt made and that may still land.
#[derive(Default)]
pub(super) struct LateLanding {
    waited: bool,
}

impl LateLanding {
    /// Probes; believes `Absent` of a call that may land late only when a second look through a fresh relay agrees.
    pub(super) fn probe(&mut self, context: &Context, step: &dyn Step, last: Last) -> Result<Probe, Failure> {
        self.look_twice(context, step.lands_late(), last, &|| step.probe(context))
    }

    /// The same of any look at what a call of libvirt makes.
    pub(super) fn look_twice(
        &mut self,
        context: &Context,
        lands_late: bool,
        last: Last,
        probe: &dyn Fn() -> Result<Probe, Failure>,
    ) -> Result<Probe, Failure> {
        let first = probe()?;
        let may_land = lands_late
            && context.recorder.history().attempts > 1
            && matches!(last, Last::Started | Last::Reopened | Last::Failed);
        if !may_land || !matches!(first, Probe::Absent | Probe::Partial) {
            return Ok(first);
        }
        if !self.waited {
            context.world.wait(LATE_LANDING_WAIT)?;
            context.destination.renew_libvirt()?;
            queue_behind(context)?;
            self.waited = true;
        }
        probe()
    }
}
