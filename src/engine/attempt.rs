//! Opening an attempt: the destination's agent, the owner lock, a new epoch, the look for the commit mark.
//!
//! Nothing of the transaction is touched before the owner lock is held. Within an attempt nothing reconnects.

use std::rc::Rc;
use std::time::Duration;

use journal_format::owner::{DirectionV1, OwnerV1, decode_owner_file};
use journal_format::{AttemptPurpose, ControllerId, Epoch, EventV1, ImageRoleV1, OldFileFateV1, PlanV1, ReplacedV1};

use crate::failure::Failure;
use crate::steps::host_record::{HostRecord, OWNER_BYTES_MAX, parent_of};
use crate::steps::{self, Context};
use crate::world::{Host, OwnerLock, ProcessId, Side, World};

/// A silent agent ends by itself after 30 s.
pub(super) const SILENT_AGENT_WAIT: Duration = Duration::from_secs(35);
/// How often a lock that is held by somebody else is tried meanwhile.
const LOCK_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// A name may move under us while another agent ends; more often than this it is not by chance.
const LOCK_ROUNDS_MAX: u32 = 5;

/// What the destination says of the transaction, seen under the owner lock.
pub(super) struct Standing {
    /// The host record is there.
    pub(super) record: bool,
    /// The commit mark is there.
    pub(super) marked: bool,
    /// Somebody gave it up.
    pub(super) abandoned: bool,
    /// The owner file, where there is one.
    pub(super) owner: Option<OwnerV1>,
}

/// Connects to the destination and takes the owner lock.
pub(super) fn take_over(
    world: &dyn World,
    plan: &PlanV1,
    record: &HostRecord,
    controller: &ControllerId,
) -> Result<(Rc<dyn Host>, Standing), Failure> {
    let destination = connect(world, Side::Destination, &plan.request.destination.machine_id)?;
    destination.allow(&allowed(plan))?;
    let standing = lock(world, destination.as_ref(), record, controller)?;
    Ok((destination, standing))
}

/// Gives the attempt its epoch: into the journal first, then into the owner file.
pub(super) fn open_epoch(
    context: &mut Context,
    standing: &Standing,
    purpose: AttemptPurpose,
    controller_pid: u32,
) -> Result<(), Failure> {
    let known = context.recorder.epoch();
    let seen = standing.owner.as_ref().map_or(Epoch(0), |owner| owner.epoch);
    let epoch = Epoch(known.max(seen).0 + 1);
    context.recorder.append(context.world.now(), EventV1::AttemptOpened { epoch, purpose, pid: controller_pid })?;
    if let Some(owner) = &standing.owner {
        write_owner(context, owner, owner.direction)?;
    }
    Ok(())
}

/// Writes the owner file's other slot: this attempt's epoch and agent, and the direction. Durable when it returns.
pub(super) fn write_owner(context: &Context, before: &OwnerV1, direction: DirectionV1) -> Result<(), Failure> {
    let host = &context.destination;
    let agent = host.agent()?;
    let owner = OwnerV1 {
        counter: before.counter + 1,
        txn: before.txn,
        epoch: context.recorder.epoch(),
        controller: context.controller.clone(),
        agent_pid: agent.pid,
        agent_started: agent.started,
        direction,
    };
    let path = owner_path(context)?;
    let slot = owner
        .encode_slot()
        .map_err(|error| Failure::suspend(format!("{path}: {error}"), "use a state directory with a shorter path"))?;
    let stat = host.stat(&path)?;
    let inode = stat.map(|stat| stat.inode).ok_or_else(|| gone(host.as_ref(), &path))?;
    host.write_at(&path, inode, owner.offset(), &slot)?;
    Ok(host.sync(&path)?)
}

/// The owner file as it is now.
pub(super) fn read_owner(context: &Context) -> Result<Option<OwnerV1>, Failure> {
    let path = owner_path(context)?;
    read_owner_at(context.destination.as_ref(), &path)
}

fn owner_path(context: &Context) -> Result<String, Failure> {
    let committed = context.record.committed();
    Ok(if context.destination.stat(&committed)?.is_some() { committed } else { context.record.owner() })
}

fn read_owner_at(host: &dyn Host, path: &str) -> Result<Option<OwnerV1>, Failure> {
    let Some(bytes) = host.read(path, OWNER_BYTES_MAX)? else { return Ok(None) };
    decode_owner_file(&bytes)
        .map(Some)
        .map_err(|error| Failure::stop(None, format!("an owner file in {path} on {}", host.name()), error.to_string()))
}

fn gone(host: &dyn Host, path: &str) -> Failure {
    Failure::suspend(format!("{path} on {} is gone", host.name()), "resume looks again")
}

pub(super) fn connect(world: &dyn World, side: Side, machine_id: &str) -> Result<Rc<dyn Host>, Failure> {
    let host = world.connect(side)?;
    check_machine(host.as_ref(), machine_id)?;
    Ok(host)
}

/// Is it the machine of the plan?
pub(super) fn check_machine(host: &dyn Host, machine_id: &str) -> Result<(), Failure> {
    let found = host.facts()?.machine_id;
    if found == machine_id {
        return Ok(());
    }
    Err(Failure::suspend(
        format!(
            "{} is another machine than when this clone was planned (machine-id {found}, not {machine_id})",
            host.name()
        ),
        "make that name lead to the right machine, then resume",
    ))
}

