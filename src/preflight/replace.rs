//! May the VM that has the clone's name be replaced, and what is it? And the identity that a clone may share with its source.

use journal_format::{OldFileFateV1, PlanV1, StopModeV1};

use super::{BlockerKind, Report, WarningKind};
use crate::domain::MarkState;
use crate::request::{Occupied, Request};
use crate::shell::shell_word;
use crate::survey::Survey;
use crate::survey::old_vm::OldVm;
use crate::world::DomainState;

pub(super) fn check(report: &mut Report, request: &Request, survey: &Survey) {
    if request.preserve_uuid {
        check_identity(report, request, survey);
    }
    if let Some(old) = &survey.destination.old {
        check_old(report, request, survey, old);
    }
}

fn check_old(report: &mut Report, request: &Request, survey: &Survey, old: &OldVm) {
    let (host, name) = (survey.destination.name.as_str(), &survey.new_name);
    let word = shell_word(name.as_str());
    if !old.vm.persistent {
        report.block(
            BlockerKind::OldVmTransient,
            host,
            format!("{host}: VM {name} is transient, and cannot be replaced: stopped, it could not come back."),
            "Shut it down, or choose another name with --new-name.",
        );
    }
    if let Err(error) = &old.definition {
        report.block(
            BlockerKind::OldVmDefinition,
            host,
            format!("{host}: the definition of VM {name} cannot be read: {error}."),
            format!("Look at it with `virsh dumpxml --inactive {word}`, or choose another name with --new-name."),
        );
    }
    if old.vm.brief.state == DomainState::Active && request.stop == StopModeV1::Never {
        report.block(
            BlockerKind::OldVmRunning,
            host,
            format!("{host}: VM {name} is running, and --stop never forbids to stop it."),
            format!("Shut it down (`virsh shutdown {word}`), or allow it with --stop shutdown, save or destroy."),
        );
    }
    let unrenamable = [(old.vm.managed_save, "a saved memory state"), (old.vm.checkpoints > 0, "checkpoints")];
    for (_, what) in unrenamable.into_iter().filter(|(there, _)| *there && request.keep_replaced) {
        report.block(
            BlockerKind::OldVmKept,
            host,
            format!("{host}: VM {name} has {what}, with which libvirt renames no VM: it cannot be kept."),
            "Remove that, or leave --keep-replaced out.",
        );
    }
    if request.preserve_uuid && old.vm.brief.uuid == survey.source.vm.brief.uuid {
        report.block(
            BlockerKind::OldVmSameUuid,
            host,
            format!("{host}: VM {name} has the UUID {} that the clone is to keep: the two cannot stand side by side until the commit.", old.vm.brief.uuid),
            format!("Leave --preserve-uuid out, or undefine that VM first (`virsh undefine --keep-nvram {word}`)."),
        );
    }
}

/// Says what the plan would replace, and what is left of it.
pub(super) fn warn(report: &mut Report, request: &Request, survey: &Survey, plan: &PlanV1) {
    let (Some(old), Some(replaced)) = (&survey.destination.old, &plan.replaced) else { return };
    let (host, name) = (survey.destination.name.as_str(), &survey.new_name);
    let end = match (old.vm.brief.state, request.keep_replaced) {
        (_, true) => format!("kept as {}", replaced.kept_name),
        (_, false) => format!(
            "undefined, and {} deleted",
            files(replaced.files.iter().filter(|file| matches!(file.fate, OldFileFateV1::Deleted { .. })).count())
        ),
    };
    let saved =
        if old.vm.managed_save && !request.keep_replaced { " Its saved memory state goes with it." } else { "" };
    let lost = match (old.vm.snapshots, old.vm.checkpoints) {
        (0, 0) => String::new(),
        _ if request.keep_replaced => String::new(),
        (snapshots, checkpoints) => {
            format!(" What libvirt knows of its snapshots ({snapshots}) and checkpoints ({checkpoints}) goes with it.")
        }
    };
    let stopped = match (replaced.running, request.stop) {
        (false, _) | (true, StopModeV1::Never) => "",
        (true, StopModeV1::Save) => {
            " It is stopped just before the commit, its memory saved for a rollback and given up at the commit."
        }
        (true, StopModeV1::Destroy) => " It is switched off just before the commit.",
        (true, StopModeV1::Shutdown) => " It is shut down just before the commit.",
    };
    let then = match (replaced.running && !request.start, old.vm.autostart && !plan.autostart) {
        (true, true) => {
            " The clone is not started (--start does that), and will not start with its host, as that VM does."
        }
        (true, false) => " The clone is not started: --start does that.",
        (false, true) => " The clone will not start with its host, as that VM does.",
        (false, false) => "",
    };
    report.warn(
        WarningKind::Replaces,
        host,
        format!(
            "{host}: VM {name} is there already (UUID {}): {}. It will be replaced: {end}.{stopped}{saved}{lost}{then}",
            old.vm.brief.uuid,
            describe(survey, old)
        ),
        "",
    );
    if request.keep_replaced {
        return;
    }
    for file in &replaced.files {
        if let OldFileFateV1::Left { why } = &file.fate {
            report.warn(
                WarningKind::OldFileLeft,
                host,
                format!("{host}: {} of VM {name} ({}) will be left where it is: {why}.", file.path, file.role),
                "",
            );
        }
    }
}

