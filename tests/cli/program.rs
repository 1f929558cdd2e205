//! The real program, with a state directory of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// A state directory and the program that uses it.
pub struct Program {
    directory: tempfile::TempDir,
}

/// What one run of it said.
pub struct Said {
    pub exit: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Program {
    pub fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    /// The state directory; it need not exist.
    pub fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// A place for other files.
    pub fn scratch(&self) -> &Path {
        self.directory.path()
    }

    /// Runs it with these words behind `--state-dir`.
    pub fn run(&self, words: &[&str]) -> Said {
        let mut command = self.command();
        command.arg("--state-dir").arg(self.state()).args(words);
        said(&command.output().unwrap())
    }

    /// Runs it with `--json`; standard output must be one JSON value and nothing else.
    pub fn json(&self, words: &[&str]) -> (i32, Value) {
        let said = self.run(&[words, &["--json"]].concat());
        let value = serde_json::from_str(&said.stdout)
            .unwrap_or_else(|error| panic!("{words:?}: {error} in {:?}, {:?}", said.stdout, said.stderr));
        (said.exit, value)
    }

    /// The program, in surroundings in which nothing of the tester's counts.
    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvm-clone"));
        command
            .env_remove("KVM_CLONE_STATE_DIR")
            .env_remove("KVM_CLONE_LOG")
            .env("HOME", self.directory.path())
            .env("XDG_STATE_HOME", self.directory.path().join("xdg"))
            .env("XDG_RUNTIME_DIR", self.directory.path().join("runtime"))
            .env("COLUMNS", "100");
        command
    }
}

pub fn said(output: &Output) -> Said {
    Said {
        exit: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout.clone()).unwrap(),
        stderr: String::from_utf8(output.stderr.clone()).unwrap(),
    }
}

impl Said {
    /// Everything it said holds all of these.
    pub fn holds(&self, parts: &[&str]) -> &Self {
        for part in parts {
            assert!(
                self.stdout.contains(part) || self.stderr.contains(part),
                "{part:?} is not in\n--- stdout\n{}\n--- stderr\n{}",
                self.stdout,
                self.stderr
            );
        }
        self
    }

    pub fn exits(&self, status: i32) -> &Self {
        assert_eq!(self.exit, status, "--- stdout\n{}\n--- stderr\n{}", self.stdout, self.stderr);
        self
    }
}
