//! The VM that has the clone's name already: what it is, which files are its own, and whether it is a clone of this source that
//! nobody has used since.

use std::collections::BTreeSet;

use journal_format::{FileStampV1, ImageRoleV1, SourceKindV1};

use super::accounts::Accounts;
use super::destination::directory;
use super::source::{Place, disk_images, place_of};
use super::{DirectoryFacts, SourceFile, SourceSurvey};
use crate::domain::metadata::{CloneMark, DiskMark, MarkState, definition_value};
use crate::domain::{Definition, DiskSource, DomainError, ImageMark, places};
use crate::reach::{Leaving, Reached};
use crate::request::{Occupied, Request};
use crate::steps::host_record::parent_of;
use crate::transfer::root_of;
use crate::world::{DomainFacts, DomainState, Fault, FileKind, Host};

/// The old VM.
#[derive(Debug, Clone)]
pub struct OldVm {
    /// As libvirt has it.
    pub vm: DomainFacts,
    /// Its definition, read.
    pub definition: Result<Definition, DomainError>,
    /// The files that are its own.
    pub files: Vec<OldFile>,
    /// Our mark on it.
    pub mark: Option<CloneMark>,
    /// Why it is not a clone of this source that is still what it was; `None`: it is. Only told where it was asked for.
    pub changed: Option<String>,
}

/// A file of the old VM.
#[derive(Debug, Clone)]
pub struct OldFile {
    /// What of it.
    pub role: ImageRoleV1,
    /// Its real path.
    pub path: String,
    /// What it looks like.
    pub stamp: FileStampV1,
    /// The directory beside or above it that takes a nonce.
    pub directory: Option<DirectoryFacts>,
    /// Who reaches it besides, or may, in words.
    pub reached: Option<String>,
}

impl OldFile {
    /// Why it is not to be deleted.
    pub fn why_left(&self, request: &Request) -> Option<String> {
        if request.keep_replaced {
            return Some("the old VM is kept".to_owned());
        }
        if let Some(reached) = &self.reached {
            return Some(reached.clone());
        }
        let Some(directory) = &self.directory else { return Some("its directory cannot be looked at".to_owned()) };
        let staging = directory.staging_parent;
        if directory.filesystem.network {
            return Some(format!("it is on a network filesystem ({})", directory.filesystem.kind));
        }
        if directory.filesystem.kind.starts_with("0x") {
            return Some(format!("it is on a filesystem of an unknown kind ({})", directory.filesystem.kind));
        }
        if directory.filesystem.read_only {
            return Some("its filesystem is mounted read-only".to_owned());
        }
        if staging.is_some_and(|staging| staging.kind != FileKind::Directory || staging.device != directory.stat.device)
        {
            return Some(format!("{}/.kvm-clone is no directory of ours", directory.path));
        }
        None
    }
}

/// The VM of that name, where the request may replace one.
pub(super) fn survey(
    host: &dyn Host,
    request: &Request,
    source: (&dyn Host, &SourceSurvey),
    name: &str,
) -> Result<Option<OldVm>, Fault> {
    if request.occupied == Occupied::Refuse {
        return Ok(None);
    }
    let Some(vm) = host.domain_named(name)? else { return Ok(None) };
    let mark = CloneMark::read(&vm.definition).ok().flatten().filter(|mark| mark.clone_uuid == vm.brief.uuid);
    let definition = Definition::parse(&vm.definition);
    let images = match &definition {
        Ok(definition) => disk_images(host, &Accounts::read(host)?, definition)?,
        Err(_) => Vec::new(),
    };
    let files = match &definition {
        Ok(definition) => files(host, &vm, definition, &images, mark.as_ref())?,
        Err(_) => Vec::new(),
    };
    let changed = match (request.occupied, &definition) {
        (Occupied::ReplaceIfChanged, Ok(definition)) => {
            changed(host, source, &vm, (definition, &images), mark.as_ref())?
        }
        (Occupied::ReplaceIfChanged, Err(error)) => Some(error.to_string()),
        (Occupied::Refuse | Occupied::Replace, _) => None,
    };
    Ok(Some(OldVm { vm, definition, files, mark, changed }))
}

