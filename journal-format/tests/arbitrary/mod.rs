//! Strategies for every value of the format.

use journal_format::*;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::{option, sample};

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[ -~]{0,40}", any::<String>()]
}

fn step_ref() -> impl Strategy<Value = StepRef> {
    prop_oneof![any::<u32>().prop_map(StepRef::Forward), any::<u32>().prop_map(StepRef::CleanUp)]
}

fn stamp() -> impl Strategy<Value = SourceStampV1> {
    (any::<u64>(), any::<i128>(), any::<i128>()).prop_map(|(size, mtime_ns, ctime_ns)| SourceStampV1 {
        size,
        mtime_ns,
        ctime_ns,
    })
}

fn controller() -> impl Strategy<Value = ControllerId> {
    (text(), text()).prop_map(|(machine_id, state_dir)| ControllerId { machine_id, state_dir })
}

fn endpoint() -> impl Strategy<Value = EndpointV1> {
    (text(), text(), option::of(text())).prop_map(|(address, machine_id, key_file)| EndpointV1 {
        address,
        machine_id,
        key_file,
    })
}

fn options() -> impl Strategy<Value = OptionsV1> {
    let kinds = sample::subsequence(&DropKindV1::ALL[..], 0..=DropKindV1::ALL.len());
    (any::<[bool; 5]>(), option::of(any::<u64>()), any::<u32>(), kinds).prop_map(
        |(flags, limit, chunk_size_bytes, dropped)| OptionsV1 {
            start: flags[0],
            verify: flags[1],
            preserve_mac: flags[2],
            preserve_uuid: flags[4],
            bandwidth_limit_bytes_per_second: limit,
            preallocate: flags[3],
            chunk_size_bytes,
            dropped,
        },
    )
}

fn request() -> impl Strategy<Value = RequestV1> {
    (endpoint(), any::<[u8; 16]>(), text(), endpoint(), text(), options()).prop_map(
        |(source, vm_uuid, vm_name, destination, new_name, options)| RequestV1 {
            source,
            vm_uuid: DomainUuid(vm_uuid),
            vm_name,
            destination,
            new_name,
            options,
        },
    )
}

fn format() -> impl Strategy<Value = ImageFormat> {
    prop_oneof![Just(ImageFormat::Raw), Just(ImageFormat::Qcow2)]
}

fn layer() -> impl Strategy<Value = LayerV1> {
    (text(), text(), text(), format()).prop_map(|(reference, reached_by, source_path, format)| LayerV1 {
        reference,
        reached_by,
        source_path,
        format,
    })
}

fn disk() -> impl Strategy<Value = ImageV1> {
    let format = format();
    let backing = (text(), text()).prop_map(|(source, clone)| BackingV1 { source, clone });
    let paths = (text(), text(), text(), text());
    let place = prop_oneof![
        any::<u32>().prop_map(|directory| PlaceV1::Directory { directory }),
        (text(), any::<u64>(), text())
            .prop_map(|(identity, bytes, named)| PlaceV1::Device { device: DeviceV1 { identity, bytes, named } }),
    ];
    (
        (role(), paths, option::of(backing), vec(layer(), 0..3)),
        format,
        stamp(),
        any::<u64>(),
        place,
        any::<u32>(),
        (any::<(u32, u32)>(), prop_oneof![Just(SourceKindV1::File), Just(SourceKindV1::Device)]),
    )
        .prop_map(
            |(
                (role, (reached_by, source_path, staging_path, final_path), backing, flattened),
                format,
                source_stamp,
                allocated_bytes,
                place,
                mode,
                (owner, source_kind),
            )| {
                ImageV1 {
                    role,
                    format,
                    reached_by,
                    source_path,
                    source_stamp,
                    allocated_bytes,
                    place,
                    staging_path,
                    final_path,
                    mode,
                    owner,
                    backing,
                    source_kind,
                    flattened,
                }
            },
        )
}

fn directory() -> impl Strategy<Value = DirectoryV1> {
    (text(), any::<u64>(), text(), any::<[u8; 16]>()).prop_map(|(path, inode, staging, nonce)| DirectoryV1 {
        path,
        inode: Inode(inode),
        staging,
        nonce,
    })
}

