//! What goes to the controller: two queues, of which the urgent one always goes first, and one thread that writes.
//!
//! The thread that reads the controller never waits here (`offer`), so that a controller that does not read cannot keep
//! the agent from hearing it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice, Write};

use kvm_clone_agent::protocol::{
    Failure, FailureKind, FrameHeader, FrameKind, Message, PIECE_BYTES_MAX, PIECE_HEADER_BYTES, PieceHeader,
    ProtocolError, Reply, Steer, encode_message, encode_reply, encode_steer,
};

use crate::buffer::Buffer;
use crate::exit;
use crate::failure::failure;
use crate::monitor::Monitor;

/// Bytes of urgent frames that may wait before who adds one waits too.
const URGENT_BYTES_MAX: usize = 8 << 20;
/// Bytes of urgent frames that may wait before the controller is taken to have stopped reading.
const OFFERED_BYTES_MAX: usize = 16 << 20;
/// Messages and chunks that may wait before who adds one waits too. Chunks are bounded by their pools besides.
const BULK_ITEMS_MAX: usize = 64;

/// The queues.
#[derive(Debug, Default)]
pub struct Outbox {
    queues: Monitor<Queues>,
}

#[derive(Debug, Default)]
struct Queues {
    urgent: VecDeque<Vec<u8>>,
    urgent_bytes: usize,
    bulk: VecDeque<Bulk>,
}

#[derive(Debug)]
enum Bulk {
    Frame(Vec<u8>),
    Chunk(OutgoingChunk),
}

/// A chunk on its way, cut in pieces as it is written.
#[derive(Debug)]
pub struct OutgoingChunk {
    /// The stream.
    pub id: u32,
    /// The header of its next piece: from its offset on it is still to be written.
    pub piece: PieceHeader,
    /// Its bytes, as many as the header says.
    pub bytes: Buffer,
}

enum Next {
    Frame(Vec<u8>),
    Chunk(OutgoingChunk),
}

impl Outbox {
    /// Answers a request.
    pub fn reply(&self, id: u32, reply: &Result<Reply, Failure>) {
        self.urgent(reply_frame(id, reply));
    }

    /// Answers a request from the thread that reads the controller.
    pub fn offer_reply(&self, id: u32, reply: &Result<Reply, Failure>) {
        self.offer(reply_frame(id, reply));
    }

    /// Ends a stream from the thread that reads the controller.
    pub fn offer_end(&self, id: u32, end: Failure) {
        self.offer(encoded(encode_message(id, &Message::Ended(Err(end)))));
    }

    /// Grants credit.
    pub fn grant(&self, id: u32, bytes: u64) {
        self.urgent(encoded(encode_steer(id, Steer::Grant { bytes })));
    }

    /// A message of a stream of chunks, in order with its chunks.
    pub fn message(&self, id: u32, message: &Message) {
        self.bulk(Bulk::Frame(encoded(encode_message(id, message))));
    }

    /// A message of a relay, in order with its bytes.
    pub fn relay_message(&self, id: u32, message: &Message) {
        self.urgent(encoded(encode_message(id, message)));
    }

    /// Bytes of a relay, at most `RELAY_BYTES_MAX`.
    pub fn relay_bytes(&self, id: u32, bytes: &[u8]) {
        let header = FrameHeader { kind: FrameKind::Bytes, id, payload_bytes: length(bytes.len()) };
        self.urgent([&header.encode(), bytes].concat());
    }

    /// A chunk of a stream, in order with its messages.
    pub fn chunk(&self, chunk: OutgoingChunk) {
        self.bulk(Bulk::Chunk(chunk));
    }

    fn urgent(&self, frame: Vec<u8>) {
        self.queues.wait_for(|queues| (queues.urgent_bytes < URGENT_BYTES_MAX).then_some(()));
        self.queues.change(|queues| queues.add_urgent(frame));
    }

    fn offer(&self, frame: Vec<u8>) {
        let waiting = self.queues.change(|queues| {
            queues.add_urgent(frame);
            queues.urgent_bytes
        });
        if waiting > OFFERED_BYTES_MAX {
            exit::end(exit::PROTOCOL, "the controller asks and does not read the answers");
        }
    }

    fn bulk(&self, bulk: Bulk) {
        self.queues.wait_for(|queues| (queues.bulk.len() < BULK_ITEMS_MAX).then_some(()));
        self.queues.change(|queues| queues.bulk.push_back(bulk));
    }

    /// Writes until nobody reads any more, and then ends the agent.
    pub fn write_to(&self, mut output: File) -> ! {
        loop {
            let next = self.queues.wait_for(Queues::next);
            // Room may be what somebody waits for.
            self.queues.change(|_| ());
            let result = match next {
                Next::Frame(frame) => output.write_all(&frame),
                Next::Chunk(chunk) => self.write_piece(&mut output, chunk),
            };
            match result {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => exit::end(exit::CLOSED, ""),
                Err(error) => exit::end(exit::CLOSED, &format!("cannot write to the controller: {error}")),
            }
        }
    }

