//! The state directory: where transactions are kept, and how one of them is named on a command line.
//! Reading makes nothing; only a new transaction makes the directories, 0700 each.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use journal_format::TxnId;
use nix::unistd::geteuid;

use super::disk::{self, DIRECTORY_MODE, failed};
use super::{JournalError, TxnLock};

/// Environment variable that names the state directory.
pub const STATE_DIR_VARIABLE: &str = "KVM_CLONE_STATE_DIR";
/// The state directory of root.
const ROOT_STATE_DIR: &str = "/var/lib/kvm-clone";
const TRANSACTIONS_NAME: &str = "txn";
/// A transaction is built under this prefix, so that its name only appears once `Begun` is durable.
const UNFINISHED_PREFIX: &str = ".new-";
/// Age from which a directory of that prefix is what a crash left.
const UNFINISHED_AGE_SECONDS_MIN: u64 = 600;
/// Digits of a transaction's name that a command needs at least.
pub const TXN_DIGITS_MIN: usize = 4;

/// A state directory, by its absolute path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir {
    path: PathBuf,
}

/// Why a state directory, or a transaction in it, cannot be told from what was given.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// Nothing says where it is.
    #[error(
        "no state directory: neither --state-dir, KVM_CLONE_STATE_DIR, XDG_STATE_HOME nor HOME is set; give --state-dir"
    )]
    Unset,
    /// Something else has its name.
    #[error("the state directory {path} is not a directory; give one with --state-dir")]
    NotADirectory {
        /// The path.
        path: String,
    },
    /// It cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Not digits of a transaction.
    #[error(
        "{given:?} is not a transaction: give its id, or the first or last {TXN_DIGITS_MIN} or more hexadecimal digits of it"
    )]
    NotATxn {
        /// What was given.
        given: String,
    },
    /// Too few digits.
    #[error("{given:?} is too short: give at least {TXN_DIGITS_MIN} digits of the transaction's id")]
    TooShort {
        /// What was given.
        given: String,
    },
    /// No transaction has these digits.
    #[error("no transaction {given} in {place}; `kvm-clone list` shows those that are there")]
    Unknown {
        /// What was given.
        given: String,
        /// The state directory, in words.
        place: String,
    },
    /// Several have.
    #[error("{given} could be any of {}; give more digits", candidates.iter().map(TxnId::to_string).collect::<Vec<_>>().join(", "))]
    Ambiguous {
        /// What was given.
        given: String,
        /// Those that it could be.
        candidates: Vec<TxnId>,
    },
}

impl StateDir {
    /// The state directory at a path, made absolute; it need not exist.
    pub fn at(path: &Path) -> Result<Self, StateDirError> {
        let absolute = std::path::absolute(path).map_err(failed(path, "make absolute"))?;
        if absolute.exists() && !absolute.is_dir() {
            return Err(StateDirError::NotADirectory { path: absolute.display().to_string() });
        }
        // Where it exists the real path counts: it names the controller.
        Ok(Self { path: absolute.canonicalize().unwrap_or(absolute) })
    }

