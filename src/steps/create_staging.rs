//! A staging directory `.kvm-clone/<txn>/` beside the final names, with its nonce file.

use journal_format::{DirectoryV1, OutcomeV1, StepV1};

use super::{Applied, Context, Probe, Step};
use crate::failure::Failure;
use crate::history::Last;
use crate::world::{Fault, FaultKind, FileKind, Host};

pub(super) struct CreateStaging {
    pub(super) directory: u32,
}

/// Another transaction's clean-up may remove the shared parent between our making it and our using it.
const PARENT_TRIES_MAX: u32 = 5;

impl Step for CreateStaging {
    fn expected(&self, context: &Context) -> String {
        context
            .directory(self.directory)
            .map_or_else(|_| String::new(), |dir| format!("the staging directory {}", dir.staging))
    }

    fn probe(&self, context: &Context) -> Result<Probe, Failure> {
        let (host, dir) = (&context.destination, context.directory(self.directory)?);
        let last = context.history_of(StepV1::CreateStaging { directory: self.directory }).map(|step| step.last);
        let begun = last.is_some_and(|last| last != Last::None);
        let Some(staging) = host.stat(&dir.staging)? else {
            // The shared parent alone is nobody's: whoever undoes or cleans up last removes it.
            return Ok(Probe::Absent);
        };
        Ok(match host.read(&nonce_path(dir), NONCE_BYTES_MAX)? {
            Some(nonce) if nonce == dir.nonce => Probe::Ours(OutcomeV1::Made { inode: staging.inode }),
            // The directory is made exclusively under a name that holds the whole transaction. Until its nonce is known to be
            // durable a power cut may leave anything of it, zeros too; then whatever is there is ours.
            Some(_) if begun && last != Some(Last::Done) => Probe::Partial,
            Some(nonce) if !dir.nonce.starts_with(&nonce) => {
                Probe::Foreign(format!("{} with another nonce", dir.staging))
            }
            Some(_) | None => Probe::Partial,
        })
    }

    fn apply(&self, context: &mut Context) -> Result<Applied, Failure> {
        let (host, dir) = (&context.destination, context.directory(self.directory)?);
        clear_nonce(host.as_ref(), dir)?;
        let made = match context.outcome_of(StepV1::CreateStaging { directory: self.directory }) {
            Some(OutcomeV1::Made { inode }) => host.stat(&dir.staging)?.filter(|stat| stat.inode == *inode),
            _ => None,
        };
        let inode = if let Some(made) = made {
            // Only its nonce was gone: our files are in it.
            made.inode
        } else {
            remove_emptied(host.as_ref(), dir)?;
            make_in_shared_parent(host.as_ref(), dir)?
        };
        host.make_file(&nonce_path(dir), 0o600, &dir.nonce)?;
        Ok(Applied::Done(OutcomeV1::Made { inode }))
    }

    fn settle(&self, context: &Context) -> Result<(), Failure> {
        let (host, dir) = (&context.destination, context.directory(self.directory)?);
        for path in [nonce_path(dir), dir.staging.clone(), parent(dir), dir.path.clone()] {
            host.sync(&path)?;
        }
        Ok(())
    }

    fn undo(&self, context: &mut Context) -> Result<(), Failure> {
        remove_staging(context.destination.as_ref(), context.directory(self.directory)?)
    }
}

const NONCE_BYTES_MAX: u64 = 64;

/// The nonce file of a directory's staging.
pub(super) fn nonce_path(dir: &DirectoryV1) -> String {
    format!("{}/nonce", dir.staging)
}

fn parent(dir: &DirectoryV1) -> String {
    format!("{}/.kvm-clone", dir.path)
}

/// Is the shared parent there, and does nobody use it?
pub(super) fn is_parent_unused(host: &dyn Host, dir: &DirectoryV1) -> Result<bool, Fault> {
    Ok(host.list(&parent(dir))?.is_some_and(|names| names.is_empty()))
}

