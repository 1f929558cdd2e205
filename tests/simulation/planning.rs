//! Survey, preflight and plan against two whole hosts in memory: nothing is touched, whatever happens meanwhile.

use journal_format::{ControllerId, DomainUuid, PlanV1, StepV1};
use kvm_clone::plan::Circumstances;
use kvm_clone::preflight::{BlockerKind, Prepared, prepare};
use kvm_clone::request::{Chain, Request, Target, VmSelector};
use kvm_clone::survey::SurveyError;
use kvm_clone::world::{FaultKind, Side, World};

use crate::content::Content;
use crate::faults::{Effect, Fault, FaultPlan};
use crate::flattened;
use crate::scene::{self, IMAGES, SECOND};
use crate::seed::Seed;
use crate::world::{Core, SimWorld};

const GUEST: DomainUuid = DomainUuid([0x11; 16]);

/// A guest `web` with a disk on each filesystem, one of them behind a symlink, and a neighbour on the destination.
fn world() -> SimWorld {
    let world = scene::empty_world(7);
    world.with(|core| {
        let source = core.machine_mut(Side::Source);
        for path in [format!("{IMAGES}/web.img"), format!("{SECOND}/real.img")] {
            let mut content = Content::default();
            content.set_size(4 << 20);
            content.write(0, &[7; 8192]);
            source.files.make_file(&path, 0o640, content).unwrap();
        }
        source.files.make_symlink(&format!("{SECOND}/web.img"), &format!("{SECOND}/real.img")).unwrap();
        let disks = [("vda", "raw", &*format!("{IMAGES}/web.img")), ("vdb", "raw", &*format!("{SECOND}/web.img"))];
        source.libvirt.define(&mut source.files, &scene::definition("web", GUEST, &disks)).unwrap();
        let destination = core.machine_mut(Side::Destination);
        let other = scene::definition("other", DomainUuid([0x22; 16]), &[]);
        destination.libvirt.define(&mut destination.files, &other).unwrap();
    });
    world
}

fn request() -> Request {
    Request::new("kvm1".parse().unwrap(), "kvm2".parse().unwrap(), "web".parse().unwrap())
}

fn run(world: &SimWorld, request: &Request) -> Result<Prepared, SurveyError> {
    let source = world.connect(Side::Source)?;
    let destination = world.connect(Side::Destination)?;
    let controller = ControllerId { machine_id: "c".repeat(32), state_dir: "/var/lib/kvm-clone".into() };
    let mut random = || world.random();
    let mut circumstances = Circumstances { controller: &controller, now: world.now(), random: &mut random };
    prepare(source.as_ref(), destination.as_ref(), request, &mut circumstances, &[])
}

fn planned(world: &SimWorld, request: &Request) -> PlanV1 {
    let prepared = run(world, request).unwrap();
    prepared.plan.unwrap_or_else(|| panic!("{:#?}", prepared.report.blockers))
}

/// All paths of both hosts with what they are.
fn everything(world: &SimWorld) -> Vec<String> {
    world.with(|core| {
        let sides = [Side::Source, Side::Destination];
        let lines = sides.into_iter().flat_map(|side| {
            let files = &core.machine(side).files;
            let paths = files.walk().into_keys();
            paths.map(|path| format!("{side} {path} {:?}", files.stat(&path))).collect::<Vec<_>>()
        });
        lines.collect()
    })
}

fn put(world: &SimWorld, path: &str) {
    world.with(|core| {
        let files = &mut core.machine_mut(Side::Destination).files;
        for (end, _) in path.match_indices('/').skip(1) {
            if files.stat(&path[..end]).is_none() {
                files.make_dir(&path[..end], 0o755).unwrap();
            }
        }
        files.make_file(path, 0o600, Content::default()).unwrap();
    });
}