    /// Writes one piece of a chunk, and puts what is left of it back to the front.
    fn write_piece(&self, output: &mut File, mut chunk: OutgoingChunk) -> io::Result<()> {
        let offset = chunk.piece.offset as usize;
        let end = (chunk.piece.chunk_len as usize).min(chunk.bytes.len());
        let bytes = &chunk.bytes[offset.min(end)..end.min(offset + PIECE_BYTES_MAX)];
        let payload_bytes = length(PIECE_HEADER_BYTES + bytes.len());
        let header = FrameHeader { kind: FrameKind::Piece, id: chunk.id, payload_bytes };
        let written = length(bytes.len());
        write_all(output, &[&header.encode(), &chunk.piece.encode(), bytes])?;
        chunk.piece.offset += written;
        if (chunk.piece.offset as usize) < end {
            self.queues.lock().bulk.push_front(Bulk::Chunk(chunk));
        }
        Ok(())
    }
}

impl Queues {
    fn add_urgent(&mut self, frame: Vec<u8>) {
        self.urgent_bytes += frame.len();
        self.urgent.push_back(frame);
    }

    fn next(&mut self) -> Option<Next> {
        if let Some(frame) = self.urgent.pop_front() {
            self.urgent_bytes -= frame.len();
            return Some(Next::Frame(frame));
        }
        self.bulk.pop_front().map(|bulk| match bulk {
            Bulk::Frame(frame) => Next::Frame(frame),
            Bulk::Chunk(chunk) => Next::Chunk(chunk),
        })
    }
}

/// All parts with as few system calls as the pipe allows.
fn write_all(output: &mut File, parts: &[&[u8]]) -> io::Result<()> {
    let mut slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut slices = slices.as_mut_slice();
    while !slices.is_empty() {
        match output.write_vectored(slices) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut slices, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A reply that is too large for a frame becomes a failure that says so.
fn reply_frame(id: u32, reply: &Result<Reply, Failure>) -> Vec<u8> {
    encode_reply(id, reply).unwrap_or_else(|error| {
        encoded(encode_reply(id, &Err(failure(FailureKind::Unsupported, format!("the answer is too large: {error}")))))
    })
}

/// Messages are bounded by construction; one that is not is a bug of the agent.
fn encoded(frame: Result<Vec<u8>, ProtocolError>) -> Vec<u8> {
    frame.unwrap_or_else(|error| exit::end(exit::BUG, &format!("cannot encode a frame: {error}")))
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or_else(|_| exit::end(exit::BUG, "a frame beyond every bound"))
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom};

    use journal_format::ChunkValue;
    use kvm_clone_agent::protocol::{FRAME_HEADER_BYTES, decode_message, decode_reply, split_frame};

    use super::*;
    use crate::buffer::Pool;

    #[test]
    fn what_is_urgent_goes_between_the_pieces_of_a_chunk() {
        let outbox = Outbox::default();
        let bytes = Pool::new(PIECE_BYTES_MAX + 5, 1).try_take().unwrap();
        let chunk_len = length(bytes.len());
        let piece = PieceHeader { index: 1, offset: 0, chunk_len, value: ChunkValue([7; 32]) };
        outbox.chunk(OutgoingChunk { id: 3, piece, bytes });
        outbox.message(3, &Message::Ended(Ok(())));
        let mut written = tempfile::tempfile().unwrap();
        for step in 0..4 {
            match outbox.queues.wait_for(Queues::next) {
                Next::Frame(frame) => written.write_all(&frame).unwrap(),
                Next::Chunk(chunk) => outbox.write_piece(&mut written, chunk).unwrap(),
            }
            if step == 0 {
                outbox.reply(9, &Ok(Reply::Pong));
            }
        }
        let mut all = Vec::new();
        written.seek(SeekFrom::Start(0)).unwrap();
        io::Read::read_to_end(&mut written, &mut all).unwrap();
        let (first, rest) = split_frame(&all).unwrap().unwrap();
        let (reply, rest) = split_frame(rest).unwrap().unwrap();
        let (second, rest) = split_frame(rest).unwrap().unwrap();
        let (end, rest) = split_frame(rest).unwrap().unwrap();
        assert!(rest.is_empty());
        assert_eq!(
            (first.payload.len(), second.payload.len()),
            (PIECE_HEADER_BYTES + PIECE_BYTES_MAX, PIECE_HEADER_BYTES + 5)
        );
        assert_eq!(first.payload.first_chunk(), Some(&piece.encode()));
        let offset = length(PIECE_BYTES_MAX);
        assert_eq!(second.payload.first_chunk(), Some(&PieceHeader { offset, ..piece }.encode()));
        assert_eq!((reply.header.id, decode_reply(reply.payload)), (9, Ok(Ok(Reply::Pong))));
        assert_eq!(decode_message(end.payload), Ok(Message::Ended(Ok(()))));
        assert_eq!(
            reply.header.payload_bytes as usize + FRAME_HEADER_BYTES,
            encode_reply(9, &Ok(Reply::Pong)).unwrap().len()
        );
    }

    #[test]
    fn an_answer_too_large_becomes_a_failure() {
        let content = vec![0; kvm_clone_agent::protocol::CONTROL_BYTES_MAX];
        let frame = reply_frame(1, &Ok(Reply::Content(Some(content))));
        let (frame, _) = split_frame(&frame).unwrap().unwrap();
        assert_eq!(decode_reply(frame.payload).unwrap().unwrap_err().kind, FailureKind::Unsupported);
    }
}
