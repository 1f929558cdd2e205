//! A snapshot of the clone, told to libvirt once the clone is defined: what it holds is inside the images already.
//!
//! libvirt keeps it as a file, in a directory of the domain's name. It syncs no directory, and leaves that one behind.

use journal_format::{OutcomeV1, StepV1};

use super::define_domain::{is_ours, mark, unusable, used};
use super::{Applied, Context, Probe, Step};
use crate::domain::metadata::MarkState;
use crate::domain::{Change, DomainError, Rewrite, SnapshotDefinition, read_back};
use crate::failure::Failure;
use crate::history::Last;
use crate::steps::host_record::parent_of;
use crate::world::{DomainState, FaultKind, Host, SnapshotFacts};

pub(super) struct DefineSnapshot {
    pub(super) snapshot: u32,
}

/// Where libvirt keeps its snapshots, a directory for each domain that ever had one.
const LIBVIRT_SNAPSHOTS: &str = "/var/lib/libvirt/qemu/snapshot";
/// Longer than any snapshot that libvirt carries in one call, and what an agent reads at once.
const DOCUMENT_BYTES_MAX: u64 = 3 << 20;

impl Step for DefineSnapshot {
    fn expected(&self, context: &Context) -> String {
        let name = context.snapshot(self.snapshot).map_or("", |planned| &planned.name);
        format!("the snapshot {name} of {}", context.defined_name())
    }

    fn probe(&self, context: &Context) -> Result<Probe, Failure> {
        let planned = context.snapshot(self.snapshot)?;
        let Some(domain) = context.destination.domain(context.plan.clone_uuid)? else { return Ok(Probe::Absent) };
        if !is_ours(context, &domain) {
            return Ok(Probe::Foreign(format!("a domain {} without this transaction's mark", domain.brief.name)));
        }
        if let Some(found) = used(context, &domain)? {
            return Ok(Probe::InUse(found));
        }
        let Some(there) = context.destination.snapshot(context.plan.clone_uuid, &planned.name)? else {
            return Ok(Probe::Absent);
        };
        if created(&there.definition) != created(&planned.definition) {
            return Ok(Probe::Foreign(format!("another snapshot {} of {}", planned.name, domain.brief.name)));
        }
        let last = context.history_of(StepV1::DefineSnapshot { snapshot: self.snapshot });
        let last = last.map_or(Last::None, |step| step.last);
        Ok(match self.lost(context, &there, last)? {
            None => Probe::Ours(OutcomeV1::Nothing),
            Some(missing) if last == Last::Done => {
                Probe::InUse(format!("the snapshot {} was changed: {missing}", planned.name))
            }
            Some(_) => Probe::Partial,
        })
    }

    fn apply(&self, context: &mut Context) -> Result<Applied, Failure> {
        define(context, self.snapshot)?;
        Ok(Applied::Done(OutcomeV1::Nothing))
    }

    fn settle(&self, context: &Context) -> Result<(), Failure> {
        settle(context.destination.as_ref(), context.defined_name())
    }

    fn undo(&self, context: &mut Context) -> Result<(), Failure> {
        let (host, uuid) = (&context.destination, context.plan.clone_uuid);
        let planned = context.snapshot(self.snapshot)?;
        // Proven once more on the very connection that removes it.
        if let Some(domain) = host.domain(uuid)? {
            if !is_ours(context, &domain) {
                return Ok(());
            }
            if domain.brief.state == DomainState::Active {
                let found = format!("the domain {} was started", domain.brief.name);
                return Err(Failure::stop(None, self.expected(context), found));
            }
            host.forget_snapshot(uuid, &planned.name)?;
        }
        remove_left(context, context.defined_name())?;
        settle(host.as_ref(), context.defined_name())
    }

    fn lands_late(&self) -> bool {
        true
    }
}

impl DefineSnapshot {
    /// What a snapshot that an attempt left lacks of what was planned. One that is undone again is not compared.
    fn lost(&self, context: &Context, there: &SnapshotFacts, last: Last) -> Result<Option<String>, Failure> {
        if !matches!(last, Last::Started | Last::Reopened | Last::Done) {
            return Ok(None);
        }
        if context.snapshot(self.snapshot)?.current && !there.current {
            return Ok(Some("it is not the current one".to_owned()));
        }
        let planned = context.snapshot(self.snapshot)?;
        let torn = half_written(context.defined_name(), &planned.name);
        // A daemon that starts reads that too, and nobody would remove it with the snapshot.
        if last != Last::Done && context.destination.stat(&torn)?.is_some() {
            return Ok(Some("its file is half written".to_owned()));
        }
        let Ok(planned) = document(context, self.snapshot) else { return Ok(None) };
        Ok(read_back(&planned, &there.definition).err().map(|lost| lost.to_string()))
    }
}

/// Where libvirt keeps the snapshots of the domain of a name.
pub fn snapshot_directory(domain: &str) -> String {
    format!("{LIBVIRT_SNAPSHOTS}/{domain}")
}

fn snapshot_file(domain: &str, snapshot: &str) -> String {
    format!("{}/{snapshot}.xml", snapshot_directory(domain))
}

/// What libvirt writes before it renames it.
fn half_written(domain: &str, snapshot: &str) -> String {
    format!("{}.new", snapshot_file(domain, snapshot))
}

