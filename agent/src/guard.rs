//! What an agent may change: decided by its role, the owner lock, and the paths that the plan named.
//!
//! Pure. It keeps a controller's mistake from becoming an effect; it is not meant to withstand a malicious one.

use journal_format::TxnId;
use kvm_clone_agent::protocol::{Attach, Failure, FailureKind, HOST_RECORD_ROOT, Role};

use crate::failure::failure;

/// Paths that may be allowed in one agent's life, at most.
const ALLOWED_PATHS_MAX: usize = 10_000;
/// Components that an allowed path has at least: `/etc` as a whole is never ours.
const ALLOWED_COMPONENTS_MIN: usize = 2;

/// Names of the owner file in a host record, as the transaction goes on.
const OWNER_FILES: [&str; 3] = ["owner", "committed", "abandoned"];

/// The rules of one agent.
#[derive(Debug)]
pub struct Guard {
    role: Role,
    root: String,
    txn: Option<TxnId>,
    allowed: Vec<String>,
}

/// Something that a request wants to change.
#[derive(Debug, Clone, Copy)]
pub enum Change<'a> {
    /// The directory of that name comes to be.
    MakeDir(&'a str),
    /// The object of that name, or the name.
    Path(&'a str),
    /// The first name becomes the second.
    Rename(&'a str, &'a str),
}

/// Where a path lies, as far as the rules care.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// The directories that hold all records, and those above them that are ours.
    Foundation,
    /// The record while it is built (`.new-<txn>`) or cleared (`.gone-<txn>`).
    Scaffold,
    /// The record itself.
    Record,
    /// A claim on a name or device.
    Claim,
    /// Named by `Allow`, or below a directory named with a slash at its end.
    Allowed,
    /// Another transaction's record, or anything else.
    Elsewhere,
}

impl Guard {
    /// The rules for this controller.
    pub fn new(attach: &Attach) -> Result<Self, Failure> {
        if attach.txn.is_none() && attach.role != Role::Look {
            return Err(failure(FailureKind::Protocol, "attach: this role belongs to a transaction"));
        }
        let root = attach.overrides.host_record_root.clone().unwrap_or_else(|| HOST_RECORD_ROOT.to_owned());
        check_path(&root)?;
        Ok(Self { role: attach.role, root, txn: attach.txn, allowed: Vec::new() })
    }

    /// Adds to the list.
    pub fn allow(&mut self, paths: Vec<String>) -> Result<(), Failure> {
        if self.allowed.len() + paths.len() > ALLOWED_PATHS_MAX {
            return Err(failure(FailureKind::Busy, format!("allow: more than {ALLOWED_PATHS_MAX} paths")));
        }
        for path in &paths {
            let name = path.strip_suffix('/').unwrap_or(path);
            check_path(name)?;
            if name.split('/').count() <= ALLOWED_COMPONENTS_MIN {
                return Err(failure(FailureKind::Denied, format!("allow {path}: too near to /")));
            }
        }
        self.allowed.extend(paths);
        Ok(())
    }

    /// Image locks and relays are for those who work, and syncs for those who wrote.
    pub fn check_role(&self, operation: &str, roles: &[Role]) -> Result<(), Failure> {
        if roles.contains(&self.role) {
            return Ok(());
        }
        Err(failure(FailureKind::Denied, format!("{operation}: not for an agent in the role {:?}", self.role)))
    }

    /// The names that the owner file of this transaction may have in its host record.
    pub fn owner_files(&self) -> Vec<String> {
        let name = |txn: TxnId| OWNER_FILES.iter().map(move |name| (txn, name));
        self.txn.into_iter().flat_map(name).map(|(txn, name)| format!("{}/{txn}/{name}", self.root)).collect()
    }

    /// Whether the owner lock may be taken on this file.
    pub fn check_owner_file(&self, path: &str) -> Result<(), Failure> {
        check_path(path)?;
        self.check_role("lock owner", &[Role::Destination])?;
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
        let own = OWNER_FILES.contains(&name)
            && self.txn.is_some_and(|txn| {
                ["", ".new-", ".gone-"].iter().any(|prefix| directory == format!("{}/{prefix}{txn}", self.root))
            });
        if own {
            return Ok(());
        }
        Err(failure(FailureKind::Denied, format!("lock owner {path}: not in the host record of this transaction")))
    }

