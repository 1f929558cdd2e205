//! The systemd unit that recovers at boot: systemd understands it, and what it runs is a command of this program.

use std::path::Path;
use std::process::Command;

use crate::program::Program;

const UNIT: &str = "kvm-clone-recover.service";
const INSTALLED: &str = "/usr/bin/kvm-clone";

fn unit() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib").join(UNIT)).unwrap()
}

/// What stands behind a key.
fn values<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
}

#[test]
fn systemd_understands_the_unit() {
    let program = Program::new();
    let path = program.scratch().join(UNIT);
    // It also looks whether the program is there.
    let here = unit().replace(INSTALLED, env!("CARGO_BIN_EXE_kvm-clone"));
    for (more, accepted) in [("", true), ("[Service]\nRestartPreventExitStatus=many\n", false)] {
        std::fs::write(&path, format!("{here}{more}")).unwrap();
        let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path).output().unwrap();
        let words = String::from_utf8(output.stderr).unwrap();
        let complaints: Vec<_> = words.lines().filter(|line| line.contains(UNIT)).collect();
        assert_eq!((output.status.success(), complaints.is_empty()), (true, accepted), "{words}");
    }
}

#[test]
fn the_unit_runs_a_recovery_that_ends_well_where_nothing_was_interrupted() {
    let unit = unit();
    let [command] = values(&unit, "ExecStart")[..] else { panic!("one command") };
    let words: Vec<_> = command.strip_prefix(INSTALLED).unwrap().split_whitespace().collect();
    let said = Program::new().run(&words);
    assert_eq!((said.exit, words[0]), (0, "recover"), "{}", said.stderr);
}
