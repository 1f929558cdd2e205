//! The old VM is shut off, if it runs and that was allowed; what it was is durable in the host record first. It is all that
//! happens to it before the commit, and undone it runs again: with its memory, where that was saved and still fits its disks.

use journal_format::{FileStampV1, OldVmRecordV1, OutcomeV1, ReplacedV1, StopModeV1};

use super::host_record::parent_of;
use super::old_vm::{
    Kept, is_off, lock_images, remove_saved, replaced, stamps, stamps_when_stopped, stop, sync_files, unlock_images,
    unrenamable, wait_out, wait_while_saving,
};
use super::{Applied, Context, Probe, Step};
use crate::domain::same;
use crate::failure::Failure;
use crate::world::{DomainFacts, FaultKind};

pub(super) struct StopOldVm;

impl Step for StopOldVm {
    fn expected(&self, context: &Context) -> String {
        format!("the old VM {}, shut off", context.plan.request.new_name)
    }

    fn probe(&self, context: &Context) -> Result<Probe, Failure> {
        let old = replaced(&context.plan)?;
        let Some(was_running) = was_running(context)? else { return Ok(Probe::Absent) };
        let still = match context.destination.domain(old.uuid)? {
            Some(domain) => is_off(&domain) && difference(context, old, &domain)?.is_none(),
            None => false,
        };
        let untouched = still && stamps_when_stopped(context)? == Some(stamps(context, old)?);
        Ok(if untouched { Probe::Ours(OutcomeV1::Stopped { was_running }) } else { Probe::Partial })
    }

    fn apply(&self, context: &mut Context) -> Result<Applied, Failure> {
        let plan = context.plan.clone();
        let (old, host) = (replaced(&plan)?, context.destination.clone());
        wait_while_saving(context, old.uuid)?;
        let Some(domain) = host.domain(old.uuid)? else { return Err(refused(context, "is gone")) };
        if let Some(difference) = difference(context, old, &domain)? {
            return Err(refused(context, &difference));
        }
        let runs = !is_off(&domain);
        let known = was_running(context)?;
        let before = match (known, stamps_when_stopped(context)?) {
            (Some(_), stopped) => stopped,
            (None, _) if old.running => None,
            (None, _) => Some(old.files.iter().map(|file| Some(file.stamp)).collect()),
        };
        if runs && !known.unwrap_or(old.running) {
            return Err(refused(context, "was off when this clone was planned, and is running now"));
        }
        let now = stamps(context, old)?;
        if !runs && before.is_some_and(|before| before != now) {
            return Err(refused(context, "is off, but its disks were written to meanwhile"));
        }
        let was_running = known.unwrap_or(runs);
        if known.is_none() {
            Kept::Stopping.write(context, &OldVmRecordV1::Stopping { was_running })?;
        }
        if runs {
            // What is known of it off is not so any more.
            Kept::Stopped.remove(context)?;
            host.sync(&context.record.directory)?;
            unlock_images(context, old)?;
            stop(context, old, old.stop)?;
        }
        self.hold(context)?;
        // A power cut must not take back what the stamps tell.
        sync_files(context, old)?;
        Kept::Stopped.write(context, &OldVmRecordV1::Stopped { stamps: stamps(context, old)? })?;
        Ok(Applied::Done(OutcomeV1::Stopped { was_running }))
    }

    fn settle(&self, context: &Context) -> Result<(), Failure> {
        let old = replaced(&context.plan)?;
        let host = &context.destination;
        sync_files(context, old)?;
        if host.stat(&old.saved_path)?.is_some() {
            host.sync(&old.saved_path)?;
            host.sync(parent_of(&old.saved_path))?;
        }
        Kept::Stopping.settle(context)?;
        Kept::Stopped.settle(context)
    }

