//! `journal verify` and `journal export`: both copies frame by frame, and what opening them would do; and the ledgers for `verify`. Writes
//! nothing in the journal: sled writes when it opens, so a copy of the store is opened in a temporary directory.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use journal_format::{ChunkState, FrameHash, TxnId};
use nix::unistd::mkdtemp;

use super::chain::{Disagreement, FoundChain, Repair, agree};
use super::disk::{self, failed};
use super::open::{CopiedStore, StoreDirectories};
use super::{Holder, JournalError, StateDir, TxnLock, log};

/// What is in a journal.
#[derive(Debug, Clone)]
pub struct VerifyReport {
    /// The transaction.
    pub txn: TxnId,
    /// Who drives it now. Then the second copy is not read: it changes under the reader's eyes.
    pub holder: Option<Holder>,
    /// `events.log`, then the second copy if it was read.
    pub copies: Vec<CopyReport>,
    /// What they mean together.
    pub verdict: Verdict,
}

/// One copy.
#[derive(Debug, Clone)]
pub struct CopyReport {
    /// Name of its file or directory.
    pub name: String,
    /// Its whole frames, in order.
    pub frames: Vec<FrameReport>,
    /// Why it ends there, if something else follows or it cannot be read.
    pub fault: Option<String>,
}

/// One whole frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameReport {
    /// Its number, from 0.
    pub sequence: u64,
    /// Bytes it takes.
    pub bytes: u64,
    /// Its hash.
    pub hash: FrameHash,
}

/// What opening the journal would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Open it.
    Sound,
    /// Put this right and open it.
    Repairable(Vec<Repair>),
    /// Refuse it.
    Damaged(String),
    /// Refuse it: a newer program wrote it.
    Newer(String),
}

/// Reads both copies of a transaction's journal. Errors are those of reading; damage is in the report.
pub fn verify(state: &StateDir, txn: TxnId) -> Result<VerifyReport, JournalError> {
    let holder = TxnLock::holder(&state.txn_path(txn))?;
    read_copies(state, txn, holder)
}

/// The same for whoever holds its lock: nobody else changes the second copy.
pub(super) fn verify_held(state: &StateDir, txn: TxnId) -> Result<VerifyReport, JournalError> {
    read_copies(state, txn, None)
}

fn read_copies(state: &StateDir, txn: TxnId, holder: Option<Holder>) -> Result<VerifyReport, JournalError> {
    let directory = state.txn_path(txn);
    let log_chain = log::read(&directory, txn)?;
    let mut copies = vec![copy_report(log::LOG_NAME.to_owned(), &log_chain)];
    let counting = StoreDirectories::find(&directory)?.counting;
    let verdict = match (&holder, counting) {
        // What could be put right at its end is an append under way.
        (Some(_), _) => match judge(&log_chain, Err("not read"), Vec::new()) {
            Verdict::Repairable(_) => Verdict::Sound,
            verdict => verdict,
        },
        (None, None) => judge(&log_chain, Err("it is gone"), Vec::new()),
        (None, Some(name)) => {
            let scratch = Scratch::make()?;
            match CopiedStore::open(&directory.join(&name), &scratch.0.join(&name), txn) {
                Ok(store) => {
                    copies.push(copy_report(name, &store.chain));
                    judge(&log_chain, Ok(&store.chain), store.repairs)
                }
                Err(JournalError::Newer { what, .. }) => Verdict::Newer(what),
                Err(error) => {
                    let fault = error.to_string();
                    let verdict = judge(&log_chain, Err(&fault), Vec::new());
                    copies.push(CopyReport { name, frames: Vec::new(), fault: Some(fault) });
                    verdict
                }
            }
        }
    };
    Ok(VerifyReport { txn, holder, copies, verdict })
}

/// The ledger of one image: the chunks that are named in it.
pub type Ledger = BTreeMap<u64, ChunkState>;

/// The ledgers of a transaction's images, from a copy of the second copy of its journal: nothing is written, and nobody may
/// hold the transaction. Where it cannot be read they are empty, and it is said why.
pub fn ledgers(state: &StateDir, txn: TxnId, images: usize) -> Result<(Vec<Ledger>, Option<String>), JournalError> {
    let directory = state.txn_path(txn);
    if let Some(holder) = TxnLock::holder(&directory)? {
        return Err(holder.held(&directory));
    }
    let unread = |why: String| Ok((vec![Ledger::new(); images], Some(why)));
    let Some(name) = StoreDirectories::find(&directory)?.counting else { return unread("it is gone".to_owned()) };
    let scratch = Scratch::make()?;
    let copied = CopiedStore::open(&directory.join(&name), &scratch.0.join(&name), txn);
    let read = copied.and_then(|copied| (0u32..).take(images).map(|image| copied.store.chunks(image)).collect());
    match read {
        Ok(ledgers) => Ok((ledgers, None)),
        Err(error @ JournalError::Newer { .. }) => Err(error),
        Err(error) => unread(error.to_string()),
    }
}

/// Writes the whole frames of `events.log` to `out`: the same bytes, so that what was exported is itself a log.
/// Refuses a log whose end would be left out, unless it is an append under way.
pub fn export(state: &StateDir, txn: TxnId, out: &mut dyn Write) -> Result<u64, JournalError> {
    // The reader's rules decide what may be left out.
    super::read(state, txn)?;
    let chain = log::read(&state.txn_path(txn), txn)?;
    let to = Path::new("export");
    for found in &chain.frames {
        out.write_all(&found.raw).map_err(failed(to, "write"))?;
    }
    out.flush().map_err(failed(to, "write"))?;
    Ok(chain.len())
}

/// What opening would say. `of_store`: what the second copy needs by itself, for as long as it is not made anew.
fn judge(log: &FoundChain, store: Result<&FoundChain, &str>, of_store: Vec<Repair>) -> Verdict {
    match agree(log, store) {
        Err(Disagreement::Damaged(what)) => Verdict::Damaged(what),
        Err(Disagreement::Newer(what)) => Verdict::Newer(what),
        Ok(agreement) => {
            let mut repairs = agreement.repairs;
            if !agreement.rebuild {
                repairs.extend(of_store);
            }
            if repairs.is_empty() { Verdict::Sound } else { Verdict::Repairable(repairs) }
        }
    }
}

fn copy_report(name: String, chain: &FoundChain) -> CopyReport {
    let frames = chain.frames.iter().map(|found| FrameReport {
        sequence: found.frame.sequence,
        bytes: found.raw.len() as u64,
        hash: found.frame.hash,
    });
    let fault = chain.fault.as_ref().map(|fault| format!("record {}: {}", chain.len(), fault.error));
    CopyReport { name, frames: frames.collect(), fault }
}

/// A private temporary directory that goes with this value.
struct Scratch(PathBuf);

impl Scratch {
    fn make() -> Result<Self, JournalError> {
        let template = std::env::temp_dir().join("kvm-clone-verify-XXXXXX");
        mkdtemp(&template).map(Self).map_err(|errno| failed(&template, "make directory")(errno.into()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = disk::remove_dir_all(&self.0);
    }
}
