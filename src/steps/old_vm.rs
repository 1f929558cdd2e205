//! What the steps about the old VM have in common: what the host record keeps of it, what its files look like, how it is
//! stopped and how libvirt's stale files are told. Never decides what becomes of it.

use std::time::Duration;

use journal_format::{DomainUuid, FileStampV1, OldVmRecordV1, PlanV1, ReplacedV1, StopModeV1};

use super::define_domain::{LIBVIRT_DEFINITIONS, torn_definition, unusable};
use super::finish_domain::our_clone;
use super::hold_base::broken_base;
use super::set_autostart::LIBVIRT_AUTOSTART;
use super::{Context, must_be_in_place};
use crate::domain::{Definition, Rewrite, rewrite};
use crate::failure::Failure;
use crate::world::{DomainFacts, DomainState, FaultKind, Host};

/// How long a guest may take to shut down.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(60);
/// How long a memory that is being saved is waited for.
const SAVE_WAIT: Duration = Duration::from_secs(1800);
/// How often it is looked at meanwhile.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Longer than any definition with its snapshots that is written in one action.
const RECORD_BYTES_MAX: u64 = 3 << 20;

/// Files about the old VM in the host record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    Stopping,
    Stopped,
    Retiring,
    Renaming,
}

impl Kept {
    fn path(self, context: &Context) -> String {
        let name = match self {
            Self::Stopping => "old-vm-stopping",
            Self::Stopped => "old-vm-stopped",
            Self::Retiring => "old-vm-retiring",
            Self::Renaming => "old-vm-renaming",
        };
        format!("{}/{name}", context.record.directory)
    }

    /// What it holds; `None`: there is none.
    pub(super) fn read(self, context: &Context) -> Result<Option<OldVmRecordV1>, Failure> {
        let (host, path) = (&context.destination, self.path(context));
        let Some(bytes) = host.read(&path, RECORD_BYTES_MAX)? else { return Ok(None) };
        OldVmRecordV1::decode(&bytes).map(Some).map_err(|error| {
            Failure::stop(None, format!("a record of the old VM in {path} on {}", host.name()), error.to_string())
        })
    }

    /// Writes it whole, durably. One that is there already goes first.
    pub(super) fn write(self, context: &Context, record: &OldVmRecordV1) -> Result<(), Failure> {
        let (host, path) = (&context.destination, self.path(context));
        let new = format!("{path}.new");
        let bytes = record.encode().map_err(|error| {
            Failure::suspend(format!("{path}: {error}"), "remove snapshots that are not needed, then resume")
        })?;
        for old in [&new, &path] {
            if let Some(stat) = host.stat(old)? {
                host.unlink(old, stat.inode)?;
            }
        }
        host.make_file(&new, 0o600, &bytes)?;
        host.sync(&new)?;
        host.rename(&new, &path)?;
        Ok(host.sync(&context.record.directory)?)
    }

    /// Takes it away. Durable once the record's directory is synced.
    pub(super) fn remove(self, context: &Context) -> Result<(), Failure> {
        let (host, path) = (&context.destination, self.path(context));
        for path in [format!("{path}.new"), path] {
            if let Some(stat) = host.stat(&path)? {
                host.unlink(&path, stat.inode)?;
            }
        }
        Ok(())
    }

    /// Makes what is seen survive a power cut.
    pub(super) fn settle(self, context: &Context) -> Result<(), Failure> {
        let path = self.path(context);
        if context.destination.stat(&path)?.is_some() {
            context.destination.sync(&path)?;
        }
        Ok(context.destination.sync(&context.record.directory)?)
    }
}

/// The old VM of a plan that has one.
pub(super) fn replaced(plan: &PlanV1) -> Result<&ReplacedV1, Failure> {
    plan.replaced.as_ref().ok_or_else(|| Failure::stop(None, "a plan with an old VM", "one without: not consistent"))
}

/// What its files look like now.
pub(super) fn stamps(context: &Context, old: &ReplacedV1) -> Result<Vec<Option<FileStampV1>>, Failure> {
    let stamp = |path: &str| -> Result<_, Failure> {
        let stat = context.destination.stat(path)?;
        Ok(stat.map(|stat| FileStampV1 { inode: stat.inode, size: stat.size, mtime_ns: stat.mtime_ns }))
    };
    old.files.iter().map(|file| stamp(&file.path)).collect()
}

