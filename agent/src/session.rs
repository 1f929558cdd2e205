//! One controller's session: the thread that hears it, the one that carries out its requests in order, the streams.
//!
//! The hearing thread never waits for anything but the controller, so that pings, grants and cancels are always heard.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use journal_format::Inode;
use kvm_clone_agent::flat::LAYERS_MAX;
use kvm_clone_agent::protocol::{
    CHUNK_STREAMS_MAX, CREDIT_BYTES_MAX, FRAME_HEADER_BYTES, Failure, FailureKind, FrameHeader, FrameKind, Geometry,
    Layer, Message, PATCH_BYTES_MAX, PATCHES_MAX, PIECE_HEADER_BYTES, PREAMBLE, Patch, PieceHeader, ProtocolError,
    RELAYS_MAX, REQUESTS_WAITING_MAX, Reply, Request, SILENCE_SECONDS_MAX, Steer, WANTED_RANGES_MAX, decode_message,
    decode_request, decode_steer,
};
use nix::fcntl::{FcntlArg, fcntl};

use crate::counts;
use crate::exit;
use crate::failure::failure;
use crate::flow::Flow;
use crate::guard::check_path;
use crate::monitor::Monitor;
use crate::outbox::Outbox;
use crate::process;
use crate::receive::{Arriving, Receiver};
use crate::relay::Relay;
use crate::requests::Worker;

/// Bytes that a pipe to the controller holds, where the kernel allows it: fewer switches between the two.
const PIPE_BYTES: i32 = 1 << 20;
/// Bytes read ahead of what is wanted now; larger reads go straight to where they belong.
const READ_AHEAD_BYTES: usize = 4 << 10;
/// How often silence is looked at.
const SILENCE_POLL: Duration = Duration::from_millis(250);

/// When the controller was last heard, and how long it may be silent.
#[derive(Debug)]
pub struct Silence {
    began: Instant,
    heard_milliseconds: AtomicU64,
    limit_milliseconds: AtomicU64,
}

impl Silence {
    fn new() -> Self {
        let limit_milliseconds = AtomicU64::new(u64::from(SILENCE_SECONDS_MAX) * 1000);
        Self { began: Instant::now(), heard_milliseconds: AtomicU64::new(0), limit_milliseconds }
    }

