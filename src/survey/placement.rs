//! Where the clone's files go: which directory of the destination, and which name in it. Pure; preflight and plan ask
//! the same questions here and so cannot disagree.

use std::collections::BTreeSet;

use journal_format::{ImageFormat, ImageRoleV1, TxnId};

use crate::domain::{DomainName, places};
use crate::request::{DiskMapping, Request, Target};
use crate::steps::host_record::parent_of;
use crate::survey::{DestinationSurvey, DirectoryFacts, PoolSurvey, SourceFile};
use crate::world::FileKind;

/// The pool that takes a disk whose directory does not exist on the destination.
pub const DEFAULT_POOL: &str = "default";
/// Kinds of pools that are a directory.
const DIRECTORY_POOL_KINDS: [&str; 3] = ["dir", "fs", "netfs"];

/// Why a disk has no directory on the destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoDirectory {
    /// The disk's own directory does not exist there, and there is no active pool `default` to take it.
    LikeSource {
        /// The directory on the source.
        directory: String,
    },
    /// It was a device, and there is no active pool `default` to take its image.
    OfDevice {
        /// The device on the source.
        device: String,
    },
    /// There is no pool of the name that was asked for.
    PoolMissing {
        /// Its name.
        pool: String,
        /// Names of the pools that would do.
        usable: Vec<String>,
    },
    /// The pool is not active.
    PoolInactive {
        /// Its name.
        pool: String,
    },
    /// The pool is of a kind that is no directory.
    PoolKind {
        /// Its name.
        pool: String,
        /// Its kind.
        kind: String,
    },
    /// The directory does not exist.
    Missing {
        /// Its path.
        directory: String,
    },
}

/// Where this file goes by its own, if it is a disk's own image or a medium and was mapped.
pub fn mapping_of<'r>(request: &'r Request, file: &SourceFile) -> Option<&'r DiskMapping> {
    match &file.role {
        ImageRoleV1::Disk { target } | ImageRoleV1::Medium { target } => {
            request.disk_map.iter().find(|mapping| mapping.target == *target)
        }
        ImageRoleV1::Layer { .. } | ImageRoleV1::Nvram | ImageRoleV1::Tpm => None,
    }
}

/// Where this file of a disk is to go: by its own mapping, or as all of them.
pub fn target_of(request: &Request, file: &SourceFile) -> Target {
    mapping_of(request, file).and_then(|mapping| mapping.to.target()).unwrap_or_else(|| request.target.clone())
}

/// The block device that this file goes onto, as it was typed; it has no directory and no name then.
pub fn device_of<'r>(request: &'r Request, file: &SourceFile) -> Option<&'r str> {
    mapping_of(request, file).and_then(|mapping| mapping.to.device())
}

/// A name in a directory.
pub fn join(directory: &str, name: &str) -> String {
    if directory == "/" { format!("/{name}") } else { format!("{directory}/{name}") }
}

/// The paths that the survey has to look at, for one file of the source.
pub fn candidate_directories(request: &Request, pools: &[PoolSurvey], file: &SourceFile) -> BTreeSet<String> {
    if device_of(request, file).is_some() {
        return BTreeSet::new();
    }
    let pool_path = |name: &str| find_pool(pools, name).and_then(|pool| pool.facts.path.clone());
    match &file.role {
        ImageRoleV1::Nvram => BTreeSet::from([parent_of(&file.path), places::VARIABLES].map(str::to_owned)),
        ImageRoleV1::Tpm => BTreeSet::from([places::TPM_STATES, parent_of(places::TPM_STATES)].map(str::to_owned)),
        ImageRoleV1::Disk { .. } | ImageRoleV1::Layer { .. } | ImageRoleV1::Medium { .. } => {
            candidates_of_disk(&target_of(request, file), directory_like_source(file), pool_path)
        }
    }
}

fn candidates_of_disk(
    target: &Target,
    like_source: Option<&str>,
    pool_path: impl Fn(&str) -> Option<String>,
) -> BTreeSet<String> {
    match target {
        Target::LikeSource => like_source.map(str::to_owned).into_iter().chain(pool_path(DEFAULT_POOL)).collect(),
        Target::Pool(name) => pool_path(name).into_iter().collect(),
        Target::Directory(path) => BTreeSet::from([path.clone()]),
    }
}

/// The directory for one file: where it will be, or for a TPM's state the nearest one above that exists.
pub fn directory_for<'a>(
    request: &Request,
    destination: &'a DestinationSurvey,
    file: &SourceFile,
) -> Result<&'a DirectoryFacts, NoDirectory> {
    let known = |path: &str| destination.directories.get(path);
    let missing = |path: &str| NoDirectory::Missing { directory: path.to_owned() };
    let target = match &file.role {
        ImageRoleV1::Nvram => {
            let own = known(parent_of(&file.path)).or_else(|| known(places::VARIABLES));
            return own.ok_or_else(|| missing(places::VARIABLES));
        }
        ImageRoleV1::Tpm => {
            let above = parent_of(places::TPM_STATES);
            return known(places::TPM_STATES).or_else(|| known(above)).ok_or_else(|| missing(above));
        }
        ImageRoleV1::Disk { .. } | ImageRoleV1::Layer { .. } | ImageRoleV1::Medium { .. } => target_of(request, file),
    };
    match &target {
        Target::Directory(path) => known(path).ok_or_else(|| missing(path)),
        Target::Pool(name) => {
            let path = pool_directory(&destination.pools, name)?;
            known(path).ok_or_else(|| missing(path))
        }
        Target::LikeSource => {
            let like_source = directory_like_source(file);
            let why = || match like_source {
                Some(directory) => NoDirectory::LikeSource { directory: directory.to_owned() },
                None => NoDirectory::OfDevice { device: file.path.clone() },
            };
            like_source
                .and_then(known)
                .or_else(|| pool_directory(&destination.pools, DEFAULT_POOL).ok().and_then(known))
                .ok_or_else(why)
        }
    }
}

