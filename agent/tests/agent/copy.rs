//! A copy between two agents: source half, destination half, and this test as the controller between them.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use journal_format::{ChunkRecordV1, ChunkState, ChunkValue, Inode};
use kvm_clone_agent::protocol::{
    BATCH_CHUNKS_MAX, CREDIT_BYTES_MAX, FailureKind, Geometry, HashJob, Message, PIECE_BYTES_MAX, PUNCH_CREDIT_BYTES,
    PieceHeader, RECEIVE_CREDIT_BYTES, ReceiveJob, Reply, Request, SendJob, Steer,
};

use crate::client::{Client, Destination, Event, inode_of, text};
use crate::hash::{hash, make_image, root};

/// How long one copy may take here.
const COPY_TIME_MAX: Duration = Duration::from_secs(60);
/// How long one end is listened to while the other may have something to say.
const POLL: Duration = Duration::from_millis(1);

/// What a copy told.
#[derive(Default)]
struct Told {
    durable: Vec<ChunkRecordV1>,
    read_back: Vec<ChunkRecordV1>,
    holes: Vec<Range<u64>>,
    zeros: Vec<Range<u64>>,
    sent_bytes: u64,
}

fn receive(destination: &mut Destination, path: &str, geometry: Geometry, read_back: bool) -> u32 {
    let inode = inode_of(path);
    destination.client.send(&Request::ReceiveChunks(ReceiveJob { path: path.into(), inode, geometry, read_back }))
}

