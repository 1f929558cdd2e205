//! libvirt of a host, through the agent's relay: one connection at a time, each on a thread of its own.
//!
//! Every call has a bound; one that exceeds it takes its connection with it. A libvirt that is not there is waited for, up to
//! a bound. A call that changes something is never repeated: after a lost connection its caller probes.

mod calls;
mod relay;
mod snapshots;

use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use kvm_clone_agent::protocol::RelayPurpose;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
use virt::connect::Connect;
use virt::error::{ErrorNumber, clear_error_callback};

use super::client::Client;
use super::interrupt::Interrupt;
use crate::world::{Fault, FaultKind};
use relay::Relay;

/// How long a call may take. Starting a domain or looking through a pool takes its time, and whatever first asks for
/// what QEMU can do makes libvirt run every QEMU of the host: on a busy one that is more than half a minute.
const CALL_SECONDS_MAX: u64 = 120;
/// How long saving or restoring a guest's memory may take: 64 GiB at 40 MB/s.
const MEMORY_CALL_SECONDS_MAX: u64 = 1800;
/// How long a libvirt that is not there is waited for.
const DOWN_SECONDS_MAX: u64 = 30;
/// How often it is looked for meanwhile.
const DOWN_RETRY_MILLISECONDS: u64 = 500;

/// What libvirt answered instead of doing it.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) code: Option<ErrorNumber>,
    pub(super) message: String,
}

impl From<virt::error::Error> for Refusal {
    fn from(error: virt::error::Error) -> Self {
        let code = match error.code() {
            virt::error::ErrorNumberEnum::Known(code) => Some(code),
            virt::error::ErrorNumberEnum::Unknown(_) => None,
        };
        Self { code, message: error.message().to_owned() }
    }
}

impl Refusal {
    /// While connecting: a daemon that is just starting or ending, and no answer of it. The words are those of libvirt's
    /// library in this process, which nobody asked to translate them.
    fn is_broken_link(&self) -> bool {
        match self.code {
            Some(ErrorNumber::SystemError | ErrorNumber::Rpc | ErrorNumber::NoConnect) => true,
            Some(ErrorNumber::InternalError) => {
                self.message.contains("socket is closed") || self.message.contains("End of file")
            }
            _ => false,
        }
    }

    pub(super) fn is(&self, code: ErrorNumber) -> bool {
        self.code == Some(code)
    }
}

/// Why a call gave nothing.
enum CallError {
    /// libvirt said no.
    Refused(Refusal),
    /// The connection broke: whether the call took effect is unknown.
    Lost(String),
    /// No answer in time.
    TimedOut { seconds: u64 },
}

type Job = Box<dyn FnOnce(&Connect) + Send>;

/// libvirt of one host.
pub(super) struct Libvirt {
    client: Arc<Client>,
    interrupt: Interrupt,
    connection: Mutex<Option<Arc<Connection>>>,
    may_change: AtomicBool,
}

/// One connection: the thread that owns it takes one call after the other.
struct Connection {
    jobs: std::sync::mpsc::Sender<Job>,
    relay: Relay,
}

impl Libvirt {
    pub(super) fn new(client: Arc<Client>, interrupt: Interrupt) -> Self {
        Self { client, interrupt, connection: Mutex::new(None), may_change: AtomicBool::new(false) }
    }

