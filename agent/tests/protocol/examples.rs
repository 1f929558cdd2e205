//! One value of every variant, as whole frames by name.

use std::collections::BTreeMap;

use journal_format::{ChunkRecordV1, ChunkState, ChunkValue, ImageFormat, Inode, TxnId};
use kvm_clone_agent::protocol::{
    Attach, Counts, DeviceFacts, Failure, FailureKind, FileKind, FileStat, FilesystemFacts, FrameHeader, FrameKind,
    Geometry, HashJob, Hello, Layer, Message, Overrides, OwnerLock, PROTOCOL_VERSION, Patch, PieceHeader, ProcessId,
    Ran, ReceiveJob, RelayPurpose, Reply, Request, Role, SendJob, Steer, Tool, encode_message, encode_reply,
    encode_request, encode_steer,
};

const AGENT: ProcessId = ProcessId { pid: 4321, started: 123_456 };
const GEOMETRY: Geometry = Geometry { image_bytes: 10_000_000, chunk_bytes: 1 << 20 };

/// All of them.
pub fn frames() -> BTreeMap<String, Vec<u8>> {
    let mut frames = BTreeMap::new();
    for request in requests() {
        frames.insert(format!("request-{}", request_name(&request)), encode_request(7, &request).unwrap());
    }
    for reply in replies() {
        frames.insert(format!("reply-{}", reply_name(&reply)), encode_reply(7, &Ok(reply)).unwrap());
    }
    let failure = Failure { kind: FailureKind::Protocol, detail: "what, where".into() };
    frames.insert("reply-failure".into(), encode_reply(7, &Err(failure.clone())).unwrap());
    for message in messages(failure) {
        frames.insert(format!("message-{}", message_name(&message)), encode_message(7, &message).unwrap());
    }
    frames.insert("steer-grant".into(), encode_steer(7, Steer::Grant { bytes: 1 << 20 }).unwrap());
    frames.insert("steer-cancel".into(), encode_steer(7, Steer::Cancel).unwrap());
    let piece = PieceHeader { index: 3, offset: 0, chunk_len: 8, value: GEOMETRY.value(3, b"contents") };
    frames.insert("piece".into(), raw(FrameKind::Piece, &[&piece.encode()[..], b"contents"].concat()));
    frames.insert("bytes".into(), raw(FrameKind::Bytes, b"relayed"));
    frames
}

fn raw(kind: FrameKind, payload: &[u8]) -> Vec<u8> {
    let header = FrameHeader { kind, id: 7, payload_bytes: u32::try_from(payload.len()).unwrap() };
    [&header.encode()[..], payload].concat()
}

fn path() -> String {
    "/images/web.qcow2".into()
}

