//! One copy of a transaction's chain of frames, as it was found, and what two copies mean together.
//! Pure: it decides, and neither reads nor writes. A frame whose hash is right is never given up here.

use journal_format::frame::FRAME_HASH_BYTES;
use journal_format::{ChainEnd, Envelope, Frame, FrameError, FrameHash, TxnId};

/// A frame that was found whole and in its place, with its bytes.
#[derive(Debug, Clone)]
pub struct FoundFrame {
    /// The frame.
    pub frame: Frame,
    /// The bytes that were decoded.
    pub raw: Vec<u8>,
}

/// One copy of a chain: what of it is whole, and what was found behind that.
#[derive(Debug, Clone)]
pub struct FoundChain {
    /// The frames that are whole, from the first one on without a gap.
    pub frames: Vec<FoundFrame>,
    /// Where the next frame belongs.
    pub end: ChainEnd,
    /// Bytes of all whole frames.
    pub whole_bytes: u64,
    /// Why it ends there, if something follows that is no frame in its place.
    pub fault: Option<ChainFault>,
}

/// Why a chain ends before its copy does.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// What is there is not the next frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The next frame is missing, and later ones are there.
    #[error("missing")]
    Missing,
}

/// What follows the whole frames of a copy.
#[derive(Debug, Clone)]
pub struct ChainFault {
    /// Why it is not the next frame.
    pub error: ChainError,
    /// How many bytes follow.
    pub bytes: u64,
    /// It looks like a write that a crash cut off: it ends too early, or in zeros.
    pub torn: bool,
    /// Frames of this transaction there and behind it whose hash is right: their numbers and hashes.
    pub later: Vec<(u64, FrameHash)>,
}

impl FoundChain {
    /// A copy that has nothing.
    pub fn empty(txn: TxnId) -> Self {
        Self { frames: Vec::new(), end: ChainEnd::start(txn), whole_bytes: 0, fault: None }
    }

    /// Reads frames that lie one behind the other.
    pub fn read(txn: TxnId, bytes: &[u8]) -> Self {
        let mut chain = Self::empty(txn);
        let mut rest = bytes;
        while !rest.is_empty() {
            match chain.end.decode(rest) {
                Ok((frame, end)) => {
                    let (raw, behind) = rest.split_at(frame.bytes);
                    chain.push(FoundFrame { frame, raw: raw.to_vec() }, end);
                    rest = behind;
                }
                Err(error) => {
                    chain.fault = Some(ChainFault {
                        torn: matches!(error, FrameError::Short { .. })
                            || rest.iter().rev().take(FRAME_HASH_BYTES).all(|byte| *byte == 0),
                        error: error.into(),
                        bytes: rest.len() as u64,
                        later: envelopes(txn, rest),
                    });
                    break;
                }
            }
        }
        chain
    }

    /// Puts the next frame behind the others.
    pub(super) fn push(&mut self, found: FoundFrame, end: ChainEnd) {
        self.whole_bytes += found.raw.len() as u64;
        self.frames.push(found);
        self.end = end;
    }

    /// How many frames are whole.
    pub fn len(&self) -> u64 {
        self.end.sequence
    }

    /// Whether no frame is whole.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    fn hash_at(&self, sequence: u64) -> Option<FrameHash> {
        self.frames.get(usize::try_from(sequence).ok()?).map(|found| found.frame.hash)
    }
}

/// Whole frames of a transaction anywhere in these bytes.
fn envelopes(txn: TxnId, bytes: &[u8]) -> Vec<(u64, FrameHash)> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        match Envelope::read(&bytes[at..]) {
            Ok(envelope) => {
                if envelope.txn == txn {
                    found.push((envelope.sequence, envelope.hash));
                }
                at += envelope.bytes;
            }
            Err(_) => at += 1,
        }
    }
    found
}

/// Something that opening a journal put right, or dropped. Told to the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repair {
    /// Bytes at the end of `events.log` were removed: an append that a crash cut off and that was never acknowledged, or
    /// what else was there and is no record of its own.
    TailCut {
        /// The number that a record there would have had.
        sequence: u64,
        /// Bytes that were cut.
        bytes: u64,
    },
    /// `events.log` lacked frames, or had damaged ones; they were taken from the second copy.
    LogRestored {
        /// The first of them.
        from: u64,
        /// How many.
        frames: u64,
    },
    /// The second copy lacked frames; they were taken from `events.log`.
    StoreCompleted {
        /// The first of them.
        from: u64,
        /// How many.
        frames: u64,
    },
    /// The second copy could not be used and was made anew from `events.log`; the ledger is empty.
    StoreRebuilt {
        /// What was wrong with it.
        why: String,
    },
    /// A disk's ledger was not whole and was emptied.
    LedgerDropped {
        /// The disk's number in the plan.
        disk: u32,
    },
    /// The ledgers were those of an earlier time and were emptied.
    LedgersStale,
    /// An unfinished snapshot of the second copy was left out.
    TornSnapshot,
    /// The disk was full; the space kept for that was given back.
    BallastFreed,
}