/// Copies as the controller does: grants the source what the destination granted.
fn copy(
    source: &mut Client,
    destination: &mut Destination,
    from: &Path,
    to: &str,
    geometry: Geometry,
    wanted: Vec<Range<u64>>,
    punch: bool,
) -> Told {
    let mut told = Told::default();
    let to_id = receive(destination, to, geometry, true);
    let credit_bytes = RECEIVE_CREDIT_BYTES / 2;
    let from_id = source.send(&Request::SendChunks(SendJob {
        path: text(from),
        geometry,
        wanted,
        credit_bytes,
        patches: Vec::new(),
        below: Vec::new(),
    }));
    let mut punch_credit = RECEIVE_CREDIT_BYTES / 2;
    let mut ended = false;
    let mut finished = false;
    let deadline = Instant::now() + COPY_TIME_MAX;
    while !finished {
        assert!(Instant::now() < deadline, "the copy stands still");
        let event = if ended { None } else { source.next_within(from_id, POLL) };
        match event {
            Some(Event::Piece(piece, bytes)) => {
                assert!(bytes.len() <= PIECE_BYTES_MAX);
                told.sent_bytes += bytes.len() as u64;
                destination.client.piece(to_id, piece, &bytes);
            }
            Some(Event::Message(Message::Holes { chunks })) => told.holes.push(chunks),
            Some(Event::Message(Message::Zeros { chunks })) => told.zeros.push(chunks),
            Some(Event::Message(Message::Ended(end))) => {
                end.unwrap();
                ended = true;
                for chunks in told.zeros.iter().chain(&told.holes).filter(|_| punch) {
                    assert!(punch_credit >= PUNCH_CREDIT_BYTES);
                    punch_credit -= PUNCH_CREDIT_BYTES;
                    destination.client.message(to_id, &Message::Punch { chunks: chunks.clone() });
                }
                destination.client.message(to_id, &Message::Finish);
            }
            Some(other) => panic!("{other:?}"),
            None => {}
        }
        let patience = if ended { POLL } else { Duration::ZERO };
        while let Some(event) = destination.client.next_within(to_id, patience) {
            match event {
                Event::Steer(Steer::Grant { bytes }) if !ended => source.steer(from_id, Steer::Grant { bytes }),
                Event::Steer(Steer::Grant { .. }) => {}
                Event::Message(Message::Durable { records }) => {
                    assert!(!records.is_empty() && records.len() <= BATCH_CHUNKS_MAX);
                    told.durable.extend(records);
                }
                Event::Message(Message::ReadBack { records }) => {
                    assert!(!records.is_empty() && records.len() <= BATCH_CHUNKS_MAX);
                    assert!(records.iter().all(|record| told.durable.contains(record)), "before it was durable");
                    told.read_back.extend(records);
                }
                Event::Message(Message::Ended(end)) => {
                    end.unwrap();
                    finished = true;
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    told
}

fn whole(geometry: Geometry) -> Vec<Range<u64>> {
    if geometry.image_bytes == 0 { vec![] } else { vec![0..geometry.chunk_count()] }
}

fn expand(ranges: &[Range<u64>]) -> Vec<u64> {
    ranges.iter().cloned().flatten().collect()
}

#[test]
fn an_image_arrives_whole_and_sparse() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let from = directory.path().join("image");
    let mut source = Client::source();
    let mut destination = Destination::locked();
    for (number, image_bytes) in
        [0, 1, 1000, 4096, 1 << 20, 70_001, (40 << 20) + 777, 200 << 20].into_iter().enumerate()
    {
        make_image(&from, image_bytes);
        for chunk_bytes in [64 << 10, 1 << 20, 16 << 20] {
            let geometry = Geometry { image_bytes, chunk_bytes };
            let to = destination.path(&format!("copy-{number}-{chunk_bytes}"));
            let inode = destination.client.made(Request::MakeFile { path: to.clone(), mode: 0o600, content: vec![] });
            let size = Request::SetSize { path: to.clone(), inode, bytes: image_bytes, allocate: false };
            destination.client.call(size).unwrap();
            let told = copy(&mut source, &mut destination, &from, &to, geometry, whole(geometry), false);
            assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap(), "{geometry:?}");

            // Every chunk was told once: durable, hole or zero; and the values make the plain hash.
            let mut indices: Vec<_> = told.durable.iter().map(|record| record.index).collect();
            indices.extend(expand(&told.holes));
            indices.extend(expand(&told.zeros));
            indices.sort_unstable();
            assert!(indices.into_iter().eq(0..geometry.chunk_count()), "{geometry:?}");
            let zero = expand(&told.holes).into_iter().chain(expand(&told.zeros));
            let mut records = told.durable.clone();
            records.extend(zero.map(|index| ChunkRecordV1 { index, state: ChunkState::Zero }));
            records.sort_unstable_by_key(|record| record.index);
            let plain = ChunkValue(*blake3::hash(&fs::read(&from).unwrap()).as_bytes());
            assert_eq!(root(geometry, &records), Some(plain), "{geometry:?}");

            // All of what was sent was read back, once.
            let by_index = |mut records: Vec<ChunkRecordV1>| {
                records.sort_unstable_by_key(|record| record.index);
                records
            };
            assert_eq!(by_index(told.read_back), by_index(told.durable.clone()), "{geometry:?}");

            // The bytes of holes and zeros were neither sent nor allocated.
            let data_bytes: u64 = told.durable.iter().map(|r| u64::from(geometry.chunk_len(r.index))).sum();
            assert_eq!(told.sent_bytes, data_bytes);
            assert!(fs::metadata(&to).unwrap().blocks() * 512 <= data_bytes + (1 << 20), "{geometry:?}");
            fs::remove_file(&to).unwrap();
        }
    }
}

#[test]
fn zeros_are_punched_where_something_was() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let from = directory.path().join("image");
    let image_bytes = (40 << 20) + 777;
    let geometry = Geometry { image_bytes, chunk_bytes: 1 << 20 };
    make_image(&from, image_bytes);
    let mut source = Client::source();
    let mut destination = Destination::locked();
    let to = destination.path("copy");
    fs::write(&to, vec![0xee; usize::try_from(image_bytes).unwrap()]).unwrap();
    let told = copy(&mut source, &mut destination, &from, &to, geometry, whole(geometry), true);
    assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
    let mut durable: Vec<_> = told.durable.iter().map(|record| record.index).collect();
    durable.sort_unstable();
    assert!(durable.into_iter().eq(0..geometry.chunk_count()), "zeros are acknowledged too");
    let zero = told.durable.iter().filter(|record| record.state == ChunkState::Zero).count() as u64;
    assert_eq!(zero, expand(&told.holes).len() as u64 + expand(&told.zeros).len() as u64);
    let hole_bytes = fs::metadata(&to).unwrap().len() - fs::metadata(&to).unwrap().blocks() * 512;
    assert!(hole_bytes > (zero - 2) << 20, "the zeros are holes now");
}

#[test]
fn only_what_is_missing_is_sent() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let from = directory.path().join("image");
    let geometry = Geometry { image_bytes: 40 << 20, chunk_bytes: 1 << 20 };
    make_image(&from, geometry.image_bytes);
    let mut source = Client::source();
    let mut destination = Destination::locked();
    let to = destination.path("copy");
    File::create(&to).unwrap().set_len(geometry.image_bytes).unwrap();
    let told = copy(&mut source, &mut destination, &from, &to, geometry, vec![1..2, 21..24, 38..40], false);
    let mut sent: Vec<_> = told.durable.iter().map(|record| record.index).collect();
    sent.sort_unstable();
    assert_eq!(sent, [1, 21, 22, 23, 39]);
    assert_eq!(told.holes, vec![38..39]);
    assert_eq!(fs::metadata(&to).unwrap().blocks() * 512, 5 << 20);
}

