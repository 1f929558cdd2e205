//! Is there a place on the destination? The clone's name, what is left over under it, directories, links, space.

use std::collections::BTreeMap;

use journal_format::ControllerId;

use super::replace::memory_bytes;
use super::space::Shortage;
use super::vm::bytes_to_allocate;
use super::{BlockerKind, Report, Unfinished, WarningKind};
use crate::request::{Request, Target};
use crate::shell::shell_word;
use crate::survey::placement::{DEFAULT_POOL, NoDirectory, device_of, directory_for, target_of};
use crate::survey::{ClaimFacts, DirectoryFacts, SourceFile, Survey};
use crate::world::FileKind;

/// Bytes that the host record, the definition and their directories take at most, nearly.
const RECORD_BYTES: u64 = 16 << 20;
/// Inodes that a directory needs beside those of its images: `.kvm-clone`, the transaction's directory, its nonce.
const STAGING_INODES: u64 = 3;
/// Inodes of a host record with its parents and the clone's definition.
const RECORD_INODES: u64 = 8;
/// Where a host has its devices, whatever filesystem that is.
const DEVICES: &str = "/dev";
/// What it is nearly everywhere.
const DEVICE_FILESYSTEM: &str = "devtmpfs";
/// Filesystems that have no hard links. A trial would have to write, so the others are believed; one that refuses all
/// the same fails at the claim or at publishing, which are undone.
const NO_HARD_LINKS: [&str; 3] = ["vfat", "exfat", "fuse.exfat"];

/// Whose storage, whose VMs and whose transactions those are is told by the machine-id.
pub(super) fn check_machine(report: &mut Report, survey: &Survey) {
    if !survey.destination.is_twin {
        return;
    }
    let (from, to, id) = (&survey.source.name, &survey.destination.name, &survey.source.host.machine_id);
    report.block(
        BlockerKind::MachineId,
        to,
        format!("{to}: it has the machine-id of {from} ({id}), and is another machine: one of them was copied from the other."),
        "Give one of them its own: `rm /etc/machine-id && systemd-machine-id-setup`, then boot it.",
    );
}

pub(super) fn check_name(report: &mut Report, survey: &Survey, controller: &ControllerId, unfinished: &[Unfinished]) {
    let (host, name) = (survey.destination.name.as_str(), &survey.new_name);
    if survey.one_machine() && survey.source.vm.brief.name == name.as_str() {
        report.block(
            BlockerKind::SameVm,
            host,
            format!("{host} is the source's own host, and the clone would be the source, {name}, itself."),
            "Choose another name with --new-name.",
        );
        return;
    }
    let namesake = survey.destination.neighbours.iter().find(|neighbour| neighbour.brief.name == name.as_str());
    if let Some(namesake) = namesake.filter(|_| survey.destination.old.is_none()) {
        report.block(
            BlockerKind::NameTaken,
            host,
            format!("{host}: there is a VM {name} already (UUID {}).", namesake.brief.uuid),
            "Choose another name with --new-name; --force replaces that VM, --idempotent does where it is not this clone.",
        );
    }
    let ours = |one: &&Unfinished| {
        one.destination_machine_id == survey.destination.host.machine_id && one.new_name == name.as_str()
    };
    let ours: Vec<&Unfinished> = unfinished.iter().filter(ours).collect();
    let (abandoned, unfinished): (Vec<_>, Vec<_>) = ours.into_iter().partition(|one| one.abandoned);
    for one in &unfinished {
        let (kind, what) = if one.running {
            (BlockerKind::NameHeld, "transaction, which is running now")
        } else {
            (BlockerKind::NameClaimed, "unfinished transaction")
        };
        report.block(kind, host, format!("{host}: {name} is the clone of the {what}, {}.", one.txn), &one.advice);
    }
    let claim = survey.destination.claim.as_ref();
    let told =
        |claim: &&ClaimFacts| claim.owner.as_ref().is_ok_and(|owner| unfinished.iter().any(|one| one.txn == owner.txn));
    if let Some(claim) = claim.filter(|claim| !told(claim)) {
        let owner = claim.owner.as_ref().ok().map(|owner| owner.txn);
        match abandoned.iter().find(|one| Some(one.txn) == owner) {
            Some(one) => report.block(
                BlockerKind::NameClaimed,
                host,
                format!("{host}: the name {name} is still reserved by transaction {}, which was abandoned while {host} did not answer.", one.txn),
                &one.advice,
            ),
            None => check_claim(report, survey, claim, controller),
        }
    }
    // A domain that is there owns its files: they are no leftovers.
    if namesake.is_none() {
        for path in &survey.destination.leftovers {
            report.block(
                BlockerKind::Leftover,
                host,
                format!(
                    "{host}: {path} is left over from an earlier VM, and libvirt would take it for the clone's own."
                ),
                "Move it away or delete it, or choose another name with --new-name.",
            );
        }
    }
}

