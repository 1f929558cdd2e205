//! What kind of filesystem a path lies on, how much room it has, and who has which number on this host.

use std::fs;
use std::os::unix::fs::MetadataExt;

use kvm_clone_agent::protocol::{Failure, FilesystemFacts};
use nix::sys::statfs::{Statfs, statfs};
use nix::sys::statvfs::FsFlags;
use nix::unistd::{AccessFlags, access};

use crate::failure::{errno, refused};

/// Magic numbers of `statfs(2)`, names as in `/proc/filesystems`.
const KINDS: [(u32, &str); 20] = [
    (0xEF53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683E, "btrfs"),
    (TMPFS, "tmpfs"),
    (0x8584_58F6, "ramfs"),
    (0x2FC1_2FC1, "zfs"),
    (0xF2F5_2010, "f2fs"),
    (0xCA45_1A4E, "bcachefs"),
    (0x794C_7630, "overlay"),
    (0x4D44, "vfat"),
    (0x2011_BAB0, "exfat"),
    (0x6969, "nfs"),
    (0xFF53_4D42, "cifs"),
    (0xFE53_4D42, "smb2"),
    (0x00C3_6400, "ceph"),
    (0x0102_1997, "9p"),
    (0x7461_636F, "ocfs2"),
    (0x0116_1970, "gfs2"),
    (0x0BD0_0BD0, "lustre"),
    (FUSE, "fuse"),
];
const FUSE: u32 = 0x6573_5546;
const TMPFS: u32 = 0x0102_1994;

/// Reached over a network, or shared by several hosts. A FUSE filesystem whose name says nothing counts as one too.
const NETWORK: [&str; 8] = ["nfs", "cifs", "smb2", "ceph", "9p", "ocfs2", "gfs2", "lustre"];
/// FUSE filesystems that are local for certain.
const FUSE_LOCAL: [&str; 3] = ["fuseblk", "fuse.ntfs-3g", "fuse.mergerfs"];

/// What is free for one who is not root: its reserve is for the host itself.
pub fn available_bytes(found: &Statfs) -> u64 {
    found.blocks_available().saturating_mul(found.block_size().unsigned_abs())
}

/// `statfs`, following symlinks.
pub fn filesystem(path: &str) -> Result<FilesystemFacts, Failure> {
    let operation = || format!("filesystem of {path}");
    let found = statfs(path).map_err(|error| refused(operation(), error))?;
    let device = fs::metadata(path).map_err(|error| refused(operation(), errno(&error)))?.dev();
    // The type of the field differs between architectures; the number has 32 bits everywhere.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let magic = found.filesystem_type().0 as u32;
    let mut kind = KINDS
        .iter()
        .find(|(number, _)| *number == magic)
        .map_or_else(|| format!("0x{magic:x}"), |(_, name)| (*name).to_owned());
    // devtmpfs has the number of tmpfs.
    if magic == FUSE || magic == TMPFS {
        kind = mounted_kind(device).unwrap_or(kind);
    }
    let network = NETWORK.contains(&kind.as_str()) || (magic == FUSE && !FUSE_LOCAL.contains(&kind.as_str()));
    Ok(FilesystemFacts {
        device,
        available_bytes: available_bytes(&found),
        available_inodes: (found.files() > 0).then(|| found.files_free()),
        kind,
        read_only: found.flags().contains(FsFlags::ST_RDONLY),
        // Also what is immutable, or what a server keeps its clients' root from.
        writable: access(path, AccessFlags::W_OK).is_ok(),
        network,
    })
}

/// The type of the mount with this device number, which names what is behind FUSE.
fn mounted_kind(device: u64) -> Option<String> {
    let device = format!("{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        (mount.split(' ').nth(2) == Some(device.as_str())).then(|| filesystem.split(' ').next().map(str::to_owned))?
    })
}

/// Number of a user and of a group. Read from the files, since a static program has no name service.
pub fn ids_of(user: &str, group: &str) -> Result<(Option<u32>, Option<u32>), Failure> {
    let find = |file: &str, name: &str| {
        let text = fs::read(file).map_err(|error| refused(format!("read {file}"), errno(&error)))?;
        Ok(number_in(&String::from_utf8_lossy(&text), name))
    };
    Ok((find("/etc/passwd", user)?, find("/etc/group", group)?))
}

/// The third field of the line whose first field is this name.
fn number_in(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_by_the_whole_name() {
        let text = "root:x:0:0::/:\nlibvirt-qemu:x:64055:108::/:\nqemu:x:107:107::/:\nbad:x\n";
        assert_eq!(number_in(text, "libvirt-qemu"), Some(64055));
        assert_eq!(number_in(text, "qemu"), Some(107));
        assert_eq!(number_in(text, "libvirt"), None);
        assert_eq!(number_in(text, "bad"), None);
    }

    #[test]
    fn a_mounted_filesystem_is_known_by_name() {
        let facts = filesystem("/proc/self").unwrap();
        assert!(!facts.network, "{facts:?}");
        let here = filesystem("/").unwrap();
        assert!(!here.kind.is_empty());
        assert!(mounted_kind(fs::metadata("/").unwrap().dev()).is_some());
    }
}
