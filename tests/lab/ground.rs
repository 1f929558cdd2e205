//! The conformance suite on real hosts: the same cases that the simulated world passes, in one lab, one after the other.

use std::cell::RefCell;
use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, FileExt, PermissionsExt, symlink};
use std::path::PathBuf;

use journal_format::{DomainUuid, TxnId};
use kvm_clone::host::{Access, ConnectOptions, Connector, RealWorld};
use kvm_clone::world::{Side, World};

use crate::conformance::{self, Ground};
use crate::lab::{Host, Lab, Loop, agent};

/// One case's ground: host a is the source, host b the destination.
struct InLab<'a> {
    lab: &'a Lab,
    world: RealWorld,
    other: RealWorld,
    txn: TxnId,
    scratch: String,
    loops: RefCell<Vec<Loop>>,
}

impl<'a> InLab<'a> {
    fn new(lab: &'a Lab, number: usize) -> Self {
        let options = ConnectOptions {
            ssh_config_file: Some(lab.ssh_config()),
            agent_binary: Some(agent().to_owned()),
            ..ConnectOptions::default()
        };
        let connector = Connector::new(options).unwrap();
        let txn = TxnId(*uuid::Uuid::now_v7().as_bytes());
        let access = |name: &str| Access::new(name.parse().unwrap(), None);
        let world = || RealWorld::new(connector.clone(), access("a"), access("b"), Some(txn));
        let scratch = format!("/var/lib/libvirt/images/case-{number}");
        for host in [lab.a(), lab.b()] {
            fs::DirBuilder::new().mode(0o711).create(host.path(&scratch)).unwrap();
        }
        Self { lab, world: world(), other: world(), txn, scratch, loops: RefCell::default() }
    }

    fn host(&self, side: Side) -> &Host {
        match side {
            Side::Source => self.lab.a(),
            Side::Destination => self.lab.b(),
        }
    }

    fn at(&self, side: Side, path: &str) -> PathBuf {
        self.host(side).path(path)
    }
}

impl Ground for InLab<'_> {
    fn world(&self) -> &dyn World {
        &self.world
    }

    fn other_world(&self) -> &dyn World {
        &self.other
    }

    fn txn(&self) -> TxnId {
        self.txn
    }

    fn scratch(&self, _: Side) -> String {
        self.scratch.clone()
    }

    fn put(&self, side: Side, path: &str, size: u64, extents: &[(u64, Vec<u8>)]) {
        let file = File::create_new(self.at(side, path)).unwrap();
        file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
        file.set_len(size).unwrap();
        for (offset, bytes) in extents {
            file.write_all_at(bytes, *offset).unwrap();
        }
        // Extents that are not on the disk yet may not be seen as data.
        file.sync_all().unwrap();
    }

    fn put_device(&self, _: Side, content: &[u8]) -> String {
        // Both hosts see all of this machine's devices.
        let mut loops = self.loops.borrow_mut();
        let file = self.lab.directory().join(format!("device-{}-{}", self.txn, loops.len()));
        fs::write(&file, content).unwrap();
        let device = Loop::on(&file);
        let path = device.path().to_owned();
        loops.push(device);
        path
    }

    fn put_symlink(&self, side: Side, path: &str, target: &str) {
        symlink(target, self.at(side, path)).unwrap();
    }

    fn get(&self, side: Side, path: &str) -> Option<Vec<u8>> {
        fs::read(self.at(side, path)).ok()
    }

    fn definition(&self, name: &str, uuid: DomainUuid, disk: &str) -> String {
        format!(
            "<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>32</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='pc'>hvm</type></os><devices><disk type='file' device='disk'>\
             <driver name='qemu' type='raw'/><source file='{disk}'/><target dev='vda' bus='virtio'/></disk>\
             </devices></domain>"
        )
    }

    fn start_by_hand(&self, uuid: DomainUuid) -> Result<(), String> {
        let output = self.lab.b().try_virsh(["start", &uuid.to_string()]);
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }

    fn destroy_by_hand(&self, uuid: DomainUuid) {
        self.lab.b().virsh(["destroy", &uuid.to_string()]);
    }

    fn pool(&self) -> String {
        "default".to_owned()
    }
}

#[test]
fn real_hosts_conform() {
    let lab = Lab::up();
    let mut failed = Vec::new();
    for (number, (name, case)) in conformance::suite().into_iter().enumerate() {
        let ground = InLab::new(&lab, number);
        println!("{name}");
        // All of them are run: what one gets wrong says nothing of the next.
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case(&ground))).is_err() {
            failed.push(name);
        }
    }
    assert!(failed.is_empty(), "{} cases failed: {}", failed.len(), failed.join(", "));
}
