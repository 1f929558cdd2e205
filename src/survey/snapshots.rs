//! libvirt's snapshots of the source VM.

use std::collections::{BTreeMap, BTreeSet};

use journal_format::DropKindV1;

use super::{SnapshotSurvey, words_of_refusal};
use crate::domain::{Definition, SnapshotDefinition};
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
    let read = |facts: SnapshotFacts| {
        let document = SnapshotDefinition::parse(&facts.definition).and_then(|document| document.without(dropped));
        let layers = document.as_ref().map_or(Ok(BTreeMap::new()), |document| layers(host, document))?;
        Ok(SnapshotSurvey { facts, document, layers })
    };
    Ok(parents_first(host.snapshots(vm.brief.uuid)?.into_iter().map(read).collect::<Result<_, Fault>>()?))
}

/// Where the images really are that a snapshot's definitions name below others.
fn layers(host: &dyn Host, document: &SnapshotDefinition) -> Result<BTreeMap<String, Option<String>>, Fault> {
    let chains = document.definitions().flat_map(Definition::images).filter_map(|disk| disk.chain.as_ref());
    let paths: BTreeSet<_> = chains.flatten().map(|layer| layer.path.clone()).collect();
    paths.into_iter().map(|path| Ok((path.clone(), words_of_refusal(host.resolve(&path))?.ok().flatten()))).collect()
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