    /// The next call opens a new connection.
    pub(super) fn renew(&self) {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Whether the agent relays changes from now on: what proves an ownership and what acts on it go the same way.
    pub(super) fn set_may_change(&self, may_change: bool) {
        if self.may_change.swap(may_change, Ordering::SeqCst) != may_change {
            self.renew();
        }
    }

    /// A call that changes nothing: it is repeated when the connection broke under it.
    async fn ask<T, F>(&self, operation: &str, call: F) -> Result<T, Fault>
    where
        T: Send + 'static,
        F: Fn(&Connect) -> Result<T, Refusal> + Clone + Send + 'static,
    {
        let deadline = Instant::now() + Duration::from_secs(DOWN_SECONDS_MAX);
        loop {
            let connection = self.connect(operation, deadline).await?;
            match connection.run(CALL_SECONDS_MAX, call.clone()).await {
                Err(CallError::Lost(_)) if Instant::now() < deadline => {
                    self.renew();
                    self.client.check(operation)?;
                    self.pause(operation).await?;
                }
                other => return self.settle(operation, other),
            }
        }
    }

    /// A call that may change something: made once.
    async fn change<T, F>(&self, operation: &str, call: F) -> Result<T, Fault>
    where
        T: Send + 'static,
        F: FnOnce(&Connect) -> Result<T, Refusal> + Send + 'static,
    {
        self.change_within(CALL_SECONDS_MAX, operation, call).await
    }

    /// A call that may change something and take up to so many seconds: made once.
    async fn change_within<T, F>(&self, seconds_max: u64, operation: &str, call: F) -> Result<T, Fault>
    where
        T: Send + 'static,
        F: FnOnce(&Connect) -> Result<T, Refusal> + Send + 'static,
    {
        let deadline = Instant::now() + Duration::from_secs(DOWN_SECONDS_MAX);
        let connection = self.connect(operation, deadline).await?;
        let result = connection.run(seconds_max, call).await;
        self.settle(operation, result)
    }

    fn settle<T>(&self, operation: &str, result: Result<T, CallError>) -> Result<T, Fault> {
        match result {
            Ok(value) => Ok(value),
            Err(CallError::Refused(refusal)) => {
                Err(self.fault(kind_of(&refusal), operation, format!("libvirt: {}", refusal.message)))
            }
            Err(CallError::Lost(why)) => {
                self.renew();
                // A dead agent takes the relay with it: then it is the one to be named.
                self.client.check(operation)?;
                Err(self.fault(FaultKind::LibvirtDown, operation, format!("the connection to libvirt broke: {why}")))
            }
            Err(CallError::TimedOut { seconds }) => {
                self.renew();
                self.client.check(operation)?;
                let detail = format!("libvirt did not answer within {seconds} s; is libvirtd or virtqemud hanging?");
                Err(self.fault(FaultKind::TimedOut, operation, detail))
            }
        }
    }

    /// The connection there is, or a new one: libvirt is waited for until the deadline.
    async fn connect(&self, operation: &str, deadline: Instant) -> Result<Arc<Connection>, Fault> {
        let there = self.connection.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(connection) = there.filter(|connection| connection.relay.is_open()) {
            return Ok(connection);
        }
        self.renew();
        loop {
            let fault = match self.open(operation).await {
                Ok(connection) => {
                    let connection = Arc::new(connection);
                    *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&connection));
                    return Ok(connection);
                }
                Err(fault) => fault,
            };
            self.client.check(operation)?;
            if fault.kind != FaultKind::LibvirtDown {
                return Err(fault);
            }
            if Instant::now() >= deadline {
                let detail = format!(
                    "libvirt could not be reached for {DOWN_SECONDS_MAX} s: {}; start it on the host \
                     (`systemctl start libvirtd`, or virtqemud)",
                    fault.detail
                );
                return Err(Fault { detail, ..fault });
            }
            self.pause(operation).await?;
        }
    }

    /// Between two looks for a libvirt that is not there.
    async fn pause(&self, operation: &str) -> Result<(), Fault> {
        tokio::select! {
            biased;
            why = self.interrupt.raised() => Err(self.fault(FaultKind::Interrupted, operation, why)),
            () = sleep(Duration::from_millis(DOWN_RETRY_MILLISECONDS)) => Ok(()),
        }
    }

    async fn open(&self, operation: &str) -> Result<Connection, Fault> {
        let may_change = self.may_change.load(Ordering::SeqCst);
        let purpose = if may_change { RelayPurpose::Change } else { RelayPurpose::Look };
        let relay = Relay::open(&self.client, purpose, operation).await?;
        let uri = relay.uri();
        let (jobs, queue) = std::sync::mpsc::channel::<Job>();
        let (report, opened) = oneshot::channel();
        std::thread::Builder::new()
            .name("libvirt".into())
            .spawn(move || serve(&uri, report, &queue))
            .map_err(|error| self.fault(FaultKind::Io, operation, format!("no thread can be started: {error}")))?;
        match timeout(Duration::from_secs(CALL_SECONDS_MAX), opened).await {
            Ok(Ok(Ok(()))) => Ok(Connection { jobs, relay }),
            Ok(Ok(Err(refusal))) => {
                let kind = if refusal.is_broken_link() { FaultKind::LibvirtDown } else { kind_of(&refusal) };
                let denied = kind == FaultKind::Denied;
                let advice = if denied { "; log in as root, or as a member of the group libvirt" } else { "" };
                Err(self.fault(kind, operation, format!("libvirt: {}{advice}", refusal.message)))
            }
            Ok(Err(_)) => Err(self.fault(FaultKind::Io, operation, "the thread for libvirt ended".into())),
            Err(_) => Err(self.fault(
                FaultKind::TimedOut,
                operation,
                format!("libvirt did not take a connection within {CALL_SECONDS_MAX} s"),
            )),
        }
    }

    fn fault(&self, kind: FaultKind, operation: &str, detail: String) -> Fault {
        Fault { kind, host: self.client.host().to_owned(), operation: operation.to_owned(), detail }
    }
}

