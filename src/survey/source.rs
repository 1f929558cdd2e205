//! The source's half of the survey.

use std::collections::{BTreeMap, BTreeSet};

use super::accounts::Accounts;
use super::destination::swtpm;
use super::neighbours::neighbours;
use super::{Below, DirectoryAttributes, ImageFacts, NamedAs, SourceFile, SourceImage, SourceSurvey, SurveyError};
use super::{chain, firmware, snapshots, words_of_refusal};
use journal_format::{ImageFormat, ImageRoleV1};

use crate::domain::qcow2::{HEADER_READ_BYTES, Header};
use crate::domain::{Definition, Disk, DiskSource, Variables, leave_behind, places};
use crate::request::{Chain, Request, TpmState, VmSelector};
use crate::world::{DomainFacts, DomainState, Fault, FaultKind, FileKind, Host, ImageCheck};

pub(super) fn survey(host: &dyn Host, request: &Request) -> Result<SourceSurvey, SurveyError> {
    let vm = find_vm(host, &request.vm)?;
    let read = Definition::parse(&vm.definition).and_then(|whole| leave_behind(&whole, &request.dropped));
    let (definition, left_behind) =
        read.map_err(|source| SurveyError::Definition { host: host.name(), vm: vm.brief.name.clone(), source })?;
    let accounts = Accounts::read(host)?;
    let mut files = disk_images(host, &accounts, &definition)?;
    if request.chain == Chain::Flatten {
        files = chain::flattened(&files);
    }
    for disk in definition.media().filter(|_| request.copy_media) {
        let Some(path) = disk.medium() else { continue };
        let named_as = if matches!(disk.source, DiskSource::Device(_)) { NamedAs::Device } else { NamedAs::File };
        let role = ImageRoleV1::Medium { target: disk.target.clone() };
        // A medium without a format is raw, as a CD is.
        let format = disk.image_format().unwrap_or(ImageFormat::Raw);
        files.push(look_at_file(host, &accounts, role, Some(disk.index), (path, named_as), format)?);
    }
    // A VM that was never started has neither of these files yet; libvirt makes them then, as it will for the clone.
    let is_there = |file: &SourceFile| !matches!(file.image, SourceImage::Missing);
    if let Some(Variables { path, format }) = &definition.os.variables {
        let path = path.clone().unwrap_or_else(|| places::variables(&vm.brief.name, *format));
        let file = look_at_file(host, &accounts, ImageRoleV1::Nvram, None, (&path, NamedAs::File), *format)?;
        files.extend(Some(file).filter(is_there));
    }
    let firmware = match &definition.os.variables {
        Some(_) => match words_of_refusal(host.native_command(definition.text()))? {
            Ok(command) => firmware::look(host, &command)?,
            Err(_) => None,
        },
        None => None,
    };
    let mut tpm_directories = Vec::new();
    if let Some(version) = definition.tpm.filter(|_| request.tpm == TpmState::Copy) {
        let path = places::tpm_state(places::TPM_STATES, definition.uuid, version);
        let file = look_at_file(host, &accounts, ImageRoleV1::Tpm, None, (&path, NamedAs::File), ImageFormat::Raw)?;
        if is_there(&file) {
            files.push(file);
            tpm_directories = places::tpm_directories(places::TPM_STATES, definition.uuid, version)
                .iter()
                .map(|path| directory_attributes(host, &accounts, path))
                .collect::<Result<_, Fault>>()?;
        }
    }
    let checks = if vm.brief.state == DomainState::ShutOff { checks(host, &files)? } else { BTreeMap::new() };
    Ok(SourceSurvey {
        name: host.name(),
        host: host.facts()?,
        swtpm: swtpm(host, &definition)?,
        checks,
        snapshots: snapshots::snapshots(host, &vm, &request.dropped)?,
        vm,
        definition,
        left_behind,
        files,
        firmware,
        tpm_directories,
        neighbours: neighbours(host)?,
    })
}

/// The images of a definition's disks, and behind them every image below one of them.
pub(super) fn disk_images(
    host: &dyn Host,
    accounts: &Accounts,
    definition: &Definition,
) -> Result<Vec<SourceFile>, Fault> {
    let mut files = Vec::new();
    for disk in definition.images() {
        let Some(format) = disk.image_format() else { continue };
        let role = ImageRoleV1::Disk { target: disk.target.clone() };
        files.push(match place_of(host, disk)? {
            Place::At(path, named_as) => {
                look_at_file(host, accounts, role, Some(disk.index), (&path, named_as), format)?
            }
            Place::Unknown(path, image) => {
                let (index, below, named_as) = (Some(disk.index), Below::Nothing, NamedAs::Volume);
                SourceFile { role, index, format, path, image, below, named_as, flattened: Vec::new() }
            }
        });
    }
    for top in 0..files.len() {
        let disk = definition.disks.iter().find(|disk| Some(disk.index) == files[top].index);
        let written = disk.and_then(|disk| disk.chain.as_deref());
        chain::follow(host, accounts, &mut files, top, written)?;
    }
    Ok(files)
}

