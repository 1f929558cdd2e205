//! Starts the agent: on this machine as a child, on another through ssh, sent along unless the host has the same one.
//!
//! The commands that run on a host are constants: nothing of a user's, a host's or a plan's stands in them.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use kvm_clone_agent::protocol::PROTOCOL_VERSION;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::time::timeout;

use super::ssh::{SshError, SshLink};
use super::transport::{Incoming, LastWords, Lifeline, Outgoing, Transport};
use crate::world::FaultKind;

/// Where a package puts the agent on a host.
const INSTALLED_AGENT: &str = "/usr/lib/kvm-clone/agent";
/// Bytes of an agent's binary, at most.
const AGENT_BYTES_MAX: u64 = 64 << 20;
/// How long `sudo -n true` may take on this machine.
const SUDO_SECONDS_MAX: u64 = 20;
/// The agent's name beside this program.
const AGENT_NAME: &str = "kvm-clone-agent";

/// Does the agent run as root?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Privilege {
    /// Yes: by `sudo -n` where the user is not.
    Root,
    /// Where that can be had; else as the user is.
    RootIfPossible,
}

/// Finds the agent's binary: as given, else beside this program.
pub(super) fn find_agent(given: Option<&Path>) -> Result<PathBuf, String> {
    if let Some(path) = given {
        return if path.is_file() {
            Ok(path.to_owned())
        } else {
            Err(format!("the agent {} is not there", path.display()))
        };
    }
    let program =
        std::env::current_exe().map_err(|error| format!("where this program is cannot be found out: {error}"))?;
    let beside = program.with_file_name(AGENT_NAME);
    if beside.is_file() {
        return Ok(beside);
    }
    if Path::new(INSTALLED_AGENT).is_file() {
        return Ok(INSTALLED_AGENT.into());
    }
    Err(format!(
        "the agent is missing: it should be {} (build it with `cargo build -p kvm-clone-agent`) or {INSTALLED_AGENT}",
        beside.display()
    ))
}

/// Starts it on this machine, in a process group of its own: Ctrl-C is for the controller alone.
pub(super) async fn start_here(agent: &Path, privilege: Privilege) -> Result<Transport, String> {
    let root = nix::unistd::geteuid().is_root();
    let with_sudo = !root && (privilege == Privilege::Root || sudo_works_here().await);
    let mut command = if with_sudo {
        let mut command = Command::new("sudo");
        command.arg("-n").arg("--").arg(agent);
        command
    } else {
        Command::new(agent)
    };
    // A socket costs a third of what pipes cost: image bytes go through it.
    let no_socket = |error: std::io::Error| format!("no socket for the agent: {error}");
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(no_socket)?;
    ours.set_nonblocking(true).map_err(no_socket)?;
    let (incoming, outgoing) = UnixStream::from_std(ours).map_err(no_socket)?.into_split();
    command.stdin(OwnedFd::from(theirs.try_clone().map_err(no_socket)?)).stdout(OwnedFd::from(theirs));
    command.stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| {
        if with_sudo {
            format!("sudo cannot be started: {error}; the agent needs root: run kvm-clone as root, or install sudo")
        } else {
            format!("{} cannot be started: {error}", agent.display())
        }
    })?;
    // The command holds the agent's end: as long as that is open here, the agent's death is no end of the stream.
    drop(command);
    let Some(mut stderr) = child.stderr.take() else { return Err("the agent has no stderr".into()) };
    let last_words = LastWords::default();
    let words = last_words.clone();
    let listening = tokio::spawn(async move {
        let mut buffer = [0; 1024];
        while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
            words.hear(&buffer[..count]);
        }
    });
    Ok(Transport {
        outgoing: Outgoing::Socket(outgoing),
        incoming: Incoming::Socket(incoming),
        last_words,
        lifeline: Lifeline::Child(Box::new(child), listening),
    })
}

