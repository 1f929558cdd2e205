//! The net under the others: a path of the source's host that nobody looked at stops the clone.

use roxmltree::Node;

use super::{Findings, LEAVE_OUT};
use crate::domain::xml::is_plain;

/// What is free text, or the guest's own.
const FREE: &[&str] = &["metadata", "title", "description", "name", "cmdline"];

/// Nodes that every host with KVM has.
const EVERYWHERE: &[&str] = &["/dev/net/tun", "/dev/vhost-net", "/dev/kvm", "/dev/null"];

pub(super) fn look(findings: &mut Findings, domain: Node<'_, '_>) {
    let mut found = Vec::new();
    for node in domain.descendants() {
        if node.ancestors().any(|above| findings.is_settled(above) || is_free(above)) {
            continue;
        }
        if node.is_element() {
            for attribute in node.attributes().filter(|attribute| is_local(attribute.value())) {
                if !is_handled(node, attribute.name()) {
                    found.push((node, attribute.name().to_owned(), attribute.value().to_owned()));
                }
            }
        } else if let (Some(text), Some(parent)) = (node.text().filter(|_| node.is_text()), node.parent()) {
            // Strings of SMBIOS tables are what they are.
            let handled = is_plain(parent, "emulator") || is_plain(parent, "entry");
            if is_local(text.trim()) && !handled {
                found.push((parent, "its text".to_owned(), text.trim().to_owned()));
            }
        }
    }
    for (node, part, path) in found {
        let what = format!("a path of the host ({part}: {path})");
        findings.turn_to(Some(node));
        findings.block(&place(node), &what, "files and devices outside the disks are not carried", LEAVE_OUT);
    }
}

fn is_local(value: &str) -> bool {
    value.starts_with('/') && !EVERYWHERE.contains(&value)
}

fn is_free(node: Node<'_, '_>) -> bool {
    FREE.iter().any(|name| is_plain(node, name))
        && node.parent().is_some_and(|parent| is_plain(parent, "domain") || is_plain(parent, "os"))
}

/// Paths that are rewritten, or named, elsewhere.
fn is_handled(node: Node<'_, '_>, attribute: &str) -> bool {
    let under = |name: &str| node.parent().is_some_and(|parent| is_plain(parent, name));
    match attribute {
        // A disk's own image; whatever else a disk's source says was named with the disk.
        "file" | "dev" | "dir" | "name" | "path" => {
            is_plain(node, "source") && (under("disk") || under("backingStore"))
        }
        // The terminal of the last run.
        "tty" => true,
        _ => false,
    }
}

/// Where an element is, from `<devices>` or `<domain>` down.
fn place(node: Node<'_, '_>) -> String {
    let mut names: Vec<_> = node
        .ancestors()
        .filter(Node::is_element)
        .map(|above| above.tag_name().name())
        .take_while(|name| !matches!(*name, "domain" | "devices"))
        .collect();
    names.reverse();
    names.join("/")
}
