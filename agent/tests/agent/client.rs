//! A small blocking controller, for tests. Every wait has a bound.

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use journal_format::{Inode, TxnId};
use kvm_clone_agent::protocol::{
    Attach, FRAME_HEADER_BYTES, Failure, FailureKind, FrameHeader, FrameKind, Hello, Message, Overrides, OwnerLock,
    PIECE_HEADER_BYTES, PREAMBLE, PieceHeader, Reply, Request, Role, Steer, decode_message, decode_reply, decode_steer,
    encode_message, encode_request, encode_steer,
};

pub const TXN: TxnId = TxnId([9; 16]);
pub const WAIT: Duration = Duration::from_secs(20);

/// What arrives for an id.
#[derive(Debug)]
pub enum Event {
    Reply(Result<Reply, Failure>),
    Steer(Steer),
    Message(Message),
    Piece(PieceHeader, Vec<u8>),
    Bytes(Vec<u8>),
}

/// An agent and the link to it.
pub struct Client {
    pub child: Child,
    pub stdin: Option<ChildStdin>,
    pub hello: Hello,
    frames: Receiver<(u32, Event)>,
    kept: HashMap<u32, VecDeque<Event>>,
    next_id: u32,
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The path of the agent that was built for these tests.
pub fn agent() -> &'static str {
    env!("CARGO_BIN_EXE_kvm-clone-agent")
}

impl Client {
    /// Starts an agent and hears its greeting.
    pub fn start() -> Self {
        let mut child =
            Command::new(agent()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut output = child.stdout.take().unwrap();
        let (frames_in, frames) = channel();
        thread::spawn(move || {
            let mut preamble = [0; PREAMBLE.len()];
            output.read_exact(&mut preamble).unwrap();
            assert_eq!(preamble, PREAMBLE);
            while let Some(frame) = read_frame(&mut output) {
                if frames_in.send(frame).is_err() {
                    return;
                }
            }
        });
        let Ok((0, Event::Reply(Ok(Reply::Hello(hello))))) = frames.recv_timeout(WAIT) else {
            panic!("no greeting");
        };
        let stdin = child.stdin.take();
        Self { child, stdin, hello, frames, kept: HashMap::new(), next_id: 1 }
    }

    /// Starts an agent and attaches to it.
    pub fn attach(role: Role, overrides: Overrides) -> Self {
        let mut client = Self::start();
        let attach = Attach { txn: Some(TXN), role, silence_seconds: 30, overrides };
        assert_eq!(client.call(Request::Attach(attach)), Ok(Reply::Done));
        client
    }

    pub fn source() -> Self {
        Self::attach(Role::Source, Overrides::default())
    }

    pub fn write(&mut self, frame: &[u8]) {
        self.stdin.as_mut().unwrap().write_all(frame).unwrap();
    }

    /// Sends a request and gives its id.
    pub fn send(&mut self, request: &Request) -> u32 {
        let id = self.next_id;
        self.next_id += 1;
        self.write(&encode_request(id, request).unwrap());
        id
    }

    pub fn steer(&mut self, id: u32, steer: Steer) {
        self.write(&encode_steer(id, steer).unwrap());
    }

    pub fn message(&mut self, id: u32, message: &Message) {
        self.write(&encode_message(id, message).unwrap());
    }

    pub fn piece(&mut self, id: u32, piece: PieceHeader, bytes: &[u8]) {
        let payload_bytes = u32::try_from(PIECE_HEADER_BYTES + bytes.len()).unwrap();
        let header = FrameHeader { kind: FrameKind::Piece, id, payload_bytes };
        self.write(&[&header.encode()[..], &piece.encode(), bytes].concat());
    }

    /// The next thing that arrives for an id within the time; what arrives for others is kept.
    pub fn next_within(&mut self, id: u32, time: Duration) -> Option<Event> {
        if let Some(event) = self.kept.get_mut(&id).and_then(VecDeque::pop_front) {
            return Some(event);
        }
        let deadline = Instant::now() + time;
        loop {
            match self.frames.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok((arrived, event)) if arrived == id => return Some(event),
                Ok((arrived, event)) => self.kept.entry(arrived).or_default().push_back(event),
                Err(RecvTimeoutError::Timeout) => return None,
                Err(RecvTimeoutError::Disconnected) => panic!("the agent is gone: {:?}", self.last_words()),
            }
        }
    }