    /// Sets the limit.
    pub fn limit(&self, seconds: u32) {
        self.limit_milliseconds.store(u64::from(seconds) * 1000, Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Ends the agent when the limit is reached, whatever its other threads are blocked in.
    fn watch(&self) -> ! {
        loop {
            thread::sleep(SILENCE_POLL);
            let silent = self.now().saturating_sub(self.heard_milliseconds.load(Ordering::Relaxed));
            if silent >= self.limit_milliseconds.load(Ordering::Relaxed) {
                exit::end(exit::SILENCE, &format!("the controller has been silent for {} s", silent / 1000));
            }
        }
    }
}

/// Standard input, every byte of which is a sign of life.
struct Heard {
    input: File,
    silence: Arc<Silence>,
}

impl Read for Heard {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.silence.heard_milliseconds.store(self.silence.now(), Ordering::Relaxed);
        Ok(read)
    }
}

/// An open stream, as the controller's frames reach it.
#[derive(Debug, Clone)]
pub enum Stream {
    /// `HashChunks` or `SendChunks`.
    Outgoing(Arc<Flow>),
    /// `ReceiveChunks`.
    Incoming(Arc<Receiver>),
    /// `OpenRelay`.
    Relay(Arc<Relay>),
}

/// The streams that are open, by id.
pub type Streams = Monitor<HashMap<u32, Stream>>;

/// A request on its way to be carried out.
#[derive(Debug)]
pub struct Ordered {
    /// Its id.
    pub id: u32,
    /// What is asked.
    pub request: Request,
    /// The stream that it opens.
    pub stream: Option<Stream>,
}

/// Runs a session on standard input and output. Returns only if it could not begin.
pub fn run() -> ExitCode {
    let duplicate = |fd: io::Result<std::os::fd::OwnedFd>| fd.map(File::from);
    let input = duplicate(io::stdin().as_fd().try_clone_to_owned());
    let output = duplicate(io::stdout().as_fd().try_clone_to_owned());
    let begun = match (input, output, process::hello()) {
        (Ok(input), Ok(output), Ok(hello)) => begin(input, output, hello),
        (Err(error), ..) | (_, Err(error), _) => Err(error.to_string()),
        (.., Err(failure)) => Err(failure.to_string()),
    };
    match begun {
        Ok(never) => match never {},
        Err(why) => {
            eprintln!("kvm-clone-agent: {why}");
            ExitCode::from(exit::UNUSABLE)
        }
    }
}

fn begin(
    input: File,
    mut output: File,
    hello: kvm_clone_agent::protocol::Hello,
) -> Result<std::convert::Infallible, String> {
    for pipe in [&input, &output] {
        // Not a pipe, or above the user's limit: then as it is.
        let _ = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
    }
    let silence = Arc::new(Silence::new());
    let outbox = Arc::new(Outbox::default());
    let streams = Arc::new(Streams::default());
    let (orders, waiting) = sync_channel(REQUESTS_WAITING_MAX);
    let mut worker = Worker::new(Arc::clone(&outbox), Arc::clone(&streams), Arc::clone(&silence));
    outbox.reply(0, &Ok(Reply::Hello(hello)));
    let outgoing = Arc::clone(&outbox);
    let watching = Arc::clone(&silence);
    let spawned = [
        thread::Builder::new().spawn(move || watching.watch()).map(drop),
        thread::Builder::new()
            .spawn(move || {
                if let Err(error) = io::Write::write_all(&mut output, &PREAMBLE) {
                    exit::end(exit::CLOSED, &format!("cannot write to the controller: {error}"));
                }
                outgoing.write_to(output)
            })
            .map(drop),
        thread::Builder::new().spawn(move || waiting.iter().for_each(|order| worker.carry_out(order))).map(drop),
    ];
    for result in spawned {
        result.map_err(|error| format!("cannot start a thread: {error}"))?;
    }
    let input = BufReader::with_capacity(READ_AHEAD_BYTES, Heard { input, silence });
    let mut hearing = Hearing { input, outbox, streams, orders, arriving: HashMap::new() };
    loop {
        if let Err(broken) = hearing.frame() {
            match broken {
                Broken::Closed => exit::end(exit::CLOSED, ""),
                Broken::Read(error) => exit::end(exit::CLOSED, &format!("cannot read from the controller: {error}")),
                Broken::Protocol(error) => exit::end(exit::PROTOCOL, &error.to_string()),
                Broken::Senseless(what) => exit::end(exit::PROTOCOL, &what),
            }
        }
    }
}

/// Why nothing more can be heard.
enum Broken {
    Closed,
    Read(io::Error),
    Protocol(ProtocolError),
    Senseless(String),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Closed } else { Self::Read(error) }
    }
}

impl From<ProtocolError> for Broken {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(error)
    }
}

struct Hearing {
    input: BufReader<Heard>,
    outbox: Arc<Outbox>,
    streams: Arc<Streams>,
    orders: SyncSender<Ordered>,
    /// Chunks of which some pieces arrived, by stream.
    arriving: HashMap<u32, Arriving>,
}

impl Hearing {
    /// Hears one frame.
    fn frame(&mut self) -> Result<(), Broken> {
        let mut header = [0; FRAME_HEADER_BYTES];
        self.input.read_exact(&mut header)?;
        let header = FrameHeader::decode(&header)?;
        match header.kind {
            FrameKind::Request => {
                let request = decode_request(&self.payload(header)?)?;
                self.request(header.id, request)
            }
            FrameKind::Steer => {
                let steer = decode_steer(&self.payload(header)?)?;
                self.steer(header.id, steer);
                Ok(())
            }
            FrameKind::Message => {
                let message = decode_message(&self.payload(header)?)?;
                self.message(header.id, message)
            }
            FrameKind::Piece => self.piece(header),
            FrameKind::Bytes => {
                let bytes = self.payload(header)?;
                self.bytes(header.id, bytes)
            }
            FrameKind::Reply => Err(Broken::Senseless("the controller sent a reply".into())),
        }
    }

    fn payload(&mut self, header: FrameHeader) -> io::Result<Vec<u8>> {
        let mut payload = vec![0; header.payload_bytes as usize];
        self.input.read_exact(&mut payload)?;
        Ok(payload)
    }

