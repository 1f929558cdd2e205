//! What this program works out by itself, and what a reference says of the same bytes. Seeded: one number, one case.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use blake3::hazmat::HasherExt;
use journal_format::{ChunkState, ChunkValue};
use kvm_clone::domain::qcow2::{Encryption, HEADER_READ_BYTES, Header};
use kvm_clone::transfer::manifest;
use kvm_clone::world::ChunkGeometry;

use crate::seed::Seed;

/// Cases a test here goes through; `KVM_CLONE_REFERENCE_CASES` for more.
pub fn cases(default: u64) -> u64 {
    std::env::var("KVM_CLONE_REFERENCE_CASES").map_or(default, |text| text.parse().expect("a number of cases"))
}

/// What an agent says of a chunk.
fn state_of(geometry: ChunkGeometry, chunk: &[u8], index: u64) -> ChunkState {
    if chunk.iter().all(|byte| *byte == 0) {
        return ChunkState::Zero;
    }
    if geometry.chunk_count() == 1 {
        return ChunkState::Data(ChunkValue(*blake3::hash(chunk).as_bytes()));
    }
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(index * u64::from(geometry.chunk_bytes));
    hasher.update(chunk);
    ChunkState::Data(ChunkValue(hasher.finalize_non_root()))
}

#[test]
fn the_root_of_a_manifest_is_what_blake3_gives_for_the_image() {
    for number in 0..cases(300) {
        let mut seed = Seed::new(number);
        let chunk_bytes = 1024_u32 << seed.below(6);
        let image_bytes = seed.below(40 * u64::from(chunk_bytes)) + seed.below(2) * seed.below(1024);
        let geometry = ChunkGeometry { image_bytes, chunk_bytes };
        let mut image = vec![0; usize::try_from(image_bytes).unwrap()];
        let zeros_percent = seed.below(101);
        let mut chunks = BTreeMap::new();
        for (index, chunk) in (0..).zip(image.chunks_mut(chunk_bytes as usize)) {
            if !seed.chance(zeros_percent) {
                seed.fill(chunk);
            }
            // What is not named is zero, whether anybody said so or not.
            if chunk.iter().any(|byte| *byte != 0) || seed.chance(50) {
                chunks.insert(index, state_of(geometry, chunk, index));
            }
        }
        let expected = ChunkValue(*blake3::hash(&image).as_bytes());
        assert_eq!(manifest::root(geometry, &chunks), expected, "case {number}: {geometry:?}");
    }
}

pub fn qemu_img(directory: &Path, arguments: &[String]) -> String {
    run("qemu-img", directory, arguments)
}

/// Carries commands out on a qcow2 image, as its guest would.
pub fn qemu_io(directory: &Path, image: &str, commands: &[String]) {
    let commands = commands.iter().flat_map(|command| ["-c".to_owned(), command.clone()]);
    let words = ["-f", "qcow2"].map(str::to_owned).into_iter().chain(commands).chain([image.to_owned()]);
    run("qemu-io", directory, &words.collect::<Vec<_>>());
}

fn run(tool: &str, directory: &Path, arguments: &[String]) -> String {
    let output = Command::new(tool).current_dir(directory).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{tool}: {error}; `make install` installs it"));
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Options for `qemu-img create`, any that go together.
fn options(seed: &mut Seed) -> (Vec<String>, u64) {
    let mut options = Vec::new();
    let old = seed.chance(25);
    let extended = !old && seed.chance(25);
    options.push(format!("compat={}", if old { "0.10" } else { "1.1" }));
    let cluster_bits = if extended { 14 + seed.below(8) } else { 9 + seed.below(13) };
    options.push(format!("cluster_size={}", 1_u64 << cluster_bits));
    // The tables of small clusters cannot name much.
    let size = seed.below(1 << (20 + cluster_bits.saturating_sub(9)));
    if !old {
        options.push(format!("extended_l2={}", if extended { "on" } else { "off" }));
        options.push(format!("compression_type={}", seed.pick(&["zlib", "zstd"])));
        if seed.chance(25) {
            options.push("data_file=outside.data".to_owned());
            options.push(format!("data_file_raw={}", seed.pick(&["on", "off"])));
        } else {
            options.push(format!("lazy_refcounts={}", seed.pick(&["on", "off"])));
            options.push(format!("refcount_bits={}", 1 << seed.below(7)));
        }
    }
    if seed.chance(33) && !options.iter().any(|option| option == "data_file_raw=on") {
        let name = "b".repeat(1 + usize::try_from(seed.below(60)).unwrap());
        options.push(format!("backing_file={name}.img"));
        options.push(format!("backing_fmt={}", seed.pick(&["raw", "qcow2"])));
    }
    (options, size)
}

#[test]
fn qcow2_headers_say_what_qemu_img_says() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    for number in 0..cases(60) {
        let mut seed = Seed::new(number);
        let (options, size) = options(&mut seed);
        let words = ["create", "-q", "-u", "-f", "qcow2", "-o", &options.join(","), "image", &size.to_string()];
        qemu_img(directory, &words.map(str::to_owned));
        for snapshot in 0..seed.below(3) {
            // Without its backing file, and for a data file, qemu-img makes none.
            if !options.iter().any(|option| option.starts_with("backing_file") || option.starts_with("data_file")) {
                qemu_img(directory, &["snapshot", "-c", &format!("s{snapshot}"), "image"].map(str::to_owned));
            }
        }
        let said = qemu_img(directory, &["info", "--output=json", "image"].map(str::to_owned));
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        let data = &said["format-specific"]["data"];
        let bytes = std::fs::read(directory.join("image")).unwrap();
        let header = Header::read(&bytes[..bytes.len().min(HEADER_READ_BYTES)])
            .unwrap_or_else(|error| panic!("case {number}, {options:?}: {error}"));
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        let case = format!("case {number}, {options:?}: {said}");
        assert_eq!(Some(header.virtual_size_bytes), said["virtual-size"].as_u64(), "{case}");
        assert_eq!(Some(1 << header.cluster_bits), said["cluster-size"].as_u64(), "{case}");
        assert_eq!(header.backing_file, text(&said["backing-filename"]), "{case}");
        assert_eq!(header.backing_format, text(&said["backing-filename-format"]), "{case}");
        assert_eq!(header.data_file, text(&data["data-file"]), "{case}");
        assert_eq!(header.external_data, header.data_file.is_some(), "{case}");
        assert_eq!(header.version == 2, data["compat"] == "0.10", "{case}");
        assert_eq!(header.snapshots as usize, said["snapshots"].as_array().map_or(0, Vec::len), "{case}");
        assert_eq!(header.encryption, Encryption::None, "{case}");
        assert!(header.unknown_features.is_empty() && !header.corrupt, "{case}");
        let _ = std::fs::remove_file(directory.join("outside.data"));
    }
}
