//! Whole transactions as every version of the format wrote them: `golden/v<N>/<name>.log`, one `events.log` each, kept
//! for ever. A program of today shows each of them, and rolls back what was interrupted as far as it gets without hosts.
//!
//! A new version of the frame needs logs of its own: `GOLDEN_WRITE=1 cargo test --test cli golden` writes those of the
//! version that the program writes, into a directory that is not there yet. What is released is never written again;
//! before the first release the directory may be removed first.

use std::fs;
use std::path::{Path, PathBuf};

use journal_format::frame::FRAME_VERSION;
use journal_format::{EventV1, TxnId};
use kvm_clone::journal::{self, StateDir};

use crate::program::{Program, said};
use crate::transactions::Transaction;

struct Golden {
    name: &'static str,
    tail: &'static str,
    make: fn(Transaction) -> Transaction,
    status: &'static str,
    /// What `show` says of it.
    says: &'static [&'static str],
    /// How `rollback` ends where no host answers.
    rollback: i32,
}

const GOLDEN: [Golden; 4] = [
    Golden {
        name: "committed",
        tail: "9001",
        make: |begun| begun.did(0..3).finished(),
        status: "committed",
        says: &["web01_clone", "610.00 MB"],
        rollback: 5,
    },
    Golden {
        name: "rolled-back",
        tail: "9002",
        make: Transaction::rolled_back,
        status: "rolled_back",
        says: &["the name web01_clone is taken"],
        rollback: 0,
    },
    Golden {
        name: "interrupted",
        tail: "9003",
        make: |begun| begun.interrupted().resumed(),
        status: "interrupted",
        says: &["does the 6 steps that are left", "removes the 3 things it made on kvm2"],
        rollback: 3,
    },
    Golden {
        name: "stuck",
        tail: "9004",
        make: Transaction::stuck,
        status: "stuck",
        says: &["somebody else's", "ls -li /srv/vm"],
        rollback: 3,
    },
];

impl Golden {
    fn txn(&self) -> TxnId {
        format!("018bcfe5-6800-7000-8000-{:0>12}", self.tail).parse().unwrap()
    }

    fn log(&self, program: &Program) -> PathBuf {
        program.state().join("txn").join(self.txn().to_string()).join("events.log")
    }

    /// As the program of today writes it.
    fn bytes(&self) -> Vec<u8> {
        let program = Program::new();
        drop((self.make)(Transaction::begin(&program.state(), self.tail)));
        fs::read(self.log(&program)).unwrap()
    }
}

fn directory(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/cli/golden/v{version}"))
}

#[test]
fn the_version_that_is_written_has_its_golden_transactions() {
    let directory = directory(FRAME_VERSION);
    if std::env::var_os("GOLDEN_WRITE").is_some_and(|value| value == "1") && !directory.exists() {
        fs::create_dir_all(&directory).unwrap();
        for golden in &GOLDEN {
            fs::write(directory.join(golden.name).with_extension("log"), golden.bytes()).unwrap();
        }
    }
    for golden in &GOLDEN {
        let path = directory.join(golden.name).with_extension("log");
        let kept = fs::read(&path).unwrap_or_else(|error| {
            panic!(
                "{}: {error}; GOLDEN_WRITE=1 writes those of a new version: look at them, and commit them",
                path.display()
            )
        });
        assert!(kept == golden.bytes(), "{}: the program writes other bytes now", path.display());
    }
}

/// The transactions of one version in a state directory, as the machine that wrote them left them after the loss of
/// everything but their logs.
fn with_logs(version: u32) -> Program {
    let program = Program::new();
    for golden in &GOLDEN {
        let log = golden.log(&program);
        fs::create_dir_all(log.parent().unwrap()).unwrap();
        fs::copy(directory(version).join(golden.name).with_extension("log"), &log).unwrap();
    }
    program
}

#[test]
fn every_version_is_listed_shown_and_exported() {
    for version in 1..=FRAME_VERSION {
        let program = with_logs(version);
        let (exit, list) = program.json(&["list"]);
        assert_eq!((exit, list.as_array().unwrap().len()), (0, GOLDEN.len()), "version {version}: {list}");
        for golden in &GOLDEN {
            let (exit, value) = program.json(&["show", golden.tail]);
            assert_eq!((exit, value["status"].as_str()), (0, Some(golden.status)), "version {version}: {value}");
            program.run(&["show", golden.tail]).exits(0).holds(golden.says);
            program.run(&["journal", "verify", golden.tail]).exits(6).holds(&["repairable", "it is gone"]);
            let out = program.scratch().join(golden.name);
            program.run(&["journal", "export", golden.tail, "--output", out.to_str().unwrap()]).exits(0);
            assert_eq!(fs::read(out).unwrap(), fs::read(golden.log(&program)).unwrap());
        }
    }
}

#[test]
fn every_version_is_rolled_back_as_far_as_it_gets_without_hosts() {
    for version in 1..=FRAME_VERSION {
        let program = with_logs(version);
        // Nobody listens there, so that no name has to be looked up and no answer waited for.
        let config = program.scratch().join("ssh_config");
        fs::write(&config, "Host kvm1 kvm2\n  HostName 127.0.0.1\n  Port 1\n  User root\n").unwrap();
        for golden in &GOLDEN {
            let before = journal::read(&StateDir::at(&program.state()).unwrap(), golden.txn()).unwrap().records;
            let mut command = program.command();
            command.arg("--state-dir").arg(program.state()).args(["rollback", golden.tail]);
            let said = said(&command.env("KVM_CLONE_SSH_CONFIG", &config).output().unwrap());
            said.exits(golden.rollback);
            let after = journal::read(&StateDir::at(&program.state()).unwrap(), golden.txn()).unwrap().records;
            assert!(after.starts_with(&before), "version {version}, {}", golden.name);
            if golden.rollback == 3 {
                said.holds(&["kvm2", "suspended", "rollback 018bcfe5-6800-7000-8000-"]);
                let [suspended] = &after[before.len()..] else { panic!("{:?}", &after[before.len()..]) };
                assert!(matches!(suspended.event, EventV1::Suspended { .. }), "{suspended:?}");
            } else {
                assert_eq!(after.len(), before.len(), "version {version}, {}: nothing was to do", golden.name);
            }
        }
    }
}
