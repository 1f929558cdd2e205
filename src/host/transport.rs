//! The two streams to an agent, whatever they are made of: a channel of an ssh connection, or a child's socket.
//!
//! Bytes only; nothing here knows the protocol. What the other end says on stderr is kept, bounded, for messages.

use std::collections::VecDeque;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use russh::client::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::Child;
use tokio::task::JoinHandle;

use super::ssh::SshLink;

/// Bytes of stderr that are kept: the last ones.
const STDERR_BYTES_MAX: usize = 4096;
/// A block of the buffer that frames are cut from, in bytes.
const BLOCK_BYTES: usize = 1 << 20;
/// Room in the buffer below which a new block is begun.
const ROOM_BYTES_MIN: usize = 64 << 10;
/// Bytes given to ssh at once. Larger pieces have met bugs around rekeying.
const SSH_PIECE_BYTES_MAX: usize = 32 << 10;
/// How long a child that said no hello may take to end and be heard out.
const LAST_WORDS_SECONDS_MAX: u64 = 2;
/// How long an agent may take to end once its stdin is closed.
const END_SECONDS_MAX: u64 = 5;

/// Towards the agent.
pub(super) enum Outgoing {
    /// Through ssh.
    Ssh(ChannelWriteHalf<Msg>),
    /// A child's stdin.
    Socket(OwnedWriteHalf),
}

/// From the agent.
pub(super) enum Incoming {
    /// Through ssh, with stderr beside.
    Ssh(ChannelReadHalf),
    /// A child's stdout.
    Socket(OwnedReadHalf),
}

/// What must live as long as the streams do.
pub(super) enum Lifeline {
    /// The ssh connection.
    Ssh(Box<SshLink>),
    /// The child process, and the task that hears its stderr to the end.
    Child(Box<Child>, JoinHandle<()>),
}

/// Both streams and what belongs to them.
pub(super) struct Transport {
    /// Towards the agent.
    pub(super) outgoing: Outgoing,
    /// From the agent.
    pub(super) incoming: Incoming,
    /// What it said besides.
    pub(super) last_words: LastWords,
    /// What keeps it alive.
    pub(super) lifeline: Lifeline,
}

impl Outgoing {
    /// Hands bytes over; waits while the other end takes none. The error says why nothing can be sent any more.
    pub(super) async fn send(&mut self, mut bytes: Bytes) -> Result<(), String> {
        match self {
            Self::Ssh(channel) => {
                while !bytes.is_empty() {
                    let piece = bytes.split_to(bytes.len().min(SSH_PIECE_BYTES_MAX));
                    channel.data_bytes(piece).await.map_err(|error| error.to_string())?;
                }
                Ok(())
            }
            Self::Socket(socket) => socket.write_all(&bytes).await.map_err(|error| error.to_string()),
        }
    }

    /// Says that nothing more comes: the agent ends.
    pub(super) async fn close(self) {
        match self {
            // An error means that the connection is gone, which ends the agent as well.
            Self::Ssh(channel) => drop(channel.eof().await),
            Self::Socket(socket) => drop(socket),
        }
    }
}

impl Incoming {
    /// Appends what comes next; `false` at the end.
    pub(super) async fn receive(&mut self, into: &mut BytesMut, last_words: &LastWords) -> std::io::Result<bool> {
        match self {
            Self::Ssh(channel) => loop {
                match channel.wait().await {
                    Some(ChannelMsg::Data { data }) => {
                        make_room(into, data.len());
                        into.extend_from_slice(&data);
                        return Ok(true);
                    }
                    Some(ChannelMsg::ExtendedData { data, .. }) => last_words.hear(&data),
                    Some(ChannelMsg::ExitStatus { exit_status }) => {
                        last_words.ended(&format!("exit status {exit_status}"));
                    }
                    Some(ChannelMsg::ExitSignal { signal_name, .. }) => {
                        last_words.ended(&format!("signal {signal_name:?}"));
                    }
                    // Not at `Eof`: exit status and last words may follow it.
                    Some(ChannelMsg::Close) | None => return Ok(false),
                    Some(_) => {}
                }
            },
            Self::Socket(socket) => {
                make_room(into, ROOM_BYTES_MIN);
                Ok(socket.read_buf(into).await? > 0)
            }
        }
    }

