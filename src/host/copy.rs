//! A copy between two agents through the controller: pieces are forwarded as they came, within both ends' credit.
//!
//! Forwarding is a task of its own; what became durable is handed to the sink on the caller's thread. Nothing is reported
//! that the destination did not acknowledge. Whatever ends the copy, what was acknowledged until then is reported.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use journal_format::{ChunkRecordV1, ChunkState};
use kvm_clone_agent::protocol::{
    CREDIT_BYTES_MAX, Geometry, HashJob as WireHashJob, Layer, Message, PUNCH_CREDIT_BYTES, Patch,
    RECEIVE_CREDIT_BYTES, ReceiveJob, Request, SendJob, WANTED_RANGES_MAX,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, timeout};

use super::client::{Client, Event, Stream, StreamSender};
use super::interrupt::Interrupt;
use super::pace::Pace;
use crate::world::{
    BATCH_CHUNKS_MAX, ChunkGeometry, ChunkSink, CopyJob, CopySummary, Fault, FaultKind, HashJob, SinkClosed, ZeroChunks,
};

/// Bytes that the source may send ahead: all that a copy holds in memory here, but for one socket's buffers.
const COPY_CREDIT_BYTES: u64 = CREDIT_BYTES_MAX;
/// A copy or hash in which nothing moves for so long, though the agents live, is given up.
const STALL_SECONDS_MAX: u64 = 120;
/// How often that is looked at.
const STALL_CHECK_SECONDS: u64 = 5;
/// How long the destination may take to acknowledge what it has, once the copy was broken off.
const WIND_UP_SECONDS_MAX: u64 = 5;
/// Skipped ranges that wait to be reported, at most.
const NOTICES_MAX: usize = 64;

/// Copies chunks, part by part where there are too many ranges for one request.
pub(super) async fn copy(
    source: &Client,
    destination: &Client,
    job: &CopyJob,
    interrupt: &Interrupt,
    sink: &mut dyn ChunkSink,
) -> Result<CopySummary, Fault> {
    let mut summary = CopySummary::default();
    for wanted in job.wanted.chunks(WANTED_RANGES_MAX) {
        summary.sent_bytes += copy_part(source, destination, job, wanted, interrupt, sink).await?;
    }
    Ok(summary)
}

/// Hashes chunks, likewise.
pub(super) async fn hash(
    client: &Client,
    job: &HashJob,
    interrupt: &Interrupt,
    sink: &mut dyn ChunkSink,
) -> Result<(), Fault> {
    let operation = format!("hash {}", job.path);
    for wanted in job.wanted.chunks(WANTED_RANGES_MAX) {
        let request = Request::HashChunks(WireHashJob {
            path: job.path.clone(),
            inode: job.inode,
            geometry: geometry(job.geometry),
            wanted: wanted.to_vec(),
            reread: job.reread,
            patches: patches(&job.patches),
            below: layers(&job.below),
        });
        let mut stream = client.open(&request, &operation, 0)?;
        loop {
            let event = tokio::select! {
                biased;
                why = interrupt.raised() => return Err(stream.broken(FaultKind::Interrupted, why)),
                event = timeout(Duration::from_secs(STALL_SECONDS_MAX), stream.next()) => match event {
                    Ok(event) => event?,
                    Err(_) => return Err(stalled(&stream)),
                },
            };
            let taken = match event {
                Event::Message(Message::Hashed { records }) => {
                    records.chunks(BATCH_CHUNKS_MAX).try_for_each(|batch| sink.chunks(batch))
                }
                Event::Message(Message::Holes { chunks }) => sink.holes(chunks),
                Event::Message(Message::Ended(Ok(()))) => break,
                Event::Message(Message::Ended(Err(failure))) => return Err(stream.fault(&failure)),
                _ => return Err(stream.nonsense("something else than chunk values")),
            };
            taken.map_err(|SinkClosed| sink_closed(&stream))?;
        }
    }
    Ok(())
}

fn geometry(geometry: ChunkGeometry) -> Geometry {
    Geometry { image_bytes: geometry.image_bytes, chunk_bytes: geometry.chunk_bytes }
}

