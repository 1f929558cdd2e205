//! One thing spoiled at a time, and then all at once.
#![allow(clippy::unwrap_used)]

use journal_format::owner::{DirectionV1, OwnerV1};
use journal_format::{ChunkValue, Epoch, FileStampV1, ImageFormat, ImageRoleV1, Inode, TxnId};

use super::*;
use crate::domain::DomainName;
use crate::request::Target;
use crate::survey::sample::{self, DATA, GIB, IMAGES};
use crate::survey::{BaseFacts, ClaimFacts, EmulatorFacts, FlattenedLayer, SourceFile, SourceImage};
use crate::world::{DomainState, FileKind, ImageCheck, NetworkFacts};

type Spoil = fn(&mut Request, &mut Survey);

fn report_of(spoil: Spoil) -> Report {
    let (mut request, mut survey) = (sample::request(), sample::survey());
    spoil(&mut request, &mut survey);
    check(&request, &survey, &sample::controller(), &[])
}

fn image(survey: &mut Survey, disk: usize) -> &mut crate::survey::ImageFacts {
    match &mut survey.source.files[disk].image {
        SourceImage::Readable(image) => image,
        other => panic!("{other:?}"),
    }
}

fn checked(survey: &mut Survey, disk: usize, check: ImageCheck) {
    let path = image(survey, disk).path.clone();
    survey.source.checks.insert(path, check);
}

fn base() -> BaseFacts {
    let stamp = FileStampV1 { inode: Inode(7), size: GIB, mtime_ns: 0 };
    let role = ImageRoleV1::Layer { target: "vda".into(), depth: 1 };
    BaseFacts { role, path: "/srv/golden.img".into(), directory: Inode(2), stamp, root: ChunkValue([7; 32]) }
}

/// Puts an image below the first disk that is read through it.
fn flatten(survey: &mut Survey) -> &mut SourceFile {
    let file = sample::disk(0, "vda", ImageFormat::Qcow2, "/srv/templates/golden.qcow2", GIB);
    let first = &mut survey.source.files[0];
    first.flattened = vec![FlattenedLayer { reference: "golden.qcow2".into(), file }];
    &mut first.flattened[0].file
}

fn head_of(file: &mut SourceFile) -> &mut Vec<u8> {
    match &mut file.image {
        SourceImage::Readable(image) => &mut image.head,
        other => panic!("{other:?}"),
    }
}

fn images(survey: &mut Survey) -> &mut crate::survey::DirectoryFacts {
    survey.destination.directories.get_mut(IMAGES).unwrap()
}

fn claim_of(controller: ControllerId) -> ClaimFacts {
    let owner = OwnerV1 {
        counter: 1,
        txn: TxnId([7; 16]),
        epoch: Epoch(1),
        controller,
        agent_pid: 1,
        agent_started: 1,
        direction: DirectionV1::Forward,
    };
    ClaimFacts { path: "/var/lib/kvm-clone/host/names/web01_clone".into(), owner: Ok(owner) }
}

#[test]
fn a_plain_vm_is_not_hindered() {
    let report = report_of(|_, _| {});
    assert_eq!(report, Report::default());
    assert_eq!(report.exit(), None);
}

