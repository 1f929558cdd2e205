//! What is refused and may be left behind: taken out of any definition, that is byte for byte what it was without it.

use journal_format::DropKindV1;
use kvm_clone::domain::{Definition, leave_behind, uncarried};

use super::carried;

/// A device of each kind that is not carried.
const DEVICES: &[(&str, &str)] = &[
    (
        "hostdev",
        "<hostdev mode='subsystem' type='usb' managed='yes'>\n      <source><vendor id='0x1d6b'/></source>\n    </hostdev>",
    ),
    ("filesystem", "<filesystem type='mount'><source dir='/srv'/><target dir='t'/></filesystem>"),
    ("shmem", "<shmem name='s'><model type='ivshmem-plain'/></shmem>"),
    ("lease", "<lease><lockspace>l</lockspace><key>k</key><target path='/l'/></lease>"),
    ("pstore", "<pstore backend='acpi-erst'><path>/p</path></pstore>"),
    ("smartcard", "<smartcard mode='host'/>"),
    ("vsock", "<vsock model='virtio'><cid auto='no' address='3'/></vsock>"),
    (
        "channel",
        "<channel type='unix'><source mode='bind' path='/run/s'/><target type='virtio' name='org.x'/></channel>",
    ),
    ("serial", "<serial type='pty'><log file='/var/log/s'/><target port='7'/></serial>"),
    ("parallel", "<parallel type='dev'><source path='/dev/parport0'/></parallel>"),
    ("console", "<console type='file'><source path='/var/log/c'/><target type='virtio'/></console>"),
    ("redirdev", "<redirdev bus='usb' type='unix'><source mode='bind' path='/r'/></redirdev>"),
    ("rng", "<rng model='virtio'><backend model='random'>/dev/mine</backend></rng>"),
    ("tpm", "<tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>"),
    ("interface", "<interface type='direct'><mac address='52:54:00:0f:0f:0f'/><source dev='eth0'/></interface>"),
    ("disk", "<disk type='block' device='lun'><source dev='/dev/sdx'/><target dev='sdzz' bus='scsi'/></disk>"),
];

/// The definition with one more device, last; `None` where it has no devices.
fn with(definition: &str, device: &str) -> Option<String> {
    let end = definition.rfind("</devices")?;
    let at = definition[..end].trim_end().len();
    Some(format!("{}\n    {device}{}", &definition[..at], &definition[at..]))
}

#[test]
fn what_is_left_behind_leaves_the_definition_as_it_was_without_it() {
    for fixture in carried() {
        for (word, device) in DEVICES {
            let Some(text) = with(&fixture.text, device) else { continue };
            let kind = DropKindV1::of_device(word).unwrap();
            let Ok(whole) = Definition::parse(&text) else { continue };
            let found = uncarried(&whole).unwrap().blockers;
            assert!(
                !found.is_empty() && found.iter().all(|one| one.device.as_ref().is_some_and(|one| one.kind == kind)),
                "{} with <{word}>: {found:#?}",
                fixture.name
            );
            let (rest, left) = leave_behind(&whole, &[kind]).unwrap();
            assert_eq!((rest.text(), left), (fixture.text.as_str(), found), "{} without <{word}>", fixture.name);
            let others: Vec<_> = DropKindV1::ALL.into_iter().filter(|other| *other != kind).collect();
            assert_eq!(leave_behind(&whole, &others).unwrap().0.text(), text, "{}: <{word}> was to stay", fixture.name);
        }
    }
}

#[test]
fn there_is_a_device_of_every_kind_that_can_be_left_behind() {
    let devices: Vec<_> = DropKindV1::ALL.into_iter().filter(|kind| kind.is_device()).map(DropKindV1::word).collect();
    assert_eq!(DEVICES.iter().map(|(word, _)| *word).collect::<Vec<_>>(), devices);
}
