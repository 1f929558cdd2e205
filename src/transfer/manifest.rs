//! From chunk values to the root: the plain BLAKE3 of the image, as `b3sum` prints it.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::thread;

use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use journal_format::{ChunkState, ChunkValue};

use crate::world::ChunkGeometry;

/// A value of BLAKE3's tree below the root.
type Value = [u8; 32];

/// Zeros are hashed in pieces of this size.
const ZERO_BYTES: usize = 1 << 20;
static ZEROS: [u8; ZERO_BYTES] = [0; ZERO_BYTES];

/// The values of a block of zeros at each place of the first 512 GiB. A zero block's value depends on its place, so it
/// must be hashed once, by somebody: without this table a disk of 64 GiB with little in it costs ten seconds.
static ZERO_BLOCKS: &[u8] = include_bytes!("zero_blocks.bin");
/// Bytes of a block: a power of two, and the largest chunk. Smaller ones would make the table larger than it is worth.
const BLOCK_BYTES: u64 = 16 << 20;

/// The root of an image of which `chunks` names every chunk that is not zero; what is not named is zero.
pub fn root(geometry: ChunkGeometry, chunks: &BTreeMap<u64, ChunkState>) -> ChunkValue {
    match geometry.chunk_count() {
        0 => ChunkValue(*blake3::hash(&[]).as_bytes()),
        1 => match chunks.get(&0) {
            Some(ChunkState::Data(value)) => *value,
            Some(ChunkState::Zero) | None => zero_image(geometry.image_bytes),
        },
        _ => {
            let mut values = blocks(geometry, chunks);
            if let [_] = values[..] {
                values = (0..geometry.chunk_count()).map(|index| chunk(geometry, chunks, index)).collect();
            }
            let (left, right) = halves(&values);
            ChunkValue(*merge_subtrees_root(&merge(left), &merge(right), Mode::Hash).as_bytes())
        }
    }
}

/// The values of all blocks, worked out on all processors.
fn blocks(geometry: ChunkGeometry, chunks: &BTreeMap<u64, ChunkState>) -> Vec<Value> {
    let count = geometry.image_bytes.div_ceil(BLOCK_BYTES);
    let mut values: Vec<(u64, Value)> = (0..count).map(|index| (index, [0; 32])).collect();
    let workers = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let turns = Mutex::new(values.iter_mut());
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some((index, value)) = turns.lock().ok().and_then(|mut turns| turns.next()) {
                    *value = block(geometry, chunks, *index);
                }
            });
        }
    });
    values.into_iter().map(|(_, value)| value).collect()
}

fn block(geometry: ChunkGeometry, chunks: &BTreeMap<u64, ChunkState>, index: u64) -> Value {
    let per_block = BLOCK_BYTES / u64::from(geometry.chunk_bytes);
    let range = index * per_block..((index + 1) * per_block).min(geometry.chunk_count());
    let is_whole = (index + 1) * BLOCK_BYTES <= geometry.image_bytes;
    if is_whole && !chunks.range(range.clone()).any(|(_, state)| matches!(state, ChunkState::Data(_))) {
        return zero_block(index);
    }
    merge(&range.map(|index| chunk(geometry, chunks, index)).collect::<Vec<_>>())
}

fn chunk(geometry: ChunkGeometry, chunks: &BTreeMap<u64, ChunkState>, index: u64) -> Value {
    match chunks.get(&index) {
        Some(ChunkState::Data(known)) => known.0,
        Some(ChunkState::Zero) | None => zeros(index * u64::from(geometry.chunk_bytes), geometry.chunk_len(index)),
    }
}

fn zero_block(index: u64) -> Value {
    let known = usize::try_from(index).ok().and_then(|index| ZERO_BLOCKS.as_chunks().0.get(index));
    known.copied().unwrap_or_else(|| zeros(index * BLOCK_BYTES, BLOCK_BYTES))
}

/// Value of zeros at their place.
fn zeros(offset: u64, bytes: u64) -> Value {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(offset);
    update_zeros(&mut hasher, bytes);
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
fn halves(values: &[Value]) -> (&[Value], &[Value]) {
    values.split_at(values.len().next_power_of_two() / 2)
}

fn merge(values: &[Value]) -> Value {
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

    #[test]
    fn blocks_merge_into_the_same_root() {
        let mut image = vec![0; (3 << 24) + 12345];
        image[(2 << 24) + 5] = 1;
        let geometry = ChunkGeometry { image_bytes: image.len() as u64, chunk_bytes: 1 << 20 };
        let chunks = (0..geometry.chunk_count()).map(|index| (index, state_of(geometry, &image, index))).collect();
        assert_eq!(root(geometry, &chunks).0, *blake3::hash(&image).as_bytes());
    }

    /// `ZERO_BLOCKS_WRITE=1` writes the table anew (some minutes).
    #[test]
    fn the_table_of_zero_blocks_is_what_hashing_gives() {
        let count = ZERO_BLOCKS_BYTES / BLOCK_BYTES;
        if std::env::var_os("ZERO_BLOCKS_WRITE").is_some() {
            let table: Vec<u8> = (0..count).flat_map(|index| zeros(index * BLOCK_BYTES, BLOCK_BYTES)).collect();
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/transfer/zero_blocks.bin");
            std::fs::write(path, table).unwrap();
            return;
        }
        assert_eq!(ZERO_BLOCKS.len() as u64, count * 32);
        for index in [0, 1, 77, 4095, 16383, count - 1, count] {
            assert_eq!(zero_block(index), zeros(index * BLOCK_BYTES, BLOCK_BYTES), "block {index}");
        }
    }

    const ZERO_BLOCKS_BYTES: u64 = 512 << 30;
}
