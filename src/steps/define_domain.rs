//! The clone's definition, marked unfinished: after every image is verified and published.

use journal_format::{ChunkValue, FailureClassV1, Inode, OutcomeV1, PlanV1, StepV1};

use super::publish_image::{PublishImage, look_at_source_again};
use super::{Applied, Context, Probe, Step, rename_clone};
use crate::domain::metadata::{CloneMark, DiskMark, ImageMark, MarkState, SourceMark, definition_value};
use crate::domain::{Change, Definition, DomainError, Rewrite, read_back, rewrite};
use crate::failure::Failure;
use crate::history::Last;
use crate::world::{DomainFacts, DomainState, FaultKind};

pub(super) struct DefineDomain;

/// Where libvirt keeps definitions. It never syncs this directory itself.
pub const LIBVIRT_DEFINITIONS: &str = "/etc/libvirt/qemu";
/// Longer than any definition that libvirt carries in one call, and what an agent reads at once.
const DEFINITION_BYTES_MAX: u64 = 3 << 20;

impl Step for DefineDomain {
    fn expected(&self, context: &Context) -> String {
        format!("the domain {} ({}), ours and shut off", context.defined_name(), context.plan.clone_uuid)
    }

    fn probe(&self, context: &Context) -> Result<Probe, Failure> {
        let name = context.defined_name();
        let Some(domain) = context.destination.domain(context.plan.clone_uuid)? else {
            return Ok(match context.destination.domain_named(name)? {
                Some(other) => Probe::Foreign(format!("a domain {name} with UUID {}", other.brief.uuid)),
                None => Probe::Absent,
            });
        };
        if !is_ours(context, &domain) {
            return Ok(Probe::Foreign(format!(
                "a domain {} with the clone's UUID {} and without this transaction's mark",
                domain.brief.name, domain.brief.uuid
            )));
        }
        if let Some(found) = used(context, &domain)? {
            return Ok(Probe::InUse(found));
        }
        let last = context.last_of(StepV1::DefineDomain);
        Ok(match lost(context, &domain, last) {
            None => Probe::Ours(OutcomeV1::Nothing),
            Some(missing) if last == Last::Done => {
                Probe::InUse(format!("the definition of {name} was changed: {missing}"))
            }
            Some(_) => Probe::Partial,
        })
    }

    fn apply(&self, context: &mut Context) -> Result<Applied, Failure> {
        if let Some(reopened) = look_at_source_again(context, StepV1::DefineDomain)? {
            return Ok(reopened);
        }
        let definition = definition(context)?;
        let (uuid, name) = (context.plan.clone_uuid, context.defined_name().to_owned());
        let host = context.destination.clone();
        match host.define(&definition) {
            Err(fault) if fault.kind == FaultKind::AlreadyExists => return Err(name_taken(context, "another VM")),
            defined => defined?,
        }
        let defined = host.domain(uuid)?.ok_or_else(|| {
            Failure::suspend(
                format!("{} on {} is gone right after its definition", name, host.name()),
                "resume looks again",
            )
        })?;
        match read_back(&definition, &defined.definition) {
            Ok(added) => {
                for line in added {
                    context.recorder.observer.warning(&format!("libvirt on {} added {line}", host.name()));
                }
                Ok(Applied::Done(OutcomeV1::Nothing))
            }
            Err(lost) => Err(Failure::turn_back(
                format!("libvirt on {} did not keep the whole definition of {name}: {lost}", host.name()),
                "remove that part from the source's definition, or use a libvirt that knows it",
            )),
        }
    }

    fn settle(&self, context: &Context) -> Result<(), Failure> {
        Ok(context.destination.sync(LIBVIRT_DEFINITIONS)?)
    }

    fn undo(&self, context: &mut Context) -> Result<(), Failure> {
        let host = &context.destination;
        // Proven once more on the very connection that removes it.
        if let Some(domain) = host.domain(context.plan.clone_uuid)?.filter(|domain| is_ours(context, domain)) {
            if domain.brief.state == DomainState::Active {
                let found = format!("the domain {} was started", domain.brief.name);
                return Err(Failure::stop(None, self.expected(context), found));
            }
            host.undefine(context.plan.clone_uuid)?;
        }
        remove_torn(context)?;
        Ok(host.sync(LIBVIRT_DEFINITIONS)?)
    }

