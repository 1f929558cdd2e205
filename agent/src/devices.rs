//! Block devices that may become a disk of the clone: which one it is for good, and that nobody else uses it while it is written.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use journal_format::Inode;
use kvm_clone_agent::protocol::{DeviceFacts, Failure, FailureKind, IDENTITY_BYTES_MAX};
use nix::errno::Errno;
use nix::libc;
use nix::sys::stat::{major, minor};

use crate::failure::{errno, failure, refused};
use crate::files::{image_bytes, open};

/// Where the kernel lists all block devices, partitions too.
const DEVICES: &str = "/sys/class/block";
/// Devices held at a time.
const DEVICES_MAX: usize = 1_000;

/// Devices that this agent holds until it ends, by device number.
#[derive(Debug, Default)]
pub struct Devices {
    held: HashMap<u64, File>,
}

impl Devices {
    /// Opens a device that must have this identity, so that nobody mounts it, and no other device is built on it, from now on.
    /// While it is open, its number means this device and no other.
    pub fn hold(&mut self, path: &str, identity: &str) -> Result<Inode, Failure> {
        let operation = || format!("hold device {path}");
        let seen = open(path, OpenOptions::new().read(true)).map_err(|error| refused(operation(), errno(&error)))?;
        let (number, inode) = numbers(path, &seen)?;
        if !self.held.contains_key(&number) {
            if self.held.len() >= DEVICES_MAX {
                return Err(failure(FailureKind::Busy, format!("hold device {path}: {DEVICES_MAX} are held already")));
            }
            let file = open_alone(path, OpenOptions::new().read(true).write(true)).map_err(|error| match error {
                Errno::EBUSY => failure(FailureKind::InUse, format!("hold device {path}: {IN_USE}")),
                error => refused(operation(), error),
            })?;
            // The name may have changed hands between the two.
            if numbers(path, &file)? != (number, inode) {
                return Err(failure(FailureKind::Changed, format!("hold device {path}: it is another device now")));
            }
            self.held.insert(number, file);
        }
        match identity_of(&seen, number) {
            Some(found) if found == identity => Ok(inode),
            found => {
                self.held.remove(&number);
                let found = found.unwrap_or_else(|| "no device that can be told from others".to_owned());
                Err(failure(FailureKind::Changed, format!("hold device {path}: it is {found}, expected {identity}")))
            }
        }
    }

    /// Is the device of this number held?
    pub fn holds(&self, number: u64) -> bool {
        self.held.contains_key(&number)
    }
}

/// Why a device cannot be opened alone.
const IN_USE: &str = "it is mounted, swapped on, or part of another device";

/// What a block device is; `None`: there is nothing, or no block device.
pub fn look(path: &str) -> Result<Option<DeviceFacts>, Failure> {
    let operation = || format!("look at device {path}");
    let is_device = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_block_device());
    if !is_device {
        return Ok(None);
    }
    let file = open(path, OpenOptions::new().read(true)).map_err(|error| refused(operation(), errno(&error)))?;
    let (number, inode) = numbers(path, &file)?;
    let in_use = match open_alone(path, OpenOptions::new().read(true)) {
        // What is on a partition belongs to somebody, whether it is mounted now or not.
        Ok(_) => has_partitions(&kernel_directory(number)),
        Err(Errno::EBUSY) => true,
        Err(error) => return Err(refused(operation(), error)),
    };
    Ok(Some(DeviceFacts {
        inode,
        bytes: image_bytes(&file).map_err(|error| refused(operation(), errno(&error)))?,
        identity: identity_of(&file, number),
        in_use,
        read_only: line_of(&kernel_directory(number).join("ro")).is_some_and(|flag| flag != "0"),
    }))
}

/// Device number and inode of an open block device.
fn numbers(path: &str, file: &File) -> Result<(u64, Inode), Failure> {
    let found = file.metadata().map_err(|error| refused(format!("look at device {path}"), errno(&error)))?;
    if !found.file_type().is_block_device() {
        return Err(failure(FailureKind::Unsupported, format!("{path} is no block device")));
    }
    Ok((found.rdev(), Inode(found.ino())))
}

/// With `O_EXCL` the kernel opens a block device only if neither a filesystem nor another device uses it, nor any part of it
/// (open(2)).
fn open_alone(path: &str, options: &mut OpenOptions) -> Result<File, Errno> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_EXCL;
    options.custom_flags(flags).open(path).map_err(|error| errno(&error))
}

/// Where the kernel says what it knows of a device.
fn kernel_directory(number: u64) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{}:{}", major(number), minor(number)))
}

fn has_partitions(directory: &Path) -> bool {
    let mut entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.any(|entry| entry.path().join("partition").exists())
}

fn line_of(path: &Path) -> Option<String> {
    let line = fs::read_to_string(path).ok()?.trim().to_owned();
    (!line.is_empty()).then_some(line)
}