/// Where a disk's image is.
pub(super) enum Place {
    At(String, NamedAs),
    /// The host's libvirt knows no path of it: the volume in words, and what is there instead.
    Unknown(String, SourceImage),
}

/// Where the image of such a disk is. What a pool's volume is, its host's libvirt says.
pub(super) fn place_of(host: &dyn Host, disk: &Disk) -> Result<Place, Fault> {
    Ok(match &disk.source {
        DiskSource::File(path) => Place::At(path.clone(), NamedAs::File),
        DiskSource::Device(path) => Place::At(path.clone(), NamedAs::Device),
        DiskSource::Volume { pool, volume } => {
            let unknown = |image| Place::Unknown(format!("the volume {volume} of pool {pool}"), image);
            match words_of_refusal(host.volume_path(pool, volume))? {
                Ok(Some(path)) if path.starts_with('/') => Place::At(path, NamedAs::Volume),
                Ok(Some(path)) => unknown(SourceImage::Unreadable(format!("it is {path}, which is no file or device"))),
                Ok(None) => unknown(SourceImage::Missing),
                Err(words) => unknown(SourceImage::Unreadable(words)),
            }
        }
        DiskSource::Empty | DiskSource::Elsewhere { .. } => {
            Place::Unknown("what is no image".to_owned(), SourceImage::Missing)
        }
    })
}

/// Whether the tables of the qcow2 images are whole. Of one that a guest writes to nobody could say.
fn checks(host: &dyn Host, files: &[SourceFile]) -> Result<BTreeMap<String, ImageCheck>, Fault> {
    let layers = || files.iter().flat_map(SourceFile::layers);
    // The tool opens what lies below as well: nothing that has just been refused.
    if layers().any(|file| matches!(file.below, Below::Refused(_))) {
        return Ok(BTreeMap::new());
    }
    let images = layers().filter(|file| file.format == ImageFormat::Qcow2).filter_map(SourceFile::image);
    // A base of two disks is looked at once.
    let paths: BTreeSet<_> =
        images.filter(|image| Header::read(&image.head).is_ok()).map(|image| &image.path).collect();
    paths.into_iter().map(|path| Ok((path.clone(), host.check_qcow2(path)?))).collect()
}

fn directory_attributes(host: &dyn Host, accounts: &Accounts, path: &str) -> Result<DirectoryAttributes, Fault> {
    let stat = host.stat(path)?.ok_or_else(|| Fault {
        kind: FaultKind::NotFound,
        host: host.name(),
        operation: format!("stat {path}"),
        detail: "it was there a moment ago".to_owned(),
    })?;
    Ok(DirectoryAttributes { mode: stat.mode & 0o7777, owner: accounts.owner(&stat) })
}

/// The VM that was asked for. A text that is no UUID's never means one.
fn find_vm(host: &dyn Host, selector: &VmSelector) -> Result<DomainFacts, SurveyError> {
    let found = match selector {
        VmSelector::Name(name) => host.domain_named(name)?,
        VmSelector::Uuid(uuid) => host.domain(*uuid)?,
    };
    if let Some(vm) = found {
        return Ok(vm);
    }
    let known = host.domains()?.into_iter().map(|brief| brief.name).collect();
    Err(SurveyError::NoSuchVm { host: host.name(), vm: selector.clone(), known })
}

pub(super) fn look_at_file(
    host: &dyn Host,
    accounts: &Accounts,
    role: ImageRoleV1,
    index: Option<usize>,
    (path, named_as): (&str, NamedAs),
    format: ImageFormat,
) -> Result<SourceFile, Fault> {
    let image = match look_at_image(host, accounts, path) {
        Ok(Some(facts)) => SourceImage::Readable(facts),
        Ok(None) => SourceImage::Missing,
        Err(fault) => match fault.kind {
            // No answer about the file.
            FaultKind::Unreachable
            | FaultKind::TimedOut
            | FaultKind::Interrupted
            | FaultKind::LibvirtDown
            | FaultKind::Fenced
            | FaultKind::Unusable => return Err(fault),
            _ => SourceImage::Unreadable(fault.detail),
        },
    };
    let (path, below, flattened) = (path.to_owned(), Below::Nothing, Vec::new());
    Ok(SourceFile { role, index, format, path, image, below, named_as, flattened })
}

/// What is behind a path; `None` when nothing is.
fn look_at_image(host: &dyn Host, accounts: &Accounts, path: &str) -> Result<Option<ImageFacts>, Fault> {
    let Some(path) = host.resolve(path)? else { return Ok(None) };
    let Some(mut stat) = host.stat(&path)? else { return Ok(None) };
    if stat.kind == FileKind::BlockDevice {
        // What of a device holds data nobody says: any of it may.
        stat.allocated = stat.size;
    }
    let head = match stat.kind {
        FileKind::File | FileKind::BlockDevice => host.read(&path, HEADER_READ_BYTES as u64)?,
        _ => Some(Vec::new()),
    };
    let Some(head) = head else { return Ok(None) };
    Ok(Some(ImageFacts { owner: accounts.owner(&stat), path, stat, head }))
}
