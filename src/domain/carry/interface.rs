//! Network interfaces: plugged into a network or a bridge that the destination has too, or into QEMU's own network.

use std::collections::BTreeSet;

use roxmltree::Node;

use super::{Findings, LEAVE_OUT};
use crate::domain::definition::is_automatic_tap;
use crate::domain::xml::child;
use crate::domain::{Definition, InterfaceSource};

const KNOWN: &[&str] = &[
    "acpi",
    "address",
    "alias",
    "backend",
    "bandwidth",
    "boot",
    "coalesce",
    "driver",
    "filterref",
    "guest",
    "ip",
    "link",
    "mac",
    "model",
    "mtu",
    "port",
    "portForward",
    "rom",
    "route",
    "script",
    "downscript",
    "source",
    "target",
    "teaming",
    "tune",
    "virtualport",
    "vlan",
];

pub(super) fn look(findings: &mut Findings, node: Node<'_, '_>) {
    let mac = child(node, "mac").and_then(|mac| mac.attribute("address")).unwrap_or("no MAC address");
    let place = format!("network interface {mac}");
    findings.know_children(node, &place, KNOWN);
    if !matches!(node.attribute("type"), Some("network" | "bridge" | "user")) {
        // Refused as a whole below, with its source.
        findings.settle(child(node, "source"));
    }
    if let Some(port) = child(node, "virtualport") {
        let what = format!("a virtual port ({})", port.attribute("type").unwrap_or("of no type"));
        findings.block_node(node, &place, &what, "Open vSwitch, 802.1Qbg and 802.1Qbh are not carried yet", LEAVE_OUT);
    }
    for script in ["script", "downscript"] {
        if let Some(script) = child(node, script) {
            let what = format!("a script of the host ({})", script.attribute("path").unwrap_or_default());
            findings.block_node(script, &place, &what, "files outside the disks are not carried", LEAVE_OUT);
        }
    }
    if let Some(filter) = child(node, "filterref") {
        findings.warn(
            &place,
            &format!("a network filter ({})", filter.attribute("filter").unwrap_or_default()),
            "it must exist on the destination, or the clone will not start",
            "`virsh nwfilter-list` there shows those that exist",
        );
    }
}

/// `nodes`: the elements of the definition's interfaces.
pub(super) fn look_together(findings: &mut Findings, definition: &Definition, nodes: &[Node<'_, '_>]) {
    let mut macs = BTreeSet::new();
    for interface in &definition.interfaces {
        findings.turn_to(nodes.get(interface.index).copied());
        let mac = interface.mac.as_deref().unwrap_or("no MAC address");
        let place = format!("network interface {mac}");
        if interface.mac.as_ref().is_some_and(|mac| !macs.insert(mac.to_ascii_lowercase())) {
            findings.warn(
                &place,
                "one MAC address twice",
                "the clone gets two different ones",
                "Nothing needs to be done",
            );
        }
        if let InterfaceSource::Other { kind, what } = &interface.source {
            let what = format!("an interface of type {kind:?} ({what})");
            findings.block(&place, &what, "only networks, bridges and user networking are carried yet", LEAVE_OUT);
        }
        // libvirt's own names (`vnet3`) are not kept in an inactive definition; one that is there was put there by a person.
        if let Some(target) = interface.target.as_ref().filter(|target| !is_automatic_tap(target)) {
            findings.block(
                &place,
                &format!("a fixed name for its tap device ({target})"),
                "only one VM of a host can have it, and it is not renewed yet",
                "Take <target dev> out of the source's definition first (virsh edit): libvirt will choose one at each start",
            );
        }
        if let Some(group) = &interface.portgroup {
            findings.warn(
                &place,
                &format!("a port group ({group})"),
                "the destination's network must have it, or its default is used",
                "`virsh net-dumpxml` there shows it",
            );
        }
    }
}