fn step() -> impl Strategy<Value = StepV1> {
    prop_oneof![
        Just(StepV1::ReserveRecord),
        Just(StepV1::ClaimName),
        any::<u32>().prop_map(|directory| StepV1::CreateStaging { directory }),
        Just(StepV1::DetectSharedStorage),
        any::<u32>().prop_map(|image| StepV1::CreateImage { image }),
        any::<u32>().prop_map(|image| StepV1::TransferImage { image }),
        any::<u32>().prop_map(|image| StepV1::VerifyImage { image }),
        any::<u32>().prop_map(|image| StepV1::PublishImage { image }),
        any::<u32>().prop_map(|directory| StepV1::MakeDirectory { directory }),
        Just(StepV1::DefineDomain),
        Just(StepV1::StopOldVm),
        any::<u32>().prop_map(|snapshot| StepV1::DefineSnapshot { snapshot }),
        any::<u32>().prop_map(|image| StepV1::ClaimDevice { image }),
        any::<u32>().prop_map(|base| StepV1::HoldBase { base }),
    ]
}

fn clean_up_step() -> impl Strategy<Value = CleanUpStepV1> {
    prop_oneof![
        Just(CleanUpStepV1::FinishDomain),
        Just(CleanUpStepV1::ReleaseClaim),
        Just(CleanUpStepV1::SetAutostart),
        Just(CleanUpStepV1::StartDomain),
        any::<u32>().prop_map(|directory| CleanUpStepV1::RemoveStaging { directory }),
        any::<u32>().prop_map(|pool| CleanUpStepV1::RefreshPool { pool }),
        Just(CleanUpStepV1::RemoveRecord),
        Just(CleanUpStepV1::RetireOldVm),
        Just(CleanUpStepV1::RenameClone),
        any::<u32>().prop_map(|file| CleanUpStepV1::DeleteOldFile { file }),
    ]
}

fn file_stamp() -> impl Strategy<Value = FileStampV1> {
    (any::<u64>(), any::<u64>(), any::<i128>()).prop_map(|(inode, size, mtime_ns)| FileStampV1 {
        inode: Inode(inode),
        size,
        mtime_ns,
    })
}

fn role() -> impl Strategy<Value = ImageRoleV1> {
    prop_oneof![
        text().prop_map(|target| ImageRoleV1::Disk { target }),
        (text(), any::<u32>()).prop_map(|(target, depth)| ImageRoleV1::Layer { target, depth }),
        Just(ImageRoleV1::Nvram),
        Just(ImageRoleV1::Tpm),
        text().prop_map(|target| ImageRoleV1::Medium { target }),
    ]
}

fn old_file() -> impl Strategy<Value = OldFileV1> {
    let fate = prop_oneof![
        any::<u32>().prop_map(|directory| OldFileFateV1::Deleted { directory }),
        text().prop_map(|why| OldFileFateV1::Left { why }),
    ];
    (role(), text(), file_stamp(), fate).prop_map(|(role, path, stamp, fate)| OldFileV1 { role, path, stamp, fate })
}

fn replaced() -> impl Strategy<Value = ReplacedV1> {
    let stop = prop_oneof![
        Just(StopModeV1::Shutdown),
        Just(StopModeV1::Save),
        Just(StopModeV1::Destroy),
        Just(StopModeV1::Never),
    ];
    let texts = (text(), text(), text(), text());
    (any::<[u8; 16]>(), texts, any::<[bool; 2]>(), stop, vec(old_file(), 0..4)).prop_map(
        |(uuid, (definition, clone_name, kept_name, saved_path), flags, stop, files)| ReplacedV1 {
            uuid: DomainUuid(uuid),
            definition,
            running: flags[0],
            stop,
            keep: flags[1],
            clone_name,
            kept_name,
            saved_path,
            files,
        },
    )
}

