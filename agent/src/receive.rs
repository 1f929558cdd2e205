//! `ReceiveChunks`: the destination half of a copy. Checks, writes, syncs, and only then says that a chunk is durable.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use journal_format::{ChunkRecordV1, ChunkState};
use kvm_clone_agent::protocol::{
    BATCH_CHUNKS_MAX, CREDIT_BYTES_MAX, Failure, FailureKind, Geometry, Message, PUNCH_CREDIT_BYTES, PieceHeader,
    RECEIVE_CREDIT_BYTES,
};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use crate::buffer::{Buffer, Pool};
use crate::failure::{errno, failure, refused};
use crate::flow::cancelled;
use crate::image::Image;
use crate::monitor::Monitor;
use crate::outbox::Outbox;

/// Threads that check and write.
const RECEIVE_LANES: usize = 2;
/// Bytes written after which a sync begins.
const SYNC_INTERVAL_BYTES: u64 = 32 << 20;
/// Time after which what was written is synced, however little it is.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// Bytes written during a sync after which writing waits for it: durability never lags further behind.
const UNSYNCED_BYTES_MAX: u64 = 256 << 20;
/// Bytes of zeros written at a time where no hole can be punched.
const ZEROS_BYTES: usize = 1 << 20;

/// One stream: filled by the thread that reads the controller, emptied by `run`.
#[derive(Debug)]
pub struct Receiver {
    id: u32,
    geometry: Geometry,
    pool: Arc<Pool>,
    outbox: Arc<Outbox>,
    state: Monitor<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes that arrived and were not granted again: the controller's side of the credit.
    outstanding_bytes: u64,
    work: VecDeque<Work>,
    /// Work that lanes have taken and not finished.
    in_work: usize,
    /// Written, not synced.
    written: Vec<ChunkRecordV1>,
    /// Chunks made zero, not synced: ranges, since there may be very many.
    zeroed: Vec<Range<u64>>,
    written_bytes: u64,
    written_since: Option<Instant>,
    finishing: bool,
    /// The stream has ended, well or not: lanes stop, arrivals are dropped.
    ended: bool,
    failed: Option<Failure>,
}

#[derive(Debug)]
enum Work {
    Chunk(PieceHeader, Buffer),
    Punch(Range<u64>),
}

/// A chunk of which some pieces arrived.
#[derive(Debug)]
pub struct Arriving {
    header: PieceHeader,
    buffer: Buffer,
    filled: u32,
}

impl Arriving {
    /// Where the bytes of the next piece go.
    pub fn room(&mut self, piece_bytes: u32) -> &mut [u8] {
        let start = self.filled as usize;
        &mut self.buffer[start..start + piece_bytes as usize]
    }
}

impl Receiver {
    /// A stream that is not running yet, but may be filled already. The geometry was checked.
    pub fn new(id: u32, geometry: Geometry, outbox: Arc<Outbox>) -> Self {
        // What the credit allows, one chunk that is arriving, and a short one at the end.
        let chunk_bytes = geometry.chunk_bytes as usize;
        let bytes_max = usize::try_from(CREDIT_BYTES_MAX).unwrap_or(usize::MAX);
        let pool = Pool::new(chunk_bytes, bytes_max + 2 * chunk_bytes);
        Self { id, geometry, pool, outbox, state: Monitor::default() }
    }

    /// Makes room for a piece; `None`: the stream has ended, the piece is to be skipped. The piece lies within its chunk.
    pub fn arrive(
        &self,
        before: Option<Arriving>,
        piece: PieceHeader,
        piece_bytes: u32,
    ) -> Result<Option<Arriving>, Failure> {
        self.charge(u64::from(piece_bytes))?;
        if self.state.lock().ended {
            return Ok(None);
        }
        let arriving = if let Some(arriving) = before {
            arriving
        } else {
            let Some(mut buffer) = self.pool.try_take() else {
                return Err(failure(FailureKind::Protocol, "chunks beyond the credit"));
            };
            buffer.set_len(piece.chunk_len as usize);
            Arriving { header: PieceHeader { offset: 0, ..piece }, buffer, filled: 0 }
        };
        let expected = PieceHeader { offset: arriving.filled, ..arriving.header };
        if piece != expected || piece.chunk_len == 0 || piece.chunk_len != self.geometry.chunk_len(piece.index) {
            let detail = format!("a piece of chunk {} that does not follow the one before", piece.index);
            return Err(failure(FailureKind::Protocol, detail));
        }
        Ok(Some(arriving))
    }

    /// A piece has arrived whole. Gives the chunk back while it is not complete.
    pub fn arrived(&self, mut arriving: Arriving, piece_bytes: u32) -> Option<Arriving> {
        arriving.filled += piece_bytes;
        if arriving.filled < arriving.header.chunk_len {
            return Some(arriving);
        }
        self.state.change(|state| {
            if !state.ended {
                state.work.push_back(Work::Chunk(arriving.header, arriving.buffer));
            }
        });
        None
    }

    /// Chunks are to be made zero.
    pub fn punch(&self, chunks: Range<u64>) -> Result<(), Failure> {
        self.charge(PUNCH_CREDIT_BYTES)?;
        self.geometry
            .check_ranges(std::slice::from_ref(&chunks))
            .map_err(|error| failure(FailureKind::Protocol, format!("punch: {error}")))?;
        self.state.change(|state| {
            if !state.ended {
                state.work.push_back(Work::Punch(chunks));
            }
        });
        Ok(())
    }

    /// Nothing more comes.
    pub fn finish(&self) {
        self.state.change(|state| state.finishing = true);
    }

    /// The controller wants no more.
    pub fn cancel(&self) {
        self.fail(cancelled());
    }

