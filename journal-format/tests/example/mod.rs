//! An example of everything that the format can say: a plan, one of each event, a whole transaction, both owner slots.
//! The golden files hold its bytes, so nothing here changes once the format is released; new variants are added.
#![allow(dead_code)] // each test that includes this uses its own part

use journal_format::*;

pub fn txn() -> TxnId {
    TxnId::new(UnixMillis(1_767_225_600_000), *b"0123456789")
}

pub fn controller() -> ControllerId {
    ControllerId { machine_id: "8f3a1c5e7b9d4f60a2c4e6f80b1d3f5a".into(), state_dir: "/var/lib/kvm-clone".into() }
}

pub fn stamp() -> SourceStampV1 {
    SourceStampV1 { size: 68_719_476_736, mtime_ns: 1_767_000_000_123_456_789, ctime_ns: 1_767_000_000_987_654_321 }
}

fn endpoint(address: &str, key_file: Option<&str>) -> EndpointV1 {
    EndpointV1 {
        address: address.into(),
        machine_id: "00112233445566778899aabbccddeeff".into(),
        key_file: key_file.map(Into::into),
    }
}

fn disk(number: u32, format: ImageFormat) -> ImageV1 {
    ImageV1 {
        role: ImageRoleV1::Disk { target: format!("vd{}", char::from(b'a' + u8::try_from(number).unwrap())) },
        format,
        reached_by: format!("/var/lib/libvirt/images/web01-{number}.img"),
        source_path: format!("/srv/pool/web01-{number}.img"),
        source_stamp: stamp(),
        allocated_bytes: 1_073_741_824,
        place: match number {
            2 => PlaceV1::Device {
                device: DeviceV1 {
                    identity: "wwn-naa.5000c500a1b2c3d4".into(),
                    bytes: 1 << 40,
                    named: "/dev/disk/by-id/wwn-0x5000c500a1b2c3d4".into(),
                },
            },
            _ => PlaceV1::Directory { directory: 0 },
        },
        staging_path: format!("/srv/images/.kvm-clone/{}/{number}", txn()),
        final_path: format!("/srv/images/web02-{number}.img"),
        mode: 0o600,
        owner: (0, 0),
        backing: (number == 1)
            .then(|| BackingV1 { source: "base.qcow2".into(), clone: "web02-vdb-base1.qcow2".into() }),
        source_kind: if number == 0 { SourceKindV1::File } else { SourceKindV1::Device },
        flattened: if number == 0 { Vec::new() } else { layers() },
    }
}

fn layers() -> Vec<LayerV1> {
    let layer = |reference: &str, format| LayerV1 {
        reference: reference.into(),
        reached_by: format!("/var/lib/libvirt/images/{reference}"),
        source_path: format!("/srv/pool/{reference}"),
        format,
    };
    vec![layer("middle.qcow2", ImageFormat::Qcow2), layer("golden.img", ImageFormat::Raw)]
}

pub fn steps() -> Vec<StepV1> {
    vec![
        StepV1::ReserveRecord,
        StepV1::ClaimName,
        StepV1::CreateStaging { directory: 0 },
        StepV1::DetectSharedStorage,
        StepV1::CreateImage { image: 0 },
        StepV1::TransferImage { image: 0 },
        StepV1::VerifyImage { image: 0 },
        StepV1::PublishImage { image: 0 },
        StepV1::MakeDirectory { directory: 0 },
        StepV1::DefineDomain,
        StepV1::StopOldVm,
        StepV1::DefineSnapshot { snapshot: 0 },
        StepV1::ClaimDevice { image: 2 },
        StepV1::HoldBase { base: 0 },
    ]
}

pub fn clean_up() -> Vec<CleanUpStepV1> {
    vec![
        CleanUpStepV1::FinishDomain,
        CleanUpStepV1::ReleaseClaim,
        CleanUpStepV1::SetAutostart,
        CleanUpStepV1::StartDomain,
        CleanUpStepV1::RemoveStaging { directory: 0 },
        CleanUpStepV1::RefreshPool { pool: 0 },
        CleanUpStepV1::RemoveRecord,
        CleanUpStepV1::RetireOldVm,
        CleanUpStepV1::RenameClone,
        CleanUpStepV1::DeleteOldFile { file: 0 },
    ]
}