impl Connection {
    async fn run<T, F>(&self, seconds_max: u64, call: F) -> Result<T, CallError>
    where
        T: Send + 'static,
        F: FnOnce(&Connect) -> Result<T, Refusal> + Send + 'static,
    {
        let (report, answer) = oneshot::channel();
        let job: Job = Box::new(move |connect| {
            let result = call(connect).map_err(|refusal| {
                // The error of a broken connection looks like any other.
                if connect.is_alive().unwrap_or(false) {
                    CallError::Refused(refusal)
                } else {
                    CallError::Lost(refusal.message)
                }
            });
            // Nobody there any more: it waited too long.
            drop(report.send(result));
        });
        let ended = || CallError::Lost("its thread ended".into());
        self.jobs.send(job).map_err(|_| ended())?;
        match timeout(Duration::from_secs(seconds_max), answer).await {
            Ok(answer) => answer.unwrap_or_else(|_| Err(ended())),
            Err(_) => Err(CallError::TimedOut { seconds: seconds_max }),
        }
    }
}

/// The life of a connection's thread.
fn serve(uri: &str, report: oneshot::Sender<Result<(), Refusal>>, jobs: &std::sync::mpsc::Receiver<Job>) {
    static QUIET: OnceLock<()> = OnceLock::new();
    // libvirt prints every error to stderr otherwise.
    QUIET.get_or_init(clear_error_callback);
    let connect = match Connect::open(Some(uri)) {
        Ok(connect) => ManuallyDrop::new(connect),
        Err(error) => return drop(report.send(Err(error.into()))),
    };
    if report.send(Ok(())).is_ok() {
        while let Ok(job) = jobs.recv() {
            job(&connect);
        }
    }
    close(&connect);
}

/// `Connect` panics when closing fails, as it may when the relay is gone. Nobody is there to be told.
fn close(connect: &ManuallyDrop<Connect>) {
    // SAFETY: the pointer is the one reference that `connect` owns; it is in `ManuallyDrop` and not used after this.
    let _ = unsafe { virt_sys::virConnectClose(connect.as_ptr()) };
}

/// What a system error ends with when there is no room.
const FULL: [&str; 2] = ["No space left on device", "Disk quota exceeded"];

/// libvirt's answer as the engine's kind of fault.
fn kind_of(refusal: &Refusal) -> FaultKind {
    use ErrorNumber as E;
    match refusal.code {
        Some(
            E::NoDomain
            | E::NoDomainSnapshot
            | E::NoNetwork
            | E::NoStoragePool
            | E::NoStorageVolume
            | E::NoDomainMetadata,
        ) => FaultKind::NotFound,
        Some(E::DomExist) => FaultKind::AlreadyExists,
        Some(E::AuthFailed | E::AuthCancelled | E::AuthUnavailable | E::AccessDenied | E::OperationDenied) => {
            FaultKind::Denied
        }
        Some(E::NoSupport) => FaultKind::Unsupported,
        Some(E::OperationTimeout) => FaultKind::TimedOut,
        // Its number is not handed on. A daemon that speaks another language has trouble with its disk, which is true too.
        Some(E::SystemError) if FULL.iter().any(|words| refusal.message.contains(words)) => FaultKind::NoSpace,
        // The host's trouble and not the request's: it may be over the next time.
        Some(E::SystemError | E::NoMemory | E::Rpc) => FaultKind::Io,
        _ => FaultKind::Refused,
    }
}
