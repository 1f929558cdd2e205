//! Acting for a controller that is gone, from the host record alone: rolled back, or cleaned up where the commit mark is set.
//! Never forward: what that controller had read and verified is known to nobody any more.
//!
//! The past is written anew as it may have been (every step Started), in memory; from there on it is an attempt like any
//! other, under the owner lock, with `rolling_back` in the owner file before the first undo. Broken off, it is run again.

use std::collections::BTreeMap;
use std::time::Duration;

use journal_format::{
    AttemptPurpose, CleanUpStepV1, ControllerId, Epoch, EventV1, OutcomeV1, PlanV1, RecordV1, StepRef, StepV1, TxnId,
};

use super::attempt::{self, SILENT_AGENT_WAIT, Standing};
use super::{Ending, Settings, end_with, go, refused};
use crate::failure::Failure;
use crate::journal::recorder::Recorder;
use crate::journal::{Journal, JournalError, MemoryJournal};
use crate::observer::Observer;
use crate::steps::host_record::{HostRecord, remove_record};
use crate::steps::{self, Context, Counted, Probe, transfers_of_mark};
use crate::world::{Host, Side, World};

/// Who recovers, and how far.
#[derive(Debug, Clone)]
pub struct Recovery {
    /// The controller that signs the owner file from now on.
    pub controller: ControllerId,
    /// Its process.
    pub controller_pid: u32,
    /// Of a committed clone the record and its mark go too, though its own controller has not seen them.
    pub forget: bool,
}

/// Rolls the transaction of a host record back, or cleans it up if it is committed. An error means that the plan cannot
/// be worked with.
pub fn drive_from_record(
    world: &dyn World,
    plan: &PlanV1,
    observer: &mut dyn Observer,
    recovery: &Recovery,
) -> Result<Ending, JournalError> {
    let mut journal = MemoryJournal::new(plan.txn, Box::new(|_| false));
    let begun = EventV1::Begun { plan: Box::new(plan.clone()) };
    journal.append(0, RecordV1 { at: plan.created_at, epoch: Epoch(0), event: begun })?;
    let mut recorder = Recorder::new(&mut journal, observer)?;
    let record = HostRecord::of(plan.txn, &plan.request.new_name);
    let ending = match attempt::take_over(world, plan, &record, &recovery.controller) {
        Ok((destination, standing)) => {
            let mut context = Context {
                world,
                plan: recorder.plan(),
                recorder,
                destination,
                source: None,
                record,
                controller: recovery.controller.clone(),
                keeps_record: !recovery.forget,
                bandwidth_limit_bytes_per_second: None,
                read_back: BTreeMap::new(),
                counted: Counted::default(),
            };
            let ended = act(&mut context, &standing, recovery);
            ended.unwrap_or_else(|failure| end_with(&mut context.recorder, world, failure))
        }
        Err(failure) => end_with(&mut recorder, world, failure),
    };
    world.disconnect(Side::Destination);
    Ok(ending)
}

fn act(context: &mut Context, standing: &Standing, recovery: &Recovery) -> Result<Ending, Failure> {
    if standing.abandoned {
        return Ok(refused(
            "this transaction was abandoned: a person closed it, and nobody acts on it any more",
            format!("remove what it left, then {}", context.record.directory),
        ));
    }
    let Some(owner) = standing.owner.as_ref().filter(|_| standing.record) else {
        return remove_scaffold(context.world, context.destination.as_ref(), &context.record);
    };
    if owner.txn != context.plan.txn {
        let found = format!("that of transaction {}", owner.txn);
        return Err(Failure::stop(None, format!("the owner file of {}", context.plan.txn), found));
    }
    let opened = EventV1::AttemptOpened { epoch: owner.epoch, purpose: AttemptPurpose::Run, pid: 0 };
    context.recorder.recount(context.world.now(), opened)?;
    let purpose = if standing.marked {
        committed_past(context)?;
        AttemptPurpose::Resume
    } else {
        started_past(context)?;
        AttemptPurpose::Rollback
    };
    let settings = Settings {
        controller: recovery.controller.clone(),
        purpose,
        controller_pid: recovery.controller_pid,
        bandwidth_limit_bytes_per_second: None,
        survey: None,
    };
    go(context, standing, &settings)
}

/// Every step may have had its effect.
fn started_past(context: &mut Context) -> Result<(), Failure> {
    for (index, _) in (0u32..).zip(&context.plan.clone().steps) {
        let step = StepRef::Forward(index);
        context.recorder.recount(context.world.now(), EventV1::Started { step })?;
    }
    // What a defined clone says of its images tells whether somebody wrote to them since: then it is not undone.
    record_transfers(context)
}

