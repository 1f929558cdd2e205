//! Snapshots as the simulated libvirt keeps them: a file each, in a directory of the domain's name, none of which it syncs. And
//! what people do with them meanwhile.

use std::collections::BTreeMap;

use journal_format::{AttemptPurpose, DomainUuid, EventV1, StepRef, StepV1};
use kvm_clone::engine::Ending;
use kvm_clone::world::{FaultKind, Side, SnapshotFacts};

use crate::content::Content;
use crate::definition::Definition;
use crate::faults::{Effect, Fault, FaultPlan};
use crate::filesystem::{Filesystem, Refusal, split};
use crate::history::{History, Life};
use crate::libvirt::Libvirt;
use crate::oracle::{Cause, Changed};
use crate::scene::Shape;

/// Where libvirt keeps snapshots.
pub const SNAPSHOTS: &str = "/var/lib/libvirt/qemu/snapshot";

/// A snapshot in libvirt's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub text: String,
    pub parent: Option<String>,
    pub current: bool,
}

/// By name.
pub type Snapshots = BTreeMap<String, Snapshot>;

/// The directory of a domain's snapshots.
pub fn directory(domain: &str) -> String {
    format!("{SNAPSHOTS}/{domain}")
}

/// The file of one snapshot.
pub fn path(domain: &str, name: &str) -> String {
    format!("{SNAPSHOTS}/{domain}/{name}.xml")
}

/// A snapshot's document.
pub fn document(name: &str, parent: Option<&str>, created: u64, definition: &str) -> String {
    let parent = parent.map_or(String::new(), |parent| format!("  <parent>\n    <name>{parent}</name>\n  </parent>\n"));
    format!(
        "<domainsnapshot>\n  <name>{name}</name>\n  <state>shutoff</state>\n{parent}  <creationTime>{created}</creationTime>\n  \
         <memory snapshot='no'/>\n  <disks>\n    <disk name='vda' snapshot='internal'/>\n  </disks>\n{definition}</domainsnapshot>\n"
    )
}

fn refused<T>(detail: impl Into<String>) -> Result<T, Refusal> {
    Err((FaultKind::Refused, detail.into()))
}

/// What libvirt reads of a document: name, parent, the domain inside.
fn read(text: &str) -> Result<(String, Option<String>, Definition), Refusal> {
    let bad = |detail: String| (FaultKind::Refused, format!("XML error: {detail}"));
    let document = roxmltree::Document::parse(text).map_err(|error| bad(error.to_string()))?;
    let root = document.root_element();
    let child =
        |node: roxmltree::Node, tag| node.children().find(|child| child.has_tag_name(tag)).map(|child| child.id());
    let named = |id| document.get_node(id).and_then(|node| node.text()).map(str::to_owned);
    let name =
        child(root, "name").and_then(named).ok_or_else(|| bad("a redefined snapshot must have a name".into()))?;
    let parent = child(root, "parent").and_then(|id| document.get_node(id)).and_then(|node| child(node, "name"));
    let inside = child(root, "domain").and_then(|id| document.get_node(id)).ok_or_else(|| bad("no domain".into()))?;
    Ok((name, parent.and_then(named), Definition::parse(&text[inside.range()])?))
}

/// `virXMLSaveFile`, into a directory that is made where it is missing.
fn save(files: &mut Filesystem, domain: &str, name: &str, snapshot: &Snapshot) -> Result<(), Refusal> {
    for directory in [SNAPSHOTS.to_owned(), directory(domain)] {
        if files.stat(&directory).is_none() {
            files.make_dir(&directory, 0o755)?;
        }
    }
    let path = path(domain, name);
    let new = format!("{path}.new");
    if let Some(stale) = files.stat(&new) {
        files.unlink(&new, stale.inode)?;
    }
    let active = format!("  <active>{}</active>\n</domainsnapshot>", u8::from(snapshot.current));
    let text = snapshot.text.replace("</domainsnapshot>", &active);
    files.make_file(&new, 0o600, Content::of(text.as_bytes()))?;
    files.sync(&new)?;
    files.rename_over(&new, &path)
}

fn unlink(files: &mut Filesystem, path: &str) -> Result<(), Refusal> {
    files.stat(path).map_or(Ok(()), |stat| files.unlink(path, stat.inode))
}

