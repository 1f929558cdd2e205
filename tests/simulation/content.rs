//! The bytes of one file, sparse: cheap to copy, so that what is on the disk can stand beside what is in memory.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use crate::seed::Seed;

/// Bytes that a filesystem gives out at once.
pub const BLOCK_BYTES: u64 = 1024;
/// Bytes that a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;

type Block = Rc<[u8; BLOCK_BYTES as usize]>;

/// A file's bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    size: u64,
    blocks: BTreeMap<u64, Block>,
}

fn zeros() -> Block {
    Rc::new([0; BLOCK_BYTES as usize])
}

impl Content {
    /// A content of these bytes, without holes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut content = Self::default();
        content.write(0, bytes);
        content
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn allocated_bytes(&self) -> u64 {
        self.blocks.len() as u64 * BLOCK_BYTES
    }

    /// Blocks that writing there would have to be given.
    pub fn blocks_missing(&self, offset: u64, bytes: u64) -> u64 {
        let range = offset / BLOCK_BYTES..(offset + bytes).div_ceil(BLOCK_BYTES);
        (range.end - range.start) - self.blocks.range(range).count() as u64
    }

    /// Bytes from an offset, as many as there are; holes read as zeros.
    pub fn read(&self, offset: u64, bytes: u64) -> Vec<u8> {
        let end = self.size.min(offset.saturating_add(bytes));
        let Some(len) = end.checked_sub(offset) else { return Vec::new() };
        let mut read = vec![0; index(len)];
        for (block, data) in self.blocks.range(offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES)) {
            let start = block * BLOCK_BYTES;
            let from = start.max(offset);
            let to = (start + BLOCK_BYTES).min(end);
            if from < to {
                read[index(from - offset)..index(to - offset)]
                    .copy_from_slice(&data[index(from - start)..index(to - start)]);
            }
        }
        read
    }

    /// Everything.
    pub fn bytes(&self) -> Vec<u8> {
        self.read(0, self.size)
    }

    /// Is this text somewhere in it?
    pub fn contains(&self, text: &str) -> bool {
        self.bytes().windows(text.len()).any(|part| part == text.as_bytes())
    }

    /// Writes, growing the file where needed.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset + bytes.len() as u64;
        let mut at = offset;
        while at < end {
            let block = at / BLOCK_BYTES;
            let start = block * BLOCK_BYTES;
            let to = (start + BLOCK_BYTES).min(end);
            let data = Rc::make_mut(self.blocks.entry(block).or_insert_with(zeros));
            data[index(at - start)..index(to - start)].copy_from_slice(&bytes[index(at - offset)..index(to - offset)]);
            at = to;
        }
        self.size = self.size.max(end);
    }

    /// Cuts or lengthens; what is cut does not come back.
    pub fn set_size(&mut self, size: u64) {
        self.blocks.retain(|block, _| block * BLOCK_BYTES < size);
        if let Some(data) = self.blocks.get_mut(&(size / BLOCK_BYTES)) {
            Rc::make_mut(data)[index(size % BLOCK_BYTES)..].fill(0);
        }
        self.size = size;
    }

    /// Gives every block.
    pub fn allocate(&mut self) {
        for block in 0..self.size.div_ceil(BLOCK_BYTES) {
            self.blocks.entry(block).or_insert_with(zeros);
        }
    }

    /// Takes the blocks away that lie in the range, and zeroes the rest of it.
    pub fn punch(&mut self, range: Range<u64>) {
        self.blocks.retain(|block, data| {
            let start = block * BLOCK_BYTES;
            let from = range.start.max(start);
            let to = range.end.min(start + BLOCK_BYTES);
            if from >= to {
                return true;
            }
            Rc::make_mut(data)[index(from - start)..index(to - start)].fill(0);
            !(range.start <= start && start + BLOCK_BYTES <= range.end)
        });
    }

    /// Is there nothing but holes?
    pub fn is_hole(&self, range: &Range<u64>) -> bool {
        self.blocks.range(range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES)).next().is_none()
    }

    /// The first blocks at or behind a position that there are, up to the next hole; empty, at the end of everything: none.
    pub fn data_from(&self, position: u64) -> Range<u64> {
        let mut blocks = self.blocks.range(position / BLOCK_BYTES..).map(|(block, _)| *block);
        let Some(first) = blocks.next() else { return u64::MAX..u64::MAX };
        let behind = (first + 1..).zip(blocks).take_while(|(expected, block)| expected == block).count() as u64;
        (first * BLOCK_BYTES).max(position)..(first + 1 + behind) * BLOCK_BYTES
    }

    /// The same bytes, wherever the holes are?
    pub fn same_bytes(&self, other: &Self) -> bool {
        let zero = |data: &Block| data.iter().all(|byte| *byte == 0);
        let covered = |a: &Self, b: &Self| {
            a.blocks.iter().all(|(block, data)| match b.blocks.get(block) {
                Some(there) => Rc::ptr_eq(data, there) || data == there,
                None => zero(data),
            })
        };
        self.size == other.size && covered(self, other) && covered(other, self)
    }

    /// What a power cut leaves of this when `synced` is what was surely on the disk: any subset of the sectors that
    /// were written since.
    pub fn torn(&self, synced: &Self, seed: &mut Seed) -> Self {
        if self == synced {
            return self.clone();
        }
        let mut left = synced.clone();
        if seed.chance(50) {
            left.set_size(self.size);
        }
        for (block, data) in &self.blocks {
            let there = synced.blocks.get(block);
            if there == Some(data) {
                continue;
            }
            for sector in 0..(index(BLOCK_BYTES) / SECTOR_BYTES) {
                let start = block * BLOCK_BYTES + (sector * SECTOR_BYTES) as u64;
                if start < left.size && seed.chance(50) {
                    let from = sector * SECTOR_BYTES;
                    let len = index((left.size - start).min(SECTOR_BYTES as u64));
                    left.write(start, &data[from..from + len]);
                }
            }
        }
        left
    }
}

fn index(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap()
}