/// Does `sudo -n` give root to this user on this machine?
async fn sudo_works_here() -> bool {
    let mut sudo = Command::new("sudo");
    sudo.args(["-n", "true"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    matches!(timeout(Duration::from_secs(SUDO_SECONDS_MAX), sudo.status()).await, Ok(Ok(status)) if status.success())
}

/// Says what the host has: the user's number, the version of an installed agent, whether `sudo -n` works. No quotation
/// mark but the outer ones, no `!` and no newline: every login shell hands it to `sh` as it is.
const PROBE: &str = "exec sh -c '\
    echo \"kvm-clone uid $(id -u)\"; \
    v=$(/usr/lib/kvm-clone/agent --version 2>/dev/null) && echo \"kvm-clone agent $v\"; \
    if [ \"$(id -u)\" -ne 0 ]; then s=$(sudo -n true 2>&1) && echo \"kvm-clone sudo ok\" || echo \"kvm-clone sudo $s\"; fi; \
    echo \"kvm-clone end\"'";

/// What the probe said.
#[derive(Debug, Default, PartialEq, Eq)]
struct Probe {
    uid: Option<u32>,
    agent_version: Option<String>,
    sudo: Option<String>,
    complete: bool,
}

impl Probe {
    /// Lines of ours among whatever a login shell prints.
    fn parse(output: &str) -> Self {
        let mut probe = Self::default();
        for line in output.lines() {
            let Some(line) = line.trim().strip_prefix("kvm-clone ") else { continue };
            match line.split_once(' ').unwrap_or((line, "")) {
                ("uid", uid) => probe.uid = uid.parse().ok(),
                ("agent", version) => probe.agent_version = Some(version.to_owned()),
                ("sudo", answer) => probe.sudo = Some(answer.to_owned()),
                ("end", _) => probe.complete = true,
                _ => {}
            }
        }
        probe
    }
}

/// Receives the agent's bytes from stdin into a file that only we can read, and starts it. In memory if possible: there is
/// room also on a host whose disks are full, and nothing is left when the power fails. Whether a filesystem runs programs is
/// tried by running the empty file, whether there is room by filling it. What an interrupted start left an hour ago goes.
/// The agent unlinks itself; `rm` is for one that could not start, and comes before any word: who is told of a controller
/// that is gone may be ended by telling. `@` marks are filled in with constants.
const RECEIVE: &str = "exec sh -c '\
    umask 077; f=; \
    for d in /dev/shm /run /tmp /var/tmp; do \
        find \"$d\" -maxdepth 1 -type f -name \".kvm-clone-agent.????????\" -user \"$(id -u)\" -mmin +60 -delete 2>/dev/null; \
        f=$(mktemp \"$d/.kvm-clone-agent.XXXXXXXX\" 2>/dev/null) || { f=; continue; }; \
        chmod 700 \"$f\" && \"$f\" 2>/dev/null && head -c @SIZE /dev/zero 2>/dev/null >\"$f\" && break; \
        rm -f \"$f\"; f=; \
    done; \
    if [ -z \"$f\" ]; then echo \"no directory for a program: /dev/shm, /run, /tmp and /var/tmp are full, read-only or noexec; make room in one\" >&2; exit 1; fi; \
    head -c @SIZE >\"$f\"; \
    if [ \"$(wc -c <\"$f\")\" -ne @SIZE ]; then rm -f \"$f\"; echo \"the agent did not arrive whole: is there space in $d?\" >&2; exit 1; fi; \
    @SUDO\"$f\" --unlink-self; s=$?; rm -f \"$f\"; exit $s'";

/// Starts it on the other end of an ssh connection.
pub(super) async fn start_there(link: SshLink, agent: &Path, privilege: Privilege) -> Result<Transport, SshError> {
    let probe = link.run(PROBE).await?;
    let said = Probe::parse(&probe.stdout);
    let unusable = |detail: String| SshError { kind: FaultKind::Unusable, detail };
    let (Some(uid), true) = (said.uid, said.complete) else {
        return Err(unusable(format!(
            "the login shell does not run `sh -c …`: it said {:?}, {:?}",
            shorten(&probe.stdout),
            shorten(&probe.stderr)
        )));
    };
    let sudo_works = said.sudo.as_deref() == Some("ok");
    let with_sudo = uid != 0 && (privilege == Privilege::Root || sudo_works);
    if with_sudo && !sudo_works {
        return Err(unusable(format!(
            "the agent needs root, and `sudo -n` does not give it: {}. Log in as root (root@host), or let the user run \
             everything without a password (in /etc/sudoers.d: `USER ALL=(root) NOPASSWD: ALL`)",
            said.sudo.as_deref().map_or("no answer", shorten)
        )));
    }
    let sudo = if with_sudo { "sudo -n -- " } else { "" };
    if said.agent_version.as_deref() == Some(&agent_version()) {
        return open(link, &format!("exec {sudo}{INSTALLED_AGENT}"), Bytes::new()).await;
    }
    let binary = read_agent(agent).await.map_err(unusable)?;
    let command = RECEIVE.replace("@SIZE", &binary.len().to_string()).replace("@SUDO", sudo);
    open(link, &command, binary).await
}

/// What the very same agent answers to `--version`.
fn agent_version() -> String {
    format!("{AGENT_NAME} {} (protocol {PROTOCOL_VERSION})", env!("CARGO_PKG_VERSION"))
}

async fn open(link: SshLink, command: &str, stdin: Bytes) -> Result<Transport, SshError> {
    let (incoming, outgoing) = link.start(command).await?.split();
    let (mut incoming, mut outgoing) = (Incoming::Ssh(incoming), Outgoing::Ssh(outgoing));
    let last_words = LastWords::default();
    // Who sends waits for room, and is not told when there will never be any: the other direction ends then.
    let sent = tokio::select! {
        sent = outgoing.send(stdin) => sent,
        () = incoming.end(&last_words) => Err("it ended".to_owned()),
    };
    sent.map_err(|error| SshError {
        kind: if last_words.has_ended() { FaultKind::Unusable } else { FaultKind::Unreachable },
        detail: format!("the connection failed while the agent was sent: {error}{}", last_words.describe()),
    })?;
    Ok(Transport { outgoing, incoming, last_words, lifeline: Lifeline::Ssh(Box::new(link)) })
}

async fn read_agent(path: &Path) -> Result<Bytes, String> {
    let cannot = |error: std::io::Error| format!("the agent {} cannot be read: {error}", path.display());
    let file = std::fs::File::open(path).map_err(cannot)?;
    let read = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        file.take(AGENT_BYTES_MAX + 1).read_to_end(&mut bytes).map(|_| bytes)
    });
    let bytes = read.await.map_err(std::io::Error::other).and_then(|result| result).map_err(cannot)?;
    if bytes.len() as u64 > AGENT_BYTES_MAX {
        return Err(format!("the agent {} is larger than {AGENT_BYTES_MAX} bytes", path.display()));
    }
    Ok(bytes.into())
}

/// The beginning of what a host said, for a message.
fn shorten(text: &str) -> &str {
    let text = text.trim();
    text.char_indices().nth(200).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_is_found_in_noise() {
        let probe = Probe::parse(
            "Welcome!\nkvm-clone uid 1000\r\nkvm-clone sudo sudo: a password is required\nkvm-clone end\n",
        );
        assert_eq!(probe.uid, Some(1000));
        assert_eq!(probe.sudo.as_deref(), Some("sudo: a password is required"));
        assert_eq!(probe.agent_version, None);
        assert!(probe.complete);
        assert!(!Probe::parse("This account is not available.\n").complete);
    }

    #[test]
    fn commands_survive_any_login_shell() {
        for command in [PROBE, RECEIVE] {
            let inner = command.strip_prefix("exec sh -c '").and_then(|rest| rest.strip_suffix('\''));
            assert!(inner.is_some_and(|inner| !inner.contains(['\'', '!', '\n', '`', '\\'])), "{command}");
        }
    }
}
