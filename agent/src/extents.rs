//! The wanted chunks of what is read in order, with those that lie in holes told apart without reading them.

use std::ops::Range;
use std::vec;

use kvm_clone_agent::protocol::{Failure, Geometry};

use crate::source::Source;

/// What comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unit {
    /// Chunks that lie in holes as a whole.
    Holes(Range<u64>),
    /// A chunk that holds data, at least in part.
    Chunk(u64),
}

/// The wanted chunks of one image.
#[derive(Debug)]
pub struct Extents {
    source: Source,
    geometry: Geometry,
    ranges: vec::IntoIter<Range<u64>>,
    left: Range<u64>,
    /// The next bytes that are said to be data, as far as it was asked; valid for positions before their end.
    data: Range<u64>,
}

impl Extents {
    /// The chunks in these ranges, which were checked.
    pub fn new(source: Source, geometry: Geometry, wanted: Vec<Range<u64>>) -> Self {
        Self { source, geometry, ranges: wanted.into_iter(), left: 0..0, data: 0..0 }
    }

    /// The next unit, without taking it.
    pub fn peek(&mut self) -> Result<Option<Unit>, Failure> {
        while self.left.is_empty() {
            match self.ranges.next() {
                Some(range) => self.left = range,
                None => return Ok(None),
            }
        }
        let index = self.left.start;
        let bytes = self.geometry.bytes_of(&(index..index + 1));
        if self.data.end <= bytes.start {
            self.data = self.source.data_from(bytes.start)?;
        }
        if self.data.start < bytes.end {
            return Ok(Some(Unit::Chunk(index)));
        }
        let end = self.data.start / u64::from(self.geometry.chunk_bytes);
        Ok(Some(Unit::Holes(index..if self.data.is_empty() { self.left.end } else { end.min(self.left.end) })))
    }

    /// Takes a unit that `peek` gave.
    pub fn take(&mut self, unit: &Unit) {
        self.left.start = match unit {
            Unit::Holes(chunks) => chunks.end,
            Unit::Chunk(index) => index + 1,
        };
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::Unit::{Chunk, Holes};
    use super::*;
    use crate::image::Access;

    fn source(path: &std::path::Path, geometry: Geometry) -> Source {
        Source::open(path.to_str().unwrap(), None, &[], geometry, Access::Read, Vec::new()).unwrap()
    }

    #[test]
    fn holes_are_told_from_data() {
        let named = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        let file = named.as_file();
        let geometry = Geometry { image_bytes: (64 << 20) + 5, chunk_bytes: 1 << 20 };
        file.set_len(geometry.image_bytes).unwrap();
        // Chunk 3 in its middle, chunks 10 and 11 across their border, the tail.
        file.write_all_at(&[1; 10], (3 << 20) + 70_000).unwrap();
        file.write_all_at(&[1; 8192], (11 << 20) - 4096).unwrap();
        file.write_all_at(&[1; 5], 64 << 20).unwrap();
        let units = |wanted| {
            let mut extents = Extents::new(source(named.path(), geometry), geometry, wanted);
            std::iter::from_fn(|| {
                let unit = extents.peek().unwrap()?;
                extents.take(&unit);
                Some(unit)
            })
            .collect::<Vec<_>>()
        };
        assert_eq!(
            units(vec![0..65]),
            [Holes(0..3), Chunk(3), Holes(4..10), Chunk(10), Chunk(11), Holes(12..64), Chunk(64)]
        );
        assert_eq!(units(vec![2..5, 11..12, 20..22]), [Holes(2..3), Chunk(3), Holes(4..5), Chunk(11), Holes(20..22)]);
        assert_eq!(units(vec![]), []);
    }

    #[test]
    fn a_file_without_data_is_one_hole() {
        let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        file.as_file().set_len(10 << 20).unwrap();
        let geometry = Geometry { image_bytes: 10 << 20, chunk_bytes: 1 << 20 };
        let mut extents = Extents::new(source(file.path(), geometry), geometry, vec![0..10]);
        assert_eq!(extents.peek().unwrap(), Some(Holes(0..10)));
    }
}