    /// Waits for the end, before anything that counts is said: what comes is thrown away.
    pub(super) async fn end(&mut self, last_words: &LastWords) {
        let mut noise = BytesMut::new();
        while let Ok(true) = self.receive(&mut noise, last_words).await {
            noise.clear();
        }
    }
}

/// Begins a new block when the old one is nearly used up: a few frames share each, and none is moved more than once.
fn make_room(buffer: &mut BytesMut, bytes: usize) {
    if buffer.capacity() - buffer.len() < bytes {
        buffer.reserve(bytes.max(BLOCK_BYTES));
    }
}

impl Lifeline {
    /// Ends what is left, once the streams are closed; the agent is gone when it returns, unless it hangs.
    pub(super) async fn end(self) {
        match self {
            Self::Ssh(link) => link.close().await,
            Self::Child(mut child, _) => {
                if tokio::time::timeout(Duration::from_secs(END_SECONDS_MAX), child.wait()).await.is_err() {
                    // It may be root's: then its closed stdin has to do.
                    drop(child.kill().await);
                }
            }
        }
    }

    /// How the child ended, if it has; its last words are heard then.
    pub(super) async fn child_status(&mut self) -> Option<ExitStatus> {
        match self {
            Self::Ssh(_) => None,
            Self::Child(child, listening) => {
                let ended = async {
                    let status = child.wait().await;
                    // It has nothing to fail with but a panic.
                    drop(listening.await);
                    status
                };
                tokio::time::timeout(Duration::from_secs(LAST_WORDS_SECONDS_MAX), ended).await.ok()?.ok()
            }
        }
    }
}

/// The end of what was said on stderr, and how the program ended. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct LastWords {
    shared: Arc<Mutex<Words>>,
}

#[derive(Debug, Default)]
struct Words {
    stderr: VecDeque<u8>,
    ending: Option<String>,
}

impl LastWords {
    /// Keeps the end of it.
    pub(super) fn hear(&self, bytes: &[u8]) {
        let mut words = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        words.stderr.extend(bytes);
        let surplus = words.stderr.len().saturating_sub(STDERR_BYTES_MAX);
        words.stderr.drain(..surplus);
    }

    /// How it ended.
    pub(super) fn ended(&self, how: &str) {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).ending = Some(how.to_owned());
    }

    /// Whether it is known how it ended.
    pub(super) fn has_ended(&self) -> bool {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).ending.is_some()
    }

    /// Stderr alone, in one line of printable characters.
    pub(super) fn stderr(&self) -> String {
        let words = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = words.stderr.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        lines.join("; ").chars().filter(|c| !c.is_control()).collect()
    }

    /// How it ended and what it said, as the end of a sentence.
    pub(super) fn describe(&self) -> String {
        let ending = self.shared.lock().unwrap_or_else(PoisonError::into_inner).ending.clone();
        let stderr = self.stderr();
        match (ending, stderr.is_empty()) {
            (None, true) => String::new(),
            (Some(ending), true) => format!(" ({ending})"),
            (None, false) => format!(": {stderr}"),
            (Some(ending), false) => format!(" ({ending}): {stderr}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_bounded_and_printable() {
        let words = LastWords::default();
        assert_eq!(words.describe(), "");
        words.hear(&[b'x'; 10_000]);
        assert_eq!(words.stderr().len(), STDERR_BYTES_MAX);
        words.hear("\n\x1b[31mno\nspace \n".as_bytes());
        assert!(words.stderr().ends_with("; [31mno; space"), "{}", words.stderr());
        words.ended("exit status 1");
        assert!(words.describe().starts_with(" (exit status 1): x"));
    }
}
