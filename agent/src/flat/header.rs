//! Where a qcow2 image has its tables, and what in it is not understood here.

/// How much of an image's beginning is read for this, in bytes.
pub const HEADER_BYTES_MAX: usize = 112;

const MAGIC: u32 = 0x5146_49fb;
/// The least that version 3 may have.
const VERSION_3_HEADER_BYTES: u32 = 104;
/// Bytes of a table of the first level at most, as in QEMU (`QCOW_MAX_L1_SIZE`).
const FIRST_TABLE_BYTES_MAX: u64 = 32 << 20;
/// QEMU shows whole sectors alone.
const SECTOR_BYTES: u64 = 512;

const FEATURES: [(u64, Unreadable); 5] = [
    (1, Unreadable::Dirty),
    (1 << 1, Unreadable::Corrupt),
    (1 << 2, Unreadable::ExternalData),
    (1 << 3, Unreadable::Compression),
    (1 << 4, Unreadable::Subclusters),
];

/// Why the bytes of an image are not understood. In words that follow the image's name and a colon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Another format.
    #[error("it is no qcow2 image of version 2 or 3")]
    NotQcow2,
    /// A field of the header has a value that no image may have.
    #[error("its qcow2 header has the {what} {value}, which no image may have")]
    BadField {
        /// Which field.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// Encrypted.
    #[error("it is encrypted")]
    Encrypted,
    /// Its refcounts may be behind.
    #[error("it was not closed (dirty bit)")]
    Dirty,
    /// QEMU found it damaged.
    #[error("QEMU marked it as corrupt")]
    Corrupt,
    /// Guest data is elsewhere.
    #[error("its data is in an external file")]
    ExternalData,
    /// Compressed otherwise than by deflate.
    #[error("it is compressed by another method than deflate")]
    Compression,
    /// Clusters have parts of their own.
    #[error("it has subclusters (extended L2 entries)")]
    Subclusters,
    /// An incompatible feature that is not known here.
    #[error("it has features of qcow2 that are not known here ({0:#x})")]
    UnknownFeatures(u64),
    /// It names another image below where there is none, or none where there is one.
    #[error("it no longer stands on what it stood on")]
    OtherChain,
    /// Only the lowest image may be raw.
    #[error("a raw image stands on nothing")]
    RawAbove,
    /// More images than a chain may have.
    #[error("the chain has more than {} images", super::LAYERS_MAX)]
    TooManyLayers,
    /// A table lies beyond the end of the image.
    #[error("it is damaged: a table would be at {position}, beyond its end")]
    TableBeyondEnd {
        /// Where, in bytes.
        position: u64,
    },
    /// A table or cluster does not lie where one can.
    #[error("it is damaged: a table or cluster would be at {position}, within another one")]
    Misplaced {
        /// Where, in bytes.
        position: u64,
    },
    /// Version 2 has no zero clusters.
    #[error("it is damaged: it has a zero cluster, which its version does not know")]
    ZeroCluster,
    /// A compressed cluster that is none.
    #[error("it is damaged: the compressed cluster at {position} cannot be inflated")]
    Deflated {
        /// Where, in bytes.
        position: u64,
    },
}

/// Where the tables of an image are.
#[derive(Debug, Clone, Copy)]
pub struct Tables {
    /// Bytes that the guest sees.
    pub bytes: u64,
    /// It names an image below it.
    pub stands_on_another: bool,
    /// A cluster has 2^this bytes: from 9 to 21.
    pub cluster_bits: u32,
    /// Where the table of the first level is.
    pub first_table: u64,
    /// Whether zero clusters are known.
    pub zero_clusters: bool,
}

impl Tables {
    /// Reads a header.
    pub fn read(head: &[u8]) -> Result<Self, Unreadable> {
        let number = |at: usize| head.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
        let field = |at| number(at).ok_or(Unreadable::NotQcow2);
        let wide = |at| Ok(u64::from(field(at)?) << 32 | u64::from(field(at + 4)?));
        if field(0)? != MAGIC {
            return Err(Unreadable::NotQcow2);
        }
        let version = field(4)?;
        let features = match version {
            2 => 0,
            3 => {
                let header_bytes = field(100)?;
                if header_bytes < VERSION_3_HEADER_BYTES {
                    return Err(Unreadable::BadField { what: "length", value: header_bytes.into() });
                }
                wide(72)?
            }
            _ => return Err(Unreadable::NotQcow2),
        };
        if let Some((_, why)) = FEATURES.into_iter().find(|(bit, _)| features & bit != 0) {
            return Err(why);
        }
        if features != 0 {
            return Err(Unreadable::UnknownFeatures(features));
        }
        if field(32)? != 0 {
            return Err(Unreadable::Encrypted);
        }
        let cluster_bits = field(20)?;
        if !(9..=21).contains(&cluster_bits) {
            return Err(Unreadable::BadField { what: "cluster bits", value: cluster_bits.into() });
        }
        let bytes = wide(24)?;
        if bytes > i64::MAX as u64 || !bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(Unreadable::BadField { what: "virtual size", value: bytes });
        }
        let (entries, first_table) = (u64::from(field(36)?), wide(40)?);
        let tables =
            Self { bytes, stands_on_another: wide(8)? != 0, cluster_bits, first_table, zero_clusters: version > 2 };
        if entries * 8 > FIRST_TABLE_BYTES_MAX || entries < bytes.div_ceil(tables.bytes_of_second_table()) {
            return Err(Unreadable::BadField { what: "length of the L1 table", value: entries });
        }
        if !first_table.is_multiple_of(tables.cluster_bytes()) {
            return Err(Unreadable::BadField { what: "place of the L1 table", value: first_table });
        }
        Ok(tables)
    }

    /// Bytes of a cluster.
    pub fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of the guest that one table of the second level is about.
    pub fn bytes_of_second_table(&self) -> u64 {
        1 << (2 * self.cluster_bits - 3)
    }
}