/// The directory that a file is in on the source. One of devices takes no images.
fn directory_like_source(file: &SourceFile) -> Option<&str> {
    let is_device = file.image().is_some_and(|image| image.stat.kind == FileKind::BlockDevice);
    (!is_device).then(|| parent_of(&file.path))
}

/// The directory of a pool that can take images.
fn pool_directory<'a>(pools: &'a [PoolSurvey], name: &str) -> Result<&'a str, NoDirectory> {
    let pool = find_pool(pools, name).ok_or_else(|| NoDirectory::PoolMissing {
        pool: name.to_owned(),
        usable: pools.iter().filter(|pool| usable(pool)).map(|pool| pool.facts.name.clone()).collect(),
    })?;
    match &pool.facts.path {
        Some(path) if is_directory_pool(pool) => {
            if pool.facts.active {
                Ok(path)
            } else {
                Err(NoDirectory::PoolInactive { pool: name.to_owned() })
            }
        }
        _ => Err(NoDirectory::PoolKind { pool: name.to_owned(), kind: pool.facts.kind.clone() }),
    }
}

fn find_pool<'a>(pools: &'a [PoolSurvey], name: &str) -> Option<&'a PoolSurvey> {
    pools.iter().find(|pool| pool.facts.name == name)
}

fn is_directory_pool(pool: &PoolSurvey) -> bool {
    DIRECTORY_POOL_KINDS.contains(&pool.facts.kind.as_str())
}

fn usable(pool: &PoolSurvey) -> bool {
    pool.facts.active && is_directory_pool(pool) && pool.facts.path.is_some()
}

/// What the file name of an image ends in.
pub fn extension(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Raw => "img",
        ImageFormat::Qcow2 => "qcow2",
    }
}

/// The file name that a file of the clone should have; `None` where it has a directory of its own.
pub fn preferred_name(request: &Request, new_name: &DomainName, file: &SourceFile) -> Option<String> {
    if let Some(mapping) = mapping_of(request, file) {
        return mapping.to.name().map(str::to_owned);
    }
    match &file.role {
        ImageRoleV1::Nvram => Some(new_name.variables_file(places::variables_extension(file.clone_format()))),
        ImageRoleV1::Tpm => None,
        role @ (ImageRoleV1::Disk { .. } | ImageRoleV1::Layer { .. } | ImageRoleV1::Medium { .. }) => {
            Some(format!("{new_name}-{}.{}", part_of_name(role), extension(file.clone_format())))
        }
    }
}

/// An image's part of a file name.
fn part_of_name(role: &ImageRoleV1) -> String {
    match role {
        ImageRoleV1::Disk { target } | ImageRoleV1::Medium { target } => target.clone(),
        ImageRoleV1::Layer { target, depth } => format!("{target}-base{depth}"),
        ImageRoleV1::Nvram => "nvram".to_owned(),
        ImageRoleV1::Tpm => "tpm".to_owned(),
    }
}

/// The name of a file in its staging directory.
pub fn staged_name(file: &SourceFile) -> String {
    format!("{}.{}", part_of_name(&file.role), extension(file.clone_format()))
}

/// The final path of a file in this (real) directory: the preferred name, or where that is taken one with the
/// transaction's last digits. A mapped disk has its own name or none: preflight has said that it is taken.
pub fn final_path(
    request: &Request,
    (new_name, txn): (&DomainName, TxnId),
    destination: &DestinationSurvey,
    directory: &DirectoryFacts,
    file: &SourceFile,
) -> Option<String> {
    let preferred = join(&directory.path, &preferred_name(request, new_name, file)?);
    Some(if is_taken(destination, &preferred) && mapping_of(request, file).is_none() {
        join(&directory.path, &new_name.disk_file(&part_of_name(&file.role), txn, extension(file.clone_format())))
    } else {
        preferred
    })
}

/// Is something there, or does a domain name it? Then it is spoken for, though there may be no file yet (or not any more).
pub fn is_taken(destination: &DestinationSurvey, path: &str) -> bool {
    destination.taken.contains(path) || destination.neighbours.iter().any(|neighbour| neighbour.paths.contains(path))
}

/// The directory of all TPMs' states on the destination, and whether it is still to be made there.
pub fn tpm_states(destination: &DestinationSurvey) -> (String, bool) {
    match destination.directories.get(places::TPM_STATES) {
        Some(states) => (states.path.clone(), false),
        None => (places::TPM_STATES.to_owned(), true),
    }
}
