//! Real hosts without libvirt: a private sshd on loopback, the real agent, copies between them. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod copying;
mod losing;
mod reaching;
mod sshd;
