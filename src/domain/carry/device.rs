//! Devices that are neither disks nor network interfaces.

use roxmltree::Node;

use super::{Findings, LEAVE_OUT, disk, interface};
use crate::domain::xml::{child, content, elements, named};

/// Devices that are nothing but what they say. A path in one of them is named by `path`.
const PLAIN: &[&str] = &[
    "controller",
    "crypto",
    "emulator",
    "hub",
    "input",
    "iommu",
    "memballoon",
    "nvram",
    "panic",
    "redirfilter",
    "sound",
    "video",
    "watchdog",
];

pub(super) fn look(findings: &mut Findings, node: Node<'_, '_>) {
    if node.tag_name().namespace().is_some() {
        return findings.block_unknown(node, "devices");
    }
    match node.tag_name().name() {
        "disk" => disk::look(findings, node),
        "interface" => interface::look(findings, node),
        "serial" | "parallel" | "console" | "channel" | "redirdev" => look_character(findings, node),
        "smartcard" => look_smartcard(findings, node),
        "rng" => look_rng(findings, node),
        "graphics" => look_graphics(findings, node),
        "audio" => look_audio(findings, node),
        "memory" => look_memory(findings, node),
        "vsock" => look_vsock(findings, node),
        "tpm" => look_tpm(findings, node),
        "hostdev" => refuse(findings, node, "a device of the host", "it belongs to the source's host"),
        "filesystem" => refuse(findings, node, "a shared directory of the host", "it belongs to the source's host"),
        "shmem" => refuse(findings, node, "memory shared on the host", "it belongs to the source's host"),
        "lease" => refuse(findings, node, "a lease", "it belongs to the source's lock space"),
        "pstore" => refuse(findings, node, "a persistent store", "its file is not carried yet"),
        name if PLAIN.contains(&name) => {}
        _ => findings.block_unknown(node, "devices"),
    }
}

/// Names a device as a whole, with what it points at.
fn refuse(findings: &mut Findings, node: Node<'_, '_>, what: &str, why: &str) {
    let place = format!("device <{}>", node.tag_name().name());
    let pointed =
        node.descendants().filter(|part| matches!(part.tag_name().name(), "source" | "backend" | "address" | "pool"));
    let details = pointed.take(2).map(crate::domain::definition::describe).filter(|text| !text.is_empty());
    let details = details.collect::<Vec<_>>().join(", ");
    let what = if details.is_empty() { what.to_owned() } else { format!("{what} ({details})") };
    findings.block_node(node, &place, &what, why, LEAVE_OUT);
}

/// Serial lines, channels and the like, each with a source on the host.
fn look_character(findings: &mut Findings, node: Node<'_, '_>) {
    let name = node.tag_name().name();
    let place = match child(node, "target").and_then(|target| target.attribute("name")) {
        Some(target) => format!("{name} {target}"),
        None => format!("device <{name}>"),
    };
    if let Some(log) = child(node, "log") {
        findings.block_node(
            log,
            &place,
            &format!("a log file of the host ({})", log.attribute("file").unwrap_or_default()),
            "the clone would write into the same path, and files outside the disks are not carried",
            LEAVE_OUT,
        );
    }
    look_character_source(findings, node, &place, node.attribute("type").unwrap_or_default());
}

fn look_character_source(findings: &mut Findings, node: Node<'_, '_>, place: &str, kind: &str) {
    let source = child(node, "source");
    let of = |name: &str| source.and_then(|source| source.attribute(name)).unwrap_or_default();
    match kind {
        // libvirt makes a new terminal at each start, whatever path stands here.
        "pty" | "null" | "vc" | "stdio" | "spicevmc" | "qemu-vdagent" | "dbus" => {
            findings.settle(source);
        }
        // libvirt chooses the path of a socket that has none.
        "unix" if of("path").is_empty() => {}
        "unix" | "file" | "dev" | "pipe" | "nmdm" | "spiceport" => {
            let pointed = source.map(crate::domain::definition::describe).unwrap_or_default();
            findings.block_node(
                node,
                place,
                &format!("a {kind} of the host ({pointed})"),
                "a fixed name belongs to one VM of one host, and is not renewed yet",
                LEAVE_OUT,
            );
        }
        "tcp" | "udp" => {
            let pointed: Vec<_> = named(node, "source").map(crate::domain::definition::describe).collect();
            findings.warn(
                place,
                &format!("a fixed network address ({})", pointed.join("; ")),
                "the clone uses the same one: where it listens, no other program of its host may",
                "Change it on the clone before its first start, if both run on one host",
            );
        }
        other => {
            let what = format!("a source of type {other:?}");
            findings.block_node(node, place, &what, "this version of kvm-clone does not know what it needs", LEAVE_OUT);
        }
    }
}

fn look_smartcard(findings: &mut Findings, node: Node<'_, '_>) {
    if node.attribute("mode") == Some("passthrough") {
        look_character_source(findings, node, "device <smartcard>", node.attribute("type").unwrap_or_default());
    } else {
        refuse(findings, node, "a smart card of the host", "its certificates belong to the source's host");
    }
}

