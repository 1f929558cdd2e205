//! What must hold for any bytes whatever: nothing panics, and what decodes encodes to something that decodes to the same.
//! Used by the tests of the protocol, its seeds, and the fuzz target.
#![allow(clippy::unwrap_used)]

use std::fmt::Debug;

use kvm_clone_agent::protocol::{
    FRAME_HEADER_BYTES, FrameHeader, PIECE_HEADER_BYTES, PieceHeader, ProtocolError, decode_message, decode_reply,
    decode_request, decode_steer, encode_message, encode_reply, encode_request, encode_steer, split_frame,
};

/// Bytes as frames, one after the other; and as each kind of payload.
pub fn check(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok(Some((frame, behind))) = split_frame(rest) {
        assert_eq!(frame.payload.len(), frame.header.payload_bytes as usize);
        assert!(frame.payload.len() <= frame.header.kind.payload_bytes_max());
        payload(frame.payload);
        rest = behind;
    }
    if let Some(header) = bytes.first_chunk::<FRAME_HEADER_BYTES>()
        && let Ok(decoded) = FrameHeader::decode(header)
    {
        assert_eq!(decoded.encode(), *header);
    }
    payload(bytes);
}

fn payload(bytes: &[u8]) {
    same(bytes, decode_request, |value| encode_request(1, value));
    same(bytes, decode_reply, |value| encode_reply(1, value));
    same(bytes, decode_steer, |value| encode_steer(1, *value));
    same(bytes, decode_message, |value| encode_message(1, value));
    if let Some(header) = bytes.first_chunk::<PIECE_HEADER_BYTES>() {
        let payload_bytes = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if let Ok(decoded) = PieceHeader::decode(header, payload_bytes) {
            assert_eq!(decoded.encode(), *header);
            let end = decoded.offset as usize + bytes.len() - PIECE_HEADER_BYTES;
            assert!(bytes.len() > PIECE_HEADER_BYTES && end <= decoded.chunk_len as usize);
        }
    }
}

fn same<T: PartialEq + Debug>(
    bytes: &[u8],
    decode: impl Fn(&[u8]) -> Result<T, ProtocolError>,
    encode: impl Fn(&T) -> Result<Vec<u8>, ProtocolError>,
) {
    if let Ok(value) = decode(bytes) {
        let frame = encode(&value).unwrap();
        assert_eq!(decode(&frame[FRAME_HEADER_BYTES..]).unwrap(), value);
    }
}