pub fn stop_modes() -> [(&'static str, StopModeV1); 4] {
    [
        ("shutdown", StopModeV1::Shutdown),
        ("save", StopModeV1::Save),
        ("destroy", StopModeV1::Destroy),
        ("never", StopModeV1::Never),
    ]
}

fn file_stamp() -> FileStampV1 {
    FileStampV1 { inode: Inode(815), size: 1 << 30, mtime_ns: 1_767_000_000_123_456_789 }
}

pub fn replaced(stop: StopModeV1) -> ReplacedV1 {
    let file = |role: ImageRoleV1, fate| OldFileV1 {
        path: format!("/srv/images/old-{role}.img"),
        role,
        stamp: file_stamp(),
        fate,
    };
    ReplacedV1 {
        uuid: DomainUuid([0x33; 16]),
        definition: "<domain type='kvm'><name>web02</name></domain>".into(),
        running: true,
        stop,
        keep: false,
        clone_name: format!("web02.new-{}", txn()),
        kept_name: format!("web02.replaced-{}", txn().short()),
        saved_path: format!("/srv/images/.kvm-clone/{}/old-vm.save", txn()),
        files: vec![
            file(ImageRoleV1::Disk { target: "vda".into() }, OldFileFateV1::Deleted { directory: 0 }),
            file(ImageRoleV1::Nvram, OldFileFateV1::Left { why: "the domain web03 reaches it".into() }),
        ],
    }
}

/// One of each record of the old VM, by the name of its golden file.
pub fn old_vm_records() -> [(&'static str, OldVmRecordV1); 4] {
    [
        ("stopping", OldVmRecordV1::Stopping { was_running: true }),
        ("stopped", OldVmRecordV1::Stopped { stamps: vec![Some(file_stamp()), None] }),
        (
            "retiring",
            OldVmRecordV1::Retiring {
                definition: "<domain type='kvm'><name>web02</name></domain>".into(),
                autostart: true,
                kept: false,
                snapshots: vec!["<domainsnapshot><name>s1</name></domainsnapshot>".into()],
            },
        ),
        ("renaming", OldVmRecordV1::Renaming { definition: "<domain type='kvm'><name>new</name></domain>".into() }),
    ]
}

pub fn plan() -> PlanV1 {
    PlanV1 {
        txn: txn(),
        created_at: UnixMillis(1_767_225_600_000),
        program_version: "0.1.0".into(),
        controller: controller(),
        request: RequestV1 {
            source: endpoint("admin@alpha:2222", Some("/root/.ssh/id_ed25519")),
            vm_uuid: DomainUuid([0x11; 16]),
            vm_name: "web01".into(),
            destination: endpoint("local", None),
            new_name: "web02".into(),
            options: OptionsV1 {
                start: true,
                verify: true,
                preserve_mac: false,
                preserve_uuid: true,
                bandwidth_limit_bytes_per_second: Some(100_000_000),
                preallocate: false,
                chunk_size_bytes: 1 << 20,
                dropped: vec![DropKindV1::Checkpoints, DropKindV1::Hostdev],
            },
        },
        clone_uuid: DomainUuid([0x22; 16]),
        source_definition: "<domain type='kvm'><name>web01</name><title>Straße</title></domain>".into(),
        definition: "<domain type='kvm'><name>web02</name></domain>".into(),
        title: Some("Straße".into()),
        autostart: true,
        directories: vec![DirectoryV1 {
            path: "/srv/images".into(),
            inode: Inode(2),
            staging: format!("/srv/images/.kvm-clone/{}", txn()),
            nonce: [0x5a; 16],
        }],
        new_directories: vec![NewDirectoryV1 {
            path: "/var/lib/libvirt/swtpm/22222222-2222-2222-2222-222222222222".into(),
            mode: 0o711,
            owner: (0, 0),
            makes_parent: true,
        }],
        images: vec![disk(0, ImageFormat::Raw), disk(1, ImageFormat::Qcow2), disk(2, ImageFormat::Raw)],
        replaced: Some(replaced(StopModeV1::Shutdown)),
        pools: vec!["images".into()],
        steps: steps(),
        clean_up: clean_up(),
        snapshots: vec![SnapshotV1 {
            name: "Montag früh".into(),
            source_definition: "<domainsnapshot><name>Montag früh</name></domainsnapshot>".into(),
            definition: "<domainsnapshot><name>Montag früh</name><state>shutoff</state></domainsnapshot>".into(),
            current: true,
        }],
        bases: vec![BaseV1 {
            role: ImageRoleV1::Layer { target: "vda".into(), depth: 1 },
            reached_by: "/var/lib/libvirt/images/golden.img".into(),
            source_path: "/srv/pool/golden.img".into(),
            source_stamp: stamp(),
            path: "/srv/images/golden.img".into(),
            directory: Inode(131_072),
            stamp: file_stamp(),
            root: ChunkValue([0xcd; 32]),
        }],
    }
}

pub fn failure(class: FailureClassV1, exit: u8) -> FailureV1 {
    FailureV1 {
        class,
        exit,
        message: "alpha: read /var/lib/libvirt/images/web01-0.img: no answer".into(),
        advice: "kvm-clone resume 36373839".into(),
    }
}

fn counts(requests: u64) -> CountsV1 {
    CountsV1 {
        requests,
        image_bytes_read: 1_073_741_824,
        image_bytes_written: 0,
        file_bytes_read: 4096,
        libvirt_calls: 3 * requests,
    }
}

pub fn outcomes() -> Vec<(&'static str, OutcomeV1)> {
    let root = ChunkValue([0xab; 32]);
    vec![
        ("nothing", OutcomeV1::Nothing),
        ("made", OutcomeV1::Made { inode: Inode(4711) }),
        ("shared-storage", OutcomeV1::SharedStorage { directories: vec![0, 3] }),
        (
            "transferred",
            OutcomeV1::Transferred {
                inode: Inode(4711),
                root,
                source_root: ChunkValue([0x5c; 32]),
                source_size: 68_719_476_736,
                source_mtime_ns: -1,
                mtime_ns: 1_767_225_601_000_000_000,
                missing_bytes: 1_073_741_824,
                sent_bytes: 1_073_000_000,
            },
        ),
        (
            "verified",
            OutcomeV1::Verified { inode: Inode(4711), size: 68_719_476_736, mtime_ns: 1_767_225_601_000_000_000, root },
        ),
        ("already-so", OutcomeV1::AlreadySo),
        ("stopped", OutcomeV1::Stopped { was_running: true }),
        ("left", OutcomeV1::Left { why: "the domain web03 reaches it".into() }),
        (
            "counted",
            OutcomeV1::Counted { survey: Some([counts(20), counts(60)]), source: Some(counts(90)), destination: None },
        ),
    ]
}

/// One of each event (each outcome, each failure class, …), by the name of its golden file.
pub fn events() -> Vec<(String, EventV1)> {
    let step = StepRef::Forward(5);
    let mut events: Vec<(String, EventV1)> = outcomes()
        .into_iter()
        .map(|(name, outcome)| (format!("done-{name}"), EventV1::Done { step, outcome }))
        .collect();
    let left = failure(FailureClassV1::Stop, 4);
    let opened = |purpose| EventV1::AttemptOpened { epoch: Epoch(2), purpose, pid: 4242 };
    let reopened = |cause| EventV1::Reopened { step, cause, why: "the staged image is shorter".into() };
    events.extend(
        [
            ("begun", EventV1::Begun { plan: Box::new(plan()) }),
            ("attempt-opened-run", opened(AttemptPurpose::Run)),
            ("attempt-opened-resume", opened(AttemptPurpose::Resume)),
            ("attempt-opened-rollback", opened(AttemptPurpose::Rollback)),
            ("started", EventV1::Started { step }),
            ("failed", EventV1::Failed { step, failure: failure(FailureClassV1::TurnBack, 1) }),
            ("rolling-back", EventV1::RollingBack { failure: failure(FailureClassV1::TurnBack, 0) }),
            ("undone", EventV1::Undone { step }),
            ("committed", EventV1::Committed),
            (
                "stuck",
                EventV1::Stuck {
                    finding: FindingV1 {
                        step: Some(step),
                        expected: "the staged image, inode 4711".into(),
                        found: "another file, inode 4712".into(),
                        commands: vec!["ls -li /srv/images".into()],
                    },
                },
            ),
            ("abandoned", EventV1::Abandoned { reason: "the destination is gone".into() }),
            ("suspended", EventV1::Suspended { failure: failure(FailureClassV1::Suspend, 3) }),
            ("finished-committed", EventV1::Finished { end: EndV1::Committed }),
            ("finished-rolled-back", EventV1::Finished { end: EndV1::RolledBack }),
            ("left-behind", EventV1::LeftBehind { step: StepRef::CleanUp(5), failure: left }),
            ("source-changed", EventV1::SourceChanged { image: 1, stamp: stamp() }),
        ]
        .map(|(name, event)| (name.to_owned(), event)),
    );
    for (name, stop) in stop_modes() {
        let plan = PlanV1 { replaced: Some(replaced(stop)), ..plan() };
        events.push((format!("begun-stop-{name}"), EventV1::Begun { plan: Box::new(plan) }));
    }
    events.extend(reopen_causes().map(|(name, cause)| (format!("reopened-{name}"), reopened(cause))));
    events
}

pub fn reopen_causes() -> [(&'static str, ReopenCauseV1); 3] {
    [
        ("effect-gone", ReopenCauseV1::EffectGone),
        ("source-changed", ReopenCauseV1::SourceChanged),
        ("read-back-differs", ReopenCauseV1::ReadBackDiffers),
    ]
}

pub fn record(number: u64, epoch: u64, event: EventV1) -> RecordV1 {
    RecordV1 { at: UnixMillis(1_767_225_600_000 + number * 250), epoch: Epoch(epoch), event }
}

/// A clone from its plan to its end, with one crash and one resume.
pub fn transaction() -> Vec<RecordV1> {
    let outcome = |step: usize| match steps()[step] {
        StepV1::TransferImage { .. } => outcomes()[3].1.clone(),
        StepV1::VerifyImage { .. } => outcomes()[4].1.clone(),
        StepV1::DetectSharedStorage => OutcomeV1::SharedStorage { directories: Vec::new() },
        StepV1::StopOldVm => OutcomeV1::Stopped { was_running: true },
        StepV1::CreateImage { .. } | StepV1::ReserveRecord => OutcomeV1::Made { inode: Inode(4711) },
        _ => OutcomeV1::Nothing,
    };
    let opened = |epoch, purpose, pid| EventV1::AttemptOpened { epoch: Epoch(epoch), purpose, pid };
    let crash_at = 5;
    let mut events = vec![(0, EventV1::Begun { plan: Box::new(plan()) })];
    events.push((1, opened(1, AttemptPurpose::Run, 4242)));
    for number in 0..steps().len() {
        let step = StepRef::Forward(u32::try_from(number).unwrap());
        if number == crash_at {
            events.push((1, EventV1::Started { step }));
            events.push((2, opened(2, AttemptPurpose::Resume, 4343)));
        } else {
            events.push((if number < crash_at { 1 } else { 2 }, EventV1::Started { step }));
        }
        let epoch = if number < crash_at { 1 } else { 2 };
        events.push((epoch, EventV1::Done { step, outcome: outcome(number) }));
    }
    events.push((2, EventV1::Committed));
    for number in 0..clean_up().len() {
        let step = StepRef::CleanUp(u32::try_from(number).unwrap());
        events.push((2, EventV1::Started { step }));
        events.push((2, EventV1::Done { step, outcome: OutcomeV1::Nothing }));
    }
    events.push((2, EventV1::Finished { end: EndV1::Committed }));
    (0..).zip(events).map(|(number, (epoch, event))| record(number, epoch, event)).collect()
}

/// The frames of these records, one by one.
pub fn frames(txn: TxnId, records: &[RecordV1]) -> Vec<Vec<u8>> {
    let mut end = ChainEnd::start(txn);
    records
        .iter()
        .map(|record| {
            let (frame, behind) = end.encode(record).unwrap();
            end = behind;
            frame
        })
        .collect()
}

pub fn owner(counter: u64, direction: DirectionV1) -> OwnerV1 {
    OwnerV1 {
        counter,
        txn: txn(),
        epoch: Epoch(counter + 1),
        controller: controller(),
        agent_pid: 4243,
        agent_started: 1_234_567,
        direction,
    }
}