    fn skip(&mut self, bytes: u32) -> Result<(), Broken> {
        let bytes = u64::from(bytes);
        match io::copy(&mut self.input.by_ref().take(bytes), &mut io::sink())? {
            skipped if skipped == bytes => Ok(()),
            _ => Err(Broken::Closed),
        }
    }

    fn stream(&self, id: u32) -> Option<Stream> {
        self.streams.lock().get(&id).cloned()
    }

    fn request(&mut self, id: u32, request: Request) -> Result<(), Broken> {
        if request == Request::Ping {
            self.outbox.offer_reply(id, &Ok(Reply::Pong));
            return Ok(());
        }
        counts::request();
        let stream = match self.new_stream(id, &request)? {
            Ok(stream) => stream,
            Err(failed) => {
                self.outbox.offer_end(id, failed);
                return Ok(());
            }
        };
        if let Some(stream) = &stream {
            self.streams.change(|streams| {
                streams.insert(id, stream.clone());
                // What a stream that ended in the middle of a chunk left behind.
                self.arriving.retain(|id, _| streams.contains_key(id));
            });
        }
        let opens_stream = stream.is_some();
        match self.orders.try_send(Ordered { id, request, stream }) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                let busy = failure(FailureKind::Busy, format!("{REQUESTS_WAITING_MAX} requests are waiting already"));
                if opens_stream {
                    self.streams.change(|streams| streams.remove(&id));
                    self.outbox.offer_end(id, busy);
                } else {
                    self.outbox.offer_reply(id, &Err(busy));
                }
            }
            Err(TrySendError::Disconnected(_)) => return Err(Broken::Senseless("the worker is gone".into())),
        }
        Ok(())
    }

    /// The stream that a request opens, if it does, before it runs: its frames may follow at once.
    fn new_stream(&self, id: u32, request: &Request) -> Result<Result<Option<Stream>, Failure>, Broken> {
        let (kind, stream) = match request {
            Request::HashChunks(job) => {
                let checked = check_job(job.geometry, &job.wanted)
                    .and_then(|()| check_patches(job.geometry, &job.patches))
                    .and_then(|()| check_layers(&job.below, job.inode, &job.patches));
                (job.path.as_str(), checked.map(|()| Stream::Outgoing(Arc::new(Flow::new(0, 0)))))
            }
            Request::SendChunks(job) => {
                let checked = check_job(job.geometry, &job.wanted)
                    .and_then(|()| check_patches(job.geometry, &job.patches))
                    .and_then(|()| check_layers(&job.below, None, &job.patches));
                let flow = Flow::new(job.credit_bytes, CREDIT_BYTES_MAX);
                (job.path.as_str(), checked.map(|()| Stream::Outgoing(Arc::new(flow))))
            }
            Request::ReceiveChunks(job) => {
                let stream = check_job(job.geometry, &[])
                    .map(|()| Stream::Incoming(Arc::new(Receiver::new(id, job.geometry, Arc::clone(&self.outbox)))));
                (job.path.as_str(), stream)
            }
            Request::OpenRelay { purpose } => {
                ("relay", Ok(Stream::Relay(Arc::new(Relay::new(id, *purpose, Arc::clone(&self.outbox))))))
            }
            _ => return Ok(Ok(None)),
        };
        let streams = self.streams.lock();
        if streams.contains_key(&id) {
            return Err(Broken::Senseless(format!("the controller opened stream {id} twice")));
        }
        Ok(stream.and_then(|stream| {
            let relay = matches!(stream, Stream::Relay(_));
            let open = streams.values().filter(|other| matches!(other, Stream::Relay(_)) == relay).count();
            let open_max = if relay { RELAYS_MAX } else { CHUNK_STREAMS_MAX };
            if open < open_max {
                return Ok(Some(stream));
            }
            Err(failure(FailureKind::Busy, format!("{kind}: {open_max} such streams are open already")))
        }))
    }

    fn steer(&mut self, id: u32, steer: Steer) {
        match (self.stream(id), steer) {
            (Some(Stream::Outgoing(flow)), Steer::Grant { bytes }) => flow.grant(bytes),
            (Some(Stream::Outgoing(flow)), Steer::Cancel) => flow.cancel(),
            (Some(Stream::Incoming(receiver)), Steer::Cancel) => receiver.cancel(),
            (Some(Stream::Relay(relay)), Steer::Grant { bytes }) => relay.grant(bytes),
            (Some(Stream::Relay(relay)), Steer::Cancel) => relay.cancel(),
            (Some(Stream::Incoming(_)), Steer::Grant { .. }) | (None, _) => {}
        }
    }

    fn message(&mut self, id: u32, message: Message) -> Result<(), Broken> {
        let Some(stream) = self.stream(id) else {
            return Ok(());
        };
        match (stream, message) {
            (Stream::Incoming(receiver), Message::Punch { chunks }) => {
                if let Err(failed) = receiver.punch(chunks) {
                    receiver.fail(failed);
                }
            }
            (Stream::Incoming(receiver), Message::Finish) => receiver.finish(),
            _ => return Err(Broken::Senseless(format!("a message that stream {id} does not take"))),
        }
        Ok(())
    }

    fn piece(&mut self, header: FrameHeader) -> Result<(), Broken> {
        let mut piece = [0; PIECE_HEADER_BYTES];
        if (header.payload_bytes as usize) < PIECE_HEADER_BYTES {
            return Err(ProtocolError::Piece.into());
        }
        self.input.read_exact(&mut piece)?;
        let piece = PieceHeader::decode(&piece, header.payload_bytes)?;
        #[allow(clippy::cast_possible_truncation)] // 48.
        let piece_bytes = header.payload_bytes - PIECE_HEADER_BYTES as u32;
        let before = self.arriving.remove(&header.id);
        let receiver = match self.stream(header.id) {
            Some(Stream::Incoming(receiver)) => receiver,
            Some(_) => return Err(Broken::Senseless(format!("a chunk that stream {} does not take", header.id))),
            None => return self.skip(piece_bytes),
        };
        match receiver.arrive(before, piece, piece_bytes) {
            Ok(Some(mut arriving)) => {
                self.input.read_exact(arriving.room(piece_bytes))?;
                if let Some(arriving) = receiver.arrived(arriving, piece_bytes) {
                    self.arriving.insert(header.id, arriving);
                }
                Ok(())
            }
            Ok(None) => self.skip(piece_bytes),
            Err(failed) => {
                receiver.fail(failed);
                self.skip(piece_bytes)
            }
        }
    }

    fn bytes(&mut self, id: u32, bytes: Vec<u8>) -> Result<(), Broken> {
        match self.stream(id) {
            Some(Stream::Relay(relay)) => relay.arrived(bytes).map_err(|failed| Broken::Senseless(failed.to_string())),
            Some(_) => Err(Broken::Senseless(format!("bytes that stream {id} does not take"))),
            None => Ok(()),
        }
    }
}