/// All files of these snapshots, and the directory if nothing else is in it.
pub fn remove_all(files: &mut Filesystem, domain: &str, snapshots: &Snapshots) -> Result<(), Refusal> {
    for name in snapshots.keys() {
        unlink(files, &path(domain, name))?;
    }
    let directory = directory(domain);
    match files.list(&directory)? {
        Some(names) if names.is_empty() => files.remove_dir(&directory),
        _ => Ok(()),
    }
}

/// All of them under this name of their domain.
pub fn save_all(files: &mut Filesystem, domain: &str, snapshots: &Snapshots) -> Result<(), Refusal> {
    snapshots.iter().try_for_each(|(name, snapshot)| save(files, domain, name, snapshot))
}

/// What a starting daemon finds: whatever it can read, by whatever name the file has.
pub fn load(files: &Filesystem, domain: &str) -> Snapshots {
    let mut found = Snapshots::new();
    for file in files.list(&directory(domain)).ok().flatten().unwrap_or_default() {
        let Some(content) = files.content(&format!("{}/{file}", directory(domain))) else { continue };
        let text = String::from_utf8_lossy(&content.bytes()).into_owned();
        let Ok((name, parent, _)) = read(&text) else { continue };
        let active = |on: u8| format!("  <active>{on}</active>\n");
        let current = text.contains(&active(1));
        let text = text.replace(&active(0), "").replace(&active(1), "");
        found.insert(name, Snapshot { text, parent, current });
    }
    let known: Vec<String> = found.keys().cloned().collect();
    for snapshot in found.values_mut() {
        snapshot.parent.take_if(|parent| !known.contains(parent));
    }
    found
}

impl Libvirt {
    pub fn snapshots(&self, uuid: DomainUuid) -> Vec<SnapshotFacts> {
        let facts = |(name, snapshot): (&String, &Snapshot)| SnapshotFacts {
            name: name.clone(),
            current: snapshot.current,
            definition: snapshot.text.clone(),
        };
        self.domains.get(&uuid).map_or_else(Vec::new, |domain| domain.snapshots.iter().map(facts).collect())
    }

    /// `virDomainSnapshotCreateXML` with `REDEFINE`.
    pub fn define_snapshot(
        &mut self,
        files: &mut Filesystem,
        uuid: DomainUuid,
        text: &str,
        current: bool,
    ) -> Result<(), Refusal> {
        let Some(domain) = self.domains.get_mut(&uuid) else {
            return Err((FaultKind::NotFound, format!("no domain {uuid}")));
        };
        let (name, parent, inside) = read(text)?;
        if inside.uuid != uuid {
            return refused(format!("definition for snapshot {name} must use uuid {uuid}"));
        }
        if let Some(parent) = parent.as_ref().filter(|parent| !domain.snapshots.contains_key(*parent)) {
            return refused(format!("parent {parent} for moment {name} not found"));
        }
        let of = domain.definition.name.clone();
        if current
            && let Some((other, was)) =
                domain.snapshots.iter_mut().find(|(other, snapshot)| snapshot.current && **other != name)
        {
            was.current = false;
            save(files, &of, other, was)?;
        }
        let current = current || domain.snapshots.get(&name).is_some_and(|there| there.current);
        let snapshot = Snapshot { text: text.to_owned(), parent, current };
        save(files, &of, &name, &snapshot)?;
        domain.snapshots.insert(name, snapshot);
        Ok(())
    }

    /// `virDomainSnapshotDelete` with `METADATA_ONLY`: the parent becomes the current one, and the children's parent.
    pub fn forget_snapshot(&mut self, files: &mut Filesystem, uuid: DomainUuid, name: &str) -> Result<(), Refusal> {
        let Some(domain) = self.domains.get_mut(&uuid) else { return Ok(()) };
        let Some(gone) = domain.snapshots.get(name).cloned() else { return Ok(()) };
        let of = domain.definition.name.clone();
        unlink(files, &path(&of, name))?;
        domain.snapshots.remove(name);
        for (other, snapshot) in &mut domain.snapshots {
            let becomes_current = gone.current && gone.parent.as_ref() == Some(other);
            if becomes_current || snapshot.parent.as_deref() == Some(name) {
                snapshot.current |= becomes_current;
                if snapshot.parent.as_deref() == Some(name) {
                    snapshot.parent.clone_from(&gone.parent);
                }
                save(files, &of, other, snapshot)?;
            }
        }
        Ok(())
    }

