//! What a guest sees through a chain of images, as the agent reads it, held against what `qemu-img convert` makes of the same
//! chain. Seeded: one number, one chain.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use journal_format::ImageFormat;
use kvm_clone::domain::qcow2::Header;
use kvm_clone::domain::unflattened_image;
use kvm_clone_agent::flat::{Chain, ChainError, LayerFile, Unreadable};

use crate::references::{cases, qemu_img, qemu_io};
use crate::seed::Seed;

// One body for the fuzz target and for these tests.
include!("../../fuzz/bodies/flat.rs");

/// A file, and what it has of holes.
struct OnDisk(File, u64);

impl OnDisk {
    fn open(path: &Path) -> Self {
        let file = File::open(path).unwrap();
        let len = file.metadata().unwrap().len();
        Self(file, len)
    }
}

impl LayerFile for OnDisk {
    type Error = Infallible;

    fn bytes(&self) -> u64 {
        self.1
    }

    fn read_at(&self, position: u64, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.0.read_exact_at(bytes, position).expect("within the file");
        Ok(())
    }

    fn data_from(&self, position: u64) -> Result<Range<u64>, Infallible> {
        use nix::unistd::{Whence, lseek64};
        let seek = |position: u64, whence| lseek64(&self.0, position.cast_signed(), whence).map(i64::unsigned_abs);
        Ok(match seek(position, Whence::SeekData) {
            Ok(start) => start..seek(start, Whence::SeekHole).unwrap_or(self.1),
            Err(_) => u64::MAX..u64::MAX,
        })
    }
}

/// What an image of a chain is made with.
struct Made {
    name: String,
    format: ImageFormat,
}

fn make_raw(directory: &Path, seed: &mut Seed, name: &str) {
    let file = File::create(directory.join(name)).unwrap();
    // Any length: what is missing of the last sector is zero.
    let bytes = seed.below(600_000);
    file.set_len(bytes).unwrap();
    for _ in 0..seed.below(5) {
        let mut part = vec![0; usize::try_from(seed.below(70_000)).unwrap()];
        seed.fill(&mut part);
        let start = seed.below(bytes.max(1));
        part.truncate(usize::try_from(bytes - start.min(bytes)).unwrap());
        file.write_all_at(&part, start).unwrap();
    }
}

fn make_qcow2(directory: &Path, seed: &mut Seed, name: &str, below: Option<&Made>) {
    let cluster = 512_u64 << seed.below(9);
    let old = seed.chance(25);
    let mut options = format!("cluster_size={cluster},compat={}", if old { "0.10" } else { "1.1" });
    let allocated = below.is_none() && seed.chance(50);
    if allocated {
        options = format!("{options},preallocation={}", seed.pick(&["metadata", "falloc"]));
    }
    let mut words = vec!["create", "-q", "-f", "qcow2", "-o", &options];
    if let Some(below) = below {
        let format = if below.format == ImageFormat::Raw { "raw" } else { "qcow2" };
        words.extend(["-b", &below.name, "-F", format]);
    }
    // Smaller or larger than what is below it.
    let size = ((1 + seed.below(1200)) * 512).to_string();
    words.extend([name, &size]);
    qemu_img(directory, &words.map_owned());
    let size: u64 = size.parse().unwrap();
    let mut commands = Vec::new();
    // A cluster is compressed when it is written first, or never; and as a whole, but for the last one.
    let compressed: BTreeSet<u64> = (0..seed.below(4)).map(|_| seed.below(size.div_ceil(cluster)) * cluster).collect();
    for start in compressed.into_iter().filter(|_| !allocated) {
        commands.push(format!("write -c -P {} {start} {}", 1 + seed.below(255), cluster.min(size - start)));
    }
    for _ in 0..seed.below(8) {
        let start = seed.below(size / 512) * 512;
        let bytes = ((1 + seed.below(200)) * 512).min(size - start);
        let byte = 1 + seed.below(255);
        commands.push(match seed.below(5) {
            0 => format!("write -z {start} {bytes}"),
            1 => format!("write -zu {start} {bytes}"),
            2 => format!("discard {start} {bytes}"),
            _ => format!("write -P {byte} {start} {bytes}"),
        });
    }
    qemu_io(directory, name, &commands);
}

trait Owned {
    fn map_owned(&self) -> Vec<String>;
}

impl Owned for Vec<&str> {
    fn map_owned(&self) -> Vec<String> {
        self.iter().map(|word| (*word).to_owned()).collect()
    }
}

