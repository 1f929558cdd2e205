//! What cannot be carried may be left behind, where `--drop` asks for it: here what libvirt keeps beside the definition, and the
//! telling of all that the clone will not have.

use journal_format::DropKindV1;

use super::{BlockerKind, Report, WarningKind};
use crate::request::Request;
use crate::shell::shell_word;
use crate::survey::Survey;

/// Something that libvirt keeps beside a definition.
struct Beside {
    is_there: bool,
    drop: DropKindV1,
    /// What it is, as it stands in both sentences.
    what: String,
    /// Why it is refused otherwise, and what to do about it; `None`: it is carried.
    refused: Option<(BlockerKind, &'static str, String)>,
    /// What the clone is without it.
    without: &'static str,
}

pub(super) fn check(report: &mut Report, request: &Request, survey: &Survey) {
    let (host, name) = (survey.source.name.as_str(), &survey.source.vm.brief.name);
    let beside = beside(survey);
    for found in beside.iter().filter(|found| found.is_there) {
        let Beside { drop, what, refused, without, .. } = found;
        if request.dropped.contains(drop) {
            let message = format!("{host}: VM {name}: {what}: left behind, as --drop {drop} asks. {without}.");
            report.warn(WarningKind::LeftBehind, host, message, "");
        } else if let Some((kind, why, advice)) = refused {
            let message = format!("{host}: VM {name} has {what}, {why}.");
            report.block(*kind, host, message, format!("{advice}; or leave that behind: --drop {drop}."));
        }
    }
    for found in &survey.source.left_behind {
        let Some(device) = &found.device else { continue };
        let (place, what, drop) = (&found.where_, &found.what, device.kind);
        let message = format!("{host}: VM {name}, {place}: {what}: left behind, as --drop {drop} asks.");
        report.warn(WarningKind::LeftBehind, host, message, "");
    }
    for kind in &request.dropped {
        let devices = survey.source.left_behind.iter().filter_map(|found| found.device.as_ref());
        let mut found = beside.iter().filter(|one| one.is_there).map(|one| one.drop).chain(devices.map(|one| one.kind));
        if !found.any(|found| found == *kind) {
            let message = format!("{host}: --drop {kind}: VM {name} has nothing of that kind that is not carried.");
            report.warn(WarningKind::DropUnused, host, message, "");
        }
    }
}

fn beside(survey: &Survey) -> [Beside; 3] {
    let vm = &survey.source.vm;
    let word = shell_word(&vm.brief.name);
    [
        Beside {
            is_there: vm.managed_save,
            drop: DropKindV1::ManagedSave,
            what: "a saved memory state (managed save)".to_owned(),
            refused: Some((
                BlockerKind::ManagedSave,
                "without which its disks are not consistent",
                format!("Start it and shut it down, give the saved state up (`virsh managedsave-remove {word}`)"),
            )),
            without: "The clone's disks are as they were at that moment, and it boots as after a power cut",
        },
        Beside {
            is_there: vm.snapshots > 0,
            drop: DropKindV1::Snapshots,
            what: count(vm.snapshots, "snapshot"),
            refused: None,
            without: "What they hold inside of a qcow2 image stays in the clone's copy of it (`qemu-img snapshot -l`)",
        },
        Beside {
            is_there: vm.checkpoints > 0,
            drop: DropKindV1::Checkpoints,
            what: count(vm.checkpoints, "checkpoint"),
            refused: Some((
                BlockerKind::Checkpoints,
                "which cannot be carried yet",
                format!("Delete what is not needed (`virsh checkpoint-list {word}`, `virsh checkpoint-delete`)"),
            )),
            without: "Their bitmaps stay inside of the clone's qcow2 images, and its libvirt does not know them",
        },
    ]
}

fn count(number: u32, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::domain::{Definition, leave_behind};
    use crate::preflight::Problem;
    use crate::survey::sample;

    /// Of a VM with all of it, except that these are left behind.
    fn report_without(dropped: &[DropKindV1]) -> Report {
        let (mut request, mut survey) = (sample::request(), sample::survey());
        request.dropped = dropped.to_vec();
        let vm = &mut survey.source.vm;
        (vm.managed_save, vm.snapshots, vm.checkpoints) = (true, 2, 1);
        let device = "<lease><lockspace>l</lockspace><key>k</key><target path='/l'/></lease></devices>";
        let whole = Definition::parse(&sample::DEFINITION.replace("</devices>", device)).unwrap();
        (survey.source.definition, survey.source.left_behind) = leave_behind(&whole, dropped).unwrap();
        crate::preflight::check(&request, &survey, &sample::controller(), &[])
    }

    fn texts<K>(problems: &[Problem<K>]) -> Vec<String> {
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_is_refused_with_the_words_that_leave_it_behind_and_told_when_it_is() {
        let kinds = [DropKindV1::Checkpoints, DropKindV1::ManagedSave, DropKindV1::Lease];
        let refused = report_without(&[]);
        assert_eq!((texts(&refused.blockers).len(), texts(&refused.warnings).len()), (3, 0), "{refused:#?}");
        for kind in kinds {
            let word = format!("--drop {kind}.");
            let named = |report: &Report| texts(&report.blockers).iter().filter(|text| text.ends_with(&word)).count();
            assert_eq!(named(&refused), 1, "{word} {refused:#?}");
            let without = report_without(&[kind]);
            assert_eq!((named(&without), without.blockers.len()), (0, 2), "{without:#?}");
            assert_eq!(without.warnings[0].kind, WarningKind::LeftBehind);
            assert!(without.warnings[0].message.contains(&format!("left behind, as --drop {kind} asks")));
        }
        let all = report_without(&DropKindV1::ALL);
        let unused = all.warnings.iter().filter(|warning| warning.kind == WarningKind::DropUnused).count();
        assert_eq!((all.exit(), all.warnings.len() - unused, unused), (None, 4, DropKindV1::ALL.len() - 4), "{all:#?}");
        assert!(
            texts(&all.warnings).iter().any(|text| text.contains("2 snapshots: left behind, as --drop snapshots asks"))
        );
    }

    #[test]
    fn what_the_vm_does_not_have_may_be_left_behind_and_that_is_said() {
        let (mut request, survey) = (sample::request(), sample::survey());
        request.dropped = vec![DropKindV1::Snapshots, DropKindV1::Hostdev];
        let report = crate::preflight::check(&request, &survey, &sample::controller(), &[]);
        let kinds: Vec<_> = report.warnings.iter().map(|warning| warning.kind).collect();
        assert_eq!((report.exit(), kinds), (None, vec![WarningKind::DropUnused; 2]));
        assert!(report.warnings[1].message.contains("--drop hostdev"), "{report:#?}");
    }
}