fn check_job(geometry: Geometry, wanted: &[std::ops::Range<u64>]) -> Result<(), Failure> {
    if wanted.len() > WANTED_RANGES_MAX {
        return Err(failure(FailureKind::Protocol, format!("a job of more than {WANTED_RANGES_MAX} ranges")));
    }
    geometry
        .check()
        .and_then(|()| geometry.check_ranges(wanted))
        .map_err(|error| failure(FailureKind::Protocol, error.to_string()))
}

fn check_layers(below: &[Layer], inode: Option<Inode>, patches: &[Patch]) -> Result<(), Failure> {
    if below.len() >= LAYERS_MAX {
        return Err(failure(FailureKind::Protocol, format!("a job for a chain of more than {LAYERS_MAX} images")));
    }
    if !below.is_empty() && (inode.is_some() || !patches.is_empty()) {
        return Err(failure(FailureKind::Protocol, "a job for a chain, which has no inode and no patches"));
    }
    below.iter().try_for_each(|layer| check_path(&layer.path))
}

fn check_patches(geometry: Geometry, patches: &[Patch]) -> Result<(), Failure> {
    let is_sound = |patch: &Patch| {
        let end = patch.offset.checked_add(patch.bytes.len() as u64);
        patch.bytes.len() <= PATCH_BYTES_MAX && end.is_some_and(|end| end <= geometry.image_bytes)
    };
    if patches.len() > PATCHES_MAX || !patches.iter().all(is_sound) {
        return Err(failure(
            FailureKind::Protocol,
            "a job with patches that are too many, too large or outside the image",
        ));
    }
    Ok(())
}