#[test]
#[allow(clippy::too_many_lines)] // a table
fn each_thing_in_the_way_is_named() {
    use BlockerKind as B;
    let table: &[(B, Spoil, &[&str])] = &[
        (
            B::Running,
            |_, s| s.source.vm.brief.state = DomainState::Active,
            &["kvm1", "web01", "is running", "virsh shutdown web01"],
        ),
        (
            B::MachineId,
            |_, s| s.destination.is_twin = true,
            &["kvm2", "machine-id of kvm1", "systemd-machine-id-setup"],
        ),
        (B::Transient, |_, s| s.source.vm.persistent = false, &["transient"]),
        (B::ManagedSave, |_, s| s.source.vm.managed_save = true, &["managed save", "managedsave-remove web01"]),
        (B::Checkpoints, |_, s| s.source.vm.checkpoints = 1, &["1 checkpoint,"]),
        (B::DiskMissing, |_, s| s.source.files[1].image = SourceImage::Missing, &["kvm1", "vdb", "/srv/data/disk.img"]),
        (
            B::DiskUnreadable,
            |_, s| s.source.files[1].image = SourceImage::Unreadable("Permission denied".into()),
            &["vdb", "Permission denied"],
        ),
        (B::DiskKind, |_, s| image(s, 1).stat.kind = FileKind::BlockDevice, &["vdb", "not a regular file"]),
        (B::DiskHeader, |_, s| image(s, 0).head = vec![0; 65_536], &["vda", "qcow2"]),
        (B::DiskHeader, |_, s| image(s, 0).head.truncate(50), &["vda", "ends at 50 bytes"]),
        (
            B::Uncarried,
            |_, s| head_of(flatten(s))[63] = 1,
            &["vda", "golden.qcow2", "internal snapshots (1)", "--chain keep"],
        ),
        (
            B::Uncarried,
            |_, s| {
                flatten(s);
                image(s, 0).head[79] = 1;
            },
            &["vda", "web01", "not closed (dirty)", "--chain keep"],
        ),
        (B::DiskMissing, |_, s| flatten(s).image = SourceImage::Missing, &["vda", "golden.qcow2"]),
        (
            B::SameVm,
            |_, s| {
                s.destination.host.machine_id = s.source.host.machine_id.clone();
                s.new_name = DomainName::new("web01").unwrap();
                s.destination.neighbours.push(sample::neighbour("web01", 9));
            },
            &["web01", "--new-name"],
        ),
        (
            B::NameTaken,
            |_, s| {
                s.destination.neighbours.push(sample::neighbour("web01_clone", 9));
                s.destination.leftovers.push("/var/lib/libvirt/qemu/nvram/web01_clone_VARS.fd".into());
            },
            &["kvm2", "web01_clone", "09090909", "--new-name"],
        ),
        (
            B::NameClaimed,
            |_, s| s.destination.claim = Some(claim_of(sample::controller())),
            &["07070707-", "recover --from kvm2"],
        ),
        (
            B::NameHeld,
            |_, s| {
                s.destination.claim =
                    Some(claim_of(ControllerId { machine_id: "e".repeat(32), state_dir: "/s".into() }));
            },
            &["another controller", "eeee"],
        ),
        (
            B::NameHeld,
            |_, s| {
                let mut claim = claim_of(sample::controller());
                claim.owner = Err("both slots are torn".into());
                s.destination.claim = Some(claim);
            },
            &["names/web01_clone", "both slots are torn"],
        ),
        (
            B::Leftover,
            |_, s| s.destination.leftovers.push("/var/lib/libvirt/qemu/nvram/web01_clone_VARS.fd".into()),
            &["web01_clone_VARS.fd", "delete it"],
        ),
        (
            B::DirectoryMissing,
            |_, s| {
                s.destination.directories.remove(DATA);
                s.destination.pools.remove(0);
            },
            &["vdb", "/srv/data", "pool `default`", "--directory"],
        ),
        (B::DirectoryMissing, |r, _| r.target = Target::directory("/none").unwrap(), &["/none"]),
        (B::Pool, |r, _| r.target = Target::pool("nope").unwrap(), &["no pool nope", "default, elsewhere"]),
        (
            B::Pool,
            |r, s| {
                r.target = Target::pool("elsewhere").unwrap();
                s.destination.pools[1].facts.active = false;
            },
            &["not active", "pool-start elsewhere"],
        ),
        (
            B::Pool,
            |r, s| {
                r.target = Target::pool("elsewhere").unwrap();
                s.destination.pools[1].facts.kind = "logical".into();
            },
            &["logical"],
        ),
        (
            B::DirectoryMissing,
            |r, _| r.target = Target::pool("elsewhere").unwrap(),
            &["/mnt/elsewhere", "pool-build elsewhere"],
        ),
        (B::NotADirectory, |_, s| images(s).stat.kind = FileKind::File, &[IMAGES, "not a directory"]),
        (B::ReadOnly, |_, s| images(s).filesystem.read_only = true, &[IMAGES, "read-only"]),
        (B::ReadOnly, |_, s| s.destination.record.filesystem.read_only = true, &["/var/lib", "read-only"]),
        (B::NotWritable, |_, s| images(s).filesystem.writable = false, &[IMAGES, "root cannot write", "lsattr"]),
        (
            B::DiskTables,
            |_, s| checked(s, 0, ImageCheck::Broken("2 errors were\nfound on the image.".into())),
            &["kvm1", "vda", "disk.img", "(2 errors were found on the image).", "qemu-img check -r all"],
        ),
        (B::Cpu, |_, s| s.destination.cpu_lacks = Some("no avx512f".into()), &["kvm2", "no avx512f", "virsh edit"]),
        (B::NoHardLinks, |_, s| images(s).filesystem.kind = "vfat".into(), &[IMAGES, "vfat"]),
        (
            B::StagingParent,
            |_, s| images(s).staging_parent = Some(sample::stat(FileKind::Symlink, 5, 1)),
            &[".kvm-clone"],
        ),
        (
            B::StagingParent,
            |_, s| images(s).staging_parent = Some(sample::stat(FileKind::Directory, 5, 1)),
            &[".kvm-clone"],
        ),
        (
            B::Space,
            |_, s| images(s).filesystem.available_bytes = GIB,
            &[
                "Insufficient disk space on kvm2 (/var/lib/libvirt/images). Required: 2.49 GB (including 15% safety margin), Available: 1.07 GB\nPlease free up at least 1.42 GB on kvm2 before retrying.",
            ],
        ),
        (
            B::Space,
            |r, s| {
                // 20 GiB virtual and 10 GiB file, against 2 and 3 that are allocated.
                r.preallocate = true;
                s.destination.directories.get_mut(DATA).unwrap().filesystem.available_bytes = 11 * GIB;
            },
            &["/srv/data", "Required: 12.35 GB"],
        ),
        (B::Inodes, |_, s| images(s).filesystem.available_inodes = Some(2), &[IMAGES, "2 inodes"]),
        (B::NetworkMissing, |_, s| s.destination.networks.clear(), &["network default", "--network-map default="]),
        (
            B::NetworkMissing,
            |r, _| r.network_map.push("default=lab".parse().unwrap()),
            &["network lab", "networks there: default", "--network-map default="],
        ),
        (
            B::NetworkInactive,
            |r, s| {
                r.start = true;
                s.destination.networks[0].active = false;
            },
            &["net-start default"],
        ),
        (B::BridgeMissing, |_, s| s.destination.bridges.clear(), &["bridge br0", "--network-map br0="]),
        (
            B::MappingUnused,
            |r, _| r.network_map.push("defualt=lab".parse().unwrap()),
            &["defualt", "it uses: default, br0"],
        ),
        (
            B::DiskMapUnused,
            |r, _| r.disk_map.push("sda=default/x".parse().unwrap()),
            &["--disk-map sda=default/x", "web01 has no disk sda", "vda, vdb"],
        ),
        (
            B::PathTaken,
            |r, s| {
                r.disk_map.push("vda=default/mine.img".parse().unwrap());
                s.destination.taken.insert(format!("{IMAGES}/mine.img"));
            },
            &["kvm2", "--disk-map vda=default/mine.img", "/var/lib/libvirt/images/mine.img is there already"],
        ),
        (
            B::PathTaken,
            |r, s| {
                r.disk_map.push("vdb=/srv/data/mine.img".parse().unwrap());
                s.destination.neighbours[0].paths.insert(format!("{DATA}/mine.img"));
            },
            &["/srv/data/mine.img belongs to VM other"],
        ),
        (
            B::PathTaken,
            |r, _| r.disk_map.push("vdb=default/web01_clone-vda.qcow2".parse().unwrap()),
            &["disk vdb and disk vda would both be /var/lib/libvirt/images/web01_clone-vda.qcow2"],
        ),
        (
            B::Emulator,
            |_, s| s.destination.emulator = EmulatorFacts::Refused("the accel 'kvm' is not supported".into()),
            &["x86_64", "pc-q35-7.2", "kvm", "not supported"],
        ),
    ];
    for (row, (kind, spoil, words)) in table.iter().enumerate() {
        let report = report_of(*spoil);
        let kinds: Vec<_> = report.blockers.iter().map(|blocker| blocker.kind).collect();
        assert_eq!(kinds, [*kind], "row {row}: {:#?}", report.blockers);
        let text = report.blockers[0].to_string();
        for word in *words {
            assert!(text.contains(word), "row {row}: {word:?} is not in: {text}");
        }
        assert_eq!(report.exit(), Some(if *kind == B::NameHeld { 7 } else { 5 }));
    }
}

