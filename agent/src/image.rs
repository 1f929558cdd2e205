//! Opening an image for a stream: it must be what the job says it is, and be read or written past the page cache where
//! that is asked for and possible.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};

use journal_format::Inode;
use kvm_clone_agent::protocol::{Failure, FailureKind, Geometry, Patch};
use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::libc;
use nix::unistd::{Whence, lseek64};

use crate::buffer::ALIGNMENT;
use crate::counts;
use crate::failure::{errno, failure, refused};
use crate::files::{changed, image_bytes, open};

/// How a stream uses an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// From the page cache if it is there.
    Read,
    /// From the disk.
    Reread,
    /// To the disk.
    Write,
}

/// An open image.
#[derive(Debug)]
pub struct Image {
    path: String,
    bytes: u64,
    access: Access,
    /// The number of a block device.
    device: Option<u64>,
    buffered: File,
    /// The same file with `O_DIRECT`, where the access asks for it and the filesystem has it.
    direct: Option<File>,
    /// What is read otherwise than it is written.
    patches: Vec<Patch>,
}

impl Image {
    /// With bytes that are read as other ones.
    pub fn patched(mut self, patches: Vec<Patch>) -> Self {
        self.patches = patches;
        self
    }

    /// Opens a regular file or block device that must be this inode (if any is named) and of the geometry's size; a
    /// device may be larger.
    pub fn open(path: &str, inode: Option<Inode>, geometry: Geometry, access: Access) -> Result<Self, Failure> {
        let aligned = (geometry.chunk_bytes as usize).is_multiple_of(ALIGNMENT);
        let image = Self::open_file(path, inode, access, aligned)?;
        if image.bytes < geometry.image_bytes || (image.bytes > geometry.image_bytes && image.device.is_none()) {
            let (bytes, expected) = (image.bytes, geometry.image_bytes);
            let detail = format!("open image {path}: it has {bytes} bytes now, expected {expected}");
            return Err(failure(FailureKind::Changed, detail));
        }
        Ok(image)
    }

    /// Opens a regular file or block device of whatever size, to be read.
    pub fn open_whole(path: &str, access: Access) -> Result<Self, Failure> {
        Self::open_file(path, None, access, true)
    }

