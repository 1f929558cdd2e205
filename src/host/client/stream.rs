//! A stream of an agent: what comes in order, and what may be sent, within the credit that the agent gave.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use kvm_clone_agent::protocol::{
    FRAME_HEADER_BYTES, Failure, FrameHeader, FrameKind, Message, PIECE_HEADER_BYTES, PieceHeader, ProtocolError,
    Request, Steer, encode_message, encode_request,
};
use tokio::sync::{Semaphore, mpsc};

use super::Shared;
use crate::world::{Fault, FaultKind};

/// Frames that wait in a stream for whoever takes them, at most. Credit bounds their bytes.
const EVENTS_MAX: usize = 1024;

/// What comes in a stream.
#[derive(Debug)]
pub(in crate::host) enum Event {
    /// A part of a chunk, still in its frame.
    Piece {
        /// Bytes of the chunk in it.
        bytes: u32,
        /// Header and payload, as they came.
        frame: BytesMut,
    },
    /// Bytes of a relay.
    Bytes(Bytes),
    /// Anything else.
    Message(Message),
}

impl Event {
    /// Checks the piece's own header.
    pub(super) fn piece(frame: BytesMut) -> Result<Self, ProtocolError> {
        let payload = &frame[FRAME_HEADER_BYTES..];
        let count = |bytes: usize| u32::try_from(bytes).map_err(|_| ProtocolError::Piece);
        let (header, image) = payload.split_first_chunk::<PIECE_HEADER_BYTES>().ok_or(ProtocolError::Piece)?;
        PieceHeader::decode(header, count(payload.len())?)?;
        Ok(Self::Piece { bytes: count(image.len())?, frame })
    }
}

/// A stream in the client's table.
pub(super) struct Entry {
    events: mpsc::Sender<Event>,
    credit: Arc<Semaphore>,
}

impl Entry {
    pub(super) fn sender(&self) -> mpsc::Sender<Event> {
        self.events.clone()
    }

    pub(super) fn steer(&self, steer: Steer) {
        if let Steer::Grant { bytes } = steer {
            grant(&self.credit, bytes);
        }
    }

    pub(super) fn close(self) {
        self.credit.close();
    }
}

/// Adds credit, up to what a semaphore can hold: more than an honest agent ever gives.
fn grant(credit: &Semaphore, bytes: u64) {
    let room = Semaphore::MAX_PERMITS / 2;
    let room = room.saturating_sub(credit.available_permits());
    credit.add_permits(usize::try_from(bytes).unwrap_or(usize::MAX).min(room));
}

/// An open stream. Dropped before its end, it is cancelled.
pub(in crate::host) struct Stream {
    shared: Arc<Shared>,
    id: u32,
    operation: String,
    events: mpsc::Receiver<Event>,
    credit: Arc<Semaphore>,
    ended: bool,
}

/// The sending half of a stream, for another task.
#[derive(Clone)]
pub(in crate::host) struct StreamSender {
    shared: Arc<Shared>,
    id: u32,
    operation: String,
    credit: Arc<Semaphore>,
}

impl Stream {
    pub(super) fn open(
        shared: &Arc<Shared>,
        request: &Request,
        operation: &str,
        credit_bytes: u64,
    ) -> Result<Self, Fault> {
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let credit = Arc::new(Semaphore::new(0));
        grant(&credit, credit_bytes);
        let id = {
            let mut state = shared.state();
            if let Some(loss) = &state.loss {
                return Err(shared.lost(loss, operation));
            }
            let id = shared.next_id();
            state.streams.insert(id, Entry { events: sender, credit: Arc::clone(&credit) });
            id
        };
        let stream =
            Self { shared: Arc::clone(shared), id, operation: operation.to_owned(), events, credit, ended: false };
        shared.send_urgent(encode_request(id, request), &|| operation.to_owned())?;
        Ok(stream)
    }