#[test]
fn each_thing_to_be_known_is_a_warning_and_hinders_nothing() {
    use WarningKind as W;
    let table: &[(W, Spoil, &[&str])] = &[
        (W::NetworkFilesystem, |_, s| images(s).filesystem.network = true, &[IMAGES]),
        (W::SharedBase, |_, s| s.destination.bases.push(base()), &["kvm2", "/srv/golden.img", "not copied"]),
        (W::NetworkInactive, |_, s| s.destination.networks[0].active = false, &["default"]),
        (W::Memory, |_, s| s.destination.host.memory_bytes = GIB, &["1.07 GB", "2.15 GB"]),
        (W::Cpus, |_, s| s.destination.host.cpus = 1, &["1 CPUs", "has 2"]),
        (W::OlderLibvirt, |_, s| s.destination.host.libvirt_version = 8_001_002, &["libvirt 8.1.2", "9.0.0"]),
        (W::OlderHypervisor, |_, s| s.destination.host.hypervisor_version = 5_002_000, &["QEMU 5.2.0", "7.2.0"]),
        (
            W::MacShared,
            |r, s| {
                r.preserve_mac = true;
                s.destination.neighbours[0].macs.insert("52:54:00:aa:bb:02".into());
            },
            &["kvm2", "other", "52:54:00:aa:bb:02"],
        ),
        (
            W::EmulatorPath,
            |_, s| s.destination.emulator = EmulatorFacts::Path("/usr/bin/qemu-kvm".into()),
            &["/usr/bin/qemu-system-x86_64", "/usr/bin/qemu-kvm"],
        ),
        (
            W::CpuFeatures,
            |_, s| {
                s.source.definition.cpu_check = Some("none".into());
                s.destination.cpu_lacks = Some("no avx512f".into());
            },
            &["kvm2", "another CPU", "no avx512f"],
        ),
        (
            W::DiskTables,
            |_, s| checked(s, 0, ImageCheck::Leaks("7 leaked clusters.".into())),
            &["kvm1", "vda", "lost", "(7 leaked clusters)"],
        ),
        (
            W::DiskTables,
            |_, s| checked(s, 0, ImageCheck::Unchecked("did not end within 20 s".into())),
            &["could not be checked", "20 s"],
        ),
        (W::Clock, |_, s| s.destination.host.clock_ahead_ms = 6_000, &["kvm2", "6s ahead of"]),
        (W::Clock, |_, s| s.source.host.clock_ahead_ms = -3_600_000, &["kvm1", "behind"]),
        (
            W::OlderSwtpm,
            |_, s| (s.source.swtpm, s.destination.swtpm) = (Some("0.10.0".into()), Some("0.7.1".into())),
            &["kvm2", "swtpm 0.7.1", "the 0.10.0 of kvm1"],
        ),
        (W::OlderSwtpm, |_, s| s.source.swtpm = Some("0.7.1".into()), &["kvm2", "there is no swtpm"]),
        (W::OwnerUnknown, |_, s| image(s, 1).owner.user = None, &["vdb", "64055:kvm"]),
    ];
    for (row, (kind, spoil, words)) in table.iter().enumerate() {
        let report = report_of(*spoil);
        assert_eq!(report.blockers, [], "row {row}");
        let kinds: Vec<_> = report.warnings.iter().map(|warning| warning.kind).collect();
        assert_eq!(kinds, [*kind], "row {row}: {:#?}", report.warnings);
        let text = report.warnings[0].to_string();
        for word in *words {
            assert!(text.contains(word), "row {row}: {word:?} is not in: {text}");
        }
    }
}