    /// Whether a change is covered.
    pub fn check(&self, change: Change<'_>, owner_held: bool) -> Result<(), Failure> {
        let (paths, making) = match change {
            Change::MakeDir(path) => (vec![path], true),
            Change::Path(path) => (vec![path], false),
            Change::Rename(from, to) => (vec![from, to], false),
        };
        for path in &paths {
            check_path(path)?;
        }
        self.check_role(&format!("change {}", paths[0]), &[Role::Destination])?;
        if self.is_record_move(change) {
            return Ok(());
        }
        for path in paths {
            match self.place(path) {
                Place::Scaffold => {}
                Place::Foundation if making => {}
                Place::Record | Place::Claim | Place::Allowed if owner_held => {}
                Place::Record | Place::Claim | Place::Allowed => {
                    return Err(failure(
                        FailureKind::Fenced,
                        format!("change {path}: this agent does not hold the owner lock"),
                    ));
                }
                Place::Foundation | Place::Elsewhere => {
                    return Err(failure(FailureKind::Denied, format!("change {path}: not named by the plan")));
                }
            }
        }
        Ok(())
    }

    /// Whether libvirt may be told to change something.
    pub fn check_changing_relay(&self, owner_held: bool) -> Result<(), Failure> {
        const OPERATION: &str = "relay changes to libvirt";
        self.check_role(OPERATION, &[Role::Destination])?;
        if owner_held {
            return Ok(());
        }
        Err(failure(FailureKind::Fenced, format!("{OPERATION}: this agent does not hold the owner lock")))
    }

    /// The record comes to be, or goes, by a rename of its directory.
    fn is_record_move(&self, change: Change<'_>) -> bool {
        let (Change::Rename(from, to), Some(txn)) = (change, self.txn) else {
            return false;
        };
        let record = format!("{}/{txn}", self.root);
        let scaffold = |path: &str| [".new-", ".gone-"].iter().any(|p| path == format!("{}/{p}{txn}", self.root));
        (scaffold(from) && to == record) || (from == record && scaffold(to))
    }

    fn place(&self, path: &str) -> Place {
        let above = self.root.rsplit_once('/').map_or("", |(above, _)| above);
        if path == above || path == self.root {
            return Place::Foundation;
        }
        let Some(inner) = path.strip_prefix(&self.root).and_then(|inner| inner.strip_prefix('/')) else {
            let covered = |allowed: &String| match allowed.strip_suffix('/') {
                Some(directory) => below(path, directory),
                None => path == allowed,
            };
            return if self.allowed.iter().any(covered) { Place::Allowed } else { Place::Elsewhere };
        };
        let (first, rest) = inner.split_once('/').map_or((inner, None), |(first, rest)| (first, Some(rest)));
        match (first, rest, self.txn) {
            ("names" | "devices", None, _) => Place::Foundation,
            ("names" | "devices", Some(_), _) => Place::Claim,
            (_, _, Some(txn)) if first == txn.to_string() => Place::Record,
            (_, _, Some(txn)) if first == format!(".new-{txn}") || first == format!(".gone-{txn}") => Place::Scaffold,
            _ => Place::Elsewhere,
        }
    }
}

fn below(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
}

/// Absolute, and every component an ordinary name.
pub fn check_path(path: &str) -> Result<(), Failure> {
    let components = path.strip_prefix('/').map(|rest| rest.split('/'));
    let ordinary = |name: &str| !matches!(name, "" | "." | "..") && !name.contains('\0');
    if path == "/" || components.is_some_and(|mut names| names.all(ordinary)) {
        return Ok(());
    }
    Err(failure(FailureKind::Protocol, format!("not an absolute, plain path: {path:?}")))
}

#[cfg(test)]
mod tests {
    use kvm_clone_agent::protocol::Overrides;

    use super::*;

    const TXN: TxnId = TxnId([7; 16]);

    fn guard(role: Role) -> Guard {
        let attach = Attach { txn: Some(TXN), role, silence_seconds: 30, overrides: Overrides::default() };
        let mut guard = Guard::new(&attach).unwrap();
        guard
            .allow(vec!["/images/.kvm-clone".into(), "/images/.kvm-clone/".into(), "/images/web.qcow2".into()])
            .unwrap();
        guard
    }

    fn verdict(guard: &Guard, change: Change<'_>, owner_held: bool) -> Option<FailureKind> {
        guard.check(change, owner_held).err().map(|failure| failure.kind)
    }

