//! Surveys made by hand, for tests of what is pure: a plain VM with two disks that can be cloned as it is, and the
//! means to spoil one thing at a time.
#![allow(clippy::unwrap_used)]

use journal_format::{ControllerId, DomainUuid, Inode};

use super::*;
use crate::request::Request;
use crate::world::{DomainState, FileKind};

pub(crate) const GIB: u64 = 1 << 30;
pub(crate) const IMAGES: &str = "/var/lib/libvirt/images";
pub(crate) const DATA: &str = "/srv/data";

pub(crate) const DEFINITION: &str = "<domain type='kvm'>
  <name>web01</name>
  <uuid>11111111-2222-4333-8444-555555555555</uuid>
  <title>The shop</title>
  <memory unit='KiB'>2097152</memory>
  <vcpu placement='static'>2</vcpu>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <boot dev='hd'/>
  </os>
  <on_poweroff>destroy</on_poweroff>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/var/lib/libvirt/images/disk.img'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file='/srv/data/disk.img'/>
      <target dev='vdb' bus='virtio'/>
    </disk>
    <interface type='network'>
      <mac address='52:54:00:aa:bb:01'/>
      <source network='default'/>
      <model type='virtio'/>
    </interface>
    <interface type='bridge'>
      <mac address='52:54:00:AA:BB:02'/>
      <source bridge='br0'/>
      <model type='virtio'/>
    </interface>
  </devices>
</domain>
";

pub(crate) fn controller() -> ControllerId {
    ControllerId { machine_id: "c".repeat(32), state_dir: "/var/lib/kvm-clone".into() }
}

pub(crate) fn request() -> Request {
    Request::new("kvm1".parse().unwrap(), "kvm2".parse().unwrap(), "web01".parse().unwrap())
}

pub(crate) fn stat(kind: FileKind, inode: u64, size: u64) -> FileStat {
    FileStat {
        kind,
        inode: Inode(inode),
        device: 64,
        size,
        allocated: size,
        mode: 0o100_640,
        uid: 64055,
        gid: 108,
        links: 1,
        mtime_ns: 1_700_000_000_000_000_000,
        ctime_ns: 1_700_000_000_000_000_001,
    }
}

/// A version 3 header of an image of 20 GiB, with nothing below it.
pub(crate) fn qcow2_head() -> Vec<u8> {
    let mut head = vec![0; 65_536];
    head[0..4].copy_from_slice(b"QFI\xfb");
    head[4..8].copy_from_slice(&3u32.to_be_bytes());
    head[20..24].copy_from_slice(&16u32.to_be_bytes());
    head[24..32].copy_from_slice(&(20 * GIB).to_be_bytes());
    head[96..100].copy_from_slice(&4u32.to_be_bytes());
    head[100..104].copy_from_slice(&104u32.to_be_bytes());
    head
}

fn owner_names() -> OwnerNames {
    OwnerNames { user: Some("libvirt-qemu".into()), group: Some("kvm".into()) }
}

pub(crate) fn disk(index: usize, target: &str, format: ImageFormat, path: &str, allocated: u64) -> SourceFile {
    let head = if format == ImageFormat::Qcow2 { qcow2_head() } else { Vec::new() };
    let mut stat = stat(FileKind::File, 1_000 + index as u64, 10 * GIB);
    stat.allocated = allocated;
    let image = ImageFacts { path: path.to_owned(), stat, owner: owner_names(), head };
    let role = ImageRoleV1::Disk { target: target.into() };
    SourceFile {
        role,
        index: Some(index),
        format,
        path: path.into(),
        image: SourceImage::Readable(image),
        below: Below::Nothing,
        named_as: NamedAs::File,
        flattened: Vec::new(),
    }
}

pub(crate) fn host_facts(machine: &str) -> HostFacts {
    HostFacts {
        machine_id: machine.repeat(32),
        hostname: machine.to_owned(),
        libvirt_version: 9_000_000,
        hypervisor_version: 7_002_000,
        memory_bytes: 64 * GIB,
        cpus: 16,
        clock_ahead_ms: 0,
        capabilities: String::new(),
    }
}

