//! Any bytes as frames of the wire protocol, and as each kind of their payloads.
#![no_main]

#[path = "../../agent/tests/any_bytes/mod.rs"]
mod any_bytes;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| any_bytes::check(bytes));
