//! libvirt's snapshots of the source VM.

use std::collections::BTreeSet;

use journal_format::DropKindV1;

use super::SnapshotSurvey;
use crate::domain::SnapshotDefinition;
use crate::world::{DomainFacts, Fault, Host, SnapshotFacts};

/// The VM's snapshots without what is left behind, each after the one that it stands on. One whose parent is not there comes last.
pub(super) fn snapshots(
    host: &dyn Host,
    vm: &DomainFacts,
    dropped: &[DropKindV1],
) -> Result<Vec<SnapshotSurvey>, Fault> {
    if vm.snapshots == 0 || dropped.contains(&DropKindV1::Snapshots) {
        return Ok(Vec::new());
    }
    let read = |facts: SnapshotFacts| SnapshotSurvey {
        document: SnapshotDefinition::parse(&facts.definition).and_then(|document| document.without(dropped)),
        facts,
    };
    Ok(parents_first(host.snapshots(vm.brief.uuid)?.into_iter().map(read).collect()))
}

fn parents_first(mut left: Vec<SnapshotSurvey>) -> Vec<SnapshotSurvey> {
    let mut sorted: Vec<SnapshotSurvey> = Vec::new();
    let mut placed: BTreeSet<Option<String>> = BTreeSet::from([None]);
    while !left.is_empty() {
        let (next, later): (Vec<_>, Vec<_>) =
            left.into_iter().partition(|snapshot| placed.contains(&snapshot.parent().map(str::to_owned)));
        if next.is_empty() {
            sorted.extend(later);
            break;
        }
        placed.extend(next.iter().map(|snapshot| Some(snapshot.facts.name.clone())));
        sorted.extend(next);
        left = later;
    }
    sorted
}