fn requests() -> Vec<Request> {
    let inode = Inode(99);
    let wanted = vec![0..3, 7..10];
    let overrides = Overrides { libvirt_socket: Some("/s".into()), host_record_root: None };
    let attach = Attach { txn: Some(TxnId([7; 16])), role: Role::Destination, silence_seconds: 30, overrides };
    vec![
        Request::Attach(attach),
        Request::Ping,
        Request::Allow { paths: vec![path(), "/images/.kvm-clone".into()] },
        Request::Stat { path: path() },
        Request::Read { path: path(), max_bytes: 4096 },
        Request::List { directory: path() },
        Request::Resolve { path: path() },
        Request::Filesystem { path: path() },
        Request::IdsOf { user: "libvirt-qemu".into(), group: "kvm".into() },
        Request::RunTool { tool: Tool::CheckQcow2 { path: path() } },
        Request::RunTool { tool: Tool::SwtpmVersion },
        Request::MakeDir { path: path(), mode: 0o711 },
        Request::MakeFile { path: path(), mode: 0o600, content: b"content".to_vec() },
        Request::WriteAt { path: path(), inode, offset: 4096, bytes: b"bytes".to_vec() },
        Request::SetSize { path: path(), inode, bytes: 1 << 40, allocate: true },
        Request::SetAttributes { path: path(), inode, uid: 64_055, gid: 108, mode: 0o600 },
        Request::Sync { path: path() },
        Request::SyncFilesystem { path: path() },
        Request::Link { from: path(), to: "/b".into() },
        Request::Rename { from: path(), to: "/b".into() },
        Request::Unlink { path: path(), inode },
        Request::RemoveDir { path: path() },
        Request::LockOwner { path: path() },
        Request::KillAgent { agent: AGENT },
        Request::LockImage { path: path() },
        Request::UnlockImage { path: path() },
        Request::HashChunks(HashJob {
            path: path(),
            inode: Some(inode),
            geometry: GEOMETRY,
            wanted: wanted.clone(),
            reread: true,
            patches: vec![Patch { offset: 16, bytes: vec![1, 2, 3] }],
            below: Vec::new(),
        }),
        Request::SendChunks(SendJob {
            path: path(),
            geometry: GEOMETRY,
            wanted,
            credit_bytes: 32 << 20,
            patches: Vec::new(),
            below: vec![
                Layer { path: "/pool/middle.qcow2".into(), format: ImageFormat::Qcow2 },
                Layer { path: "/pool/golden.img".into(), format: ImageFormat::Raw },
            ],
        }),
        Request::ReceiveChunks(ReceiveJob { path: path(), inode, geometry: GEOMETRY, read_back: true }),
        Request::OpenRelay { purpose: RelayPurpose::Look },
        Request::OpenRelay { purpose: RelayPurpose::Change },
        Request::UnlinkUnused { path: path(), inode },
        Request::Counts,
        Request::Relabel { path: path() },
        Request::Device { path: path() },
        Request::DevicesLike { identity: "wwn-naa.5000c500a1b2c3d4-from-2048".into() },
        Request::HoldDevice { path: path(), identity: "wwn-naa.5000c500a1b2c3d4".into() },
    ]
}

/// A new variant has to be named here, and then to be given an example above.
fn request_name(request: &Request) -> &'static str {
    match request {
        Request::Attach(_) => "attach",
        Request::Ping => "ping",
        Request::Allow { .. } => "allow",
        Request::Stat { .. } => "stat",
        Request::Read { .. } => "read",
        Request::List { .. } => "list",
        Request::Resolve { .. } => "resolve",
        Request::Filesystem { .. } => "filesystem",
        Request::IdsOf { .. } => "ids-of",
        Request::RunTool { tool: Tool::CheckQcow2 { .. } } => "check-qcow2",
        Request::RunTool { tool: Tool::SwtpmVersion } => "swtpm-version",
        Request::MakeDir { .. } => "make-dir",
        Request::MakeFile { .. } => "make-file",
        Request::WriteAt { .. } => "write-at",
        Request::SetSize { .. } => "set-size",
        Request::SetAttributes { .. } => "set-attributes",
        Request::Sync { .. } => "sync",
        Request::SyncFilesystem { .. } => "sync-filesystem",
        Request::Link { .. } => "link",
        Request::Rename { .. } => "rename",
        Request::Unlink { .. } => "unlink",
        Request::RemoveDir { .. } => "remove-dir",
        Request::LockOwner { .. } => "lock-owner",
        Request::KillAgent { .. } => "kill-agent",
        Request::LockImage { .. } => "lock-image",
        Request::UnlockImage { .. } => "unlock-image",
        Request::HashChunks(_) => "hash-chunks",
        Request::SendChunks(_) => "send-chunks",
        Request::ReceiveChunks(_) => "receive-chunks",
        Request::OpenRelay { purpose: RelayPurpose::Look } => "open-relay-look",
        Request::OpenRelay { purpose: RelayPurpose::Change } => "open-relay-change",
        Request::UnlinkUnused { .. } => "unlink-unused",
        Request::Counts => "counts",
        Request::Relabel { .. } => "relabel",
        Request::Device { .. } => "device",
        Request::DevicesLike { .. } => "devices-like",
        Request::HoldDevice { .. } => "hold-device",
    }
}

