//! Frames: the fixed header before every payload, and the small header before the bytes of a chunk.
//!
//! Works on slices only. Decoding accepts any bytes and never panics.

use journal_format::ChunkValue;

use super::ProtocolError;

/// What the agent writes first, once: whatever a login shell printed lies before it, and a program that is not the
/// agent never says it. Then come frames.
pub const PREAMBLE: [u8; 20] = *b"\n\0kvm-clone-agent\0\r\n";

/// Raised by every change of the protocol: both ends must have the same. The frame header carries it.
pub const PROTOCOL_VERSION: u8 = 7;

/// Bytes of an encoded [`FrameHeader`].
pub const FRAME_HEADER_BYTES: usize = 12;
/// Bytes of an encoded [`PieceHeader`].
pub const PIECE_HEADER_BYTES: usize = 48;
/// Bytes of a control payload (requests, replies, messages) at most.
pub const CONTROL_BYTES_MAX: usize = 4 << 20;
/// Bytes of a chunk in one frame at most: a chunk is cut in pieces, so that control never waits long.
pub const PIECE_BYTES_MAX: usize = 256 << 10;
/// Bytes of a relay in one frame at most.
pub const RELAY_BYTES_MAX: usize = 64 << 10;

const MAGIC: [u8; 2] = [0xC5, b'k'];

/// What a frame holds. `Request`, `Reply` and `Steer` are urgent, and so is everything of a relay; `Message` and
/// `Piece` of other streams are bulk. An end sends what is urgent before what is bulk; within each, order is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// Controller to agent: a [`super::Request`]. The frame's id is chosen by the controller and unused so far.
    Request = 1,
    /// Agent to controller: `Result<`[`super::Reply`]`, `[`super::Failure`]`>` to the request of that id.
    Reply = 2,
    /// Either way: a [`super::Steer`] about the stream of that id.
    Steer = 3,
    /// Either way: a [`super::Message`] of the stream of that id, in order with its pieces or bytes.
    Message = 4,
    /// Either way: a [`PieceHeader`] and bytes of a chunk.
    Piece = 5,
    /// Either way: bytes of a relay.
    Bytes = 6,
}

impl FrameKind {
    /// Bytes of its payload at most.
    pub const fn payload_bytes_max(self) -> usize {
        match self {
            Self::Request | Self::Reply | Self::Steer | Self::Message => CONTROL_BYTES_MAX,
            Self::Piece => PIECE_HEADER_BYTES + PIECE_BYTES_MAX,
            Self::Bytes => RELAY_BYTES_MAX,
        }
    }
}

/// What stands before every payload: magic (2 bytes), protocol version, kind, id and payload length (u32, little endian).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the payload is.
    pub kind: FrameKind,
    /// The request, or the stream that the request of that id opened. 0 is the agent's `Hello`.
    pub id: u32,
    /// Bytes of the payload that follows.
    pub payload_bytes: u32,
}

impl FrameHeader {
    /// Its bytes.
    pub fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        bytes[..2].copy_from_slice(&MAGIC);
        bytes[2] = PROTOCOL_VERSION;
        bytes[3] = self.kind as u8;
        bytes[4..8].copy_from_slice(&self.id.to_le_bytes());
        bytes[8..].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes
    }

    /// Reads a header; refuses another magic, version or kind, and a payload above the kind's bound.
    pub fn decode(bytes: &[u8; FRAME_HEADER_BYTES]) -> Result<Self, ProtocolError> {
        let [m0, m1, version, kind, i0, i1, i2, i3, l0, l1, l2, l3] = *bytes;
        if [m0, m1] != MAGIC {
            return Err(ProtocolError::Magic);
        }
        if version != PROTOCOL_VERSION {
            return Err(ProtocolError::Version { theirs: version });
        }
        let kind = match kind {
            1 => FrameKind::Request,
            2 => FrameKind::Reply,
            3 => FrameKind::Steer,
            4 => FrameKind::Message,
            5 => FrameKind::Piece,
            6 => FrameKind::Bytes,
            _ => return Err(ProtocolError::Kind(kind)),
        };
        let payload_bytes = u32::from_le_bytes([l0, l1, l2, l3]);
        if payload_bytes as usize > kind.payload_bytes_max() {
            return Err(ProtocolError::TooLarge { bytes: u64::from(payload_bytes), bound: kind.payload_bytes_max() });
        }
        Ok(Self { kind, id: u32::from_le_bytes([i0, i1, i2, i3]), payload_bytes })
    }
}

/// What stands before the bytes of each piece: chunk index (u64), offset of the piece in the chunk and length of the
/// chunk (u32 each, little endian), the chunk's value (32 bytes). A stream sends the pieces of one chunk in order, from
/// offset 0 to its end, with nothing of that stream between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PieceHeader {
    /// Number of the chunk within its image, from 0.
    pub index: u64,
    /// Where this piece begins in the chunk, in bytes.
    pub offset: u32,
    /// Bytes of the whole chunk.
    pub chunk_len: u32,
    /// The chunk's value.
    pub value: ChunkValue,
}

impl PieceHeader {
    /// Its bytes.
    pub fn encode(&self) -> [u8; PIECE_HEADER_BYTES] {
        let mut bytes = [0; PIECE_HEADER_BYTES];
        bytes[..8].copy_from_slice(&self.index.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.offset.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.chunk_len.to_le_bytes());
        bytes[16..].copy_from_slice(&self.value.0);
        bytes
    }

    /// Reads the header of a piece whose frame has this many payload bytes; the piece must lie within its chunk.
    pub fn decode(bytes: &[u8; PIECE_HEADER_BYTES], payload_bytes: u32) -> Result<Self, ProtocolError> {
        let (index, rest) = bytes.split_first_chunk::<8>().ok_or(ProtocolError::Piece)?;
        let (offset, rest) = rest.split_first_chunk::<4>().ok_or(ProtocolError::Piece)?;
        let (chunk_len, rest) = rest.split_first_chunk::<4>().ok_or(ProtocolError::Piece)?;
        let header = Self {
            index: u64::from_le_bytes(*index),
            offset: u32::from_le_bytes(*offset),
            chunk_len: u32::from_le_bytes(*chunk_len),
            value: ChunkValue(rest.try_into().map_err(|_| ProtocolError::Piece)?),
        };
        let piece_bytes = u64::from(payload_bytes).checked_sub(PIECE_HEADER_BYTES as u64);
        match piece_bytes {
            Some(1..) if u64::from(header.offset) + piece_bytes.unwrap_or(0) <= u64::from(header.chunk_len) => {
                Ok(header)
            }
            _ => Err(ProtocolError::Piece),
        }
    }
}

/// A whole frame in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its header.
    pub header: FrameHeader,
    /// Its payload.
    pub payload: &'a [u8],
}

/// Takes the frame that these bytes begin with, and says what lies behind it; `None` while there are too few bytes.
pub fn split_frame(bytes: &[u8]) -> Result<Option<(Frame<'_>, &[u8])>, ProtocolError> {
    let Some((header, rest)) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>() else {
        return Ok(None);
    };
    let header = FrameHeader::decode(header)?;
    Ok(rest.split_at_checked(header.payload_bytes as usize).map(|(payload, rest)| (Frame { header, payload }, rest)))
}
