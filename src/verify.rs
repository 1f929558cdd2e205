//! A clone's image as it is now against what was copied, from what the controller's journal knows of it: any time after the
//! commit, also while the clone runs. Only reads: no locks, no journal, nothing on a host is changed.

use std::collections::BTreeMap;
use std::ops::Range;

use journal_format::{ChunkRecordV1, ChunkState, ChunkValue, Inode};
use serde::Serialize;

use crate::transfer::manifest;
use crate::world::{ChunkGeometry, ChunkSink, Fault, FileKind, FileStat, HashJob, Host, SinkClosed};

/// Differing ranges that are named at most.
pub const RANGES_MAX: usize = 100;

/// An image as it was when the clone was committed.
#[derive(Debug, Clone)]
pub struct Expected {
    /// What of the VM it is, such as `vda`.
    pub role: String,
    /// Its final path.
    pub path: String,
    /// Size and chunks.
    pub geometry: ChunkGeometry,
    /// Plain BLAKE3 of it.
    pub root: ChunkValue,
    /// Its inode.
    pub inode: Inode,
    /// Its mtime once all was durable, in nanoseconds since 1970.
    pub mtime_ns: i128,
    /// Its ledger; what it does not name is zero. Believed only where it comes to `root`.
    pub chunks: BTreeMap<u64, ChunkState>,
}

/// What an image is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageVerdict {
    /// What of the VM it is, such as `vda`.
    pub target: String,
    /// Its path on the destination.
    pub path: String,
    /// Whether every byte is as it was.
    pub equal: bool,
    /// Whether it is another file, or has another size or mtime than at the commit: somebody wrote to it.
    pub changed_since: bool,
    /// Bytes at the commit.
    pub size_bytes: u64,
    /// Bytes now; `None`: it is gone.
    pub found_bytes: Option<u64>,
    /// Bytes of all differing ranges, whole chunks.
    pub differing_bytes: u64,
    /// Where it differs: bytes, the first and the one behind the last; at most `RANGES_MAX`, ascending.
    pub ranges: Vec<(u64, u64)>,
    /// Further ranges that are not named.
    pub ranges_left_out: usize,
    /// The ledger does not say what each chunk was: only that the whole is equal or not.
    pub only_as_a_whole: bool,
}

/// Re-reads an image from its disk. `progress` is told how many bytes were dealt with.
pub fn verify(host: &dyn Host, image: &Expected, progress: &mut dyn FnMut(u64)) -> Result<ImageVerdict, Fault> {
    let Some(node) = host.stat(&image.path)? else { return Ok(image.verdict(None, Vec::new(), false)) };
    let stat = image.of_its_own(node);
    let only_as_a_whole = manifest::root(image.geometry, &image.chunks) != image.root;
    let now = ChunkGeometry { image_bytes: stat.size, ..image.geometry };
    let comparable = comparable(image.geometry, now);
    let mut sink = Comparison { expected: &image.chunks, found: BTreeMap::new(), ranges: Vec::new(), now, progress };
    let job = HashJob {
        path: image.path.clone(),
        inode: Some(node.inode),
        geometry: now,
        wanted: std::iter::once(0..comparable).filter(|all| !all.is_empty()).collect(),
        patches: Vec::new(),
        below: Vec::new(),
        reread: true,
    };
    host.hash_chunks(&job, &mut sink)?;
    let end = stat.size.max(image.geometry.image_bytes);
    let mut ranges = sink.ranges;
    if only_as_a_whole {
        let equal = stat.size == image.geometry.image_bytes && manifest::root(now, &sink.found) == image.root;
        ranges = if equal { Vec::new() } else { vec![0..end] };
    } else if stat.size != image.geometry.image_bytes {
        push(&mut ranges, comparable * u64::from(now.chunk_bytes)..end);
    }
    // What was written while it was read counts too.
    let after = host.stat(&image.path)?.map(|node| image.of_its_own(node));
    Ok(image.verdict(after, ranges, only_as_a_whole))
}

/// How many chunks, from the first on, mean the same in both sizes: the last one of a size is cut off where it ends, and an
/// image of one chunk has another kind of value.
fn comparable(then: ChunkGeometry, now: ChunkGeometry) -> u64 {
    if then == now {
        return then.chunk_count();
    }
    if then.chunk_count() <= 1 || now.chunk_count() <= 1 {
        return 0;
    }
    then.image_bytes.min(now.image_bytes) / u64::from(now.chunk_bytes)
}

/// Adds a range of bytes behind the others; what touches is one.
fn push(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ if range.is_empty() => {}
        _ => ranges.push(range),
    }
}

impl Expected {
    /// What is seen of a device says nothing of when it was written to, and what is behind the image in it is not the image's.
    fn of_its_own(&self, stat: FileStat) -> FileStat {
        if stat.kind != FileKind::BlockDevice {
            return stat;
        }
        let size = stat.size.min(self.geometry.image_bytes);
        FileStat { size, inode: self.inode, mtime_ns: self.mtime_ns, ..stat }
    }

