//! Can libvirt's snapshots of the VM be carried? What they hold of the disks is inside the disks' images; what libvirt knows of them
//! must fit the VM as it is now.

use std::collections::BTreeSet;

use journal_format::{ImageFormat, ImageRoleV1, PlanV1};

use super::{BlockerKind, Report, WarningKind};
use crate::domain::snapshot::Kept;
use crate::domain::{Definition, Disk, DiskDevice, DiskSource, SnapshotDefinition, uncarried};
use crate::shell::shell_word;
use crate::survey::{self, Rehearsal, SnapshotSurvey, Survey};
use crate::world::{Fault, Host};

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
                    "Delete it if it is not needed (`virsh snapshot-delete {} {}`); or leave all of them behind: --drop snapshots.",
                    shell_word(vm),
                    shell_word(name)
                ),
            );
        };
        match &snapshot.document {
            Ok(document) => {
                problems(survey, snapshot, document).into_iter().for_each(&mut block);
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
            format!("Delete those that are not needed (`virsh snapshot-list {}`); or leave all of them behind: --drop snapshots.", shell_word(vm)),
        );
    }
}

/// What the destination's libvirt says of the definitions that the clone's snapshots would bring back.
pub(super) fn rehearse(report: &mut Report, host: &dyn Host, plan: &PlanV1) -> Result<(), Fault> {
    for planned in &plan.snapshots {
        // What was just written can be read.
        let Ok(document) = SnapshotDefinition::parse(&planned.definition) else { continue };
        for definition in document.definitions() {
            if let Rehearsal::Refused(words) = survey::rehearse(host, definition.text())? {
                let (host, name) = (host.name(), &planned.name);
                report.block(
                    BlockerKind::Rehearsal,
                    &host,
                    format!(
                        "{host}: libvirt could not start the clone as its snapshot {name} would bring it back: {words}."
                    ),
                    "Delete that snapshot of the source, or update libvirt and QEMU there.",
                );
            }
        }
    }
    Ok(())
}