/// Where its filesystem is not mounted another directory has its name, and says nothing of what is there.
pub fn must_be_in_place(host: &dyn Host, dir: &DirectoryV1) -> Result<(), Failure> {
    let found = match host.stat(&dir.path)? {
        Some(stat) if stat.inode == dir.inode => return Ok(()),
        Some(_) => "is another directory than the one that was planned",
        None => "is not there",
    };
    Err(Failure::suspend(
        format!("{} on {} {found}", dir.path, host.name()),
        "mount its filesystem, then try again; if it is gone for good, `kvm-clone abandon` closes the transaction",
    ))
}

/// Takes away a nonce that an earlier, broken-off apply left.
fn clear_nonce(host: &dyn Host, dir: &DirectoryV1) -> Result<(), Fault> {
    match host.stat(&nonce_path(dir))? {
        Some(stat) => host.unlink(&nonce_path(dir), stat.inode),
        None => Ok(()),
    }
}

fn make_in_shared_parent(host: &dyn Host, dir: &DirectoryV1) -> Result<journal_format::Inode, Failure> {
    let mut tries = 0;
    loop {
        match host.make_dir(&parent(dir), 0o711) {
            Ok(_) => {}
            Err(fault) if fault.kind == FaultKind::AlreadyExists => must_be_shared_parent(host, dir)?,
            Err(fault) => return Err(fault.into()),
        }
        tries += 1;
        match host.make_dir(&dir.staging, 0o700) {
            Err(fault) if fault.kind == FaultKind::NotFound && tries < PARENT_TRIES_MAX => {}
            made => return Ok(made?),
        }
    }
}

/// Root's own directory, that nobody else can put anything into or in the place of.
fn must_be_shared_parent(host: &dyn Host, dir: &DirectoryV1) -> Result<(), Failure> {
    const OTHERS_WRITE: u32 = 0o022;
    match host.stat(&parent(dir))? {
        Some(stat) if stat.kind == FileKind::Directory && stat.uid == 0 && stat.mode & OTHERS_WRITE == 0 => Ok(()),
        // Another transaction's clean-up removed it meanwhile.
        None => Ok(()),
        Some(_) => Err(Failure::turn_back(
            format!("{} on {} is not root's own directory", parent(dir), host.name()),
            "remove it, or choose another directory, then clone again",
        )),
    }
}

/// Removes the staging directory, in which nothing of ours is left.
fn remove_emptied(host: &dyn Host, dir: &DirectoryV1) -> Result<(), Failure> {
    match host.remove_dir(&dir.staging) {
        Err(fault) if fault.kind == FaultKind::NotEmpty => {
            let names = host.list(&dir.staging)?.unwrap_or_default().join(", ");
            Err(Failure::stop(
                None,
                format!("{} with nothing but our files", dir.staging),
                format!("files that this transaction did not make: {names}"),
            ))
        }
        removed => Ok(removed?),
    }
}

/// Removes the nonce and the staging directory, which must hold nothing else, and the parent if nobody else uses it.
pub(super) fn remove_staging(host: &dyn Host, dir: &DirectoryV1) -> Result<(), Failure> {
    if host.stat(&dir.staging)?.is_some() {
        clear_nonce(host, dir)?;
        remove_emptied(host, dir)?;
    }
    if host.stat(&parent(dir))?.is_some() {
        match host.sync(&parent(dir)) {
            // Another transaction's clean-up removed it meanwhile.
            Err(fault) if fault.kind == FaultKind::NotFound => {}
            synced => synced?,
        }
        match host.remove_dir(&parent(dir)) {
            // Without an owner lock there is no host record, and so nothing of ours: the parent is for others to remove.
            Err(fault) if matches!(fault.kind, FaultKind::NotEmpty | FaultKind::Fenced) => {}
            removed => removed?,
        }
    }
    match host.sync(&dir.path) {
        // Somebody removed the whole directory: nothing of ours can come back in it.
        Err(fault) if fault.kind == FaultKind::NotFound => Ok(()),
        synced => Ok(synced?),
    }
}