/// Its writable, unshared disk images and what lies below them, its firmware variables and the state of its TPM.
fn files(
    host: &dyn Host,
    vm: &DomainFacts,
    definition: &Definition,
    images: &[SourceFile],
    mark: Option<&CloneMark>,
) -> Result<Vec<OldFile>, Fault> {
    let mut named: Vec<(ImageRoleV1, String)> = Vec::new();
    for disk in &definition.disks {
        if disk.is_own()
            && let Place::At(path, _) = place_of(host, disk)?
        {
            let role = ImageRoleV1::Disk { target: disk.target.clone() };
            let below = images.iter().filter(|file| file.role.is_below(&role));
            let below: Vec<_> =
                below.filter_map(|file| Some((file.role.clone(), file.image()?.path.clone()))).collect();
            named.push((role, path));
            named.extend(below);
        }
    }
    named.extend(definition.variables_path().map(|path| (ImageRoleV1::Nvram, path)));
    if let Some(version) = definition.tpm {
        let [_, inner] = places::tpm_directories(places::TPM_STATES, definition.uuid, version);
        for name in host.list(&inner)?.unwrap_or_default() {
            named.push((ImageRoleV1::Tpm, format!("{inner}/{name}")));
        }
    }
    if named.is_empty() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    let mut leaving = Leaving { vm: vm.brief.uuid, files: BTreeSet::new() };
    for (role, path) in named {
        let Some(path) = host.resolve(&path)? else { continue };
        let Some(stat) = host.stat(&path)?.filter(|stat| stat.kind == FileKind::File) else { continue };
        if leaving.files.insert(path.clone()) {
            found.push((role, path, stat));
        }
    }
    let reached = Reached::on(host, Some(&leaving))?;
    let mut files: Vec<OldFile> = Vec::new();
    for (role, path, stat) in found {
        // A TPM's own directories go with it: the nonce lies above them.
        let beside = if role == ImageRoleV1::Tpm { places::TPM_STATES } else { parent_of(&path) };
        let stamp = FileStampV1 { inode: stat.inode, size: stat.size, mtime_ns: stat.mtime_ns };
        let stays = files.iter().find(|file| file.reached.is_some() && role.is_below(&file.role));
        let stays = stays.map(|file| format!("{} stands on it", file.path));
        // What lies below may be what new VMs are made from. Only one that came with a clone is that clone's own.
        let template = (matches!(role, ImageRoleV1::Layer { .. }) && !came_with(mark, &role, stamp))
            .then(|| "it lies below the VM's own image, and may be a template of others".to_owned());
        files.push(OldFile {
            directory: directory(host, beside)?,
            reached: reached.by(&path)?.or(stays).or(template),
            stamp,
            role,
            path,
        });
    }
    Ok(files)
}

/// Was it copied when that clone was made, and is it that file as it was then?
fn came_with(mark: Option<&CloneMark>, role: &ImageRoleV1, stamp: FileStampV1) -> bool {
    let role = role.to_string();
    let copied = mark.and_then(|mark| mark.disks.iter().find(|disk| disk.target == role));
    copied.is_some_and(|disk| {
        let is_that_file = disk.inode.is_none_or(|inode| inode == stamp.inode);
        is_that_file && (disk.clone.size, disk.clone.mtime_ns) == (stamp.size, stamp.mtime_ns)
    })
}

