//! `SendChunks`: the source half of a copy. Reads, leaves out zeros, hashes, sends as far as the credit goes.

use std::ops::Range;
use std::sync::Arc;

use kvm_clone_agent::protocol::{CREDIT_BYTES_MAX, Failure, Message, PieceHeader, SendJob};

use crate::buffer::{Pool, is_zero};
use crate::extents::Extents;
use crate::flow::{Flow, cancelled};
use crate::image::Access;
use crate::lanes::{self, Outcome};
use crate::outbox::{Outbox, OutgoingChunk};
use crate::source::Source;

/// Threads that read and hash.
const SEND_LANES: usize = 2;
/// Zero chunks that are gathered into one message at most, for progress.
const ZEROS_TOGETHER_MAX: u64 = 1024;

/// Sends.
pub fn run(id: u32, job: SendJob, flow: &Flow, outbox: &Arc<Outbox>) -> Result<(), Failure> {
    let SendJob { path, geometry, wanted, patches, below, .. } = job;
    let image = Source::open(&path, None, &below, geometry, Access::Read, patches)?;
    let extents = Extents::new(image.clone(), geometry, wanted);
    let chunk_bytes = u64::from(geometry.chunk_bytes);
    // Chunks wait for the pipe in the pool's buffers: this, and not the credit, is what bounds the memory.
    let pool = Pool::new(geometry.chunk_bytes as usize, usize::try_from(CREDIT_BYTES_MAX).unwrap_or(usize::MAX));
    let mut zeros = Zeros { id, outbox, chunks: 0..0 };
    let result = lanes::run(
        SEND_LANES,
        extents,
        || {
            flow.take(chunk_bytes, chunk_bytes)?;
            pool.take().ok_or_else(cancelled)
        },
        |index, mut buffer| {
            let chunk_len = geometry.chunk_len(index);
            buffer.set_len(chunk_len as usize);
            image.read(geometry.chunk_start(index), &mut buffer)?;
            if is_zero(&buffer) {
                flow.grant(chunk_bytes);
                return Ok(None);
            }
            flow.grant(chunk_bytes - u64::from(chunk_len));
            let value = geometry.value(index, &buffer);
            Ok(Some((PieceHeader { index, offset: 0, chunk_len, value }, buffer)))
        },
        |outcome| {
            match outcome {
                Outcome::Holes(chunks) => {
                    zeros.send();
                    outbox.message(id, &Message::Holes { chunks });
                }
                Outcome::Chunk(index, None) => zeros.add(index),
                Outcome::Chunk(_, Some((piece, bytes))) => {
                    zeros.send();
                    outbox.chunk(OutgoingChunk { id, piece, bytes });
                }
            }
            flow.check()
        },
        || {
            flow.cancel();
            pool.close();
        },
    );
    zeros.send();
    result.and_then(|()| image.check_size())
}

struct Zeros<'a> {
    id: u32,
    outbox: &'a Outbox,
    chunks: Range<u64>,
}

impl Zeros<'_> {
    fn add(&mut self, index: u64) {
        if self.chunks.end != index || self.chunks.end - self.chunks.start >= ZEROS_TOGETHER_MAX {
            self.send();
            self.chunks = index..index;
        }
        self.chunks.end = index + 1;
    }

    fn send(&mut self) {
        if !self.chunks.is_empty() {
            self.outbox.message(self.id, &Message::Zeros { chunks: self.chunks.clone() });
        }
        self.chunks = 0..0;
    }
}
