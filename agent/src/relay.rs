//! `OpenRelay`: bytes between the controller and libvirt's socket, both ways. They are counted, and not understood.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use kvm_clone_agent::protocol::{Failure, FailureKind, Message, RELAY_BYTES_MAX, RELAY_CREDIT_BYTES, RelayPurpose};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use crate::counts::{self, Calls};
use crate::failure::{errno, failure, refused};
use crate::flow::{Flow, cancelled};
use crate::monitor::Monitor;
use crate::outbox::Outbox;

/// The system instance of libvirt, monolithic daemon first.
const SOCKETS: [&str; 4] = [
    "/run/libvirt/libvirt-sock",
    "/var/run/libvirt/libvirt-sock",
    "/run/libvirt/virtqemud-sock",
    "/var/run/libvirt/virtqemud-sock",
];
/// How long a daemon that does not accept is waited for.
const CONNECT_SECONDS_MAX: u64 = 5;
/// How often it is tried meanwhile.
const CONNECT_POLL_MILLISECONDS: u64 = 50;

/// One relay: filled by the thread that reads the controller.
#[derive(Debug)]
pub struct Relay {
    id: u32,
    purpose: RelayPurpose,
    outbox: Arc<Outbox>,
    /// What may still be sent to the controller.
    flow: Flow,
    state: Monitor<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes for libvirt.
    arrived: VecDeque<Vec<u8>>,
    arrived_bytes: u64,
    ended: bool,
    /// To be shut down when the controller cancels.
    socket: Option<UnixStream>,
}

impl Relay {
    /// A relay that is not connected yet, but may be filled already.
    pub fn new(id: u32, purpose: RelayPurpose, outbox: Arc<Outbox>) -> Self {
        let flow = Flow::new(RELAY_CREDIT_BYTES, RELAY_CREDIT_BYTES);
        Self { id, purpose, outbox, flow, state: Monitor::default() }
    }

    /// What it was opened for.
    pub fn purpose(&self) -> RelayPurpose {
        self.purpose
    }

    /// Bytes from the controller.
    pub fn arrived(&self, bytes: Vec<u8>) -> Result<(), Failure> {
        self.state.change(|state| {
            state.arrived_bytes += bytes.len() as u64;
            if state.arrived_bytes > RELAY_CREDIT_BYTES && !state.ended {
                return Err(failure(FailureKind::Protocol, "relayed bytes beyond the credit"));
            }
            if !state.ended {
                state.arrived.push_back(bytes);
            }
            Ok(())
        })
    }

    /// The controller granted credit.
    pub fn grant(&self, bytes: u64) {
        self.flow.grant(bytes);
    }

    /// The controller wants no more.
    pub fn cancel(&self) {
        self.flow.cancel();
        self.end();
    }

    fn end(&self) {
        self.state.change(|state| {
            state.ended = true;
            state.arrived.clear();
            if let Some(socket) = &state.socket {
                let _ = socket.shutdown(Shutdown::Both);
            }
        });
    }

    /// Connects, and relays until libvirt or the controller ends it.
    pub fn run(&self, override_path: Option<&str>) -> Result<(), Failure> {
        let socket = self.connect(override_path)?;
        let clone = || socket.try_clone().map_err(|error| refused("relay to libvirt", errno(&error)));
        let (reading, writing, shutting) = (clone()?, clone()?, clone()?);
        self.state.change(|state| state.socket = Some(shutting));
        // A cancel may have come before there was a socket to shut down.
        self.flow.check()?;
        self.outbox.relay_message(self.id, &Message::Opened);
        let result = thread::scope(|scope| {
            let writer = thread::Builder::new().spawn_scoped(scope, || self.write_lane(writing));
            let result = match writer {
                Ok(_) => self.read_lane(reading),
                Err(error) => Err(refused("start a thread", errno(&error))),
            };
            self.end();
            result
        });
        self.flow.check()?;
        result
    }

    fn read_lane(&self, mut socket: UnixStream) -> Result<(), Failure> {
        let mut buffer = vec![0; RELAY_BYTES_MAX];
        loop {
            let credit_bytes = self.flow.take(1, RELAY_BYTES_MAX as u64)?;
            let room = usize::try_from(credit_bytes).unwrap_or(RELAY_BYTES_MAX).min(RELAY_BYTES_MAX);
            let read = match socket.read(&mut buffer[..room]) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                // The daemon died: for the controller the same as a closed connection.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
                Err(error) => return Err(refused("read from libvirt", errno(&error))),
            };
            self.flow.grant(credit_bytes - read as u64);
            if read > 0 {
                self.outbox.relay_bytes(self.id, &buffer[..read]);
            }
        }
    }

    fn write_lane(&self, mut socket: UnixStream) {
        let next =
            || self.state.wait_for(|state| if state.ended { Some(None) } else { state.arrived.pop_front().map(Some) });
        let mut calls = Calls::default();
        while let Some(bytes) = next() {
            counts::libvirt_calls(calls.take(&bytes));
            if socket.write_all(&bytes).is_err() {
                // The reading lane sees the end of the connection too, after what libvirt still had to say.
                let _ = socket.shutdown(Shutdown::Write);
                return;
            }
            let bytes = bytes.len() as u64;
            self.state.change(|state| state.arrived_bytes = state.arrived_bytes.saturating_sub(bytes));
            self.outbox.grant(self.id, bytes);
        }
    }

    /// The first socket that answers.
    fn connect(&self, override_path: Option<&str>) -> Result<UnixStream, Failure> {
        let deadline = Instant::now() + Duration::from_secs(CONNECT_SECONDS_MAX);
        let sockets = override_path.map_or_else(|| SOCKETS.to_vec(), |path| vec![path]);
        loop {
            let mut said = Vec::new();
            let mut full = false;
            for path in &sockets {
                match try_connect(path) {
                    Ok(socket) => return Ok(socket),
                    Err(error) => {
                        full |= error == Errno::EAGAIN;
                        said.push(format!("{path}: {}", error.desc()));
                    }
                }
            }
            self.flow.check().map_err(|_| cancelled())?;
            if !full || Instant::now() >= deadline {
                let detail = format!("connect to libvirt: nobody answers ({})", said.join("; "));
                return Err(failure(FailureKind::LibvirtDown, detail));
            }
            thread::sleep(Duration::from_millis(CONNECT_POLL_MILLISECONDS));
        }
    }
}

/// Connects without waiting: a daemon that does not accept any more says `EAGAIN`.
fn try_connect(path: &str) -> Result<UnixStream, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    fcntl(&socket, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok(UnixStream::from(socket))
}
