//! From a position that the guest sees to one in the image: two levels of tables, read by pages that are kept within a bound.

use std::collections::BTreeMap;

use super::ChainError;
use super::compressed::Compressed;
use super::header::{Tables, Unreadable};

/// Bytes of tables that are read at once.
const PAGE_BYTES: u64 = 16 << 10;
/// Pages that are kept: two of every layer, and then some. 4 MiB.
const PAGES_MAX: usize = 256;

/// Where a table or a cluster is, in an entry of either level.
const PLACE: u64 = 0x00ff_ffff_ffff_fe00;
/// In an entry of the second level: the cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// In an entry of the second level: the cluster is zero, whatever is at its place.
const ZERO: u64 = 1;

/// What an image itself has at a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapped {
    /// Nothing: what is below it counts.
    Below,
    /// Zeros.
    Zeros,
    /// Bytes, from this position of its file on.
    Bytes(u64),
    /// A part of a compressed cluster, from this offset in it on.
    Compressed {
        /// Which cluster.
        cluster: Compressed,
        /// Where in it.
        offset: u64,
    },
}

impl Tables {
    /// What is at a position within the image, and for how many bytes it goes on like that: from 1 to `most`, which is not 0.
    /// `entry` reads a number of the tables.
    pub fn map<E>(
        &self,
        position: u64,
        most: u64,
        entry: impl Fn(u64) -> Result<u64, ChainError<E>>,
        unreadable: impl Fn(Unreadable) -> ChainError<E>,
    ) -> Result<(Mapped, u64), ChainError<E>> {
        let table_bytes = self.bytes_of_second_table();
        let within = position % table_bytes;
        let table = entry(self.first_table.saturating_add(position / table_bytes * 8))? & PLACE;
        if table == 0 {
            return Ok((Mapped::Below, most.min(table_bytes - within)));
        }
        self.check_place(table).map_err(&unreadable)?;
        let (cluster_bytes, offset) = (self.cluster_bytes(), position % self.cluster_bytes());
        let number = |cluster: u64| entry(table.saturating_add(cluster * 8));
        let look = |entry| self.read_entry(entry).map_err(&unreadable);
        let mut cluster = within / cluster_bytes;
        let first = look(number(cluster)?)?;
        let mut length = cluster_bytes - offset;
        // What goes on alike is one run.
        let mut last = first;
        loop {
            cluster += 1;
            if length >= most || cluster * cluster_bytes >= table_bytes {
                break;
            }
            let next = look(number(cluster)?)?;
            if last.next(cluster_bytes) != Some(next) {
                break;
            }
            (last, length) = (next, length + cluster_bytes);
        }
        let found = match first {
            Mapped::Bytes(start) => Mapped::Bytes(start + offset),
            Mapped::Compressed { cluster, .. } => Mapped::Compressed { cluster, offset },
            found => found,
        };
        Ok((found, length.min(most)))
    }

    /// What an entry of the second level says of its cluster.
    fn read_entry(&self, entry: u64) -> Result<Mapped, Unreadable> {
        if entry & COMPRESSED != 0 {
            return Ok(Mapped::Compressed { cluster: Compressed::of(entry, self.cluster_bits), offset: 0 });
        }
        let place = entry & PLACE;
        if entry & ZERO != 0 {
            return if self.zero_clusters { Ok(Mapped::Zeros) } else { Err(Unreadable::ZeroCluster) };
        }
        if place == 0 {
            return Ok(Mapped::Below);
        }
        self.check_place(place)?;
        Ok(Mapped::Bytes(place))
    }

    fn check_place(&self, position: u64) -> Result<(), Unreadable> {
        if position.is_multiple_of(self.cluster_bytes()) { Ok(()) } else { Err(Unreadable::Misplaced { position }) }
    }
}

impl Mapped {
    /// What the next cluster must be for both to be one run.
    fn next(self, cluster_bytes: u64) -> Option<Self> {
        match self {
            Self::Below | Self::Zeros => Some(self),
            Self::Bytes(position) => Some(Self::Bytes(position + cluster_bytes)),
            Self::Compressed { .. } => None,
        }
    }
}

/// Pages of the tables of all layers; the one that was not used for longest gives way.
#[derive(Debug, Default)]
pub struct Pages {
    kept: BTreeMap<(usize, u64), Page>,
    uses: u64,
}

#[derive(Debug)]
struct Page {
    bytes: Box<[u8]>,
    used: u64,
}

impl Pages {
    /// The big-endian number at a position of a layer's file, a multiple of 8. `read` fills a page from a position on.
    pub fn entry<E>(
        &mut self,
        layer: usize,
        position: u64,
        read: impl FnOnce(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<u64, E> {
        let start = position - position % PAGE_BYTES;
        self.uses += 1;
        if !self.kept.contains_key(&(layer, start)) {
            let mut bytes = vec![0; usize::try_from(PAGE_BYTES).unwrap_or(0)].into_boxed_slice();
            read(start, &mut bytes)?;
            if self.kept.len() >= PAGES_MAX
                && let Some(oldest) = self.kept.iter().min_by_key(|(_, page)| page.used).map(|(place, _)| *place)
            {
                self.kept.remove(&oldest);
            }
            self.kept.insert((layer, start), Page { bytes, used: 0 });
        }
        let page = self.kept.get_mut(&(layer, start));
        let number = page.and_then(|page| {
            page.used = self.uses;
            let at = usize::try_from(position % PAGE_BYTES).ok()?;
            page.bytes.get(at..at + 8)?.try_into().ok()
        });
        Ok(number.map_or(0, u64::from_be_bytes))
    }
}
