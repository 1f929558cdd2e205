//! Names of users and groups by number, from a host's own `/etc/passwd` and `/etc/group`. A name that only a
//! directory service knows is not found, and that is a fact like any other.

use std::collections::BTreeMap;

use super::OwnerNames;
use crate::world::{Fault, FileStat, Host};

/// Bytes that are read of either file.
const ACCOUNT_FILE_BYTES_MAX: u64 = 1 << 20;

/// Users and groups of a host.
pub(super) struct Accounts {
    users: BTreeMap<u32, String>,
    groups: BTreeMap<u32, String>,
}

impl Accounts {
    /// Reads both files; one that is missing names nobody.
    pub(super) fn read(host: &dyn Host) -> Result<Self, Fault> {
        let names = |path| -> Result<_, Fault> {
            let content = host.read(path, ACCOUNT_FILE_BYTES_MAX)?.unwrap_or_default();
            Ok(names_by_number(&String::from_utf8_lossy(&content)))
        };
        Ok(Self { users: names("/etc/passwd")?, groups: names("/etc/group")? })
    }

    /// Who owns a file.
    pub(super) fn owner(&self, stat: &FileStat) -> OwnerNames {
        OwnerNames { user: self.users.get(&stat.uid).cloned(), group: self.groups.get(&stat.gid).cloned() }
    }
}

/// Name and number are the first and third field in both files; the first line of a number counts.
fn names_by_number(text: &str) -> BTreeMap<u32, String> {
    let mut names = BTreeMap::new();
    for line in text.lines() {
        let mut fields = line.split(':');
        if let (Some(name), Some(Ok(number))) = (fields.next(), fields.nth(1).map(str::parse))
            && !name.is_empty()
        {
            names.entry(number).or_insert_with(|| name.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_name_of_a_number_counts_and_odd_lines_are_passed_over() {
        let names = names_by_number(
            "root:x:0:0:root:/root:/bin/bash\ntoor:x:0:0::/:/bin/sh\n# note\n:x:5:\nkvm:x:106:\nbad:x:y:\n",
        );
        assert_eq!(names.get(&0).map(String::as_str), Some("root"));
        assert_eq!(names.get(&106).map(String::as_str), Some("kvm"));
        assert_eq!(names.len(), 2);
    }
}
