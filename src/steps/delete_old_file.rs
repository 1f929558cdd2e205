//! One file of the old VM is deleted, once the clone has its name. Never one that anything else reaches, that the source's host
//! sees, that somebody wrote to since or uses now, or of an old VM that this transaction did not undefine itself.

use journal_format::{FileStampV1, ImageRoleV1, OldFileFateV1, OldFileV1, OldVmRecordV1, OutcomeV1, StepV1};

use super::host_record::parent_of;
use super::old_vm::{Kept, missing_of_clone, replaced, stamps_when_stopped};
use super::{CleanUpStep, Context, Probe};
use crate::failure::Failure;
use crate::reach::Reached;
use crate::world::FaultKind;

pub(super) struct DeleteOldFile {
    pub(super) file: u32,
}

/// The directories of a TPM's state that go with it when they are empty: `tpm2/`, then the one named by the UUID.
pub fn tpm_directories(file: &str) -> [String; 2] {
    let inner = parent_of(file);
    [inner.to_owned(), parent_of(inner).to_owned()]
}

impl CleanUpStep for DeleteOldFile {
    fn expected(&self, context: &Context) -> String {
        self.file(context).map_or_else(|_| String::new(), |file| format!("no {}", file.path))
    }

    fn probe(&self, context: &Context) -> Result<Probe, Failure> {
        let file = self.file(context)?;
        if context.destination.stat(&file.path)?.is_none() {
            return Ok(Probe::Ours(OutcomeV1::Nothing));
        }
        Ok(match self.why_it_stays(context, file)? {
            Some(why) => Probe::Ours(OutcomeV1::Left { why: format!("{} is left: {why}", file.path) }),
            None => Probe::Absent,
        })
    }

    fn apply(&self, context: &mut Context) -> Result<OutcomeV1, Failure> {
        let (host, file) = (context.destination.clone(), self.file(context)?);
        let inode = self.when_stopped(context)?.map_or(file.stamp.inode, |stamp| stamp.inode);
        match host.unlink_unused(&file.path, inode) {
            Err(fault) if fault.kind == FaultKind::InUse => {
                return Ok(OutcomeV1::Left { why: format!("{} is left: somebody uses it ({fault})", file.path) });
            }
            removed => removed?,
        }
        if file.role == ImageRoleV1::Tpm {
            for directory in tpm_directories(&file.path) {
                match host.remove_dir(&directory) {
                    Err(fault) if fault.kind == FaultKind::NotEmpty => break,
                    removed => removed?,
                }
            }
        }
        Ok(OutcomeV1::Nothing)
    }

    fn settle(&self, context: &Context) -> Result<(), Failure> {
        let mut directory = parent_of(&self.file(context)?.path);
        while context.destination.stat(directory)?.is_none() && directory != "/" {
            directory = parent_of(directory);
        }
        Ok(context.destination.sync(directory)?)
    }
}

impl DeleteOldFile {
    fn file<'c>(&self, context: &'c Context) -> Result<&'c OldFileV1, Failure> {
        let file = replaced(&context.plan)?.files.get(self.file as usize);
        file.ok_or_else(|| Failure::stop(None, "a plan with this file of the old VM", "none: not consistent"))
    }

    /// What it looked like when the old VM was off.
    fn when_stopped(&self, context: &Context) -> Result<Option<FileStampV1>, Failure> {
        let stamps = stamps_when_stopped(context)?;
        Ok(stamps.and_then(|stamps| stamps.get(self.file as usize).copied().flatten()))
    }

    fn why_it_stays(&self, context: &Context, file: &OldFileV1) -> Result<Option<String>, Failure> {
        let host = context.destination.as_ref();
        let OldFileFateV1::Deleted { directory } = &file.fate else {
            return Ok(Some("it was not to be deleted".to_owned()));
        };
        if !matches!(Kept::Retiring.read(context)?, Some(OldVmRecordV1::Retiring { kept: false, .. })) {
            return Ok(Some("this transaction did not undefine the old VM".to_owned()));
        }
        let now = host.stat(&file.path)?;
        let untouched = self.when_stopped(context)?.zip(now).is_some_and(|(stopped, now)| {
            // A TPM writes its state as a new file each time; what lies in its own directory is its own.
            let planned = file.role == ImageRoleV1::Tpm || stopped.inode == file.stamp.inode;
            planned && (stopped.inode, stopped.size, stopped.mtime_ns) == (now.inode, now.size, now.mtime_ns)
        });
        if !untouched {
            return Ok(Some("it is not what it was when the old VM was stopped".to_owned()));
        }
        if let Some(above) = stands_on(context, file)? {
            return Ok(Some(format!("{above} is left, and stands on it")));
        }
        if let Some(missing) = missing_of_clone(context)? {
            return Ok(Some(format!("{missing} was removed by somebody")));
        }
        if let Some(why) = seen_by_source(context, *directory) {
            return Ok(Some(why));
        }
        Ok(Reached::on(host, None)?.by(&file.path)?)
    }
}

/// An image of the old VM above this one that is still there. They are deleted from the top.
fn stands_on(context: &Context, file: &OldFileV1) -> Result<Option<String>, Failure> {
    for above in replaced(&context.plan)?.files.iter().filter(|other| file.role.is_below(&other.role)) {
        if context.destination.stat(&above.path)?.is_some() {
            return Ok(Some(above.path.clone()));
        }
    }
    Ok(None)
}

/// On the source's own host every file is seen, and what its VMs reach is known; elsewhere only the nonces tell.
fn seen_by_source(context: &Context, directory: u32) -> Option<String> {
    let request = &context.plan.request;
    if request.source.machine_id == request.destination.machine_id {
        return None;
    }
    match context.outcome_of(StepV1::DetectSharedStorage) {
        Some(OutcomeV1::SharedStorage { directories }) if !directories.contains(&directory) => None,
        Some(OutcomeV1::SharedStorage { .. }) => Some("the source's host sees it too".to_owned()),
        _ => Some("whether the source's host sees it too is not known any more".to_owned()),
    }
}
