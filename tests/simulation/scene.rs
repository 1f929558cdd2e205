//! The scene of a history: two hosts with a little on them, a guest to be cloned, and its plan, made by hand.

mod images;
mod order;

use journal_format::{
    BackingV1, ChainEnd, ControllerId, DeviceV1, DirectoryV1, DomainUuid, EndpointV1, Epoch, EventV1, ImageFormat,
    ImageRoleV1, ImageV1, LayerV1, NewDirectoryV1, OptionsV1, PlaceV1, PlanV1, RecordV1, RequestV1, SnapshotV1,
    SourceKindV1, TxnId, UnixMillis,
};
use kvm_clone::steps;
use kvm_clone::world::{FileKind, HostFacts};

use self::images::{BASE, MIDDLE, image, put_base, put_source, put_target, qcow2_header};
pub use self::images::{QCOW2_HEADER_BYTES, as_cloned};
use crate::content::Content;
use crate::filesystem::Filesystem;
use crate::flattened;
use crate::libvirt::{AUTOSTART, DEFINITIONS, Libvirt, Pool};
use crate::machine::Machine;
use crate::old_vm::{self, OldVm};
use crate::seed::Seed;
use crate::snapshots::{self, SNAPSHOTS};
use crate::world::SimWorld;

/// The two mounted filesystems besides the root.
pub const IMAGES: &str = "/var/lib/libvirt/images";
pub const SECOND: &str = "/srv/vm";
/// Where libvirt keeps what is not a disk.
const STATE: &str = "/var/lib/libvirt";
pub const NVRAM: &str = "/var/lib/libvirt/qemu/nvram";
/// The source's block device, where there is one.
pub const DEVICE: &str = "/dev/web01-0";
/// The destination's block device, where there is one.
pub const TARGET: &str = "/dev/target";
/// Bytes that it has behind the image.
const TARGET_REST_BYTES: u64 = 7000;
const CAPACITY_BYTES: u64 = 1 << 30;

/// A host with nothing of its own yet.
pub fn machine(name: &str, machine_id: &str) -> Machine {
    let mut files = Filesystem::new(&[
        ("/", "ext4", CAPACITY_BYTES),
        (IMAGES, "xfs", CAPACITY_BYTES),
        (SECOND, "ext4", CAPACITY_BYTES),
    ]);
    for directory in [
        "/etc",
        "/etc/libvirt",
        DEFINITIONS,
        AUTOSTART,
        "/srv",
        "/var",
        "/var/lib",
        STATE,
        "/var/lib/libvirt/qemu",
        NVRAM,
    ] {
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
            clock_ahead_ms: 0,
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
    titled_definition(name, uuid, None, disks)
}

/// A definition with a title, as XML has it.
fn titled_definition(name: &str, uuid: DomainUuid, title: Option<&str>, disks: &[(&str, &str, &str)]) -> String {
    let title = title.map_or(String::new(), |title| format!("  <title>{title}</title>\n"));
    let disks: String = disks
        .iter()
        .map(|(target, format, path)| {
            let (kind, attribute) = if path.starts_with("/dev/") { ("block", "dev") } else { ("file", "file") };
            format!(
                "    <disk type='{kind}' device='disk'>\n      <driver name='qemu' type='{format}'/>\n      \
                 <source {attribute}='{path}'/>\n      <target dev='{target}' bus='virtio'/>\n    </disk>\n"
            )
        })
        .collect();
    format!(
        "<domain type='qemu'>\n  <name>{name}</name>\n  <uuid>{uuid}</uuid>\n{title}  \
         <memory unit='KiB'>262144</memory>\n  <vcpu>1</vcpu>\n  <os>\n    \
         <type arch='x86_64' machine='pc'>hvm</type>\n  </os>\n  <devices>\n{disks}  </devices>\n</domain>\n"
    )
}

/// What a scene can be.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub disks: u32,
    /// The second disk lies in a directory, and on a filesystem, of its own.
    pub two_directories: bool,
    pub verify: bool,
    pub preallocate: bool,
    pub autostart: bool,
    pub start: bool,
    pub title: bool,
    /// Another transaction is at work on the destination.
    pub neighbour: bool,
    /// The second disk is on top of another image.
    pub chain: bool,
    /// UEFI variables and the state of a TPM belong to the VM.
    pub firmware: bool,
    /// A VM of the clone's name, that is replaced.
    pub old: Option<OldVm>,
    /// The source's first disk is a block device.
    pub device: bool,
    /// The source has two snapshots, one on the other, which is the current one.
    pub snapshots: bool,
    /// The second disk, or the only one, is on top of two other images, and arrives as one.
    pub flattened: bool,
    /// The clone's first disk is a block device.
    pub target: bool,
    /// The destination has the image that the second disk is on top of.
    pub base: bool,
}