#[test]
fn everything_is_said_at_once() {
    let report = report_of(|request, survey| {
        request.start = true;
        survey.source.vm.brief.state = DomainState::Active;
        survey.source.files[1].image = SourceImage::Missing;
        survey.destination.networks = vec![NetworkFacts { name: "default".into(), active: false }];
        survey.destination.claim = Some(claim_of(ControllerId { machine_id: "e".repeat(32), state_dir: "/s".into() }));
        images(survey).filesystem.available_bytes = 0;
        survey.destination.record.filesystem.available_bytes = 0;
        survey.destination.host.cpus = 1;
    });
    let kinds: Vec<_> = report.blockers.iter().map(|blocker| blocker.kind).collect();
    assert_eq!(
        kinds,
        [
            BlockerKind::Running,
            BlockerKind::DiskMissing,
            BlockerKind::NameHeld,
            BlockerKind::Space,
            BlockerKind::NetworkInactive
        ]
    );
    assert_eq!(report.warnings.len(), 1);
    assert_eq!(report.exit(), Some(5), "5 counts more than 7");
}

#[test]
fn our_own_unfinished_transaction_for_that_name_is_named_once() {
    let unfinished = |running, survey: &Survey| Unfinished {
        abandoned: false,
        source_machine_id: survey.source.host.machine_id.clone(),
        vm_uuid: survey.source.vm.brief.uuid.to_string(),
        txn: TxnId([7; 16]),
        destination_machine_id: survey.destination.host.machine_id.clone(),
        new_name: "web01_clone".into(),
        running,
        advice: "First `kvm-clone resume 07`.".into(),
    };
    let (request, mut survey) = (sample::request(), sample::survey());
    for claimed in [false, true] {
        survey.destination.claim = claimed.then(|| claim_of(sample::controller()));
        for (running, exit) in [(false, 5), (true, 7)] {
            let report = check(&request, &survey, &sample::controller(), &[unfinished(running, &survey)]);
            assert_eq!((report.blockers.len(), report.exit()), (1, Some(exit)), "{:#?}", report.blockers);
            let text = report.blockers[0].to_string();
            assert!(text.contains(&TxnId([7; 16]).to_string()) && text.contains("kvm-clone resume 07"), "{text}");
        }
    }
    // One that was abandoned while its host did not answer is in the way only where that host still has its claim.
    let abandoned = Unfinished {
        abandoned: true,
        advice: "First `kvm-clone abandon 07 --reason TEXT`.".into(),
        ..unfinished(false, &survey)
    };
    for claimed in [false, true] {
        survey.destination.claim = claimed.then(|| claim_of(sample::controller()));
        let report = check(&request, &survey, &sample::controller(), std::slice::from_ref(&abandoned));
        let told: Vec<_> = report.blockers.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), usize::from(claimed), "{told:?}");
        assert!(told.iter().all(|text| text.contains("kvm-clone abandon 07") && !text.contains("resume")), "{told:?}");
    }
    survey.destination.claim = None;
    let elsewhere = Unfinished { destination_machine_id: "another".into(), ..unfinished(false, &survey) };
    let other_name = Unfinished { new_name: "web02".into(), ..unfinished(false, &survey) };
    assert_eq!(check(&request, &survey, &sample::controller(), &[elsewhere, other_name]), Report::default());
}