/// Which devices share bytes with the one that this names. Opens none but loop devices, which only their own ioctl tells apart.
pub fn like(identity: &str) -> Result<Vec<String>, Failure> {
    let failed = |error: io::Error| refused(format!("look through {DEVICES}"), errno(&error));
    let mut nodes = Vec::new();
    for entry in fs::read_dir(DEVICES).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // The kernel's own way to write a name with a slash in it.
        let node = format!("/dev/{}", entry.file_name().to_string_lossy().replace('!', "/"));
        let Ok(directory) = fs::canonicalize(entry.path()) else { continue };
        let named = identity_at(&directory, || backing_of(&open(&node, OpenOptions::new().read(true)).ok()?));
        if named.is_some_and(|named| overlap(&named, identity)) {
            nodes.push(node);
        }
    }
    nodes.sort();
    Ok(nodes)
}

/// Are these the same device, or is one a partition of the other? The identity of a partition begins with that of its disk.
fn overlap(one: &str, other: &str) -> bool {
    let is_part = |part: &str, of: &str| part.strip_prefix(of).is_some_and(|rest| rest.starts_with("-from-"));
    one == other || is_part(one, other) || is_part(other, one)
}

/// What names a device for good, over boots and under any path; `None`: nothing does.
fn identity_of(file: &File, number: u64) -> Option<String> {
    identity_at(&fs::canonicalize(kernel_directory(number)).ok()?, || backing_of(file))
}

/// The same, from the directory where the kernel says what it knows, and what a loop device stands on.
fn identity_at(directory: &Path, backing: impl FnOnce() -> Option<String>) -> Option<String> {
    let identity = if directory.join("partition").exists() {
        let disk = identity_of_disk(directory.parent()?)?;
        format!("{disk}-from-{}", line_of(&directory.join("start"))?)
    } else if directory.join("loop").exists() {
        backing()?
    } else {
        identity_of_disk(directory)?
    };
    Some(identity).filter(|identity| identity.len() <= IDENTITY_BYTES_MAX)
}

/// World-wide name, serial number, or the UUID of what a device is made of.
fn identity_of_disk(directory: &Path) -> Option<String> {
    const NAMES: [(&str, &str); 6] = [
        ("dm/uuid", "dm"),
        ("md/uuid", "md"),
        ("wwid", "wwn"),
        ("device/wwid", "wwn"),
        ("serial", "serial"),
        ("device/serial", "serial"),
    ];
    NAMES.iter().find_map(|(file, kind)| Some(format!("{kind}-{}", as_name(&line_of(&directory.join(file))?))))
}

/// As a file may be called.
fn as_name(text: &str) -> String {
    let plain = |character: char| character.is_ascii_alphanumeric() || "._-:".contains(character);
    let words: Vec<String> = text
        .split_whitespace()
        .map(|word| word.chars().map(|character| if plain(character) { character } else { '_' }).collect())
        .collect();
    words.join("_")
}

/// The head of the kernel's `struct loop_info64` (linux/loop.h), and room for the rest.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    rest: [u8; 192],
}

/// `LOOP_GET_STATUS64` (linux/loop.h).
const LOOP_GET_STATUS64: u16 = 0x4C05;

nix::ioctl_read_bad!(loop_status, LOOP_GET_STATUS64, LoopInfo);

/// A loop device is the file behind it, from where it begins. Its filesystem has no number that stays.
fn backing_of(file: &File) -> Option<String> {
    let mut info = LoopInfo { device: 0, inode: 0, rdevice: 0, offset: 0, size_limit: 0, rest: [0; 192] };
    // SAFETY: the kernel fills 232 bytes at most, which is what `LoopInfo` has, and the descriptor is open.
    unsafe { loop_status(file.as_raw_fd(), &raw mut info) }.ok()?;
    Some(format!("loop-{}-from-{}", info.inode, info.offset))
}

const _: () = assert!(size_of::<LoopInfo>() == 232);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices_are_names_of_files() {
        assert_eq!(as_name("t10.ATA     QEMU HARDDISK   QM00001 "), "t10.ATA_QEMU_HARDDISK_QM00001");
        assert_eq!(as_name("LVM-abc/../x"), "LVM-abc_.._x");
        assert_eq!(as_name("naa.5000c500a1b2c3d4"), "naa.5000c500a1b2c3d4");
    }

    #[test]
    fn a_disk_and_its_partitions_share_bytes() {
        assert!(
            overlap("wwn-a", "wwn-a") && overlap("wwn-a-from-2048", "wwn-a") && overlap("wwn-a", "wwn-a-from-2048")
        );
        assert!(!overlap("wwn-a", "wwn-ab") && !overlap("wwn-a-from-2048", "wwn-a-from-20480"));
        assert_eq!(like("wwn-of-nothing"), Ok(Vec::new()));
    }

    #[test]
    fn what_is_no_block_device_has_no_facts() {
        assert_eq!(look("/dev/null"), Ok(None));
        assert_eq!(look("/absent"), Ok(None));
        let failed = Devices::default().hold("/dev/null", "x").unwrap_err();
        assert_eq!(failed.kind, FailureKind::Unsupported);
    }
}