/// Makes its files, as they are, survive a power cut.
pub(super) fn sync_files(context: &Context, old: &ReplacedV1) -> Result<(), Failure> {
    for file in &old.files {
        if context.destination.stat(&file.path)?.is_some() {
            context.destination.sync(&file.path)?;
        }
    }
    Ok(())
}

/// What its files looked like when it was off.
pub(super) fn stamps_when_stopped(context: &Context) -> Result<Option<Vec<Option<FileStampV1>>>, Failure> {
    Ok(match Kept::Stopped.read(context)? {
        Some(OldVmRecordV1::Stopped { stamps }) => Some(stamps),
        _ => None,
    })
}

/// Takes the image locks on its disks: `false` when somebody writes to one of them.
pub(super) fn lock_images(context: &Context, old: &ReplacedV1) -> Result<bool, Failure> {
    for file in old.files.iter().filter(|file| file.role.is_locked_by_qemu()) {
        match context.destination.lock_image(&file.path) {
            Err(fault) if fault.kind == FaultKind::InUse => return Ok(false),
            // Gone: then there is nothing to keep still.
            Err(fault) if fault.kind == FaultKind::NotFound => {}
            locked => drop(locked?),
        }
    }
    Ok(true)
}

/// Lets go of them.
pub(super) fn unlock_images(context: &Context, old: &ReplacedV1) -> Result<(), Failure> {
    for file in old.files.iter().filter(|file| file.role.is_locked_by_qemu()) {
        context.destination.unlock_image(&file.path)?;
    }
    Ok(())
}

/// Stops it, as allowed. Off when it returns.
pub(super) fn stop(context: &mut Context, old: &ReplacedV1, mode: StopModeV1) -> Result<(), Failure> {
    let (host, name) = (context.destination.clone(), context.plan.request.new_name.clone());
    match mode {
        StopModeV1::Shutdown => {
            host.shut_down(old.uuid)?;
            if !is_off_within(context, old.uuid, SHUTDOWN_WAIT)? {
                let warning = format!(
                    "{name} on {} did not shut down within {} seconds: it is switched off",
                    host.name(),
                    SHUTDOWN_WAIT.as_secs()
                );
                context.recorder.observer.warning(&warning);
                host.destroy(old.uuid)?;
            }
        }
        StopModeV1::Save => {
            remove_saved(context, old)?;
            host.save(old.uuid, &old.saved_path)?;
        }
        StopModeV1::Destroy => host.destroy(old.uuid)?,
        StopModeV1::Never => {
            return Err(Failure::turn_back(
                format!("{name} on {} is running, and --stop never forbids to stop it", host.name()),
                "shut it down, or allow it with --stop, then clone again",
            ));
        }
    }
    if is_off_within(context, old.uuid, LOOK_INTERVAL)? {
        return Ok(());
    }
    Err(Failure::suspend(
        format!("{name} on {} was stopped and still runs", host.name()),
        "see what it does there, then resume",
    ))
}

/// What libvirt was asked for before may still be under way: a guest may be shutting down, a memory being saved.
pub(super) fn wait_out(context: &Context, old: &ReplacedV1) -> Result<(), Failure> {
    match old.stop {
        StopModeV1::Shutdown => drop(is_off_within(context, old.uuid, SHUTDOWN_WAIT)?),
        StopModeV1::Save => wait_while_saving(context, old.uuid)?,
        StopModeV1::Destroy | StopModeV1::Never => {}
    }
    Ok(())
}

/// Waits until nobody saves its memory any more.
pub(super) fn wait_while_saving(context: &Context, uuid: DomainUuid) -> Result<(), Failure> {
    let mut waited = Duration::ZERO;
    while context.destination.domain(uuid)?.is_some_and(|domain| domain.saving) {
        if waited >= SAVE_WAIT {
            return Err(Failure::suspend(
                format!("the memory of domain {uuid} on {} is still being saved", context.destination.name()),
                "try again once that is through; `virsh domjobinfo` shows how far it is",
            ));
        }
        context.world.wait(LOOK_INTERVAL)?;
        waited += LOOK_INTERVAL;
    }
    Ok(())
}