#[test]
fn a_guest_is_planned_and_nothing_is_touched() {
    let world = world();
    let before = everything(&world);
    let plan = planned(&world, &request());
    assert_eq!(everything(&world), before);
    let paths: Vec<_> = plan.images.iter().map(|disk| (disk.source_path.as_str(), disk.final_path.as_str())).collect();
    assert_eq!(
        paths,
        [
            ("/var/lib/libvirt/images/web.img", "/var/lib/libvirt/images/web_clone-vda.img"),
            ("/srv/vm/real.img", "/srv/vm/web_clone-vdb.img"),
        ]
    );
    assert_eq!(plan.pools, ["default"]);
    assert_eq!(plan.request.vm_uuid, GUEST);
    assert!(plan.definition.contains("<emulator>/usr/bin/qemu-system-x86_64</emulator>"), "{}", plan.definition);
}

/// Two hosts made from one template: what is on the one cannot be told from what is on the other.
#[test]
fn two_hosts_of_one_machine_id_are_refused() {
    let world = world();
    let boot = |core: &mut Core, side: Side, id: &[u8]| {
        let machine = core.machine_mut(side);
        machine.facts.machine_id = "d".repeat(32);
        for directory in ["/proc", "/proc/sys", "/proc/sys/kernel", "/proc/sys/kernel/random"] {
            let _ = machine.files.make_dir(directory, 0o555);
        }
        machine.files.make_file("/proc/sys/kernel/random/boot_id", 0o444, Content::of(id)).unwrap();
    };
    world.with(|core| {
        boot(core, Side::Source, b"first");
        boot(core, Side::Destination, b"second");
    });
    let kinds: Vec<_> = run(&world, &request()).unwrap().report.blockers.iter().map(|one| one.kind).collect();
    assert_eq!(kinds, [BlockerKind::MachineId]);
}

/// Both hosts see one device, and the destination cannot tell that the source's host uses it.
#[test]
fn a_device_that_the_source_s_host_uses_too_is_refused() {
    const TARGET: &str = "/dev/target";
    let onto_target = |world: &SimWorld| {
        let disk_map = vec![format!("vda={TARGET}").parse().unwrap()];
        run(world, &Request { disk_map, overwritten: vec![TARGET.into()], ..request() }).unwrap().report
    };
    let put_device = |core: &mut Core, side: Side, path: &str| {
        let files = &mut core.machine_mut(side).files;
        let mut content = Content::default();
        content.set_size(8 << 20);
        files.make_file(path, 0o660, content).unwrap();
        files.make_device(path);
        files.device_facts(path).unwrap().identity.unwrap()
    };
    let shared = |world: &SimWorld| {
        world.with(|core| {
            for side in [Side::Source, Side::Destination] {
                core.machine_mut(side).files.make_dir("/dev", 0o755).unwrap();
            }
            let target = put_device(core, Side::Destination, TARGET);
            let mut nodes = (0..1000).map(|number| format!("/dev/sd{number}"));
            nodes.find(|node| put_device(core, Side::Source, node) == target).expect("inodes are counted up")
        })
    };
    let world = world();
    let node = shared(&world);
    assert_eq!(onto_target(&world).blockers, [], "a device that nobody uses");
    world.with(|core| {
        let source = core.machine_mut(Side::Source);
        let theirs = scene::definition("theirs", DomainUuid([0x33; 16]), &[("vda", "raw", &node)]);
        source.libvirt.define(&mut source.files, &theirs).unwrap();
    });
    let by_a_vm = onto_target(&world).blockers;
    assert_eq!(by_a_vm.iter().map(|one| one.kind).collect::<Vec<_>>(), [BlockerKind::Device]);
    assert!(by_a_vm[0].message.contains("the VM theirs reaches it"), "{by_a_vm:?}");

    let world = self::world();
    let node = shared(&world);
    world.with(|core| {
        let files = &mut core.machine_mut(Side::Source).files;
        let device = files.find(&node).unwrap();
        files.mounted.insert(device);
    });
    let by_the_host = onto_target(&world).blockers;
    assert!(by_the_host.len() == 1 && by_the_host[0].message.contains("or is mounted"), "{by_the_host:?}");
}