    /// `aligned`: past the page cache, where that is asked for.
    fn open_file(path: &str, inode: Option<Inode>, access: Access, aligned: bool) -> Result<Self, Failure> {
        let operation = || format!("open image {path}");
        let mut options = OpenOptions::new();
        options.read(access != Access::Write).write(access == Access::Write);
        let buffered = open(path, &mut options).map_err(|error| refused(operation(), errno(&error)))?;
        let found = buffered.metadata().map_err(|error| refused(operation(), errno(&error)))?;
        if let Some(inode) = inode.filter(|inode| inode.0 != found.ino()) {
            return Err(changed("open image", path, inode, found.ino()));
        }
        let device = found.file_type().is_block_device().then(|| found.rdev());
        if !found.is_file() && device.is_none() {
            return Err(failure(FailureKind::Unsupported, format!("open image {path}: not a file or block device")));
        }
        let bytes = image_bytes(&buffered).map_err(|error| refused(operation(), errno(&error)))?;
        let direct = (access != Access::Read && aligned)
            .then(|| options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_DIRECT).open(path).ok())
            .flatten()
            // The name may have changed hands between the two.
            .filter(|direct| direct.metadata().is_ok_and(|f| (f.dev(), f.ino()) == (found.dev(), found.ino())));
        let image = Self { path: path.to_owned(), bytes, access, device, buffered, direct, patches: Vec::new() };
        match access {
            Access::Read => image.advise(PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL)?,
            // Only what is on the disk can be dropped from the cache.
            Access::Reread => image.sync()?,
            Access::Write => {}
        }
        Ok(image)
    }

    /// The number of a block device; `None`: it is a file.
    pub fn device(&self) -> Option<u64> {
        self.device
    }

    /// Its path.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Bytes that it had when it was opened.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The first data at or behind a position; empty, at the end of everything, where there is none.
    pub fn data_from(&self, position: u64) -> Result<Range<u64>, Failure> {
        data_from(&self.buffered, position).map_err(|error| refused("find the data of the image", error))
    }

    /// Fills the bytes from this position on, patches included.
    pub fn read(&self, position: u64, bytes: &mut [u8]) -> Result<(), Failure> {
        self.read_as_it_is(position, bytes)?;
        counts::image_read(bytes.len());
        for (at, byte) in self.patches.iter().flat_map(|patch| (patch.offset..=u64::MAX).zip(&patch.bytes)) {
            let place = at.checked_sub(position).and_then(|place| usize::try_from(place).ok());
            if let Some(place) = place.and_then(|place| bytes.get_mut(place)) {
                *place = *byte;
            }
        }
        Ok(())
    }

    fn read_as_it_is(&self, position: u64, bytes: &mut [u8]) -> Result<(), Failure> {
        if let Some(direct) = self.direct.as_ref().filter(|_| is_aligned(position, bytes)) {
            match direct.read_exact_at(bytes, position) {
                Err(error) if errno(&error) == Errno::EINVAL => {}
                result => return result.map_err(|error| self.read_failure(position, &error)),
            }
        }
        if self.access == Access::Reread {
            // An unaligned tail, or a filesystem without another way: one buffered read, its pages dropped first.
            let (start, length) = (position.cast_signed(), bytes.len().cast_signed() as i64);
            posix_fadvise(&self.buffered, start, length, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
                .map_err(|error| refused(format!("read {} at {position}", self.path), error))?;
        }
        self.buffered.read_exact_at(bytes, position).map_err(|error| self.read_failure(position, &error))
    }

    /// Writes the bytes from this position on.
    pub fn write(&self, position: u64, bytes: &[u8]) -> Result<(), Failure> {
        counts::image_written(bytes.len());
        if let Some(direct) = self.direct.as_ref().filter(|_| is_aligned(position, bytes)) {
            match direct.write_all_at(bytes, position) {
                Err(error) if errno(&error) == Errno::EINVAL => {}
                result => return result.map_err(|error| self.write_failure(position, &error)),
            }
        }
        self.buffered.write_all_at(bytes, position).map_err(|error| self.write_failure(position, &error))
    }

    /// The buffered descriptor, for punching holes.
    pub fn file(&self) -> &File {
        &self.buffered
    }

    /// Whether it still is as large as when it was opened: what is cut off reads as holes.
    pub fn check_size(&self) -> Result<(), Failure> {
        let bytes =
            image_bytes(&self.buffered).map_err(|error| refused(format!("size of {}", self.path), errno(&error)))?;
        if bytes == self.bytes {
            return Ok(());
        }
        let detail = format!("{}: it had {} bytes at first and has {bytes} now", self.path, self.bytes);
        Err(failure(FailureKind::Changed, detail))
    }

    /// Makes everything written so far survive a power cut.
    pub fn sync(&self) -> Result<(), Failure> {
        self.buffered.sync_data().map_err(|error| refused(format!("sync {}", self.path), errno(&error)))
    }

    /// A failure to write at this position.
    pub fn write_failure(&self, position: u64, error: &std::io::Error) -> Failure {
        refused(format!("write {} at {position}", self.path), errno(error))
    }

    fn read_failure(&self, position: u64, error: &std::io::Error) -> Failure {
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            let detail = format!("read {} at {position}: the image became shorter", self.path);
            return failure(FailureKind::Changed, detail);
        }
        refused(format!("read {} at {position}", self.path), errno(error))
    }

    fn advise(&self, advice: PosixFadviseAdvice) -> Result<(), Failure> {
        posix_fadvise(&self.buffered, 0, 0, advice).map_err(|error| refused(format!("open image {}", self.path), error))
    }
}

/// The first data at or behind a position; empty at the end of everything when there is none.
fn data_from(file: &File, position: u64) -> Result<Range<u64>, Errno> {
    const NOTHING: Range<u64> = u64::MAX..u64::MAX;
    let seek = |position: u64, whence| {
        lseek64(file, i64::try_from(position).map_err(|_| Errno::EFBIG)?, whence).map(i64::unsigned_abs)
    };
    let start = match seek(position, Whence::SeekData) {
        Ok(start) => start,
        Err(Errno::ENXIO) => return Ok(NOTHING),
        // A block device, or a filesystem that does not know: all of it is data.
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) => return Ok(position..u64::MAX),
        Err(error) => return Err(error),
    };
    match seek(start, Whence::SeekHole) {
        Ok(end) => Ok(start..end),
        Err(Errno::ENXIO) => Ok(start..u64::MAX),
        Err(error) => Err(error),
    }
}

fn is_aligned(position: u64, bytes: &[u8]) -> bool {
    position.is_multiple_of(ALIGNMENT as u64)
        && bytes.len().is_multiple_of(ALIGNMENT)
        && bytes.as_ptr().addr().is_multiple_of(ALIGNMENT)
}