    /// Whoever has the clone's UUID by now is looked at by a person; another VM of its name is only that.
    fn has_only_lost_its_name(&self, context: &Context) -> Result<bool, Failure> {
        Ok(context.destination.domain(context.plan.clone_uuid)?.is_none())
    }

    fn foreign(&self, context: &Context) -> Option<Failure> {
        let named = context.destination.domain_named(&context.plan.request.new_name).ok()??;
        (named.brief.uuid != context.plan.clone_uuid)
            .then(|| name_taken(context, &format!("the VM with UUID {}", named.brief.uuid)))
    }

    fn lands_late(&self) -> bool {
        true
    }
}

fn name_taken(context: &Context, by: &str) -> Failure {
    Failure::turn_back(
        format!(
            "the name {} was taken on {} meanwhile, by {by}",
            context.plan.request.new_name,
            context.destination.name()
        ),
        "remove that VM, or choose another name with --new-name; then clone again",
    )
}

/// What somebody did with the clone before it was finished, if anybody did anything.
pub(super) fn used(context: &Context, domain: &DomainFacts) -> Result<Option<String>, Failure> {
    if domain.brief.state == DomainState::Active {
        return Ok(Some(format!("the domain {} was started", domain.brief.name)));
    }
    if domain.brief.name != context.defined_name() {
        return Ok(Some(format!("the domain was renamed to {}", domain.brief.name)));
    }
    used_image(context)
}

