//! The seeds of the fuzz targets, as plain tests: each must be read, or refused, without harm.

use std::path::Path;

// One body for the fuzz target and for these tests.
include!("../../fuzz/bodies/libvirt_xml.rs");
include!("../../fuzz/bodies/request.rs");
include!("../../fuzz/bodies/ssh_config.rs");

pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 6, "the seeds of {target} are gone");
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

#[test]
fn seeds_of_libvirt_xml() {
    for seed in seeds("libvirt_xml") {
        read_libvirt_xml(&seed);
    }
}

#[test]
fn seeds_of_request() {
    for seed in seeds("request") {
        read_request(&seed);
    }
}

#[test]
fn seeds_of_ssh_config() {
    let home = tempfile::tempdir().unwrap();
    for seed in seeds("ssh_config") {
        read_ssh_config(&seed, home.path());
    }
}

/// Every target is in `fuzz/Cargo.toml`, and has seeds.
#[test]
fn every_target_has_seeds() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    for entry in std::fs::read_dir(fuzz.join("fuzz_targets")).unwrap() {
        let name = entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned();
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is not built");
        assert!(fuzz.join("seeds").join(&name).read_dir().unwrap().next().is_some(), "{name} has no seeds");
    }
}