/// One to four images, from the top down.
fn make_chain(directory: &Path, seed: &mut Seed) -> Vec<Made> {
    let mut chain: Vec<Made> = Vec::new();
    for layer in 0..=seed.below(4) {
        let raw = layer == 0 && seed.chance(50);
        let name = format!("layer{layer}");
        let format = if raw { ImageFormat::Raw } else { ImageFormat::Qcow2 };
        if raw {
            make_raw(directory, seed, &name);
        } else {
            make_qcow2(directory, seed, &name, chain.first());
        }
        chain.insert(0, Made { name, format });
    }
    // Data that compresses badly, and data that does so well.
    if let Some(top) = chain.first().filter(|top| top.format == ImageFormat::Qcow2 && seed.chance(25)) {
        let below = chain.get(1).map(|below| &below.name);
        let mut words = vec!["convert", "-c", "-f", "qcow2", "-O", "qcow2"];
        if let Some(below) = below {
            let format = if chain[1].format == ImageFormat::Raw { "raw" } else { "qcow2" };
            words.extend(["-B", below, "-F", format]);
        }
        words.extend([&*top.name, "compressed"]);
        qemu_img(directory, &words.map_owned());
        "compressed".clone_into(&mut chain[0].name);
    }
    chain
}

fn open(directory: &Path, made: &[Made]) -> Chain<OnDisk> {
    let layers = made.iter().map(|layer| (OnDisk::open(&directory.join(&layer.name)), layer.format));
    Chain::open(layers.collect()).unwrap_or_else(|error| panic!("{error:?}"))
}

#[test]
fn a_flattened_chain_is_what_qemu_img_converts_it_to() {
    for number in 0..cases(60) {
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let directory = directory.path();
        let mut seed = Seed::new(number);
        let made = make_chain(directory, &mut seed);
        let format = if made[0].format == ImageFormat::Raw { "raw" } else { "qcow2" };
        qemu_img(directory, &vec!["convert", "-f", format, "-O", "raw", &made[0].name, "flat"].map_owned());
        let expected = std::fs::read(directory.join("flat")).unwrap();
        let chain = open(directory, &made);
        let told: Vec<_> = made.iter().map(|layer| &layer.name).collect();
        if format == "qcow2" {
            assert_eq!(chain.bytes(), expected.len() as u64, "case {number}: {told:?}");
        }
        let mut read = vec![0xff; expected.len()];
        chain.read(0, &mut read).unwrap_or_else(|error| panic!("case {number}: {error:?}"));
        let differs = read.iter().zip(&expected).position(|(read, expected)| read != expected);
        assert_eq!(differs, None, "case {number}: {told:?}");
        agrees_with_itself(&chain);
    }
}

/// What cannot be read is refused by preflight and by the agent alike.
#[test]
fn what_cannot_be_flattened_is_refused_by_name() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let directory = directory.path();
    for (options, why) in [
        ("compression_type=zstd", Unreadable::Compression),
        ("extended_l2=on,cluster_size=64k", Unreadable::Subclusters),
        ("data_file=outside.data", Unreadable::ExternalData),
    ] {
        qemu_img(directory, &vec!["create", "-q", "-f", "qcow2", "-o", options, "image", "1M"].map_owned());
        let opened = Chain::open(vec![(OnDisk::open(&directory.join("image")), ImageFormat::Qcow2)]);
        assert!(matches!(opened, Err(ChainError::Image(0, found)) if found == why), "{options}");
        let header = Header::read(&std::fs::read(directory.join("image")).unwrap()).unwrap();
        let blocked = [
            unflattened_image("disk vda", &header).blockers,
            kvm_clone::domain::uncarried_image("disk vda", &header).blockers,
        ];
        assert_eq!(blocked.concat().len(), 1, "{options}");
    }
    qemu_img(directory, &vec!["create", "-q", "-f", "qcow2", "snapped", "1M"].map_owned());
    qemu_img(directory, &vec!["snapshot", "-c", "one", "snapped"].map_owned());
    let header = Header::read(&std::fs::read(directory.join("snapped")).unwrap()).unwrap();
    let blocked = unflattened_image("disk vda", &header).blockers;
    assert!(blocked.len() == 1 && blocked[0].what.contains("internal snapshots (1)"), "{blocked:?}");
}

#[test]
fn seeds_of_flat() {
    for seed in crate::seeds::seeds("flat") {
        read_flat(&seed);
    }
}

/// Every byte of a small chain turned: nothing panics, and what is read agrees with itself or is refused.
#[test]
fn a_chain_with_any_byte_turned_is_read_or_refused() {
    for seed in crate::seeds::seeds("flat") {
        let step = (seed.len() / 600).max(1);
        for at in (0..seed.len()).step_by(step) {
            for turned in [0xff, 0x01, 0x80] {
                let mut bytes = seed.clone();
                bytes[at] ^= turned;
                read_flat(&bytes);
            }
        }
    }
}
