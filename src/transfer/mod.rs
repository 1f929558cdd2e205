//! The chunk pipeline above World: what is missing, what was read back, and the root of it all.
//!
//! Never records a chunk before the destination said that it is durable.

pub mod manifest;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use journal_format::{ChunkRecordV1, ChunkState, ChunkValue, StepRef};

use crate::journal::JournalError;
use crate::journal::recorder::Recorder;
use crate::observer::Progress;
use crate::world::{ChunkGeometry, ChunkSink, Fault, HashJob, Host, Layer, SinkClosed};

/// Bytes that are hashed at a time where nobody asked for a size.
const ROOT_CHUNK_BYTES: u32 = 1 << 20;

/// Plain BLAKE3 of a file of that many bytes.
pub fn root_of(host: &dyn Host, path: &str, below: Vec<Layer>, bytes: u64) -> Result<ChunkValue, Fault> {
    let geometry = ChunkGeometry { image_bytes: bytes, chunk_bytes: ROOT_CHUNK_BYTES };
    let wanted = std::iter::once(0..geometry.chunk_count()).filter(|all| !all.is_empty()).collect();
    let (path, patches) = (path.to_owned(), Vec::new());
    let job = HashJob { path, inode: None, geometry, wanted, patches, below, reread: false };
    // 32 bytes for each MiB.
    let mut values = BTreeMap::new();
    host.hash_chunks(&job, &mut GatherSink(&mut values))?;
    Ok(manifest::root(geometry, &values))
}

/// Chunks that the ledger does not have, as ascending ranges.
pub fn missing(geometry: ChunkGeometry, ledger: &BTreeMap<u64, ChunkState>) -> Vec<Range<u64>> {
    let mut gaps = Vec::new();
    let mut next = 0;
    for &index in ledger.keys().take_while(|index| **index < geometry.chunk_count()) {
        if next < index {
            gaps.push(next..index);
        }
        next = index + 1;
    }
    if next < geometry.chunk_count() {
        gaps.push(next..geometry.chunk_count());
    }
    gaps
}

/// Chunks that the ledger has as data, as ascending ranges.
pub fn data_ranges(ledger: &BTreeMap<u64, ChunkState>) -> Vec<Range<u64>> {
    ranges_of(ledger.iter().filter(|(_, state)| matches!(state, ChunkState::Data(_))).map(|(index, _)| *index))
}

/// Ascending numbers as ranges.
pub fn ranges_of(indices: impl IntoIterator<Item = u64>) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for index in indices {
        match ranges.last_mut() {
            Some(range) if range.end == index => range.end += 1,
            _ => ranges.push(index..index + 1),
        }
    }
    ranges
}

/// Bytes of these chunks.
pub fn bytes_of(geometry: ChunkGeometry, ranges: &[Range<u64>]) -> u64 {
    let chunk = u64::from(geometry.chunk_bytes);
    ranges.iter().map(|range| (range.end * chunk).min(geometry.image_bytes) - range.start * chunk).sum()
}

/// Puts what became durable into the ledger, and tells how far it is.
pub struct LedgerSink<'r, 'a> {
    recorder: &'r mut Recorder<'a>,
    image: u32,
    geometry: ChunkGeometry,
    progress: Progress,
    /// Bytes of what is missing and turned out to be holes of the source.
    pub hole_bytes: u64,
    /// What was read back already.
    pub read_back: BTreeMap<u64, ChunkState>,
    /// Why the ledger could not be written, if so.
    pub error: Option<JournalError>,
}

impl<'r, 'a> LedgerSink<'r, 'a> {
    /// For a copy of what is missing.
    pub fn new(
        recorder: &'r mut Recorder<'a>,
        step: StepRef,
        image: u32,
        geometry: ChunkGeometry,
        missing_bytes: u64,
    ) -> Self {
        let progress =
            Progress { step, done_bytes: geometry.image_bytes - missing_bytes, total_bytes: geometry.image_bytes };
        recorder.observer.progress(&progress);
        Self { recorder, image, geometry, progress, hole_bytes: 0, read_back: BTreeMap::new(), error: None }
    }

    fn advance(&mut self, bytes: u64) {
        self.progress.done_bytes += bytes;
        self.recorder.observer.progress(&self.progress);
    }
}