fn look_rng(findings: &mut Findings, node: Node<'_, '_>) {
    for backend in named(node, "backend") {
        match backend.attribute("model") {
            Some("random") if matches!(content(backend).trim(), "" | "/dev/urandom" | "/dev/random" | "/dev/hwrng") => {
                findings.settle([backend]);
            }
            Some("egd") => {
                look_character_source(findings, backend, "device <rng>", backend.attribute("type").unwrap_or_default());
            }
            // Any other file is a path of the host, and named as one.
            Some("random" | "builtin") => {}
            _ => findings.block_unknown(backend, "device <rng>"),
        }
    }
}

fn look_graphics(findings: &mut Findings, node: Node<'_, '_>) {
    let kind = node.attribute("type").unwrap_or_default();
    let place = format!("graphics {kind}");
    match kind {
        "vnc" | "spice" | "egl-headless" => {}
        "dbus" if !node.has_attribute("address") => {}
        _ => {
            return refuse(
                findings,
                node,
                "graphics on the host's own display or bus",
                "it belongs to the source's host",
            );
        }
    }
    let ports =
        [("port", node.attribute("autoport") != Some("yes")), ("tlsPort", node.attribute("autoport") != Some("yes"))];
    for (name, _) in ports.into_iter().chain([("websocket", true)]).filter(|(_, is_fixed)| *is_fixed) {
        if let Some(port) = node.attribute(name).and_then(|port| port.parse::<u16>().ok()).filter(|port| *port != 0) {
            findings.warn(
                &place,
                &format!("a fixed port ({name} {port})"),
                "the clone uses the same one, and does not start while another VM of its host has it",
                "autoport='yes' in the source's definition lets libvirt choose",
            );
        }
    }
    let own = std::iter::once(node).filter(|node| child(*node, "listen").is_none());
    for listen in own.chain(named(node, "listen")) {
        look_listen(findings, listen, &place);
    }
}

fn look_listen(findings: &mut Findings, listen: Node<'_, '_>, place: &str) {
    if listen.attribute("type") == Some("network") && listen.has_attribute("network") {
        let what = format!("a console on the network {}", listen.attribute("network").unwrap_or_default());
        let why = "whether the destination has it is not looked at yet";
        findings.block(place, &what, why, "Make it an address in the source's definition (virsh edit)");
    }
    let address = listen.attribute("address").or_else(|| listen.attribute("listen")).unwrap_or_default();
    if !matches!(address, "" | "0.0.0.0" | "127.0.0.1" | "::" | "::1" | "localhost") {
        findings.warn(
            place,
            &format!("a console on the address {address}"),
            "the destination must have it, or the clone will not start",
            "Change it on the clone, or let it listen on 0.0.0.0 or 127.0.0.1",
        );
    }
}

fn look_audio(findings: &mut Findings, node: Node<'_, '_>) {
    let kind = node.attribute("type").unwrap_or_default();
    if !matches!(kind, "none" | "spice" | "dbus") {
        refuse(findings, node, &format!("sound through the host's {kind}"), "it belongs to the source's host");
    }
}

fn look_memory(findings: &mut Findings, node: Node<'_, '_>) {
    let model = node.attribute("model").unwrap_or_default();
    if !matches!(model, "dimm" | "virtio-mem") {
        return refuse(
            findings,
            node,
            &format!("memory of model {model}"),
            "it is kept on, or tied to, the source's host",
        );
    }
    if let Some(source) = child(node, "source").filter(|source| elements(*source).next().is_some()) {
        findings.block_node(
            source,
            "device <memory>",
            "memory from chosen NUMA nodes or pages of the host",
            "the destination's are others",
            LEAVE_OUT,
        );
    }
}

/// An emulated TPM is carried with its state.
fn look_tpm(findings: &mut Findings, node: Node<'_, '_>) {
    let Some(backend) = child(node, "backend").filter(|backend| backend.attribute("type") == Some("emulator")) else {
        return refuse(findings, node, "a TPM of the host", "it belongs to the source's host");
    };
    let place = "device <tpm>";
    if child(backend, "encryption").is_some() {
        let why = "the secret that opens its state is not carried";
        return findings.block_node(node, place, "an encrypted TPM", why, LEAVE_OUT);
    }
    for element in elements(backend) {
        match element.tag_name().name() {
            // Which banks and profile it began with; libvirt and swtpm know them.
            "active_pcr_banks" | "profile" => {}
            "source" => {
                let what = "a TPM whose state lies in a place of its own";
                findings.block_node(element, place, what, "only libvirt's own place for it is known here", LEAVE_OUT);
            }
            _ => findings.block_unknown(element, place),
        }
    }
}

fn look_vsock(findings: &mut Findings, node: Node<'_, '_>) {
    let Some(cid) = child(node, "cid").filter(|cid| cid.attribute("auto") != Some("yes")) else { return };
    findings.block_node(
        node,
        "device <vsock>",
        &format!("a fixed address for vsock (CID {})", cid.attribute("address").unwrap_or("?")),
        "only one VM of a host can have it, and it is not renewed yet",
        "Write <cid auto='yes'/> into the source's definition (virsh edit)",
    );
}