impl std::fmt::Display for Repair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TailCut { sequence, bytes } => {
                write!(
                    f,
                    "events.log: {bytes} bytes cut off in the place of record {sequence}: no record that was acknowledged"
                )
            }
            Self::LogRestored { from, frames } => {
                write!(f, "events.log: {frames} record(s) from {from} on restored from the second copy")
            }
            Self::StoreCompleted { from, frames } => {
                write!(f, "second copy: {frames} record(s) from {from} on completed from events.log")
            }
            Self::StoreRebuilt { why } => write!(
                f,
                "second copy made anew from events.log ({why}); the ledger is lost, so what was transferred is hashed again"
            ),
            Self::LedgerDropped { disk } => {
                write!(f, "ledger of disk {disk} was not whole; what was transferred of it is hashed again")
            }
            Self::LedgersStale => {
                f.write_str("the ledger had lost writes and was emptied; what was transferred is hashed again")
            }
            Self::TornSnapshot => f.write_str("second copy: an unfinished snapshot was left out"),
            Self::BallastFreed => {
                f.write_str("the disk of the journal is full; the space kept for that was given back")
            }
        }
    }
}

/// What is to be done so that both copies hold the same frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreement {
    /// How many frames there are in all.
    pub frames: u64,
    /// The copy that has them all.
    pub longest: CopyName,
    /// The second copy must be made anew.
    pub rebuild: bool,
    /// What is to be told.
    pub repairs: Vec<Repair>,
}

/// One of the two copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyName {
    /// `events.log`.
    Log,
    /// The sled store.
    Store,
}

/// Why two copies cannot be brought together. Nothing may be written then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Disagreement {
    /// Damage that the second copy does not mend.
    #[error("{0}")]
    Damaged(String),
    /// A newer program wrote it.
    #[error("{0}")]
    Newer(String),
}

/// Decides what two copies mean together. `store` is an error text where the second copy could not be read at all.
pub fn agree(log: &FoundChain, store: Result<&FoundChain, &str>) -> Result<Agreement, Disagreement> {
    let damaged = |what: String| Err(Disagreement::Damaged(what));
    for (name, chain) in [("events.log", Some(log)), ("second copy", store.ok())] {
        if let Some(ChainFault { error: ChainError::Frame(FrameError::Newer { what }), .. }) =
            chain.and_then(|c| c.fault.as_ref())
        {
            return Err(Disagreement::Newer(format!("{name}: {what}")));
        }
    }
    let store_frames = store.map_or(0, FoundChain::len);
    let frames = log.len().max(store_frames);
    if frames == 0 {
        return damaged("no record is whole in either copy".to_owned());
    }
    if let Some(last) = log.len().min(store_frames).checked_sub(1)
        && log.hash_at(last) != store.ok().and_then(|store| store.hash_at(last))
    {
        return damaged(format!("the copies tell two histories by record {last}; both are kept"));
    }
    let longest = if log.len() >= store_frames { CopyName::Log } else { CopyName::Store };
    let full = if longest == CopyName::Log { log } else { store.unwrap_or(log) };
    let mut repairs = Vec::new();

    if let Some(fault) = &log.fault {
        covered("events.log", log, fault, full)?;
        if store_frames <= log.len() {
            // Nobody has this frame. It was never acknowledged, if the second copy can be trusted to say so.
            if !(fault.torn || store.is_ok_and(|store| store.fault.is_none())) {
                return damaged(format!("events.log: record {}: {}; no second copy has it", log.len(), fault.error));
            }
            repairs.push(Repair::TailCut { sequence: log.len(), bytes: fault.bytes });
        }
    }
    if store_frames > log.len() {
        repairs.push(Repair::LogRestored { from: log.len(), frames: store_frames - log.len() });
    }

    let mut rebuild = false;
    match store {
        Err(why) => {
            rebuild = true;
            repairs.push(Repair::StoreRebuilt { why: why.to_owned() });
        }
        Ok(store) => {
            if let Some(fault) = &store.fault {
                covered("second copy", store, fault, full)?;
                rebuild = true;
                repairs.push(Repair::StoreRebuilt { why: format!("record {}: {}", store.len(), fault.error) });
            } else if store.len() < log.len() {
                repairs.push(Repair::StoreCompleted { from: store.len(), frames: log.len() - store.len() });
            }
        }
    }
    Ok(Agreement { frames, longest, rebuild, repairs })
}

