//! Where the clone's disks go: which directory of the destination, and which name in it. Pure; preflight and plan ask
//! the same questions here and so cannot disagree.

use std::collections::BTreeSet;

use journal_format::{ImageFormat, TxnId};

use crate::domain::DomainName;
use crate::request::{Request, Target};
use crate::steps::host_record::parent_of;
use crate::survey::{DestinationSurvey, DirectoryFacts, PoolSurvey, SourceDisk};

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

/// A name in a directory.
pub fn join(directory: &str, name: &str) -> String {
    if directory == "/" { format!("/{name}") } else { format!("{directory}/{name}") }
}

/// The paths that the survey has to look at, for one disk of this path on the source.
pub fn candidate_directories(request: &Request, pools: &[PoolSurvey], source_path: &str) -> BTreeSet<String> {
    let pool_path = |name: &str| find_pool(pools, name).and_then(|pool| pool.facts.path.clone());
    match &request.target {
        Target::LikeSource => {
            [Some(parent_of(source_path).to_owned()), pool_path(DEFAULT_POOL)].into_iter().flatten().collect()
        }
        Target::Pool(name) => pool_path(name).into_iter().collect(),
        Target::Directory(path) => BTreeSet::from([path.clone()]),
    }
}

/// The directory for one disk.
pub fn directory_for<'a>(
    request: &Request,
    destination: &'a DestinationSurvey,
    disk: &SourceDisk,
) -> Result<&'a DirectoryFacts, NoDirectory> {
    let known = |path: &str| destination.directories.get(path);
    let missing = |path: &str| NoDirectory::Missing { directory: path.to_owned() };
    match &request.target {
        Target::Directory(path) => known(path).ok_or_else(|| missing(path)),
        Target::Pool(name) => {
            let path = pool_directory(&destination.pools, name)?;
            known(path).ok_or_else(|| missing(path))
        }
        Target::LikeSource => {
            let like_source = parent_of(&disk.path);
            known(like_source)
                .or_else(|| pool_directory(&destination.pools, DEFAULT_POOL).ok().and_then(known))
                .ok_or_else(|| NoDirectory::LikeSource { directory: like_source.to_owned() })
        }
    }
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

/// The file name that a disk of the clone should have: `<clone>-<target>.<extension>`.
pub fn preferred_name(new_name: &DomainName, target: &str, format: ImageFormat) -> String {
    format!("{new_name}-{target}.{}", extension(format))
}

/// The final path of a disk in this (real) directory: the preferred name, or where that is taken one with the
/// transaction's last digits.
pub fn final_path(
    new_name: &DomainName,
    txn: TxnId,
    destination: &DestinationSurvey,
    directory: &DirectoryFacts,
    disk: &SourceDisk,
) -> String {
    let preferred = join(&directory.path, &preferred_name(new_name, &disk.target, disk.format));
    // A path that a domain names is spoken for, though there may be no file yet (or not any more).
    let spoken_for = destination.neighbours.iter().any(|neighbour| neighbour.paths.contains(&preferred));
    if destination.taken.contains(&preferred) || spoken_for {
        join(&directory.path, &new_name.disk_file(&disk.target, txn, extension(disk.format)))
    } else {
        preferred
    }
}
