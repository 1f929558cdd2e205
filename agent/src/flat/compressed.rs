//! Compressed clusters: one deflate stream each, without a header.

use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

use super::header::Unreadable;

const SECTOR_BYTES: u64 = 512;

/// A compressed cluster in its image's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compressed {
    /// Where it begins.
    pub position: u64,
    /// Bytes that it takes at most: whole sectors from there on.
    bytes: u64,
    /// Bytes of the guest: those of a cluster.
    inflated_bytes: u64,
}

impl Compressed {
    /// What an entry of the second level says of it.
    pub fn of(entry: u64, cluster_bits: u32) -> Self {
        let place_bits = 62 - (cluster_bits - 8);
        let position = entry & ((1 << place_bits) - 1);
        let further_sectors = entry >> place_bits & ((1 << (cluster_bits - 8)) - 1);
        let bytes = (further_sectors + 1) * SECTOR_BYTES - position % SECTOR_BYTES;
        Self { position, bytes, inflated_bytes: 1 << cluster_bits }
    }
}

/// The cluster that was inflated last, and room for the next: twice the largest cluster at most, 4 MiB and a sector.
#[derive(Debug, Default)]
pub struct Inflated {
    which: Option<(usize, Compressed)>,
    deflated: Vec<u8>,
    bytes: Vec<u8>,
}

impl Inflated {
    /// Is it this one?
    pub fn holds(&self, layer: usize, cluster: Compressed) -> bool {
        self.which == Some((layer, cluster))
    }

    /// Gives it up for another. What is returned is to be filled with the bytes at the cluster's position.
    pub fn begin(&mut self, cluster: Compressed) -> &mut [u8] {
        self.which = None;
        self.deflated.resize(usize::try_from(cluster.bytes).unwrap_or(0), 0);
        &mut self.deflated
    }

    /// Inflates what was filled in.
    pub fn finish(&mut self, layer: usize, cluster: Compressed) -> Result<(), Unreadable> {
        self.bytes.resize(usize::try_from(cluster.inflated_bytes).unwrap_or(0), 0);
        let mut decompressor = Box::<DecompressorOxide>::default();
        let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
        // Where it ends is not said: a whole cluster must come of it, and what is behind it is not looked at.
        let (_, _, written) = decompress(&mut decompressor, &self.deflated, &mut self.bytes, 0, flags);
        if written < self.bytes.len() {
            return Err(Unreadable::Deflated { position: cluster.position });
        }
        self.which = Some((layer, cluster));
        Ok(())
    }

    /// Fills the buffer from this offset in the cluster on.
    pub fn copy(&self, offset: u64, bytes: &mut [u8]) {
        let part =
            usize::try_from(offset).ok().and_then(|start| self.bytes.get(start..start.checked_add(bytes.len())?));
        if let Some(part) = part {
            bytes.copy_from_slice(part);
        }
    }
}