impl Shape {
    /// Two disks in two directories, everything checked.
    pub fn plain() -> Self {
        Self {
            disks: 2,
            two_directories: true,
            verify: true,
            preallocate: false,
            autostart: true,
            start: false,
            title: true,
            neighbour: false,
            firmware: true,
            chain: true,
            old: None,
            device: false,
            snapshots: false,
            flattened: false,
            target: false,
            base: false,
        }
    }

    pub fn random(seed: &mut Seed) -> Self {
        Self {
            disks: 1 + u32::try_from(seed.below(3)).unwrap(),
            two_directories: seed.chance(50),
            verify: seed.chance(80),
            preallocate: seed.chance(15),
            autostart: seed.chance(30),
            start: seed.chance(15),
            title: seed.chance(50),
            neighbour: seed.chance(40),
            firmware: seed.chance(40),
            chain: seed.chance(40),
            old: seed.chance(40).then(|| OldVm::random(seed)),
            device: seed.chance(30),
            // Without a draw of its own: what follows stays what it was.
            snapshots: seed.clone().chance(30),
            flattened: false,
            target: false,
            base: false,
        }
    }

    /// Now and then the second disk arrives flattened, or stands on what the destination has, and the first one arrives on a device.
    /// Draws of their own: the other ones stay what they were.
    pub fn varied_by(self, seed: &mut Seed) -> Self {
        let flattened = self.disks > 1 && seed.chance(30);
        let (chain, target) = (self.chain && !flattened, seed.chance(25));
        Self { flattened, chain, target, base: chain && self.disks > 1 && seed.chance(40), ..self }
    }

    /// The disk that arrives flattened.
    fn flattened_disk(&self) -> Option<usize> {
        self.flattened.then_some(usize::from(self.disks > 1))
    }
}

/// Two hosts, a guest, and the plan of its clone.
pub struct Scene {
    pub world: SimWorld,
    pub plan: PlanV1,
    /// The source's images as they were planned.
    pub images: Vec<Content>,
}

pub const VM_NAME: &str = "web01";
pub const CLONE_NAME: &str = "web01_clone";
const CLONE_NAME_BESIDE: &str = "web01_clone-23456789";
const CHUNK_BYTES: u32 = 4096;
const TARGETS: [&str; 3] = ["vda", "vdb", "vdc"];

