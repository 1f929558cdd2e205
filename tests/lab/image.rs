//! Disk images with known content, from a seed.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use super::output_of;

/// Format of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Raw bytes.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        })
    }
}

/// What is on a disk.
#[derive(Debug, Clone, Copy)]
pub enum Content {
    /// Holes, written zeros and random bytes, in pieces.
    Mixed,
    /// Random bytes everywhere.
    Random,
    /// So many random bytes, in pieces spread evenly over the disk; holes between them.
    Sparse {
        /// How many.
        data_bytes: u64,
    },
}

/// Content is laid out in pieces of this size: not a multiple of a chunk, so that chunks are partly this, partly that.
const MIXED_PIECE_BYTES: u64 = 320 * 1024;
const SPARSE_PIECE_BYTES: u64 = 1024 * 1024;

/// Makes an image; the same arguments always make the same content.
pub fn make(path: &Path, format: Format, bytes: u64, content: Content, seed: u64) {
    match format {
        Format::Raw => make_raw(path, bytes, content, seed),
        Format::Qcow2 => {
            let raw = path.with_extension("unconverted");
            make_raw(&raw, bytes, content, seed);
            output_of(Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2"]).arg(&raw).arg(path));
            std::fs::remove_file(&raw).expect("remove the unconverted image");
        }
    }
}

fn make_raw(path: &Path, bytes: u64, content: Content, seed: u64) {
    let file = File::create_new(path).unwrap_or_else(|error| panic!("make {}: {error}", path.display()));
    file.set_len(bytes).expect("set the image's length");
    let piece_bytes = match content {
        Content::Sparse { .. } => SPARSE_PIECE_BYTES,
        Content::Mixed | Content::Random => MIXED_PIECE_BYTES,
    };
    let pieces = bytes.div_ceil(piece_bytes);
    let mut random = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    let mut kinds = blake3::Hasher::new().update(b"kinds").update(&seed.to_le_bytes()).finalize_xof();
    let step = match content {
        Content::Sparse { data_bytes } => (pieces / data_bytes.div_ceil(piece_bytes).max(1)).max(1),
        Content::Mixed | Content::Random => 1,
    };
    let mut left = match content {
        Content::Sparse { data_bytes } => data_bytes,
        Content::Mixed | Content::Random => bytes,
    };
    let mut buffer = vec![0; usize::try_from(piece_bytes).expect("fits")];
    for piece in (0..pieces).step_by(usize::try_from(step).expect("fits")) {
        let start = piece * piece_bytes;
        let length = usize::try_from(piece_bytes.min(bytes - start).min(left)).expect("fits");
        let mut kind = [0];
        kinds.fill(&mut kind);
        match (content, kind[0] % 8) {
            (Content::Mixed, 0..=1) => continue,
            (Content::Mixed, 2) => buffer[..length].fill(0),
            _ => random.fill(&mut buffer[..length]),
        }
        file.write_all_at(&buffer[..length], start).expect("write the image");
        left -= length as u64;
        if left == 0 {
            break;
        }
    }
}