/// Everything that a step of this plan may change on the destination, besides the host record and the claims.
pub(super) fn allowed(plan: &PlanV1) -> Vec<String> {
    let mut paths = vec![steps::torn_definition(&plan.request.new_name)];
    paths.extend(plan.replaced.as_ref().into_iter().flat_map(|old| allowed_of_old_vm(plan, old)));
    for directory in &plan.directories {
        paths.push(format!("{}/.kvm-clone", directory.path));
        paths.push(directory.staging.clone());
        paths.push(format!("{}/", directory.staging));
    }
    for made in &plan.new_directories {
        paths.extend(made.makes_parent.then(|| parent_of(&made.path).to_owned()));
        paths.push(made.path.clone());
    }
    paths.extend(plan.images.iter().map(|image| image.final_path.clone()));
    if !plan.snapshots.is_empty() {
        let name = plan.replaced.as_ref().map_or(&plan.request.new_name, |old| &old.clone_name);
        let directory = steps::snapshot_directory(name);
        paths.extend([format!("{directory}/"), directory]);
    }
    paths
}

/// What may be changed of an old VM: libvirt's stale files of both names, the files that are to be deleted, and the names of
/// variables that follow its own.
fn allowed_of_old_vm(plan: &PlanV1, old: &ReplacedV1) -> Vec<String> {
    let mut paths: Vec<String> = steps::variables_by_name(plan, old).into_iter().flatten().collect();
    for name in [&plan.request.new_name, &old.clone_name] {
        paths.extend([steps::definition_file(name), steps::torn_definition(name), steps::autostart_link(name)]);
    }
    for file in old.files.iter().filter(|file| matches!(file.fate, OldFileFateV1::Deleted { .. })) {
        paths.push(file.path.clone());
        if file.role == ImageRoleV1::Tpm {
            paths.extend(steps::tpm_directories(&file.path));
        }
    }
    paths
}

/// Takes the owner lock, wherever the record is just now, and says what is there.
pub(super) fn lock(
    world: &dyn World,
    host: &dyn Host,
    record: &HostRecord,
    controller: &ControllerId,
) -> Result<Standing, Failure> {
    let unfinished = [format!("{}/owner", record.new), format!("{}/owner", record.gone)];
    for _ in 0..LOCK_ROUNDS_MAX {
        let mut moved = false;
        // The mark first: a filesystem that cannot refuse to replace may show both names for a moment.
        for path in [record.committed(), record.owner(), record.abandoned()].iter().chain(&unfinished) {
            match hold(world, host, path, controller)? {
                OwnerLock::Missing => {}
                OwnerLock::Taken => {
                    moved = true;
                    break;
                }
                OwnerLock::Held { inode } => {
                    // Renamed or removed between our opening and our locking it: from the top.
                    if host.stat(path)?.is_none_or(|stat| stat.inode != inode) {
                        moved = true;
                        break;
                    }
                    if unfinished.contains(path) {
                        return Ok(Standing { record: false, marked: false, abandoned: false, owner: None });
                    }
                    // The look for the mark is durable knowledge only with the directory, and the newest slot only with
                    // the file: one power cut must not take it and the one that is written next.
                    host.sync(path)?;
                    host.sync(&record.directory)?;
                    return Ok(Standing {
                        record: true,
                        marked: *path == record.committed(),
                        abandoned: *path == record.abandoned(),
                        owner: read_owner_at(host, path)?,
                    });
                }
            }
        }
        if !moved {
            return Ok(Standing { record: false, marked: false, abandoned: false, owner: None });
        }
    }
    Err(Failure::suspend(
        format!("the host record {} on {} keeps changing", record.directory, host.name()),
        "see that no other kvm-clone works on this transaction, then resume",
    ))
}

/// One try for one path, with everything that makes an older agent let go.
fn hold(world: &dyn World, host: &dyn Host, path: &str, controller: &ControllerId) -> Result<OwnerLock, Failure> {
    match host.lock_owner(path)? {
        OwnerLock::Taken => {}
        settled => return Ok(settled),
    }
    let holder = read_owner_at(host, path).ok().flatten();
    // Only an agent of this controller may be killed: a stranger's may be alive and well.
    if let Some(owner) = holder.as_ref().filter(|owner| owner.controller == *controller) {
        host.kill_agent(ProcessId { pid: owner.agent_pid, started: owner.agent_started })?;
        match host.lock_owner(path)? {
            OwnerLock::Taken => {}
            settled => return Ok(settled),
        }
    }
    let mut waited = Duration::ZERO;
    while waited < SILENT_AGENT_WAIT {
        world.wait(LOCK_RETRY_INTERVAL)?;
        waited += LOCK_RETRY_INTERVAL;
        match host.lock_owner(path)? {
            OwnerLock::Taken => {}
            settled => return Ok(settled),
        }
    }
    // Who holds it may have signed only after it took the lock.
    let holder = read_owner_at(host, path).ok().flatten().or(holder);
    let who = holder.map_or_else(
        || "an agent that did not sign".to_owned(),
        |owner| {
            format!(
                "process {} for the controller {} on machine {}",
                owner.agent_pid, owner.controller.state_dir, owner.controller.machine_id
            )
        },
    );
    Err(Failure::held(
        format!("{path} on {} is held by {who}", host.name()),
        "let that one end, or end it, then try again",
    ))
}
