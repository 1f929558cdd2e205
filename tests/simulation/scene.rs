//! The scene of a history: two hosts with a little on them, a guest to be cloned, and its plan, made by hand.

use journal_format::DomainUuid;
use kvm_clone::world::HostFacts;

use crate::filesystem::Filesystem;
use crate::libvirt::{AUTOSTART, DEFINITIONS, Libvirt, Pool};
use crate::machine::Machine;
use crate::world::SimWorld;

/// The two mounted filesystems besides the root.
pub const IMAGES: &str = "/var/lib/libvirt/images";
pub const SECOND: &str = "/srv/vm";
const CAPACITY_BYTES: u64 = 1 << 30;

/// A host with nothing of its own yet.
pub fn machine(name: &str, machine_id: &str) -> Machine {
    let mut files = Filesystem::new(&[
        ("/", "ext4", CAPACITY_BYTES),
        (IMAGES, "xfs", CAPACITY_BYTES),
        (SECOND, "ext4", CAPACITY_BYTES),
    ]);
    for directory in ["/etc", "/etc/libvirt", DEFINITIONS, AUTOSTART, "/srv", "/var", "/var/lib", "/var/lib/libvirt"] {
        files.make_dir(directory, 0o755).unwrap();
    }
    let pools = vec![Pool { name: "default".to_owned(), path: IMAGES.to_owned(), volumes: Vec::new() }];
    Machine {
        facts: HostFacts {
            machine_id: machine_id.to_owned(),
            hostname: name.to_owned(),
            libvirt_version: 9_000_000,
            hypervisor_version: 7_002_000,
            memory_bytes: 4 << 30,
            cpus: 2,
            capabilities: "<capabilities></capabilities>".to_owned(),
        },
        files,
        libvirt: Libvirt { pools, networks: vec!["default".to_owned()], ..Libvirt::default() },
        agents: Vec::new(),
        late: Vec::new(),
    }
}

/// Two hosts with no guests.
pub fn empty_world(seed: u64) -> SimWorld {
    let mut source = machine("source", &"a".repeat(32));
    let mut destination = machine("destination", &"b".repeat(32));
    source.files.sync_all();
    destination.files.sync_all();
    SimWorld::new(source, destination, seed)
}

/// A definition: name, UUID, and disks by target, format and path.
pub fn definition(name: &str, uuid: DomainUuid, disks: &[(&str, &str, &str)]) -> String {
    let disks: String = disks
        .iter()
        .map(|(target, format, path)| {
            format!(
                "    <disk type='file' device='disk'>\n      <driver name='qemu' type='{format}'/>\n      \
                 <source file='{path}'/>\n      <target dev='{target}' bus='virtio'/>\n    </disk>\n"
            )
        })
        .collect();
    format!(
        "<domain type='qemu'>\n  <name>{name}</name>\n  <uuid>{uuid}</uuid>\n  <memory unit='KiB'>262144</memory>\n  \
         <vcpu>1</vcpu>\n  <os>\n    <type arch='x86_64' machine='pc'>hvm</type>\n  </os>\n  <devices>\n{disks}  \
         </devices>\n</domain>\n"
    )
}