/// The document as it is sent. A revert puts the definitions inside in the place of the domain's own, and that is a clone still: it
/// has its mark from them.
fn document(context: &Context, snapshot: u32) -> Result<String, Failure> {
    let planned =
        SnapshotDefinition::parse(&context.snapshot(snapshot)?.definition).map_err(|error| unusable(&error))?;
    let mark = mark(context, MarkState::Finished)?;
    let changes = |_: &_| Ok::<_, DomainError>(Rewrite { mark: Change::Set(mark.clone()), ..Rewrite::default() });
    planned.rewritten(changes).map_err(|error| unusable(&error))
}

fn created(document: &str) -> Option<String> {
    SnapshotDefinition::parse(document).ok()?.created
}

/// Tells libvirt of one of the planned snapshots, and reads it back.
fn define(context: &mut Context, snapshot: u32) -> Result<(), Failure> {
    let (host, uuid) = (context.destination.clone(), context.plan.clone_uuid);
    let (sent, planned) = (document(context, snapshot)?, context.snapshot(snapshot)?.clone());
    host.define_snapshot(uuid, &sent, planned.current)?;
    let name = &planned.name;
    let got = host.snapshot(uuid, name)?.ok_or_else(|| {
        let what = format!("the snapshot {name} on {} is gone right after its definition", host.name());
        Failure::suspend(what, "resume looks again")
    })?;
    match read_back(&sent, &got.definition) {
        Ok(added) => {
            for line in added {
                let warning = format!("libvirt on {} added to the snapshot {name}: {line}", host.name());
                context.recorder.observer.warning(&warning);
            }
            Ok(())
        }
        Err(lost) => Err(Failure::turn_back(
            format!("libvirt on {} did not keep the whole snapshot {name}: {lost}", host.name()),
            "delete that snapshot of the source, or use a libvirt that knows all of it",
        )),
    }
}

/// Those of the planned snapshots that a clone which nobody used does not have, under its own name: a renaming that a power cut tore
/// lost them. libvirt knows one whose file is only half renamed, and would not find it by its name when it is deleted.
pub(super) fn lost_snapshots(context: &Context) -> Result<Vec<u32>, Failure> {
    let mut lost = Vec::new();
    for (snapshot, planned) in (0u32..).zip(&context.plan.snapshots) {
        let torn = half_written(&context.plan.request.new_name, &planned.name);
        if context.destination.snapshot(context.plan.clone_uuid, &planned.name)?.is_none()
            || context.destination.stat(&torn)?.is_some()
        {
            lost.push(snapshot);
        }
    }
    // Who deletes a snapshot writes to the disks.
    if !lost.is_empty() && super::define_domain::used_image(context)?.is_some() {
        lost.clear();
    }
    Ok(lost)
}

/// Tells libvirt once more of those that were lost.
pub(super) fn define_lost(context: &mut Context) -> Result<(), Failure> {
    for snapshot in lost_snapshots(context)? {
        define(context, snapshot)?;
    }
    Ok(())
}

/// Is there something of the clone's snapshots under a name that it does not have?
pub(super) fn is_left(context: &Context, domain: &str) -> Result<bool, Failure> {
    Ok(!context.plan.snapshots.is_empty() && context.destination.stat(&snapshot_directory(domain))?.is_some())
}

/// Takes away what libvirt does not know any more of the clone's snapshots under a name: files of ours that a crash left, whole or
/// torn, and the directory once nothing is in it.
pub(super) fn remove_left(context: &Context, domain: &str) -> Result<(), Failure> {
    let (host, directory) = (&context.destination, snapshot_directory(domain));
    let known = host.snapshots(context.plan.clone_uuid)?;
    for planned in &context.plan.snapshots {
        let has_this_name = || host.domain_named(domain).map(|there| there.is_some());
        if known.iter().any(|snapshot| snapshot.name == planned.name) && has_this_name()? {
            continue;
        }
        for path in [half_written(domain, &planned.name), snapshot_file(domain, &planned.name)] {
            if let Some(bytes) = host.read(&path, DOCUMENT_BYTES_MAX)?
                && is_torn_or_whole_of_ours(context, &String::from_utf8_lossy(&bytes))
                && let Some(stat) = host.stat(&path)?
            {
                host.unlink(&path, stat.inode)?;
            }
        }
    }
    if host.stat(&directory)?.is_none() {
        return Ok(());
    }
    match host.remove_dir(&directory) {
        Err(fault) if fault.kind == FaultKind::NotEmpty => Ok(()),
        removed => Ok(removed?),
    }
}

/// A whole one names the domain that it is of.
fn is_torn_or_whole_of_ours(context: &Context, text: &str) -> bool {
    text.contains(&context.plan.clone_uuid.to_string()) || !text.contains("</uuid>")
}

/// Makes what there is of snapshots of the domain of a name, and that there is nothing, survive a power cut.
pub(super) fn settle(host: &dyn Host, domain: &str) -> Result<(), Failure> {
    let directory = snapshot_directory(domain);
    for path in [directory.as_str(), parent_of(&directory)] {
        if host.stat(path)?.is_some() {
            host.sync(path)?;
        }
    }
    Ok(())
}
