//! From chunk values to the root: the plain BLAKE3 of the image, as `b3sum` prints it.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::thread;

use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use journal_format::{ChunkState, ChunkValue};

use crate::world::ChunkGeometry;

/// Zeros are hashed in pieces of this size.
const ZERO_BYTES: usize = 1 << 20;
/// Chunks that one thread hashes before it asks for more.
const TURN_CHUNKS: usize = 16;
static ZEROS: [u8; ZERO_BYTES] = [0; ZERO_BYTES];

/// The root of an image of which `chunks` names every chunk that is not zero; what is not named is zero.
///
/// The value of a zero chunk depends on its place, so each must be hashed once: that is done on all processors.
pub fn root(geometry: ChunkGeometry, chunks: &BTreeMap<u64, ChunkState>) -> ChunkValue {
    let count = geometry.chunk_count();
    if count == 0 {
        return ChunkValue(*blake3::hash(&[]).as_bytes());
    }
    if count == 1 {
        return match chunks.get(&0) {
            Some(ChunkState::Data(value)) => *value,
            Some(ChunkState::Zero) | None => zero_image(geometry.image_bytes),
        };
    }
    let values = values(geometry, chunks);
    let (left, right) = halves(&values);
    ChunkValue(*merge_subtrees_root(&merge(left), &merge(right), Mode::Hash).as_bytes())
}

fn values(geometry: ChunkGeometry, chunks: &BTreeMap<u64, ChunkState>) -> Vec<[u8; 32]> {
    let count = usize::try_from(geometry.chunk_count()).unwrap_or(usize::MAX);
    let mut values = vec![[0; 32]; count];
    let workers = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    // Zero chunks tend to lie together: a queue of short turns shares them out evenly.
    let turns = Mutex::new(values.chunks_mut(TURN_CHUNKS).enumerate());
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some((number, turn)) = turns.lock().ok().and_then(|mut turns| turns.next()) {
                    for (index, value) in (number as u64 * TURN_CHUNKS as u64..).zip(turn) {
                        *value = match chunks.get(&index) {
                            Some(ChunkState::Data(known)) => known.0,
                            Some(ChunkState::Zero) | None => zero_chunk(geometry, index),
                        };
                    }
                }
            });
        }
    });
    values
}

/// Subtree value of a chunk of zeros at its place.
fn zero_chunk(geometry: ChunkGeometry, index: u64) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(index * u64::from(geometry.chunk_bytes));
    update_zeros(&mut hasher, geometry.chunk_len(index));
    hasher.finalize_non_root()
}

fn zero_image(bytes: u64) -> ChunkValue {
    let mut hasher = blake3::Hasher::new();
    update_zeros(&mut hasher, bytes);
    ChunkValue(*hasher.finalize().as_bytes())
}

fn update_zeros(hasher: &mut blake3::Hasher, mut bytes: u64) {
    while bytes > 0 {
        let piece = usize::try_from(bytes).unwrap_or(ZERO_BYTES).min(ZERO_BYTES);
        hasher.update(&ZEROS[..piece]);
        bytes -= piece as u64;
    }
}

/// BLAKE3's tree: the left side is the largest power of two that leaves something for the right.
fn halves(values: &[[u8; 32]]) -> (&[[u8; 32]], &[[u8; 32]]) {
    values.split_at(values.len().next_power_of_two() / 2)
}

fn merge(values: &[[u8; 32]]) -> [u8; 32] {
    if let [value] = values {
        return *value;
    }
    let (left, right) = halves(values);
    merge_subtrees_non_root(&merge(left), &merge(right), Mode::Hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state_of(geometry: ChunkGeometry, image: &[u8], index: u64) -> ChunkState {
        let start = usize::try_from(index * u64::from(geometry.chunk_bytes)).unwrap();
        let bytes = &image[start..start + usize::try_from(geometry.chunk_len(index)).unwrap()];
        if bytes.iter().all(|byte| *byte == 0) {
            return ChunkState::Zero;
        }
        if geometry.chunk_count() == 1 {
            return ChunkState::Data(ChunkValue(*blake3::hash(bytes).as_bytes()));
        }
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(start as u64);
        hasher.update(bytes);
        ChunkState::Data(ChunkValue(hasher.finalize_non_root()))
    }

    #[test]
    fn the_root_is_the_plain_blake3_of_the_image() {
        for bytes in [0, 1, 1023, 1024, 1025, 2048, 3000, 4096, 5 * 1024, 64 * 1024 + 7, 200 * 1024] {
            for zero_every in [0, 2, 3, 1] {
                let mut image: Vec<u8> = (0..bytes).map(|at| u8::try_from(at % 251 + 1).unwrap()).collect();
                for (index, chunk) in image.chunks_mut(1024).enumerate() {
                    if zero_every != 0 && index % zero_every == 0 {
                        chunk.fill(0);
                    }
                }
                let geometry = ChunkGeometry { image_bytes: bytes, chunk_bytes: 1024 };
                let chunks =
                    (0..geometry.chunk_count()).map(|index| (index, state_of(geometry, &image, index))).collect();
                assert_eq!(root(geometry, &chunks).0, *blake3::hash(&image).as_bytes(), "{bytes} bytes");
            }
        }
    }
}
