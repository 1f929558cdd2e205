//! One agent, as the controller talks to it: requests with their replies, streams with their credit, signs of life.
//!
//! Two tasks own the streams to it. Every request has a bound; once the agent is lost every call fails at once, and nothing
//! reconnects. What was asked last before a loss may or may not have happened: the caller probes.

mod reader;
mod stream;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use journal_format::TxnId;
use kvm_clone_agent::protocol::{
    Attach, Failure, FailureKind, Hello, Overrides, PING_INTERVAL_SECONDS, ProcessId, Reply, Request, Role,
    SILENCE_SECONDS_MAX, Steer, encode_request, encode_steer,
};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, timeout};

pub(super) use stream::{Event, Stream, StreamSender};

use super::transport::{LastWords, Lifeline, Outgoing, Transport};
use crate::world::{Fault, FaultKind};

/// How long a new agent may take to say hello: it may come over a slow line first.
pub(super) const HELLO_SECONDS_MAX: u64 = 60;
/// An agent that is silent for so long, though it is asked for a sign of life every few seconds, is lost.
const AGENT_SILENCE_SECONDS_MAX: u64 = 20;
/// Frames of chunks that wait to be written, at most; each of at most 256 KiB.
const BULK_FRAMES_MAX: usize = 16;
/// How long an agent may take to end.
const END_SECONDS_MAX: u64 = 5;

/// How many milliseconds a clock is ahead of this time.
fn ahead_of(now: SystemTime, clock_ms: u64) -> i64 {
    let now_ms = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let ahead = i128::from(clock_ms) - i128::try_from(now_ms).unwrap_or(i128::MAX);
    i64::try_from(ahead).unwrap_or(if ahead < 0 { i64::MIN } else { i64::MAX })
}

/// An agent that said hello and was told what it is for.
pub(super) struct Client {
    shared: Arc<Shared>,
    hello: Hello,
    clock_ahead_ms: i64,
    lifeline: Mutex<Option<Lifeline>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// What the tasks, the streams and the callers share.
pub(super) struct Shared {
    host: String,
    next_id: AtomicU32,
    state: Mutex<State>,
    last_words: LastWords,
}

struct State {
    pending: HashMap<u32, oneshot::Sender<Result<Reply, Failure>>>,
    streams: HashMap<u32, stream::Entry>,
    /// Gone once the agent is lost, or was let go: then the writer ends, and with it the agent.
    queues: Option<Queues>,
    loss: Option<Loss>,
}

/// The ways to the writer: what is urgent overtakes what is bulk.
#[derive(Clone)]
struct Queues {
    urgent: mpsc::UnboundedSender<Bytes>,
    bulk: mpsc::Sender<Bytes>,
}

/// Why there is no agent any more.
#[derive(Debug, Clone)]
struct Loss {
    kind: FaultKind,
    detail: String,
}

impl Client {
    /// Waits for the agent's hello and tells it what it is for.
    pub(super) async fn attach(
        host: &str,
        transport: Transport,
        txn: Option<TxnId>,
        role: Role,
        overrides: Overrides,
    ) -> Result<Self, Fault> {
        let Transport { outgoing, mut incoming, last_words, mut lifeline } = transport;
        let greeting = reader::greeting(&mut incoming, &last_words);
        let refuse = |kind, detail| Fault { kind, host: host.into(), operation: "start the agent".into(), detail };
        let (hello, rest) = match timeout(Duration::from_secs(HELLO_SECONDS_MAX), greeting).await {
            Ok(Ok(greeting)) => greeting,
            Ok(Err(error)) => {
                if let Some(status) = lifeline.child_status().await {
                    last_words.ended(&status.to_string());
                }
                return Err(refuse(FaultKind::Unusable, format!("{error}{}", last_words.describe())));
            }
            Err(_) => {
                let detail = format!("no hello within {HELLO_SECONDS_MAX} s{}", last_words.describe());
                return Err(refuse(FaultKind::TimedOut, detail));
            }
        };
        let clock_ahead_ms = ahead_of(SystemTime::now(), hello.clock_ms);
        let (urgent, urgent_queue) = mpsc::unbounded_channel();
        let (bulk, bulk_queue) = mpsc::channel(BULK_FRAMES_MAX);
        let shared = Arc::new(Shared {
            host: host.to_owned(),
            next_id: AtomicU32::new(1),
            state: Mutex::new(State {
                pending: HashMap::new(),
                streams: HashMap::new(),
                queues: Some(Queues { urgent, bulk }),
                loss: None,
            }),
            last_words,
        });
        let tasks = vec![
            tokio::spawn(write(outgoing, urgent_queue, bulk_queue, Arc::clone(&shared))),
            tokio::spawn(reader::read(incoming, rest, Arc::clone(&shared))),
        ];
        let client =
            Self { shared, hello, clock_ahead_ms, lifeline: Mutex::new(Some(lifeline)), tasks: Mutex::new(tasks) };
        let attach = Attach { txn, role, silence_seconds: SILENCE_SECONDS_MAX, overrides };
        let bound = Duration::from_secs(HELLO_SECONDS_MAX);
        client.request(&Request::Attach(attach), bound, || "start the agent".into()).await?;
        Ok(client)
    }

