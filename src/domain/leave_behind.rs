//! A definition without the devices that cannot be carried and that somebody asked to leave behind. What can be carried stays,
//! of whatever kind it is: so one source has one clone, whether more was allowed to go or not.

use journal_format::DropKindV1;

use super::carry::{Uncarried, uncarried};
use super::xml::{Edits, parse};
use super::{Definition, DomainError};

/// Takes every device of these kinds that is not carried out of the text, and says what was found in each. All else stays byte
/// for byte.
pub fn leave_behind(
    definition: &Definition,
    kinds: &[DropKindV1],
) -> Result<(Definition, Vec<Uncarried>), DomainError> {
    let mut left = uncarried(definition)?.blockers;
    left.retain(|found| found.device.as_ref().is_some_and(|device| kinds.contains(&device.kind)));
    let mut spans: Vec<_> = left.iter().filter_map(|found| Some(found.device.as_ref()?.span.clone())).collect();
    spans.sort_by_key(|span| span.start);
    spans.dedup();
    let document = parse(definition.text())?;
    let mut edits = Edits::new(definition.text());
    for node in document.descendants().filter(|node| node.is_element() && spans.contains(&node.range())) {
        edits.remove(node);
    }
    Ok((Definition::parse(&edits.apply()?)?, left))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn definition(devices: &str) -> Definition {
        Definition::parse(&text(devices)).unwrap()
    }

    fn text(devices: &str) -> String {
        format!(
            "<domain type='kvm'>\n<name>a</name><uuid>6a1c2b1e-0a55-4d8e-9f43-0d7c5b1a0001</uuid><memory>1</memory>\
             <os><type>hvm</type></os>\n  <devices>\n    {devices}\n  </devices>\n</domain>"
        )
    }

    const AGENT: &str = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>";
    const SOCKET: &str =
        "<channel type='unix'><source mode='bind' path='/run/s'/><target type='virtio' name='x'/></channel>";
    const SHARED: &str = "<filesystem type='mount'>\n      <source dir='/srv'/><target dir='t'/>\n    </filesystem>";
    const LOGGED: &str = "<serial type='file'><source path='/l'/><log file='/m'/><target port='0'/></serial>";

    fn left(devices: &str, kinds: &[DropKindV1]) -> (String, Vec<String>) {
        let (rest, left) = leave_behind(&definition(devices), kinds).unwrap();
        (rest.text().to_owned(), left.iter().map(|found| format!("{}: {}", found.where_, found.what)).collect())
    }

    #[test]
    fn what_was_not_asked_for_stays() {
        for kinds in [&[][..], &[DropKindV1::Hostdev, DropKindV1::Snapshots, DropKindV1::Lease]] {
            let devices = format!("{SHARED}{SOCKET}");
            assert_eq!(left(&devices, kinds), (text(&devices), Vec::new()));
        }
    }

    #[test]
    fn only_what_is_not_carried_goes_and_all_else_stays_byte_for_byte() {
        let (rest, left) = left(&format!("{AGENT}\n    {SOCKET}\n    <!-- c -->\n    {SHARED}"), &DropKindV1::ALL);
        assert_eq!(rest, text(&format!("{AGENT}\n    <!-- c -->")));
        assert_eq!(
            left,
            [
                "channel x: a unix of the host (mode=bind path=/run/s)",
                "device <filesystem>: a shared directory of the host (dir=/srv)"
            ]
        );
    }

    #[test]
    fn a_device_with_two_things_in_the_way_goes_once_and_both_are_told() {
        let (rest, left) = left(&format!("{AGENT}\n    {LOGGED}"), &[DropKindV1::Serial]);
        assert_eq!(rest, text(AGENT));
        assert_eq!(left.len(), 2, "{left:?}");
    }

    #[test]
    fn disks_and_interfaces_that_are_looked_at_together_can_go_too() {
        let disk = "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/a'/><target dev='vda'/></disk>";
        let lun = "<disk type='block' device='lun'><source dev='/dev/sdx'/><target dev='sda'/></disk>";
        let direct = "<interface type='direct'><source dev='eth0' mode='bridge'/></interface>";
        let user = "<interface type='user'/>";
        let kinds = [DropKindV1::Interface, DropKindV1::Disk];
        let (rest, left) = left(&[lun, disk, direct, user].join("\n    "), &kinds);
        assert_eq!(rest, text(&format!("{disk}\n    {user}")));
        assert!(left[0].contains("a SCSI device") && left.last().unwrap().contains("\"direct\""), "{left:?}");
    }

    #[test]
    fn a_path_that_nobody_looked_at_belongs_to_its_device() {
        let rng = "<rng model='virtio'><backend model='random'>/dev/mine</backend></rng>";
        let (rest, left) = left(&format!("{AGENT}\n    {rng}"), &[DropKindV1::Rng]);
        assert_eq!(rest, text(AGENT));
        assert_eq!(left, ["rng/backend: a path of the host (its text: /dev/mine)"]);
    }
}
