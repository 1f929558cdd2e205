//! Does the VM fit the destination? Networks, emulator, memory, CPUs, versions, and what others have already.

use std::time::Duration;

use super::{BlockerKind, Report, WarningKind};
use crate::domain::DiskDevice;
use crate::report::quantity::{bytes, duration};
use crate::request::Request;
use crate::shell::shell_word;
use crate::survey::{EmulatorFacts, FirmwareFacts, Neighbour, Rehearsal, Survey};

/// Clocks that are further apart are told. What the link itself takes is well below.
const CLOCK_SECONDS_MAX: u64 = 5;

pub(super) fn check(report: &mut Report, request: &Request, survey: &Survey) {
    check_networks(report, request, survey);
    check_bridges(report, request, survey);
    check_mappings(report, request, survey);
    check_media(report, survey);
    check_emulator(report, survey);
    check_cpu(report, survey);
    check_size(report, survey);
    check_versions(report, survey);
    check_swtpm(report, survey);
    check_clocks(report, survey);
    if request.preserve_mac {
        check_macs(report, survey);
    }
}

/// What the destination's libvirt says of the clone's whole definition.
pub(super) fn check_rehearsal(report: &mut Report, survey: &Survey, rehearsal: &Rehearsal) {
    let host = survey.destination.name.as_str();
    match rehearsal {
        Rehearsal::Refused(words) => report.block(
            BlockerKind::Rehearsal,
            host,
            format!("{host}: libvirt could not start the clone as it would be defined: {words}."),
            "Change the source's definition, or update libvirt and QEMU there.",
        ),
        Rehearsal::Accepted { firmware } => check_firmware(report, survey, firmware.as_ref()),
    }
}

/// Variables fit code of one size and layout; another build of the same is usual among hosts.
fn check_firmware(report: &mut Report, survey: &Survey, theirs: Option<&FirmwareFacts>) {
    let Some(ours) = &survey.source.firmware else { return };
    let (from, to) = (survey.source.name.as_str(), survey.destination.name.as_str());
    let Some(theirs) = theirs else {
        report.block(
            BlockerKind::Firmware,
            to,
            format!("{to}: the clone would start with other firmware than UEFI in flash memory, which {from} starts the VM with ({}).", ours.path),
            "Install the same firmware there (package ovmf or edk2-ovmf).",
        );
        return;
    };
    if theirs.bytes.is_none() || theirs.bytes != ours.bytes {
        let size = |facts: &FirmwareFacts| facts.bytes.map_or_else(|| "missing".to_owned(), bytes);
        report.block(
            BlockerKind::Firmware,
            to,
            format!(
                "{to}: the clone would start with the firmware {} ({}), and {from} starts the VM with {} ({}): its variables do not fit another size.",
                theirs.path, size(theirs), ours.path, size(ours)
            ),
            "Install the same firmware there (package ovmf or edk2-ovmf).",
        );
    } else if theirs.root != ours.root {
        report.warn(
            WarningKind::FirmwareBuild,
            to,
            format!("{to}: the firmware {} is another build than {} on {from}.", theirs.path, ours.path),
            "Start the clone once with an eye on its console.",
        );
    }
}

fn check_networks(report: &mut Report, request: &Request, survey: &Survey) {
    let host = survey.destination.name.as_str();
    for wanted in survey.source.networks() {
        let name = request.mapped_network(wanted);
        match survey.destination.networks.iter().find(|network| network.name == name) {
            Some(network) if network.active => {}
            Some(_) if request.start => report.block(
                BlockerKind::NetworkInactive,
                host,
                format!("{host}: the network {name} is not active, and the clone is to be started."),
                format!("Start it (`virsh net-start {}`).", shell_word(name)),
            ),
            Some(_) => report.warn(
                WarningKind::NetworkInactive,
                host,
                format!("{host}: the network {name} is not active: the clone cannot be started before it is."),
                format!("Start it (`virsh net-start {}`).", shell_word(name)),
            ),
            None => {
                let known: Vec<_> = survey.destination.networks.iter().map(|network| network.name.as_str()).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                report.block(
                    BlockerKind::NetworkMissing,
                    host,
                    format!("{host}: there is no network {name}; networks there: {known}."),
                    format!("Define it there, or give another one with --network-map {wanted}=…."),
                );
            }
        }
    }
}

