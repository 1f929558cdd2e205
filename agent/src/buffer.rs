//! Page-aligned buffers, each as large as a chunk, reused: what keeps the agent's memory bounded and `O_DIRECT` possible.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use crate::monitor::Monitor;

/// What `O_DIRECT` asks of addresses, offsets and lengths on every filesystem we know.
pub const ALIGNMENT: usize = 4096;

/// The buffers of one stream.
#[derive(Debug)]
pub struct Pool {
    buffer_bytes: usize,
    state: Monitor<State>,
}

#[derive(Debug)]
struct State {
    free: Vec<Vec<u8>>,
    /// Buffers that may still be made.
    unmade: usize,
    closed: bool,
}

impl Pool {
    /// A pool of buffers of this size, of so many bytes in all, but of at least two buffers.
    pub fn new(buffer_bytes: usize, bytes_max: usize) -> Arc<Self> {
        let unmade = (bytes_max / buffer_bytes.max(1)).max(2);
        Arc::new(Self { buffer_bytes, state: Monitor::new(State { free: Vec::new(), unmade, closed: false }) })
    }

    /// A buffer, once there is one; `None` when the pool was closed.
    pub fn take(self: &Arc<Self>) -> Option<Buffer> {
        let bytes = self.state.wait_for(|state| if state.closed { Some(None) } else { state.take().map(Some) })?;
        Some(self.buffer(bytes))
    }

    /// A buffer if there is one now.
    pub fn try_take(self: &Arc<Self>) -> Option<Buffer> {
        let bytes = self.state.lock().take()?;
        Some(self.buffer(bytes))
    }

    /// Nobody gets a buffer any more.
    pub fn close(&self) {
        self.state.change(|state| state.closed = true);
    }

    fn buffer(self: &Arc<Self>, mut bytes: Vec<u8>) -> Buffer {
        if bytes.is_empty() {
            // What cannot be written past the page cache anyway needs no room to be aligned in.
            let slack = if self.buffer_bytes.is_multiple_of(ALIGNMENT) { ALIGNMENT } else { 0 };
            bytes = vec![0; self.buffer_bytes + slack];
        }
        let start = bytes.as_ptr().align_offset(ALIGNMENT);
        let start = if start + self.buffer_bytes <= bytes.len() { start } else { 0 };
        Buffer { bytes, start, len: self.buffer_bytes, pool: Arc::clone(self) }
    }
}

impl State {
    /// A used buffer, or an empty vector that stands for a new one.
    fn take(&mut self) -> Option<Vec<u8>> {
        self.free.pop().or_else(|| {
            self.unmade = self.unmade.checked_sub(1)?;
            Some(Vec::new())
        })
    }
}

/// Aligned bytes that go back to their pool when dropped.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
    pool: Arc<Pool>,
}

impl Buffer {
    /// Only the first `len` bytes count from here on (all of them when it is larger than the buffer).
    pub fn set_len(&mut self, len: usize) {
        self.len = len.min(self.pool.buffer_bytes);
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.pool.state.change(|state| state.free.push(bytes));
    }
}

/// Whether all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // In blocks without a way out in the middle, which the compiler makes wide instructions of.
    bytes.chunks(ALIGNMENT).all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_gives_what_it_has_and_no_more() {
        let pool = Pool::new(8192, 3 * 8192);
        let mut held: Vec<_> = std::iter::from_fn(|| pool.try_take()).collect();
        assert_eq!(held.len(), 3);
        assert!(held.iter().all(|buffer| buffer.as_ptr().addr() % ALIGNMENT == 0 && buffer.len() == 8192));
        held[0].set_len(5);
        assert_eq!(held[0].len(), 5);
        held.clear();
        assert_eq!(pool.take().map(|buffer| buffer.len()), Some(8192));
        pool.close();
        assert!(pool.take().is_none());
        assert!(Pool::new(16 << 20, 1).try_take().is_some());
    }

    #[test]
    fn one_bit_anywhere_is_not_zero() {
        let mut bytes = vec![0; 10_000];
        assert!(is_zero(&bytes) && is_zero(&[]));
        for at in [0, 1, 4095, 4096, 9_999] {
            bytes[at] = 1;
            assert!(!is_zero(&bytes));
            bytes[at] = 0;
        }
    }
}
