//! The requests, one after the other: each is checked against the guard, carried out, answered. What runs on is a
//! stream, on threads of its own.

use std::sync::Arc;
use std::thread;

use kvm_clone_agent::protocol::{
    Attach, Failure, FailureKind, Message, RelayPurpose, Reply, Request, Role, SILENCE_SECONDS_MAX,
};

use crate::devices::{self, Devices};
use crate::failure::{errno, failure, refused};
use crate::guard::{Change, Guard, check_path};
use crate::locks::Locks;
use crate::outbox::Outbox;
use crate::receive::Target;
use crate::session::{Ordered, Silence, Stream, Streams};
use crate::{counts, files, filesystem, hash, process, send, tools};

/// The thread that carries out requests. Being one, it keeps their order: a request that the controller gave up waiting
/// for has had its effect, or none, before the next one looks.
#[derive(Debug)]
pub struct Worker {
    outbox: Arc<Outbox>,
    streams: Arc<Streams>,
    silence: Arc<Silence>,
    attached: Option<Attached>,
    locks: Locks,
    devices: Devices,
}

#[derive(Debug)]
struct Attached {
    guard: Guard,
    libvirt_socket: Option<String>,
}

impl Worker {
    /// A worker that nobody is attached to.
    pub fn new(outbox: Arc<Outbox>, streams: Arc<Streams>, silence: Arc<Silence>) -> Self {
        Self { outbox, streams, silence, attached: None, locks: Locks::default(), devices: Devices::default() }
    }

    /// Carries out one request and answers it, or starts its stream.
    pub fn carry_out(&mut self, order: Ordered) {
        let Ordered { id, request, stream } = order;
        match stream {
            None => {
                let reply = self.answer(request);
                self.outbox.reply(id, &reply);
            }
            Some(stream) => {
                let relay = matches!(stream, Stream::Relay(_));
                if let Err(failed) = self.start(id, request, stream) {
                    end_stream(&self.streams, &self.outbox, id, relay, Err(failed));
                }
            }
        }
    }

    fn attached(&mut self) -> Result<&mut Attached, Failure> {
        self.attached.as_mut().ok_or_else(|| failure(FailureKind::Protocol, "nobody is attached yet"))
    }

    fn attach(&mut self, attach: Attach) -> Result<Reply, Failure> {
        if self.attached.is_some() {
            return Err(failure(FailureKind::Protocol, "attached already"));
        }
        if !(1..=SILENCE_SECONDS_MAX).contains(&attach.silence_seconds) {
            let detail = format!("a silence of {} s: from 1 to {SILENCE_SECONDS_MAX}", attach.silence_seconds);
            return Err(failure(FailureKind::Protocol, detail));
        }
        let guard = Guard::new(&attach)?;
        self.silence.limit(attach.silence_seconds);
        self.attached = Some(Attached { guard, libvirt_socket: attach.overrides.libvirt_socket });
        Ok(Reply::Done)
    }

    /// Refuses what may not be changed.
    fn check(&mut self, change: Change<'_>) -> Result<(), Failure> {
        let owner_files = self.attached()?.guard.owner_files();
        let owner_held = self.locks.owner_held_at(&owner_files);
        self.attached()?.guard.check(change, owner_held)
    }

    fn check_role(&mut self, operation: &str, roles: &[Role]) -> Result<(), Failure> {
        self.attached()?.guard.check_role(operation, roles)
    }

    fn answer(&mut self, request: Request) -> Result<Reply, Failure> {
        match request {
            Request::Attach(attach) => return self.attach(attach),
            Request::Allow { paths } => {
                self.attached()?.guard.allow(paths)?;
                return Ok(Reply::Done);
            }
            _ => {}
        }
        self.attached()?;
        match request {
            Request::Stat { .. }
            | Request::Read { .. }
            | Request::List { .. }
            | Request::Resolve { .. }
            | Request::Filesystem { .. }
            | Request::Device { .. }
            | Request::DevicesLike { .. }
            | Request::IdsOf { .. } => look(request),
            Request::Counts => Ok(Reply::Counts(counts::now())),
            Request::RunTool { tool } => {
                self.check_role("run a tool", &[Role::Look])?;
                tools::run(&tool).map(Reply::Ran)
            }
            Request::LockOwner { .. }
            | Request::KillAgent { .. }
            | Request::LockImage { .. }
            | Request::UnlockImage { .. } => self.lock(request),
            request => self.change(request),
        }
    }

