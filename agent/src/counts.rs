//! What this agent does, counted for who asks. Nothing is decided by it.

use std::sync::atomic::{AtomicU64, Ordering};

use kvm_clone_agent::protocol::Counts;

static REQUESTS: AtomicU64 = AtomicU64::new(0);
static IMAGE_BYTES_READ: AtomicU64 = AtomicU64::new(0);
static IMAGE_BYTES_WRITTEN: AtomicU64 = AtomicU64::new(0);
static FILE_BYTES_READ: AtomicU64 = AtomicU64::new(0);
static LIBVIRT_CALLS: AtomicU64 = AtomicU64::new(0);

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

/// A request that is no sign of life.
pub fn request() {
    add(&REQUESTS, 1);
}

/// Bytes of an image.
pub fn image_read(bytes: usize) {
    add(&IMAGE_BYTES_READ, bytes as u64);
}

/// Bytes of an image.
pub fn image_written(bytes: usize) {
    add(&IMAGE_BYTES_WRITTEN, bytes as u64);
}

/// Bytes of a small file, or of a header.
pub fn file_read(bytes: usize) {
    add(&FILE_BYTES_READ, bytes as u64);
}

/// Calls in what goes to libvirt.
pub fn libvirt_calls(calls: u64) {
    add(&LIBVIRT_CALLS, calls);
}

/// All of it until now.
pub fn now() -> Counts {
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    Counts {
        requests: read(&REQUESTS),
        image_bytes_read: read(&IMAGE_BYTES_READ),
        image_bytes_written: read(&IMAGE_BYTES_WRITTEN),
        file_bytes_read: read(&FILE_BYTES_READ),
        libvirt_calls: read(&LIBVIRT_CALLS),
    }
}

/// Bytes of a libvirt message that say how long it is and what: length, program, version, procedure, kind.
const HEAD_BYTES: usize = 20;
/// `REMOTE_PROGRAM` and `QEMU_PROGRAM` (libvirt's src/remote/*.x): signs of life are another program's.
const PROGRAMS: [u32; 2] = [0x2000_8086, 0x2000_8087];
/// `VIR_NET_CALL`.
const CALL: u32 = 0;

/// Tells the calls among the messages to libvirt, as their bytes come.
#[derive(Debug, Default)]
pub struct Calls {
    head: [u8; HEAD_BYTES],
    filled: usize,
    /// Bytes of the message that are still to come, and of no interest.
    rest: u64,
    /// These are no messages that are known here.
    lost: bool,
}

impl Calls {
    /// How many calls begin in these bytes.
    pub fn take(&mut self, mut bytes: &[u8]) -> u64 {
        let mut calls = 0;
        while !bytes.is_empty() && !self.lost {
            if self.rest > 0 {
                let skipped = bytes.len().min(usize::try_from(self.rest).unwrap_or(usize::MAX));
                bytes = &bytes[skipped..];
                self.rest -= skipped as u64;
                continue;
            }
            let taken = bytes.len().min(HEAD_BYTES - self.filled);
            self.head[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
            if self.filled == HEAD_BYTES {
                self.filled = 0;
                calls += u64::from(self.begin());
            }
        }
        calls
    }

    /// A head is whole: is it a call?
    fn begin(&mut self) -> bool {
        let word =
            |at: usize| u32::from_be_bytes([self.head[at], self.head[at + 1], self.head[at + 2], self.head[at + 3]]);
        let (length, program, kind) = (u64::from(word(0)), word(4), word(16));
        match length.checked_sub(HEAD_BYTES as u64) {
            Some(rest) => self.rest = rest,
            None => self.lost = true,
        }
        PROGRAMS.contains(&program) && kind == CALL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(program: u32, kind: u32, payload_bytes: u32) -> Vec<u8> {
        let words = [28 + payload_bytes, program, 1, 1, kind, 7, 0];
        let head = words.into_iter().flat_map(u32::to_be_bytes);
        head.chain(std::iter::repeat_n(0xff, payload_bytes as usize)).collect()
    }

    #[test]
    fn calls_are_told_from_everything_else_however_they_are_cut() {
        let all = [
            message(PROGRAMS[0], CALL, 0),
            message(0x6b65_6570, CALL, 0),
            message(PROGRAMS[0], CALL, 100),
            message(PROGRAMS[0], 3, 5),
            message(PROGRAMS[1], CALL, 1),
        ]
        .concat();
        for piece in 1..all.len() {
            let mut calls = Calls::default();
            assert_eq!(all.chunks(piece).map(|bytes| calls.take(bytes)).sum::<u64>(), 3, "in pieces of {piece}");
        }
        assert_eq!(Calls::default().take(&[0; 100]), 0);
    }
}