    /// What comes next; the end of the stream is `Message::Ended`, a lost agent a fault.
    pub(in crate::host) async fn next(&mut self) -> Result<Event, Fault> {
        match self.events.recv().await {
            Some(event) => {
                self.ended |= matches!(event, Event::Message(Message::Ended(_)));
                Ok(event)
            }
            None => Err(self.shared.gone(&self.operation)),
        }
    }

    /// Lets the agent send so much more.
    pub(in crate::host) fn grant(&self, bytes: u64) {
        self.shared.steer(self.id, Steer::Grant { bytes });
    }

    /// Asks the agent to end the stream soon; what is under way, and its end, still come.
    pub(in crate::host) fn cancel(&self) {
        self.shared.steer(self.id, Steer::Cancel);
    }

    /// A failure that ended it, as the engine's fault.
    pub(in crate::host) fn fault(&self, failure: &Failure) -> Fault {
        self.shared.fault(failure, self.operation.clone())
    }

    /// A fault for something that does not belong in this stream.
    pub(in crate::host) fn nonsense(&self, what: &str) -> Fault {
        Fault {
            kind: FaultKind::Unsupported,
            host: self.shared.host.clone(),
            operation: self.operation.clone(),
            detail: format!("the agent broke the protocol: {what}"),
        }
    }

    /// A fault of this stream's own making.
    pub(in crate::host) fn broken(&self, kind: FaultKind, detail: String) -> Fault {
        Fault { kind, host: self.shared.host.clone(), operation: self.operation.clone(), detail }
    }

    /// Its sending half.
    pub(in crate::host) fn sender(&self) -> StreamSender {
        StreamSender {
            shared: Arc::clone(&self.shared),
            id: self.id,
            operation: self.operation.clone(),
            credit: Arc::clone(&self.credit),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let known = self.shared.state().streams.remove(&self.id).is_some();
        if known && !self.ended {
            self.cancel();
        }
    }
}

impl StreamSender {
    /// Waits until so many bytes may be sent, and takes them from the credit.
    pub(in crate::host) async fn spend(&self, bytes: u32) -> Result<(), Fault> {
        match self.credit.acquire_many(bytes).await {
            Ok(permit) => {
                permit.forget();
                Ok(())
            }
            Err(_) => Err(self.shared.gone(&self.operation)),
        }
    }

    /// Sends a piece as it came from another agent: only the id in its frame changes.
    pub(in crate::host) async fn forward(&self, mut frame: BytesMut) -> Result<(), Fault> {
        let payload_bytes = frame.len().saturating_sub(FRAME_HEADER_BYTES);
        let header = FrameHeader {
            kind: FrameKind::Piece,
            id: self.id,
            payload_bytes: u32::try_from(payload_bytes).unwrap_or(u32::MAX),
        };
        frame[..FRAME_HEADER_BYTES].copy_from_slice(&header.encode());
        self.bulk(frame.freeze()).await
    }

    /// Sends a message, in order with the pieces.
    pub(in crate::host) async fn message(&self, message: &Message) -> Result<(), Fault> {
        let frame = encode_message(self.id, message).map_err(|error| Fault {
            kind: FaultKind::Unsupported,
            host: self.shared.host.clone(),
            operation: self.operation.clone(),
            detail: error.to_string(),
        })?;
        self.bulk(frame.into()).await
    }

    /// Sends bytes of a relay.
    pub(in crate::host) fn bytes(&self, bytes: &[u8]) -> Result<(), Fault> {
        let header = FrameHeader {
            kind: FrameKind::Bytes,
            id: self.id,
            payload_bytes: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
        };
        let mut frame = Vec::with_capacity(FRAME_HEADER_BYTES + bytes.len());
        frame.extend_from_slice(&header.encode());
        frame.extend_from_slice(bytes);
        self.shared.send_urgent(Ok(frame), &|| self.operation.clone())
    }

    async fn bulk(&self, frame: Bytes) -> Result<(), Fault> {
        let lost = || self.shared.gone(&self.operation);
        let queues = self.shared.queues().ok_or_else(lost)?;
        queues.bulk.send(frame).await.map_err(|_| lost())
    }
}
