//! What the controller and the agent share: the wire protocol and the arithmetic of chunks.
//!
//! Nothing here does I/O. The agent itself is the binary of this crate.

pub mod chunk;
pub mod protocol;