/// A chain of three below the first disk: asked for, it is one image, of which every file counts.
#[test]
fn a_chain_is_planned_as_one_image_where_it_is_flattened() {
    let world = world();
    let below = |name: &str| format!("{IMAGES}/{name}");
    world.with(|core| {
        let source = core.machine_mut(Side::Source);
        let mut seed = Seed::new(5);
        let top = flattened::qcow2(&mut seed, 16 << 10, ("web-middle", "qcow2"));
        let middle = flattened::qcow2(&mut seed, 8 << 10, (&below("web-base"), "raw"));
        for (name, content) in [("web-top", top), ("web-middle", middle), ("web-base", Content::of(&[5; 3000]))] {
            source.files.make_file(&below(name), 0o640, content).unwrap();
        }
        let disks = [("vda", "qcow2", &*below("web-top")), ("vdb", "raw", &*format!("{SECOND}/web.img"))];
        source.libvirt.define(&mut source.files, &scene::definition("web", GUEST, &disks)).unwrap();
    });
    let kept = planned(&world, &request());
    assert_eq!(kept.images.len(), 4, "both disks, and two images below the first");

    let flatten = Request { chain: Chain::Flatten, ..request() };
    let plan = planned(&world, &flatten);
    assert_eq!(plan.images.len(), 2);
    let image = &plan.images[0];
    assert_eq!(image.final_path, below("web_clone-vda.img"));
    assert_eq!(image.source_stamp.size, 16 << 10);
    let layers: Vec<_> =
        image.flattened.iter().map(|layer| (layer.reference.as_str(), layer.source_path.as_str())).collect();
    assert_eq!(
        layers,
        [("web-middle", &*below("web-middle")), (&*below("web-base"), &*below("web-base"))],
        "as the headers name them"
    );
    assert!(!plan.definition.contains("qcow2"), "{}", plan.definition);
    // What stands on nothing is as it was.
    assert_eq!(plan.images[1].flattened, []);

    // An internal snapshot of any of them would be lost.
    world.with(|core| {
        let files = &mut core.machine_mut(Side::Source).files;
        let stat = files.stat(&below("web-middle")).unwrap();
        files.write_at(&below("web-middle"), stat.inode, 60, &[0, 0, 0, 1]).unwrap();
    });
    let refused = run(&world, &flatten).unwrap();
    let told: Vec<_> = refused.report.blockers.iter().map(ToString::to_string).collect();
    assert!(
        told.len() == 1 && told[0].contains("web-middle") && told[0].contains("internal snapshots (1)"),
        "{told:?}"
    );
    assert_eq!(planned(&world, &request()).images.len(), 4, "kept, it stays inside");
}

static BASE_BYTES: [u8; 300_000] = [5; 300_000];

/// A guest `web` on a disk that stands on `web-base`, which the destination has at this path with these bytes.
fn world_with_base(path: &str, bytes: &[u8]) -> SimWorld {
    let world = world();
    put(&world, path);
    world.with(|core| {
        let source = core.machine_mut(Side::Source);
        let top = flattened::qcow2(&mut Seed::new(5), 16 << 10, ("web-base", "raw"));
        let below = |name: &str| format!("{IMAGES}/{name}");
        source.files.make_file(&below("web-top"), 0o640, top).unwrap();
        source.files.make_file(&below("web-base"), 0o640, Content::of(&BASE_BYTES)).unwrap();
        let definition = scene::definition("web", GUEST, &[("vda", "qcow2", &below("web-top"))]);
        source.libvirt.define(&mut source.files, &definition).unwrap();
        let files = &mut core.machine_mut(Side::Destination).files;
        let inode = files.stat(path).unwrap().inode;
        files.set_size(path, inode, bytes.len() as u64, false).unwrap();
        files.write_at(path, inode, 0, bytes).unwrap();
    });
    world
}