    /// Ends the stream early. The first reason counts.
    pub fn fail(&self, failed: Failure) {
        self.state.change(|state| {
            state.failed.get_or_insert(failed);
            state.ended = true;
            state.work.clear();
        });
    }

    fn charge(&self, bytes: u64) -> Result<(), Failure> {
        let mut state = self.state.lock();
        state.outstanding_bytes += bytes;
        if state.outstanding_bytes > RECEIVE_CREDIT_BYTES && !state.ended {
            return Err(failure(FailureKind::Protocol, "chunks beyond the credit"));
        }
        Ok(())
    }

    fn grant(&self, bytes: u64) {
        self.state.change(|state| state.outstanding_bytes = state.outstanding_bytes.saturating_sub(bytes));
        self.outbox.grant(self.id, bytes);
    }

    /// Writes and syncs until the stream ends.
    pub fn run(&self, image: &Image) -> Result<(), Failure> {
        thread::scope(|scope| {
            for _ in 0..RECEIVE_LANES {
                if let Err(error) = thread::Builder::new().spawn_scoped(scope, || self.write_lane(image)) {
                    self.fail(refused("start a thread", errno(&error)));
                }
            }
            while self.sync_when_due(image) {}
        });
        match self.state.lock().failed.take() {
            Some(failed) => Err(failed),
            None => Ok(()),
        }
    }

    fn write_lane(&self, image: &Image) {
        while let Some(work) = self.take_work() {
            let (result, credit_bytes) = match work {
                Work::Chunk(header, buffer) => (self.write(image, header, &buffer), u64::from(header.chunk_len)),
                Work::Punch(chunks) => (self.zero(image, chunks), PUNCH_CREDIT_BYTES),
            };
            self.state.change(|state| state.in_work -= 1);
            match result {
                Ok(()) => self.grant(credit_bytes),
                Err(failed) => self.fail(failed),
            }
        }
    }

    fn take_work(&self) -> Option<Work> {
        self.state.wait_for(|state| {
            if state.ended {
                return Some(None);
            }
            if state.written_bytes >= UNSYNCED_BYTES_MAX {
                return None;
            }
            state.work.pop_front().map(|work| {
                state.in_work += 1;
                Some(work)
            })
        })
    }

    fn write(&self, image: &Image, header: PieceHeader, bytes: &[u8]) -> Result<(), Failure> {
        let index = header.index;
        if self.geometry.value(index, bytes) != header.value {
            let detail = format!("chunk {index} arrived with other bytes than it was sent with");
            return Err(failure(FailureKind::Mismatch, detail));
        }
        image.write(self.geometry.chunk_start(index), bytes)?;
        self.state.change(|state| {
            state.written.push(ChunkRecordV1 { index, state: ChunkState::Data(header.value) });
            state.count_written(bytes.len() as u64);
        });
        Ok(())
    }

    fn zero(&self, image: &Image, chunks: Range<u64>) -> Result<(), Failure> {
        let bytes = self.geometry.bytes_of(&chunks);
        punch(image, bytes.clone()).map_err(|error| image.write_failure(bytes.start, &error))?;
        self.state.change(|state| {
            state.zeroed.push(chunks);
            state.count_written(PUNCH_CREDIT_BYTES);
        });
        Ok(())
    }

    /// Waits until a sync is due, syncs, and acknowledges what was written before it began. `false` once the stream ends.
    fn sync_when_due(&self, image: &Image) -> bool {
        let due = self.state.wait_with_time(|state| {
            if state.ended {
                return Ok(None);
            }
            let last = state.finishing && state.work.is_empty() && state.in_work == 0;
            let waited = state.written_since.map_or(Duration::ZERO, |since| since.elapsed());
            if last || state.written_bytes >= SYNC_INTERVAL_BYTES || waited >= SYNC_INTERVAL {
                state.written_bytes = 0;
                state.written_since = None;
                return Ok(Some((mem::take(&mut state.written), mem::take(&mut state.zeroed), last)));
            }
            Err(state.written_since.map(|_| SYNC_INTERVAL.saturating_sub(waited)))
        });
        let Some((written, zeroed, last)) = due else {
            return false;
        };
        if let Err(failed) = image.sync() {
            self.fail(failed);
            return false;
        }
        let zeroed = zeroed.into_iter().flatten().map(|index| ChunkRecordV1 { index, state: ChunkState::Zero });
        let mut durable = written.into_iter().chain(zeroed).peekable();
        while durable.peek().is_some() {
            let records = durable.by_ref().take(BATCH_CHUNKS_MAX).collect();
            self.outbox.message(self.id, &Message::Durable { records });
        }
        if last {
            self.state.change(|state| state.ended = true);
        }
        !last
    }
}

impl State {
    fn count_written(&mut self, bytes: u64) {
        self.written_bytes += bytes;
        self.written_since.get_or_insert_with(Instant::now);
    }
}

/// Makes bytes of an image zero: by a hole, or by writing where the filesystem has none.
fn punch(image: &Image, bytes: Range<u64>) -> io::Result<()> {
    let offset = |position: u64| i64::try_from(position).map_err(|_| io::Error::from(Errno::EFBIG));
    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    loop {
        match fallocate(image.file(), mode, offset(bytes.start)?, offset(bytes.end - bytes.start)?) {
            Err(Errno::EINTR) => {}
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL | Errno::ENODEV) => break,
            result => return result.map_err(io::Error::from),
        }
    }
    let zeros = vec![0; ZEROS_BYTES];
    let mut position = bytes.start;
    while position < bytes.end {
        let length = (bytes.end - position).min(ZEROS_BYTES as u64);
        let part = &zeros[..usize::try_from(length).unwrap_or(ZEROS_BYTES)];
        std::os::unix::fs::FileExt::write_all_at(image.file(), part, position)?;
        position += length;
    }
    Ok(())
}