fn check_bridges(report: &mut Report, request: &Request, survey: &Survey) {
    let host = survey.destination.name.as_str();
    for wanted in survey.source.bridges() {
        let name = request.mapped_network(wanted);
        if !survey.destination.bridges.contains(name) {
            report.block(
                BlockerKind::BridgeMissing,
                host,
                format!("{host}: there is no bridge {name}."),
                format!("Make it there, or give another one with --network-map {wanted}=…."),
            );
        }
    }
}

fn check_mappings(report: &mut Report, request: &Request, survey: &Survey) {
    let used: Vec<_> = survey.source.networks().into_iter().chain(survey.source.bridges()).collect();
    let (host, vm) = (survey.source.name.as_str(), &survey.source.vm.brief.name);
    for mapping in request.network_map.iter().filter(|mapping| !used.contains(&mapping.from.as_str())) {
        let known = if used.is_empty() { "none".to_owned() } else { used.join(", ") };
        report.block(
            BlockerKind::MappingUnused,
            host,
            format!(
                "--network-map {}={}: VM {vm} uses no network or bridge {}; it uses: {known}.",
                mapping.from, mapping.to, mapping.from
            ),
            "Correct the name, or leave the mapping out.",
        );
    }
}

/// Media that are not copied: the destination has them, or the drive is emptied. A disk cannot be emptied.
fn check_media(report: &mut Report, survey: &Survey) {
    let (host, from) = (survey.destination.name.as_str(), survey.source.name.as_str());
    let media = &survey.destination.media;
    for disk in survey.source.definition.media() {
        let Some(path) = disk.medium().filter(|path| media.get(*path) == Some(&false)) else { continue };
        let target = &disk.target;
        if disk.device == DiskDevice::Disk {
            report.block(
                BlockerKind::MediumMissing,
                host,
                format!("{host}: disk {target}, which the VM only reads or shares on {from}: there is no {path}."),
                "Bring it there under the same path, or copy it with --copy-media.",
            );
        } else {
            report.warn(
                WarningKind::DriveEmptied,
                host,
                format!("{host}: there is no {path}: the clone's drive {target} will be empty."),
                "Bring it there under the same path, or copy it with --copy-media.",
            );
        }
    }
}

fn check_emulator(report: &mut Report, survey: &Survey) {
    let host = survey.destination.name.as_str();
    let definition = &survey.source.definition;
    match (&survey.destination.emulator, &definition.emulator) {
        (EmulatorFacts::Refused(words), _) => {
            let part = |part: &Option<String>| part.clone().unwrap_or_else(|| "default".to_owned());
            report.block(
                BlockerKind::Emulator,
                host,
                format!(
                    "{host}: there is no emulator for architecture {}, machine type {} and virtualization {}: {words}.",
                    part(&definition.os.arch),
                    part(&definition.os.machine),
                    definition.virt_type
                ),
                "Install or update QEMU there; for kvm, see that /dev/kvm exists.",
            );
        }
        (EmulatorFacts::Path(theirs), Some(ours)) if theirs != ours => report.warn(
            WarningKind::EmulatorPath,
            host,
            format!("{host}: the clone's emulator will be {theirs}; the source's is {ours}."),
            "",
        ),
        (EmulatorFacts::Path(_), _) => {}
    }
}

/// A CPU by model and features. `check='none'` lets QEMU start it without what is missing.
fn check_cpu(report: &mut Report, survey: &Survey) {
    let Some(words) = &survey.destination.cpu_lacks else { return };
    let host = survey.destination.name.as_str();
    let advice = "Give the VM a CPU model that both hosts have (virsh edit).";
    if survey.source.definition.cpu_check.as_deref() == Some("none") {
        let message = format!("{host}: the guest will see another CPU than the definition says: {words}.");
        report.warn(WarningKind::CpuFeatures, host, message, advice);
    } else {
        let message = format!("{host}: the clone's CPU cannot be had here: {words}.");
        report.block(BlockerKind::Cpu, host, message, advice);
    }
}

