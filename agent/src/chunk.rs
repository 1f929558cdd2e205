//! Images cut into chunks, and their BLAKE3 values: subtree values that compose to the plain BLAKE3 of the image.
//!
//! Pure arithmetic and hashing. Both ends of a copy call these very functions, so that their values can be compared.

use std::ops::Range;

use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use journal_format::ChunkValue;
use serde::{Deserialize, Serialize};

/// Bytes of the smallest chunk: BLAKE3's own leaf.
pub const CHUNK_BYTES_MIN: u32 = 1024;
/// Bytes of the largest chunk.
pub const CHUNK_BYTES_MAX: u32 = 16 << 20;

/// An image cut into chunks. Comes from the other end: call [`Geometry::check`] before the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Geometry {
    /// Bytes of the image.
    pub image_bytes: u64,
    /// Bytes of a chunk: a power of two from [`CHUNK_BYTES_MIN`] to [`CHUNK_BYTES_MAX`].
    pub chunk_bytes: u32,
}

/// The geometry of an image, or a range of its chunks, that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// Not a power of two, or out of bounds.
    #[error("a chunk of {0} bytes: not a power of two from {CHUNK_BYTES_MIN} to {CHUNK_BYTES_MAX}")]
    ChunkBytes(u32),
    /// More than a file can hold.
    #[error("an image of {0} bytes: more than a file can hold")]
    ImageBytes(u64),
    /// Not ascending, not disjoint, empty, or beyond the image.
    #[error("chunks {start}..{end}: empty, out of order, or beyond the image's {count} chunks")]
    Range {
        /// First chunk.
        start: u64,
        /// One past the last.
        end: u64,
        /// Chunks of the image.
        count: u64,
    },
}

impl Geometry {
    /// Whether such an image can be.
    pub fn check(&self) -> Result<(), GeometryError> {
        if !self.chunk_bytes.is_power_of_two() || !(CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(&self.chunk_bytes) {
            return Err(GeometryError::ChunkBytes(self.chunk_bytes));
        }
        if self.image_bytes > i64::MAX as u64 {
            return Err(GeometryError::ImageBytes(self.image_bytes));
        }
        Ok(())
    }

    /// Whether these ranges of chunks are ascending, disjoint and within the image.
    pub fn check_ranges(&self, ranges: &[Range<u64>]) -> Result<(), GeometryError> {
        let count = self.chunk_count();
        let mut next = 0;
        for range in ranges {
            if range.start < next || range.start >= range.end || range.end > count {
                return Err(GeometryError::Range { start: range.start, end: range.end, count });
            }
            next = range.end;
        }
        Ok(())
    }

    /// How many chunks there are, the last one perhaps short.
    pub fn chunk_count(&self) -> u64 {
        self.image_bytes.div_ceil(u64::from(self.chunk_bytes))
    }

    /// Where a chunk begins in the image, in bytes.
    pub fn chunk_start(&self, index: u64) -> u64 {
        index.saturating_mul(u64::from(self.chunk_bytes))
    }

    /// Bytes of one chunk; 0 beyond the image.
    #[allow(clippy::cast_possible_truncation)] // At most `chunk_bytes`.
    pub fn chunk_len(&self, index: u64) -> u32 {
        u64::from(self.chunk_bytes).min(self.image_bytes.saturating_sub(self.chunk_start(index))) as u32
    }

    /// Where a range of chunks lies in the image, in bytes.
    pub fn bytes_of(&self, chunks: &Range<u64>) -> Range<u64> {
        self.chunk_start(chunks.start)..self.chunk_start(chunks.end).min(self.image_bytes)
    }

    /// Starts hashing a chunk; ends with [`ChunkHasher::finish`].
    pub fn hasher(&self, index: u64) -> ChunkHasher {
        let mut inner = blake3::Hasher::new();
        let whole_image = self.chunk_count() <= 1;
        if !whole_image {
            inner.set_input_offset(self.chunk_start(index));
        }
        ChunkHasher { inner, whole_image }
    }

    /// The value of a chunk: its subtree's chaining value, or the plain BLAKE3 where the image is this one chunk.
    pub fn value(&self, index: u64, bytes: &[u8]) -> ChunkValue {
        let mut hasher = self.hasher(index);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The plain BLAKE3 of the image from the values of all its chunks, in order. `None` if it is not as many.
    pub fn root(&self, values: &[ChunkValue]) -> Option<ChunkValue> {
        if values.len() as u64 != self.chunk_count() {
            return None;
        }
        Some(match values {
            [] => ChunkValue(*blake3::hash(&[]).as_bytes()),
            [only] => *only,
            _ => {
                let (left, right) = values.split_at(left_len(values.len()));
                ChunkValue(*merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash).as_bytes())
            }
        })
    }
}

/// BLAKE3's rule: the left subtree is the largest power of two that leaves something for the right one.
fn left_len(count: usize) -> usize {
    count.next_power_of_two() / 2
}

fn subtree(values: &[ChunkValue]) -> [u8; 32] {
    match values {
        [] => unreachable!("a split leaves at least one value on each side"),
        [only] => only.0,
        _ => {
            let (left, right) = values.split_at(left_len(values.len()));
            merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
        }
    }
}

/// The hash of one chunk in the making.
#[derive(Debug, Clone)]
pub struct ChunkHasher {
    inner: blake3::Hasher,
    whole_image: bool,
}

impl ChunkHasher {
    /// Adds bytes, from the chunk's first on.
    pub fn update(&mut self, bytes: &[u8]) {
        self.inner.update(bytes);
    }

