//! One copy of a transaction's chain of frames, as it was found, and what two copies mean together.
//! Pure: it decides, and neither reads nor writes. A frame whose hash is right is never given up here.

use std::collections::BTreeMap;

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
    /// Frames of this transaction there and behind it whose hash is right.
    pub later: Vec<LaterFrame>,
    /// What lies behind the last frame that is whole.
    pub tail: Tail,
    /// The highest number under which the copy has anything at all; a log has no numbers outside of its frames.
    pub highest: Option<u64>,
}

/// A frame whose hash is right, found behind a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaterFrame {
    /// Its number.
    pub sequence: u64,
    /// Its hash.
    pub hash: FrameHash,
    /// Its bytes.
    pub raw: Vec<u8>,
}

/// What lies behind the last frame of a copy that is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// Nothing.
    None,
    /// What a crash leaves of a write that it cut off: it ends too early, or in zeros.
    Torn,
    /// Something else.
    Damaged,
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
                    let (later, behind) = later_frames(txn, rest);
                    let tail = Tail::of(&chain.end, behind);
                    chain.fault =
                        Some(ChainFault { error: error.into(), bytes: rest.len() as u64, later, tail, highest: None });
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
}

impl LaterFrame {
    /// The frame at the start of these bytes, if it is whole.
    pub(super) fn read(bytes: &[u8]) -> Option<(TxnId, Self)> {
        let envelope = Envelope::read(bytes).ok()?;
        let raw = bytes[..envelope.bytes].to_vec();
        Some((envelope.txn, Self { sequence: envelope.sequence, hash: envelope.hash, raw }))
    }
}

impl Tail {
    fn of(end: &ChainEnd, bytes: &[u8]) -> Self {
        if bytes.is_empty() {
            Self::None
        } else if matches!(end.decode(bytes), Err(FrameError::Short { .. }))
            || bytes.iter().rev().take(FRAME_HASH_BYTES).all(|byte| *byte == 0)
        {
            Self::Torn
        } else {
            Self::Damaged
        }
    }
}

/// Whole frames of a transaction anywhere in these bytes, and the bytes behind the last one.
fn later_frames(txn: TxnId, bytes: &[u8]) -> (Vec<LaterFrame>, &[u8]) {
    let (mut found, mut behind) = (Vec::new(), bytes);
    let mut at = 0;
    while at < bytes.len() {
        match LaterFrame::read(&bytes[at..]) {
            Some((owner, frame)) => {
                at += frame.raw.len();
                behind = &bytes[at..];
                found.extend((owner == txn).then_some(frame));
            }
            None => at += 1,
        }
    }
    (found, behind)
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
    /// `events.log` lacked frames, or had damaged or displaced ones; it was completed.
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
    /// An image's ledger was not whole and was emptied.
    LedgerDropped {
        /// The image's number in the plan.
        image: u32,
    },
    /// The ledgers were those of an earlier time and were emptied.
    LedgersStale,
    /// An unfinished snapshot of the second copy was left out.
    TornSnapshot,
    /// The disk was full; the space kept for that was given back.
    BallastFreed,
}

impl Repair {
    /// Is it no more than what a crash or a full disk leaves, with nothing that was acknowledged damaged?
    pub fn is_of_a_crash(&self) -> bool {
        match self {
            Self::TailCut { .. } | Self::StoreCompleted { .. } | Self::TornSnapshot | Self::BallastFreed => true,
            Self::LogRestored { .. } | Self::StoreRebuilt { .. } | Self::LedgerDropped { .. } | Self::LedgersStale => {
                false
            }
        }
    }
}