fn share() -> Request {
    Request { chain: Chain::Share, ..request() }
}

/// How the clone names what it stands on, and what that is; and how many files are copied.
fn stands_on(world: &SimWorld, request: &Request) -> (String, Vec<String>, usize) {
    let plan = planned(world, request);
    let clone = plan.images[0].backing.as_ref().unwrap().clone.clone();
    (clone, plan.bases.iter().map(|base| base.path.clone()).collect(), plan.images.len())
}

#[test]
fn a_base_that_the_destination_has_is_stood_on_where_it_is() {
    let beside = format!("{IMAGES}/web-base");
    let before = |world: &SimWorld| (everything(world), planned(world, &share()), everything(world));
    let world = world_with_base(&beside, &BASE_BYTES);
    let (was, plan, is) = before(&world);
    assert_eq!(was, is, "nothing was touched");
    assert_eq!(plan.bases[0].root.0, *blake3::hash(&BASE_BYTES).as_bytes());
    assert!(plan.steps.contains(&StepV1::HoldBase { base: 0 }), "{:?}", plan.steps);
    assert_eq!(stands_on(&world, &share()), ("web-base".to_owned(), vec![beside.clone()], 1));
    let elsewhere = Request { target: Target::Directory(SECOND.to_owned()), ..share() };
    assert_eq!(stands_on(&world, &elsewhere), (beside.clone(), vec![beside], 1), "named in full from there");
    let there = format!("{SECOND}/web-base");
    let world = world_with_base(&there, &BASE_BYTES);
    assert_eq!(stands_on(&world, &elsewhere), ("web-base".to_owned(), vec![there], 1));
    let copied = |world: &SimWorld| stands_on(world, &share()).2 == 2;
    assert!(copied(&world), "nobody asked for anything there");
}

/// What else may be true of the destination's image of that path.
type Circumstance = fn(&mut Core, &str);

#[test]
fn a_base_is_copied_where_another_has_only_its_name() {
    let beside = format!("{IMAGES}/web-base");
    let mut others = BASE_BYTES;
    others[299_999] = 6;
    for bytes in [&others[..], &BASE_BYTES[1..], &[]] {
        assert_eq!(stands_on(&world_with_base(&beside, bytes), &share()).2, 2);
    }
    let circumstances: [(&str, Circumstance); 4] = [
        ("a disk of another VM by an unusual name", |core, path| {
            let machine = core.machine_mut(Side::Destination);
            machine.files.make_symlink("/srv/alias", path).unwrap();
            let other = scene::definition("other", DomainUuid([0x22; 16]), &[("vda", "raw", "/srv/alias")]);
            machine.libvirt.define(&mut machine.files, &other).unwrap();
        }),
        ("another name too", |core, path| {
            core.machine_mut(Side::Destination).files.link(path, &format!("{path}-staged")).unwrap();
        }),
        ("a disk of another VM", |core, path| {
            let machine = core.machine_mut(Side::Destination);
            let other = scene::definition("other", DomainUuid([0x22; 16]), &[("vda", "raw", path)]);
            machine.libvirt.define(&mut machine.files, &other).unwrap();
        }),
        ("the source's own host", |core, _| {
            let machine_id = core.machine(Side::Source).facts.machine_id.clone();
            core.machine_mut(Side::Destination).facts.machine_id = machine_id;
        }),
    ];
    for (why, circumstance) in circumstances {
        let world = world_with_base(&beside, &BASE_BYTES);
        world.with(|core| circumstance(core, &beside));
        assert_eq!(stands_on(&world, &share()).2, 2, "{why}");
    }
    for (chain, images) in [(Chain::Keep, 2), (Chain::Flatten, 1)] {
        let plan = planned(&world_with_base(&beside, &BASE_BYTES), &Request { chain, ..request() });
        assert_eq!((plan.images.len(), plan.bases.len()), (images, 0), "nobody asked for it");
    }
}