    /// The chunk's value. At least one byte must have been added, unless the image is empty.
    pub fn finish(&self) -> ChunkValue {
        if self.whole_image {
            ChunkValue(*self.inner.finalize().as_bytes())
        } else {
            ChunkValue(self.inner.finalize_non_root())
        }
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use super::*;

    #[test]
    fn values_of_chunks_compose_to_the_plain_hash() {
        let bytes: Vec<u8> = (0..70_001_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for image_bytes in [0, 1, 1023, 1024, 1025, 2048, 3072, 4096, 5000, 65_536, 65_537, 70_001] {
            for chunk_bytes in [1024, 4096, 65_536] {
                let geometry = Geometry { image_bytes, chunk_bytes };
                let image = &bytes[..usize::try_from(image_bytes).unwrap_or_default()];
                let values: Vec<_> = image
                    .chunks(chunk_bytes as usize)
                    .zip(0..)
                    .map(|(chunk, index)| geometry.value(index, chunk))
                    .collect();
                let root = geometry.root(&values).map(|root| root.0);
                assert_eq!(root, Some(*blake3::hash(image).as_bytes()), "{geometry:?}");
                assert_eq!(geometry.root(&[&values[..], &[ChunkValue([0; 32])]].concat()), None);
            }
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for chunk_bytes in [0, 512, 1025, 3 << 20, 32 << 20] {
            assert!(Geometry { image_bytes: 1, chunk_bytes }.check().is_err(), "{chunk_bytes}");
        }
        assert!(Geometry { image_bytes: u64::MAX, chunk_bytes: 1024 }.check().is_err());
        let geometry = Geometry { image_bytes: 10 * 1024 + 1, chunk_bytes: 1024 };
        assert_eq!(geometry.chunk_count(), 11);
        assert_eq!(geometry.chunk_len(10), 1);
        assert_eq!(geometry.chunk_len(11), 0);
        assert!(geometry.check_ranges(&[0..2, 2..3, 10..11]).is_ok());
        for bad in [vec![0..2, 1..3], vec![3..4, 0..1], vec![2..2], vec![10..12]] {
            assert!(geometry.check_ranges(&bad).is_err(), "{bad:?}");
        }
    }
}
