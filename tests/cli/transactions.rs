//! Transactions on disk, made through the library's own journal.

use std::path::Path;

use journal_format::{
    AttemptPurpose, ChunkValue, CleanUpStepV1, ControllerId, DirectoryV1, EndV1, EndpointV1, Epoch, EventV1,
    FailureClassV1, FailureV1, FindingV1, ImageFormat, ImageRoleV1, ImageV1, Inode, OptionsV1, OutcomeV1, PlaceV1,
    PlanV1, RecordV1, RequestV1, SourceKindV1, SourceStampV1, StepRef, StepV1, TxnId, UnixMillis,
};
use kvm_clone::journal::{FileJournal, Journal, StateDir};

/// When all of them began.
const BEGAN: u64 = 1_700_000_000_000;
/// Bytes of the disk.
pub const DISK_BYTES: u64 = 4_000_000_000;

/// A transaction of one disk, `web01` on `kvm1` to `web01_clone` on `kvm2`. Its journal is held until it is dropped.
pub struct Transaction {
    pub txn: TxnId,
    journal: FileJournal,
    epoch: u64,
}

impl Transaction {
    /// Begins one; `tail` is the end of its id, up to 12 hexadecimal digits.
    pub fn begin(state: &Path, tail: &str) -> Self {
        let txn: TxnId = format!("018bcfe5-6800-7000-8000-{tail:0>12}").parse().unwrap();
        let event = EventV1::Begun { plan: Box::new(plan(txn)) };
        let record = RecordV1 { at: UnixMillis(BEGAN), epoch: Epoch(0), event };
        let journal = FileJournal::create(&StateDir::at(state).unwrap(), record).unwrap();
        let begun = Self { txn, journal, epoch: 1 };
        begun.then(EventV1::AttemptOpened { epoch: Epoch(1), purpose: AttemptPurpose::Run, pid: 4242 })
    }

    pub fn then(mut self, event: EventV1) -> Self {
        let records = self.journal.records().len() as u64;
        let at = UnixMillis(BEGAN + records * 1000);
        self.journal.append(records, RecordV1 { at, epoch: Epoch(self.epoch), event }).unwrap();
        self
    }

    /// Opens another attempt.
    pub fn resumed(mut self) -> Self {
        self.epoch += 1;
        let epoch = Epoch(self.epoch);
        self.then(EventV1::AttemptOpened { epoch, purpose: AttemptPurpose::Resume, pid: 4243 })
    }

    /// Steps of the plan, each started and done.
    pub fn did(mut self, steps: std::ops::Range<u32>) -> Self {
        for index in steps {
            let step = StepRef::Forward(index);
            self = self.then(EventV1::Started { step }).then(EventV1::Done { step, outcome: outcome(index) });
        }
        self
    }

    /// Up to the transfer, which is begun; then the link is lost.
    pub fn interrupted(self) -> Self {
        let failure = failure(FailureClassV1::Suspend, 3, "kvm2: the link is gone");
        self.did(0..3).then(EventV1::Started { step: StepRef::Forward(3) }).then(EventV1::Suspended { failure })
    }

    /// The rest of the steps, the commit, the clean-up, the end.
    pub fn finished(self) -> Self {
        let mut committed = self.did(3..7).then(EventV1::Committed);
        for index in 0..2 {
            let step = StepRef::CleanUp(index);
            let outcome = OutcomeV1::Nothing;
            committed = committed.then(EventV1::Started { step }).then(EventV1::Done { step, outcome });
        }
        committed.then(EventV1::Finished { end: EndV1::Committed })
    }

    pub fn rolling_back(self) -> Self {
        let failure = failure(FailureClassV1::TurnBack, 1, "kvm2: the name web01_clone is taken");
        self.did(0..2).then(EventV1::RollingBack { failure })
    }

    pub fn rolled_back(self) -> Self {
        let undone = |step| EventV1::Undone { step: StepRef::Forward(step) };
        self.rolling_back().then(undone(1)).then(undone(0)).then(EventV1::Finished { end: EndV1::RolledBack })
    }

    pub fn stuck(self) -> Self {
        let finding = FindingV1 {
            step: Some(StepRef::Forward(5)),
            expected: "our image".to_owned(),
            found: "somebody else's".to_owned(),
            commands: vec!["ls -li /srv/vm".to_owned()],
        };
        self.did(0..5).then(EventV1::Stuck { finding })
    }
}

pub fn failure(class: FailureClassV1, exit: u8, message: &str) -> FailureV1 {
    FailureV1 { class, exit, message: message.to_owned(), advice: "look at it".to_owned() }
}

fn outcome(step: u32) -> OutcomeV1 {
    if step != 3 {
        return OutcomeV1::Nothing;
    }
    OutcomeV1::Transferred {
        inode: Inode(7),
        root: ChunkValue([0xab; 32]),
        source_root: ChunkValue([0xab; 32]),
        source_size: DISK_BYTES,
        source_mtime_ns: 1,
        mtime_ns: 2,
        missing_bytes: 600_000_000,
        sent_bytes: 610_000_000,
    }
}

fn plan(txn: TxnId) -> PlanV1 {
    let endpoint =
        |address: &str| EndpointV1 { address: address.to_owned(), machine_id: "m".repeat(32), key_file: None };
    let staging = format!("/srv/vm/.kvm-clone/{txn}");
    PlanV1 {
        txn,
        created_at: UnixMillis(BEGAN),
        program_version: "0.1.0".to_owned(),
        controller: ControllerId { machine_id: "c".repeat(32), state_dir: "/state".to_owned() },
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
        source_definition: "<domain/>".to_owned(),
        definition: "<domain/>".to_owned(),
        title: None,
        autostart: false,
        directories: vec![DirectoryV1 {
            path: "/srv/vm".to_owned(),
            inode: Inode(2),
            staging: staging.clone(),
            nonce: [1; 16],
        }],
        new_directories: Vec::new(),
        images: vec![ImageV1 {
            role: ImageRoleV1::Disk { target: "vda".to_owned() },
            format: ImageFormat::Raw,
            reached_by: "/srv/vm/web01.img".to_owned(),
            source_path: "/srv/vm/web01.img".to_owned(),
            source_stamp: SourceStampV1 { size: DISK_BYTES, mtime_ns: 1, ctime_ns: 1 },
            allocated_bytes: 1_000_000_000,
            place: PlaceV1::Directory { directory: 0 },
            staging_path: format!("{staging}/vda"),
            final_path: "/srv/vm/web01_clone-vda.img".to_owned(),
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
        clean_up: vec![CleanUpStepV1::RemoveStaging { directory: 0 }, CleanUpStepV1::RemoveRecord],
        snapshots: Vec::new(),
        bases: Vec::new(),
    }
}