fn check_claim(report: &mut Report, survey: &Survey, claim: &ClaimFacts, controller: &ControllerId) {
    let (host, name) = (survey.destination.name.as_str(), &survey.new_name);
    match &claim.owner {
        Ok(owner) if owner.controller == *controller => report.block(
            BlockerKind::NameClaimed,
            host,
            format!("{host}: the name {name} is reserved by the unfinished transaction {}.", owner.txn),
            format!(
                "Its journal is not in {}: if it is lost, `kvm-clone recover --from {}` rolls it back.",
                controller.state_dir,
                shell_word(host)
            ),
        ),
        Ok(owner) => report.block(
            BlockerKind::NameHeld,
            host,
            format!(
                "{host}: the name {name} is reserved by transaction {} of another controller (machine {}, {}).",
                owner.txn, owner.controller.machine_id, owner.controller.state_dir
            ),
            "Wait until it is finished there, or choose another name with --new-name.",
        ),
        Err(why) => report.block(
            BlockerKind::NameHeld,
            host,
            format!("{host}: the name {name} is reserved by {}, which does not say by whom: {why}.", claim.path),
            "Wait a moment and run again, or choose another name with --new-name.",
        ),
    }
}

pub(super) fn check_directories(report: &mut Report, request: &Request, survey: &Survey) {
    let mut needs = Needs::default();
    let staged = || {
        survey.source.files.iter().filter(|file| device_of(request, file).is_none() && survey.base_of(file).is_none())
    };
    for file in staged() {
        match directory_for(request, &survey.destination, file) {
            Ok(directory) => {
                check_directory(report, survey, directory);
                let image = file.image();
                let bytes = image.map_or(0, |image| bytes_to_allocate(file, image, request.preallocate));
                needs.add(directory, bytes, 1 + STAGING_INODES);
                check_owner(report, survey, file);
            }
            Err(why) => report_missing(report, request, survey, file, &why),
        }
    }
    if let Some(Ok(directory)) = staged().next().map(|file| directory_for(request, &survey.destination, file)) {
        needs.add(directory, memory_bytes(request, survey), 1);
    }
    check_filesystem(report, survey, &survey.destination.record);
    needs.add(&survey.destination.record, RECORD_BYTES, RECORD_INODES);
    needs.check(report, &survey.destination.name);
}

fn report_missing(report: &mut Report, request: &Request, survey: &Survey, file: &SourceFile, why: &NoDirectory) {
    let host = survey.destination.name.as_str();
    let what = file.what();
    let (kind, message, advice) = match why {
        NoDirectory::LikeSource { directory } => (
            BlockerKind::DirectoryMissing,
            format!(
                "{host}: {what}: the directory {directory} does not exist, and there is no active pool `{DEFAULT_POOL}` with a directory to take its place."
            ),
            "Make the directory, or say where with --pool or --directory.".to_owned(),
        ),
        NoDirectory::OfDevice { device } => (
            BlockerKind::DirectoryMissing,
            format!(
                "{host}: {what}: {device} is a device, and there is no active pool `{DEFAULT_POOL}` with a directory for an image of it."
            ),
            "Say where with --pool, --directory or --disk-map.".to_owned(),
        ),
        NoDirectory::Missing { directory } => {
            let advice = match &target_of(request, file) {
                Target::Pool(pool) => {
                    format!(
                        "Build the pool's directory (`virsh pool-build {}`), or give another pool.",
                        shell_word(pool)
                    )
                }
                Target::Directory(_) | Target::LikeSource => "Make the directory, or give another one.".to_owned(),
            };
            (BlockerKind::DirectoryMissing, format!("{host}: the directory {directory} does not exist."), advice)
        }
        NoDirectory::PoolMissing { pool, usable } => (
            BlockerKind::Pool,
            format!("{host}: there is no pool {pool}."),
            match usable.len() {
                0 => "No pool of that host can take images: say where with --directory.".to_owned(),
                _ => format!("Pools that can take images: {}.", usable.join(", ")),
            },
        ),
        NoDirectory::PoolInactive { pool } => (
            BlockerKind::Pool,
            format!("{host}: the pool {pool} is not active."),
            format!("Start it (`virsh pool-start {}`).", shell_word(pool)),
        ),
        NoDirectory::PoolKind { pool, kind } => (
            BlockerKind::Pool,
            format!(
                "{host}: the pool {pool} is of type {kind}, and only pools that are directories can take images yet."
            ),
            "Give a pool of type dir, fs or netfs, or say where with --directory.".to_owned(),
        ),
    };
    report.block(kind, host, message, advice);
}