pub(crate) fn directory(path: &str, device: u64, available_bytes: u64) -> DirectoryFacts {
    let mut stat = stat(FileKind::Directory, 2, 4096);
    stat.device = device;
    DirectoryFacts {
        path: path.to_owned(),
        stat,
        filesystem: FilesystemFacts {
            device,
            available_bytes,
            available_inodes: Some(1_000_000),
            kind: "ext4".into(),
            read_only: false,
            writable: true,
            network: false,
        },
        staging_parent: None,
    }
}

pub(crate) fn pool(name: &str, path: Option<&str>) -> PoolSurvey {
    let facts = PoolFacts { name: name.into(), active: true, kind: "dir".into(), path: path.map(str::to_owned) };
    PoolSurvey { real_path: facts.path.clone(), facts }
}

pub(crate) fn neighbour(name: &str, number: u8) -> Neighbour {
    let brief = DomainBrief { uuid: DomainUuid([number; 16]), name: name.into(), state: DomainState::ShutOff };
    Neighbour { brief, macs: BTreeSet::new(), paths: BTreeSet::new() }
}

/// A survey in which nothing is in the way.
pub(crate) fn survey() -> Survey {
    let definition = Definition::parse(DEFINITION).unwrap();
    let brief = DomainBrief { uuid: definition.uuid, name: "web01".into(), state: DomainState::ShutOff };
    let vm = DomainFacts {
        brief: brief.clone(),
        persistent: true,
        autostart: false,
        managed_save: false,
        saving: false,
        snapshots: 0,
        checkpoints: 0,
        definition: DEFINITION.into(),
    };
    let itself = Neighbour { brief, macs: definition.macs().collect(), paths: BTreeSet::new() };
    Survey {
        source: SourceSurvey {
            name: "kvm1".into(),
            host: host_facts("a"),
            vm,
            files: vec![
                disk(0, "vda", ImageFormat::Qcow2, "/var/lib/libvirt/images/disk.img", 2 * GIB),
                disk(1, "vdb", ImageFormat::Raw, "/srv/data/disk.img", 3 * GIB),
            ],
            firmware: None,
            swtpm: None,
            checks: BTreeMap::new(),
            tpm_directories: Vec::new(),
            definition,
            left_behind: Vec::new(),
            neighbours: vec![itself],
            snapshots: Vec::new(),
        },
        destination: DestinationSurvey {
            name: "kvm2".into(),
            host: host_facts("b"),
            neighbours: vec![neighbour("other", 7)],
            networks: vec![NetworkFacts { name: "default".into(), active: true }],
            bridges: BTreeSet::from(["br0".into()]),
            pools: vec![pool("default", Some(IMAGES)), pool("elsewhere", Some("/mnt/elsewhere"))],
            directories: BTreeMap::from([
                (IMAGES.into(), directory(IMAGES, 1, 100 * GIB)),
                (DATA.into(), directory(DATA, 2, 100 * GIB)),
            ]),
            record: directory("/var/lib", 1, 100 * GIB),
            taken: BTreeSet::new(),
            devices: BTreeMap::new(),
            media: BTreeMap::new(),
            leftovers: Vec::new(),
            old: None,
            bases: Vec::new(),
            is_twin: false,
            claim: None,
            emulator: EmulatorFacts::Path("/usr/bin/qemu-system-x86_64".into()),
            cpu_lacks: None,
            swtpm: None,
            owners: BTreeMap::from([(owner_names(), OwnerNumbers { user: Some(64055), group: Some(108) })]),
        },
        new_name: DomainName::new("web01_clone").unwrap(),
    }
}

/// A snapshot that disk vda holds, with these definitions inside.
pub(crate) fn snapshot(name: &str, parent: Option<&str>, inside: &str) -> SnapshotSurvey {
    let parent = parent.map_or(String::new(), |parent| format!("<parent><name>{parent}</name></parent>"));
    let definition = format!(
        "<domainsnapshot>\n<name>{name}</name><state>shutoff</state>{parent}<creationTime>1</creationTime>\
         <memory snapshot='no'/><disks><disk name='vda' snapshot='internal'/></disks>\n{inside}</domainsnapshot>\n"
    );
    let document = SnapshotDefinition::parse(&definition);
    let facts = SnapshotFacts { name: name.to_owned(), current: false, definition };
    SnapshotSurvey { facts, document, layers: BTreeMap::new() }
}
