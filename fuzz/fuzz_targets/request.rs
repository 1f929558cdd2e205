//! Any bytes as the words of a command line.

#![no_main]

include!("../bodies/request.rs");

libfuzzer_sys::fuzz_target!(|data: &[u8]| read_request(data));