    fn lock(&mut self, request: Request) -> Result<Reply, Failure> {
        match request {
            Request::LockOwner { path } => {
                self.attached()?.guard.check_owner_file(&path)?;
                let lock = self.locks.lock_owner(&path);
                if !self.locks.owner_held() {
                    self.cut_what_changes();
                }
                lock.map(Reply::OwnerLock)
            }
            Request::KillAgent { agent } => {
                self.check_role("kill agent", &[Role::Destination])?;
                process::kill_agent(agent).map(|()| Reply::Done)
            }
            Request::LockImage { path } => {
                check_path(&path)?;
                self.check_role("lock image", &[Role::Source, Role::Destination])?;
                self.locks.lock_image(&path).map(|inode| Reply::Made { inode })
            }
            Request::UnlockImage { path } => {
                check_path(&path)?;
                self.locks.unlock_image(&path).map(|()| Reply::Done)
            }
            request => Err(not_here(&request)),
        }
    }

    /// Who let go of the owner lock changes nothing any more, by what is under way either.
    fn cut_what_changes(&self) {
        for stream in self.streams.lock().values() {
            match stream {
                Stream::Relay(relay) if relay.purpose() == RelayPurpose::Change => relay.cancel(),
                Stream::Incoming(receiver) => receiver.cancel(),
                Stream::Relay(_) | Stream::Outgoing(_) => {}
            }
        }
    }

    fn change(&mut self, request: Request) -> Result<Reply, Failure> {
        let made = |inode| Reply::Made { inode };
        let done = |()| Reply::Done;
        match request {
            Request::MakeDir { path, mode } => {
                self.check(Change::MakeDir(&path))?;
                files::make_dir(&path, mode).map(made)
            }
            Request::MakeFile { path, mode, content } => {
                self.check(Change::Path(&path))?;
                files::make_file(&path, mode, &content).map(made)
            }
            Request::WriteAt { path, inode, offset, bytes } => {
                self.check(Change::Path(&path))?;
                files::write_at(&path, inode, offset, &bytes).map(done)
            }
            Request::SetSize { path, inode, bytes, allocate } => {
                self.check(Change::Path(&path))?;
                files::set_size(&path, inode, bytes, allocate).map(done)
            }
            Request::SetAttributes { path, inode, uid, gid, mode } => {
                self.check(Change::Path(&path))?;
                files::set_attributes(&path, inode, uid, gid, mode).map(done)
            }
            Request::Sync { path } => {
                check_path(&path)?;
                self.check_role(&format!("sync {path}"), &[Role::Destination])?;
                files::sync(&path).map(done)
            }
            Request::SyncFilesystem { path } => {
                check_path(&path)?;
                self.check_role(&format!("sync the filesystem of {path}"), &[Role::Destination])?;
                files::sync_filesystem(&path).map(done)
            }
            Request::Link { from, to } => {
                self.check(Change::Path(&from))?;
                self.check(Change::Path(&to))?;
                files::link(&from, &to).map(done)
            }
            Request::Rename { from, to } => {
                self.check(Change::Rename(&from, &to))?;
                files::rename(&from, &to).map(done)
            }
            Request::Unlink { path, inode } => {
                self.check(Change::Path(&path))?;
                files::unlink(&path, inode).map(done)
            }
            Request::RemoveDir { path } => {
                self.check(Change::Path(&path))?;
                files::remove_dir(&path).map(done)
            }
            Request::Relabel { path } => {
                self.check(Change::Path(&path))?;
                tools::relabel(&path).map(Reply::Ran)
            }
            Request::HoldDevice { path, identity } => {
                self.check(Change::Path(&path))?;
                self.devices.hold(&path, &identity).map(made)
            }
            Request::UnlinkUnused { path, inode } => {
                self.check(Change::Path(&path))?;
                self.locks.unlink_unused(&path, inode).map(done)
            }
            request => Err(not_here(&request)),
        }
    }