#[test]
fn nothing_is_sent_beyond_the_credit() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let from = directory.path().join("image");
    fs::write(&from, vec![3; 64 << 20]).unwrap();
    let geometry = Geometry { image_bytes: 64 << 20, chunk_bytes: 1 << 20 };
    let mut source = Client::source();
    let drain = |source: &mut Client, id| {
        let mut bytes = 0;
        while let Some(event) = source.next_within(id, Duration::from_millis(300)) {
            match event {
                Event::Piece(_, piece) => bytes += piece.len() as u64,
                other => panic!("{other:?}"),
            }
        }
        bytes
    };
    let job = |credit_bytes| {
        Request::SendChunks(SendJob {
            path: text(&from),
            geometry,
            wanted: vec![0..64],
            credit_bytes,
            patches: Vec::new(),
            below: Vec::new(),
        })
    };
    let id = source.send(&job((5 << 20) + 17));
    assert_eq!(drain(&mut source, id), 5 << 20);
    // Control is answered while a stream waits.
    assert_eq!(source.call(Request::Ping), Ok(Reply::Pong));
    assert!(matches!(source.call(Request::Stat { path: text(&from) }), Ok(Reply::Stat(Some(_)))));
    source.steer(id, Steer::Grant { bytes: (2 << 20) - 17 });
    assert_eq!(drain(&mut source, id), 2 << 20);
    // A grant beyond the bound is cut to it.
    source.steer(id, Steer::Grant { bytes: u64::MAX });
    assert_eq!(drain(&mut source, id), CREDIT_BYTES_MAX);
    source.steer(id, Steer::Cancel);
    let Event::Message(Message::Ended(Err(failure))) = source.next(id) else { panic!() };
    assert_eq!(failure.kind, FailureKind::Cancelled);
}

/// A destination with an empty image, and a stream into it.
fn receiving(geometry: Geometry) -> (Destination, String, u32) {
    let mut destination = Destination::locked();
    let to = destination.path("copy");
    File::create(&to).unwrap().set_len(geometry.image_bytes).unwrap();
    let id = receive(&mut destination, &to, geometry, false);
    (destination, to, id)
}

