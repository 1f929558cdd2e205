//! The source's half of the survey.

use super::accounts::Accounts;
use super::neighbours::neighbours;
use super::{ImageFacts, SourceDisk, SourceImage, SourceSurvey, SurveyError};
use journal_format::ImageFormat;

use crate::domain::qcow2::HEADER_READ_BYTES;
use crate::domain::{Definition, Disk};
use crate::request::{Request, VmSelector};
use crate::world::{DomainFacts, Fault, FaultKind, FileKind, Host};

pub(super) fn survey(host: &dyn Host, request: &Request) -> Result<SourceSurvey, SurveyError> {
    let vm = find_vm(host, &request.vm)?;
    let definition = Definition::parse(&vm.definition).map_err(|source| SurveyError::Definition {
        host: host.name(),
        vm: vm.brief.name.clone(),
        source,
    })?;
    let accounts = Accounts::read(host)?;
    let disks = definition
        .images()
        .filter_map(|disk| Some((disk, disk.image()?, disk.image_format()?)))
        .map(|(disk, path, format)| look_at_disk(host, &accounts, disk, path, format))
        .collect::<Result<_, Fault>>()?;
    Ok(SourceSurvey { name: host.name(), host: host.facts()?, vm, definition, disks, neighbours: neighbours(host)? })
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

fn look_at_disk(
    host: &dyn Host,
    accounts: &Accounts,
    disk: &Disk,
    path: &str,
    format: ImageFormat,
) -> Result<SourceDisk, Fault> {
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
    Ok(SourceDisk { index: disk.index, target: disk.target.clone(), format, path: path.to_owned(), image })
}

/// What is behind a path; `None` when nothing is.
fn look_at_image(host: &dyn Host, accounts: &Accounts, path: &str) -> Result<Option<ImageFacts>, Fault> {
    let Some(path) = host.resolve(path)? else { return Ok(None) };
    let Some(stat) = host.stat(&path)? else { return Ok(None) };
    let head = match stat.kind {
        FileKind::File => host.read(&path, HEADER_READ_BYTES as u64)?,
        _ => Some(Vec::new()),
    };
    let Some(head) = head else { return Ok(None) };
    Ok(Some(ImageFacts { owner: accounts.owner(&stat), path, stat, head }))
}
