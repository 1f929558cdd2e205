//! The host record: the transaction's directory on the destination, its owner file and the claim on the name.
//!
//! `<txn>/` holds `owner` (renamed to `committed` or `abandoned`) and `plan`. It is built as `.new-<txn>` and taken
//! away as `.gone-<txn>`, so that `<txn>` is always whole.

use journal_format::TxnId;

use crate::world::{Fault, FaultKind, Host};

/// Where kvm-clone keeps things on a host.
pub const STATE_ROOT: &str = "/var/lib/kvm-clone";
/// Where host records are.
pub const HOST_ROOT: &str = "/var/lib/kvm-clone/host";
/// Where claims on VM names are.
pub const CLAIMS: &str = "/var/lib/kvm-clone/host/names";
/// Where claims on block devices are, by what names each for good.
pub const DEVICE_CLAIMS: &str = "/var/lib/kvm-clone/host/devices";
/// Bytes of an owner file, and more than any file in a record but the plan.
pub const OWNER_BYTES_MAX: u64 = 8192;

/// Paths of one transaction's host record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRecord {
    /// The record.
    pub directory: String,
    /// The record while it is built.
    pub new: String,
    /// The record while it is taken away.
    pub gone: String,
    /// The claim on the clone's name.
    pub claim: String,
}

impl HostRecord {
    /// For a transaction and the name it clones to.
    pub fn of(txn: TxnId, name: &str) -> Self {
        Self {
            directory: format!("{HOST_ROOT}/{txn}"),
            new: format!("{HOST_ROOT}/.new-{txn}"),
            gone: format!("{HOST_ROOT}/.gone-{txn}"),
            claim: format!("{CLAIMS}/{name}"),
        }
    }

    /// The owner file.
    pub fn owner(&self) -> String {
        format!("{}/owner", self.directory)
    }

    /// The commit mark: the owner file's name from the commit on.
    pub fn committed(&self) -> String {
        format!("{}/committed", self.directory)
    }

    /// The owner file's name once the transaction was given up.
    pub fn abandoned(&self) -> String {
        format!("{}/abandoned", self.directory)
    }
}

/// Makes a directory that others may have made already, its name durable.
pub fn ensure_dir(host: &dyn Host, path: &str, mode: u32) -> Result<(), Fault> {
    match host.make_dir(path, mode) {
        Err(fault) if fault.kind != FaultKind::AlreadyExists => Err(fault),
        // Who made it may have died before its name was durable.
        Ok(_) | Err(_) => host.sync(parent_of(path)),
    }
}

/// Removes a directory of ours with the plain files in it. Already gone is fine.
pub fn remove_tree(host: &dyn Host, directory: &str) -> Result<(), Fault> {
    for name in host.list(directory)?.unwrap_or_default() {
        let path = format!("{directory}/{name}");
        if let Some(stat) = host.stat(&path)? {
            host.unlink(&path, stat.inode)?;
        }
    }
    host.remove_dir(directory)
}

/// Takes the record away: from here on nobody can take its lock by its name.
pub fn remove_record(host: &dyn Host, record: &HostRecord) -> Result<(), Fault> {
    if host.stat(&record.directory)?.is_some() {
        host.rename(&record.directory, &record.gone)?;
        host.sync(HOST_ROOT)?;
    }
    for rest in [&record.new, &record.gone] {
        if host.stat(rest)?.is_some() {
            remove_tree(host, rest)?;
        }
    }
    // Also where nothing is left: who removed it may have died before that was durable.
    match host.sync(HOST_ROOT) {
        Err(fault) if fault.kind == FaultKind::NotFound => Ok(()),
        synced => synced,
    }
}

/// The directory that holds an absolute path.
pub fn parent_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("/", |(parent, _)| if parent.is_empty() { "/" } else { parent })
}