fn replies() -> Vec<Reply> {
    let stat = FileStat {
        kind: FileKind::BlockDevice,
        inode: Inode(99),
        device: 2049,
        size: 1 << 40,
        allocated: 4096,
        mode: 0o660,
        uid: 64_055,
        gid: 6,
        links: 1,
        mtime_ns: 1_700_000_000_123_456_789,
        ctime_ns: -1,
    };
    let filesystem = FilesystemFacts {
        device: 2049,
        available_bytes: 1 << 40,
        available_inodes: None,
        kind: "btrfs".into(),
        read_only: false,
        writable: true,
        network: true,
    };
    vec![
        Reply::Hello(Hello {
            protocol: PROTOCOL_VERSION,
            version: "0.1.0".into(),
            agent: AGENT,
            uid: 0,
            machine_id: "0123456789abcdef0123456789abcdef".into(),
            hostname: "host".into(),
            memory_bytes: 1 << 36,
            cpus: 64,
            clock_ms: 1_700_000_000_123,
        }),
        Reply::Done,
        Reply::Pong,
        Reply::Made { inode: Inode(99) },
        Reply::Stat(Some(stat)),
        Reply::Content(Some(b"content".to_vec())),
        Reply::Names(Some(vec!["a".into(), "b".into()])),
        Reply::Resolved(Some(path())),
        Reply::Filesystem(filesystem),
        Reply::Ids { user: Some(64_055), group: None },
        Reply::OwnerLock(OwnerLock::Held { inode: Inode(99) }),
        Reply::Ran(Some(Ran { status: Some(2), words: "2 errors were found".into() })),
        Reply::Counts(Counts {
            requests: 90,
            image_bytes_read: 1 << 30,
            image_bytes_written: 0,
            file_bytes_read: 4096,
            libvirt_calls: 270,
        }),
        Reply::Device(Some(DeviceFacts {
            inode: Inode(99),
            bytes: 1 << 40,
            identity: Some("wwn-naa.5000c500a1b2c3d4".into()),
            in_use: true,
            read_only: false,
        })),
    ]
}

fn reply_name(reply: &Reply) -> &'static str {
    match reply {
        Reply::Hello(_) => "hello",
        Reply::Done => "done",
        Reply::Pong => "pong",
        Reply::Made { .. } => "made",
        Reply::Stat(_) => "stat",
        Reply::Content(_) => "content",
        Reply::Names(_) => "names",
        Reply::Resolved(_) => "resolved",
        Reply::Filesystem(_) => "filesystem",
        Reply::Ids { .. } => "ids",
        Reply::OwnerLock(_) => "owner-lock",
        Reply::Ran(_) => "ran",
        Reply::Counts(_) => "counts",
        Reply::Device(_) => "device",
    }
}

fn messages(failure: Failure) -> Vec<Message> {
    let records = vec![
        ChunkRecordV1 { index: 3, state: ChunkState::Data(ChunkValue([5; 32])) },
        ChunkRecordV1 { index: 300, state: ChunkState::Zero },
    ];
    vec![
        Message::Hashed { records: records.clone() },
        Message::Holes { chunks: 4..300 },
        Message::Zeros { chunks: 4..300 },
        Message::Punch { chunks: 4..300 },
        Message::Finish,
        Message::Durable { records: records.clone() },
        Message::ReadBack { records },
        Message::Opened,
        Message::Ended(Err(failure)),
    ]
}

fn message_name(message: &Message) -> &'static str {
    match message {
        Message::Hashed { .. } => "hashed",
        Message::Holes { .. } => "holes",
        Message::Zeros { .. } => "zeros",
        Message::Punch { .. } => "punch",
        Message::Finish => "finish",
        Message::Durable { .. } => "durable",
        Message::ReadBack { .. } => "read-back",
        Message::Opened => "opened",
        Message::Ended(_) => "ended",
    }
}
