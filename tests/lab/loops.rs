//! Loop devices that a test makes: both hosts see them, as they see all of `/dev`.

use std::path::Path;
use std::process::Command;

use super::output_of;

/// A loop device on a file; dropping it takes it away.
#[derive(Debug)]
pub struct Loop {
    path: String,
}

impl Loop {
    /// Makes a device of this file.
    pub fn on(file: &Path) -> Self {
        let path = output_of(Command::new("losetup").args(["--find", "--show"]).arg(file));
        Self { path: path.trim().to_owned() }
    }

    /// The device's node.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let status = Command::new("losetup").args(["--detach", &self.path]).status().expect("run losetup");
        assert!(status.success() || std::thread::panicking(), "{} cannot be taken away: {status}", self.path);
    }
}
