//! Any bytes as a frame, as a payload under a right hash, as an owner slot and file, as a ledger entry.
#![no_main]

#[path = "../../journal-format/tests/any_bytes/mod.rs"]
mod any_bytes;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| any_bytes::check(bytes));