#[test]
fn space_is_counted_by_filesystem() {
    // 2 GiB and 3 GiB: each fits alone, both together do not.
    let spoil: Spoil = |_, survey| {
        survey.destination.directories.insert(DATA.into(), sample::directory(DATA, 1, 5 * GIB));
        images(survey).filesystem.available_bytes = 5 * GIB;
        survey.destination.record.filesystem.device = 3;
    };
    let report = report_of(spoil);
    assert_eq!(report.blockers.len(), 1, "{:#?}", report.blockers);
    assert!(report.blockers[0].message.contains("Required: 6.18 GB"), "{}", report.blockers[0]);
    let report = report_of(|_, survey| {
        images(survey).filesystem.available_bytes = 5 * GIB;
        survey.destination.directories.get_mut(DATA).unwrap().filesystem.available_bytes = 5 * GIB;
    });
    assert_eq!(report.blockers, []);
}

#[test]
fn blocks_beyond_the_images_end_are_not_counted() {
    let report = report_of(|_, survey| {
        image(survey, 1).stat.allocated = 50 * GIB; // of an image of 10 GiB
        survey.destination.directories.get_mut(DATA).unwrap().filesystem.available_bytes = 12 * GIB;
    });
    assert_eq!(report.blockers, []);
}

#[test]
fn the_source_itself_shares_kept_addresses_only_on_its_own_host() {
    let report = report_of(|request, _| request.preserve_mac = true);
    assert_eq!(report.warnings, []);
    let report = report_of(|request, survey| {
        request.preserve_mac = true;
        survey.destination.host.machine_id = survey.source.host.machine_id.clone();
        survey.destination.neighbours = survey.source.neighbours.clone();
    });
    assert_eq!(report.warnings.len(), 2, "one an address: {:#?}", report.warnings);
}