    #[test]
    fn only_a_destination_changes_anything() {
        for role in [Role::Source, Role::Look] {
            let path = "/images/web.qcow2";
            assert_eq!(verdict(&guard(role), Change::Path(path), true), Some(FailureKind::Denied));
        }
    }

    #[test]
    fn without_the_owner_lock_only_the_record_is_built_or_cleared() {
        let guard = guard(Role::Destination);
        let record = format!("{HOST_RECORD_ROOT}/{TXN}");
        let new = format!("{HOST_RECORD_ROOT}/.new-{TXN}");
        let gone = format!("{HOST_RECORD_ROOT}/.gone-{TXN}");
        for free in [
            Change::MakeDir("/var/lib/kvm-clone"),
            Change::MakeDir(HOST_RECORD_ROOT),
            Change::MakeDir("/var/lib/kvm-clone/host/names"),
            Change::MakeDir("/var/lib/kvm-clone/host/devices"),
            Change::MakeDir(&new),
            Change::Path(&format!("{new}/owner")),
            Change::Path(&format!("{gone}/owner")),
            Change::Path(&gone),
            Change::Rename(&new, &record),
            Change::Rename(&record, &gone),
            Change::Rename(&gone, &record),
        ] {
            assert_eq!(verdict(&guard, free, false), None, "{free:?}");
        }
        for fenced in [
            Change::Path(&format!("{record}/owner")),
            Change::Rename(&format!("{record}/owner"), &format!("{record}/committed")),
            Change::Path("/var/lib/kvm-clone/host/names/web"),
            Change::Path("/images/web.qcow2"),
            Change::MakeDir("/images/.kvm-clone"),
            Change::MakeDir("/images/.kvm-clone/x"),
        ] {
            assert_eq!(verdict(&guard, fenced, false), Some(FailureKind::Fenced), "{fenced:?}");
            assert_eq!(verdict(&guard, fenced, true), None, "{fenced:?}");
        }
    }

    #[test]
    fn what_was_not_named_is_never_changed() {
        let guard = guard(Role::Destination);
        let other = TxnId([8; 16]);
        for denied in [
            Change::Path("/images/web.qcow2.old"),
            Change::Path("/images/web.qcow2/below"),
            Change::Path("/images/other.qcow2"),
            Change::Path("/images"),
            Change::Path("/etc/passwd"),
            Change::Path(HOST_RECORD_ROOT),
            Change::Path("/var/lib/kvm-clone/host/names"),
            Change::Path(&format!("{HOST_RECORD_ROOT}/{other}/owner")),
            Change::Path(&format!("{HOST_RECORD_ROOT}/.new-{other}")),
            Change::Rename(&format!("{HOST_RECORD_ROOT}/{other}"), &format!("{HOST_RECORD_ROOT}/.gone-{TXN}")),
            Change::Rename("/images/web.qcow2", "/images/elsewhere"),
        ] {
            assert_eq!(verdict(&guard, denied, true), Some(FailureKind::Denied), "{denied:?}");
        }
    }

    #[test]
    fn a_record_of_another_transaction_cannot_be_allowed() {
        let mut guard = guard(Role::Destination);
        let other = format!("{HOST_RECORD_ROOT}/{}", TxnId([8; 16]));
        guard.allow(vec![other.clone()]).unwrap();
        assert_eq!(verdict(&guard, Change::Path(&other), true), Some(FailureKind::Denied));
    }

    #[test]
    fn paths_that_wander_or_cover_too_much_are_refused() {
        let mut guard = guard(Role::Destination);
        for path in ["images/x", "/images/../etc/passwd", "/images//x", "/images/", "/images/.", "", "/a\0b"] {
            assert_eq!(verdict(&guard, Change::Path(path), true), Some(FailureKind::Protocol), "{path:?}");
        }
        for path in ["/", "//", "/etc", "/etc/", "/etc//"] {
            assert!(guard.allow(vec![path.into()]).is_err(), "{path}");
        }
        assert!(guard.check_owner_file(&format!("{HOST_RECORD_ROOT}/{TXN}/owner")).is_ok());
        for path in [format!("{HOST_RECORD_ROOT}/{TXN}/plan"), format!("{HOST_RECORD_ROOT}/{}/owner", TxnId([8; 16]))] {
            assert!(guard.check_owner_file(&path).is_err(), "{path}");
        }
        assert!(guard.check_owner_file("/images/web.qcow2").is_err());
    }
}