/// Why source and clone are not both what they were when the clone was finished, in words.
fn changed(
    host: &dyn Host,
    (source_host, source): (&dyn Host, &SourceSurvey),
    vm: &DomainFacts,
    (definition, images): (&Definition, &[SourceFile]),
    mark: Option<&CloneMark>,
) -> Result<Option<String>, Fault> {
    let Some(mark) = mark.filter(|mark| {
        mark.state == MarkState::Finished
            && mark.source_uuid == source.vm.brief.uuid
            && mark.source_machine_id == source.host.machine_id
    }) else {
        return Ok(Some("it is no finished clone of this VM".to_owned()));
    };
    if vm.brief.state != DomainState::ShutOff {
        return Ok(Some("it is running".to_owned()));
    }
    let roles: BTreeSet<String> = source.files.iter().map(|file| file.role.to_string()).collect();
    // What it stands on and what would be copied now may differ: it is the same clone in the end.
    let marked = || mark.disks.iter().chain(&mark.bases);
    if roles != marked().map(|disk| disk.target.clone()).collect() {
        return Ok(Some("it was made of other files than would be copied now".to_owned()));
    }
    let snapshots = source.snapshots.iter().map(|one| (one.facts.definition.as_str(), one.facts.current));
    if mark.source_definition.is_some_and(|was| was != definition_value(&source.vm.definition, snapshots)) {
        return Ok(Some("the source's definition or one of its snapshots was changed since".to_owned()));
    }
    for file in &source.files {
        let role = file.role.to_string();
        let Some(marked) = marked().find(|disk| disk.target == role) else { continue };
        if !source_is_still(source_host, file, marked)? {
            return Ok(Some(format!("{} of the source was written to since", file.what())));
        }
        let path = path_in_clone(definition, images, file).map_or(Ok(None), |path| host.resolve(&path))?;
        if !is_still(host, path, marked, marked.clone)? {
            return Ok(Some(format!("{} of the clone was written to since", file.what())));
        }
    }
    Ok(None)
}

/// Where the clone has what this file of the source is. `None`: that cannot be told.
fn path_in_clone(definition: &Definition, images: &[SourceFile], file: &SourceFile) -> Option<String> {
    match &file.role {
        ImageRoleV1::Disk { target } | ImageRoleV1::Medium { target } => {
            let disk = definition.disks.iter().find(|disk| disk.target == *target)?;
            match &disk.source {
                DiskSource::File(path) | DiskSource::Device(path) => Some(path.clone()),
                // A clone's own disks are files or devices: whoever changed that has changed the clone.
                DiskSource::Empty | DiskSource::Volume { .. } | DiskSource::Elsewhere { .. } => None,
            }
        }
        ImageRoleV1::Nvram => definition.variables_path(),
        ImageRoleV1::Tpm => Some(places::tpm_state(places::TPM_STATES, definition.uuid, definition.tpm?)),
        role @ ImageRoleV1::Layer { .. } => Some(images.iter().find(|image| image.role == *role)?.path.clone()),
    }
}

/// Is a file of the source what it was, all layers of one that is flattened?
fn source_is_still(host: &dyn Host, file: &SourceFile, marked: &DiskMark) -> Result<bool, Fault> {
    let path = file.image().map(|image| image.path.clone());
    if file.flattened.is_empty() {
        return is_still(host, path, marked, marked.source.image);
    }
    let (Some(path), Some(stamp)) = (path, file.stamp()) else { return Ok(false) };
    let was = marked.source.image;
    if stamp.size != was.size {
        return Ok(false);
    }
    let is_untouched = file.source_kind() == SourceKindV1::File && stamp.mtime_ns == was.mtime_ns;
    Ok(is_untouched || root_of(host, &path, file.below_it(), stamp.size)? == marked.source.root)
}

/// Is a file what it was: by size and time, or else byte for byte?
fn is_still(host: &dyn Host, path: Option<String>, marked: &DiskMark, was: ImageMark) -> Result<bool, Fault> {
    let Some(path) = path else { return Ok(false) };
    let Some(stat) = host.stat(&path)? else { return Ok(false) };
    if !matches!(stat.kind, FileKind::File | FileKind::BlockDevice) || stat.size != was.size {
        return Ok(false);
    }
    // The time of a device's node says nothing of its bytes.
    let is_untouched = stat.kind == FileKind::File && stat.mtime_ns == was.mtime_ns;
    Ok(is_untouched || root_of(host, &path, Vec::new(), marked.source.image.size)? == marked.source.root)
}