impl std::fmt::Display for Repair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TailCut { sequence, bytes } => {
                write!(
                    f,
                    "events.log: {bytes} bytes cut off in the place of record {sequence}: neither copy has a whole record there"
                )
            }
            Self::LogRestored { from, frames } => {
                write!(f, "events.log: {frames} record(s) from {from} on restored")
            }
            Self::StoreCompleted { from, frames } => {
                write!(f, "second copy: {frames} record(s) from {from} on completed from events.log")
            }
            Self::StoreRebuilt { why } => write!(
                f,
                "second copy made anew from events.log ({why}); the ledger is lost, so what was transferred is hashed again"
            ),
            Self::LedgerDropped { image } => {
                write!(f, "ledger of image {image} was not whole; what was transferred of it is hashed again")
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
#[derive(Debug, Clone)]
pub struct Agreement {
    /// All frames.
    pub full: FoundChain,
    /// The second copy must be made anew.
    pub rebuild: bool,
    /// What is to be told.
    pub repairs: Vec<Repair>,
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

/// Decides what two copies mean together: whatever is whole in either of them must come to one chain without a gap.
/// `store` is an error text where the second copy could not be read at all.
pub fn agree(log: &FoundChain, store: Result<&FoundChain, &str>) -> Result<Agreement, Disagreement> {
    let full = assemble(log, store.ok())?;
    let mut repairs = Vec::new();
    if full.len() > log.len() {
        repairs.push(Repair::LogRestored { from: log.len(), frames: full.len() - log.len() });
    }
    if let Some(fault) = &log.fault {
        let log_end = fault.later.iter().map(|frame| frame.sequence + 1).max().unwrap_or(0).max(log.len());
        if log_end == full.len() {
            // Nobody has what lies behind. It was never acknowledged, if the second copy can be trusted to say so.
            let is_trusted = store.is_ok_and(|store| store.fault.is_none());
            match fault.tail {
                Tail::Damaged if !is_trusted => {
                    let (at, error) = (log.len(), &fault.error);
                    return damaged(format!("events.log: record {at}: {error}; no second copy has it"));
                }
                _ if log.len() == full.len() => {
                    repairs.push(Repair::TailCut { sequence: log.len(), bytes: fault.bytes });
                }
                _ => {}
            }
        }
    }
    let mut rebuild = None;
    match store {
        Err(why) => rebuild = Some(why.to_owned()),
        Ok(FoundChain { fault: Some(fault), end, .. }) => {
            rebuild = Some(format!("record {}: {}", end.sequence, fault.error));
        }
        Ok(store) if store.len() < full.len() => {
            repairs.push(Repair::StoreCompleted { from: store.len(), frames: full.len() - store.len() });
        }
        Ok(_) => {}
    }
    let is_rebuilt = rebuild.is_some();
    repairs.extend(rebuild.map(|why| Repair::StoreRebuilt { why }));
    Ok(Agreement { full, rebuild: is_rebuilt, repairs })
}

fn damaged<T>(what: String) -> Result<T, Disagreement> {
    Err(Disagreement::Damaged(what))
}

/// Puts together what is whole in either copy, in its place or out of it.
fn assemble(log: &FoundChain, store: Option<&FoundChain>) -> Result<FoundChain, Disagreement> {
    let copies = [("events.log", Some(log)), ("second copy", store)];
    let mut whole: BTreeMap<u64, (FrameHash, &[u8])> = BTreeMap::new();
    for (name, chain) in copies.into_iter().filter_map(|(name, chain)| Some((name, chain?))) {
        match chain.fault.as_ref().map(|fault| &fault.error) {
            Some(ChainError::Frame(FrameError::Newer { what })) => {
                return Err(Disagreement::Newer(format!("{name}: {what}")));
            }
            Some(error @ ChainError::Frame(FrameError::WrongTxn { .. })) => {
                return damaged(format!("{name}: record {}: {error}; both copies are kept", chain.len()));
            }
            _ => {}
        }
        let in_place = chain.frames.iter().map(|found| (found.frame.sequence, found.frame.hash, &found.raw));
        let later = chain.fault.iter().flat_map(|fault| &fault.later);
        for (sequence, hash, raw) in in_place.chain(later.map(|frame| (frame.sequence, frame.hash, &frame.raw))) {
            if whole.insert(sequence, (hash, raw)).is_some_and(|(known, _)| known != hash) {
                return damaged(format!("the copies tell two histories by record {sequence}; both are kept"));
            }
        }
    }
    let mut full = FoundChain::empty(log.end.txn);
    for (sequence, (_, raw)) in whole {
        if sequence != full.len() {
            let at = full.len();
            return damaged(format!(
                "record {at} is whole in no copy{}, and record {sequence} behind it is; both copies are kept",
                why_not(log, at)
            ));
        }
        match full.end.decode(raw) {
            Ok((frame, end)) => full.push(FoundFrame { frame, raw: raw.to_vec() }, end),
            Err(FrameError::Newer { what }) => return Err(Disagreement::Newer(format!("record {sequence}: {what}"))),
            Err(error) => return damaged(format!("record {sequence}: {error}; both copies are kept")),
        }
    }
    if full.is_empty() {
        return damaged(format!("no record is whole in either copy{}", why_not(log, 0)));
    }
    // The log had each record first: what the second copy has anything of was there.
    let highest = store.and_then(|store| store.fault.as_ref()?.highest);
    if highest.is_some_and(|highest| highest >= full.len()) {
        let at = full.len();
        return damaged(format!("record {at} is whole in no copy{}; both copies are kept", why_not(log, at)));
    }
    Ok(full)
}

/// What `events.log` has in the place of a record.
fn why_not(log: &FoundChain, at: u64) -> String {
    let fault = log.fault.as_ref().filter(|_| log.len() == at);
    fault.map_or_else(String::new, |fault| format!(" (events.log: {})", fault.error))
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
            assert_eq!((agreement.full.len(), agreement.rebuild), (4, false));
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
    fn a_flipped_bit_before_a_frame_that_only_the_log_has_is_repaired_if_the_store_has_that_record() {
        let log = frames(4).concat();
        let frame_bytes = log.len() / 4;
        for bit in 0..3 * frame_bytes * 8 {
            let mut damaged = log.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let number = bit / 8 / frame_bytes;
            for store in [0, 1, 2, 3] {
                let agreement = agree(&FoundChain::read(TXN, &damaged), Ok(&read(store)));
                if number < store as usize {
                    assert_eq!(agreement.unwrap().full.len(), 4, "bit {bit}, store of {store}");
                } else {
                    assert!(matches!(agreement, Err(Disagreement::Damaged(_))), "bit {bit}, store of {store}");
                }
            }
        }
    }

    #[test]
    fn copies_that_are_damaged_in_different_records_mend_each_other() {
        let with_damaged = |number: usize| {
            let mut frames = frames(5);
            frames[number][FRAME_HASH_BYTES] ^= 1;
            FoundChain::read(TXN, &frames.concat())
        };
        for log in 0..5 {
            for store in 0..5 {
                let agreement = agree(&with_damaged(log), Ok(&with_damaged(store)));
                if log == store {
                    assert!(matches!(agreement, Err(Disagreement::Damaged(_))), "both in record {log}");
                } else {
                    let agreement = agreement.unwrap();
                    assert_eq!((agreement.full.len(), agreement.rebuild), (5, true), "{log} and {store}");
                    let restored = Repair::LogRestored { from: log as u64, frames: 5 - log as u64 };
                    assert_eq!(agreement.repairs[0], restored, "{log} and {store}");
                }
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
                assert_eq!(agreement.full.len(), found.len().max(u64::from(store)), "cut at {cut}, store of {store}");
                assert_eq!(agreement.repairs.is_empty(), found.fault.is_none() && found.len() == u64::from(store));
            }
        }
    }
}
