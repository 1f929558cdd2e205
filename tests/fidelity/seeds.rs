//! The seeds of the fuzz targets, as plain tests: each must be read, or refused, without harm.

use kvm_clone::domain::qcow2::Header;

use super::{files, repository};

// One body for the fuzz target and for this test.
include!("../../fuzz/bodies/domain_xml.rs");
include!("../../fuzz/bodies/qcow2.rs");

#[test]
fn seeds_of_domain_xml() {
    let seeds = files(&repository().join("fuzz/seeds/domain_xml"));
    assert!(seeds.len() >= 10);
    for seed in seeds {
        read_domain_xml(&std::fs::read(seed).unwrap());
    }
}

#[test]
fn seeds_of_qcow2() {
    let seeds = files(&repository().join("fuzz/seeds/qcow2"));
    assert!(seeds.len() >= 8);
    for seed in seeds {
        let bytes = std::fs::read(&seed).unwrap();
        read_qcow2(&bytes);
        // A seed that falls at the first hurdle leads nowhere.
        let hostile = ["far-backing-name", "huge-extension", "magic-alone"]
            .contains(&&*seed.file_name().unwrap().to_string_lossy());
        assert_eq!(Header::read(&bytes).is_err(), hostile, "{}", seed.display());
    }
}
