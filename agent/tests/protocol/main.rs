//! The bytes of the protocol: pinned for every variant, refused when they are wrong, survived whatever they are.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../any_bytes/mod.rs"]
mod any_bytes;
mod examples;

use std::fs;
use std::path::{Path, PathBuf};

use journal_format::ChunkValue;
use kvm_clone_agent::protocol::{
    CONTROL_BYTES_MAX, FRAME_HEADER_BYTES, FrameHeader, FrameKind, PIECE_BYTES_MAX, PROTOCOL_VERSION, PieceHeader,
    ProtocolError, Request, decode_message, decode_request, encode_request, split_frame,
};

/// The pinned bytes are the fuzz target's seeds too.
fn seeds() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/protocol")
}

#[test]
fn the_bytes_of_every_variant_are_the_pinned_ones() {
    let frames = examples::frames();
    if std::env::var_os("GOLDEN_WRITE").is_some_and(|value| value == "1") {
        let _ = fs::remove_dir_all(seeds());
        fs::create_dir_all(seeds()).unwrap();
        for (name, bytes) in &frames {
            fs::write(seeds().join(name), bytes).unwrap();
        }
    }
    let mut names: Vec<_> =
        fs::read_dir(seeds()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, frames.keys().cloned().collect::<Vec<_>>());
    for (name, bytes) in frames {
        let advice = "the bytes changed: raise PROTOCOL_VERSION, and write them anew with GOLDEN_WRITE=1";
        assert!(fs::read(seeds().join(&name)).unwrap() == bytes, "{name}: {advice}");
        let (frame, rest) = split_frame(&bytes).unwrap().unwrap();
        assert!(rest.is_empty() && frame.header.kind.payload_bytes_max() >= frame.payload.len(), "{name}");
    }
}

#[test]
fn the_seeds_are_survived_whole_cut_and_damaged() {
    for entry in fs::read_dir(seeds()).unwrap() {
        let mut bytes = fs::read(entry.unwrap().path()).unwrap();
        any_bytes::check(&bytes);
        any_bytes::check(&bytes[FRAME_HEADER_BYTES..]);
        for end in 0..bytes.len() {
            any_bytes::check(&bytes[..end]);
            assert!(!matches!(split_frame(&bytes[..end]), Ok(Some(_))), "half a frame is no frame");
        }
        for at in 0..bytes.len() {
            for bit in 0..8 {
                bytes[at] ^= 1 << bit;
                any_bytes::check(&bytes);
                any_bytes::check(&bytes[FRAME_HEADER_BYTES..]);
                bytes[at] ^= 1 << bit;
            }
        }
    }
}

#[test]
fn any_bytes_are_survived() {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..50_000 {
        let length = usize::try_from(next() % 200).unwrap();
        let mut bytes: Vec<u8> = (0..length).map(|_| next().to_le_bytes()[5]).collect();
        // Small numbers are variants and lengths; a right header lets the payload be looked at.
        if round % 2 == 0 {
            for byte in &mut bytes {
                *byte %= 32;
            }
        }
        any_bytes::check(&bytes);
        let kind = [FrameKind::Request, FrameKind::Reply, FrameKind::Message, FrameKind::Piece][round % 4];
        let header = FrameHeader { kind, id: 7, payload_bytes: u32::try_from(length).unwrap() };
        any_bytes::check(&[&header.encode()[..], &bytes].concat());
    }
}

#[test]
fn a_header_that_is_wrong_is_refused_for_what_it_is() {
    let good = FrameHeader { kind: FrameKind::Piece, id: 0xdead_beef, payload_bytes: 300 };
    assert_eq!(FrameHeader::decode(&good.encode()), Ok(good));
    let changed = |at: usize, to: u8| {
        let mut bytes = good.encode();
        bytes[at] = to;
        FrameHeader::decode(&bytes)
    };
    assert_eq!(changed(0, 0), Err(ProtocolError::Magic));
    assert_eq!(changed(2, PROTOCOL_VERSION + 1), Err(ProtocolError::Version { theirs: PROTOCOL_VERSION + 1 }));
    assert_eq!(changed(3, 0), Err(ProtocolError::Kind(0)));
    assert_eq!(changed(3, 7), Err(ProtocolError::Kind(7)));
    assert!(matches!(changed(11, 1), Err(ProtocolError::TooLarge { .. })));
    let largest = PIECE_BYTES_MAX + 48;
    for (payload_bytes, fits) in [(largest, true), (largest + 1, false)] {
        let header = FrameHeader { payload_bytes: u32::try_from(payload_bytes).unwrap(), ..good };
        assert_eq!(FrameHeader::decode(&header.encode()).is_ok(), fits);
    }
}

#[test]
fn a_piece_lies_within_its_chunk() {
    let piece = |offset, chunk_len| PieceHeader { index: 1, offset, chunk_len, value: ChunkValue([7; 32]) };
    let decode = |piece: PieceHeader, bytes: u32| PieceHeader::decode(&piece.encode(), 48 + bytes);
    assert_eq!(decode(piece(0, 100), 100), Ok(piece(0, 100)));
    assert_eq!(decode(piece(99, 100), 1), Ok(piece(99, 100)));
    for (offset, chunk_len, bytes) in [(0, 100, 101), (99, 100, 2), (100, 100, 1), (u32::MAX, u32::MAX, 1), (0, 100, 0)]
    {
        assert_eq!(decode(piece(offset, chunk_len), bytes), Err(ProtocolError::Piece), "{offset} {chunk_len} {bytes}");
    }
    assert_eq!(PieceHeader::decode(&piece(0, 1).encode(), 47), Err(ProtocolError::Piece));
}

#[test]
fn a_payload_ends_where_its_value_does() {
    let frame = encode_request(1, &Request::Ping).unwrap();
    let payload = &frame[FRAME_HEADER_BYTES..];
    assert_eq!(decode_request(payload), Ok(Request::Ping));
    assert_eq!(decode_request(&[payload, &[0, 0]].concat()), Err(ProtocolError::Trailing(2)));
    assert!(matches!(decode_request(&[]), Err(ProtocolError::Payload(_))));
    // A variant that there is not, and a length that the bytes do not have.
    assert!(matches!(decode_request(&[200]), Err(ProtocolError::Payload(_))));
    assert!(matches!(
        decode_message(&[0, 253, 255, 255, 255, 255, 255, 255, 255, 255]),
        Err(ProtocolError::Payload(_))
    ));
}

#[test]
fn what_is_too_large_is_not_sent() {
    let file = |length| Request::MakeFile { path: "/x".into(), mode: 0, content: vec![0; length] };
    assert!(encode_request(1, &file(CONTROL_BYTES_MAX - 100)).is_ok());
    let error = encode_request(1, &file(CONTROL_BYTES_MAX)).unwrap_err();
    assert!(matches!(error, ProtocolError::TooLarge { .. }), "{error}");
}
