//! What stands beside the devices: firmware, memory, CPUs, security, and libvirt's own extensions.

use roxmltree::Node;

use super::{Findings, LEAVE_OUT};
use crate::domain::xml::{child, content, elements, named};

/// Elements of `<domain>` that are carried as they are, or are looked at here. After libvirt's formatdomain.html.
const KNOWN: &[&str] = &[
    "blkiotune",
    "clock",
    "cpu",
    "cputune",
    "currentMemory",
    "defaultiothread",
    "description",
    "devices",
    "features",
    "genid",
    "iothreadids",
    "iothreads",
    "keywrap",
    "launchSecurity",
    "maxMemory",
    "memory",
    "memoryBacking",
    "memtune",
    "metadata",
    "name",
    "numatune",
    "on_crash",
    "on_lockfailure",
    "on_poweroff",
    "on_reboot",
    "os",
    "perf",
    "pm",
    "resource",
    "seclabel",
    "sysinfo",
    "throttlegroups",
    "title",
    "uuid",
    "vcpu",
    "vcpus",
];

const OS_KNOWN: &[&str] = &[
    "acpi", "bios", "boot", "bootmenu", "cmdline", "dtb", "firmware", "initrd", "kernel", "loader", "nvram", "shim",
    "smbios", "type",
];

/// The namespace of libvirt's pass-through to QEMU.
const QEMU: &str = "http://libvirt.org/schemas/domain/qemu/1.0";

/// The advice for what pins a VM to one host's hardware.
const UNPIN: &str =
    "Take it out of the source's definition first (virsh edit), and set it on the clone for its own host";

pub(super) fn look(findings: &mut Findings, domain: Node<'_, '_>) {
    let kind = domain.attribute("type").unwrap_or_default();
    if !matches!(kind, "kvm" | "qemu") {
        let what = format!("a domain of type {kind:?}");
        findings.block("domain", &what, "only kvm and qemu are carried", "There is no way around this yet");
    }
    for element in elements(domain) {
        look_element(findings, element);
    }
}

fn look_element(findings: &mut Findings, element: Node<'_, '_>) {
    let name = element.tag_name().name();
    match (element.tag_name().namespace(), name) {
        (Some(QEMU), "commandline") => findings.block_node(
            element,
            "qemu:commandline",
            "arguments for QEMU itself",
            "they may name files, ports and devices of the source's host",
            LEAVE_OUT,
        ),
        // They switch features of QEMU and name nothing of the host.
        (Some(QEMU), "capabilities" | "deprecation" | "override") => {}
        (None, "os") => look_os(findings, element),
        (None, "memoryBacking") => look_memory_backing(findings, element),
        (None, "vcpu") if element.has_attribute("cpuset") => {
            findings.block("vcpu", "CPUs of the host by number (cpuset)", "the destination's are others", UNPIN);
        }
        (None, "cputune") => look_cputune(findings, element),
        (None, "numatune") => look_numatune(findings, element),
        (None, "seclabel") if element.attribute("type") == Some("static") => findings.block(
            "seclabel",
            "a static security label",
            "the clone would share it with the source, and the destination may not know it",
            "Make it dynamic in the source's definition (virsh edit)",
        ),
        (None, "launchSecurity") => findings.block_node(
            element,
            "launchSecurity",
            "an encrypted guest (launchSecurity)",
            "its keys belong to the source's hardware",
            "Clone this VM by hand",
        ),
        (None, "resource") => look_resource(findings, element),
        (None, name) if KNOWN.contains(&name) => {}
        _ => findings.block_unknown(element, "domain"),
    }
}