fn is_off_within(context: &Context, uuid: DomainUuid, bound: Duration) -> Result<bool, Failure> {
    let mut waited = Duration::ZERO;
    loop {
        if context.destination.domain(uuid)?.is_none_or(|domain| is_off(&domain)) {
            return Ok(true);
        }
        if waited >= bound {
            return Ok(false);
        }
        context.world.wait(LOOK_INTERVAL)?;
        waited += LOOK_INTERVAL;
    }
}

pub(super) fn is_off(domain: &DomainFacts) -> bool {
    domain.brief.state == DomainState::ShutOff
}

/// What keeps libvirt from renaming it.
pub(super) fn unrenamable(domain: &DomainFacts) -> Option<&'static str> {
    match domain {
        DomainFacts { managed_save: true, .. } => Some("a saved memory state"),
        DomainFacts { checkpoints: 1.., .. } => Some("checkpoints"),
        _ => None,
    }
}

/// Takes the saved memory away. Durable once its directory is synced.
pub(super) fn remove_saved(context: &Context, old: &ReplacedV1) -> Result<(), Failure> {
    let host = &context.destination;
    if let Some(stat) = host.stat(&old.saved_path)? {
        host.unlink(&old.saved_path, stat.inode)?;
    }
    Ok(())
}

/// The definition's file of a name.
pub fn definition_file(name: &str) -> String {
    format!("{LIBVIRT_DEFINITIONS}/{name}.xml")
}

/// The link by which the domain of a name starts with its host.
pub fn autostart_link(name: &str) -> String {
    format!("{LIBVIRT_AUTOSTART}/{name}.xml")
}

/// A definition under another name.
pub(super) fn named(definition: &str, name: &str) -> Result<String, Failure> {
    let read = Definition::parse(definition).map_err(|error| unusable(&error))?;
    let changes = Rewrite { name: Some(name.to_owned()), ..Rewrite::default() };
    rewrite(&read, &changes).map_err(|error| unusable(&error))
}

/// Is there a file of this name that defines this domain? A rename that a crash tore leaves both names.
pub(super) fn is_stale(host: &dyn Host, name: &str, uuid: DomainUuid) -> Result<bool, Failure> {
    for path in [definition_file(name), torn_definition(name)] {
        if let Some(bytes) = host.read(&path, RECORD_BYTES_MAX)?
            && Definition::parse(&String::from_utf8_lossy(&bytes)).is_ok_and(|there| there.uuid == uuid)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Takes away what libvirt left of a domain under a name that it does not have any more.
pub(super) fn remove_stale(host: &dyn Host, name: &str, uuid: DomainUuid) -> Result<(), Failure> {
    for path in [definition_file(name), torn_definition(name)] {
        if let Some(bytes) = host.read(&path, RECORD_BYTES_MAX)?
            && Definition::parse(&String::from_utf8_lossy(&bytes)).is_ok_and(|there| there.uuid == uuid)
            && let Some(stat) = host.stat(&path)?
        {
            host.unlink(&path, stat.inode)?;
        }
    }
    Ok(())
}

/// What of the clone is not there any more.
pub(super) fn missing_of_clone(context: &Context) -> Result<Option<String>, Failure> {
    if our_clone(context)?.is_none() {
        return Ok(Some("the clone".to_owned()));
    }
    if let Some(missing) = missing_image(context)? {
        return Ok(Some(missing));
    }
    for base in &context.plan.bases {
        if let Some(broken) = broken_base(context, base)? {
            return Ok(Some(broken));
        }
    }
    Ok(None)
}

/// An image of the clone that is not there any more.
pub(super) fn missing_image(context: &Context) -> Result<Option<String>, Failure> {
    // Where a filesystem is not mounted nothing is missing.
    for directory in &context.plan.directories {
        must_be_in_place(context.destination.as_ref(), directory)?;
    }
    for image in &context.plan.images {
        let staged = context.destination.stat(&image.staging_path)?;
        let published = context.destination.stat(&image.final_path)?;
        let is_ours = match (staged, &published) {
            (Some(staged), Some(published)) => staged.inode == published.inode,
            // The staging names go only after this.
            (None, Some(_)) => true,
            (_, None) => false,
        };
        if !is_ours {
            return Ok(Some(image.final_path.clone()));
        }
    }
    Ok(None)
}
