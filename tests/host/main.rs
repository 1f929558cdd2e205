//! Real hosts without libvirt: a private sshd on loopback, the real agent, copies between them. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used)]
// One range of chunks is meant, not the chunks in it.
#![allow(clippy::single_range_in_vec_init)]

mod copying;
mod losing;
mod reaching;
mod sshd;
