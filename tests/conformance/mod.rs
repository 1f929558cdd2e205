//! What every `World` promises, primitive by primitive: the suite that the simulated world and real hosts both pass,
//! so that a history of the one says something about the other.
//!
//! A case gets a [`Ground`] of its own. It must not rest on anything that another case did.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod chunks;
mod domains;
mod files;
mod locks;

use std::rc::Rc;

use journal_format::{DomainUuid, Inode, TxnId};
use kvm_clone::world::{Fault, FaultKind, Host, OwnerLock, Side, World};

/// Where host records are.
pub const HOST_RECORDS: &str = "/var/lib/kvm-clone/host";

/// What a case needs of the world under test that `World` does not offer: making and looking from outside.
pub trait Ground {
    /// One life of a controller in the world under test, for the transaction `txn`.
    fn world(&self) -> &dyn World;
    /// Another one, for the same transaction.
    fn other_world(&self) -> &dyn World;
    /// The transaction that the agents are for.
    fn txn(&self) -> TxnId;
    /// A directory on that side for this case alone, empty, absolute, without symlinks, on a filesystem with hard links
    /// and holes. Directories above it can be searched by guests.
    fn scratch(&self, side: Side) -> String;
    /// Makes a file: holes but for the extents, which are multiples of 4 KiB apart from the end of the image.
    fn put(&self, side: Side, path: &str, size: u64, extents: &[(u64, Vec<u8>)]);
    /// Makes a block device with these bytes, a multiple of 512: where it is.
    fn put_device(&self, side: Side, content: &[u8]) -> String;
    /// Makes a symlink.
    fn put_symlink(&self, side: Side, path: &str, target: &str);
    /// A file's bytes.
    fn get(&self, side: Side, path: &str) -> Option<Vec<u8>>;
    /// A definition that the destination's libvirt accepts: one writable raw disk, no network.
    fn definition(&self, name: &str, uuid: DomainUuid, disk: &str) -> String;
    /// Starts a domain of the destination as a person would; the error is libvirt's.
    fn start_by_hand(&self, uuid: DomainUuid) -> Result<(), String>;
    /// Ends a running domain of the destination (`virsh destroy`).
    fn destroy_by_hand(&self, uuid: DomainUuid);
    /// An active pool of the destination with a target directory.
    fn pool(&self) -> String;
}

/// A case: its name, and what must hold.
pub type Case = (&'static str, fn(&dyn Ground));

/// The whole suite.
pub fn suite() -> Vec<Case> {
    [files::CASES, locks::CASES, chunks::CASES, domains::CASES].concat()
}

macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        pub const CASES: &[super::Case] = &[$((stringify!($case), $case as fn(&dyn super::Ground))),*];
    };
}
pub(crate) use cases;

/// The destination with an agent that holds the owner lock of a fresh host record and may change the case's scratch
/// directory. Ends with its host record removed.
pub struct Owner<'a> {
    ground: &'a dyn Ground,
    pub host: Rc<dyn Host>,
    pub scratch: String,
    pub record: String,
}

impl<'a> Owner<'a> {
    pub fn new(ground: &'a dyn Ground) -> Self {
        let host = ground.world().connect(Side::Destination).unwrap();
        let scratch = ground.scratch(Side::Destination);
        host.allow(&[scratch.clone(), format!("{scratch}/")]).unwrap();
        let record = build_record(host.as_ref(), ground.txn());
        Self { ground, host, scratch, record }
    }

    pub fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.scratch)
    }
}

impl Drop for Owner<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            clear_record(self.host.as_ref(), self.ground.txn());
        }
        self.ground.world().disconnect(Side::Destination);
    }
}

/// A host record under its final name, its owner file locked by this agent.
pub fn build_record(host: &dyn Host, txn: TxnId) -> String {
    for directory in ["/var/lib/kvm-clone", HOST_RECORDS, &format!("{HOST_RECORDS}/names")] {
        match host.make_dir(directory, 0o700) {
            Ok(_) => {}
            Err(fault) => assert_eq!(fault.kind, FaultKind::AlreadyExists, "{fault}"),
        }
    }
    let new = format!("{HOST_RECORDS}/.new-{txn}");
    host.make_dir(&new, 0o700).unwrap();
    let inode = host.make_file(&format!("{new}/owner"), 0o600, &[0; 8192]).unwrap();
    assert_eq!(host.lock_owner(&format!("{new}/owner")).unwrap(), OwnerLock::Held { inode });
    let record = format!("{HOST_RECORDS}/{txn}");
    host.rename(&new, &record).unwrap();
    record
}

/// Takes the record away as a transaction does, if it is there: without its owner file in its place it protects nothing.
pub fn clear_record(host: &dyn Host, txn: TxnId) {
    let gone = format!("{HOST_RECORDS}/.gone-{txn}");
    let owner = format!("{gone}/owner");
    if host.rename(&format!("{HOST_RECORDS}/{txn}"), &gone).is_ok() {
        let stat = host.stat(&owner).unwrap().unwrap();
        host.unlink(&owner, stat.inode).unwrap();
        host.remove_dir(&gone).unwrap();
    }
}

/// The kind of an error.
pub fn kind<T: std::fmt::Debug>(result: Result<T, Fault>) -> FaultKind {
    result.expect_err("this must be refused").kind
}

/// One of these kinds.
pub fn assert_kind<T: std::fmt::Debug>(result: Result<T, Fault>, kinds: &[FaultKind]) {
    let fault = result.expect_err("this must be refused");
    assert!(kinds.contains(&fault.kind), "{fault} is {:?}, not one of {kinds:?}", fault.kind);
}

/// An inode number that a file does not have.
pub fn other(inode: Inode) -> Inode {
    Inode(inode.0 + 1_000_000)
}

/// A UUID for this case.
pub fn fresh_uuid(ground: &dyn Ground) -> DomainUuid {
    DomainUuid(*uuid::Builder::from_random_bytes(ground.world().random()).as_uuid().as_bytes())
}

/// A domain name for this case.
pub fn fresh_name(uuid: DomainUuid) -> String {
    format!("conform-{}", &uuid.to_string()[..13])
}

/// Bytes that are not zero, and differ from one seed to the next.
pub fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let at = |index: usize| u8::try_from((index as u64 * 31 + seed * 17) % 251 + 1).unwrap();
    (0..len).map(at).collect()
}
