//! The images of a scene: what lies on the hosts before the clone begins.

use journal_format::{BaseV1, ChunkValue, FileStampV1, ImageRoleV1, ImageV1, SourceKindV1};
use kvm_clone::steps::{self, host_record::parent_of};

use super::{CHUNK_BYTES, TARGET};
use crate::content::{BLOCK_BYTES, Content};
use crate::machine::Machine;
use crate::seed::Seed;

/// A file of the source VM, with the directories above it.
pub fn put_source(source: &mut Machine, path: &str, content: Content) {
    for (end, _) in path.match_indices('/').skip(1) {
        if source.files.stat(&path[..end]).is_none() {
            source.files.make_dir(&path[..end], 0o711).unwrap();
        }
    }
    let inode = source.files.make_file(path, 0o640, content).unwrap();
    source.files.set_attributes(path, inode, 64_055, 104, 0o640).unwrap();
}

/// What a disk of the source stands on is on the destination too, and may be what others stand on.
pub fn put_base(source: &Machine, destination: &mut Machine, role: ImageRoleV1, path: &str) -> BaseV1 {
    let content = source.files.content(path).unwrap().clone();
    let root = ChunkValue(*blake3::hash(&content.bytes()).as_bytes());
    let inode = destination.files.make_file(path, 0o644, content).unwrap();
    let stat = destination.files.stat(path).unwrap();
    BaseV1 {
        role,
        reached_by: path.to_owned(),
        source_path: path.to_owned(),
        source_stamp: steps::stamp_of(SourceKindV1::File, &source.files.stat(path).unwrap()),
        path: path.to_owned(),
        directory: destination.files.stat(parent_of(path)).unwrap().inode,
        stamp: FileStampV1 { inode, size: stat.size, mtime_ns: stat.mtime_ns },
        root,
    }
}

/// A block device with something on it.
pub fn put_target(destination: &mut Machine, bytes: u64, seed: &mut Seed) {
    destination.files.make_dir("/dev", 0o755).unwrap();
    let mut old = vec![0; usize::try_from(bytes).unwrap()];
    seed.fill(&mut old);
    destination.files.make_file(TARGET, 0o660, Content::of(&old)).unwrap();
    destination.files.make_device(TARGET);
}

/// The name of the image below the second disk's.
pub const BASE: &str = "web01-base";
/// The name of the image between it and a flattened disk's.
pub const MIDDLE: &str = "web01-middle";
/// Where a qcow2 header (version 3, and the end of its extensions) names the image below.
const BACKING_AT: u64 = 112;
/// Bytes of such a header with that name, whichever it is.
pub const QCOW2_HEADER_BYTES: u64 = 160;

/// What an image of the source is in the clone: only its reference to the one below differs.
pub fn as_cloned(planned: &ImageV1, content: &Content) -> Content {
    let mut content = content.clone();
    if let Some(backing) = &planned.backing {
        content.write(16, &u32::try_from(backing.clone.len()).unwrap().to_be_bytes());
        content.write(BACKING_AT, backing.clone.as_bytes());
    }
    content
}

/// The header of an image as it is carried. What is behind it is nobody's business here.
pub fn qcow2_header(chain: bool) -> Vec<u8> {
    let mut header = vec![0; QCOW2_HEADER_BYTES as usize];
    header[..4].copy_from_slice(b"QFI\xfb");
    for (at, value) in [(4, 3_u32), (20, 16), (100, 104)] {
        header[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }
    if chain {
        let at = usize::try_from(BACKING_AT).unwrap();
        header[8..16].copy_from_slice(&BACKING_AT.to_be_bytes());
        header[16..20].copy_from_slice(&u32::try_from(BASE.len()).unwrap().to_be_bytes());
        header[at..at + BASE.len()].copy_from_slice(BASE.as_bytes());
    }
    header
}

/// An image of a few chunks: data, zeros, holes, an odd end; now and then of one chunk or of none.
pub fn image(seed: &mut Seed) -> Content {
    let mut content = Content::default();
    let chunks = *seed.pick(&[0, 1, 3, 4, 5, 6, 6, 7]);
    let chunk_bytes = u64::from(CHUNK_BYTES);
    for chunk in 0..chunks {
        let mut bytes = vec![0; usize::try_from(chunk_bytes).unwrap()];
        match seed.below(6) {
            0 => continue,
            1 => {}
            // A chunk with a hole in it.
            2 => bytes.truncate(usize::try_from(BLOCK_BYTES).unwrap()),
            _ => seed.fill(&mut bytes),
        }
        content.write(chunk * chunk_bytes, &bytes);
    }
    let end = if chunks > 0 && seed.chance(50) { chunks * chunk_bytes - 1000 } else { chunks * chunk_bytes };
    content.set_size(end);
    content
}
