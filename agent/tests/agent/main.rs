//! The real agent, started as a child and spoken to over pipes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod client;
mod copy;
mod endings;
mod hash;
mod locks;
mod operations;
mod refusals;
mod relay;