    /// `virsh snapshot-revert`: the disks' bytes are others, and the definition is that of the snapshot.
    fn revert(&mut self, files: &mut Filesystem, uuid: DomainUuid, name: &str) {
        let domain = self.domains.get(&uuid).expect("a domain");
        let (_, _, inside) = read(&domain.snapshots[name].text).unwrap();
        for disk in domain.definition.disks.clone() {
            if let Some(stat) = files.stat(&disk).filter(|stat| stat.size > 0) {
                files.write_at(&disk, stat.inode, 0, b"booted").unwrap();
            }
        }
        self.define(files, &inside.text).unwrap();
    }
}

fn shape() -> Shape {
    Shape { disks: 2, snapshots: true, ..Shape::plain() }
}

/// A run that dies right after its last snapshot was defined.
fn broken_off() -> History {
    let mut clean = History::new(shape(), 5);
    let last = clean.scene.plan.steps.iter().rposition(|step| matches!(step, StepV1::DefineSnapshot { .. })).unwrap();
    let place = StepRef::Forward(u32::try_from(last).unwrap());
    let (_, world) = clean.live_traced(AttemptPurpose::Run);
    let told = format!("journal: Done {{ step: {place:?},");
    let at = world.trace().iter().position(|line| line.starts_with(&told)).expect("it is done") as u64;
    let mut history = History::new(shape(), 5);
    let (life, _) = history.live(AttemptPurpose::Run, FaultPlan::at(at, Fault::Crash, Effect::First));
    assert_eq!(life, Life::Crashed);
    history
}

#[test]
fn a_clone_that_somebody_reverts_between_attempts_is_theirs() {
    for purpose in [AttemptPurpose::Resume, AttemptPurpose::Rollback] {
        let mut history = broken_off();
        let uuid = history.scene.plan.clone_uuid;
        let (oracle, world) = (history.oracle.clone(), history.scene.world.clone());
        world.with(|core| {
            let machine = core.machine_mut(Side::Destination);
            machine.libvirt.revert(&mut machine.files, uuid, "one");
            let mut oracle = oracle.borrow_mut();
            oracle.touched = true;
            oracle.causes.insert(Cause::CloneStarted);
        });
        let Some(Ending::Stuck(_)) = history.settle(purpose) else { panic!("{purpose:?}") };
        let left = world.with(|core| core.machine(Side::Destination).libvirt.snapshots(uuid));
        assert_eq!(left.len(), 2, "what somebody uses is left whole");
    }
}

#[test]
fn a_source_whose_snapshots_changed_turns_back() {
    type Change = fn(&mut Libvirt, &mut Filesystem, DomainUuid);
    let changes: [Change; 3] = [
        |libvirt, files, uuid| libvirt.forget_snapshot(files, uuid, "two").unwrap(),
        |libvirt, files, uuid| {
            let definition = libvirt.domains[&uuid].definition.text.clone();
            libvirt.define_snapshot(files, uuid, &document("three", Some("two"), 9, &definition), false).unwrap();
        },
        |libvirt, files, uuid| {
            let one = libvirt.snapshots(uuid)[0].definition.clone();
            libvirt.define_snapshot(files, uuid, &one, true).unwrap();
        },
    ];
    for change in changes {
        let mut history = broken_off();
        let (uuid, name) = (history.scene.plan.request.vm_uuid, history.scene.plan.request.vm_name.clone());
        let (oracle, world) = (history.oracle.clone(), history.scene.world.clone());
        world.with(|core| {
            let machine = core.machine_mut(Side::Source);
            change(&mut machine.libvirt, &mut machine.files, uuid);
            for directory in [directory(&name), split(&directory(&name)).0.to_owned()] {
                machine.files.sync(&directory).unwrap();
            }
            let mut oracle = oracle.borrow_mut();
            oracle.causes.insert(Cause::SourceRedefined);
            let paths = ["one", "two", "three"].map(|snapshot| path(&name, snapshot)).to_vec();
            oracle.accept(core, Side::Source, &Changed { paths, domains: Vec::new() });
        });
        let ending = history.settle(AttemptPurpose::Resume);
        assert!(matches!(ending, Some(Ending::RolledBack { .. })), "{ending:?}");
        history.verdict(ending.as_ref(), false).unwrap();
        let failed =
            |event: &EventV1| matches!(event, EventV1::RollingBack { failure } if failure.message.contains("snapshot"));
        assert!(history.durable.borrow().records.iter().any(|record| failed(&record.event)));
    }
}
