//! The old VM's part of a plan: its names, what becomes of each of its files, and the directories that take a nonce for it.

use journal_format::{CleanUpStepV1, DirectoryV1, OldFileFateV1, OldFileV1, ReplacedV1, TxnId};

use super::{Circumstances, directory_number, number};
use crate::request::Request;
use crate::steps::host_record::HOST_ROOT;
use crate::survey::Survey;
use crate::survey::old_vm::OldFile;

/// Where a saved memory is, in its directory.
const SAVED_NAME: &str = "old-vm.save";

/// Plans what becomes of the old VM; `None` where there is none. Directories that the clone does not use are added.
pub(super) fn replaced(
    request: &Request,
    survey: &Survey,
    txn: TxnId,
    directories: &mut Vec<DirectoryV1>,
    circumstances: &mut Circumstances<'_>,
) -> Option<ReplacedV1> {
    let old = survey.destination.old.as_ref()?;
    let mut files = Vec::new();
    for file in &old.files {
        let fate = match file.why_left(request) {
            Some(why) => OldFileFateV1::Left { why },
            None => OldFileFateV1::Deleted { directory: nonce_directory(file, txn, directories, circumstances) },
        };
        files.push(OldFileV1 { role: file.role.clone(), path: file.path.clone(), stamp: file.stamp, fate });
    }
    let staging = directories.first().map_or_else(|| format!("{HOST_ROOT}/{txn}"), |first| first.staging.clone());
    Some(ReplacedV1 {
        uuid: old.vm.brief.uuid,
        definition: old.vm.definition.clone(),
        running: old.vm.brief.state == crate::world::DomainState::Active,
        stop: request.stop,
        keep: request.keep_replaced,
        clone_name: survey.new_name.beside(txn),
        kept_name: survey.new_name.replaced(txn),
        saved_path: format!("{staging}/{SAVED_NAME}"),
        files,
    })
}

/// The directory beside a file whose nonce tells whether the source's host sees it; known or new.
fn nonce_directory(
    file: &OldFile,
    txn: TxnId,
    directories: &mut Vec<DirectoryV1>,
    circumstances: &mut Circumstances<'_>,
) -> u32 {
    let Some(facts) = &file.directory else { return u32::MAX };
    number(directory_number(directories, facts, txn, circumstances))
}

/// The clean-up of the old VM: what comes before the clone is finished, and what after.
pub(super) fn clean_up(replaced: Option<&ReplacedV1>) -> (Vec<CleanUpStepV1>, Vec<CleanUpStepV1>) {
    let Some(replaced) = replaced else { return (Vec::new(), Vec::new()) };
    let deleted = (0..).zip(&replaced.files).filter(|(_, file)| matches!(file.fate, OldFileFateV1::Deleted { .. }));
    let deleting = deleted.map(|(file, _)| CleanUpStepV1::DeleteOldFile { file }).collect();
    (vec![CleanUpStepV1::RetireOldVm, CleanUpStepV1::RenameClone], deleting)
}
