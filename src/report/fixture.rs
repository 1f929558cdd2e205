//! A small transaction for tests: one disk, one staging directory, one record after the other.
#![allow(clippy::unwrap_used)]

use journal_format::{
    AttemptPurpose, ChunkValue, CleanUpStepV1, ControllerId, DirectoryV1, EndV1, EndpointV1, Epoch, EventV1,
    FailureClassV1, FailureV1, ImageFormat, ImageRoleV1, ImageV1, Inode, OptionsV1, OutcomeV1, PlaceV1, PlanV1,
    RecordV1, RequestV1, SourceKindV1, SourceStampV1, StepRef, StepV1, UnixMillis,
};

/// Bytes of the disk.
pub const DISK_BYTES: u64 = 4_000_000_000;

fn definition(name: &str, uuid: &str) -> String {
    format!("<domain type='kvm'><name>{name}</name><uuid>{uuid}</uuid><memory>1024</memory></domain>")
}

pub fn plan() -> PlanV1 {
    let endpoint = |address: &str| EndpointV1 {
        address: address.to_owned(),
        machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
        key_file: None,
    };
    PlanV1 {
        txn: "0198c0de-1111-7000-8000-0000deadbeef".parse().unwrap(),
        created_at: UnixMillis(1_700_000_000_000),
        program_version: "0.1.0".to_owned(),
        controller: ControllerId { machine_id: String::new(), state_dir: "/state".to_owned() },
        request: RequestV1 {
            source: endpoint("kvm1"),
            vm_uuid: "6a1f3f0e-0d5d-4b55-9c1d-0123456789ab".parse().unwrap(),
            vm_name: "web01".to_owned(),
            destination: endpoint("kvm2"),
            new_name: "web01_clone".to_owned(),
            options: OptionsV1 {
                start: false,
                verify: true,
                preserve_mac: false,
                preserve_uuid: false,
                bandwidth_limit_bytes_per_second: None,
                preallocate: false,
                chunk_size_bytes: 1 << 20,
                dropped: Vec::new(),
            },
        },
        clone_uuid: "7b2f3f0e-0d5d-4b55-9c1d-0123456789ab".parse().unwrap(),
        source_definition: definition("web01", "6a1f3f0e-0d5d-4b55-9c1d-0123456789ab"),
        definition: definition("web01_clone", "7b2f3f0e-0d5d-4b55-9c1d-0123456789ab"),
        title: None,
        autostart: false,
        directories: vec![DirectoryV1 {
            path: "/srv/vm".to_owned(),
            inode: Inode(2),
            staging: "/srv/vm/.kvm-clone/0198c0de-1111-7000-8000-0000deadbeef".to_owned(),
            nonce: [1; 16],
        }],
        new_directories: Vec::new(),
        images: vec![ImageV1 {
            role: ImageRoleV1::Disk { target: "vda".to_owned() },
            format: ImageFormat::Qcow2,
            reached_by: "/srv/vm/web01.qcow2".to_owned(),
            source_path: "/srv/vm/web01.qcow2".to_owned(),
            source_stamp: SourceStampV1 { size: DISK_BYTES, mtime_ns: 1, ctime_ns: 1 },
            allocated_bytes: 1_000_000_000,
            place: PlaceV1::Directory { directory: 0 },
            staging_path: "/srv/vm/.kvm-clone/0198c0de-1111-7000-8000-0000deadbeef/vda".to_owned(),
            final_path: "/srv/vm/web01_clone-vda.qcow2".to_owned(),
            mode: 0o600,
            owner: (0, 0),
            backing: None,
            source_kind: SourceKindV1::File,
            flattened: Vec::new(),
        }],
        replaced: None,
        pools: Vec::new(),
        steps: vec![
            StepV1::ReserveRecord,
            StepV1::CreateStaging { directory: 0 },
            StepV1::CreateImage { image: 0 },
            StepV1::TransferImage { image: 0 },
            StepV1::VerifyImage { image: 0 },
            StepV1::PublishImage { image: 0 },
            StepV1::DefineDomain,
        ],
        clean_up: vec![
            CleanUpStepV1::FinishDomain,
            CleanUpStepV1::RemoveStaging { directory: 0 },
            CleanUpStepV1::RemoveRecord,
        ],
        snapshots: Vec::new(),
        bases: Vec::new(),
    }
}

/// A journal, record by record, a second apart.
pub struct Journal {
    pub records: Vec<RecordV1>,
}

impl Journal {
    /// `Begun`, and the first attempt opened.
    pub fn begun() -> Self {
        let mut journal = Self { records: Vec::new() };
        journal.push(0, EventV1::Begun { plan: Box::new(plan()) });
        journal.attempt(1, AttemptPurpose::Run)
    }

    pub fn attempt(self, epoch: u64, purpose: AttemptPurpose) -> Self {
        self.then(epoch, EventV1::AttemptOpened { epoch: Epoch(epoch), purpose, pid: 42 })
    }

    pub fn then(mut self, epoch: u64, event: EventV1) -> Self {
        self.push(epoch, event);
        self
    }

    /// Steps of the plan, each started and done.
    pub fn did(mut self, epoch: u64, steps: impl IntoIterator<Item = u32>) -> Self {
        for index in steps {
            let step = StepRef::Forward(index);
            self.push(epoch, EventV1::Started { step });
            self.push(epoch, EventV1::Done { step, outcome: outcome(index) });
        }
        self
    }

    /// The commit and the whole clean-up.
    pub fn committed(mut self, epoch: u64) -> Self {
        self.push(epoch, EventV1::Committed);
        for index in 0..3 {
            let step = StepRef::CleanUp(index);
            self.push(epoch, EventV1::Started { step });
            self.push(epoch, EventV1::Done { step, outcome: OutcomeV1::Nothing });
        }
        self.then(epoch, EventV1::Finished { end: EndV1::Committed })
    }

    fn push(&mut self, epoch: u64, event: EventV1) {
        let at = UnixMillis(1_700_000_000_000 + self.records.len() as u64 * 1000);
        self.records.push(RecordV1 { at, epoch: Epoch(epoch), event });
    }
}

fn outcome(step: u32) -> OutcomeV1 {
    match step {
        3 => OutcomeV1::Transferred {
            inode: Inode(7),
            root: ChunkValue([0xab; 32]),
            source_root: ChunkValue([0xab; 32]),
            source_size: DISK_BYTES,
            source_mtime_ns: 1,
            mtime_ns: 2,
            missing_bytes: 600_000_000,
            sent_bytes: 610_000_000,
        },
        _ => OutcomeV1::Nothing,
    }
}

pub fn failure(message: &str) -> FailureV1 {
    FailureV1 {
        class: FailureClassV1::Suspend,
        exit: 3,
        message: message.to_owned(),
        advice: "look at the link".to_owned(),
    }
}
