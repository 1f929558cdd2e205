//! How fast a copy from one agent to another is, with nothing but pipes between them. Measures, so it is not run by
//! default: `cargo test --release -p kvm-clone-agent --test speed -- --ignored --nocapture`, with
//! `KVM_CLONE_SPEED_GIB` (default 4), and `KVM_CLONE_AGENT` for another binary than the one just built.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use journal_format::{Inode, TxnId};
use kvm_clone_agent::protocol::{
    Attach, FRAME_HEADER_BYTES, FrameHeader, FrameKind, Geometry, HashJob, Message, Overrides, PREAMBLE,
    RECEIVE_CREDIT_BYTES, ReceiveJob, Request, Role, SendJob, decode_message, encode_message, encode_request,
};

const TXN: TxnId = TxnId([3; 16]);
/// The same on both links, so that pieces and grants can be passed on as they are.
const STREAM: u32 = 100;

struct Agent {
    child: Child,
    input: Arc<Mutex<ChildStdin>>,
    output: BufReader<ChildStdout>,
}

fn start(role: Role, root: &Path) -> Agent {
    let program = std::env::var("KVM_CLONE_AGENT").unwrap_or_else(|_| env!("CARGO_BIN_EXE_kvm-clone-agent").into());
    let mut child = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let input = Arc::new(Mutex::new(child.stdin.take().unwrap()));
    let mut output = BufReader::with_capacity(1 << 16, child.stdout.take().unwrap());
    output.read_exact(&mut [0; PREAMBLE.len()]).unwrap();
    let overrides = Overrides { host_record_root: Some(root.to_str().unwrap().into()), libvirt_socket: None };
    let agent = Agent { child, input, output };
    agent.send(1, &Request::Attach(Attach { txn: Some(TXN), role, silence_seconds: 30, overrides }));
    agent
}

impl Agent {
    fn send(&self, id: u32, request: &Request) {
        self.input.lock().unwrap().write_all(&encode_request(id, request).unwrap()).unwrap();
    }
}

/// Reads a whole frame, header and all.
fn frame(output: &mut impl Read, buffer: &mut Vec<u8>) -> FrameHeader {
    buffer.resize(FRAME_HEADER_BYTES, 0);
    output.read_exact(buffer).unwrap();
    let header = FrameHeader::decode(buffer.first_chunk().unwrap()).unwrap();
    buffer.resize(FRAME_HEADER_BYTES + header.payload_bytes as usize, 0);
    output.read_exact(&mut buffer[FRAME_HEADER_BYTES..]).unwrap();
    header
}

fn ended(header: FrameHeader, buffer: &[u8]) -> bool {
    if header.kind != FrameKind::Message || header.id != STREAM {
        return false;
    }
    match decode_message(&buffer[FRAME_HEADER_BYTES..]).unwrap() {
        Message::Ended(end) => {
            end.unwrap();
            true
        }
        _ => false,
    }
}

/// User and system time so far, which a busy machine does not change as it changes the time on the wall.
fn cpu_seconds(child: &Child) -> String {
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    let ticks: Vec<f64> =
        stat[stat.rfind(')').unwrap()..].split(' ').skip(12).take(2).map(|n| n.parse().unwrap()).collect();
    format!("{:.2} user + {:.2} system", ticks[0] / 100.0, ticks[1] / 100.0)
}

#[test]
#[ignore = "measures; see the top of the file"]
fn speed() {
    let gib: u64 = std::env::var("KVM_CLONE_SPEED_GIB").map_or(4, |text| text.parse().unwrap());
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let root = directory.path().join("host");
    let record = root.join(format!("{TXN}"));
    fs::create_dir_all(&record).unwrap();
    let owner = record.join("owner");
    fs::write(&owner, b"").unwrap();
    let (from, to) = (directory.path().join("from"), directory.path().join("to"));
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let image = File::create(&from).unwrap();
    let mut block = vec![0; 1 << 20];
    for megabyte in 0..gib << 10 {
        block.iter_mut().zip(megabyte..).for_each(|(byte, seed)| *byte = seed.to_le_bytes()[0]);
        image.write_all_at(&block, megabyte << 20).unwrap();
    }
    image.sync_all().unwrap();
    let geometry = Geometry { image_bytes: gib << 30, chunk_bytes: 1 << 20 };

    for round in 0..3 {
        let _ = fs::remove_file(&to);
        File::create(&to).unwrap().set_len(geometry.image_bytes).unwrap();
        let inode = Inode(fs::metadata(&to).unwrap().ino());
        let mut source = start(Role::Source, &root);
        let mut destination = start(Role::Destination, &root);
        destination.send(2, &Request::LockOwner { path: path(&owner) });
        destination.send(3, &Request::Allow { paths: vec![path(&to)] });
        let began = Instant::now();
        destination
            .send(STREAM, &Request::ReceiveChunks(ReceiveJob { path: path(&to), inode, geometry, read_back: false }));
        let wanted = std::iter::once(0..geometry.chunk_count()).collect();
        let credit_bytes = RECEIVE_CREDIT_BYTES;
        source.send(
            STREAM,
            &Request::SendChunks(SendJob {
                path: path(&from),
                geometry,
                wanted,
                credit_bytes,
                patches: Vec::new(),
                below: Vec::new(),
            }),
        );
        let onward = Arc::clone(&destination.input);
        let back = Arc::clone(&source.input);
        let forward = thread::spawn(move || {
            let mut buffer = Vec::new();
            loop {
                let header = frame(&mut source.output, &mut buffer);
                if header.kind == FrameKind::Piece {
                    onward.lock().unwrap().write_all(&buffer).unwrap();
                } else if ended(header, &buffer) {
                    let finish = encode_message(STREAM, &Message::Finish).unwrap();
                    onward.lock().unwrap().write_all(&finish).unwrap();
                    let spent = cpu_seconds(&source.child);
                    source.child.kill().unwrap();
                    source.child.wait().unwrap();
                    return spent;
                }
            }
        });
        let mut buffer = Vec::new();
        loop {
            let header = frame(&mut destination.output, &mut buffer);
            if header.kind == FrameKind::Steer {
                // Fails once the source has said all it had to say.
                let _ = back.lock().unwrap().write_all(&buffer);
            } else if ended(header, &buffer) {
                break;
            }
        }
        let source_spent = forward.join().unwrap();
        let spent = format!("source {}, destination {}", source_spent, cpu_seconds(&destination.child));
        report(round, "copy", geometry, began, &spent);
        let began = Instant::now();
        let wanted = std::iter::once(0..geometry.chunk_count()).collect();
        let job = HashJob {
            path: path(&to),
            inode: Some(inode),
            geometry,
            wanted,
            reread: true,
            patches: Vec::new(),
            below: Vec::new(),
        };
        destination.send(STREAM, &Request::HashChunks(job));
        while {
            let header = frame(&mut destination.output, &mut buffer);
            !ended(header, &buffer)
        } {}
        report(round, "reread", geometry, began, &cpu_seconds(&destination.child));
        destination.child.kill().unwrap();
        destination.child.wait().unwrap();
    }
}

#[allow(clippy::cast_precision_loss)]
fn report(round: u32, what: &str, geometry: Geometry, began: Instant, agents: &str) {
    let seconds = began.elapsed().as_secs_f64();
    let rate = geometry.image_bytes as f64 / seconds / 1e6;
    println!("round {round}: {what}: {seconds:.2} s, {rate:.0} MB/s; CPU seconds: {agents}");
}