pub fn old_vm_record() -> impl Strategy<Value = OldVmRecordV1> {
    prop_oneof![
        any::<bool>().prop_map(|was_running| OldVmRecordV1::Stopping { was_running }),
        vec(option::of(file_stamp()), 0..4).prop_map(|stamps| OldVmRecordV1::Stopped { stamps }),
        (text(), any::<(bool, bool)>(), vec(text(), 0..3)).prop_map(|(definition, (autostart, kept), snapshots)| {
            OldVmRecordV1::Retiring { definition, autostart, kept, snapshots }
        }),
        text().prop_map(|definition| OldVmRecordV1::Renaming { definition }),
    ]
}

fn snapshot() -> impl Strategy<Value = SnapshotV1> {
    (text(), text(), text(), any::<bool>()).prop_map(|(name, source_definition, definition, current)| SnapshotV1 {
        name,
        source_definition,
        definition,
        current,
    })
}

fn base() -> impl Strategy<Value = BaseV1> {
    let paths = (text(), text(), text());
    (role(), paths, stamp(), any::<u64>(), file_stamp(), any::<[u8; 32]>()).prop_map(
        |(role, (reached_by, source_path, path), source_stamp, directory, stamp, root)| BaseV1 {
            role,
            reached_by,
            source_path,
            source_stamp,
            path,
            directory: Inode(directory),
            stamp,
            root: ChunkValue(root),
        },
    )
}

fn plan() -> impl Strategy<Value = PlanV1> {
    let names = (any::<[u8; 16]>(), any::<u64>(), text(), controller(), request(), any::<[u8; 16]>());
    let definition = (text(), text(), option::of(text()), any::<bool>());
    let new_directory = (text(), any::<u32>(), any::<(u32, u32)>(), any::<bool>());
    let new_directory =
        new_directory.prop_map(|(path, mode, owner, makes_parent)| NewDirectoryV1 { path, mode, owner, makes_parent });
    let directories = (vec(directory(), 0..3), vec(new_directory, 0..3), vec(snapshot(), 0..3), vec(base(), 0..2));
    let lists = (directories, vec(disk(), 0..4), vec(text(), 0..3), vec(step(), 0..12), vec(clean_up_step(), 0..9));
    (names, definition, lists, option::of(replaced())).prop_map(|(names, definition, lists, replaced)| PlanV1 {
        txn: TxnId(names.0),
        created_at: UnixMillis(names.1),
        program_version: names.2,
        controller: names.3,
        request: names.4,
        clone_uuid: DomainUuid(names.5),
        source_definition: definition.0,
        definition: definition.1,
        title: definition.2,
        autostart: definition.3,
        directories: lists.0.0,
        new_directories: lists.0.1,
        images: lists.1,
        replaced,
        pools: lists.2,
        steps: lists.3,
        clean_up: lists.4,
        snapshots: lists.0.2,
        bases: lists.0.3,
    })
}

fn failure() -> impl Strategy<Value = FailureV1> {
    let class = prop_oneof![Just(FailureClassV1::Suspend), Just(FailureClassV1::TurnBack), Just(FailureClassV1::Stop)];
    (class, any::<u8>(), text(), text()).prop_map(|(class, exit, message, advice)| FailureV1 {
        class,
        exit,
        message,
        advice,
    })
}

fn finding() -> impl Strategy<Value = FindingV1> {
    (option::of(step_ref()), text(), text(), vec(text(), 0..4))
        .prop_map(|(step, expected, found, commands)| FindingV1 { step, expected, found, commands })
}

fn counts() -> impl Strategy<Value = CountsV1> {
    any::<[u64; 5]>().prop_map(|[requests, image_bytes_read, image_bytes_written, file_bytes_read, libvirt_calls]| {
        CountsV1 { requests, image_bytes_read, image_bytes_written, file_bytes_read, libvirt_calls }
    })
}

