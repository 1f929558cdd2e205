//! Programs of this host that look, or give a label: which ones is fixed here, their words are bounded, and so is their time. None is
//! given a shell, standard input, or more than a path that was checked.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvm_clone_agent::protocol::{Failure, FailureKind, Ran, TOOL_SECONDS_MAX, TOOL_WORDS_BYTES_MAX, Tool};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use crate::failure::{errno, failure, refused};
use crate::guard::check_path;

/// Where programs are looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How often the end of one is looked for.
const POLL_MILLISECONDS: u64 = 5;

/// Runs a tool to its end; `None`: this host does not have it.
pub fn run(tool: &Tool) -> Result<Option<Ran>, Failure> {
    run_to_its_end(command(tool)?)
}

/// Gives a file its default label; `None`: this host gives none, or has no tool for it.
pub fn relabel(path: &str) -> Result<Option<Ran>, Failure> {
    let enabled = run_to_its_end(bounded(Command::new("selinuxenabled")))?;
    if enabled.is_none_or(|ran| ran.status != Some(0)) {
        return Ok(None);
    }
    let mut command = Command::new("restorecon");
    command.args(["--", path]);
    run_to_its_end(bounded(command))
}

fn run_to_its_end(mut command: Command) -> Result<Option<Ran>, Failure> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(refused(format!("run {program}"), errno(&error))),
    };
    let (words, complaints) = (child.stdout.take().map(listen), child.stderr.take().map(listen));
    let status = wait(&mut child).map_err(|error| refused(format!("wait for {program}"), errno(&error)))?;
    let said = |words: Option<JoinHandle<Vec<u8>>>| words.and_then(|words| words.join().ok()).unwrap_or_default();
    let (mut words, complaints) = (said(words), said(complaints));
    if words.trim_ascii().is_empty() {
        words = complaints;
    }
    match status {
        Some(status) => {
            Ok(Some(Ran { status: status.code(), words: String::from_utf8_lossy(&words).trim().to_owned() }))
        }
        None => Err(failure(FailureKind::TimedOut, format!("{program} did not end within {TOOL_SECONDS_MAX} s"))),
    }
}

fn command(tool: &Tool) -> Result<Command, Failure> {
    let command = match tool {
        Tool::CheckQcow2 { path } => {
            check_path(path)?;
            let mut command = Command::new("qemu-img");
            command.args(["check", "-f", "qcow2", path]);
            command
        }
        Tool::SwtpmVersion => {
            let mut command = Command::new("swtpm");
            command.arg("--version");
            command
        }
    };
    Ok(bounded(command))
}

/// Without a shell, standard input or environment.
fn bounded(mut command: Command) -> Command {
    command.env_clear().env("PATH", PATH).env("LC_ALL", "C").current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // It ends with the agent, however that ends.
    // SAFETY: between fork and exec only prctl is called, which allocates nothing and takes no lock.
    unsafe { command.pre_exec(|| set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from)) };
    command
}

/// Takes its first words, and the rest so that it does not block.
fn listen(mut stream: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut words = Vec::new();
        // A stream that breaks has said what it said.
        let _ = stream.by_ref().take(TOOL_WORDS_BYTES_MAX as u64).read_to_end(&mut words);
        let _ = io::copy(&mut stream, &mut io::sink());
        words
    })
}

/// Waits up to the bound; `None`: it was killed at it.
fn wait(child: &mut Child) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + Duration::from_secs(TOOL_SECONDS_MAX);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(POLL_MILLISECONDS));
    }
}