    fn undo(&self, context: &mut Context) -> Result<(), Failure> {
        let plan = context.plan.clone();
        let (old, host) = (replaced(&plan)?, context.destination.clone());
        unlock_images(context, old)?;
        if was_running(context)? == Some(true) && host.domain(old.uuid)?.is_some() {
            if stamps_when_stopped(context)?.is_none() {
                wait_out(context, old)?;
            }
            if host.domain(old.uuid)?.is_some_and(|domain| is_off(&domain)) {
                run_again(context, old)?;
            } else if old.stop == StopModeV1::Shutdown && stamps_when_stopped(context)?.is_none() {
                let name = &plan.request.new_name;
                let warning = format!(
                    "{name} on {} was asked to shut down, and runs still: should it go off, start it",
                    host.name()
                );
                context.recorder.observer.warning(&warning);
            }
        }
        let staging = parent_of(&old.saved_path).to_owned();
        remove_saved(context, old)?;
        if host.stat(&staging)?.is_some() {
            host.sync(&staging)?;
        }
        Kept::Stopped.remove(context)?;
        Kept::Stopping.remove(context)?;
        match host.sync(&context.record.directory) {
            // The record is gone, and with it what it said.
            Err(fault) if fault.kind == FaultKind::NotFound => Ok(()),
            synced => Ok(synced?),
        }
    }

    fn hold(&self, context: &Context) -> Result<(), Failure> {
        if lock_images(context, replaced(&context.plan)?)? {
            return Ok(());
        }
        Err(refused(context, "is off, and somebody else writes to its disks"))
    }

    fn lands_late(&self) -> bool {
        true
    }
}

/// Whether it ran when it was stopped; `None`: it never was.
fn was_running(context: &Context) -> Result<Option<bool>, Failure> {
    Ok(match Kept::Stopping.read(context)? {
        Some(OldVmRecordV1::Stopping { was_running }) => Some(was_running),
        _ => None,
    })
}

/// How it differs from what was planned, in words.
fn difference(context: &Context, old: &ReplacedV1, domain: &DomainFacts) -> Result<Option<String>, Failure> {
    if domain.brief.name != context.plan.request.new_name {
        return Ok(Some(format!("is called {} now", domain.brief.name)));
    }
    if old.keep
        && let Some(what) = unrenamable(domain)
    {
        return Ok(Some(format!(
            "is to be kept under another name, and has {what} now, with which libvirt renames no VM"
        )));
    }
    let same = same(&domain.definition, &old.definition).map_err(|error| refused(context, &error.to_string()))?;
    Ok((!same).then(|| "has another definition than when this clone was planned".to_owned()))
}

fn refused(context: &Context, what: &str) -> Failure {
    Failure::turn_back(
        format!("the old VM {} on {} {what}", context.plan.request.new_name, context.destination.name()),
        "see who works on it, then clone again",
    )
}

/// With its memory, if that was saved and nobody wrote to a disk since; else it boots.
fn run_again(context: &mut Context, old: &ReplacedV1) -> Result<(), Failure> {
    let host = context.destination.clone();
    if memory_fits(context, old)? {
        match host.restore(&old.saved_path) {
            Err(fault) if fault.kind == FaultKind::Refused => {
                let name = &context.plan.request.new_name;
                let warning = format!("{name} on {} is started without its memory: {fault}", host.name());
                context.recorder.observer.warning(&warning);
            }
            restored => return Ok(restored?),
        }
    }
    Ok(host.start(old.uuid)?)
}

/// Is there a saved memory, and are the disks what they were when it was saved?
fn memory_fits(context: &Context, old: &ReplacedV1) -> Result<bool, Failure> {
    let saved = context.destination.stat(&old.saved_path)?.filter(|_| old.stop == StopModeV1::Save);
    let Some(saved) = saved else { return Ok(false) };
    let now = stamps(context, old)?;
    if let Some(stopped) = stamps_when_stopped(context)? {
        return Ok(stopped == now);
    }
    // QEMU is through with its disks before the last byte of its memory is written.
    let written_later = |stamp: &FileStampV1| stamp.mtime_ns > saved.mtime_ns;
    Ok(now.iter().all(|stamp| stamp.as_ref().is_some_and(|stamp| !written_later(stamp))))
}
