//! What is read on the source: an image as it is, or what a guest sees through a chain of images.

use std::ops::Range;
use std::sync::Arc;

use journal_format::{ImageFormat, Inode};
use kvm_clone_agent::flat::{Chain, ChainError, LayerFile};
use kvm_clone_agent::protocol::{Failure, FailureKind, Geometry, Layer, Patch};

use crate::buffer::Buffer;
use crate::failure::failure;
use crate::image::{Access, Image};

/// What a stream reads. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Source {
    /// One image.
    Image(Arc<Image>),
    /// What a guest sees through several.
    Chain(Arc<Chain<Image>>),
}

impl Source {
    /// Opens an image, or a chain of which it is the top, which has no inode and no patches.
    pub fn open(
        path: &str,
        inode: Option<Inode>,
        below: &[Layer],
        geometry: Geometry,
        access: Access,
        patches: Vec<Patch>,
    ) -> Result<Self, Failure> {
        if below.is_empty() {
            return Ok(Self::Image(Arc::new(Image::open(path, inode, geometry, access)?.patched(patches))));
        }
        let top = Layer { path: path.to_owned(), format: ImageFormat::Qcow2 };
        let layers = std::iter::once(&top).chain(below);
        let open = |layer: &Layer| Ok((Image::open_whole(&layer.path, access)?, layer.format));
        let layers = layers.map(open).collect::<Result<Vec<_>, Failure>>()?;
        let names: Vec<_> = layers.iter().map(|(image, _)| image.path().to_owned()).collect();
        let chain = Chain::open(layers).map_err(|error| unread(error, |layer| names.get(layer).cloned()))?;
        if chain.bytes() != geometry.image_bytes {
            let (bytes, expected) = (chain.bytes(), geometry.image_bytes);
            let detail = format!("open image {path}: its guest sees {bytes} bytes now, expected {expected}");
            return Err(failure(FailureKind::Changed, detail));
        }
        Ok(Self::Chain(Arc::new(chain)))
    }

    /// Fills the buffer from this position on.
    pub fn read(&self, position: u64, buffer: &mut Buffer) -> Result<(), Failure> {
        match self {
            Self::Image(image) => image.read(position, buffer),
            Self::Chain(chain) => chain.read(position, buffer).map_err(|error| of_chain(chain, error)),
        }
    }

    /// The first data at or behind a position; empty, at the end of everything, where there is none.
    pub fn data_from(&self, position: u64) -> Result<Range<u64>, Failure> {
        match self {
            Self::Image(image) => image.data_from(position),
            Self::Chain(chain) => chain.data_from(position).map_err(|error| of_chain(chain, error)),
        }
    }

    /// Whether all that was read is still as large as when it was opened.
    pub fn check_size(&self) -> Result<(), Failure> {
        match self {
            Self::Image(image) => image.check_size(),
            Self::Chain(chain) => chain.files().try_for_each(Image::check_size),
        }
    }
}

fn of_chain(chain: &Chain<Image>, error: ChainError<Failure>) -> Failure {
    unread(error, |layer| Some(chain.files().nth(layer)?.path().to_owned()))
}

fn unread(error: ChainError<Failure>, name: impl Fn(usize) -> Option<String>) -> Failure {
    match error {
        ChainError::File(failed) => failed,
        ChainError::Image(layer, why) => {
            failure(FailureKind::Unsupported, format!("read {}: {why}", name(layer).unwrap_or_default()))
        }
    }
}

impl LayerFile for Image {
    type Error = Failure;

    fn bytes(&self) -> u64 {
        self.bytes()
    }

    fn read_at(&self, position: u64, bytes: &mut [u8]) -> Result<(), Failure> {
        self.read(position, bytes)
    }

    fn data_from(&self, position: u64) -> Result<Range<u64>, Failure> {
        Self::data_from(self, position)
    }
}
