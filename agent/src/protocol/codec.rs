//! Values of the protocol as the payloads of frames: bincode 2, bounded, nothing behind the end.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::frame::{CONTROL_BYTES_MAX, FRAME_HEADER_BYTES, FrameHeader, FrameKind, PROTOCOL_VERSION};
use super::{Failure, Message, Reply, Request, Steer};

/// Bytes that are not the protocol, or not this version of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// No frame begins here.
    #[error("not a frame: the other end does not speak the agent's protocol, or bytes were lost")]
    Magic,
    /// Another version.
    #[error("the other end speaks version {theirs} of the agent's protocol, this one version {PROTOCOL_VERSION}")]
    Version {
        /// The other end's.
        theirs: u8,
    },
    /// A kind of frame that there is not.
    #[error("unknown kind of frame: {0}")]
    Kind(u8),
    /// Above a bound.
    #[error("a payload of {bytes} bytes: at most {bound} are allowed")]
    TooLarge {
        /// Bytes of the payload.
        bytes: u64,
        /// Bytes allowed.
        bound: usize,
    },
    /// A piece that does not lie within its chunk.
    #[error("a piece that does not lie within its chunk")]
    Piece,
    /// A payload that does not decode.
    #[error("a payload that cannot be read: {0}")]
    Payload(String),
    /// Bytes behind the end of a value.
    #[error("a payload with {0} bytes behind its end")]
    Trailing(usize),
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<CONTROL_BYTES_MAX>()
}

/// A whole control frame: header and encoded value. `TooLarge` if it exceeds [`CONTROL_BYTES_MAX`].
fn encode<T: Serialize>(kind: FrameKind, id: u32, value: &T) -> Result<Vec<u8>, ProtocolError> {
    let mut bytes = vec![0; FRAME_HEADER_BYTES];
    bincode::serde::encode_into_std_write(value, &mut bytes, config())
        .map_err(|error| ProtocolError::Payload(error.to_string()))?;
    let payload_bytes = bytes.len() - FRAME_HEADER_BYTES;
    let header = u32::try_from(payload_bytes)
        .ok()
        .filter(|_| payload_bytes <= kind.payload_bytes_max())
        .map(|payload_bytes| FrameHeader { kind, id, payload_bytes })
        .ok_or(ProtocolError::TooLarge { bytes: payload_bytes as u64, bound: kind.payload_bytes_max() })?;
    bytes[..FRAME_HEADER_BYTES].copy_from_slice(&header.encode());
    Ok(bytes)
}

fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, ProtocolError> {
    let (value, consumed) = bincode::serde::decode_from_slice(payload, config())
        .map_err(|error| ProtocolError::Payload(error.to_string()))?;
    match payload.len() - consumed {
        0 => Ok(value),
        trailing => Err(ProtocolError::Trailing(trailing)),
    }
}

/// A whole `Request` frame.
pub fn encode_request(id: u32, request: &Request) -> Result<Vec<u8>, ProtocolError> {
    encode(FrameKind::Request, id, request)
}

/// A whole `Reply` frame.
pub fn encode_reply(id: u32, reply: &Result<Reply, Failure>) -> Result<Vec<u8>, ProtocolError> {
    encode(FrameKind::Reply, id, reply)
}

/// A whole `Steer` frame.
pub fn encode_steer(id: u32, steer: Steer) -> Result<Vec<u8>, ProtocolError> {
    encode(FrameKind::Steer, id, &steer)
}

/// A whole `Message` frame.
pub fn encode_message(id: u32, message: &Message) -> Result<Vec<u8>, ProtocolError> {
    encode(FrameKind::Message, id, message)
}

/// The payload of a `Request` frame.
pub fn decode_request(payload: &[u8]) -> Result<Request, ProtocolError> {
    decode(payload)
}

/// The payload of a `Reply` frame.
pub fn decode_reply(payload: &[u8]) -> Result<Result<Reply, Failure>, ProtocolError> {
    decode(payload)
}

/// The payload of a `Steer` frame.
pub fn decode_steer(payload: &[u8]) -> Result<Steer, ProtocolError> {
    decode(payload)
}

/// The payload of a `Message` frame.
pub fn decode_message(payload: &[u8]) -> Result<Message, ProtocolError> {
    decode(payload)
}
