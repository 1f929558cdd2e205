//! Any bytes as the beginning of a qcow2 image.

#![no_main]

// The module alone: the whole program would bring ssh, sled and libvirt into an instrumented build.
extern crate self as kvm_clone;
#[allow(dead_code, unused_imports)]
#[path = "../../src/domain/mod.rs"]
pub mod domain;

include!("../bodies/qcow2.rs");

libfuzzer_sys::fuzz_target!(|data: &[u8]| read_qcow2(data));