    /// What the agent said of itself and its host.
    pub(super) fn hello(&self) -> &Hello {
        &self.hello
    }

    /// How far the host's clock was ahead of this machine's when it said hello, about.
    pub(super) fn clock_ahead_ms(&self) -> i64 {
        self.clock_ahead_ms
    }

    /// The host's name, as the user gave it.
    pub(super) fn host(&self) -> &str {
        &self.shared.host
    }

    /// The agent's process.
    pub(super) fn agent(&self) -> ProcessId {
        self.hello.agent
    }

    /// The fault of a lost agent, if it is lost.
    pub(super) fn check(&self, operation: &str) -> Result<(), Fault> {
        match &self.shared.state().loss {
            Some(loss) => Err(self.shared.lost(loss, operation)),
            None => Ok(()),
        }
    }

    /// Asks and waits for the reply, `bound` at most.
    pub(super) async fn request(
        &self,
        request: &Request,
        bound: Duration,
        operation: impl Fn() -> String,
    ) -> Result<Reply, Fault> {
        let (id, reply) = {
            let mut state = self.shared.state();
            if let Some(loss) = &state.loss {
                return Err(self.shared.lost(loss, &operation()));
            }
            let id = self.shared.next_id();
            let (sender, receiver) = oneshot::channel();
            state.pending.insert(id, sender);
            (id, receiver)
        };
        if let Err(fault) = self.shared.send_urgent(encode_request(id, request), &operation) {
            self.shared.state().pending.remove(&id);
            return Err(fault);
        }
        match timeout(bound, reply).await {
            Ok(Ok(Ok(reply))) => Ok(reply),
            Ok(Ok(Err(failure))) => Err(self.shared.fault(&failure, operation())),
            Ok(Err(_)) => Err(self.shared.gone(&operation())),
            Err(_) => {
                self.shared.state().pending.remove(&id);
                Err(Fault {
                    kind: FaultKind::TimedOut,
                    host: self.shared.host.clone(),
                    operation: operation(),
                    detail: format!("no answer within {} s; the agent lives", bound.as_secs()),
                })
            }
        }
    }

    /// Opens a stream. `operation` names it in faults; `credit_bytes` is what may be sent on it at once.
    pub(super) fn open(&self, request: &Request, operation: &str, credit_bytes: u64) -> Result<Stream, Fault> {
        Stream::open(&self.shared, request, operation, credit_bytes)
    }

