//! Processes: who this one is, and the end of an earlier agent.

use std::fs;
use std::io;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kvm_clone_agent::protocol::{AGENT_COMM, Failure, FailureKind, Hello, PROTOCOL_VERSION, ProcessId};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};

use crate::failure::{errno, failure, refused};

/// How long a killed agent may take to end: it may sit in a write to a slow disk.
const KILL_SECONDS_MAX: u64 = 10;
/// How often its end is looked for.
const KILL_POLL_MILLISECONDS: u64 = 20;

/// Who this agent is, and where.
pub fn hello() -> Result<Hello, Failure> {
    let pid = std::process::id();
    let started = look(pid)?
        .ok_or_else(|| failure(FailureKind::Unsupported, "start time of the agent: is /proc mounted?"))?
        .started;
    let number = |variable| sysconf(variable).ok().flatten().and_then(|value| u64::try_from(value).ok()).unwrap_or(0);
    let hostname = nix::unistd::gethostname().map_err(|error| refused("host name", error))?;
    // A clock before 1970 is as wrong as one at it.
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(Hello {
        protocol: PROTOCOL_VERSION,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        agent: ProcessId { pid, started },
        uid: nix::unistd::geteuid().as_raw(),
        machine_id: fs::read_to_string("/etc/machine-id").unwrap_or_default().trim().to_owned(),
        hostname: hostname.to_string_lossy().into_owned(),
        memory_bytes: number(SysconfVar::_PHYS_PAGES).saturating_mul(number(SysconfVar::PAGE_SIZE)),
        cpus: u32::try_from(number(SysconfVar::_NPROCESSORS_ONLN)).unwrap_or(0),
        clock_ms: u64::try_from(clock.as_millis()).unwrap_or(u64::MAX),
    })
}

struct Process {
    started: u64,
    /// Its main thread is a zombie.
    zombie: bool,
}

/// A process as `/proc/<pid>/stat` has it; `None`: there is none.
fn look(pid: u32) -> Result<Option<Process>, Failure> {
    let path = format!("/proc/{pid}/stat");
    let stat = match fs::read(&path) {
        Ok(stat) => String::from_utf8_lossy(&stat).into_owned(),
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(refused(format!("read {path}"), errno(&error))),
    };
    parse_stat(&stat).map(Some).ok_or_else(|| failure(FailureKind::Unsupported, format!("{path}: not understood")))
}

/// The second field is a name in brackets that may hold anything, brackets too; the state follows it, and the start
/// time is field 22 of the whole (proc(5)).
fn parse_stat(stat: &str) -> Option<Process> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let zombie = matches!(fields.next()?, "Z" | "X");
    Some(Process { started: fields.nth(18)?.parse().ok()?, zombie })
}

fn is_gone(error: &io::Error) -> bool {
    matches!(errno(error), nix::errno::Errno::ENOENT | nix::errno::Errno::ESRCH)
}

/// Whether this very process has let go of everything: gone, or a zombie whose other threads are gone too (a thread that
/// is still in the kernel keeps its files open).
fn has_ended(agent: ProcessId) -> Result<bool, Failure> {
    Ok(match look(agent.pid)? {
        None => true,
        Some(process) if process.started != agent.started => true,
        Some(process) => {
            process.zombie && fs::read_dir(format!("/proc/{}/task", agent.pid)).is_ok_and(|tasks| tasks.count() <= 1)
        }
    })
}

/// Kills an agent and waits for its end.
pub fn kill_agent(agent: ProcessId) -> Result<(), Failure> {
    let operation = format!("kill agent {}", agent.pid);
    let pid = i32::try_from(agent.pid).ok().filter(|pid| *pid > 1 && agent.pid != std::process::id());
    let Some(pid) = pid else {
        return Err(failure(FailureKind::Protocol, format!("{operation}: not another process")));
    };
    if has_ended(agent)? {
        return Ok(());
    }
    match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(comm) if comm.trim_end() == AGENT_COMM => {}
        Ok(comm) => {
            let comm = comm.trim_end();
            return Err(failure(FailureKind::Denied, format!("{operation}: it is not an agent but {comm:?}")));
        }
        Err(error) if is_gone(&error) => return Ok(()),
        Err(error) => return Err(refused(operation, errno(&error))),
    }
    match kill(Pid::from_raw(pid), Signal::SIGKILL) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
        Err(error) => return Err(refused(operation, error)),
    }
    let deadline = Instant::now() + Duration::from_secs(KILL_SECONDS_MAX);
    while !has_ended(agent)? {
        if Instant::now() >= deadline {
            let detail = format!("{operation}: it was killed but did not end within {KILL_SECONDS_MAX} s");
            return Err(failure(FailureKind::TimedOut, detail));
        }
        thread::sleep(Duration::from_millis(KILL_POLL_MILLISECONDS));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_brackets_does_not_confuse() {
        let stat = "123 (a) Z) b (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 19 20";
        let process = parse_stat(stat).unwrap();
        assert_eq!((process.started, process.zombie), (4242, false));
        assert!(parse_stat("123 (a) Z 1 2").is_none());
        assert!(parse_stat("").is_none());
    }

    #[test]
    fn what_is_not_an_agent_is_not_killed() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id();
        let started = look(pid).unwrap().unwrap().started;
        let verdict = kill_agent(ProcessId { pid, started });
        let other_start = kill_agent(ProcessId { pid, started: started + 1 });
        let alive = child.try_wait().unwrap().is_none();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(verdict.unwrap_err().kind, FailureKind::Denied);
        assert_eq!(other_start, Ok(()));
        assert!(alive);
        assert_eq!(kill_agent(ProcessId { pid, started }), Ok(()));
    }
}
