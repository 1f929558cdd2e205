//! Reads the agent's frames and hands each to whoever waits for it.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use kvm_clone_agent::protocol::{
    FRAME_HEADER_BYTES, FrameHeader, FrameKind, Hello, PREAMBLE, ProtocolError, Reply, decode_message, decode_reply,
    decode_steer,
};
use tokio::time::timeout;

use super::stream::Event;
use super::{AGENT_SILENCE_SECONDS_MAX, Shared};
use crate::host::transport::{Incoming, LastWords};
use crate::world::FaultKind;

/// Bytes that a login shell may print before the agent speaks.
const NOISE_BYTES_MAX: usize = 64 << 10;

/// Why the agent did not say hello.
#[derive(Debug, thiserror::Error)]
pub(super) enum GreetingError {
    #[error("it ended before it said hello")]
    Ended,
    #[error("what answers is not the agent: {NOISE_BYTES_MAX} bytes of something else came first")]
    Noise,
    #[error("reading from it failed: {0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Protocol(#[from] ProtocolError),
    #[error("its first word was no hello")]
    NoHello,
}

/// Skips what a login shell printed, reads the hello; also gives what was read behind it.
pub(super) async fn greeting(
    incoming: &mut Incoming,
    last_words: &LastWords,
) -> Result<(Hello, BytesMut), GreetingError> {
    let mut buffer = BytesMut::new();
    loop {
        if let Some(start) = buffer.windows(PREAMBLE.len()).position(|window| window == PREAMBLE) {
            buffer.advance(start + PREAMBLE.len());
            break;
        }
        if buffer.len() > NOISE_BYTES_MAX {
            return Err(GreetingError::Noise);
        }
        if !incoming.receive(&mut buffer, last_words).await? {
            return Err(GreetingError::Ended);
        }
    }
    loop {
        if let Some((header, mut frame)) = take_frame(&mut buffer)? {
            frame.advance(FRAME_HEADER_BYTES);
            return match (header.kind, header.id, decode_reply(&frame)?) {
                (FrameKind::Reply, 0, Ok(Reply::Hello(hello))) => Ok((hello, buffer)),
                _ => Err(GreetingError::NoHello),
            };
        }
        if !incoming.receive(&mut buffer, last_words).await? {
            return Err(GreetingError::Ended);
        }
    }
}

/// Takes the whole frame that the buffer begins with, header and all.
fn take_frame(buffer: &mut BytesMut) -> Result<Option<(FrameHeader, BytesMut)>, ProtocolError> {
    let Some(header) = buffer.first_chunk::<FRAME_HEADER_BYTES>() else { return Ok(None) };
    let header = FrameHeader::decode(header)?;
    let frame_bytes = FRAME_HEADER_BYTES + header.payload_bytes as usize;
    if buffer.len() < frame_bytes {
        return Ok(None);
    }
    Ok(Some((header, buffer.split_to(frame_bytes))))
}

/// Reads until the agent ends, falls silent, or says something that is not the protocol.
pub(super) async fn read(mut incoming: Incoming, mut buffer: BytesMut, shared: Arc<Shared>) {
    let silence = Duration::from_secs(AGENT_SILENCE_SECONDS_MAX);
    let reason = loop {
        match take_frame(&mut buffer) {
            Ok(Some((header, frame))) => {
                if let Err(error) = dispatch(&shared, header, frame).await {
                    break format!("it said something that cannot be understood: {error}");
                }
                continue;
            }
            Ok(None) => {}
            Err(error) => break format!("it said something that cannot be understood: {error}"),
        }
        // Only waiting for bytes counts as silence, not waiting for those who take frames.
        match timeout(silence, incoming.receive(&mut buffer, &shared.last_words)).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => break format!("it ended{}", shared.last_words.describe()),
            Ok(Err(error)) => break format!("reading from it failed: {error}"),
            Err(_) => break format!("no sign of life for {AGENT_SILENCE_SECONDS_MAX} s"),
        }
    };
    shared.lose(FaultKind::Unreachable, &reason);
    // Let go, the agent ends by itself; its end is what `Client::end` waits for here.
    while let Ok(Ok(true)) = timeout(silence, incoming.receive(&mut buffer, &shared.last_words)).await {
        buffer.clear();
    }
}

async fn dispatch(shared: &Arc<Shared>, header: FrameHeader, mut frame: BytesMut) -> Result<(), ProtocolError> {
    let payload = &frame[FRAME_HEADER_BYTES..];
    match header.kind {
        FrameKind::Reply => {
            let reply = decode_reply(payload)?;
            let waiting = shared.state().pending.remove(&header.id);
            if let Some(waiting) = waiting {
                // Nobody there any more: it waited too long.
                drop(waiting.send(reply));
            }
        }
        FrameKind::Steer => {
            let steer = decode_steer(payload)?;
            if let Some(entry) = shared.state().streams.get(&header.id) {
                entry.steer(steer);
            }
        }
        FrameKind::Message => {
            let message = decode_message(payload)?;
            deliver(shared, header.id, Event::Message(message)).await;
        }
        FrameKind::Piece => deliver(shared, header.id, Event::piece(frame)?).await,
        FrameKind::Bytes => {
            frame.advance(FRAME_HEADER_BYTES);
            deliver(shared, header.id, Event::Bytes(frame.freeze())).await;
        }
        FrameKind::Request => return Err(ProtocolError::Kind(header.kind as u8)),
    }
    Ok(())
}

/// Hands a frame to its stream; frames of a stream that has ended are dropped.
async fn deliver(shared: &Arc<Shared>, id: u32, event: Event) {
    let sender = shared.state().streams.get(&id).map(super::stream::Entry::sender);
    if let Some(sender) = sender {
        // Nobody there any more: the stream was given up.
        drop(sender.send(event).await);
    }
}
