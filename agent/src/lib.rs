//! What the controller and the agent share: the wire protocol and the arithmetic of chunks. And what tests hold against QEMU:
//! what a guest sees through a chain of images.
//!
//! Nothing here does I/O. The agent itself is the binary of this crate.

pub mod chunk;
pub mod flat;
pub mod protocol;
