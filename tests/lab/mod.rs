//! Two real libvirt hosts for tests: `Lab::up()` brings them up, dropping it takes everything away again.
//!
//! A test crate takes this in with `#[path = "../lab/mod.rs"] mod lab;`. What goes wrong in the lab itself panics with
//! what was run and what it said; what kvm-clone does is handed to the test. Needs root.

#![allow(dead_code, unused_imports, clippy::unwrap_used, clippy::expect_used)]

mod host;
mod image;
mod loops;
mod outside;
mod program;
mod vm;

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub use host::{Host, Service};
pub use image::{Content, Format, make as make_image};
pub use loops::Loop;
pub use outside::Outside;
pub use program::{Controller, Finished, RUN_BOUND, Running, agent, staged_bytes};
pub use vm::{Disk, Vm};

/// The lab's own program, which also people use.
const LAB: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/lab");
/// Makes and boots guests that print a marker.
const GUEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/guest");

/// Two hosts, `a` and `b`. Host a runs guests as root and without namespaces, host b with Debian's own settings.
pub struct Lab {
    id: String,
    directory: PathBuf,
    hosts: [Host; 2],
    /// Holds the lab up until its stdin ends: also when this process dies, however it dies.
    holder: Child,
}

impl Lab {
    /// Brings a lab up.
    pub fn up() -> Self {
        Self::hold(&[])
    }

    /// Brings a lab up whose host b keeps /etc, /root, /srv, /tmp and /var on a file system of its own, so that its power can be cut.
    pub fn up_with_loop() -> Self {
        Self::hold(&["--loop"])
    }

    fn hold(options: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        assert!(nix::unistd::geteuid().is_root(), "tests with hosts need root: run them as root, or with `make test`");
        // Both numbers are small enough for the 8 characters that an id has: process ids end at 2^22.
        let id = format!("{:06x}{:02x}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed) % 256);
        let mut holder = Command::new(LAB)
            .arg("hold")
            .args(options)
            .arg(&id)
            .env("KVM_CLONE_LAB_CACHE", concat!(env!("CARGO_TARGET_TMPDIR"), "/lab-cache"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // What ends the tests' process group must not end it too: it has to clean up then.
            .process_group(0)
            .spawn()
            .expect("start tests/lab/lab");
        let mut directory = None;
        let mut ready = false;
        for line in BufReader::new(holder.stdout.take().unwrap()).lines() {
            match line.unwrap().split_once('=') {
                Some(("LAB", value)) => directory = Some(PathBuf::from(value)),
                Some(("READY", _)) => ready = true,
                _ => {}
            }
            if ready {
                break;
            }
        }
        assert!(ready, "lab {id} did not come up: see its messages above ({:?})", holder.wait());
        let directory = directory.expect("`lab hold` names its directory");
        let hosts = ["a", "b"].map(|name| Host::new(name, &id, directory.join(name)));
        Self { id, directory, hosts, holder }
    }

    /// A host by its name: `a` or `b`.
    pub fn host(&self, name: &str) -> &Host {
        self.hosts.iter().find(|host| host.name() == name).unwrap_or_else(|| panic!("no host {name}"))
    }

    /// Host a.
    pub fn a(&self) -> &Host {
        &self.hosts[0]
    }

    /// Host b.
    pub fn b(&self) -> &Host {
        &self.hosts[1]
    }

    /// The ssh configuration in which `a` and `b` (and `operator@a`, `viewer@a`, …) are reached.
    pub fn ssh_config(&self) -> PathBuf {
        self.directory.join("ssh_config")
    }

    /// The known hosts that this configuration names.
    pub fn known_hosts(&self) -> PathBuf {
        self.directory.join("known_hosts")
    }

    /// The private key that all users of both hosts accept.
    pub fn client_key(&self) -> PathBuf {
        self.directory.join("client_key")
    }

    /// The lab's own directory; a test may put files of its own here.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A new installation of kvm-clone on this machine, with a state directory of its own.
    pub fn controller(&self) -> Controller {
        Controller::new(self)
    }

    /// What both hosts look like from outside: a, b.
    pub fn outside(&self) -> (Outside, Outside) {
        (self.a().outside(), self.b().outside())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let status = self.holder.wait().expect("wait for tests/lab/lab");
        assert!(status.success() || std::thread::panicking(), "lab {} did not end cleanly: {status}", self.id);
    }
}

/// Waits until something holds; panics when it does not within the bound.
pub fn wait_until(bound: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < bound, "waited {bound:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs a command that has to succeed, and returns its stdout without the end of its last line.
fn output_of(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("output is UTF-8").trim_end().to_owned()
}
