//! Any bytes as the beginning of a qcow2 image.

#![no_main]

include!("../bodies/qcow2.rs");

libfuzzer_sys::fuzz_target!(|data: &[u8]| read_qcow2(data));
