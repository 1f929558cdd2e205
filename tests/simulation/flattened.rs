//! Chains of the source that arrive as one image: how they are made here, and what their guest sees, worked out without the
//! agent's own reader.

use journal_format::{ImageFormat, ImageV1, LayerV1};

use crate::content::Content;
use crate::filesystem::Filesystem;
use crate::scene::as_cloned;
use crate::seed::Seed;

const CLUSTER_BITS: u32 = 10;
const CLUSTER_BYTES: u64 = 1 << CLUSTER_BITS;
/// Header, a table of the first level, one of the second: then data.
const FIRST_TABLE_AT: u64 = CLUSTER_BYTES;
const SECOND_TABLE_AT: u64 = 2 * CLUSTER_BYTES;
/// From here on a qcow2 image of a chain holds nothing but its guest's data.
pub const DATA_AT: u64 = 3 * CLUSTER_BYTES;
/// Where the header names the image below: behind the extension that says its format.
pub const REFERENCE_AT: u64 = 128;
const FORMAT_BELOW: u32 = 0xe279_2aca;
const ZERO_CLUSTER: u64 = 1;
const COPIED: u64 = 1 << 63;

/// Bytes that the guest of an image sees: some chunks, an odd end, now and then none.
pub fn guest_bytes(seed: &mut Seed, chunk_bytes: u64) -> u64 {
    let bytes = seed.pick(&[0, 1, 3, 4, 6, 7]) * chunk_bytes;
    if bytes > 0 && seed.chance(50) { bytes - CLUSTER_BYTES } else { bytes }
}

/// A qcow2 image with some clusters of its own, some zeros, and the rest of what is below.
pub fn qcow2(seed: &mut Seed, guest_bytes: u64, (below, format): (&str, &str)) -> Content {
    let mut content = Content::default();
    let mut put = |at: u64, number: u64, bytes: usize| content.write(at, &number.to_be_bytes()[8 - bytes..]);
    for (at, number) in [
        (0, 0x5146_49fb),
        (4, 3),
        (16, below.len() as u64),
        (20, CLUSTER_BITS.into()),
        (36, 1),
        (100, 104),
        (104, FORMAT_BELOW.into()),
        (108, format.len() as u64),
    ] {
        put(at, number, 4);
    }
    for (at, number) in [(8, REFERENCE_AT), (24, guest_bytes), (40, FIRST_TABLE_AT)] {
        put(at, number, 8);
    }
    put(FIRST_TABLE_AT, SECOND_TABLE_AT | COPIED, 8);
    content.write(112, format.as_bytes());
    content.write(REFERENCE_AT, below.as_bytes());
    let mut end = DATA_AT;
    for cluster in 0..CLUSTER_BYTES / 8 {
        let is_there = cluster * CLUSTER_BYTES < guest_bytes;
        let entry = match seed.below(8) {
            0..=3 if is_there => {
                let mut bytes = [0; CLUSTER_BYTES as usize];
                seed.fill(&mut bytes);
                content.write(end, &bytes);
                end += CLUSTER_BYTES;
                (end - CLUSTER_BYTES) | COPIED
            }
            4 if is_there => ZERO_CLUSTER,
            _ => 0,
        };
        content.write(SECOND_TABLE_AT + cluster * 8, &entry.to_be_bytes());
    }
    content
}

/// What an image of the source is in the clone.
pub fn in_the_clone(files: &Filesystem, planned: &ImageV1) -> Option<Content> {
    let top = files.content(&planned.source_path)?;
    if planned.flattened.is_empty() {
        return Some(as_cloned(planned, top));
    }
    let below = |layer: &LayerV1| Some((files.content(&layer.source_path)?, layer.format));
    let below = planned.flattened.iter().map(below).collect::<Option<Vec<_>>>()?;
    let mut seen = Content::default();
    seen.set_size(number(top, 24));
    for cluster in 0..seen.size() / CLUSTER_BYTES {
        if let Some(bytes) = cluster_of([(top, ImageFormat::Qcow2)].iter().chain(&below), cluster) {
            seen.write(cluster * CLUSTER_BYTES, &bytes);
        }
    }
    Some(seen)
}

/// The highest image that has a cluster says what is in it; `None`: nothing but zeros.
fn cluster_of<'a>(layers: impl Iterator<Item = &'a (&'a Content, ImageFormat)>, cluster: u64) -> Option<Vec<u8>> {
    let at = cluster * CLUSTER_BYTES;
    for (content, format) in layers {
        if *format == ImageFormat::Raw {
            let mut bytes = content.read(at, CLUSTER_BYTES);
            bytes.resize(usize::try_from(CLUSTER_BYTES).unwrap(), 0);
            return Some(bytes);
        }
        if at >= number(content, 24) {
            return None;
        }
        match number(content, SECOND_TABLE_AT + cluster * 8) {
            0 => {}
            ZERO_CLUSTER => return None,
            entry => return Some(content.read(entry & !COPIED, CLUSTER_BYTES)),
        }
    }
    None
}

fn number(content: &Content, at: u64) -> u64 {
    u64::from_be_bytes(content.read(at, 8).try_into().unwrap())
}
