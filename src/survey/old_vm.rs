//! The VM that has the clone's name already: what it is, which files are its own, and whether it is a clone of this source that
//! nobody has used since.

use std::collections::BTreeSet;

use journal_format::{FileStampV1, ImageRoleV1};

use super::destination::directory;
use super::firmware::root_of;
use super::{DirectoryFacts, SourceFile, SourceSurvey};
use crate::domain::metadata::{CloneMark, DiskMark, MarkState};
use crate::domain::{Definition, DiskDevice, DiskSource, DomainError, ImageMark, places};
use crate::reach::Reached;
use crate::request::{Occupied, Request};
use crate::steps::host_record::parent_of;
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
    /// A disk's target name, `nvram` or `tpm`.
    pub role: String,
    /// Its real path.
    pub path: String,
    /// What it looks like.
    pub stamp: FileStampV1,
    /// It is a disk's image.
    pub is_image: bool,
    /// The directory beside or above it that takes a nonce.
    pub directory: Option<DirectoryFacts>,
    /// Who reaches it besides, in words.
    pub reached: Option<String>,
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
    let files = definition.as_ref().map_or_else(|_| Ok(Vec::new()), |definition| files(host, &vm, definition))?;
    let changed = match (request.occupied, &definition) {
        (Occupied::ReplaceIfChanged, Ok(definition)) => changed(host, source, &vm, definition, mark.as_ref())?,
        (Occupied::ReplaceIfChanged, Err(error)) => Some(error.to_string()),
        (Occupied::Refuse | Occupied::Replace, _) => None,
    };
    Ok(Some(OldVm { vm, definition, files, mark, changed }))
}

/// Its writable, unshared disk images, its firmware variables and the state of its TPM.
fn files(host: &dyn Host, vm: &DomainFacts, definition: &Definition) -> Result<Vec<OldFile>, Fault> {
    let mut named: Vec<(String, String, bool)> = Vec::new();
    for disk in &definition.disks {
        if let (DiskDevice::Disk, DiskSource::File(path)) = (&disk.device, &disk.source)
            && !disk.readonly
            && !disk.shareable
        {
            named.push((disk.target.clone(), path.clone(), true));
        }
    }
    named.extend(definition.variables_path().map(|path| ("nvram".to_owned(), path, false)));
    if let Some(version) = definition.tpm {
        let [_, inner] = places::tpm_directories(places::TPM_STATES, definition.uuid, version);
        for name in host.list(&inner)?.unwrap_or_default() {
            named.push(("tpm".to_owned(), format!("{inner}/{name}"), false));
        }
    }
    if named.is_empty() {
        return Ok(Vec::new());
    }
    let reached = Reached::on(host, Some(vm.brief.uuid))?;
    let mut files = Vec::new();
    let mut seen = BTreeSet::new();
    for (role, path, is_image) in named {
        let Some(path) = host.resolve(&path)? else { continue };
        let Some(stat) = host.stat(&path)?.filter(|stat| stat.kind == FileKind::File) else { continue };
        if !seen.insert(path.clone()) {
            continue;
        }
        // A TPM's own directories go with it: the nonce lies above them.
        let beside = if role == "tpm" { places::TPM_STATES } else { parent_of(&path) };
        files.push(OldFile {
            directory: directory(host, beside)?,
            reached: reached.by(&path)?,
            stamp: FileStampV1 { inode: stat.inode, size: stat.size, mtime_ns: stat.mtime_ns },
            role,
            path,
            is_image,
        });
    }
    Ok(files)
}

/// Why source and clone are not both what they were when the clone was finished, in words.
fn changed(
    host: &dyn Host,
    (source_host, source): (&dyn Host, &SourceSurvey),
    vm: &DomainFacts,
    definition: &Definition,
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
    if roles != mark.disks.iter().map(|disk| disk.target.clone()).collect() {
        return Ok(Some("the source has other disks now".to_owned()));
    }
    for file in &source.files {
        let role = file.role.to_string();
        let Some(marked) = mark.disks.iter().find(|disk| disk.target == role) else { continue };
        let image = file.image().map(|image| image.path.clone());
        if !is_still(source_host, image, marked, marked.source.image)? {
            return Ok(Some(format!("{} of the source was written to since", file.what())));
        }
        let path = path_in_clone(definition, file).map_or(Ok(None), |path| host.resolve(&path))?;
        if !is_still(host, path, marked, marked.clone)? {
            return Ok(Some(format!("{} of the clone was written to since", file.what())));
        }
    }
    Ok(None)
}

/// Where the clone has what this file of the source is. `None`: that cannot be told.
fn path_in_clone(definition: &Definition, file: &SourceFile) -> Option<String> {
    match &file.role {
        ImageRoleV1::Disk { target } | ImageRoleV1::Medium { target } => {
            let disk = definition.disks.iter().find(|disk| disk.target == *target)?;
            match &disk.source {
                DiskSource::File(path) => Some(path.clone()),
                DiskSource::Empty | DiskSource::Device(_) | DiskSource::Elsewhere { .. } => None,
            }
        }
        ImageRoleV1::Nvram => definition.variables_path(),
        ImageRoleV1::Tpm => Some(places::tpm_state(places::TPM_STATES, definition.uuid, definition.tpm?)),
        ImageRoleV1::Layer { .. } => None,
    }
}

/// Is a file what it was: by size and time, or else byte for byte?
fn is_still(host: &dyn Host, path: Option<String>, marked: &DiskMark, was: ImageMark) -> Result<bool, Fault> {
    let Some(path) = path else { return Ok(false) };
    let Some(stat) = host.stat(&path)?.filter(|stat| stat.kind == FileKind::File) else { return Ok(false) };
    if stat.size != was.size {
        return Ok(false);
    }
    Ok(stat.mtime_ns == was.mtime_ns || root_of(host, &path, stat.size)? == marked.source.root)
}
