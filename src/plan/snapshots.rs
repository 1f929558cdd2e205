//! The clone's snapshots: each of the source's, with the definitions inside rewritten as the clone's own is.

use journal_format::SnapshotV1;

use super::{PlanError, Rewriting};
use crate::survey::Survey;

/// The snapshots, each after the one that it stands on. A revert names the domain as the definition inside does, so that has
/// the final name.
pub(super) fn snapshots(rewriting: &mut Rewriting<'_, '_>, survey: &Survey) -> Result<Vec<SnapshotV1>, PlanError> {
    let mut planned = Vec::new();
    for snapshot in &survey.source.snapshots {
        let document = snapshot.document.as_ref().map_err(|error| PlanError::Definition(error.clone()))?;
        let changes = |definition: &_| Ok::<_, PlanError>(rewriting.changes(definition)?.named(&survey.new_name));
        planned.push(SnapshotV1 {
            name: snapshot.facts.name.clone(),
            source_definition: snapshot.facts.definition.clone(),
            definition: document.rewritten(changes)?,
            current: snapshot.facts.current,
        });
    }
    Ok(planned)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use journal_format::{PlanV1, StepV1};

    use crate::domain::{Definition, SnapshotDefinition};
    use crate::plan::tests::plan_of;
    use crate::survey::SnapshotSurvey;
    use crate::survey::old_vm::OldVm;
    use crate::survey::sample::{self, DEFINITION};

    fn plan_with(snapshots: Vec<SnapshotSurvey>) -> PlanV1 {
        let mut survey = sample::survey();
        survey.source.snapshots = snapshots;
        survey.destination.media.insert("/iso/gone.iso".to_owned(), false);
        plan_of(&sample::request(), &survey).unwrap()
    }

    fn inside(plan: &PlanV1, snapshot: usize) -> Definition {
        let document = SnapshotDefinition::parse(&plan.snapshots[snapshot].definition).unwrap();
        document.definitions().next().unwrap().clone()
    }

    #[test]
    fn a_snapshots_definition_is_rewritten_as_the_vms_own_and_follows_it() {
        let mut two = vec![sample::snapshot("one", None, DEFINITION), sample::snapshot("two", Some("one"), DEFINITION)];
        two[1].facts.current = true;
        let plan = plan_with(two.clone());
        for (planned, source) in plan.snapshots.iter().zip(&two) {
            assert_eq!((&planned.name, planned.current), (&source.facts.name, source.facts.current));
            assert_eq!(planned.source_definition, source.facts.definition);
            assert_eq!(planned.definition, source.facts.definition.replace(DEFINITION, &plan.definition));
        }
        let defined = plan.steps.iter().position(|step| *step == StepV1::DefineDomain).unwrap();
        let snapshots = [0, 1].map(|snapshot| StepV1::DefineSnapshot { snapshot });
        assert_eq!(plan.steps[defined + 1..], snapshots);
    }

    #[test]
    fn beside_an_old_vm_only_the_snapshots_have_the_final_name() {
        let mut survey = sample::survey();
        survey.source.snapshots = vec![sample::snapshot("one", None, DEFINITION)];
        let mut vm = survey.source.vm.clone();
        vm.brief.name = "web01_clone".to_owned();
        let definition = Definition::parse(DEFINITION);
        survey.destination.old = Some(OldVm { vm, definition, files: Vec::new(), mark: None, changed: None });
        let plan = plan_of(&sample::request(), &survey).unwrap();
        assert!(Definition::parse(&plan.definition).unwrap().name.starts_with("web01_clone.new-"));
        assert_eq!(inside(&plan, 0).name, "web01_clone");
        assert_eq!(plan.steps.last(), Some(&StepV1::StopOldVm));
    }

    #[test]
    fn what_a_snapshot_has_besides_is_rewritten_too() {
        let more = "<disk type='file' device='cdrom'><driver type='raw'/><source file='/iso/gone.iso'/>\
                    <target dev='sda'/></disk><interface type='user'><mac address='52:54:00:aa:bb:03'/></interface>";
        let then = DEFINITION.replace("    <interface type='network'>", &format!("{more}<interface type='network'>"));
        let plan = plan_with(vec![sample::snapshot("one", None, &then)]);
        let (now, then) = (Definition::parse(&plan.definition).unwrap(), inside(&plan, 0));
        let macs: Vec<_> = then.macs().collect();
        assert_eq!(macs[1..], now.macs().collect::<Vec<_>>(), "the same interface has the same address");
        assert!(macs[0] != "52:54:00:aa:bb:03" && !macs[1..].contains(&macs[0]), "{macs:?}");
        assert!(!plan.snapshots[0].definition.contains("gone.iso"));
    }

    #[test]
    fn a_disk_that_moved_to_another_target_is_found_by_its_file() {
        let then = DEFINITION.replace("'vdb'", "'vdz'");
        let plan = plan_with(vec![sample::snapshot("one", None, &then)]);
        let paths: Vec<_> = plan.images.iter().map(|image| image.final_path.as_str()).collect();
        let then = inside(&plan, 0);
        assert_eq!(then.disks.iter().filter_map(|disk| disk.image()).collect::<Vec<_>>(), paths);
    }
}
