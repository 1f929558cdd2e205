//! What a guest sees through a chain of images: qcow2 on qcow2 or raw, read without QEMU. After its
//! `docs/interop/qcow2.txt`, and where that is silent its `block/qcow2*.c`.
//!
//! Pure but for [`LayerFile`], which reads the images. Every size has a bound, and no bytes make it panic. What is not understood is
//! an error and never guessed: a format is said, not probed.

mod compressed;
mod header;
mod tables;

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use journal_format::ImageFormat;

pub use self::header::{HEADER_BYTES_MAX, Unreadable};

use self::compressed::{Compressed, Inflated};
use self::header::Tables;
use self::tables::{Mapped, Pages};

/// Images in one chain, at most.
pub const LAYERS_MAX: usize = 64;

/// One image of a chain, as bytes. Its length is the same at each call.
pub trait LayerFile {
    /// Why its bytes cannot be had.
    type Error;
    /// Bytes of it.
    fn bytes(&self) -> u64;
    /// Fills the buffer from this position on; both lie within the length.
    fn read_at(&self, position: u64, bytes: &mut [u8]) -> Result<(), Self::Error>;
    /// The first bytes at or behind a position that may be other than zero; what is before them is a hole. Empty: there are none.
    fn data_from(&self, position: u64) -> Result<Range<u64>, Self::Error>;
}

/// Why a chain cannot be read.
#[derive(Debug)]
pub enum ChainError<E> {
    /// The bytes of an image cannot be had.
    File(E),
    /// The bytes of this image, counted from the top, are not understood.
    Image(usize, Unreadable),
}

/// A chain of images. Its first layer is the top, what the guest writes to; all but the last are qcow2.
#[derive(Debug)]
pub struct Chain<F> {
    layers: Vec<Layer<F>>,
    bytes: u64,
    pages: Mutex<Pages>,
    inflated: Mutex<Inflated>,
}

#[derive(Debug)]
struct Layer<F> {
    file: F,
    /// Bytes that it shows; what is beyond them is zero to the layer above.
    bytes: u64,
    /// `None`: it is raw.
    tables: Option<Tables>,
}

/// What a chain has at a position.
#[derive(Debug, Clone, Copy)]
enum Found {
    /// Zeros.
    Zeros,
    /// Bytes of that layer's file, from this position on.
    Bytes { layer: usize, position: u64 },
    /// A part of a compressed cluster of that layer's file, from this offset in the cluster on.
    Compressed { layer: usize, cluster: Compressed, offset: u64 },
}

impl<F: LayerFile> Chain<F> {
    /// A chain of these images, the top first.
    pub fn open(files: Vec<(F, ImageFormat)>) -> Result<Self, ChainError<F::Error>> {
        let mut layers = Vec::with_capacity(files.len());
        let count = files.len();
        for (index, (file, format)) in files.into_iter().enumerate() {
            let unreadable = |why| ChainError::Image(index, why);
            if index >= LAYERS_MAX {
                return Err(unreadable(Unreadable::TooManyLayers));
            }
            let tables = match format {
                ImageFormat::Raw if index + 1 < count => return Err(unreadable(Unreadable::RawAbove)),
                ImageFormat::Raw => None,
                ImageFormat::Qcow2 => {
                    let mut head = vec![0; HEADER_BYTES_MAX.min(usize::try_from(file.bytes()).unwrap_or(usize::MAX))];
                    file.read_at(0, &mut head).map_err(ChainError::File)?;
                    let tables = Tables::read(&head).map_err(unreadable)?;
                    if tables.stands_on_another != (index + 1 < count) {
                        return Err(unreadable(Unreadable::OtherChain));
                    }
                    Some(tables)
                }
            };
            let bytes = tables.as_ref().map_or_else(|| file.bytes(), |tables| tables.bytes);
            layers.push(Layer { file, bytes, tables });
        }
        let bytes = layers.first().map_or(0, |top| top.bytes);
        Ok(Self { layers, bytes, pages: Mutex::default(), inflated: Mutex::default() })
    }

    /// Bytes that the guest sees.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The images, the top first.
    pub fn files(&self) -> impl Iterator<Item = &F> {
        self.layers.iter().map(|layer| &layer.file)
    }