fn report_zeros(sink: &mut dyn ChunkSink, chunks: Range<u64>) -> Result<(), SinkClosed> {
    let mut start = chunks.start;
    while start < chunks.end {
        let end = chunks.end.min(start + BATCH_CHUNKS_MAX as u64);
        let batch: Vec<_> = (start..end).map(|index| ChunkRecordV1 { index, state: ChunkState::Zero }).collect();
        sink.chunks(&batch)?;
        start = end;
    }
    Ok(())
}

fn stalled(stream: &Stream) -> Fault {
    stream.broken(FaultKind::TimedOut, format!("nothing moved for {STALL_SECONDS_MAX} s; the agent lives"))
}

fn sink_closed(stream: &Stream) -> Fault {
    stream.broken(FaultKind::Sink, "what became durable could not be recorded".into())
}

/// What the forwarding task skipped.
enum Notice {
    Holes(Range<u64>),
    Zeros(Range<u64>),
}

fn patches(patches: &[crate::world::Patch]) -> Vec<Patch> {
    patches.iter().map(|patch| Patch { offset: patch.offset, bytes: patch.bytes.clone() }).collect()
}

fn layers(below: &[crate::world::Layer]) -> Vec<Layer> {
    below.iter().map(|layer| Layer { path: layer.path.clone(), format: layer.format }).collect()
}

async fn copy_part(
    source: &Client,
    destination: &Client,
    job: &CopyJob,
    wanted: &[Range<u64>],
    interrupt: &Interrupt,
    sink: &mut dyn ChunkSink,
) -> Result<u64, Fault> {
    let geometry = geometry(job.geometry);
    let operation = format!("copy {} on {} to {} on {}", job.from, source.host(), job.to, destination.host());
    let receive = Request::ReceiveChunks(ReceiveJob {
        path: job.to.clone(),
        inode: job.to_inode,
        geometry,
        read_back: job.read_back,
    });
    let receive = destination.open(&receive, &operation, RECEIVE_CREDIT_BYTES)?;
    let send = Request::SendChunks(SendJob {
        path: job.from.clone(),
        geometry,
        wanted: wanted.to_vec(),
        credit_bytes: COPY_CREDIT_BYTES,
        patches: patches(&job.patches),
        below: layers(&job.below),
    });
    let send = source.open(&send, &operation, 0)?;
    let (notices, notice_queue) = mpsc::channel(NOTICES_MAX);
    let progress = Arc::new(Progress::default());
    let forwarding = Forwarding {
        send,
        to: receive.sender(),
        zero_chunks: job.zero_chunks,
        pace: Pace::new(job.bandwidth_limit_bytes_per_second),
        notices,
        progress: Arc::clone(&progress),
    };
    let source_stall = forwarding
        .send
        .broken(FaultKind::TimedOut, format!("the source sent nothing for {STALL_SECONDS_MAX} s; its agent lives"));
    let forwarding = Task(tokio::spawn(forwarding.run()));
    Collecting { receive, forwarding, notices: notice_queue, progress, source_stall, reason: None, sent_bytes: None }
        .run(interrupt, sink)
        .await
}

/// What moved, and for whom the forwarding task waits.
#[derive(Default)]
struct Progress {
    events: AtomicU64,
    waiting: AtomicU8,
}

const WAITING_FOR_SOURCE: u8 = 0;
const WAITING_FOR_DESTINATION: u8 = 1;
const WAITING_FOR_PACE: u8 = 2;

impl Progress {
    fn moved(&self) {
        self.events.fetch_add(1, Ordering::Relaxed);
    }

    fn wait_for(&self, whom: u8) {
        self.waiting.store(whom, Ordering::Relaxed);
    }
}