impl Scene {
    pub fn new(shape: Shape, seed: u64) -> Self {
        let mut seed = Seed::new(seed);
        let mut source = machine("source", &"a".repeat(32));
        let mut destination = machine("destination", &"b".repeat(32));
        let mut images: Vec<Content> = (0..shape.disks).map(|_| image(&mut seed)).collect();
        let flattened_disk = shape.flattened_disk();
        if let Some(qcow2) = images.get_mut(1) {
            qcow2.write(0, &qcow2_header(shape.chain));
        }
        if let Some(disk) = flattened_disk {
            let bytes = flattened::guest_bytes(&mut seed, CHUNK_BYTES.into());
            images[disk] = flattened::qcow2(&mut seed, bytes, (MIDDLE, "qcow2"));
        }
        let (vm_uuid, clone_uuid) = (uuid(&mut seed), uuid(&mut seed));
        // Two disks of one basename, where they can be kept apart by their directories alone.
        let directory_of = |disk: usize| if shape.two_directories && disk % 2 == 1 { SECOND } else { IMAGES };
        let basename_of = |disk: usize| if shape.two_directories { disk / 2 } else { disk };
        let mut source_paths: Vec<String> =
            (0..images.len()).map(|disk| format!("{}/{VM_NAME}-{}", directory_of(disk), basename_of(disk))).collect();
        if shape.device {
            DEVICE.clone_into(&mut source_paths[0]);
        }
        let now_ns = 1_799_999_000_000_000_000;
        (source.files.now_ns, destination.files.now_ns) = (now_ns, now_ns);
        for (path, image) in source_paths.iter().zip(&images) {
            put_source(&mut source, path, image.clone());
        }
        if shape.device {
            source.files.make_device(DEVICE);
        }
        let title = shape.title.then_some("A <web> server").map(|title| title.replace('<', "&lt;"));
        let disks_at = |paths: &[String], of_clone: bool| -> Vec<(&str, &str, String)> {
            let is_flat = |disk| flattened_disk == Some(disk);
            let format =
                |disk| if (disk == 1 || is_flat(disk)) && !(of_clone && is_flat(disk)) { "qcow2" } else { "raw" };
            paths.iter().enumerate().map(|(disk, path)| (TARGETS[disk], format(disk), path.clone())).collect()
        };
        let define = |name: &str, uuid: DomainUuid, paths: &[String], of_clone: bool| {
            let disks = disks_at(paths, of_clone);
            let disks: Vec<_> = disks.iter().map(|(target, format, path)| (*target, *format, path.as_str())).collect();
            titled_definition(name, uuid, title.as_deref(), &disks)
        };
        let source_definition = define(VM_NAME, vm_uuid, &source_paths, false);
        source.libvirt.define(&mut source.files, &source_definition).unwrap();
        source.libvirt.set_autostart(&mut source.files, vm_uuid, false).unwrap();
        let snapshots_of = |name: &str, uuid: DomainUuid, paths: &[String], of_clone: bool| {
            let inside = define(name, uuid, paths, of_clone);
            let of = |snapshot: &str, parent, created| snapshots::document(snapshot, parent, created, &inside);
            [("one", of("one", None, 1_795_824_045)), ("two", of("two", Some("one"), 1_795_824_046))]
        };
        if shape.snapshots {
            for machine in [&mut source, &mut destination] {
                machine.files.make_dir(SNAPSHOTS, 0o755).unwrap();
            }
            for (name, document) in snapshots_of(VM_NAME, vm_uuid, &source_paths, false) {
                let current = name == "two";
                source.libvirt.define_snapshot(&mut source.files, vm_uuid, &document, current).unwrap();
            }
        }

        let txn = TxnId::new(UnixMillis(1_799_999_000_000), [7, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        let mut directories: Vec<DirectoryV1> = Vec::new();
        let (mut disks, mut bases) = (Vec::new(), Vec::new());
        for (disk, path) in source_paths.iter().enumerate() {
            let directory = staged_in(directory_of(disk), txn, &destination, &mut directories, &mut seed);
            let target = TARGETS[disk];
            disks.push(ImageV1 {
                format: if disk == 1 || flattened_disk == Some(disk) { ImageFormat::Qcow2 } else { ImageFormat::Raw },
                ..planned(
                    ImageRoleV1::Disk { target: target.to_owned() },
                    &source,
                    path,
                    (directory, &directories[directory as usize]),
                    format!("{}/{CLONE_NAME}-{target}.img", directory_of(disk)),
                )
            });
        }
        if shape.target {
            let bytes = images[0].size() + TARGET_REST_BYTES;
            put_target(&mut destination, bytes, &mut seed);
            let facts = destination.files.device_facts(TARGET).unwrap();
            let device = DeviceV1 { identity: facts.identity.unwrap(), bytes, named: TARGET.to_owned() };
            let path = TARGET.to_owned();
            let place = PlaceV1::Device { device };
            disks[0] = ImageV1 { place, staging_path: path.clone(), final_path: path, ..disks[0].clone() };
        }
        let final_paths: Vec<String> = disks.iter().map(|disk| disk.final_path.clone()).collect();
        if let Some(disk) = flattened_disk {
            let directory = directory_of(disk);
            let bytes = flattened::guest_bytes(&mut seed, CHUNK_BYTES.into());
            let middle = flattened::qcow2(&mut seed, bytes, (BASE, "raw"));
            let base = image(&mut seed);
            for (name, content, format) in [(MIDDLE, middle, ImageFormat::Qcow2), (BASE, base, ImageFormat::Raw)] {
                let path = format!("{directory}/{name}");
                put_source(&mut source, &path, content);
                let (reached_by, reference) = (path.clone(), name.to_owned());
                disks[disk].flattened.push(LayerV1 { reference, reached_by, source_path: path, format });
            }
            let guest_bytes = flattened::in_the_clone(&source.files, &disks[disk]).unwrap().size();
            let stats: Vec<_> = steps::paths_read(&disks[disk]).map(|path| source.files.stat(path).unwrap()).collect();
            disks[disk].source_stamp = steps::stamp_of_chain(SourceKindV1::File, guest_bytes, &stats);
        }
        if shape.chain && flattened_disk.is_none() && images.len() > 1 {
            let path = format!("{}/{BASE}", directory_of(1));
            let content = image(&mut seed);
            put_source(&mut source, &path, content.clone());
            let role = ImageRoleV1::Layer { target: TARGETS[1].to_owned(), depth: 1 };
            let name = if shape.base { BASE.to_owned() } else { format!("{CLONE_NAME}-{}-base1.img", TARGETS[1]) };
            if shape.base {
                bases.push(put_base(&source, &mut destination, role, &path));
            } else {
                let directory = disks[1].directory().unwrap();
                let staging = (directory, &directories[directory as usize]);
                let final_path = format!("{}/{name}", directory_of(1));
                let layer = ImageV1 {
                    staging_path: format!("{}/{}-base1.img", staging.1.staging, TARGETS[1]),
                    ..planned(role, &source, &path, staging, final_path)
                };
                disks.push(layer);
                images.push(content);
            }
            disks[1].backing = Some(BackingV1 { source: BASE.to_owned(), clone: name });
        }
        let mut new_directories = Vec::new();
        if shape.firmware {
            let tpm = |uuid: DomainUuid| format!("{STATE}/swtpm/{uuid}/tpm2/tpm2-00.permall");
            for (path, role, staged_beside, final_path) in [
                (
                    format!("{NVRAM}/{VM_NAME}_VARS.fd"),
                    ImageRoleV1::Nvram,
                    NVRAM,
                    // An old VM has variables of that name.
                    old_vm::variables(shape.old.map_or(CLONE_NAME, |_| CLONE_NAME_BESIDE)),
                ),
                (tpm(vm_uuid), ImageRoleV1::Tpm, STATE, tpm(clone_uuid)),
            ] {
                let content = image(&mut seed);
                put_source(&mut source, &path, content.clone());
                let directory = staged_in(staged_beside, txn, &destination, &mut directories, &mut seed);
                let staging = (directory, &directories[directory as usize]);
                disks.push(planned(role, &source, &path, staging, final_path));
                images.push(content);
            }
            for (path, makes_parent) in [("", true), ("/tpm2", false)] {
                let path = format!("{STATE}/swtpm/{clone_uuid}{path}");
                new_directories.push(NewDirectoryV1 { path, mode: 0o711, owner: (106, 112), makes_parent });
            }
        }
        add_strangers(&mut destination, shape.neighbour, &mut seed);
        let replaced = shape.old.map(|old| {
            let old_uuid = uuid(&mut seed);
            let text = old_vm::put(old, &mut destination, old_uuid, &mut seed);
            old_vm::planned(old, &destination, (old_uuid, text), txn, &mut directories, &mut seed)
        });
        let planned_snapshots = if shape.snapshots {
            let planned = source.libvirt.snapshots(vm_uuid).into_iter().zip(snapshots_of(
                CLONE_NAME,
                clone_uuid,
                &final_paths,
                true,
            ));
            planned
                .map(|(was, (name, definition))| SnapshotV1 {
                    name: name.to_owned(),
                    source_definition: was.definition,
                    definition,
                    current: was.current,
                })
                .collect()
        } else {
            Vec::new()
        };
        let defined_name = replaced.as_ref().map_or(CLONE_NAME, |old| &old.clone_name);
        let endpoint = |address: &str, machine: &Machine| EndpointV1 {
            address: address.to_owned(),
            machine_id: machine.facts.machine_id.clone(),
            key_file: None,
        };
        let plan = PlanV1 {
            txn,
            created_at: UnixMillis(1_799_999_000_000),
            program_version: "0.1.0".to_owned(),
            controller: ControllerId { machine_id: "c".repeat(32), state_dir: "/var/lib/kvm-clone".to_owned() },
            request: RequestV1 {
                source: endpoint("source", &source),
                vm_uuid,
                vm_name: VM_NAME.to_owned(),
                destination: endpoint("destination", &destination),
                new_name: CLONE_NAME.to_owned(),
                options: OptionsV1 {
                    start: shape.start,
                    verify: shape.verify,
                    preserve_mac: false,
                    preserve_uuid: false,
                    bandwidth_limit_bytes_per_second: None,
                    preallocate: shape.preallocate,
                    chunk_size_bytes: CHUNK_BYTES,
                    dropped: Vec::new(),
                },
            },
            clone_uuid,
            source_definition,
            definition: define(defined_name, clone_uuid, &final_paths, true),
            title: shape.title.then(|| "A <web> server".to_owned()),
            autostart: shape.autostart,
            pools: if directories.iter().any(|directory| directory.path == IMAGES) {
                vec!["default".to_owned()]
            } else {
                Vec::new()
            },
            steps: order::steps(shape, directories.len(), (&disks, bases.len()), new_directories.len()),
            clean_up: order::clean_up(shape, directories.len()),
            directories,
            new_directories,
            images: disks,
            replaced,
            snapshots: planned_snapshots,
            bases,
        };
        if shape.neighbour {
            add_plan_of_neighbour(&mut destination, &plan);
        }
        source.files.sync_all();
        destination.files.sync_all();
        Self { world: SimWorld::new(source, destination, seed.next()), plan, images }
    }
}

/// The directory's place in the plan; each stands there once.
pub fn staged_in(
    path: &str,
    txn: TxnId,
    destination: &Machine,
    directories: &mut Vec<DirectoryV1>,
    seed: &mut Seed,
) -> u32 {
    let known = directories.iter().position(|known| known.path == path);
    let directory = known.unwrap_or_else(|| {
        let mut nonce = [0; 16];
        seed.fill(&mut nonce);
        directories.push(DirectoryV1 {
            path: path.to_owned(),
            inode: destination.files.stat(path).unwrap().inode,
            staging: format!("{path}/.kvm-clone/{txn}"),
            nonce,
        });
        directories.len() - 1
    });
    u32::try_from(directory).unwrap()
}

fn planned(
    role: ImageRoleV1,
    source: &Machine,
    path: &str,
    (directory, staging): (u32, &DirectoryV1),
    final_path: String,
) -> ImageV1 {
    let stat = source.files.stat(path).unwrap();
    let source_kind = if stat.kind == FileKind::BlockDevice { SourceKindV1::Device } else { SourceKindV1::File };
    ImageV1 {
        format: ImageFormat::Raw,
        reached_by: path.to_owned(),
        source_path: path.to_owned(),
        source_stamp: steps::stamp_of(source_kind, &stat),
        allocated_bytes: stat.allocated,
        place: PlaceV1::Directory { directory },
        staging_path: format!("{}/{role}.img", staging.staging),
        final_path,
        mode: 0o640,
        owner: (64_055, 104),
        backing: None,
        source_kind,
        flattened: Vec::new(),
        role,
    }
}

fn uuid(seed: &mut Seed) -> DomainUuid {
    let mut bytes = [0; 16];
    seed.fill(&mut bytes);
    DomainUuid(bytes)
}

/// A transaction of another controller, that is suspended.
const NEIGHBOUR: &str = "019b0000-0000-7000-8000-0000deadbeef";

/// Its plan, which stands on nothing.
fn add_plan_of_neighbour(destination: &mut Machine, plan: &PlanV1) {
    let txn: TxnId = NEIGHBOUR.parse().unwrap();
    let plan = PlanV1 { txn, bases: Vec::new(), ..plan.clone() };
    let begun = RecordV1 { at: plan.created_at, epoch: Epoch(0), event: EventV1::Begun { plan: Box::new(plan) } };
    let (bytes, _) = ChainEnd::start(txn).encode(&begun).unwrap();
    destination
        .files
        .make_file(&format!("/var/lib/kvm-clone/host/{NEIGHBOUR}/plan"), 0o600, Content::of(&bytes))
        .unwrap();
}

/// What is on the destination already and none of our business.
fn add_strangers(destination: &mut Machine, neighbour: bool, seed: &mut Seed) {
    let disk = format!("{IMAGES}/other.img");
    destination.files.make_file(&disk, 0o600, Content::of(&[9; 3000])).unwrap();
    let definition = definition("other", uuid(seed), &[("vda", "raw", &disk)]);
    destination.libvirt.define(&mut destination.files, &definition).unwrap();
    destination.files.make_file(&format!("{IMAGES}/{CLONE_NAME}.img"), 0o600, Content::of(b"not ours")).unwrap();
    if neighbour {
        for directory in ["", "/host", "/host/names", &format!("/host/{NEIGHBOUR}")] {
            destination.files.make_dir(&format!("/var/lib/kvm-clone{directory}"), 0o700).unwrap();
        }
        let owner = format!("/var/lib/kvm-clone/host/{NEIGHBOUR}/owner");
        destination.files.make_file(&owner, 0o600, Content::of(&[1; 8192])).unwrap();
        destination.files.link(&owner, "/var/lib/kvm-clone/host/names/theirs").unwrap();
        for directory in ["", &format!("/{NEIGHBOUR}")] {
            destination.files.make_dir(&format!("{IMAGES}/.kvm-clone{directory}"), 0o711).unwrap();
        }
        let staged = format!("{IMAGES}/.kvm-clone/{NEIGHBOUR}/vda.img");
        destination.files.make_file(&staged, 0o600, Content::of(&[2; 5000])).unwrap();
    }
    let _ = destination.libvirt.refresh_pool(&destination.files, "default");
}