    /// Fills the buffer with what the guest sees from this position on; zeros beyond the end.
    pub fn read(&self, position: u64, bytes: &mut [u8]) -> Result<(), ChainError<F::Error>> {
        let mut position = position;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (found, length) = self.find(position, rest.len() as u64)?;
            let (part, behind) = rest.split_at_mut(usize::try_from(length).unwrap_or(rest.len()).min(rest.len()));
            match found {
                Found::Zeros => part.fill(0),
                Found::Bytes { layer, position } => self.read_file(layer, position, part)?,
                Found::Compressed { layer, cluster, offset } => self.inflate(layer, cluster, offset, part)?,
            }
            position = position.saturating_add(length);
            rest = behind;
        }
        Ok(())
    }

    /// The first bytes at or behind a position that may be other than zero. Empty, at the end of everything: there are none.
    pub fn data_from(&self, position: u64) -> Result<Range<u64>, ChainError<F::Error>> {
        let mut position = position;
        while position < self.bytes {
            let (found, length) = self.find(position, u64::MAX)?;
            match found {
                Found::Zeros => position += length,
                Found::Compressed { .. } => return Ok(position..position + length),
                Found::Bytes { layer, position: at } => {
                    // What was allocated and never written is a hole of the file, and so is much of a raw image.
                    let data = self.layers[layer].file.data_from(at).map_err(ChainError::File)?;
                    let hole = if data.is_empty() { length } else { data.start.saturating_sub(at).min(length) };
                    if hole < length {
                        let end = data.end.saturating_sub(at).min(length);
                        return Ok(position + hole..position + end);
                    }
                    position += hole;
                }
            }
        }
        Ok(u64::MAX..u64::MAX)
    }

    /// What is at a position, and for how many bytes it goes on like that: from 1 to `most`, which is not 0.
    fn find(&self, position: u64, most: u64) -> Result<(Found, u64), ChainError<F::Error>> {
        let mut length = most;
        for (index, layer) in self.layers.iter().enumerate() {
            let Some(left) = layer.bytes.checked_sub(position).filter(|left| *left > 0) else {
                // Beyond the end of an image there are zeros, whatever is below it.
                return Ok((Found::Zeros, length));
            };
            length = length.min(left);
            let Some(tables) = &layer.tables else {
                return Ok((Found::Bytes { layer: index, position }, length));
            };
            let entry = |position| self.entry(index, position);
            let (mapped, run) = tables.map(position, length, entry, |why| ChainError::Image(index, why))?;
            length = run;
            let found = match mapped {
                Mapped::Below => continue,
                Mapped::Zeros => Found::Zeros,
                Mapped::Bytes(position) => Found::Bytes { layer: index, position },
                Mapped::Compressed { cluster, offset } => Found::Compressed { layer: index, cluster, offset },
            };
            return Ok((found, length));
        }
        Ok((Found::Zeros, length))
    }
}

impl<F: LayerFile> Chain<F> {
    /// Bytes of a layer's file. Those beyond its end are zeros, as they are to QEMU: the last cluster need not be whole.
    fn read_file(&self, layer: usize, position: u64, bytes: &mut [u8]) -> Result<(), ChainError<F::Error>> {
        let file = &self.layers[layer].file;
        let there = file.bytes().saturating_sub(position).min(bytes.len() as u64);
        let (there, beyond) = bytes.split_at_mut(usize::try_from(there).unwrap_or(bytes.len()));
        beyond.fill(0);
        if there.is_empty() {
            return Ok(());
        }
        file.read_at(position, there).map_err(ChainError::File)
    }

    /// A big-endian number of a layer's tables. One beyond the end of the file is damage, and not zero.
    fn entry(&self, layer: usize, position: u64) -> Result<u64, ChainError<F::Error>> {
        let len = self.layers[layer].file.bytes();
        if position.checked_add(8).is_none_or(|end| end > len) {
            return Err(ChainError::Image(layer, Unreadable::TableBeyondEnd { position }));
        }
        lock(&self.pages).entry(layer, position, |start, page| self.read_file(layer, start, page))
    }

    /// A part of a compressed cluster. One cluster is inflated at a time, and kept: a chunk may be smaller than it.
    fn inflate(
        &self,
        layer: usize,
        cluster: Compressed,
        offset: u64,
        bytes: &mut [u8],
    ) -> Result<(), ChainError<F::Error>> {
        let mut inflated = lock(&self.inflated);
        if !inflated.holds(layer, cluster) {
            let deflated = inflated.begin(cluster);
            self.read_file(layer, cluster.position, deflated)?;
            inflated.finish(layer, cluster).map_err(|why| ChainError::Image(layer, why))?;
        }
        inflated.copy(offset, bytes);
        Ok(())
    }
}

/// A panic ends the process before anybody could see what it left.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