/// Why a snapshot cannot be carried.
fn problems(survey: &Survey, snapshot: &SnapshotSurvey, document: &SnapshotDefinition) -> Vec<String> {
    let mut found = Vec::new();
    if document.name.contains('/') || document.name.starts_with('.') || document.name.len() > NAME_BYTES_MAX {
        found.push("libvirt makes no file of its name".to_owned());
    }
    if document.memory == Kept::Elsewhere {
        found.push("it is external: its memory is in a file of its own".to_owned());
    }
    if document.memory != Kept::Nowhere && document.text() != snapshot.facts.definition {
        found.push("its memory is that of a guest with a device that is left behind".to_owned());
    }
    let held = |target: &String| {
        let role = ImageRoleV1::Disk { target: target.clone() };
        survey.source.files.iter().any(|file| file.role == role && file.format == ImageFormat::Qcow2)
    };
    for (target, kept) in &document.disks {
        match kept {
            Kept::Nowhere => {}
            Kept::Elsewhere => found.push(format!("it is external: what was on disk {target} is in another image")),
            Kept::Internally if held(target) => {}
            Kept::Internally => {
                found.push(format!("disk {target} is no qcow2 image that is copied, and cannot hold it"));
            }
        }
    }
    for definition in document.definitions() {
        found.extend(problems_of_definition(survey, definition));
        found.extend(definition.images().filter_map(|disk| problem_of_chain(survey, snapshot, disk)));
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
        && (now.os.variables.is_none() || variables.path.is_some() && variables.path != now.variables_path())
    {
        let file = variables.path.as_deref().unwrap_or("a file of libvirt's own");
        found.push(format!("its UEFI variables ({file}) are not those that the VM has now"));
    }
    match uncarried(definition) {
        Ok(carriage) => {
            found.extend(carriage.blockers.iter().map(|one| format!("{}: {}: {}", one.where_, one.what, one.why)));
        }
        Err(error) => found.push(error.to_string()),
    }
    found
}

/// What libvirt was told of a chain holds for the clone only while it is the same chain: what is not among the VM's images now
/// would stay named as it is, and what is not named would not be read.
fn problem_of_chain(survey: &Survey, snapshot: &SnapshotSurvey, disk: &Disk) -> Option<String> {
    let (source, written) = (&survey.source, disk.chain.as_ref()?);
    let top = source.file_of(disk)?;
    if !source.files.get(top)?.flattened.is_empty() {
        return None;
    }
    let real = |at: usize| Some(source.files.get(at)?.image()?.path.as_str());
    let now = source.chain_below(top).map(real);
    let then = written.iter().map(|layer| snapshot.layers.get(&layer.path)?.as_deref());
    if now.eq(then) {
        return None;
    }
    let then: Vec<_> = written.iter().map(|layer| layer.path.as_str()).collect();
    let then = if then.is_empty() { "nothing".to_owned() } else { then.join(", ") };
    Some(format!("its disk {} stood on {then}, and stands on something else now", disk.target))
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
            let what = format!(
                "{host}: disk {target} of snapshot {name}, which the VM only read or shared: there is no {path}."
            );
            report.block(BlockerKind::MediumMissing, host, what, advice);
        } else {
            let what =
                format!("{host}: there is no {path}: the drive {target} of the clone's snapshot {name} will be empty.");
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::preflight::check as check_all;
    use crate::survey::sample::{self, DEFINITION};

    /// Blockers and warnings with these snapshots.
    fn report_of(snapshots: Vec<SnapshotSurvey>) -> Report {
        let mut survey = sample::survey();
        survey.source.snapshots = snapshots;
        survey.destination.media.insert("/iso/gone.iso".to_owned(), false);
        check_all(&sample::request(), &survey, &sample::controller(), &[])
    }

    fn changed(from: &str, to: &str) -> Vec<SnapshotSurvey> {
        let text = sample::snapshot("monday", None, DEFINITION).facts.definition;
        assert!(text.contains(from), "{from}");
        let definition = text.replacen(from, to, 1);
        let document = SnapshotDefinition::parse(&definition);
        let mut snapshot = sample::snapshot("monday", None, DEFINITION);
        (snapshot.facts.definition, snapshot.document) = (definition, document);
        vec![snapshot]
    }

    #[test]
    fn snapshots_of_the_vm_as_it_is_are_no_hindrance() {
        let two = vec![sample::snapshot("one", None, DEFINITION), sample::snapshot("two", Some("one"), DEFINITION)];
        assert_eq!(report_of(two), Report::default());
    }

    #[test]
    fn each_thing_that_a_snapshot_cannot_bring_is_named() {
        let vda = "<disk name='vda' snapshot='internal'/>";
        let cases: &[(&str, &str, &str)] = &[
            ("<memory snapshot='no'/>", "<memory snapshot='external' file='/m'/>", "memory is in a file"),
            (vda, "<disk name='vda' snapshot='external' type='file'/>", "what was on disk vda is in another image"),
            (vda, "<disk name='vda' snapshot='manual'/>", "disk vda is in another image"),
            (vda, "<disk name='vdb' snapshot='internal'/>", "disk vdb is no qcow2 image"),
            ("/srv/data/disk.img", "/srv/data/gone.img", "its disk vdb (/srv/data/gone.img) is not among"),
            ("<boot dev='hd'/>", "<loader type='pflash'>/c</loader><nvram>/n</nvram>", "UEFI variables (/n)"),
            ("<on_poweroff>", "<novelty/><on_poweroff>", "novelty"),
            ("<uuid>", "<uuid>x", "its document cannot be read"),
            ("<state>", "<parent><name>sunday</name></parent><state>", "stands on is not there"),
        ];
        for (from, to, said) in cases {
            let report = report_of(changed(from, to));
            assert!(
                report.blockers.iter().any(|blocker| {
                    let words = blocker.to_string();
                    blocker.kind == BlockerKind::Snapshots && words.contains("monday") && words.contains(said)
                }),
                "{said}: {report:?}"
            );
        }
        let nested = vec![sample::snapshot(".hidden", None, DEFINITION), sample::snapshot("a/b", None, DEFINITION)];
        assert_eq!(report_of(nested).blockers.len(), 2);
        let padding = format!("<!--{}-->{DEFINITION}", "x".repeat(SNAPSHOTS_BYTES_MAX));
        let large = report_of(vec![sample::snapshot("large", None, &padding)]);
        assert!(large.blockers[0].message.contains("bytes together"), "{large:?}");
    }

    #[test]
    fn what_a_disk_stood_on_must_be_what_it_stands_on() {
        let chain = |below: &str| {
            let mut snapshots = changed("<target dev='vda'", &format!("{below}<target dev='vda'"));
            snapshots[0].layers = [("/link".to_owned(), Some("/base".to_owned()))].into();
            report_of(snapshots).blockers.iter().map(|one| one.message.clone()).collect::<Vec<_>>()
        };
        assert_eq!(chain("<backingStore/>"), Vec::<String>::new());
        let layer =
            "<backingStore type='file'><format type='raw'/><source file='/link'/><backingStore/></backingStore>";
        assert!(chain(layer)[0].contains("its disk vda stood on /link, and stands on something else now"));
        let mut survey = sample::survey();
        let mut base = survey.source.files[1].clone();
        base.role = ImageRoleV1::Layer { target: "vda".to_owned(), depth: 1 };
        base.index = None;
        let crate::survey::SourceImage::Readable(image) = &mut base.image else { panic!() };
        image.path = "/base".to_owned();
        survey.source.files.push(base);
        survey.source.files[0].below = crate::survey::Below::Image { reference: "/link".to_owned(), file: 2 };
        let mut snapshot = changed("<target dev='vda'", &format!("{layer}<target dev='vda'")).remove(0);
        for (there, expected) in [(Some("/base"), 0), (Some("/other"), 1), (None, 1)] {
            snapshot.layers = [("/link".to_owned(), there.map(str::to_owned))].into();
            let document = snapshot.document.clone().unwrap();
            assert_eq!(problems(&survey, &snapshot, &document).len(), expected, "{there:?}");
        }
    }

    #[test]
    fn memory_with_a_device_that_is_left_behind_cannot_be_gone_on_with() {
        let mut snapshots = changed("<memory snapshot='no'/>", "<memory snapshot='internal'/>");
        snapshots[0].facts.definition.push(' ');
        let report = report_of(snapshots);
        assert!(report.blockers[0].message.contains("a guest with a device that is left behind"), "{report:?}");
    }

    #[test]
    fn networks_and_media_of_snapshots_are_looked_for_too() {
        let report = report_of(changed("<source network='default'/>", "<source network='gone'/>"));
        assert_eq!(report.blockers.iter().map(|one| one.kind).collect::<Vec<_>>(), [BlockerKind::NetworkMissing]);
        let drive = "<disk type='file' device='cdrom'><driver type='raw'/><source file='/iso/gone.iso'/>\
                     <target dev='sda' bus='sata'/><readonly/></disk><interface type='network'>";
        let report = report_of(changed("<interface type='network'>", drive));
        assert_eq!(report.blockers, []);
        assert!(report.warnings[0].message.contains("the drive sda of the clone's snapshot monday will be empty"));
    }

    #[test]
    fn memory_that_goes_on_as_the_source_is_told() {
        let report = report_of(changed("<memory snapshot='no'/>", "<memory snapshot='internal'/>"));
        assert_eq!(report.blockers, []);
        assert_eq!(report.warnings.iter().map(|one| one.kind).collect::<Vec<_>>(), [WarningKind::SnapshotMemory]);
    }
}
