//! Can libvirt's snapshots of the VM be carried? What they hold of the disks is inside the disks' images; what libvirt knows of them
//! must fit the VM as it is now.

use std::collections::BTreeSet;

use journal_format::{ImageFormat, ImageRoleV1};

use super::{BlockerKind, Report, WarningKind};
use crate::domain::snapshot::Kept;
use crate::domain::{Definition, DiskDevice, DiskSource, SnapshotDefinition, uncarried};
use crate::shell::shell_word;
use crate::survey::Survey;

/// What all snapshots' documents may have together: the plan holds each twice, and is read in one piece.
const SNAPSHOTS_BYTES_MAX: usize = 1 << 20;
/// libvirt writes `NAME.xml.new`, and a file name has at most 255 bytes.
const NAME_BYTES_MAX: usize = 255 - ".xml.new".len();

pub(super) fn check(report: &mut Report, survey: &Survey) {
    let (vm, host) = (&survey.source.vm.brief.name, survey.source.name.as_str());
    let mut known = BTreeSet::new();
    for snapshot in &survey.source.snapshots {
        let name = &snapshot.facts.name;
        let mut block = |what: String| {
            report.block(
                BlockerKind::Snapshots,
                host,
                format!("{host}: snapshot {name} of VM {vm} cannot be carried: {what}."),
                format!(
                    "Delete it if it is not needed (`virsh snapshot-delete {} {}`).",
                    shell_word(vm),
                    shell_word(name)
                ),
            );
        };
        match &snapshot.document {
            Ok(document) => {
                problems(survey, document).into_iter().for_each(&mut block);
                if document.parent.as_ref().is_some_and(|parent| !known.contains(parent)) {
                    block("the snapshot that it stands on is not there".to_owned());
                }
                media(report, survey, document);
                if document.memory == Kept::Internally {
                    warn_of_memory(report, survey, name);
                }
            }
            Err(error) => block(format!("its document cannot be read: {error}")),
        }
        known.insert(name.clone());
    }
    let bytes: usize = survey.source.snapshots.iter().map(|snapshot| snapshot.facts.definition.len()).sum();
    if bytes > SNAPSHOTS_BYTES_MAX {
        report.block(
            BlockerKind::Snapshots,
            host,
            format!(
                "{host}: VM {vm} has {} snapshots, whose documents have {bytes} bytes together, more than the {SNAPSHOTS_BYTES_MAX} that are carried.",
                survey.source.snapshots.len()
            ),
            format!("Delete those that are not needed (`virsh snapshot-list {}`).", shell_word(vm)),
        );
    }
}

/// Why a snapshot cannot be carried.
fn problems(survey: &Survey, snapshot: &SnapshotDefinition) -> Vec<String> {
    let mut found = Vec::new();
    if snapshot.name.contains('/') || snapshot.name.starts_with('.') || snapshot.name.len() > NAME_BYTES_MAX {
        found.push("libvirt makes no file of its name".to_owned());
    }
    if snapshot.memory == Kept::Elsewhere {
        found.push("it is external: its memory is in a file of its own".to_owned());
    }
    let held = |target: &String| {
        let role = ImageRoleV1::Disk { target: target.clone() };
        survey.source.files.iter().any(|file| file.role == role && file.format == ImageFormat::Qcow2)
    };
    for (target, kept) in &snapshot.disks {
        match kept {
            Kept::Nowhere => {}
            Kept::Elsewhere => found.push(format!("it is external: what was on disk {target} is in another image")),
            Kept::Internally if held(target) => {}
            Kept::Internally => found.push(format!("disk {target} is no qcow2 image that is copied, and cannot hold it")),
        }
    }
    for definition in snapshot.definitions() {
        found.extend(problems_of_definition(survey, definition));
    }
    found.sort();
    found.dedup();
    found
}

fn problems_of_definition(survey: &Survey, definition: &Definition) -> Vec<String> {
    let now = &survey.source.definition;
    let mut found = Vec::new();
    for disk in definition.images().filter(|disk| !now.images().any(|own| own.source == disk.source)) {
        let what = match &disk.source {
            DiskSource::File(path) | DiskSource::Device(path) => path.clone(),
            DiskSource::Volume { pool, volume } => format!("the volume {volume} of pool {pool}"),
            DiskSource::Empty | DiskSource::Elsewhere { .. } => "no image".to_owned(),
        };
        found.push(format!("its disk {} ({what}) is not among the VM's disks now", disk.target));
    }
    if let Some(variables) = &definition.os.variables
        && now.os.variables.as_ref().is_none_or(|own| own.path != variables.path && variables.path.is_some())
    {
        let file = variables.path.as_deref().unwrap_or("a file of libvirt's own");
        found.push(format!("its UEFI variables ({file}) are not those that the VM has now"));
    }
    match uncarried(definition) {
        Ok(carriage) => found.extend(carriage.blockers.iter().map(|one| format!("{}: {}: {}", one.where_, one.what, one.why))),
        Err(error) => found.push(error.to_string()),
    }
    found
}

/// Media in drives then, which are not in the VM's drives now.
fn media(report: &mut Report, survey: &Survey, snapshot: &SnapshotDefinition) {
    let (host, name) = (survey.destination.name.as_str(), &snapshot.name);
    let now: BTreeSet<_> = survey.source.definition.media().filter_map(|disk| disk.medium()).collect();
    for disk in snapshot.definitions().flat_map(Definition::media) {
        let Some(path) = disk.medium().filter(|path| !now.contains(path)) else { continue };
        if survey.destination.media.get(path) != Some(&false) {
            continue;
        }
        let (target, advice) = (&disk.target, "Bring it there under the same path.");
        if disk.device == DiskDevice::Disk {
            let what = format!("{host}: disk {target} of snapshot {name}, which the VM only read or shared: there is no {path}.");
            report.block(BlockerKind::MediumMissing, host, what, advice);
        } else {
            let what = format!("{host}: there is no {path}: the drive {target} of the clone's snapshot {name} will be empty.");
            report.warn(WarningKind::DriveEmptied, host, what, advice);
        }
    }
}

fn warn_of_memory(report: &mut Report, survey: &Survey, name: &str) {
    let host = survey.source.name.as_str();
    report.warn(
        WarningKind::SnapshotMemory,
        host,
        format!(
            "{host}: snapshot {name} holds the memory of a guest that ran: reverted to it, the clone goes on as that guest, with its MAC addresses and all that it knows of itself."
        ),
        "Keep such a clone off the source's networks.",
    );
}