    /// Ends the agent: closes its stdin, and waits for its end, a few seconds at most. A second time does nothing.
    pub(super) async fn end(&self) {
        let lost = self.shared.state().loss.is_some();
        self.shared.lose(FaultKind::Unreachable, "it was disconnected");
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for mut task in tasks {
            // The writer ends once it said so, the reader once the agent did.
            if lost || timeout(Duration::from_secs(END_SECONDS_MAX), &mut task).await.is_err() {
                task.abort();
            }
        }
        let lifeline = self.lifeline.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(lifeline) = lifeline {
            lifeline.end().await;
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock; if something did, the state is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_id(&self) -> u32 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    fn queues(&self) -> Option<Queues> {
        self.state().queues.clone()
    }

    fn send_urgent(
        &self,
        frame: Result<Vec<u8>, kvm_clone_agent::protocol::ProtocolError>,
        operation: &dyn Fn() -> String,
    ) -> Result<(), Fault> {
        let frame = frame.map_err(|error| Fault {
            kind: FaultKind::Unsupported,
            host: self.host.clone(),
            operation: operation(),
            detail: error.to_string(),
        })?;
        match self.queues() {
            Some(queues) if queues.urgent.send(frame.into()).is_ok() => Ok(()),
            _ => Err(self.gone(&operation())),
        }
    }

    /// Steers a stream; on a lost agent there is nothing to steer.
    fn steer(&self, id: u32, steer: Steer) {
        if let (Ok(frame), Some(queues)) = (encode_steer(id, steer), self.queues()) {
            drop(queues.urgent.send(frame.into()));
        }
    }

    /// From here on every call fails. The first reason stays.
    fn lose(&self, kind: FaultKind, detail: &str) {
        let (pending, streams) = {
            let mut state = self.state();
            if state.loss.is_none() {
                tracing::debug!(host = self.host, detail, "agent lost");
                state.loss = Some(Loss { kind, detail: detail.to_owned() });
            }
            state.queues = None;
            (std::mem::take(&mut state.pending), std::mem::take(&mut state.streams))
        };
        drop(pending);
        streams.into_values().for_each(stream::Entry::close);
    }

    fn lost(&self, loss: &Loss, operation: &str) -> Fault {
        Fault {
            kind: loss.kind,
            host: self.host.clone(),
            operation: operation.to_owned(),
            detail: format!("the connection to the agent on {} is lost: {}", self.host, loss.detail),
        }
    }

    fn gone(&self, operation: &str) -> Fault {
        let loss = self.state().loss.clone();
        let unknown = Loss { kind: FaultKind::Unreachable, detail: "it ended".into() };
        self.lost(&loss.unwrap_or(unknown), operation)
    }

    /// What the agent refused, as the engine's fault.
    fn fault(&self, failure: &Failure, operation: String) -> Fault {
        // What was tried is said once.
        let detail = failure.detail.strip_prefix(&operation).and_then(|detail| detail.strip_prefix(": "));
        let detail = detail.unwrap_or(&failure.detail).to_owned();
        Fault { kind: kind_of(failure.kind), host: self.host.clone(), operation, detail }
    }
}

fn kind_of(kind: FailureKind) -> FaultKind {
    match kind {
        FailureKind::NotFound => FaultKind::NotFound,
        FailureKind::AlreadyExists => FaultKind::AlreadyExists,
        FailureKind::NotEmpty => FaultKind::NotEmpty,
        FailureKind::NoSpace => FaultKind::NoSpace,
        FailureKind::Denied => FaultKind::Denied,
        FailureKind::Io | FailureKind::Mismatch => FaultKind::Io,
        FailureKind::Unsupported | FailureKind::Protocol => FaultKind::Unsupported,
        FailureKind::Changed => FaultKind::Changed,
        FailureKind::InUse => FaultKind::InUse,
        FailureKind::LibvirtDown => FaultKind::LibvirtDown,
        // `Busy` is a bound that other work of ours reached: later there is room.
        FailureKind::TimedOut | FailureKind::Busy => FaultKind::TimedOut,
        FailureKind::Fenced => FaultKind::Fenced,
        FailureKind::Cancelled => FaultKind::Interrupted,
    }
}

/// Writes what is urgent before what is bulk, and asks for a sign of life every few seconds.
async fn write(
    mut outgoing: Outgoing,
    mut urgent: mpsc::UnboundedReceiver<Bytes>,
    mut bulk: mpsc::Receiver<Bytes>,
    shared: Arc<Shared>,
) {
    let mut pings = tokio::time::interval(Duration::from_secs(u64::from(PING_INTERVAL_SECONDS)));
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let frame = tokio::select! {
            biased;
            frame = urgent.recv() => frame,
            _ = pings.tick() => encode_request(shared.next_id(), &Request::Ping).ok().map(Bytes::from),
            frame = bulk.recv() => frame,
        };
        // The queues are closed: the agent was let go, or the reader lost it.
        let Some(frame) = frame else { break };
        if let Err(error) = outgoing.send(frame).await {
            // The reader knows better why, if there is more to know.
            tokio::time::sleep(Duration::from_millis(500)).await;
            shared.lose(FaultKind::Unreachable, &format!("nothing can be sent: {error}"));
            break;
        }
    }
    outgoing.close().await;
}