impl ChunkSink for LedgerSink<'_, '_> {
    fn chunks(&mut self, records: &[ChunkRecordV1]) -> Result<(), SinkClosed> {
        if let Err(error) = self.recorder.record_chunks(self.image, records) {
            self.error = Some(error);
            return Err(SinkClosed);
        }
        self.advance(records.iter().map(|record| self.geometry.chunk_len(record.index)).sum());
        Ok(())
    }

    fn holes(&mut self, chunks: Range<u64>) -> Result<(), SinkClosed> {
        let bytes = bytes_of(self.geometry, &[chunks]);
        self.hole_bytes += bytes;
        self.advance(bytes);
        Ok(())
    }

    fn read_back(&mut self, records: &[ChunkRecordV1]) -> Result<(), SinkClosed> {
        self.read_back.extend(records.iter().map(|record| (record.index, record.state)));
        Ok(())
    }
}

/// Compares what is read with the ledger (what the ledger does not have must be zero) and keeps what differs.
pub struct CompareSink<'r, 'a> {
    recorder: &'r mut Recorder<'a>,
    expected: &'r BTreeMap<u64, ChunkState>,
    geometry: ChunkGeometry,
    progress: Progress,
    /// Chunks that differ, ascending.
    pub differing: BTreeSet<u64>,
}

impl<'r, 'a> CompareSink<'r, 'a> {
    /// For reading `total_bytes` in all.
    pub fn new(
        recorder: &'r mut Recorder<'a>,
        step: StepRef,
        expected: &'r BTreeMap<u64, ChunkState>,
        geometry: ChunkGeometry,
        total_bytes: u64,
    ) -> Self {
        let progress = Progress { step, done_bytes: 0, total_bytes };
        Self { recorder, expected, geometry, progress, differing: BTreeSet::new() }
    }

    /// What was read before.
    pub fn take_known(&mut self, read: &BTreeMap<u64, ChunkState>) {
        self.compare(read.iter().map(|(index, state)| (*index, *state)));
    }

    fn compare(&mut self, read: impl IntoIterator<Item = (u64, ChunkState)>) {
        for (index, state) in read {
            if self.expected.get(&index).copied().unwrap_or(ChunkState::Zero) != state {
                self.differing.insert(index);
            }
            self.progress.done_bytes += self.geometry.chunk_len(index);
        }
        self.recorder.observer.progress(&self.progress);
    }
}

impl ChunkSink for CompareSink<'_, '_> {
    fn chunks(&mut self, records: &[ChunkRecordV1]) -> Result<(), SinkClosed> {
        self.compare(records.iter().map(|record| (record.index, record.state)));
        Ok(())
    }

    fn holes(&mut self, chunks: Range<u64>) -> Result<(), SinkClosed> {
        self.progress.done_bytes += bytes_of(self.geometry, std::slice::from_ref(&chunks));
        let data = self.expected.range(chunks).filter(|(_, state)| matches!(state, ChunkState::Data(_)));
        self.differing.extend(data.map(|(index, _)| *index));
        self.recorder.observer.progress(&self.progress);
        Ok(())
    }
}

/// Gathers what is read, in place of what was known.
pub struct GatherSink<'r>(pub &'r mut BTreeMap<u64, ChunkState>);

impl ChunkSink for GatherSink<'_> {
    fn chunks(&mut self, records: &[ChunkRecordV1]) -> Result<(), SinkClosed> {
        self.0.extend(records.iter().map(|record| (record.index, record.state)));
        Ok(())
    }

    fn holes(&mut self, chunks: Range<u64>) -> Result<(), SinkClosed> {
        self.0.extend(chunks.map(|index| (index, ChunkState::Zero)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_and_ranges_are_complements() {
        let geometry = ChunkGeometry { image_bytes: 10 * 1024 + 1, chunk_bytes: 1024 };
        let ledger: BTreeMap<_, _> = [0, 1, 4, 10].map(|index| (index, ChunkState::Zero)).into();
        assert_eq!(missing(geometry, &ledger), [2..4, 5..10]);
        assert_eq!(ranges_of(ledger.keys().copied()), [0..2, 4..5, 10..11]);
        assert_eq!(bytes_of(geometry, &[10..11]), 1);
        assert_eq!(missing(geometry, &BTreeMap::new()), [0..11]);
        assert_eq!(missing(ChunkGeometry { image_bytes: 0, chunk_bytes: 1024 }, &BTreeMap::new()), []);
    }
}