fn check_directory(report: &mut Report, survey: &Survey, directory: &DirectoryFacts) {
    let (host, path) = (survey.destination.name.as_str(), &directory.path);
    if directory.stat.kind != FileKind::Directory {
        report.block(
            BlockerKind::NotADirectory,
            host,
            format!("{host}: {path} is not a directory."),
            "Say where the disks go with --pool or --directory.",
        );
        return;
    }
    if directory.filesystem.kind == DEVICE_FILESYSTEM || path == DEVICES || path.starts_with("/dev/") {
        report.block(
            BlockerKind::NotADirectory,
            host,
            format!(
                "{host}: {path} holds the host's devices, and no images: what is put there is gone at the next boot."
            ),
            "Say where the disks go with --pool or --directory; onto a device, with --disk-map TARGET=/dev/NAME.",
        );
        return;
    }
    let staging = directory.staging_parent;
    if staging.is_some_and(|staging| staging.kind != FileKind::Directory || staging.device != directory.stat.device) {
        report.block(
            BlockerKind::StagingParent,
            host,
            format!("{host}: {path}/.kvm-clone is not a directory on the filesystem of {path}, and images could not be linked from it to their final names."),
            "Move it away, or say where the disks go with --pool or --directory.",
        );
    }
    check_filesystem(report, survey, directory);
    if directory.filesystem.network {
        report.warn(
            WarningKind::NetworkFilesystem,
            host,
            format!("{host}: {path} is on a network filesystem ({}): what is written there is only as durable as its server makes it.", directory.filesystem.kind),
            "",
        );
    }
}

fn check_filesystem(report: &mut Report, survey: &Survey, directory: &DirectoryFacts) {
    let (host, path) = (survey.destination.name.as_str(), &directory.path);
    if directory.filesystem.read_only {
        report.block(
            BlockerKind::ReadOnly,
            host,
            format!("{host}: {path} is on a filesystem that is mounted read-only."),
            "Remount it for writing; after an error of the disk, check it first.",
        );
    }
    if !directory.filesystem.read_only && !directory.filesystem.writable {
        report.block(
            BlockerKind::NotWritable,
            host,
            format!("{host}: root cannot write to {path}, though its filesystem is not mounted read-only."),
            "See whether it is immutable (`lsattr -d`), or on a server that keeps root out (root_squash).",
        );
    }
    if NO_HARD_LINKS.contains(&directory.filesystem.kind.as_str()) {
        report.block(
            BlockerKind::NoHardLinks,
            host,
            format!(
                "{host}: {path} is on a filesystem without hard links ({}), and nothing can be published there safely.",
                directory.filesystem.kind
            ),
            "Use a filesystem such as ext4, xfs or btrfs.",
        );
    }
}

fn check_owner(report: &mut Report, survey: &Survey, file: &SourceFile) {
    // A device's owner is no image's.
    let Some(image) = file.image().filter(|image| image.stat.kind != FileKind::BlockDevice) else { return };
    let known = survey.destination.owners.get(&image.owner).copied().unwrap_or_default();
    if known.user.is_some() && known.group.is_some() {
        return;
    }
    let name = |name: &Option<String>, number: u32| name.clone().unwrap_or_else(|| number.to_string());
    let (user, group) = (name(&image.owner.user, image.stat.uid), name(&image.owner.group, image.stat.gid));
    let host = survey.destination.name.as_str();
    report.warn(
        WarningKind::OwnerUnknown,
        host,
        format!(
            "{host}: {}, {}, belongs to {user}:{group} on {}, which is not known here by name: root takes its place.",
            file.what(),
            image.path,
            survey.source.name
        ),
        "",
    );
}

pub(super) fn warn_of_bases(report: &mut Report, survey: &Survey) {
    let host = survey.destination.name.as_str();
    for base in &survey.destination.bases {
        report.warn(
            WarningKind::SharedBase,
            host,
            format!("{host}: {} is there already: it is not copied, and the clone stands on it.", base.path),
            "See that nobody writes to it or deletes it as long as there is the clone; with --chain keep it is copied.",
        );
    }
}

/// What each filesystem, by its device number, is asked for.
#[derive(Default)]
struct Needs(BTreeMap<u64, Need>);

struct Need {
    /// The first directory that asked.
    path: String,
    bytes: u64,
    inodes: u64,
    available_bytes: u64,
    available_inodes: Option<u64>,
}

impl Needs {
    fn add(&mut self, directory: &DirectoryFacts, bytes: u64, inodes: u64) {
        let need = self.0.entry(directory.filesystem.device).or_insert_with(|| Need {
            path: directory.path.clone(),
            bytes: 0,
            inodes: 0,
            available_bytes: directory.filesystem.available_bytes,
            available_inodes: directory.filesystem.available_inodes,
        });
        need.bytes = need.bytes.saturating_add(bytes);
        need.inodes = need.inodes.saturating_add(inodes);
    }

    fn check(&self, report: &mut Report, host: &str) {
        for need in self.0.values() {
            if let Some(shortage) = Shortage::of(host, &need.path, need.bytes, need.available_bytes) {
                report.block(BlockerKind::Space, host, shortage.to_string(), "");
            }
            if let Some(available) = need.available_inodes.filter(|available| *available < need.inodes) {
                report.block(
                    BlockerKind::Inodes,
                    host,
                    format!(
                        "{host}: the filesystem of {} has {available} inodes left, and {} are needed.",
                        need.path, need.inodes
                    ),
                    "Delete files that are not needed.",
                );
            }
        }
    }
}