/// The clone is whole, and every step of the clean-up up to its finishing may have been begun: what libvirt was told may land
/// yet, or have been torn. What follows (autostart, start) touches what is a person's since: it is done unless something
/// shows that it was, or that somebody used the clone.
fn committed_past(context: &mut Context) -> Result<(), Failure> {
    record_transfers(context)?;
    let finished = steps::clean_up_step(CleanUpStepV1::FinishDomain).probe(context)?;
    let has_its_name = matches!(finished, Probe::Ours(OutcomeV1::Nothing));
    let is_used = matches!(finished, Probe::Ours(_)) && !is_untouched(context)?;
    let plan = context.plan.clone();
    for (index, planned) in (0u32..).zip(&plan.clean_up) {
        let step = steps::clean_up_step(*planned);
        let place = StepRef::CleanUp(index);
        let is_later = matches!(planned, CleanUpStepV1::SetAutostart | CleanUpStepV1::StartDomain);
        let is_over = has_its_name && matches!(planned, CleanUpStepV1::RetireOldVm | CleanUpStepV1::RenameClone);
        if step.lands_late() && !is_over && !(is_later && is_used) {
            context.recorder.recount(context.world.now(), EventV1::Started { step: place })?;
        }
        if !(is_later && is_used) {
            continue;
        }
        if !matches!(step.probe(context)?, Probe::Ours(_)) {
            let expected = step.expected(context);
            let warning =
                format!("expected {expected}, which is not so; it is left alone, as a person may have changed it");
            context.recorder.observer.warning(&warning);
        }
        let done = EventV1::Done { step: place, outcome: OutcomeV1::AlreadySo };
        context.recorder.recount(context.world.now(), done)?;
    }
    Ok(())
}

/// Staging is removed after autostart and start; and who used the clone wrote to it.
fn is_untouched(context: &Context) -> Result<bool, Failure> {
    let images = (0u32..).zip(&context.plan.images);
    // Whether a device was written to nobody can tell.
    for (index, image) in images.filter(|(_, image)| image.device().is_none()) {
        let transfer = StepV1::TransferImage { image: index };
        let Some(staged) = context.destination.stat(&image.staging_path)? else { return Ok(false) };
        let as_committed = matches!(context.outcome_of(transfer), Some(OutcomeV1::Transferred { source_size, mtime_ns, .. })
            if (*source_size, *mtime_ns) == (staged.size, staged.mtime_ns));
        if !as_committed {
            return Ok(false);
        }
    }
    Ok(true)
}

fn record_transfers(context: &mut Context) -> Result<(), Failure> {
    for (transfer, outcome) in transfers_of_mark(context)? {
        let step = context.place_of(transfer)?;
        context.recorder.recount(context.world.now(), EventV1::Done { step, outcome })?;
    }
    Ok(())
}

/// Clears away a record that never came to be, or that was being taken away: nothing else of its transaction exists.
pub fn clear_scaffold(world: &dyn World, txn: TxnId, controller: &ControllerId) -> Ending {
    // The name is that of a claim, and there is none.
    let record = HostRecord::of(txn, "");
    let cleared = world.connect(Side::Destination).map_err(Failure::from).and_then(|destination| {
        let standing = attempt::lock(world, destination.as_ref(), &record, controller)?;
        if standing.record {
            return Err(being_built(destination.as_ref(), &record));
        }
        remove_scaffold(world, destination.as_ref(), &record)
    });
    world.disconnect(Side::Destination);
    cleared.unwrap_or_else(|failure| match failure {
        Failure::Finding(finding) => Ending::Stuck(finding),
        failure => Ending::Suspended(failure.into_refusal()),
    })
}

fn remove_scaffold(world: &dyn World, host: &dyn Host, record: &HostRecord) -> Result<Ending, Failure> {
    for directory in [&record.new, &record.gone] {
        let Some(before) = host.stat(directory)? else { continue };
        // Where there is an owner file, its lock is held by now. Without one an agent may be about to make it.
        let mut ownerless = true;
        for name in ["owner", "committed", "abandoned"] {
            ownerless &= host.stat(&format!("{directory}/{name}"))?.is_none();
        }
        if ownerless {
            wait_for_silence(world)?;
            if host.stat(directory)?.is_none_or(|now| (now.inode, now.mtime_ns) != (before.inode, before.mtime_ns)) {
                return Err(being_built(host, record));
            }
        }
    }
    if host.stat(&record.directory)?.is_some() {
        return Err(being_built(host, record));
    }
    remove_record(host, record)?;
    Ok(Ending::RolledBack { failure: None })
}

/// As long as an agent that hears nothing lives.
fn wait_for_silence(world: &dyn World) -> Result<(), Failure> {
    const SIGNAL_INTERVAL: Duration = Duration::from_secs(1);
    let mut waited = Duration::ZERO;
    while waited < SILENT_AGENT_WAIT {
        world.wait(SIGNAL_INTERVAL)?;
        waited += SIGNAL_INTERVAL;
    }
    Ok(())
}

fn being_built(host: &dyn Host, record: &HostRecord) -> Failure {
    Failure::held(
        format!("somebody works on {} on {}", record.directory, host.name()),
        "let that one end, then look again",
    )
}
