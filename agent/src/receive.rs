//! `ReceiveChunks`: the destination half of a copy. Checks, writes, syncs, and only then says that a chunk is durable.
//! Where it is asked to, it reads each chunk back from the disk after that, beside the writing.

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
    RECEIVE_CREDIT_BYTES, ReceiveJob,
};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use crate::buffer::{Buffer, Pool};
use crate::failure::{errno, failure, refused};
use crate::flow::cancelled;
use crate::hash::{READ_BYTES, read_chunk};
use crate::image::{Access, Image};
use crate::monitor::Monitor;
use crate::outbox::Outbox;

/// Threads that check and write, and read back: a disk wants several requests at a time.
const RECEIVE_LANES: usize = 4;
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
    /// Durable, to be read back.
    unread: VecDeque<u64>,
    /// Read back, not told yet.
    read_back: Vec<ChunkRecordV1>,
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
    ReadBack(u64),
}

/// An image that is written, and how it is read back from the disk, if it is.
#[derive(Debug)]
pub struct Target {
    pub image: Image,
    pub reader: Option<Image>,
}

impl Target {
    /// Opens it.
    pub fn open(job: &ReceiveJob) -> Result<Self, Failure> {
        let open = |access| Image::open(&job.path, Some(job.inode), job.geometry, access);
        Ok(Self { image: open(Access::Write)?, reader: if job.read_back { Some(open(Access::Reread)?) } else { None } })
    }
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
            state.unread.clear();
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
    pub fn run(&self, target: &Target) -> Result<(), Failure> {
        let pool = Pool::new(READ_BYTES.min(self.geometry.chunk_bytes as usize), READ_BYTES * RECEIVE_LANES);
        thread::scope(|scope| {
            for _ in 0..RECEIVE_LANES {
                if let Err(error) = thread::Builder::new().spawn_scoped(scope, || self.lane(target, &pool)) {
                    self.fail(refused("start a thread", errno(&error)));
                }
            }
            while self.sync_when_due(target) {}
        });
        match self.state.lock().failed.take() {
            Some(failed) => Err(failed),
            None => Ok(()),
        }
    }

    fn lane(&self, target: &Target, pool: &Arc<Pool>) {
        while let Some(work) = self.take_work() {
            let result = match work {
                Work::Chunk(header, buffer) => {
                    self.write(&target.image, header, &buffer).map(|()| u64::from(header.chunk_len))
                }
                Work::Punch(chunks) => self.zero(&target.image, chunks).map(|()| PUNCH_CREDIT_BYTES),
                Work::ReadBack(index) => self.read_back(target, index, pool).map(|()| 0),
            };
            self.state.change(|state| state.in_work -= 1);
            match result {
                Ok(0) => {}
                Ok(credit_bytes) => self.grant(credit_bytes),
                Err(failed) => self.fail(failed),
            }
        }
    }

    fn take_work(&self) -> Option<Work> {
        self.state.wait_for(|state| {
            if state.ended {
                return Some(None);
            }
            // Reading back comes first, so that it never lags further behind than writing does.
            let work = match state.unread.pop_front() {
                Some(index) => Some(Work::ReadBack(index)),
                None if state.written_bytes >= UNSYNCED_BYTES_MAX => None,
                None => state.work.pop_front(),
            };
            state.in_work += usize::from(work.is_some());
            work.map(Some)
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

    fn read_back(&self, target: &Target, index: u64, pool: &Arc<Pool>) -> Result<(), Failure> {
        let (Some(image), Some(mut buffer)) = (&target.reader, pool.take()) else { return Ok(()) };
        let state = read_chunk(&|position, bytes| image.read(position, bytes), self.geometry, index, &mut buffer)?;
        self.state.change(|stream| stream.read_back.push(ChunkRecordV1 { index, state }));
        Ok(())
    }

    /// Waits until a sync is due, syncs, acknowledges what was written before it began, and lets it be read back. `false`
    /// once the stream ends.
    fn sync_when_due(&self, target: &Target) -> bool {
        let due = self.state.wait_with_time(|state| {
            if state.ended {
                return Ok(None);
            }
            let idle = state.finishing && state.work.is_empty() && state.unread.is_empty() && state.in_work == 0;
            if idle && state.written.is_empty() && state.zeroed.is_empty() && state.read_back.is_empty() {
                return Ok(None);
            }
            let waited = state.written_since.map_or(Duration::ZERO, |since| since.elapsed());
            if idle || state.written_bytes >= SYNC_INTERVAL_BYTES || waited >= SYNC_INTERVAL {
                state.written_bytes = 0;
                state.written_since = None;
                let (written, zeroed) = (mem::take(&mut state.written), mem::take(&mut state.zeroed));
                return Ok(Some((written, zeroed, mem::take(&mut state.read_back))));
            }
            Err(state.written_since.map(|_| SYNC_INTERVAL.saturating_sub(waited)))
        });
        let Some((written, zeroed, read_back)) = due else {
            self.state.change(|state| state.ended = true);
            return false;
        };
        for records in read_back.chunks(BATCH_CHUNKS_MAX) {
            self.outbox.message(self.id, &Message::ReadBack { records: records.to_vec() });
        }
        let is_new = !written.is_empty() || !zeroed.is_empty();
        if is_new && let Err(failed) = target.image.sync() {
            self.fail(failed);
            return false;
        }
        let unread: Vec<u64> = written.iter().map(|record| record.index).collect();
        let zeroed = zeroed.into_iter().flatten().map(|index| ChunkRecordV1 { index, state: ChunkState::Zero });
        let mut durable = written.into_iter().chain(zeroed).peekable();
        while durable.peek().is_some() {
            let records = durable.by_ref().take(BATCH_CHUNKS_MAX).collect();
            self.outbox.message(self.id, &Message::Durable { records });
        }
        if target.reader.is_some() {
            self.state.change(|state| state.unread.extend(unread));
        }
        true
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