    fn verdict(&self, now: Option<FileStat>, ranges: Vec<Range<u64>>, only_as_a_whole: bool) -> ImageVerdict {
        let size_bytes = self.geometry.image_bytes;
        let as_it_was =
            |stat: FileStat| (stat.inode, stat.size, stat.mtime_ns) == (self.inode, size_bytes, self.mtime_ns);
        ImageVerdict {
            target: self.role.clone(),
            path: self.path.clone(),
            equal: now.is_some() && ranges.is_empty(),
            changed_since: !now.is_some_and(as_it_was),
            size_bytes,
            found_bytes: now.map(|stat| stat.size),
            differing_bytes: ranges.iter().map(|range| range.end - range.start).sum(),
            ranges_left_out: ranges.len().saturating_sub(RANGES_MAX),
            ranges: ranges.into_iter().take(RANGES_MAX).map(|range| (range.start, range.end)).collect(),
            only_as_a_whole,
        }
    }
}

/// Takes values and notes what differs.
struct Comparison<'a> {
    expected: &'a BTreeMap<u64, ChunkState>,
    found: BTreeMap<u64, ChunkState>,
    ranges: Vec<Range<u64>>,
    now: ChunkGeometry,
    progress: &'a mut dyn FnMut(u64),
}

impl Comparison<'_> {
    fn take(&mut self, index: u64, state: ChunkState) {
        if self.expected.get(&index).copied().unwrap_or(ChunkState::Zero) != state {
            let start = index * u64::from(self.now.chunk_bytes);
            push(&mut self.ranges, start..start + self.now.chunk_len(index));
        }
    }

    fn told(&mut self, chunks: u64) {
        (self.progress)((chunks * u64::from(self.now.chunk_bytes)).min(self.now.image_bytes));
    }
}

impl ChunkSink for Comparison<'_> {
    fn chunks(&mut self, records: &[ChunkRecordV1]) -> Result<(), SinkClosed> {
        for record in records {
            self.take(record.index, record.state);
            self.found.insert(record.index, record.state);
        }
        if let Some(last) = records.last() {
            self.told(last.index + 1);
        }
        Ok(())
    }

    fn holes(&mut self, chunks: Range<u64>) -> Result<(), SinkClosed> {
        // What is a hole was nothing but zeros, or differs: only what the ledger has as data can.
        let data: Vec<u64> = self.expected.range(chunks.clone()).map(|(index, _)| *index).collect();
        for index in data {
            self.take(index, ChunkState::Zero);
        }
        self.told(chunks.end);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u64 = 1024;

    fn geometry(image_bytes: u64) -> ChunkGeometry {
        ChunkGeometry { image_bytes, chunk_bytes: 1024 }
    }

    fn data(index: u64, value: u8) -> ChunkRecordV1 {
        ChunkRecordV1 { index, state: ChunkState::Data(ChunkValue([value; 32])) }
    }

    fn compare(expected: &[ChunkRecordV1], found: &[ChunkRecordV1], holes: Range<u64>) -> Vec<Range<u64>> {
        let expected = expected.iter().map(|record| (record.index, record.state)).collect();
        let mut reached = 0;
        let mut progress = |bytes| reached = bytes;
        let now = geometry(5 * CHUNK + 1);
        let mut sink = Comparison {
            expected: &expected,
            found: BTreeMap::new(),
            ranges: Vec::new(),
            now,
            progress: &mut progress,
        };
        assert_eq!((sink.chunks(found), sink.holes(holes)), (Ok(()), Ok(())));
        let ranges = sink.ranges;
        assert_eq!(reached, now.image_bytes);
        ranges
    }

    #[test]
    fn what_touches_is_one_range_and_the_last_chunk_is_short() {
        let then = [data(0, 1), data(1, 2), data(3, 3), data(5, 4)];
        let zero = |index| ChunkRecordV1 { index, state: ChunkState::Zero };
        assert_eq!(
            compare(&then, &[then[0], then[1], zero(2), then[2], zero(4), then[3]], 6..6),
            [0; 0].map(|_: u64| 0..0)
        );
        let found = [data(0, 1), data(1, 9), data(2, 9), data(3, 3)];
        assert_eq!(compare(&then, &found, 4..6), [CHUNK..3 * CHUNK, 5 * CHUNK..5 * CHUNK + 1]);
    }

    #[test]
    fn other_sizes_share_their_whole_chunks() {
        assert_eq!(comparable(geometry(5000), geometry(5000)), 5);
        assert_eq!(comparable(geometry(5000), geometry(9000)), 4);
        assert_eq!(comparable(geometry(9000), geometry(4096)), 4);
        assert_eq!(comparable(geometry(1000), geometry(4096)), 0, "one chunk has the value of a whole image");
        assert_eq!(comparable(geometry(4096), geometry(0)), 0);
    }

    #[test]
    fn a_long_list_is_cut_and_counted() {
        let image = Expected {
            role: "vda".into(),
            path: "/srv/vda".into(),
            geometry: geometry(1 << 20),
            root: ChunkValue([0; 32]),
            inode: Inode(1),
            mtime_ns: 1,
            chunks: BTreeMap::new(),
        };
        let ranges = (0..150).map(|index| index * 2 * CHUNK..(index * 2 + 1) * CHUNK).collect();
        let verdict = image.verdict(None, ranges, false);
        assert_eq!((verdict.ranges.len(), verdict.ranges_left_out), (RANGES_MAX, 50));
        assert_eq!((verdict.differing_bytes, verdict.ranges[1]), (150 * CHUNK, (2 * CHUNK, 3 * CHUNK)));
        assert!(!verdict.equal && verdict.changed_since, "it is gone");
    }
}
