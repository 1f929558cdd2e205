//! Images at the bottom of the source's chains that the destination has already, byte for byte: the clone can stand on those as
//! they are.

use std::collections::BTreeSet;

use journal_format::{ChunkValue, FileStampV1, ImageRoleV1, Inode};

use super::{Below, DestinationSurvey, ImageFacts, SourceFile, SourceSurvey};
use crate::domain::qcow2::HEADER_READ_BYTES;
use crate::domain::{Definition, DiskSource, SnapshotDefinition};
use crate::request::{Chain, Occupied, Request};
use crate::steps::host_record::parent_of;
use crate::survey::placement;
use crate::transfer::root_of;
use crate::world::{DomainFacts, Fault, FileKind, FileStat, Host, readable};

/// Such an image on the destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseFacts {
    /// What of the source VM has the same bytes.
    pub role: ImageRoleV1,
    /// Its real path.
    pub path: String,
    /// Inode of the directory that holds it.
    pub directory: Inode,
    /// What it looked like before it was read.
    pub stamp: FileStampV1,
    /// Plain BLAKE3 of both.
    pub root: ChunkValue,
}

/// Looks for them where the source has them, and where they would be copied to: under the same name. Both are read whole where
/// one may be the same, and only there. What cannot be told of a file is a reason not to use it.
pub(super) fn bases(
    host: &dyn Host,
    (source_host, source): (&dyn Host, &SourceSurvey),
    request: &Request,
    destination: &DestinationSurvey,
) -> Result<Vec<BaseFacts>, Fault> {
    let nothing_to_do = request.occupied == Occupied::ReplaceIfChanged
        && destination.old.as_ref().is_some_and(|old| old.changed.is_none());
    // On one machine it could only be the source's own, which no clone is to depend on.
    if request.chain != Chain::Share || nothing_to_do || source.host.machine_id == destination.host.machine_id {
        return Ok(Vec::new());
    }
    let lowest: Vec<_> = source.files.iter().filter_map(lowest_image).collect();
    let disks = if lowest.is_empty() { None } else { disks_of_vms(host, destination)? };
    let Some(disks) = disks else { return Ok(Vec::new()) };
    let mut found: Vec<BaseFacts> = Vec::new();
    for (file, image) in lowest {
        let mut root = None;
        for path in candidates(request, destination, file, image) {
            let Some((path, stat)) = alike(host, request, destination, image, &path)? else { continue };
            if disks.contains(&path) {
                continue;
            }
            // One image is below one disk's chain only: under two names nobody would know it again.
            if found.iter().any(|base| base.path == path) || source_host.filesystem(&image.path)?.network {
                continue;
            }
            let bytes = image.stat.size;
            let of_source = root.map_or_else(|| root_of(source_host, &image.path, Vec::new(), bytes), Ok)?;
            root = Some(of_source);
            if readable(root_of(host, &path, Vec::new(), bytes))? == Some(of_source) {
                let stamp = FileStampV1 { inode: stat.inode, size: stat.size, mtime_ns: stat.mtime_ns };
                let Some(directory) = host.stat(parent_of(&path))?.map(|stat| stat.inode) else { continue };
                found.push(BaseFacts { role: file.role.clone(), path, directory, stamp, root: of_source });
                break;
            }
        }
    }
    Ok(found)
}

/// What stands on something itself names that by a path, which leads elsewhere on another host.
fn lowest_image(file: &SourceFile) -> Option<(&SourceFile, &ImageFacts)> {
    let is_lowest = matches!(file.role, ImageRoleV1::Layer { .. }) && file.below == Below::Nothing;
    let image = file.image().filter(|image| is_lowest && image.stat.kind == FileKind::File)?;
    Some((file, image))
}

