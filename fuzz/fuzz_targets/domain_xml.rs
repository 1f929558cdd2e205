//! Any bytes as a domain's definition: read, rewritten, compared.

#![no_main]

include!("../bodies/domain_xml.rs");

libfuzzer_sys::fuzz_target!(|data: &[u8]| read_domain_xml(data));