fn check_swtpm(report: &mut Report, survey: &Survey) {
    let Some(ours) = &survey.source.swtpm else { return };
    let (from, host) = (survey.source.name.as_str(), survey.destination.name.as_str());
    let message = match &survey.destination.swtpm {
        None => format!("{host}: there is no swtpm, and {from} has {ours}: the clone's TPM cannot be started here."),
        Some(theirs) if is_older(theirs, ours) => {
            format!("{host} has swtpm {theirs}, older than the {ours} of {from}: it may not read the TPM's state.")
        }
        Some(_) => return,
    };
    report.warn(WarningKind::OlderSwtpm, host, message, "Install swtpm there as it is on the source.");
}

/// Compares versions number by number.
fn is_older(version: &str, other: &str) -> bool {
    let numbers = |text: &str| text.split('.').map(|part| part.parse().unwrap_or(0_u64)).collect::<Vec<_>>();
    numbers(version) < numbers(other)
}

/// Clocks that are apart make times in logs lie, and certificates fail.
fn check_clocks(report: &mut Report, survey: &Survey) {
    let sides = [(&survey.source.name, &survey.source.host), (&survey.destination.name, &survey.destination.host)];
    for (host, facts) in sides {
        let seconds = facts.clock_ahead_ms / 1000;
        if seconds.unsigned_abs() > CLOCK_SECONDS_MAX {
            let side = if seconds > 0 { "ahead of" } else { "behind" };
            let apart = duration(Duration::from_secs(seconds.unsigned_abs()));
            report.warn(
                WarningKind::Clock,
                host,
                format!("{host}: its clock is {apart} {side} this machine's."),
                "Let both keep time (chrony, systemd-timesyncd).",
            );
        }
    }
}

fn check_size(report: &mut Report, survey: &Survey) {
    let (host, facts) = (survey.destination.name.as_str(), &survey.destination.host);
    let definition = &survey.source.definition;
    if definition.memory_bytes > facts.memory_bytes {
        report.warn(
            WarningKind::Memory,
            host,
            format!(
                "{host} has {} of memory, and the VM has {}: it may not start there.",
                bytes(facts.memory_bytes),
                bytes(definition.memory_bytes)
            ),
            "",
        );
    }
    if definition.vcpus > facts.cpus {
        report.warn(
            WarningKind::Cpus,
            host,
            format!(
                "{host} has {} CPUs, and the VM has {}: it will be slow, or may not start there.",
                facts.cpus, definition.vcpus
            ),
            "",
        );
    }
}

fn check_versions(report: &mut Report, survey: &Survey) {
    let (from, to) = (&survey.source.host, &survey.destination.host);
    let host = survey.destination.name.as_str();
    let mut compare = |kind, what, source, destination| {
        if destination < source {
            report.warn(
                kind,
                host,
                format!(
                    "{host} has {what} {}, older than the {} of {}: it may not know all that the VM uses.",
                    version(destination),
                    version(source),
                    survey.source.name
                ),
                "",
            );
        }
    };
    compare(WarningKind::OlderLibvirt, "libvirt", from.libvirt_version, to.libvirt_version);
    compare(WarningKind::OlderHypervisor, "QEMU", from.hypervisor_version, to.hypervisor_version);
}

/// A version as people write it, from libvirt's 1,000,000 × major + 1,000 × minor + release.
fn version(encoded: u64) -> String {
    format!("{}.{}.{}", encoded / 1_000_000, encoded / 1_000 % 1_000, encoded % 1_000)
}

/// Kept addresses that another VM has too. The source has them by intention, and is named only where the clone will be
/// on its own host.
fn check_macs(report: &mut Report, survey: &Survey) {
    let vm = &survey.source.vm.brief;
    let elsewhere = |neighbour: &&Neighbour| survey.one_machine() || neighbour.brief.uuid != vm.uuid;
    let sides = [
        (survey.source.name.as_str(), &survey.source.neighbours, !survey.one_machine()),
        (survey.destination.name.as_str(), &survey.destination.neighbours, true),
    ];
    for (host, neighbours, counts) in sides {
        for neighbour in neighbours.iter().filter(elsewhere).filter(|_| counts) {
            for mac in survey.source.definition.macs().filter(|mac| neighbour.macs.contains(mac)) {
                report.warn(
                    WarningKind::MacShared,
                    host,
                    format!(
                        "{host}: VM {} has the MAC address {mac} too: on one network the two disturb each other.",
                        neighbour.brief.name
                    ),
                    "Leave --preserve-mac out, or keep the two apart.",
                );
            }
        }
    }
}