fn look_os(findings: &mut Findings, os: Node<'_, '_>) {
    findings.know_children(os, "os", OS_KNOWN);
    let kind = child(os, "type").map(content).unwrap_or_default();
    if kind.trim() != "hvm" {
        let what = format!("a guest of type {:?}", kind.trim());
        findings.block("os", &what, "only full virtual machines (hvm) are carried", "There is no way around this yet");
    }
    if let Some(loader) = child(os, "loader").filter(|node| node.attribute("type") == Some("pflash")) {
        // Preflight compares it with the destination's.
        findings.settle([loader]);
    }
    if let Some(nvram) = child(os, "nvram") {
        look_variables(findings, nvram);
    }
    let files =
        [("kernel", "a kernel of the host"), ("initrd", "an initrd of the host"), ("dtb", "a device tree of the host")];
    let files = files.into_iter().chain([("shim", "a boot shim of the host"), ("loader", "firmware of the host")]);
    for (name, what) in files {
        for node in named(os, name) {
            let path = content(node).trim().to_owned();
            if !path.is_empty() && !findings.is_settled(node) {
                let what = format!("{what} ({path})");
                findings.block_node(node, "os", &what, "files outside the disks are not carried yet", LEAVE_OUT);
            }
        }
    }
    if child(os, "smbios").is_some_and(|node| node.attribute("mode") == Some("host")) {
        findings.warn(
            "os",
            "SMBIOS data of the host",
            "the clone will see its own host's",
            "Nothing needs to be done, unless a licence in the guest hangs on it",
        );
    }
}

/// The variables of UEFI firmware: a file is carried.
fn look_variables(findings: &mut Findings, nvram: Node<'_, '_>) {
    match nvram.attribute("type") {
        None | Some("file") => findings.settle([nvram]),
        Some(kind) => {
            let what = format!("UEFI variables in a {kind}");
            findings.block_node(nvram, "os", &what, "only those in a file are carried", LEAVE_OUT);
        }
    }
    if let Some(format) = nvram.attribute("format").filter(|format| !matches!(*format, "raw" | "qcow2")) {
        let what = format!("UEFI variables of format {format:?}");
        findings.block("os", &what, "only raw and qcow2 are carried", LEAVE_OUT);
    }
}

fn look_memory_backing(findings: &mut Findings, backing: Node<'_, '_>) {
    let known = ["access", "allocation", "discard", "hugepages", "locked", "nosharepages", "source"];
    findings.know_children(backing, "memoryBacking", &known);
    if child(backing, "hugepages").is_some() {
        findings.block(
            "memoryBacking",
            "huge pages",
            "whether the destination has them set aside is not looked at yet",
            "Take <hugepages> out of the source's definition first (virsh edit), and set it on the clone for its own host",
        );
    }
    if child(backing, "source").is_some_and(|source| source.attribute("type") == Some("file")) {
        findings.block(
            "memoryBacking",
            "memory in a file of the host",
            "the file's place belongs to the source's host",
            UNPIN,
        );
    }
}

fn look_cputune(findings: &mut Findings, tune: Node<'_, '_>) {
    let pinned = elements(tune).filter(|node| node.has_attribute("cpuset")).count();
    if pinned > 0 {
        let what = format!("CPUs of the host by number (in {pinned} pinnings)");
        findings.block("cputune", &what, "the destination's are others", UNPIN);
    }
    for name in ["cachetune", "memorytune"] {
        if child(tune, name).is_some() {
            let what = format!("a share of the host's cache or memory bandwidth (<{name}>)");
            findings.block("cputune", &what, "it names CPUs and caches of the source's host", UNPIN);
        }
    }
}

fn look_numatune(findings: &mut Findings, tune: Node<'_, '_>) {
    if elements(tune).any(|node| node.has_attribute("nodeset")) {
        findings.block("numatune", "NUMA nodes of the host by number", "the destination's are others", UNPIN);
    }
}

fn look_resource(findings: &mut Findings, resource: Node<'_, '_>) {
    let Some(partition) = child(resource, "partition") else { return };
    findings.settle([partition]);
    let path = content(partition).trim().to_owned();
    // libvirt's own default.
    if path != "/machine" {
        let what = format!("a resource partition of the host ({path})");
        findings.block("resource", &what, "whether the destination has it is not looked at yet", UNPIN);
    }
}
