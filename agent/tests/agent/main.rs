//! The real agent, started as a child and spoken to over pipes.

#![allow(clippy::unwrap_used, clippy::expect_used)]
// Requests are values here, made to be sent; and a job for one range is a vector of one range.
#![allow(clippy::needless_pass_by_value, clippy::single_range_in_vec_init)]

mod client;
mod copy;
mod endings;
mod hash;
mod holes;
mod locks;
mod operations;
mod refusals;
mod relay;
