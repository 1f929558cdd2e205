//! Where disks come from and where they go: pools, volumes, devices, and places that were asked for by name. Between real
//! hosts, judged from outside.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../lab/mod.rs"]
mod lab;

mod block;
mod places;
mod target;
mod volumes;
