//! Any bytes as a domain's definition: read, rewritten, compared.

#![no_main]

// The module alone: the whole program would bring ssh, sled and libvirt into an instrumented build.
extern crate self as kvm_clone;
#[allow(dead_code, unused_imports)]
#[path = "../../src/domain/mod.rs"]
pub mod domain;

include!("../bodies/domain_xml.rs");

libfuzzer_sys::fuzz_target!(|data: &[u8]| read_domain_xml(data));
