//! The engine in a simulated world: every primitive operation as a crash point, power cuts, strangers, and an oracle
//! that knows nothing of the engine.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../conformance/mod.rs"]
mod conformance;
mod content;
mod definition;
mod faults;
mod filesystem;
mod ground;
mod libvirt;
mod machine;
mod planning;
mod scene;
mod seed;
mod world;