/// Paths on the destination, each once.
fn candidates(
    request: &Request,
    destination: &DestinationSurvey,
    file: &SourceFile,
    image: &ImageFacts,
) -> BTreeSet<String> {
    let name = image.path.rsplit_once('/').map_or(image.path.as_str(), |(_, name)| name);
    let directories = placement::candidate_directories(request, &destination.pools, file);
    let beside = directories.iter().filter_map(|directory| destination.directories.get(directory));
    let mut paths: BTreeSet<_> = beside.map(|directory| placement::join(&directory.path, name)).collect();
    paths.extend([image.path.clone(), file.path.clone()]);
    paths
}

/// The real path and the stat of what may be the same image, by all that can be seen without reading it whole: nobody writes to
/// it, no transaction stages it, and no other host may have it too.
fn alike(
    host: &dyn Host,
    request: &Request,
    destination: &DestinationSurvey,
    image: &ImageFacts,
    path: &str,
) -> Result<Option<(String, FileStat)>, Fault> {
    let Some(path) = readable(host.resolve(path))?.flatten() else { return Ok(None) };
    let Some(stat) = host.stat(&path)? else { return Ok(None) };
    if stat.kind != FileKind::File || stat.size != image.stat.size || stat.links != 1 {
        return Ok(None);
    }
    // The source's own, which its host sees by another way than a network filesystem.
    if (stat.inode, stat.mtime_ns) == (image.stat.inode, image.stat.mtime_ns) {
        return Ok(None);
    }
    let filesystem = host.filesystem(&path)?;
    if filesystem.network || filesystem.kind.starts_with("0x") {
        return Ok(None);
    }
    let of_old = destination.old.iter().flat_map(|old| &old.files).find(|file| file.path == path);
    let is_deleted = of_old.is_some_and(|file| file.why_left(request).is_none());
    if is_deleted {
        return Ok(None);
    }
    let head = readable(host.read(&path, HEADER_READ_BYTES as u64))?.flatten();
    Ok((head.as_ref() == Some(&image.head)).then_some((path, stat)))
}

/// Real paths of what VMs have as a disk, rather than below one: as they are defined, as they run, or as they were when a snapshot
/// was made. `None`: that cannot be told.
fn disks_of_vms(host: &dyn Host, destination: &DestinationSurvey) -> Result<Option<BTreeSet<String>>, Fault> {
    let mut disks = BTreeSet::new();
    for brief in host.domains()? {
        let Some(facts) = host.domain(brief.uuid)? else { continue };
        let Some(definitions) = definitions_of(host, &facts)? else { return Ok(None) };
        for disk in definitions.iter().flat_map(|definition| &definition.disks) {
            let named = match &disk.source {
                DiskSource::File(named) | DiskSource::Device(named) => named.clone(),
                DiskSource::Volume { pool, volume } => {
                    let known = destination.pools.iter().find(|known| known.facts.name == *pool);
                    match known.and_then(|known| known.facts.path.as_ref()) {
                        Some(directory) => placement::join(directory, volume),
                        None => continue,
                    }
                }
                DiskSource::Empty | DiskSource::Elsewhere { .. } => continue,
            };
            match readable(host.resolve(&named))? {
                Some(real) => disks.extend(real),
                None => return Ok(None),
            }
        }
    }
    Ok(Some(disks))
}

/// Every definition that there is of a VM; `None`: one cannot be read.
fn definitions_of(host: &dyn Host, facts: &DomainFacts) -> Result<Option<Vec<Definition>>, Fault> {
    let mut definitions = Vec::new();
    for text in std::iter::once(facts.definition.clone()).chain(host.live_definition(facts.brief.uuid)?) {
        let Ok(definition) = Definition::parse(&text) else { return Ok(None) };
        definitions.push(definition);
    }
    if facts.snapshots > 0 {
        for snapshot in host.snapshots(facts.brief.uuid)? {
            let Ok(document) = SnapshotDefinition::parse(&snapshot.definition) else { return Ok(None) };
            definitions.extend(document.definitions().cloned());
        }
    }
    Ok(Some(definitions))
}
