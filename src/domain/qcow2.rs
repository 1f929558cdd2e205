//! The header of a qcow2 image, read from its first bytes. What it hides from the definition (backing and data files,
//! encryption, unknown features) is what matters here.
//!
//! Only ever used for an image whose definition says qcow2: a raw disk may begin with such a header. After QEMU's
//! `docs/interop/qcow2.txt`.

/// How much of an image's beginning a caller should read, in bytes; less is fine where the image is shorter.
pub const HEADER_READ_BYTES: usize = 64 << 10;

const MAGIC: u32 = 0x5146_49fb;
const VERSION_2_HEADER_BYTES: usize = 72;
/// The least that version 3 may have.
const VERSION_3_HEADER_BYTES: usize = 104;
/// QEMU's own bound (`BLOCK_QCOW2_...`: the name is a C string of 1024).
const BACKING_NAME_BYTES_MAX: usize = 1023;
/// More extensions than any image has; each takes at least 8 bytes.
const EXTENSIONS_MAX: usize = 1024;

const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_FEATURE_NAMES: u32 = 0x6803_f857;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;
const EXTENSION_BITMAPS: u32 = 0x2385_2875;

const FEATURE_DIRTY: u64 = 1;
const FEATURE_CORRUPT: u64 = 1 << 1;
const FEATURE_DATA_FILE: u64 = 1 << 2;
const FEATURE_COMPRESSION: u64 = 1 << 3;
const FEATURE_EXTENDED_L2: u64 = 1 << 4;
const FEATURES_KNOWN: u64 =
    FEATURE_DIRTY | FEATURE_CORRUPT | FEATURE_DATA_FILE | FEATURE_COMPRESSION | FEATURE_EXTENDED_L2;

/// How an image is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encryption {
    /// Not at all.
    None,
    /// QEMU's old AES.
    Aes,
    /// LUKS.
    Luks,
    /// A method that is not known here.
    Unknown(u32),
}

/// How clusters are compressed, where any are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// As in zlib, without its header.
    Deflate,
    /// Zstandard.
    Zstd,
    /// A method that is not known here.
    Unknown(u8),
}

/// What an image says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // one a feature bit
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// A cluster has 2^this bytes.
    pub cluster_bits: u32,
    /// Bytes that the guest sees.
    pub virtual_size_bytes: u64,
    /// The image below this one, as its header names it.
    pub backing_file: Option<String>,
    /// Format of the image below.
    pub backing_format: Option<String>,
    /// Guest data is in a file of its own: the feature bit.
    pub external_data: bool,
    /// Name of that file, where the header has it.
    pub data_file: Option<String>,
    /// Encryption of the data.
    pub encryption: Encryption,
    /// Internal snapshots.
    pub snapshots: u32,
    /// Refcounts may be behind (lazy refcounts): whoever opens it next repairs that.
    pub dirty: bool,
    /// QEMU found it damaged: it only opens it to read.
    pub corrupt: bool,
    /// How its clusters are compressed, if any are.
    pub compression: Compression,
    /// Clusters have parts that are allocated by themselves (extended L2 entries).
    pub subclusters: bool,
    /// Bitmaps of what changed since a backup.
    pub bitmaps: u32,
    /// Incompatible features that are not known here, by the header's own names where it has them.
    pub unknown_features: Vec<String>,
}

/// Why a header cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Qcow2Error {
    /// Another format.
    #[error("not a qcow2 image: it does not begin with QFI\\xfb")]
    NotQcow2,
    /// A version that is not known here.
    #[error("qcow2 version {0} is not known here")]
    UnknownVersion(u32),
    /// The image, or what was read of it, ends in the middle of the header.
    #[error("the qcow2 header ends at {have} bytes, in the middle of {what}")]
    Truncated {
        /// What is cut.
        what: &'static str,
        /// Bytes there were.
        have: usize,
    },
    /// A field has a value that no image may have.
    #[error("the qcow2 header's {what} is {value}, which no image may have")]
    BadField {
        /// Which field.
        what: &'static str,
        /// Its value.
        value: u64,
    },
}

