//! Any bytes as a chain of qcow2 and raw images.

#![no_main]

include!("../bodies/flat.rs");

libfuzzer_sys::fuzz_target!(|data: &[u8]| read_flat(data));
