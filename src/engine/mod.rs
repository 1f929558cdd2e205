//! The state machine: run, resume, rollback, clean-up, and the recovery table. Knows nothing of ssh, libvirt or sled.
//!
//! One call of `drive` is one attempt: it opens, goes forward to the commit and through clean-up, or back to the world
//! as it was, or suspends, or stops. Whatever happened before, the journal and the probes say where to go on. `abandon`
//! gives a transaction up instead; `drive_from_record` acts for a controller that is gone.

mod abandon;
mod attempt;
mod back;
mod clean_up;
mod compare;
mod finding;
mod forward;
mod from_record;
pub mod table;

use std::collections::BTreeMap;

use journal_format::{
    AttemptPurpose, ControllerId, CountsV1, EventV1, FailureClassV1, FailureV1, FindingV1, ReopenCauseV1, StepRef,
    StepV1, owner::DirectionV1,
};

pub use self::abandon::{GivingUp, abandon};
pub use self::from_record::{Recovery, clear_scaffold, drive_from_record};

use crate::failure::{Failure, journal_failure};
use crate::history::Last;
use crate::journal::recorder::Recorder;
use crate::journal::{Journal, JournalError};
pub use crate::observer::{Observer, Progress};
use crate::steps::host_record::HostRecord;
use crate::steps::{self, Context, Counted};
use crate::world::{Side, World};

/// What an attempt is opened for, and by whom.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Run, resume or rollback.
    pub purpose: AttemptPurpose,
    /// The controller that acts, which need not be the one that planned: a state directory can be copied.
    pub controller: ControllerId,
    /// The controller's process.
    pub controller_pid: u32,
    /// Image bytes per second at most, instead of what the plan says.
    pub bandwidth_limit_bytes_per_second: Option<u64>,
    /// What the agents did that looked for this transaction before there was a plan: the source's, the destination's.
    pub survey: Option<[CountsV1; 2]>,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The clone is there (exit 0); what clean-up had to leave is listed.
    Committed {
        /// For people.
        warnings: Vec<String>,
    },
    /// Committed and cleaned up as far as it goes, but somebody removed the clone, or disks of it, since (exit 4).
    CloneGone {
        /// What is no longer there, in words.
        missing: Vec<String>,
        /// The clone's disks that nothing uses any more: paths.
        orphans: Vec<String>,
        /// What else an operator should know.
        warnings: Vec<String>,
    },
    /// The world is as before: because it was asked for (`None`, exit 0) or after a failure (exit 1, or its own).
    RolledBack {
        /// Why.
        failure: Option<FailureV1>,
    },
    /// It can go on (exit 3, or 7 when somebody else holds it).
    Suspended(FailureV1),
    /// A person must act (exit 4).
    Stuck(FindingV1),
    /// A person closed it (exit 0): nobody acts on it any more.
    Abandoned {
        /// What is left of it on its destination, for people; `None`: the destination could not be looked at.
        left: Option<Vec<String>>,
    },
    /// What was asked does not fit the transaction's state; nothing was done (exit 5).
    Refused(FailureV1),
}

/// Drives a transaction as far as it goes. An error means that its journal cannot be read.
pub fn drive(
    world: &dyn World,
    journal: &mut dyn Journal,
    observer: &mut dyn Observer,
    settings: &Settings,
) -> Result<Ending, JournalError> {
    let mut recorder = Recorder::new(journal, observer)?;
    if let Some(ending) = settled_before(&recorder, settings.purpose) {
        return Ok(ending);
    }
    let plan = recorder.plan();
    let record = HostRecord::of(plan.txn, &plan.request.new_name);
    let ending = match attempt::take_over(world, &plan, &record, &settings.controller) {
        Ok((destination, standing)) => {
            let limit = settings.bandwidth_limit_bytes_per_second;
            let bandwidth_limit_bytes_per_second = limit.or(plan.request.options.bandwidth_limit_bytes_per_second);
            let mut context = Context {
                world,
                plan,
                controller: settings.controller.clone(),
                keeps_record: false,
                recorder,
                destination,
                source: None,
                record,
                bandwidth_limit_bytes_per_second,
                read_back: BTreeMap::new(),
                counted: Counted { survey: settings.survey, source: None },
            };
            go(&mut context, &standing, settings)
                .unwrap_or_else(|failure| end_with(&mut context.recorder, world, failure))
        }
        Err(failure) => end_with(&mut recorder, world, failure),
    };
    world.disconnect(Side::Source);
    world.disconnect(Side::Destination);
    Ok(ending)
}

/// What the journal alone answers.
fn settled_before(recorder: &Recorder, purpose: AttemptPurpose) -> Option<Ending> {
    use AttemptPurpose::{Resume, Rollback, Run};
    use journal_format::EndV1;
    let history = recorder.history();
    if let Some(reason) = &history.abandoned {
        return Some(refused(format!("this transaction was abandoned: {reason}"), "run the clone again"));
    }
    match (history.finished, purpose) {
        (Some((EndV1::Committed, _)), Run | Resume) => return Some(Ending::Committed { warnings: Vec::new() }),
        (Some((EndV1::RolledBack, _)), Rollback) => return Some(Ending::RolledBack { failure: None }),
        (Some((EndV1::RolledBack, _)), Run | Resume) => {
            return Some(refused("this transaction was rolled back", "run the clone again"));
        }
        (Some((EndV1::Committed, _)), Rollback) => return Some(already_committed()),
        (None, _) => {}
    }
    match purpose {
        Rollback if history.committed => Some(already_committed()),
        Resume | Run if history.rolling_back.is_some() => Some(refused(
            "this transaction is rolling back",
            "finish that with `kvm-clone rollback`, then run the clone again",
        )),
        Run | Resume | Rollback => None,
    }
}