    pub fn next(&mut self, id: u32) -> Event {
        self.next_within(id, WAIT).expect("an answer in time")
    }

    pub fn call(&mut self, request: Request) -> Result<Reply, Failure> {
        let id = self.send(&request);
        match self.next(id) {
            Event::Reply(reply) => reply,
            Event::Message(Message::Ended(Err(failure))) => Err(failure),
            other => panic!("not a reply: {other:?}"),
        }
    }

    pub fn kind(&mut self, request: Request) -> Option<FailureKind> {
        self.call(request).err().map(|failure| failure.kind)
    }

    pub fn made(&mut self, request: Request) -> Inode {
        match self.call(request) {
            Ok(Reply::Made { inode }) => inode,
            other => panic!("not made: {other:?}"),
        }
    }

    /// Waits for the agent's end.
    pub fn end_within(&mut self, time: Duration) -> ExitStatus {
        let deadline = Instant::now() + time;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the agent lives after {time:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn last_words(&mut self) -> String {
        let mut words = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut words).unwrap();
        words
    }
}

fn read_frame(input: &mut impl Read) -> Option<(u32, Event)> {
    let mut header = [0; FRAME_HEADER_BYTES];
    input.read_exact(&mut header).ok()?;
    let header = FrameHeader::decode(&header).unwrap();
    let mut payload = vec![0; header.payload_bytes as usize];
    input.read_exact(&mut payload).ok()?;
    let event = match header.kind {
        FrameKind::Reply => Event::Reply(decode_reply(&payload).unwrap()),
        FrameKind::Steer => Event::Steer(decode_steer(&payload).unwrap()),
        FrameKind::Message => Event::Message(decode_message(&payload).unwrap()),
        FrameKind::Piece => {
            let (piece, bytes) = payload.split_first_chunk().unwrap();
            Event::Piece(PieceHeader::decode(piece, header.payload_bytes).unwrap(), bytes.to_vec())
        }
        FrameKind::Bytes => Event::Bytes(payload),
        FrameKind::Request => panic!("the agent sent a request"),
    };
    Some((header.id, event))
}

/// A destination with a host record of its own, whose owner lock is held, and a directory that it may change.
pub struct Destination {
    pub client: Client,
    pub root: PathBuf,
    pub work: PathBuf,
    _directory: tempfile::TempDir,
}

impl Destination {
    /// Attached, nothing locked.
    pub fn unlocked() -> Self {
        Self::unlocked_with(None)
    }

    /// The same, with libvirt at another place.
    pub fn unlocked_with(libvirt_socket: Option<String>) -> Self {
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let root = directory.path().join("host");
        let work = directory.path().join("work");
        std::fs::create_dir(&root).unwrap();
        std::fs::create_dir(&work).unwrap();
        let overrides = Overrides { host_record_root: Some(text(&root)), libvirt_socket };
        let mut client = Client::attach(Role::Destination, overrides);
        assert_eq!(
            client.call(Request::Allow { paths: vec![text(&work), format!("{}/", text(&work))] }),
            Ok(Reply::Done)
        );
        Self { client, root, work, _directory: directory }
    }

    /// With the owner lock, taken as a transaction does.
    pub fn locked() -> Self {
        Self::locked_with(None)
    }

    /// The same, with libvirt at another place.
    pub fn locked_with(libvirt_socket: Option<String>) -> Self {
        let mut this = Self::unlocked_with(libvirt_socket);
        let new = this.root.join(format!(".new-{TXN}"));
        this.client.made(Request::MakeDir { path: text(&new), mode: 0o700 });
        let owner = text(&new.join("owner"));
        let inode = this.client.made(Request::MakeFile { path: owner.clone(), mode: 0o600, content: vec![0; 8192] });
        let lock = this.client.call(Request::LockOwner { path: owner });
        assert_eq!(lock, Ok(Reply::OwnerLock(OwnerLock::Held { inode })));
        let record = text(&this.root.join(format!("{TXN}")));
        assert_eq!(this.client.call(Request::Rename { from: text(&new), to: record }), Ok(Reply::Done));
        this
    }

    pub fn path(&self, name: &str) -> String {
        text(&self.work.join(name))
    }
}

pub fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

pub fn inode_of(path: impl AsRef<Path>) -> Inode {
    Inode(std::fs::symlink_metadata(path).unwrap().ino())
}