#[test]
fn a_namesake_on_another_machine_is_no_source() {
    let report = report_of(|_, survey| survey.new_name = DomainName::new("web01").unwrap());
    assert_eq!(report, Report::default());
}

#[test]
fn what_cannot_be_carried_is_named_with_its_place() {
    let report = report_of(|_, survey| {
        let text = sample::DEFINITION.replace(
            "</devices>",
            "<hostdev mode='subsystem' type='pci' managed='yes'><source><address domain='0x0000' bus='0x06' slot='0x02' function='0x0'/></source></hostdev></devices>",
        );
        survey.source.definition = crate::domain::Definition::parse(&text).unwrap();
    });
    let kinds: Vec<_> = report.blockers.iter().map(|blocker| blocker.kind).collect();
    assert_eq!(kinds, [BlockerKind::Uncarried], "{report:#?}");
}

#[test]
fn firmware_of_another_size_is_refused_and_of_another_build_told() {
    let facts = |bytes: Option<u64>, byte: u8| crate::survey::FirmwareFacts {
        path: "/usr/share/OVMF/OVMF_CODE_4M.fd".into(),
        bytes,
        root: bytes.map(|_| journal_format::ChunkValue([byte; 32])),
    };
    let mut survey = sample::survey();
    survey.source.firmware = Some(facts(Some(3_653_632), 1));
    let report_for = |firmware| {
        let mut report = Report::default();
        fit::check_rehearsal(&mut report, &survey, &crate::survey::Rehearsal::Accepted { firmware });
        let kinds: Vec<_> = report.blockers.iter().map(|blocker| blocker.kind).collect();
        (kinds, report.warnings.iter().map(|warning| warning.kind).collect::<Vec<_>>())
    };
    assert_eq!(report_for(Some(facts(Some(3_653_632), 1))), (vec![], vec![]));
    assert_eq!(report_for(Some(facts(Some(3_653_632), 2))), (vec![], vec![WarningKind::FirmwareBuild]));
    for other in [None, Some(facts(None, 0)), Some(facts(Some(1_966_080), 1))] {
        assert_eq!(report_for(other), (vec![BlockerKind::Firmware], vec![]));
    }
}

#[test]
fn libvirts_own_refusal_is_passed_on() {
    let mut report = Report::default();
    fit::check_rehearsal(&mut report, &sample::survey(), &crate::survey::Rehearsal::Accepted { firmware: None });
    assert_eq!(report.blockers, []);
    let refused = crate::survey::Rehearsal::Refused("unsupported configuration: x".into());
    fit::check_rehearsal(&mut report, &sample::survey(), &refused);
    assert_eq!(report.blockers[0].kind, BlockerKind::Rehearsal);
    assert!(report.blockers[0].message.contains("unsupported configuration: x"));
}

#[test]
fn what_is_well_is_not_told() {
    let report = report_of(|_, survey| {
        checked(survey, 0, ImageCheck::Whole);
        checked(survey, 1, ImageCheck::NoTool);
        survey.source.host.clock_ahead_ms = -4_900;
        (survey.source.swtpm, survey.destination.swtpm) = (Some("0.7.1".into()), Some("0.7.1".into()));
    });
    assert_eq!(report, Report::default());
}