/// Started and shut off again, or reverted to a snapshot: the writes are somebody's, and the definition is what they are reached by.
pub(super) fn used_image(context: &Context) -> Result<Option<String>, Failure> {
    let files = (0u32..).zip(&context.plan.images).filter(|(_, image)| image.device().is_none());
    for (image, _) in files {
        if let Probe::InUse(found) = (PublishImage { image }).probe(context)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// What libvirt writes before it renames it to the definition of that name.
pub fn torn_definition(name: &str) -> String {
    format!("{LIBVIRT_DEFINITIONS}/{name}.xml.new")
}

/// What a definition that an attempt left lacks of what was planned. One that is undone again is not compared.
fn lost(context: &Context, domain: &DomainFacts, last: Last) -> Option<String> {
    if !matches!(last, Last::Started | Last::Reopened | Last::Done) {
        return None;
    }
    let planned = definition(context).ok()?;
    read_back(&planned, &domain.definition).err().map(|lost| lost.to_string())
}

/// libvirt writes `NAME.xml.new` and renames it; its death or a power cut in between leaves that file, whole or torn, which
/// nobody else removes.
fn remove_torn(context: &Context) -> Result<(), Failure> {
    let host = &context.destination;
    let path = torn_definition(context.defined_name());
    let Some(bytes) = host.read(&path, DEFINITION_BYTES_MAX)? else { return Ok(()) };
    if is_torn_or_whole_of_ours(context, &String::from_utf8_lossy(&bytes))
        && let Some(stat) = host.stat(&path)?
    {
        host.unlink(&path, stat.inode)?;
    }
    Ok(())
}

/// A whole definition says by its mark whose it is. One that is torn defines nothing and is overwritten by libvirt's next
/// define of that name, which is claimed by us: it is left alone only where it names somebody else's UUID.
fn is_torn_or_whole_of_ours(context: &Context, text: &str) -> bool {
    let uuid = context.plan.clone_uuid;
    match CloneMark::read(text) {
        Ok(mark) => mark.is_some_and(|mark| mark.txn == context.plan.txn && mark.clone_uuid == uuid),
        Err(_) => text.contains(&uuid.to_string()) || !text.contains("</uuid>"),
    }
}

/// A domain is ours by the planned UUID and this transaction's mark.
pub(super) fn is_ours(context: &Context, domain: &DomainFacts) -> bool {
    CloneMark::read(&domain.definition)
        .ok()
        .flatten()
        .is_some_and(|mark| mark.txn == context.plan.txn && mark.clone_uuid == domain.brief.uuid)
}

/// The mark of this clone.
pub(super) fn mark(context: &Context, state: MarkState) -> Result<CloneMark, Failure> {
    let mut disks = Vec::new();
    for (index, image) in (0u32..).zip(&context.plan.images) {
        let Some(OutcomeV1::Transferred { source_root, source_size, source_mtime_ns, mtime_ns, .. }) =
            context.outcome_of(StepV1::TransferImage { image: index })
        else {
            return Err(Failure::stop(None, format!("{} transferred", image.role), "no record of its transfer"));
        };
        let source = ImageMark { size: *source_size, mtime_ns: *source_mtime_ns };
        let inode = match context.outcome_of(StepV1::CreateImage { image: index }) {
            Some(OutcomeV1::Made { inode }) => Some(*inode),
            _ => None,
        };
        disks.push(DiskMark {
            target: image.role.to_string(),
            source: SourceMark { image: source, root: *source_root },
            // A device is as large as it is.
            clone: ImageMark { size: image.device().map_or(*source_size, |device| device.bytes), mtime_ns: *mtime_ns },
            inode,
        });
    }
    let bases = context.plan.bases.iter().map(|base| DiskMark {
        target: base.role.to_string(),
        source: SourceMark {
            image: ImageMark { size: base.source_stamp.size, mtime_ns: base.source_stamp.mtime_ns },
            root: base.root,
        },
        clone: ImageMark { size: base.stamp.size, mtime_ns: base.stamp.mtime_ns },
        inode: Some(base.stamp.inode),
    });
    let request = &context.plan.request;
    Ok(CloneMark {
        txn: context.plan.txn,
        controller: context.plan.controller.clone(),
        source_machine_id: request.source.machine_id.clone(),
        source_host: request.source.address.clone(),
        source_uuid: request.vm_uuid,
        source_definition: Some(source_value(&context.plan)),
        clone_uuid: context.plan.clone_uuid,
        same_identity: request.options.preserve_uuid,
        state,
        disks,
        bases: bases.collect(),
    })
}

/// What the source's definitions were when it was planned.
fn source_value(plan: &PlanV1) -> ChunkValue {
    let snapshots = plan.snapshots.iter().map(|snapshot| (snapshot.source_definition.as_str(), snapshot.current));
    definition_value(&plan.source_definition, snapshots)
}

/// What the mark of a clone that is there, or whose renaming was torn, says of its images' transfers: the inverse of `mark`.
/// Empty without a clone of ours.
pub fn transfers_of_mark(context: &Context) -> Result<Vec<(StepV1, OutcomeV1)>, Failure> {
    let domain = context.destination.domain(context.plan.clone_uuid)?.filter(|domain| is_ours(context, domain));
    let definition = match domain {
        Some(domain) => Some(domain.definition),
        None => rename_clone::definition_before(context)?,
    };
    let Some(mark) = definition.and_then(|definition| CloneMark::read(&definition).ok().flatten()) else {
        return Ok(Vec::new());
    };
    let mut transfers = Vec::new();
    for (index, image) in (0u32..).zip(&context.plan.images) {
        let Some(marked) = mark.disks.iter().find(|marked| marked.target == image.role.to_string()) else { continue };
        let staged = context.destination.stat(&image.staging_path)?;
        let outcome = OutcomeV1::Transferred {
            // Without its staged name nobody asks for it: it tells whether that one is still the same file.
            inode: staged.map_or(Inode(0), |staged| staged.inode),
            root: marked.source.root,
            source_root: marked.source.root,
            source_size: marked.source.image.size,
            source_mtime_ns: marked.source.image.mtime_ns,
            mtime_ns: marked.clone.mtime_ns,
            missing_bytes: 0,
            sent_bytes: 0,
        };
        transfers.push((StepV1::TransferImage { image: index }, outcome));
    }
    Ok(transfers)
}

/// The clone's definition as it is sent: with its mark, and a title that says it is unfinished.
pub(super) fn definition(context: &Context) -> Result<String, Failure> {
    let planned = Definition::parse(&context.plan.definition).map_err(|error| unusable(&error))?;
    let title = format!("unfinished clone {}: do not start", context.plan.txn.short());
    let changes = Rewrite {
        title: Change::Set(title),
        mark: Change::Set(mark(context, MarkState::Unfinished)?),
        ..Rewrite::default()
    };
    rewrite(&planned, &changes).map_err(|error| unusable(&error))
}

pub(super) fn unusable(error: &DomainError) -> Failure {
    Failure::Refusal(journal_format::FailureV1 {
        class: FailureClassV1::TurnBack,
        exit: 1,
        message: format!("the clone's definition cannot be made: {error}"),
        advice: "correct the source's definition, then clone again".to_owned(),
    })
}
