//! The other domains of a host, and what of them can clash with a clone.

use std::collections::BTreeSet;

use super::Neighbour;
use crate::domain::{Definition, DiskSource};
use crate::world::{DomainBrief, Fault, Host};

/// All domains of a host. One that is gone between two questions is left out.
pub(super) fn neighbours(host: &dyn Host) -> Result<Vec<Neighbour>, Fault> {
    let mut neighbours = Vec::new();
    for brief in host.domains()? {
        if let Some(facts) = host.domain(brief.uuid)? {
            neighbours.push(neighbour(facts.brief, &facts.definition));
        }
    }
    Ok(neighbours)
}

/// What can clash. A definition that cannot be read clashes with nothing: it is not this program's to complain about.
fn neighbour(brief: DomainBrief, definition: &str) -> Neighbour {
    let Ok(definition) = Definition::parse(definition) else {
        return Neighbour { brief, macs: BTreeSet::new(), paths: BTreeSet::new() };
    };
    let paths = definition.disks.iter().filter_map(|disk| match &disk.source {
        DiskSource::File(path) | DiskSource::Device(path) => Some(path.clone()),
        DiskSource::Empty | DiskSource::Elsewhere { .. } => None,
    });
    Neighbour { brief, macs: definition.macs().collect(), paths: paths.collect() }
}
