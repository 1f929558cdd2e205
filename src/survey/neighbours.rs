//! The other domains of a host, and what of them can clash with a clone.

use std::collections::BTreeSet;

use super::Neighbour;
use super::source::{Place, place_of};
use crate::domain::Definition;
use crate::world::{DomainBrief, Fault, Host};

/// All domains of a host. One that is gone between two questions is left out.
pub(super) fn neighbours(host: &dyn Host) -> Result<Vec<Neighbour>, Fault> {
    let mut neighbours = Vec::new();
    for brief in host.domains()? {
        if let Some(facts) = host.domain(brief.uuid)? {
            neighbours.push(neighbour(host, facts.brief, &facts.definition)?);
        }
    }
    Ok(neighbours)
}

/// What can clash. A definition that cannot be read clashes with nothing: it is not this program's to complain about.
fn neighbour(host: &dyn Host, brief: DomainBrief, definition: &str) -> Result<Neighbour, Fault> {
    let Ok(definition) = Definition::parse(definition) else {
        return Ok(Neighbour { brief, macs: BTreeSet::new(), paths: BTreeSet::new() });
    };
    let mut paths = BTreeSet::new();
    for disk in &definition.disks {
        if let Place::At(path, _) = place_of(host, disk)? {
            paths.insert(path);
        }
    }
    Ok(Neighbour { brief, macs: definition.macs().collect(), paths })
}