impl Header {
    /// Reads a header from the first bytes of an image (`HEADER_READ_BYTES`, or all of a shorter one).
    pub fn read(bytes: &[u8]) -> Result<Self, Qcow2Error> {
        let input = Input(&bytes[..bytes.len().min(HEADER_READ_BYTES)]);
        if input.u32(0, "magic").ok() != Some(MAGIC) {
            return Err(Qcow2Error::NotQcow2);
        }
        let version = input.u32(4, "version")?;
        let (features, header_bytes) = match version {
            2 => (0, VERSION_2_HEADER_BYTES),
            3 => (input.u64(72, "features")?, input.u32(100, "header length")? as usize),
            other => return Err(Qcow2Error::UnknownVersion(other)),
        };
        let cluster_bits = input.u32(20, "cluster size")?;
        if !(9..=21).contains(&cluster_bits) {
            return Err(Qcow2Error::BadField { what: "cluster bits", value: cluster_bits.into() });
        }
        if version == 3 && (header_bytes < VERSION_3_HEADER_BYTES || header_bytes > 1 << cluster_bits) {
            return Err(Qcow2Error::BadField { what: "header length", value: header_bytes as u64 });
        }
        let backing_offset = input.u64(8, "backing file")?;
        let extensions = Extensions::read(&input, header_bytes, backing_offset, 1 << cluster_bits)?;
        Ok(Self {
            version,
            cluster_bits,
            virtual_size_bytes: input.u64(24, "virtual size")?,
            backing_file: read_backing(&input, backing_offset)?,
            backing_format: extensions.backing_format,
            external_data: features & FEATURE_DATA_FILE != 0,
            data_file: extensions.data_file,
            encryption: match input.u32(32, "encryption")? {
                0 => Encryption::None,
                1 => Encryption::Aes,
                2 => Encryption::Luks,
                other => Encryption::Unknown(other),
            },
            snapshots: input.u32(60, "snapshots")?,
            dirty: features & FEATURE_DIRTY != 0,
            corrupt: features & FEATURE_CORRUPT != 0,
            compression: match features & FEATURE_COMPRESSION {
                0 => Compression::Deflate,
                _ => match input.span(VERSION_3_HEADER_BYTES, 1, "compression")?[0] {
                    0 => Compression::Deflate,
                    1 => Compression::Zstd,
                    other => Compression::Unknown(other),
                },
            },
            subclusters: features & FEATURE_EXTENDED_L2 != 0,
            bitmaps: extensions.bitmaps,
            unknown_features: name_unknown(features & !FEATURES_KNOWN, &extensions.feature_names),
        })
    }
}

/// The bytes of a header that are other ones when the image below is called `name`, by their place. `head`: what
/// `Header::read` takes.
pub fn renamed_backing(head: &[u8], name: &str) -> Result<Vec<(u64, Vec<u8>)>, Qcow2Error> {
    let header = Header::read(head)?;
    let input = Input(&head[..head.len().min(HEADER_READ_BYTES)]);
    let (offset, length) = (input.u64(8, "backing file")?, input.u32(16, "backing file")? as usize);
    let too_long = Qcow2Error::BadField { what: "room for the backing file's name", value: name.len() as u64 };
    // The rest of the first cluster belongs to nothing else.
    let start = usize::try_from(offset).map_err(|_| too_long.clone())?;
    let end = start.checked_add(name.len()).ok_or_else(|| too_long.clone())?;
    let room = (1_usize << header.cluster_bits).min(input.0.len());
    if offset == 0 || name.len() > BACKING_NAME_BYTES_MAX || end > room {
        return Err(too_long);
    }
    let bytes = u32::try_from(name.len()).map_err(|_| too_long)?;
    let mut text = name.as_bytes().to_vec();
    text.resize(text.len().max(length), 0);
    Ok(vec![(16, bytes.to_be_bytes().to_vec()), (offset, text)])
}

