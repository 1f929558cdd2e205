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
