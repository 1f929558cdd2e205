//! Any bytes as the documents of libvirt that are read besides definitions: pools, domain capabilities.

#![no_main]

include!("../bodies/libvirt_xml.rs");

libfuzzer_sys::fuzz_target!(|data: &[u8]| read_libvirt_xml(data));