fn end_of(client: &mut Client, id: u32) -> Result<(), FailureKind> {
    loop {
        match client.next(id) {
            Event::Message(Message::Ended(end)) => return end.map_err(|failure| failure.kind),
            Event::Message(Message::Durable { .. }) | Event::Steer(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

const SMALL: Geometry = Geometry { image_bytes: 10 * 65_536, chunk_bytes: 65_536 };

fn small_piece(index: u64, bytes: &[u8]) -> PieceHeader {
    PieceHeader { index, offset: 0, chunk_len: 65_536, value: SMALL.value(index, bytes) }
}

#[test]
fn bytes_that_changed_on_the_way_are_never_written() {
    let (mut destination, to, id) = receiving(SMALL);
    let bytes = vec![5; 65_536];
    let mut damaged = bytes.clone();
    damaged[40_000] ^= 1;
    destination.client.piece(id, small_piece(3, &bytes), &damaged);
    loop {
        match destination.client.next(id) {
            Event::Message(Message::Ended(end)) => {
                let failure = end.unwrap_err();
                assert_eq!(failure.kind, FailureKind::Mismatch);
                assert!(failure.detail.contains("chunk 3"), "{failure}");
                break;
            }
            Event::Steer(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(fs::metadata(&to).unwrap().blocks(), 0);
    // What is still on its way is dropped, and the agent goes on.
    destination.client.piece(id, small_piece(4, &bytes), &bytes);
    destination.client.message(id, &Message::Finish);
    assert_eq!(destination.client.call(Request::Ping), Ok(Reply::Pong));
    assert_eq!(fs::metadata(&to).unwrap().blocks(), 0);
}

#[test]
fn a_chunk_is_acknowledged_within_the_sync_interval_without_being_asked() {
    let (mut destination, to, id) = receiving(SMALL);
    let bytes = vec![5; 65_536];
    let piece = small_piece(3, &bytes);
    destination.client.piece(id, piece, &bytes[..1000]);
    destination.client.piece(id, PieceHeader { offset: 1000, ..piece }, &bytes[1000..]);
    let record = loop {
        match destination.client.next_within(id, Duration::from_secs(5)).expect("acknowledged in time") {
            Event::Message(Message::Durable { records }) => break records,
            Event::Steer(Steer::Grant { bytes }) => assert_eq!(bytes, 65_536),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(record, [ChunkRecordV1 { index: 3, state: ChunkState::Data(piece.value) }]);
    let mut found = vec![0; 65_536];
    File::open(&to).unwrap().read_exact_at(&mut found, 3 * 65_536).unwrap();
    assert!(found == bytes);
    destination.client.message(id, &Message::Finish);
    assert_eq!(end_of(&mut destination.client, id), Ok(()));
}

#[test]
fn pieces_that_do_not_belong_end_the_stream() {
    let bytes = vec![5; 65_536];
    let good = small_piece(3, &bytes);
    let first = |piece: PieceHeader, length: usize| vec![(piece, length)];
    for (name, pieces) in [
        ("beyond the image", first(PieceHeader { index: 10, ..good }, 65_536)),
        ("wrong length", first(PieceHeader { chunk_len: 65_535, ..good }, 65_535)),
        ("not from its start", first(PieceHeader { offset: 5, ..good }, 100)),
        ("a gap", vec![(good, 100), (PieceHeader { offset: 101, ..good }, 100)]),
        ("another chunk between", vec![(good, 100), (PieceHeader { index: 4, ..good }, 100)]),
        ("another value", vec![(good, 100), (PieceHeader { offset: 100, value: ChunkValue([0; 32]), ..good }, 100)]),
    ] {
        let (mut destination, to, id) = receiving(SMALL);
        for (piece, length) in pieces {
            destination.client.piece(id, piece, &bytes[..length]);
        }
        assert_eq!(end_of(&mut destination.client, id), Err(FailureKind::Protocol), "{name}");
        assert_eq!(destination.client.call(Request::Ping), Ok(Reply::Pong), "{name}");
        assert_eq!(fs::metadata(&to).unwrap().blocks(), 0, "{name}");
    }
    let (mut destination, _, id) = receiving(SMALL);
    destination.client.message(id, &Message::Punch { chunks: 9..11 });
    assert_eq!(end_of(&mut destination.client, id), Err(FailureKind::Protocol));
}

#[test]
fn a_controller_that_ignores_the_credit_is_cut_off() {
    let (mut destination, _, id) = receiving(SMALL);
    // Punches are carried out one after the other with a system call each; far more than the credit covers at once.
    let count = 20 * RECEIVE_CREDIT_BYTES / PUNCH_CREDIT_BYTES;
    for _ in 0..count {
        destination.client.message(id, &Message::Punch { chunks: 0..10 });
    }
    assert_eq!(end_of(&mut destination.client, id), Err(FailureKind::Protocol));
    assert_eq!(destination.client.call(Request::Ping), Ok(Reply::Pong));
}

#[test]
fn a_stranger_in_the_images_place_is_not_written() {
    let mut destination = Destination::locked();
    let path = destination.path("copy");
    let job =
        |inode, geometry| Request::ReceiveChunks(ReceiveJob { path: path.clone(), inode, geometry, read_back: false });
    assert_eq!(destination.client.kind(job(Inode(1), SMALL)), Some(FailureKind::NotFound));
    fs::write(&path, vec![1; 65_536]).unwrap();
    let inode = inode_of(&path);
    let fits = Geometry { image_bytes: 65_536, chunk_bytes: 65_536 };
    assert_eq!(destination.client.kind(job(Inode(inode.0 + 1), fits)), Some(FailureKind::Changed));
    assert_eq!(destination.client.kind(job(inode, SMALL)), Some(FailureKind::Changed));
    fs::rename(&path, destination.path("real")).unwrap();
    std::os::unix::fs::symlink("real", &path).unwrap();
    assert_eq!(destination.client.kind(job(inode, fits)), Some(FailureKind::Unsupported));
}

#[test]
fn a_source_that_shrinks_is_noticed() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let from = directory.path().join("image");
    let geometry = Geometry { image_bytes: 8 << 20, chunk_bytes: 1 << 20 };
    // What is cut off had data once, and was a hole the other time: then it is one still, as far as reading tells.
    for data_bytes in [8 << 20, 4 << 20] {
        fs::write(&from, vec![3; data_bytes]).unwrap();
        let file = File::options().write(true).open(&from).unwrap();
        file.set_len(8 << 20).unwrap();
        let mut source = Client::source();
        let job = SendJob {
            path: text(&from),
            geometry,
            wanted: vec![0..8],
            credit_bytes: 2 << 20,
            patches: Vec::new(),
            below: Vec::new(),
        };
        let id = source.send(&Request::SendChunks(job));
        assert!(matches!(source.next(id), Event::Piece(..)));
        file.set_len(5 << 20).unwrap();
        source.steer(id, Steer::Grant { bytes: 8 << 20 });
        let end = loop {
            match source.next(id) {
                Event::Piece(..) | Event::Message(Message::Holes { .. }) => {}
                Event::Message(Message::Ended(end)) => break end,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(end.unwrap_err().kind, FailureKind::Changed, "{data_bytes}");
    }
}

#[test]
fn streams_have_a_bound_and_their_places_are_free_again() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let from = directory.path().join("image");
    fs::write(&from, vec![3; 1 << 20]).unwrap();
    let geometry = Geometry { image_bytes: 1 << 20, chunk_bytes: 1 << 20 };
    let job = |credit_bytes| {
        Request::SendChunks(SendJob {
            path: text(&from),
            geometry,
            wanted: vec![0..1],
            credit_bytes,
            patches: Vec::new(),
            below: Vec::new(),
        })
    };
    let mut source = Client::source();
    for _ in 0..3 {
        let waiting: Vec<_> = (0..kvm_clone_agent::protocol::CHUNK_STREAMS_MAX).map(|_| source.send(&job(0))).collect();
        assert_eq!(source.kind(job(0)), Some(FailureKind::Busy));
        for id in waiting {
            source.steer(id, Steer::Grant { bytes: 1 << 20 });
            assert!(
                std::iter::from_fn(|| Some(source.next(id)))
                    .any(|e| matches!(e, Event::Message(Message::Ended(Ok(())))))
            );
        }
    }
}

#[test]
fn memory_stays_bounded() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let from = directory.path().join("image");
    let geometry = Geometry { image_bytes: 256 << 20, chunk_bytes: 1 << 20 };
    let file = File::create(&from).unwrap();
    for megabyte in 0..256_u32 {
        file.write_all_at(&vec![megabyte.to_le_bytes()[0] | 1; 1 << 20], u64::from(megabyte) << 20).unwrap();
    }
    let mut source = Client::source();
    let mut destination = Destination::locked();
    for round in 0..2 {
        let to = destination.path(&format!("copy{round}"));
        File::create(&to).unwrap().set_len(geometry.image_bytes).unwrap();
        copy(&mut source, &mut destination, &from, &to, geometry, whole(geometry), false);
        let job = HashJob {
            path: to.clone(),
            inode: None,
            geometry,
            wanted: whole(geometry),
            reread: true,
            patches: Vec::new(),
            below: Vec::new(),
        };
        assert_eq!(hash(&mut destination.client, job).unwrap().len(), 256);
        fs::remove_file(&to).unwrap();
    }
    for pid in [source.child.id(), destination.client.child.id()] {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        eprintln!("peak of {pid}: {kib} KiB");
        assert!(kib < 96 << 10, "{kib} KiB for one stream: six would not fit in 256 MiB");
    }
}