    /// The state directory that the option, else the environment, else the user's place names.
    pub fn locate(option: Option<&Path>) -> Result<Self, StateDirError> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Self::locate_in(option, geteuid().is_root(), variable)
    }

    fn locate_in(
        option: Option<&Path>,
        is_root: bool,
        variable: impl Fn(&str) -> Option<PathBuf>,
    ) -> Result<Self, StateDirError> {
        let path = option
            .map(Path::to_owned)
            .or_else(|| variable(STATE_DIR_VARIABLE))
            .or_else(|| is_root.then(|| ROOT_STATE_DIR.into()))
            // The XDG specification has relative paths ignored.
            .or_else(|| variable("XDG_STATE_HOME").filter(|path| path.is_absolute()).map(|home| home.join("kvm-clone")))
            .or_else(|| variable("HOME").map(|home| home.join(".local/state/kvm-clone")))
            .ok_or(StateDirError::Unset)?;
        Self::at(&path)
    }

    /// Its absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its path for people, and that it does not exist where it does not: then a wrong one may have been named.
    pub fn in_words(&self) -> String {
        let path = self.path.display();
        if self.path.exists() { path.to_string() } else { format!("{path}, which does not exist") }
    }

    /// A transaction's directory.
    pub fn txn_path(&self, txn: TxnId) -> PathBuf {
        self.transactions_path().join(txn.to_string())
    }

    /// All transactions, oldest first. A state directory that does not exist has none.
    pub fn transactions(&self) -> Result<Vec<TxnId>, JournalError> {
        let path = self.transactions_path();
        let names = match disk::list(&path) {
            Err(JournalError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Vec::new(),
            names => names?,
        };
        // Only the canonical spelling, which is what we made.
        let mut found: Vec<TxnId> =
            names.iter().filter_map(|name| name.parse().ok().filter(|txn: &TxnId| txn.to_string() == *name)).collect();
        found.sort();
        Ok(found)
    }

    /// The transaction whose id begins or ends with these digits (hyphens and case do not matter).
    pub fn find(&self, given: &str) -> Result<TxnId, StateDirError> {
        let digits: String = given.chars().filter(|c| *c != '-').map(|c| c.to_ascii_lowercase()).collect();
        if digits.is_empty() || digits.len() > 32 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(StateDirError::NotATxn { given: given.to_owned() });
        }
        if digits.len() < TXN_DIGITS_MIN {
            return Err(StateDirError::TooShort { given: given.to_owned() });
        }
        let mut candidates = self.transactions()?;
        candidates.retain(|txn| {
            let id = txn.to_string().replace('-', "");
            id.starts_with(&digits) || id.ends_with(&digits)
        });
        match candidates[..] {
            [] => Err(StateDirError::Unknown { given: given.to_owned(), place: self.in_words() }),
            [txn] => Ok(txn),
            _ => Err(StateDirError::Ambiguous { given: given.to_owned(), candidates }),
        }
    }

    pub(super) fn transactions_path(&self) -> PathBuf {
        self.path.join(TRANSACTIONS_NAME)
    }

    pub(super) fn unfinished_path(&self, txn: TxnId) -> PathBuf {
        self.transactions_path().join(format!("{UNFINISHED_PREFIX}{txn}"))
    }

    /// Makes the directories durably. The state directory itself may be one that the user has for more than this, so
    /// only `txn` in it is made private if it is not.
    pub(super) fn make(&self) -> Result<(), JournalError> {
        let path = self.transactions_path();
        disk::make_dirs_durably(&path)?;
        let metadata = fs::metadata(&path).map_err(failed(&path, "stat"))?;
        if metadata.mode() & 0o777 != DIRECTORY_MODE {
            fs::set_permissions(&path, fs::Permissions::from_mode(DIRECTORY_MODE)).map_err(failed(&path, "chmod"))?;
        }
        Ok(())
    }

    /// Removes what crashes left of transactions that never began.
    pub(super) fn remove_unfinished(&self) -> Result<(), JournalError> {
        let transactions = self.transactions_path();
        for name in disk::list(&transactions)?.iter().filter(|name| name.starts_with(UNFINISHED_PREFIX)) {
            let path = transactions.join(name);
            let age =
                fs::metadata(&path).and_then(|metadata| metadata.modified()).ok().and_then(|made| made.elapsed().ok());
            let old = age.is_some_and(|age| age >= Duration::from_secs(UNFINISHED_AGE_SECONDS_MIN));
            if old && TxnLock::holder(&path)?.is_none() {
                disk::remove_dir_all(&path)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn located(option: Option<&str>, is_root: bool, variables: &[(&str, &str)]) -> Option<String> {
        let variable = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        let found = StateDir::locate_in(option.map(Path::new), is_root, variable).ok()?;
        Some(found.path().display().to_string())
    }

    #[test]
    fn the_option_outranks_the_variable_and_that_the_default() {
        let all = [(STATE_DIR_VARIABLE, "/none/variable"), ("XDG_STATE_HOME", "/none/xdg"), ("HOME", "/none/home")];
        let found = |option, is_root, skip: usize| located(option, is_root, &all[skip..]).unwrap();
        assert_eq!(found(Some("/none/option"), true, 0), "/none/option");
        assert_eq!(found(None, true, 0), "/none/variable");
        assert_eq!(found(None, true, 1), ROOT_STATE_DIR);
        assert_eq!(found(None, false, 1), "/none/xdg/kvm-clone");
        assert_eq!(found(None, false, 2), "/none/home/.local/state/kvm-clone");
        assert_eq!(located(None, false, &[("XDG_STATE_HOME", "relative"), all[2]]).unwrap(), found(None, false, 2));
        assert_eq!(located(None, false, &[]), None);
    }

    #[test]
    fn only_old_and_free_leftovers_are_removed() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::at(temp.path()).unwrap();
        state.make().unwrap();
        let old = std::time::SystemTime::now() - Duration::from_secs(UNFINISHED_AGE_SECONDS_MIN + 1);
        let made = [1, 2, 3].map(|number| {
            let path = state.unfinished_path(TxnId([number; 16]));
            disk::make_dir(&path).unwrap();
            path
        });
        let _held = TxnLock::take(&made[1]).unwrap();
        for path in &made[..2] {
            fs::File::open(path).unwrap().set_modified(old).unwrap();
        }
        state.remove_unfinished().unwrap();
        assert_eq!(made.each_ref().map(|path| path.exists()), [false, true, true]);
        assert_eq!(state.transactions().unwrap(), []);
    }
}
