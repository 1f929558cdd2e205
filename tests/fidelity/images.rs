//! Headers of qcow2 images, held against what qemu-img says of the same files, and bent in every way.

use std::path::Path;
use std::process::Command;

use kvm_clone::domain::qcow2::{Encryption, HEADER_READ_BYTES, Header, Qcow2Error, renamed_backing};
use kvm_clone::domain::uncarried_image;
use proptest::prelude::*;

fn qemu_img(directory: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("qemu-img").current_dir(directory).args(arguments).output().ok()?;
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

fn head(path: &Path) -> Vec<u8> {
    let bytes = std::fs::read(path).unwrap();
    bytes[..bytes.len().min(HEADER_READ_BYTES)].to_vec()
}

/// What an image stands on is written anew in its header alone, and qemu-img finds nothing to complain of.
#[test]
fn a_header_names_another_image_below() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    if Command::new("qemu-img").arg("--version").output().is_err() {
        eprintln!("not tested against qemu-img: it is not installed");
        return;
    }
    let long = format!("{}.raw", "long-".repeat(40));
    for base in ["a.raw", "the-base-of-all.raw", &long] {
        qemu_img(directory, &["create", "-q", "-f", "raw", base, "3M"]);
    }
    for (name, options) in [("three", "compat=1.1"), ("two", "compat=0.10"), ("small", "cluster_size=1k")] {
        let image = directory.join(name);
        qemu_img(
            directory,
            &["create", "-q", "-f", "qcow2", "-o", options, "-b", "the-base-of-all.raw", "-F", "raw", name],
        );
        for base in ["a.raw", &long, "the-base-of-all.raw"] {
            let mut bytes = std::fs::read(&image).unwrap();
            for (offset, patch) in renamed_backing(&head(&image), base).unwrap() {
                let at = usize::try_from(offset).unwrap();
                bytes[at..at + patch.len()].copy_from_slice(&patch);
            }
            std::fs::write(&image, bytes).unwrap();
            let said = qemu_img(directory, &["info", "--output=json", name]).unwrap();
            let said: serde_json::Value = serde_json::from_str(&said).unwrap();
            assert_eq!(said["backing-filename"].as_str(), Some(base), "{name}");
            qemu_img(directory, &["check", "-q", name]);
        }
        let too_long = "x".repeat(1100);
        assert!(matches!(renamed_backing(&head(&image), &too_long), Err(Qcow2Error::BadField { .. })), "{name}");
    }
}

#[test]
fn headers_say_what_qemu_img_says() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    if Command::new("qemu-img").arg("--version").output().is_err() {
        eprintln!("not tested against qemu-img: it is not installed");
        return;
    }
    qemu_img(directory, &["create", "-q", "-f", "raw", "base.raw", "3M"]);
    let secret = ["--object", "secret,id=s,data=password"];
    let images: [(&str, &[&str]); 10] = [
        ("three", &["three", "10M"]),
        ("two", &["-o", "compat=0.10", "two", "10M"]),
        ("two-on-base", &["-o", "compat=0.10", "-b", "base.raw", "-F", "raw", "two-on-base"]),
        ("on-base", &["-b", "base.raw", "-F", "raw", "on-base", "7M"]),
        ("outside", &["-o", "data_file=outside.data,data_file_raw=on", "outside", "1M"]),
        ("aes", &[secret[0], secret[1], "-o", "encrypt.format=aes,encrypt.key-secret=s", "aes", "1M"]),
        ("small-clusters", &["-o", "cluster_size=512", "small-clusters", "1M"]),
        ("large-clusters", &["-o", "cluster_size=2M,lazy_refcounts=on", "large-clusters", "1T"]),
        ("extended", &["-o", "extended_l2=on,cluster_size=128k", "extended", "1M"]),
        ("zstd", &["-o", "compression_type=zstd", "zstd", "1M"]),
    ];
    for (name, arguments) in images {
        qemu_img(directory, &[&["create", "-q", "-f", "qcow2"], arguments].concat());
        let path = directory.join(name);
        if name == "three" {
            qemu_img(directory, &["snapshot", "-c", "one", name]);
            qemu_img(directory, &["snapshot", "-c", "two", name]);
        }
        let said = qemu_img(directory, &["info", "--output=json", name]).unwrap();
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        let header = Header::read(&head(&path)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let data = &said["format-specific"]["data"];
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        assert_eq!(Some(header.virtual_size_bytes), said["virtual-size"].as_u64(), "{name}");
        assert_eq!(Some(1 << header.cluster_bits), said["cluster-size"].as_u64(), "{name}");
        assert_eq!(header.backing_file, text(&said["backing-filename"]), "{name}");
        assert_eq!(header.backing_format, text(&said["backing-filename-format"]), "{name}");
        assert_eq!(header.data_file, text(&data["data-file"]), "{name}");
        assert_eq!(header.external_data, header.data_file.is_some(), "{name}");
        assert_eq!(header.version == 2, data["compat"] == "0.10", "{name}");
        assert_eq!(Some(header.corrupt), data["corrupt"].as_bool().or(Some(false)), "{name}");
        assert_eq!(Some(header.dirty), said["dirty-flag"].as_bool(), "{name}");
        assert_eq!(header.snapshots as usize, said["snapshots"].as_array().map_or(0, Vec::len), "{name}");
        let encryption = match data["encrypt"]["format"].as_str() {
            None => Encryption::None,
            Some(_) => Encryption::Aes,
        };
        assert_eq!(header.encryption, encryption, "{name}");
        assert!(header.unknown_features.is_empty(), "{name}");
        let blocked: Vec<_> = uncarried_image("vda", &header).blockers.into_iter().map(|found| found.what).collect();
        let expected: &[&str] = match name {
            "outside" => &["an external data file (outside.data)"],
            "aes" => &["an encrypted image (AES)"],
            _ => &[],
        };
        assert_eq!(blocked, expected, "{name}");
    }
}

