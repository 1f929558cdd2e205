//! `HashChunks`: the values of an image's chunks, in order.

use std::ops::Range;
use std::sync::Arc;

use journal_format::{ChunkRecordV1, ChunkState};
use kvm_clone_agent::protocol::{BATCH_CHUNKS_MAX, Failure, Geometry, HashJob, Message};

use crate::buffer::{Buffer, Pool, is_zero};
use crate::extents::Extents;
use crate::flow::{Flow, cancelled};
use crate::image::Access;
use crate::lanes::{self, Outcome};
use crate::outbox::Outbox;
use crate::source::Source;

/// Threads that read and hash: a disk wants several requests at a time.
const HASH_LANES: usize = 4;
/// Bytes read at a time: a chunk is hashed in parts, so that memory does not grow with its size.
pub const READ_BYTES: usize = 1 << 20;
/// Image bytes after which values are sent at the latest, for progress.
const BATCH_BYTES_MAX: u64 = 64 << 20;

/// Hashes, and sends what it finds.
pub fn run(id: u32, job: HashJob, flow: &Flow, outbox: &Arc<Outbox>) -> Result<(), Failure> {
    let HashJob { path, inode, geometry, wanted, reread, patches, below } = job;
    let access = if reread { Access::Reread } else { Access::Read };
    let image = Source::open(&path, inode, &below, geometry, access, patches)?;
    let extents = Extents::new(image.clone(), geometry, wanted);
    let pool = Pool::new(READ_BYTES.min(geometry.chunk_bytes as usize), READ_BYTES * HASH_LANES);
    let mut batch = Batch { id, outbox, records: Vec::new(), bytes: 0 };
    let result = lanes::run(
        HASH_LANES,
        extents,
        || {
            flow.check()?;
            pool.take().ok_or_else(cancelled)
        },
        |index, mut buffer| read_chunk(&|position, bytes| image.read(position, bytes), geometry, index, &mut buffer),
        |outcome| {
            match outcome {
                Outcome::Holes(chunks) => batch.holes(chunks),
                Outcome::Chunk(index, state) => {
                    batch.add(ChunkRecordV1 { index, state }, u64::from(geometry.chunk_bytes));
                }
            }
            flow.check()
        },
        || pool.close(),
    );
    batch.send();
    result.and_then(|()| image.check_size())
}

/// What an image holds in one chunk, read in parts of the buffer's size.
pub fn read_chunk(
    read: &dyn Fn(u64, &mut Buffer) -> Result<(), Failure>,
    geometry: Geometry,
    index: u64,
    buffer: &mut Buffer,
) -> Result<ChunkState, Failure> {
    let mut hasher = geometry.hasher(index);
    let mut zero = true;
    let bytes = geometry.bytes_of(&(index..index + 1));
    let mut position = bytes.start;
    while position < bytes.end {
        buffer.set_len(usize::try_from(bytes.end - position).unwrap_or(usize::MAX));
        read(position, buffer)?;
        zero = zero && is_zero(buffer);
        hasher.update(buffer);
        position += buffer.len() as u64;
    }
    Ok(if zero { ChunkState::Zero } else { ChunkState::Data(hasher.finish()) })
}

struct Batch<'a> {
    id: u32,
    outbox: &'a Outbox,
    records: Vec<ChunkRecordV1>,
    bytes: u64,
}

impl Batch<'_> {
    fn add(&mut self, record: ChunkRecordV1, bytes: u64) {
        self.records.push(record);
        self.bytes += bytes;
        if self.records.len() >= BATCH_CHUNKS_MAX || self.bytes >= BATCH_BYTES_MAX {
            self.send();
        }
    }

    fn holes(&mut self, chunks: Range<u64>) {
        self.send();
        self.outbox.message(self.id, &Message::Holes { chunks });
    }

    fn send(&mut self) {
        self.bytes = 0;
        if !self.records.is_empty() {
            let records = std::mem::take(&mut self.records);
            self.outbox.message(self.id, &Message::Hashed { records });
        }
    }
}