/// A task that ends with its handle.
struct Task<T>(JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// From the source's stream into the destination's.
struct Forwarding {
    send: Stream,
    to: StreamSender,
    zero_chunks: ZeroChunks,
    pace: Pace,
    notices: mpsc::Sender<Notice>,
    progress: Arc<Progress>,
}

impl Forwarding {
    /// Image bytes that went over.
    async fn run(mut self) -> Result<u64, Fault> {
        let mut sent_bytes = 0;
        loop {
            self.progress.wait_for(WAITING_FOR_SOURCE);
            let event = self.send.next().await?;
            self.progress.moved();
            match event {
                Event::Piece { bytes, frame } => {
                    self.progress.wait_for(WAITING_FOR_PACE);
                    self.pace.pass(bytes).await;
                    self.progress.wait_for(WAITING_FOR_DESTINATION);
                    self.to.spend(bytes).await?;
                    self.to.forward(frame).await?;
                    self.send.grant(u64::from(bytes));
                    sent_bytes += u64::from(bytes);
                }
                Event::Message(Message::Holes { chunks }) => self.skip(chunks, Notice::Holes).await?,
                Event::Message(Message::Zeros { chunks }) => self.skip(chunks, Notice::Zeros).await?,
                Event::Message(Message::Ended(Ok(()))) => {
                    self.progress.wait_for(WAITING_FOR_DESTINATION);
                    self.to.message(&Message::Finish).await?;
                    return Ok(sent_bytes);
                }
                Event::Message(Message::Ended(Err(failure))) => return Err(self.send.fault(&failure)),
                _ => return Err(self.send.nonsense("something else than chunks")),
            }
        }
    }

    async fn skip(&self, chunks: Range<u64>, notice: fn(Range<u64>) -> Notice) -> Result<(), Fault> {
        self.progress.wait_for(WAITING_FOR_DESTINATION);
        match self.zero_chunks {
            ZeroChunks::Skip => {
                // Nobody there any more: the copy is being broken off.
                drop(self.notices.send(notice(chunks)).await);
                Ok(())
            }
            ZeroChunks::Punch => {
                self.to.spend(u32::try_from(PUNCH_CREDIT_BYTES).unwrap_or(u32::MAX)).await?;
                self.to.message(&Message::Punch { chunks }).await
            }
        }
    }
}

/// What the destination acknowledges, to the sink.
struct Collecting {
    receive: Stream,
    forwarding: Task<Result<u64, Fault>>,
    notices: mpsc::Receiver<Notice>,
    progress: Arc<Progress>,
    source_stall: Fault,
    /// Why the copy is being broken off.
    reason: Option<Fault>,
    /// Known once everything was forwarded.
    sent_bytes: Option<u64>,
}

impl Collecting {
    async fn run(mut self, interrupt: &Interrupt, sink: &mut dyn ChunkSink) -> Result<u64, Fault> {
        let mut stall = Stall::new();
        let mut wind_up: Option<Instant> = None;
        let mut notices_open = true;
        let mut forwarded = false;
        loop {
            if self.reason.is_some() && wind_up.is_none() {
                self.forwarding.0.abort();
                self.receive.cancel();
                wind_up = Some(Instant::now() + Duration::from_secs(WIND_UP_SECONDS_MAX));
            }
            let going_on = self.reason.is_none();
            tokio::select! {
                biased;
                why = interrupt.raised(), if going_on => self.break_off(FaultKind::Interrupted, &why),
                () = tokio::time::sleep_until(wind_up.unwrap_or_else(Instant::now)), if wind_up.is_some() => break,
                notice = self.notices.recv(), if notices_open => match notice {
                    Some(notice) if going_on => self.take_notice(notice, sink),
                    Some(_) => {}
                    None => notices_open = false,
                },
                result = &mut self.forwarding.0, if !forwarded => {
                    forwarded = true;
                    match result {
                        Ok(Ok(sent_bytes)) => self.sent_bytes = Some(sent_bytes),
                        Ok(Err(fault)) => { self.reason.get_or_insert(fault); }
                        Err(error) if error.is_cancelled() => {}
                        Err(_) => self.break_off(FaultKind::Io, "the forwarding task panicked"),
                    }
                }
                event = self.receive.next() => match event {
                    Ok(Event::Message(Message::Durable { records })) => self.take(&records, |batch| sink.chunks(batch)),
                    Ok(Event::Message(Message::ReadBack { records })) => self.take(&records, |batch| sink.read_back(batch)),
                    Ok(Event::Message(Message::Ended(result))) => {
                        let result = result.map_err(|failure| self.receive.fault(&failure));
                        return self.ended(result, forwarded, sink).await;
                    }
                    Ok(_) => self.break_off(FaultKind::Unsupported, "the destination's agent broke the protocol"),
                    // Nothing more can come from it. Why the other end broke off, if it did, was there first.
                    Err(fault) => return Err(self.reason.take().unwrap_or(fault)),
                },
                () = stall.tick() => {
                    if stall.is_over(&self.progress) {
                        self.stalled();
                    }
                }
            }
        }
        Err(self.reason.take().unwrap_or_else(|| self.receive.nonsense("the copy ended without a reason")))
    }

    /// The destination's stream is over: everything must have been forwarded, or there is a reason.
    async fn ended(
        mut self,
        result: Result<(), Fault>,
        forwarded: bool,
        sink: &mut dyn ChunkSink,
    ) -> Result<u64, Fault> {
        if let Some(reason) = self.reason.take() {
            return Err(reason);
        }
        result?;
        if !forwarded && let Ok(Ok(sent_bytes)) = (&mut self.forwarding.0).await {
            self.sent_bytes = Some(sent_bytes);
        }
        while let Ok(notice) = self.notices.try_recv() {
            self.take_notice(notice, sink);
        }
        match (self.reason.take(), self.sent_bytes) {
            (Some(reason), _) => Err(reason),
            (None, Some(sent_bytes)) => Ok(sent_bytes),
            (None, None) => Err(self.receive.nonsense("the destination ended before everything was sent")),
        }
    }

    fn take(&mut self, records: &[ChunkRecordV1], report: impl FnMut(&[ChunkRecordV1]) -> Result<(), SinkClosed>) {
        self.progress.moved();
        if !self.sink_is_closed() && records.chunks(BATCH_CHUNKS_MAX).try_for_each(report).is_err() {
            self.reason = Some(sink_closed(&self.receive));
        }
    }

    fn take_notice(&mut self, notice: Notice, sink: &mut dyn ChunkSink) {
        let taken = match notice {
            Notice::Holes(chunks) => sink.holes(chunks),
            Notice::Zeros(chunks) => report_zeros(sink, chunks),
        };
        if taken.is_err() {
            self.reason = Some(sink_closed(&self.receive));
        }
    }

    fn sink_is_closed(&self) -> bool {
        self.reason.as_ref().is_some_and(|reason| reason.kind == FaultKind::Sink)
    }

    fn break_off(&mut self, kind: FaultKind, why: &str) {
        let fault = self.receive.broken(kind, why.into());
        self.reason.get_or_insert(fault);
    }

    fn stalled(&mut self) {
        if self.progress.waiting.load(Ordering::Relaxed) == WAITING_FOR_SOURCE {
            self.reason.get_or_insert(self.source_stall.clone());
        } else {
            self.reason.get_or_insert(stalled(&self.receive));
        }
    }
}

/// Notices when nothing moves for too long. Waiting for the bandwidth limit is no stall.
struct Stall {
    ticks: tokio::time::Interval,
    seen: u64,
    since: Instant,
}

impl Stall {
    fn new() -> Self {
        let mut ticks = tokio::time::interval(Duration::from_secs(STALL_CHECK_SECONDS));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { ticks, seen: 0, since: Instant::now() }
    }

    async fn tick(&mut self) {
        self.ticks.tick().await;
    }

    fn is_over(&mut self, progress: &Progress) -> bool {
        let events = progress.events.load(Ordering::Relaxed);
        let paced = progress.waiting.load(Ordering::Relaxed) == WAITING_FOR_PACE;
        if events != self.seen || paced {
            self.seen = events;
            self.since = Instant::now();
        }
        self.since.elapsed() >= Duration::from_secs(STALL_SECONDS_MAX)
    }
}