/// Where the header names another image. QEMU keeps the name within the first cluster, right behind the extensions.
fn read_backing(input: &Input<'_>, offset: u64) -> Result<Option<String>, Qcow2Error> {
    let length = input.u32(16, "backing file")? as usize;
    if offset == 0 || length == 0 {
        return Ok(None);
    }
    if length > BACKING_NAME_BYTES_MAX {
        return Err(Qcow2Error::BadField { what: "length of the backing file's name", value: length as u64 });
    }
    let start = usize::try_from(offset)
        .map_err(|_| Qcow2Error::BadField { what: "place of the backing file's name", value: offset })?;
    Ok(Some(text(input.span(start, length, "the backing file's name")?)))
}

/// What the header's extensions say.
#[derive(Default)]
struct Extensions {
    backing_format: Option<String>,
    data_file: Option<String>,
    bitmaps: u32,
    /// Type, bit, name.
    feature_names: Vec<(u8, u8, String)>,
}

impl Extensions {
    fn read(input: &Input<'_>, start: usize, backing: u64, cluster_bytes: usize) -> Result<Self, Qcow2Error> {
        let mut found = Self::default();
        let mut at = start;
        // They end with an end mark, where the backing file's name begins, or with the first cluster.
        let end = usize::try_from(backing).ok().filter(|backing| *backing > 0).unwrap_or(usize::MAX).min(cluster_bytes);
        for _ in 0..EXTENSIONS_MAX {
            if at.saturating_add(8) > end {
                return Ok(found);
            }
            let kind = input.u32(at, "an extension")?;
            let length = input.u32(at + 4, "an extension")? as usize;
            if kind == EXTENSION_END {
                return Ok(found);
            }
            let data = input.span(at + 8, length, "an extension")?;
            match kind {
                EXTENSION_BACKING_FORMAT => found.backing_format = Some(text(data)),
                EXTENSION_DATA_FILE => found.data_file = Some(text(data)),
                EXTENSION_BITMAPS => found.bitmaps = Input(data).u32(0, "number of bitmaps")?,
                EXTENSION_FEATURE_NAMES => {
                    let names = data.chunks_exact(48).map(|entry| (entry[0], entry[1], text(&entry[2..])));
                    found.feature_names = names.collect();
                }
                _ => {}
            }
            at = at + 8 + length.next_multiple_of(8);
        }
        Err(Qcow2Error::BadField { what: "number of extensions", value: EXTENSIONS_MAX as u64 })
    }
}

fn name_unknown(features: u64, names: &[(u8, u8, String)]) -> Vec<String> {
    let unknown = (0..64_u8).filter(|bit| features >> bit & 1 == 1);
    unknown
        .map(|bit| {
            let entry = names.iter().find(|(kind, of, name)| *kind == 0 && *of == bit && !name.is_empty());
            entry.map_or_else(|| format!("bit {bit}"), |(_, _, name)| format!("{name} (bit {bit})"))
        })
        .collect()
}

/// Text up to the first zero byte. Only ever shown to people, so what is no UTF-8 is replaced.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn span(&self, at: usize, length: usize, what: &'static str) -> Result<&'a [u8], Qcow2Error> {
        let end = at.checked_add(length);
        end.and_then(|end| self.0.get(at..end)).ok_or(Qcow2Error::Truncated { what, have: self.0.len() })
    }

    fn u32(&self, at: usize, what: &'static str) -> Result<u32, Qcow2Error> {
        let bytes = self.span(at, 4, what)?;
        Ok(bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte)))
    }

    fn u64(&self, at: usize, what: &'static str) -> Result<u64, Qcow2Error> {
        Ok(u64::from(self.u32(at, what)?) << 32 | u64::from(self.u32(at + 4, what)?))
    }
}