#[test]
fn a_guest_is_found_by_its_uuid() {
    let mut request = request();
    request.vm = VmSelector::Uuid(GUEST);
    assert_eq!(planned(&world(), &request).request.new_name, "web_clone");
}

#[test]
fn an_unknown_guest_is_said_with_those_that_there_are() {
    let mut request = request();
    request.vm = "wbe".parse().unwrap();
    let error = run(&world(), &request).unwrap_err();
    assert!(matches!(error, SurveyError::NoSuchVm { .. }));
    assert!(error.to_string().contains("there is no VM wbe. It has: web."), "{error}");
}

#[test]
fn what_stands_in_the_way_on_the_destination_is_found() {
    let world = world();
    put(&world, "/var/lib/libvirt/qemu/nvram/web_clone_VARS.fd");
    put(&world, "/var/lib/kvm-clone/host/names/web_clone");
    put(&world, "/var/lib/libvirt/images/web_clone-vda.img");
    let busy = DomainUuid([0x33; 16]);
    world.with(|core| {
        let source = core.machine_mut(Side::Source);
        let disks = [("vda", "raw", &*format!("{IMAGES}/web.img"))];
        source.libvirt.define(&mut source.files, &scene::definition("busy", busy, &disks)).unwrap();
        source.start(busy).unwrap();
    });
    let before = everything(&world);
    let mut request = request();
    request.vm = VmSelector::Uuid(busy);
    request.new_name = Some("web_clone".parse().unwrap());
    let prepared = run(&world, &request).unwrap();
    assert_eq!(everything(&world), before);
    let kinds: Vec<_> = prepared.report.blockers.iter().map(|blocker| blocker.kind).collect();
    assert_eq!(kinds, [BlockerKind::Running, BlockerKind::NameHeld, BlockerKind::Leftover]);
    assert!(prepared.plan.is_none());
    assert!(prepared.survey.destination.taken.contains("/var/lib/libvirt/images/web_clone-vda.img"));
}

#[test]
fn a_clone_on_the_sources_own_host_gets_paths_of_its_own() {
    let world = world();
    let plan = planned(&world, &request());
    for disk in &plan.images {
        put(&world, &disk.final_path);
    }
    let again = planned(&world, &request());
    for (first, second) in plan.images.iter().zip(&again.images) {
        assert_ne!(first.final_path, second.final_path);
        assert!(second.final_path.contains(&again.txn.short()), "{}", second.final_path);
    }
}

/// An unreachable host at each question in turn: the error names the host, and nothing was touched.
#[test]
fn a_host_that_is_lost_at_any_question_leaves_no_trace() {
    let clean = world();
    run(&clean, &request()).unwrap();
    let questions = clean.operations();
    assert!(questions > 20, "{questions}");
    let (mut refused, mut lost) = (0, 0);
    for operation in 0..questions {
        for fault in [Fault::AgentDies, Fault::Fails(FaultKind::Denied), Fault::Fails(FaultKind::Refused)] {
            let world = world();
            let before = everything(&world);
            let unlucky = world.another_life(FaultPlan::at(operation, fault.clone(), Effect::Never));
            let outcome = run(&unlucky, &request());
            assert!(unlucky.is_spent(), "operation {operation} was not reached");
            assert_eq!(everything(&world), before, "operation {operation}, {fault:?}");
            match outcome {
                Err(SurveyError::Host(fault)) => {
                    assert!(fault.host == "source" || fault.host == "destination", "{fault}");
                    lost += 1;
                }
                Err(other) => panic!("operation {operation}, {fault:?}: {other}"),
                // A definite answer about a disk or an emulator is a problem like any other.
                Ok(prepared) => {
                    assert!(!matches!(fault, Fault::AgentDies), "operation {operation}");
                    assert!(prepared.plan.is_none(), "operation {operation}, {fault:?}");
                    refused += 1;
                }
            }
        }
    }
    assert!(lost >= questions && refused > 0, "{lost} {refused}");
}