fn already_committed() -> Ending {
    refused(
        "this transaction is committed: the clone is there and only forward is possible",
        "if the clone is not wanted, undefine it (`virsh undefine`) and delete its files, which `kvm-clone show` names; `kvm-clone resume` finishes a clean-up",
    )
}

fn refused(message: impl Into<String>, advice: impl Into<String>) -> Ending {
    let (message, advice) = (message.into(), advice.into());
    Ending::Refused(FailureV1 { class: FailureClassV1::Stop, exit: 5, message, advice })
}

/// The owner lock is held, where there is anything to lock: which way?
fn go(context: &mut Context, standing: &attempt::Standing, settings: &Settings) -> Result<Ending, Failure> {
    if standing.abandoned {
        return Ok(refused(
            "this transaction was abandoned on its destination",
            format!("`kvm-clone abandon {}` closes it here too; then run the clone again", context.plan.txn),
        ));
    }
    // The mark outranks everything; looked for before anything is written, so that a refusal changes nothing.
    if standing.marked && settings.purpose == AttemptPurpose::Rollback {
        return Ok(already_committed());
    }
    let stranger = standing.owner.as_ref().filter(|owner| owner.epoch > context.recorder.epoch());
    let rolling_back_there = standing.owner.as_ref().is_some_and(|owner| owner.direction == DirectionV1::RollingBack);
    if let Some(owner) = stranger.filter(|_| !standing.marked && !rolling_back_there) {
        return Err(Failure::stop(
            None,
            format!("a host record last driven from this journal (epoch {} or lower)", context.recorder.epoch().0),
            format!(
                "epoch {} of the controller {} on machine {}",
                owner.epoch.0, owner.controller.state_dir, owner.controller.machine_id
            ),
        ));
    }
    attempt::open_epoch(context, standing, settings.purpose, settings.controller_pid)?;

    if standing.marked || context.recorder.history().committed {
        if !context.recorder.history().committed {
            context.recorder.append(context.world.now(), EventV1::Committed)?;
        }
        return clean_up::clean_up(context, standing.record);
    }
    let lost = record_is_lost(context, standing);
    if lost {
        back::must_be_untouched(context)?;
    }
    if settings.purpose == AttemptPurpose::Rollback {
        let asked = FailureV1 {
            class: FailureClassV1::TurnBack,
            exit: 0,
            message: "rollback was asked for".to_owned(),
            advice: String::new(),
        };
        back::roll_back(context, asked)?;
        return Ok(Ending::RolledBack { failure: None });
    }
    let failure = if rolling_back_there {
        Failure::turn_back("another controller rolled this transaction back", "run the clone again")
    } else if lost {
        Failure::turn_back("the host record is gone, and with it everything of this transaction", "run the clone again")
    } else {
        match forward::forward(context) {
            Ok(()) => return clean_up::clean_up(context, true),
            Err(failure) => failure,
        }
    };
    let Failure::Refusal(failure) = failure else { return Err(failure) };
    if failure.class != FailureClassV1::TurnBack {
        return Err(Failure::Refusal(failure));
    }
    back::roll_back(context, failure.clone())?;
    Ok(Ending::RolledBack { failure: Some(failure) })
}

/// A record that was there, and no mark: only a clean-up or a rollback removes it, and only as its last act.
fn record_is_lost(context: &Context, standing: &attempt::Standing) -> bool {
    let reserved = context.history_of(StepV1::ReserveRecord).map(|step| step.last);
    !standing.record && reserved == Some(Last::Done)
}

/// Records why an attempt ends before the transaction does.
fn end_with(recorder: &mut Recorder, world: &dyn World, failure: Failure) -> Ending {
    let (event, ending) = match failure {
        // Nothing was rolled back here, whatever class the refusal is of elsewhere.
        Failure::Refusal(failure) if failure.class == FailureClassV1::TurnBack => {
            let failure = FailureV1 { class: FailureClassV1::Suspend, exit: 3, ..failure };
            (EventV1::Suspended { failure: failure.clone() }, Ending::Suspended(failure))
        }
        Failure::Refusal(failure) => (EventV1::Suspended { failure: failure.clone() }, Ending::Suspended(failure)),
        Failure::Finding(found) => {
            let finding = finding::with_commands(&recorder.plan(), found);
            (EventV1::Stuck { finding: finding.clone() }, Ending::Stuck(finding))
        }
        Failure::Journal(error) => return Ending::Suspended(journal_failure(&error)),
    };
    match recorder.append(world.now(), event) {
        Ok(()) => ending,
        Err(error) => {
            recorder.observer.warning(&format!("the end of this attempt could not be recorded: {error}"));
            ending
        }
    }
}

fn is_anything_published(context: &Context) -> bool {
    let mut publishing = context.plan.steps.iter().filter(|step| steps::publishes(**step));
    publishing.any(|step| context.last_of(*step) != Last::None)
}

/// Marks a done step, and all later done steps of its image, to be applied again.
fn reopen(context: &mut Context, first: StepV1, cause: ReopenCauseV1, why: &str) -> Result<(), Failure> {
    let plan = context.plan.clone();
    let image = steps::image_of(first);
    let mut reached = false;
    for (index, step) in (0u32..).zip(&plan.steps) {
        reached |= *step == first;
        let affected = *step == first || (reached && image.is_some() && steps::image_of(*step) == image);
        let last = context.last_of(*step);
        let verifying = *step != first && last == Last::Started && matches!(step, StepV1::VerifyImage { .. });
        if affected && (last == Last::Done || verifying) {
            let event = EventV1::Reopened { step: StepRef::Forward(index), cause, why: why.to_owned() };
            context.recorder.append(context.world.now(), event)?;
        }
    }
    Ok(())
}
