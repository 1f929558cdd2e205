//! Bytes that others wrote: the seeds of the fuzz targets as plain tests, and what is read held against a reference that
//! reads the same (BLAKE3, qemu-img). Those of definitions and images are in `tests/fidelity`, of journals in `tests/journal`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod flat;
mod references;
#[path = "../simulation/seed.rs"]
mod seed;
mod seeds;
