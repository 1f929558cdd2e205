//! The host record: the transaction exists on the destination, and this attempt's agent holds its owner lock.

use journal_format::frame::ChainEnd;
use journal_format::owner::{DirectionV1, OwnerV1, decode_owner_file};
use journal_format::{Epoch, EventV1, Inode, OutcomeV1, RecordV1};

use super::host_record::{CLAIMS, HOST_ROOT, OWNER_BYTES_MAX, STATE_ROOT, ensure_dir, remove_record, remove_tree};
use super::{Applied, Context, Probe, Step};
use crate::failure::Failure;
use crate::world::{FaultKind, Host, OwnerLock};

pub(super) struct ReserveRecord;

impl Step for ReserveRecord {
    fn expected(&self, context: &Context) -> String {
        format!("the host record {}", context.record.directory)
    }

    fn probe(&self, context: &Context) -> Result<Probe, Failure> {
        let (host, record) = (&context.destination, &context.record);
        if host.stat(&record.directory)?.is_some() {
            for name in [record.owner(), record.committed()] {
                if let Some(stat) = host.stat(&name)? {
                    return Ok(Probe::Ours(OutcomeV1::Made { inode: stat.inode }));
                }
            }
            return Ok(Probe::Partial);
        }
        let rest = host.stat(&record.new)?.is_some() || host.stat(&record.gone)?.is_some();
        Ok(if rest { Probe::Partial } else { Probe::Absent })
    }

    fn apply(&self, context: &mut Context) -> Result<Applied, Failure> {
        if let Some(inode) = made_by_this_attempt(context)? {
            return Ok(Applied::Done(OutcomeV1::Made { inode }));
        }
        let (host, record) = (&context.destination, &context.record);
        for directory in [STATE_ROOT, HOST_ROOT, CLAIMS] {
            ensure_dir(host.as_ref(), directory, 0o700)?;
        }
        for rest in [&record.new, &record.gone] {
            if host.stat(rest)?.is_some() {
                remove_tree(host.as_ref(), rest)?;
            }
        }
        // What the agent of an earlier attempt was asked last may come between, as long as there is no owner lock.
        match host.make_dir(&record.new, 0o700) {
            Err(fault) if fault.kind == FaultKind::AlreadyExists => {
                return Err(by_another_attempt(&record.new, host.as_ref()));
            }
            made => made?,
        };
        let slot = OwnerV1 {
            txn: context.plan.txn,
            counter: 0,
            epoch: context.recorder.epoch(),
            controller: context.controller.clone(),
            agent_pid: host.agent()?.pid,
            agent_started: host.agent()?.started,
            direction: DirectionV1::Forward,
        };
        let owner = format!("{}/owner", record.new);
        let bytes = slot.encode_file().map_err(|error| unwritable(&owner, &error))?;
        let inode = host.make_file(&owner, 0o600, &bytes)?;
        if host.lock_owner(&owner)? != (OwnerLock::Held { inode }) {
            return Err(Failure::held(format!("{owner} is held by another agent"), "wait for it to end, then resume"));
        }
        let plan = format!("{}/plan", record.new);
        let begun = RecordV1 {
            at: context.plan.created_at,
            epoch: Epoch(0),
            event: EventV1::Begun { plan: Box::new(context.plan.as_ref().clone()) },
        };
        let (bytes, _) = ChainEnd::start(context.plan.txn).encode(&begun).map_err(|error| unwritable(&plan, &error))?;
        host.make_file(&plan, 0o600, &bytes)?;
        for path in [&owner, &plan, &record.new] {
            host.sync(path)?;
        }
        match host.rename(&record.new, &record.directory) {
            Err(fault) if fault.kind == FaultKind::AlreadyExists => {
                return Err(by_another_attempt(&record.directory, host.as_ref()));
            }
            renamed => renamed?,
        }
        Ok(Applied::Done(OutcomeV1::Made { inode }))
    }

    fn settle(&self, context: &Context) -> Result<(), Failure> {
        Ok(context.destination.sync(HOST_ROOT)?)
    }

    fn undo(&self, context: &mut Context) -> Result<(), Failure> {
        Ok(remove_record(context.destination.as_ref(), &context.record)?)
    }
}

/// The record is there, signed and locked by the very agent of this attempt.
fn made_by_this_attempt(context: &Context) -> Result<Option<Inode>, Failure> {
    let (host, owner) = (&context.destination, context.record.owner());
    let Some(bytes) = host.read(&owner, OWNER_BYTES_MAX)? else { return Ok(None) };
    let Ok(slot) = decode_owner_file(&bytes) else { return Ok(None) };
    let agent = host.agent()?;
    let signed = slot.txn == context.plan.txn
        && slot.epoch == context.recorder.epoch()
        && (slot.agent_pid, slot.agent_started) == (agent.pid, agent.started);
    if !signed {
        return Ok(None);
    }
    Ok(match host.lock_owner(&owner)? {
        OwnerLock::Held { inode } => Some(inode),
        OwnerLock::Taken | OwnerLock::Missing => None,
    })
}

fn by_another_attempt(path: &str, host: &dyn Host) -> Failure {
    Failure::held(
        format!("{path} on {} was made by another attempt meanwhile", host.name()),
        "let that one end, then try again",
    )
}

fn unwritable(path: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::turn_back(format!("{path}: {error}"), "shorten the plan: fewer disks, a smaller definition")
}
