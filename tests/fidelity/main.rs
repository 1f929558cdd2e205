//! What a VM is, and that all of it arrives: definitions of many kinds, rewritten, compared, refused; each rewritten one is
//! defined by a real libvirt and read back, and image headers are compared with what qemu-img says.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod images;
mod leaving;
mod libvirt;
mod refusals;
mod rewriting;
mod rows;
mod seeds;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use journal_format::{ChunkValue, ControllerId, DomainUuid, Inode, TxnId};
use kvm_clone::domain::{
    Change, CloneMark, Definition, DiskMark, Identity, ImageMark, InterfaceSource, MarkState, Rewrite, SourceMark,
};

/// A definition of this directory.
struct Fixture {
    name: String,
    text: String,
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files of a directory, by name.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

/// Definitions in which everything is carried.
fn carried() -> Vec<Fixture> {
    let fixtures: Vec<_> = files(&repository().join("tests/fidelity/carried"))
        .into_iter()
        .map(|path| Fixture {
            name: path.file_stem().unwrap().to_string_lossy().into_owned(),
            text: std::fs::read_to_string(&path).unwrap(),
        })
        .collect();
    assert!(fixtures.len() >= 40, "the fixtures are gone: {}", fixtures.len());
    fixtures
}

const CLONE_UUID: DomainUuid = DomainUuid([0xcd; 16]);
const CLONE_GENID: DomainUuid = DomainUuid([0xef; 16]);

fn mark() -> CloneMark {
    CloneMark {
        txn: TxnId([0x11; 16]),
        controller: ControllerId { machine_id: "c0ffee".into(), state_dir: "/var/lib/kvm-clone".into() },
        source_machine_id: "decaf".into(),
        source_host: "root@[fd00::1]:22".into(),
        source_uuid: DomainUuid([0xab; 16]),
        source_definition: None,
        clone_uuid: CLONE_UUID,
        same_identity: false,
        state: MarkState::Unfinished,
        disks: vec![DiskMark {
            target: "vda".into(),
            source: SourceMark { image: ImageMark { size: 1, mtime_ns: 2 }, root: ChunkValue([3; 32]) },
            clone: ImageMark { size: 4, mtime_ns: 5 },
            inode: Some(Inode(6)),
        }],
        bases: Vec::new(),
    }
}

const VARIABLES: &str = "/var/lib/libvirt/qemu/nvram/the-clone_VARS.fd";

/// What a clone changes, all of it.
fn whole_rewrite(definition: &Definition) -> Rewrite {
    let disk_files = definition.images().map(|disk| (disk.index, format!("/srv/clones/new-{}.img", disk.target)));
    let macs = (0..definition.interfaces.len()).map(|index| (index, format!("52:54:00:ff:ff:{index:02x}")));
    let plugged = definition
        .interfaces
        .iter()
        .filter(|interface| matches!(interface.source, InterfaceSource::Network(_) | InterfaceSource::Bridge(_)));
    let plugged = plugged.map(|interface| interface.index);
    Rewrite {
        name: Some("the-clone".into()),
        identity: Some(Identity { uuid: CLONE_UUID, genid: CLONE_GENID }),
        title: Change::Set("Unfinished clone".into()),
        emulator: Some("/usr/bin/qemu-system-x86_64".into()),
        disk_files: disk_files.collect(),
        disk_devices: BTreeMap::new(),
        chain_files: BTreeMap::new(),
        flattened: BTreeSet::new(),
        emptied: BTreeSet::new(),
        // One that is named nowhere would be made, and could not be taken back.
        variables: definition
            .os
            .variables
            .as_ref()
            .and_then(|variables| variables.path.as_ref())
            .map(|_| VARIABLES.into()),
        macs: macs.collect(),
        networks: plugged.map(|index| (index, format!("net-{index}"))).collect(),
        mark: Change::Set(mark()),
    }
}