fn files(count: usize) -> String {
    format!("{count} of its files {}", if count == 1 { "is" } else { "are" })
}

/// Made from this source or not, running, changed since.
fn describe(survey: &Survey, old: &OldVm) -> String {
    let source = &survey.source;
    let origin = match &old.mark {
        None => "not made by kvm-clone".to_owned(),
        Some(mark) if mark.state == MarkState::Unfinished => format!("an unfinished clone of transaction {}", mark.txn),
        Some(mark) if mark.source_uuid == source.vm.brief.uuid && mark.source_machine_id == source.host.machine_id => {
            format!("a clone of this VM, made by transaction {}", mark.txn)
        }
        Some(mark) => format!("a clone of another VM ({} on {})", mark.source_uuid, mark.source_host),
    };
    let state = if old.vm.brief.state == DomainState::Active { "running" } else { "shut off" };
    match old.changed.as_ref().filter(|_| old.vm.brief.state == DomainState::ShutOff) {
        Some(changed) => format!("{origin}, {state}; {changed}"),
        None => format!("{origin}, {state}"),
    }
}

/// Bytes that its saved memory may take in the plan's first directory.
pub(super) fn memory_bytes(request: &Request, survey: &Survey) -> u64 {
    let old = survey
        .destination
        .old
        .as_ref()
        .filter(|old| old.vm.brief.state == DomainState::Active && request.stop == StopModeV1::Save);
    old.and_then(|old| old.definition.as_ref().ok()).map_or(0, |definition| definition.memory_bytes)
}

/// A clone with its source's UUID is the same machine to everything that looks at it.
fn check_identity(report: &mut Report, request: &Request, survey: &Survey) {
    let (host, vm) = (survey.destination.name.as_str(), &survey.source.vm.brief);
    let namesake = survey.destination.neighbours.iter().find(|neighbour| neighbour.brief.uuid == vm.uuid);
    // The old VM's own UUID is told with it.
    if let Some(other) = namesake.filter(|other| other.brief.name != survey.new_name.as_str()) {
        report.block(
            BlockerKind::UuidTaken,
            host,
            format!("{host}: VM {} has the UUID {} already, and a host has a UUID once.", other.brief.name, vm.uuid),
            "Leave --preserve-uuid out.",
        );
    }
    let when = match (request.start, survey.source.vm.autostart) {
        (true, false) => "Shut the source off for good: the clone is started at the end.",
        (true, true) => {
            "Shut the source off for good (`virsh autostart --disable`): the clone is started at the end, and does not start with its host."
        }
        (false, false) => "Start one of them only, and undefine the other.",
        (false, true) => {
            "Start one of them only, and undefine the other. The clone does not start with its host, as the source does."
        }
    };
    report.warn(
        WarningKind::SameIdentity,
        host,
        format!(
            "{host}: the clone will have the UUID {}{} of VM {} on {}: to networks, licences and backups the two are one machine.",
            vm.uuid,
            if request.preserve_mac { " and the MAC addresses" } else { "" },
            vm.name,
            survey.source.name
        ),
        when,
    );
}

/// Is there nothing to do?
pub(super) fn is_up_to_date(request: &Request, survey: &Survey) -> bool {
    let old = survey.destination.old.as_ref().filter(|_| request.occupied == Occupied::ReplaceIfChanged);
    old.is_some_and(|old| old.changed.is_none())
}