/// Checks that whatever is whole at a fault and behind it is also in the full copy, each at its own number: then it is
/// only out of place here. What is whole and nowhere else is another history, or what is left of this one.
fn covered(name: &str, chain: &FoundChain, fault: &ChainFault, full: &FoundChain) -> Result<(), Disagreement> {
    let at = chain.len();
    let error = &fault.error;
    if let ChainError::Frame(FrameError::WrongTxn { .. }) = error {
        return Err(Disagreement::Damaged(format!("{name}: record {at}: {error}; both copies are kept")));
    }
    let Some((sequence, _)) = fault.later.iter().find(|(sequence, hash)| full.hash_at(*sequence) != Some(*hash)) else {
        return Ok(());
    };
    let place = if *sequence == at { "in its place" } else { "behind it" };
    Err(Disagreement::Damaged(format!(
        "{name}: record {at}: {error}; record {sequence} {place} is whole and in no other copy; both copies are kept"
    )))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use journal_format::{Epoch, EventV1, RecordV1, StepRef, UnixMillis};

    use super::*;

    const TXN: TxnId = TxnId([7; 16]);

    fn frames(count: u32) -> Vec<Vec<u8>> {
        let mut end = ChainEnd::start(TXN);
        (0..count)
            .map(|number| {
                let event = EventV1::Started { step: StepRef::Forward(number) };
                let record = RecordV1 { at: UnixMillis(u64::from(number)), epoch: Epoch(1), event };
                let (frame, behind) = end.encode(&record).unwrap();
                end = behind;
                frame
            })
            .collect()
    }

    fn read(count: u32) -> FoundChain {
        FoundChain::read(TXN, &frames(count).concat())
    }

    #[test]
    fn every_flipped_bit_of_a_log_is_repaired_from_the_store() {
        let log = frames(4).concat();
        let frame_bytes = log.len() / 4;
        for bit in 0..log.len() * 8 {
            let mut damaged = log.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let number = (bit / 8 / frame_bytes) as u64;
            let agreement = agree(&FoundChain::read(TXN, &damaged), Ok(&read(4))).unwrap();
            assert_eq!(agreement.repairs, [Repair::LogRestored { from: number, frames: 4 - number }], "bit {bit}");
            assert_eq!((agreement.frames, agreement.longest, agreement.rebuild), (4, CopyName::Store, false));
        }
    }

    #[test]
    fn every_flipped_bit_of_a_frame_that_no_copy_has_is_cut() {
        let log = frames(4).concat();
        let frame_bytes = log.len() / 4;
        for bit in 3 * frame_bytes * 8..log.len() * 8 {
            let mut damaged = log.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let agreement = agree(&FoundChain::read(TXN, &damaged), Ok(&read(3))).unwrap();
            assert_eq!(agreement.repairs, [Repair::TailCut { sequence: 3, bytes: frame_bytes as u64 }], "bit {bit}");
        }
    }

    #[test]
    fn every_flipped_bit_before_a_frame_that_no_copy_has_is_refused() {
        let log = frames(4).concat();
        for bit in 0..log.len() / 4 * 3 * 8 {
            let mut damaged = log.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            for store in [0, 1, 2, 3] {
                let agreement = agree(&FoundChain::read(TXN, &damaged), Ok(&read(store)));
                assert!(matches!(agreement, Err(Disagreement::Damaged(_))), "bit {bit}, store of {store}");
            }
        }
    }

    #[test]
    fn every_cut_is_repaired_from_the_longer_copy() {
        let log = frames(4).concat();
        for store in 1..=4 {
            for cut in 0..=log.len() {
                let found = FoundChain::read(TXN, &log[..cut]);
                let agreement = agree(&found, Ok(&read(store))).unwrap();
                assert_eq!(agreement.frames, found.len().max(u64::from(store)), "cut at {cut}, store of {store}");
                assert_eq!(agreement.repairs.is_empty(), found.fault.is_none() && found.len() == u64::from(store));
            }
        }
    }
}