    /// Opens what a stream works on, and lets it run.
    fn start(&mut self, id: u32, request: Request, stream: Stream) -> Result<(), Failure> {
        let outbox = Arc::clone(&self.outbox);
        self.attached()?;
        match (request, stream) {
            (Request::HashChunks(job), Stream::Outgoing(flow)) => {
                check_path(&job.path)?;
                self.spawn(id, false, move || hash::run(id, job, &flow, &outbox))
            }
            (Request::SendChunks(job), Stream::Outgoing(flow)) => {
                check_path(&job.path)?;
                self.spawn(id, false, move || send::run(id, job, &flow, &outbox))
            }
            (Request::ReceiveChunks(job), Stream::Incoming(receiver)) => {
                self.check(Change::Path(&job.path))?;
                let target = Target::open(&job)?;
                if target.image.device().is_some_and(|number| !self.devices.holds(number)) {
                    let detail = format!("write to {}: this agent does not hold that device", job.path);
                    return Err(failure(FailureKind::Fenced, detail));
                }
                self.spawn(id, false, move || receiver.run(&target))
            }
            (Request::OpenRelay { purpose }, Stream::Relay(relay)) => {
                if purpose == RelayPurpose::Change {
                    let owner_held = self.locks.owner_held();
                    self.attached()?.guard.check_changing_relay(owner_held)?;
                }
                let socket = self.attached()?.libvirt_socket.clone();
                self.spawn(id, true, move || relay.run(socket.as_deref()))
            }
            (request, _) => Err(not_here(&request)),
        }
    }

    fn spawn(
        &self,
        id: u32,
        relay: bool,
        run: impl FnOnce() -> Result<(), Failure> + Send + 'static,
    ) -> Result<(), Failure> {
        let streams = Arc::clone(&self.streams);
        let outbox = Arc::clone(&self.outbox);
        thread::Builder::new()
            .spawn(move || {
                let end = run();
                end_stream(&streams, &outbox, id, relay, end);
            })
            .map(drop)
            .map_err(|error| refused("start a thread", errno(&error)))
    }
}

/// Forgets a stream, then says that it ended: its id means nothing any more when the controller hears of it.
fn end_stream(streams: &Streams, outbox: &Outbox, id: u32, relay: bool, end: Result<(), Failure>) {
    streams.change(|streams| streams.remove(&id));
    let message = Message::Ended(end);
    if relay {
        outbox.relay_message(id, &message);
    } else {
        outbox.message(id, &message);
    }
}

fn look(request: Request) -> Result<Reply, Failure> {
    match request {
        Request::Stat { path } => {
            check_path(&path)?;
            files::stat(&path).map(Reply::Stat)
        }
        Request::Read { path, max_bytes } => {
            check_path(&path)?;
            files::read(&path, max_bytes).map(Reply::Content)
        }
        Request::List { directory } => {
            check_path(&directory)?;
            files::list(&directory).map(Reply::Names)
        }
        Request::Resolve { path } => {
            check_path(&path)?;
            files::resolve(&path).map(Reply::Resolved)
        }
        Request::Filesystem { path } => {
            check_path(&path)?;
            filesystem::filesystem(&path).map(Reply::Filesystem)
        }
        Request::Device { path } => {
            check_path(&path)?;
            devices::look(&path).map(Reply::Device)
        }
        Request::DevicesLike { identity } => devices::like(&identity).map(|nodes| Reply::Names(Some(nodes))),
        Request::IdsOf { user, group } => {
            filesystem::ids_of(&user, &group).map(|(user, group)| Reply::Ids { user, group })
        }
        request => Err(not_here(&request)),
    }
}

/// A request that was sorted wrongly: a bug, but no reason to die.
fn not_here(request: &Request) -> Failure {
    failure(FailureKind::Protocol, format!("not a request for here: {request:?}"))
}
