//! Giving a transaction up: `owner` becomes `abandoned`, the claim on the name is given back, all else stays as it is and is
//! named. From then on nobody acts on it, from whatever copy of the journal. Never after the commit mark.
//!
//! It needs no epoch of its own: the new name of the owner file outranks every epoch, and it is set under the owner lock.

use std::collections::BTreeMap;

use journal_format::{ControllerId, EventV1, StepV1};

use super::{Ending, already_committed, attempt, refused};
use crate::failure::Failure;
use crate::history::Last;
use crate::journal::recorder::Recorder;
use crate::journal::{Journal, JournalError};
use crate::observer::Observer;
use crate::steps::host_record::{HOST_ROOT, HostRecord, parent_of};
use crate::steps::{self, Context, Counted, Probe};
use crate::world::{FaultKind, Side, World};

/// How a transaction is given up, and by whom.
#[derive(Debug, Clone)]
pub struct GivingUp {
    /// The controller that acts.
    pub controller: ControllerId,
    /// Why, in a person's words.
    pub reason: String,
    /// Also where the destination does not answer: then the journal alone is closed.
    pub destination_gone: bool,
}

/// Gives a transaction up. A second time it finishes what the first one could not reach. An error means that the journal
/// cannot be read.
pub fn abandon(
    world: &dyn World,
    journal: &mut dyn Journal,
    observer: &mut dyn Observer,
    giving_up: &GivingUp,
) -> Result<Ending, JournalError> {
    let mut recorder = Recorder::new(journal, observer)?;
    let history = recorder.history();
    if history.committed {
        return Ok(already_committed());
    }
    if history.finished.is_some() {
        return Ok(refused("this transaction was rolled back: nothing is left of it", "there is nothing to give up"));
    }
    let plan = recorder.plan();
    let destination = match world.connect(Side::Destination) {
        Ok(destination) => destination,
        Err(fault) => {
            let unreachable = matches!(fault.kind, FaultKind::Unreachable | FaultKind::TimedOut | FaultKind::Unusable);
            return Ok(match (unreachable, giving_up.destination_gone) {
                (true, true) => {
                    ended(close(&mut recorder, world, &giving_up.reason).map(|()| Ending::Abandoned { left: None }))
                }
                (true, false) => Ending::Suspended(
                    Failure::suspend(
                        fault.to_string(),
                        "when the host answers again, abandon it again; if that host is gone for ever, add --destination-gone",
                    )
                    .into_refusal(),
                ),
                (false, _) => Ending::Suspended(Failure::from(fault).into_refusal()),
            });
        }
    };
    let record = HostRecord::of(plan.txn, &plan.request.new_name);
    let mut context = Context {
        world,
        plan,
        controller: giving_up.controller.clone(),
        keeps_record: false,
        recorder,
        destination,
        source: None,
        record,
        bandwidth_limit_bytes_per_second: None,
        read_back: BTreeMap::new(),
        counted: Counted::default(),
    };
    let ending = ended(give_up(&mut context, &giving_up.reason));
    world.disconnect(Side::Destination);
    Ok(ending)
}

/// What stopped it is told and not recorded: the transaction is what it was, and abandoning it may be tried again.
fn ended(outcome: Result<Ending, Failure>) -> Ending {
    outcome.unwrap_or_else(|failure| match failure {
        Failure::Finding(finding) => Ending::Stuck(finding),
        failure => Ending::Suspended(failure.into_refusal()),
    })
}

fn give_up(context: &mut Context, reason: &str) -> Result<Ending, Failure> {
    attempt::check_machine(context.destination.as_ref(), &context.plan.request.destination.machine_id)?;
    let destination = context.destination.as_ref();
    destination.allow(&attempt::allowed(&context.plan))?;
    let standing = attempt::lock(context.world, destination, &context.record, &context.controller)?;
    if standing.marked {
        return Ok(already_committed());
    }
    if standing.record {
        if !standing.abandoned {
            context.destination.rename(&context.record.owner(), &context.record.abandoned())?;
        }
        // Before the claim goes: without a durable mark another copy of the journal would act on what it no longer holds.
        context.destination.sync(&context.record.directory)?;
        release_claims(context)?;
    } else if context.destination.stat(HOST_ROOT)?.is_some() {
        // A rollback may have died after it took the record away and before that was durable: it must not come back.
        context.destination.sync(HOST_ROOT)?;
    }
    close(&mut context.recorder, context.world, reason)?;
    Ok(Ending::Abandoned { left: Some(what_is_left(context)) })
}

fn release_claims(context: &mut Context) -> Result<(), Failure> {
    let (host, record) = (context.destination.clone(), &context.record);
    let owner = host.stat(&record.abandoned())?.map(|owner| owner.inode);
    for claim in context.claims() {
        if let (Some(owner), Some(found)) = (owner, host.stat(&claim)?)
            && owner == found.inode
        {
            host.unlink(&claim, owner)?;
        }
        match host.sync(parent_of(&claim)) {
            // No device was ever claimed there.
            Err(fault) if fault.kind == FaultKind::NotFound => {}
            synced => synced?,
        }
    }
    let plan = context.plan.clone();
    for planned in &plan.steps {
        let claims = matches!(planned, StepV1::ClaimName | StepV1::ClaimDevice { .. });
        let last = context.last_of(*planned);
        if claims && !matches!(last, Last::None | Last::Undone) && context.recorder.history().abandoned.is_none() {
            let step = context.place_of(*planned)?;
            context.recorder.append(context.world.now(), EventV1::Undone { step })?;
        }
    }
    Ok(())
}

/// The journal's last word, once.
fn close(recorder: &mut Recorder, world: &dyn World, reason: &str) -> Result<(), Failure> {
    if recorder.history().abandoned.is_some() {
        return Ok(());
    }
    Ok(recorder.append(world.now(), EventV1::Abandoned { reason: reason.to_owned() })?)
}

/// Every effect that is still there, in words; one that cannot be looked at counts as there.
fn what_is_left(context: &Context) -> Vec<String> {
    let effects = context.plan.steps.iter().filter(|step| steps::makes_something(**step));
    let look = |planned: &StepV1| {
        let step = steps::step(*planned);
        let expected = step.expected(context);
        match step.probe(context) {
            Ok(Probe::Absent | Probe::Foreign(_)) => None,
            Ok(Probe::Partial) => Some(format!("{expected}, or a part of it")),
            Ok(Probe::Ours(_)) => Some(expected),
            Ok(Probe::InUse(found)) => Some(format!("{expected}: {found}")),
            Err(failure) => Some(format!("perhaps {expected}: {}", failure.into_refusal().message)),
        }
    };
    effects.filter_map(look).collect()
}
