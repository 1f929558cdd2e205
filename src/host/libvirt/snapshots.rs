//! The calls about snapshots: what libvirt knows of them, and never what the disks hold.

use journal_format::DomainUuid;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::domain_snapshot::DomainSnapshot;
use virt::error::ErrorNumber;

use super::calls::{find, must_find};
use super::{Libvirt, Refusal};
use crate::world::{Fault, SnapshotFacts};

impl Libvirt {
    pub(in crate::host) async fn snapshots(&self, uuid: DomainUuid) -> Result<Vec<SnapshotFacts>, Fault> {
        self.ask(&format!("look at the snapshots of domain {uuid}"), move |connect| {
            let Some(domain) = find(connect, uuid)? else { return Ok(Vec::new()) };
            let mut all = Vec::new();
            for snapshot in domain.list_all_snapshots(0)? {
                all.extend(unless_gone(facts(&snapshot))?);
            }
            all.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(all)
        })
        .await
    }

    pub(in crate::host) async fn snapshot(&self, uuid: DomainUuid, name: &str) -> Result<Option<SnapshotFacts>, Fault> {
        let wanted = name.to_owned();
        self.ask(&format!("look at the snapshot {name} of domain {uuid}"), move |connect| {
            let Some(snapshot) = find_snapshot(connect, uuid, &wanted)? else { return Ok(None) };
            unless_gone(facts(&snapshot))
        })
        .await
    }

    pub(in crate::host) async fn define_snapshot(
        &self,
        uuid: DomainUuid,
        definition: &str,
        current: bool,
    ) -> Result<(), Fault> {
        let text = definition.to_owned();
        let current = if current { virt_sys::VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT } else { 0 };
        self.change(&format!("define a snapshot of domain {uuid}"), move |connect| {
            let flags = virt_sys::VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE | current;
            must_find(connect, uuid)?.create_snapshot_xml(&text, flags)?;
            Ok(())
        })
        .await
    }

    pub(in crate::host) async fn forget_snapshot(&self, uuid: DomainUuid, name: &str) -> Result<(), Fault> {
        let wanted = name.to_owned();
        self.change(&format!("forget the snapshot {name} of domain {uuid}"), move |connect| {
            let Some(snapshot) = find_snapshot(connect, uuid, &wanted)? else { return Ok(()) };
            let forgotten = snapshot.delete(virt_sys::VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY);
            unless_gone(forgotten.map_err(Refusal::from)).map(|_| ())
        })
        .await
    }
}

fn find_snapshot(connect: &Connect, uuid: DomainUuid, name: &str) -> Result<Option<DomainSnapshot>, Refusal> {
    let Some(domain) = find(connect, uuid)? else { return Ok(None) };
    unless_gone(Domain::lookup_snapshot_by_name(&domain, name, 0).map_err(Refusal::from))
}

fn facts(snapshot: &DomainSnapshot) -> Result<SnapshotFacts, Refusal> {
    Ok(SnapshotFacts {
        name: snapshot.name()?,
        current: snapshot.is_current(0)?,
        definition: snapshot.xml_desc(virt_sys::VIR_DOMAIN_SNAPSHOT_XML_SECURE)?,
    })
}

/// A snapshot, or its domain, that is gone by the time it is asked is no error.
fn unless_gone<T>(result: Result<T, Refusal>) -> Result<Option<T>, Refusal> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(refusal) if [ErrorNumber::NoDomainSnapshot, ErrorNumber::NoDomain].iter().any(|gone| refusal.is(*gone)) => {
            Ok(None)
        }
        Err(refusal) => Err(refusal),
    }
}