fn outcome() -> impl Strategy<Value = OutcomeV1> {
    let bytes = (any::<u64>(), any::<[u8; 32]>(), any::<u64>(), any::<(i128, i128)>(), any::<(u64, u64)>());
    prop_oneof![
        Just(OutcomeV1::Nothing),
        any::<u64>().prop_map(|inode| OutcomeV1::Made { inode: Inode(inode) }),
        vec(any::<u32>(), 0..5).prop_map(|directories| OutcomeV1::SharedStorage { directories }),
        bytes.prop_map(|(inode, root, source_size, times, counts)| OutcomeV1::Transferred {
            inode: Inode(inode),
            root: ChunkValue(root),
            source_root: ChunkValue(root.map(|byte| !byte)),
            source_size,
            source_mtime_ns: times.0,
            mtime_ns: times.1,
            missing_bytes: counts.0,
            sent_bytes: counts.1,
        }),
        (any::<u64>(), any::<u64>(), any::<i128>(), any::<[u8; 32]>()).prop_map(|(inode, size, mtime_ns, root)| {
            OutcomeV1::Verified { inode: Inode(inode), size, mtime_ns, root: ChunkValue(root) }
        }),
        Just(OutcomeV1::AlreadySo),
        any::<bool>().prop_map(|was_running| OutcomeV1::Stopped { was_running }),
        text().prop_map(|why| OutcomeV1::Left { why }),
        (option::of([counts(), counts()]), option::of(counts()), option::of(counts()))
            .prop_map(|(survey, source, destination)| OutcomeV1::Counted { survey, source, destination }),
    ]
}

fn event() -> impl Strategy<Value = EventV1> {
    let purpose = prop_oneof![Just(AttemptPurpose::Run), Just(AttemptPurpose::Resume), Just(AttemptPurpose::Rollback)];
    let cause = prop_oneof![
        Just(ReopenCauseV1::EffectGone),
        Just(ReopenCauseV1::SourceChanged),
        Just(ReopenCauseV1::ReadBackDiffers)
    ];
    prop_oneof![
        plan().prop_map(|plan| EventV1::Begun { plan: Box::new(plan) }),
        (any::<u64>(), purpose, any::<u32>()).prop_map(|(epoch, purpose, pid)| EventV1::AttemptOpened {
            epoch: Epoch(epoch),
            purpose,
            pid,
        }),
        step_ref().prop_map(|step| EventV1::Started { step }),
        (step_ref(), outcome()).prop_map(|(step, outcome)| EventV1::Done { step, outcome }),
        (step_ref(), failure()).prop_map(|(step, failure)| EventV1::Failed { step, failure }),
        (step_ref(), cause, text()).prop_map(|(step, cause, why)| EventV1::Reopened { step, cause, why }),
        failure().prop_map(|failure| EventV1::RollingBack { failure }),
        step_ref().prop_map(|step| EventV1::Undone { step }),
        Just(EventV1::Committed),
        finding().prop_map(|finding| EventV1::Stuck { finding }),
        text().prop_map(|reason| EventV1::Abandoned { reason }),
        failure().prop_map(|failure| EventV1::Suspended { failure }),
        prop_oneof![Just(EndV1::Committed), Just(EndV1::RolledBack)].prop_map(|end| EventV1::Finished { end }),
        (any::<u32>(), stamp()).prop_map(|(image, stamp)| EventV1::SourceChanged { image, stamp }),
        (step_ref(), failure()).prop_map(|(step, failure)| EventV1::LeftBehind { step, failure }),
    ]
}

pub fn record() -> impl Strategy<Value = RecordV1> {
    (any::<u64>(), any::<u64>(), event()).prop_map(|(at, epoch, event)| RecordV1 {
        at: UnixMillis(at),
        epoch: Epoch(epoch),
        event,
    })
}

pub fn owner() -> impl Strategy<Value = OwnerV1> {
    let direction = prop_oneof![Just(DirectionV1::Forward), Just(DirectionV1::RollingBack)];
    (any::<[u64; 3]>(), any::<[u8; 16]>(), controller(), any::<u32>(), direction).prop_map(
        |(numbers, txn, controller, agent_pid, direction)| OwnerV1 {
            counter: numbers[0],
            txn: TxnId(txn),
            epoch: Epoch(numbers[1]),
            controller,
            agent_pid,
            agent_started: numbers[2],
            direction,
        },
    )
}
