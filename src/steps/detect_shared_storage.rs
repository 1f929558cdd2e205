//! A check: the source's host looks for the nonces. What it sees lies on storage that both hosts share.

use journal_format::OutcomeV1;

use super::create_staging::nonce_path;
use super::source::paths_read;
use super::{Applied, Context, Probe, Step};
use crate::failure::Failure;
use crate::history::Last;

pub(super) struct DetectSharedStorage;

impl Step for DetectSharedStorage {
    fn expected(&self, _context: &Context) -> String {
        "the answer whether the hosts share storage".to_owned()
    }

    fn probe(&self, context: &Context) -> Result<Probe, Failure> {
        let history = context.history_of(journal_format::StepV1::DetectSharedStorage);
        Ok(match history {
            Some(step) if step.last == Last::Done => Probe::Ours(step.outcome.clone().unwrap_or(OutcomeV1::Nothing)),
            _ => Probe::Absent,
        })
    }

    fn apply(&self, context: &mut Context) -> Result<Applied, Failure> {
        let source = context.source()?;
        let mut shared = Vec::new();
        for (index, dir) in (0u32..).zip(&context.plan.directories) {
            // Mounted elsewhere over there, the same directory has another path: look beside each source image too.
            let beside = context.plan.images.iter().flat_map(paths_read).filter_map(|path| {
                let nonce = nonce_path(dir);
                let name = nonce.strip_prefix(&dir.path)?.to_owned();
                Some(format!("{}{name}", super::host_record::parent_of(path)))
            });
            for path in std::iter::once(nonce_path(dir)).chain(beside) {
                if source.read(&path, 64)?.is_some_and(|nonce| nonce == dir.nonce) {
                    shared.push(index);
                    break;
                }
            }
        }
        Ok(Applied::Done(OutcomeV1::SharedStorage { directories: shared }))
    }

    fn undo(&self, _context: &mut Context) -> Result<(), Failure> {
        Ok(())
    }
}