/// Making one takes qemu-img seconds of measuring the CPU, and fails on a busy machine, so this header was kept.
#[test]
fn luks_is_refused() {
    let bytes = std::fs::read(super::repository().join("fuzz/seeds/qcow2/luks")).unwrap();
    let header = Header::read(&bytes).unwrap();
    assert_eq!((header.encryption, header.virtual_size_bytes), (Encryption::Luks, 1 << 20));
    assert_eq!(uncarried_image("vda", &header).blockers[0].what, "an encrypted image (LUKS)");
}

/// A header of version 3 with the given extensions, written by hand.
fn header(incompatible: u64, extensions: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = vec![0; 104];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"QFI\xfb\0\0\0\x03");
    put(20, &16_u32.to_be_bytes());
    put(24, &(1_u64 << 30).to_be_bytes());
    put(72, &incompatible.to_be_bytes());
    put(96, &4_u32.to_be_bytes());
    put(100, &104_u32.to_be_bytes());
    for (kind, data) in extensions {
        bytes.extend(kind.to_be_bytes());
        bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    bytes.resize(bytes.len() + 8, 0);
    bytes
}

fn with(mut bytes: Vec<u8>, at: usize, value: &[u8]) -> Vec<u8> {
    bytes[at..at + value.len()].copy_from_slice(value);
    bytes
}

#[test]
fn unknown_features_are_named_by_the_header_itself() {
    let mut name = vec![0, 37];
    name.extend(b"time travel");
    name.resize(48, 0);
    let bytes = header(1 << 37 | 1 << 63 | 3, &[(0x1234_5678, vec![9; 13]), (0x6803_f857, name)]);
    let header = Header::read(&bytes).unwrap();
    assert_eq!(header.unknown_features, ["time travel (bit 37)", "bit 63"]);
    assert!(header.dirty && header.corrupt && !header.external_data);
    let whats: Vec<_> = uncarried_image("vda", &header).blockers.into_iter().map(|found| found.what).collect();
    assert_eq!(
        whats,
        [
            "features of qcow2 that are not known here (time travel (bit 37), bit 63)",
            "an image that QEMU marked as corrupt"
        ]
    );
}

#[test]
fn hostile_headers_are_refused() {
    let good = header(0, &[]);
    assert!(Header::read(&good).is_ok());
    assert_eq!(Header::read(b""), Err(Qcow2Error::NotQcow2));
    assert_eq!(Header::read(b"QFI"), Err(Qcow2Error::NotQcow2));
    assert_eq!(Header::read(&[0; 512]), Err(Qcow2Error::NotQcow2));
    assert_eq!(Header::read(&with(good.clone(), 7, &[4])), Err(Qcow2Error::UnknownVersion(4)));
    let bad = |at: usize, value: &[u8], what: &str| {
        let error = Header::read(&with(good.clone(), at, value)).unwrap_err();
        assert!(matches!(error, Qcow2Error::BadField { .. } | Qcow2Error::Truncated { .. }), "{error}");
        assert!(error.to_string().contains(what), "{error} should name {what}");
    };
    for bits in [0_u32, 8, 22, 32, 64, u32::MAX] {
        bad(20, &bits.to_be_bytes(), "cluster bits");
    }
    for length in [0_u32, 103, 1 << 17, u32::MAX] {
        bad(100, &length.to_be_bytes(), "header length");
    }
    // A backing file's name beyond all bounds, then beyond what was read.
    let named = with(good.clone(), 8, &u64::MAX.to_be_bytes());
    assert!(Header::read(&with(named.clone(), 16, &1024_u32.to_be_bytes())).is_err());
    assert!(Header::read(&with(named, 16, &10_u32.to_be_bytes())).is_err());
    assert!(Header::read(&header(0, &[(1, vec![0; 8])])[..116]).is_err());
    let mut endless = header(0, &vec![(1, vec![]); 2000]);
    assert!(matches!(Header::read(&endless), Err(Qcow2Error::BadField { what: "number of extensions", .. })));
    endless.truncate(104 + 4);
    assert!(matches!(Header::read(&endless), Err(Qcow2Error::Truncated { .. })));
    let huge = with(header(0, &[(1, vec![0; 8])]), 108, &u32::MAX.to_be_bytes());
    assert!(matches!(Header::read(&huge), Err(Qcow2Error::Truncated { .. })));
}

proptest! {
    #[test]
    fn no_bytes_do_harm(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), version in 2_u8..4, cut in 0_usize..400) {
        for (at, byte) in b"QFI\xfb\0\0\0".iter().chain([&version]).enumerate() {
            if let Some(place) = bytes.get_mut(at) {
                *place = *byte;
            }
        }
        super::seeds::read_qcow2(&bytes);
        // And with a plausible cluster size and header, so that the extensions are reached.
        if bytes.len() > 104 {
            bytes[20..24].copy_from_slice(&16_u32.to_be_bytes());
            bytes[100..104].copy_from_slice(&104_u32.to_be_bytes());
            super::seeds::read_qcow2(&bytes);
        }
        bytes.truncate(cut);
        super::seeds::read_qcow2(&bytes);
    }
}
