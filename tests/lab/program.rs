//! The real kvm-clone, run on this machine against the lab's hosts.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::{Host, Lab, output_of, wait_until};

/// A run of kvm-clone that takes longer than this is a failure of the test.
pub const RUN_BOUND: Duration = Duration::from_secs(300);

/// Where the programs of a controller make their sockets and say how far they are, in its directory.
const RUNTIME_DIR: &str = "run";

/// One installation of kvm-clone: a state directory on this machine.
#[derive(Clone)]
pub struct Controller {
    directory: PathBuf,
    ssh_config: PathBuf,
    environment: Vec<(String, String)>,
}

impl Controller {
    pub(super) fn new(lab: &Lab) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let directory = lab.directory().join(format!("controller-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir_all(directory.join(RUNTIME_DIR)).expect("make the controller's directories");
        Self { directory, ssh_config: lab.ssh_config(), environment: Vec::new() }
    }

    /// Its state directory. Made by the program.
    pub fn state_dir(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// Directories of sockets that its programs left: none, killed or not.
    pub fn left_behind(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.directory.join(RUNTIME_DIR)).expect("read the runtime directory");
        let paths = entries.map(|entry| entry.expect("read the runtime directory").path());
        // The directory without the dot holds live progress, which stays.
        let of_sockets =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"kvm-clone."));
        paths.filter(of_sockets).collect()
    }

    /// With one more variable in the program's environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With another ssh configuration than the lab's own.
    #[must_use]
    pub fn ssh_config(mut self, path: &Path) -> Self {
        path.clone_into(&mut self.ssh_config);
        self
    }

    /// The command line, ready to be run.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvm-clone"));
        command
            .args(arguments)
            .stdin(Stdio::null())
            .env("KVM_CLONE_STATE_DIR", self.state_dir())
            .env("KVM_CLONE_SSH_CONFIG", &self.ssh_config)
            .env("KVM_CLONE_AGENT", agent())
            .env("XDG_RUNTIME_DIR", self.directory.join(RUNTIME_DIR))
            .env_remove("SSH_AUTH_SOCK")
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts the program.
    pub fn spawn<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Running {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mut command = self.command(arguments);
        // Files, not pipes: the program never waits for a test that does not read.
        let said = self.directory.join(format!("output-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        let stdout = File::create(said.with_extension("stdout")).expect("make a file for stdout");
        let stderr = File::create(said.with_extension("stderr")).expect("make a file for stderr");
        let child = command.stdout(stdout).stderr(stderr).spawn().expect("start kvm-clone");
        Running { child, said, line: format!("{command:?}") }
    }

    /// Runs the program to its end.
    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Finished {
        self.spawn(arguments).wait()
    }

    /// What `list --json` says.
    pub fn list(&self) -> Vec<serde_json::Value> {
        let value = self.run(["list", "--json"]).expect(0).json();
        value.as_array().expect("`list --json` is an array").clone()
    }

    /// What `show TXN --json` says.
    pub fn show(&self, txn: &str) -> serde_json::Value {
        self.run(["show", txn, "--json"]).expect(0).json()
    }

    /// The transaction's id, when there is exactly one.
    pub fn only_txn(&self) -> String {
        let list = self.list();
        assert_eq!(list.len(), 1, "one transaction, not {list:?}");
        list[0]["id"].as_str().expect("an id").to_owned()
    }

    /// The transaction's status, such as `interrupted`.
    pub fn status(&self, txn: &str) -> String {
        let list = self.list();
        let entry = list.iter().find(|entry| entry["id"] == txn).unwrap_or_else(|| panic!("no {txn} in {list:?}"));
        entry["status"].as_str().expect("a status").to_owned()
    }
}

/// kvm-clone, running. Killed when dropped.
pub struct Running {
    child: Child,
    said: PathBuf,
    line: String,
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.pid()).expect("a process id"));
        nix::sys::signal::kill(pid, signal).expect("signal kvm-clone");
    }

    /// Kills it with SIGKILL, and waits for its end.
    pub fn kill(mut self) -> Finished {
        self.child.kill().expect("kill kvm-clone");
        self.wait()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("look at kvm-clone").is_some()
    }

    /// Waits until something holds while it runs; panics when it ends before, or at the bound.
    pub fn wait_until(&mut self, bound: Duration, what: &str, mut condition: impl FnMut() -> bool) {
        wait_until(bound, &format!("{what}, while {} runs", self.line), || {
            if condition() {
                return true;
            }
            assert!(!self.has_ended(), "{} ended before: {what}\n{}", self.line, self.output());
            false
        });
    }

    /// Waits for its end, up to the bound.
    pub fn wait_for(mut self, bound: Duration) -> Finished {
        wait_until(bound, &format!("{} ends", self.line), || self.has_ended());
        let status = self.child.wait().expect("wait for kvm-clone");
        let read =
            |kind| std::fs::read_to_string(self.said.with_extension(kind)).expect("the program's output is UTF-8");
        Finished { status, stdout: read("stdout"), stderr: read("stderr"), line: self.line.clone() }
    }

    /// Waits for its end, up to `RUN_BOUND`.
    pub fn wait(self) -> Finished {
        self.wait_for(RUN_BOUND)
    }

    fn output(&self) -> String {
        let read = |kind| std::fs::read_to_string(self.said.with_extension(kind)).unwrap_or_default();
        format!("{}{}", read("stdout"), read("stderr"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// kvm-clone, ended.
#[derive(Debug)]
pub struct Finished {
    status: ExitStatus,
    line: String,
    /// What it printed.
    pub stdout: String,
    /// What it said besides.
    pub stderr: String,
}

impl Finished {
    /// Its exit status; `None` when a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The signal that ended it.
    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// Panics, with everything it said, unless it ended with this exit status.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code(), Some(code), "{}: {}\n{}\n{}", self.line, self.status, self.stdout, self.stderr);
        self
    }

    /// Panics unless its messages contain all of these words.
    #[track_caller]
    pub fn says(self, words: &[&str]) -> Self {
        let said = format!("{}{}", self.stdout, self.stderr);
        for word in words {
            assert!(said.contains(word), "{} does not say {word:?}:\n{said}", self.line);
        }
        self
    }

    /// Its stdout, which has to be JSON alone.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{}: not JSON ({error}):\n{}", self.line, self.stdout))
    }
}

/// Bytes allocated in staging directories below a host's directory: how far transfers to it are.
pub fn staged_bytes(host: &Host, directory: &str) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fn below(directory: &Path) -> u64 {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        entries
            .map(|entry| match std::fs::symlink_metadata(entry.path()) {
                Ok(metadata) if metadata.is_dir() => below(&entry.path()),
                Ok(metadata) if metadata.is_file() => metadata.blocks() * 512,
                _ => 0,
            })
            .sum()
    }
    below(&host.path(directory).join(".kvm-clone"))
}

/// The agent as it is shipped, static; built once, if `KVM_CLONE_AGENT` does not name it.
pub fn agent() -> &'static Path {
    static AGENT: OnceLock<PathBuf> = OnceLock::new();
    AGENT.get_or_init(|| {
        if let Some(path) = std::env::var_os("KVM_CLONE_AGENT") {
            return PathBuf::from(path);
        }
        // A directory of its own: beside the other binaries it would be the dynamic one again at the next build.
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("agent");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        output_of(
            Command::new(cargo)
                .args(["rustc", "--quiet", "--package", "kvm-clone-agent", "--bin", "kvm-clone-agent"])
                .args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"), "--target-dir"])
                .arg(&target)
                .args(["--", "-C", "target-feature=+crt-static"]),
        );
        target.join("debug/kvm-clone-agent")
    })
}
