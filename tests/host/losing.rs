//! Agents that die or fall silent, and people who press Ctrl-C: the copy ends soon, and says whose fault it was.

use std::cell::Cell;
use std::os::unix::net::UnixListener;
use std::rc::Rc;
use std::time::{Duration, Instant};

use kvm_clone::host::{ConnectOptions, Connector, Role};
use kvm_clone::world::{CopyJob, FaultKind, Side, World};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::copying::{Ledger, job, put};
use super::sshd::{Pair, Sshd, access, refused, set_mode};

const MIB: u64 = 1 << 20;

/// A copy that would take 20 s.
fn slow_job(pair: &Pair) -> CopyJob {
    put(&pair.scratch("source"), 80 * MIB, &[0..80 * MIB]);
    let mut job = job(pair, 80 * MIB, pair.stage("staged", 80 * MIB));
    job.bandwidth_limit_bytes_per_second = Some(4 * MIB);
    job
}

/// When something was done.
struct Moment(Rc<Cell<Option<Instant>>>);

impl Moment {
    /// With what does it, once.
    fn new(act: impl FnOnce() + 'static) -> (Self, Box<dyn FnOnce()>) {
        let moment = Self(Rc::default());
        let told = Rc::clone(&moment.0);
        let act = move || {
            act();
            told.set(Some(Instant::now()));
        };
        (moment, Box::new(act))
    }

    fn elapsed(&self) -> Duration {
        self.0.get().expect("it was done").elapsed()
    }
}

/// Copies, and does that to one of the agents in the middle.
fn copy_and(pair: &Pair, side: Side, signal: Signal) -> (FaultKind, String, Duration) {
    let job = slow_job(pair);
    let host = if side == Side::Source { &pair.source } else { &pair.destination };
    let agent = Pid::from_raw(i32::try_from(host.agent().unwrap().pid).unwrap());
    let (at, in_the_middle) = Moment::new(move || kill(agent, signal).unwrap());
    let mut ledger = Ledger { at_first: Some(in_the_middle), ..Ledger::default() };
    let (kind, words) = refused(pair.world.copy_chunks(&job, &mut ledger));
    let after = at.elapsed();
    if signal == Signal::SIGSTOP {
        kill(agent, Signal::SIGKILL).unwrap();
    }
    (kind, words, after)
}

#[test]
fn a_killed_agent_ends_the_copy_at_once() {
    let sshd = Sshd::start();
    let (kind, words, after) = copy_and(&sshd.pair(), Side::Destination, Signal::SIGKILL);
    assert_eq!(kind, FaultKind::Unreachable, "{words}");
    assert!(words.starts_with("test:"), "{words}");
    assert!(after < Duration::from_secs(5), "{after:?}");
}

#[test]
fn a_killed_local_agent_is_named_too() {
    let sshd = Sshd::start();
    let pair = sshd.pair();
    let (kind, words, after) = copy_and(&pair, Side::Source, Signal::SIGKILL);
    assert_eq!(kind, FaultKind::Unreachable, "{words}");
    assert!(words.starts_with("local:"), "{words}");
    assert!(after < Duration::from_secs(10), "{after:?}");
    // Nothing reconnects by itself, and the other end lives.
    assert_eq!(refused(pair.source.stat("/")).0, FaultKind::Unreachable);
    assert!(pair.destination.stat("/").unwrap().is_some());
    assert!(pair.world.connect(Side::Source).unwrap().stat("/").unwrap().is_some());
}

#[test]
fn a_silent_agent_is_lost_within_half_a_minute() {
    let sshd = Sshd::start();
    let (kind, words, after) = copy_and(&sshd.pair(), Side::Destination, Signal::SIGSTOP);
    assert_eq!(kind, FaultKind::Unreachable, "{words}");
    assert!(words.starts_with("test:") && words.contains("no sign of life"), "{words}");
    assert!(after < Duration::from_secs(30), "{after:?}");
}

#[test]
fn an_interrupt_ends_the_copy_promptly() {
    let sshd = Sshd::start();
    let pair = sshd.pair();
    let job = slow_job(&pair);
    let interrupt = pair.interrupt.clone();
    let (at, in_the_middle) = Moment::new(move || interrupt.raise("interrupted"));
    let mut ledger = Ledger { at_first: Some(in_the_middle), ..Ledger::default() };
    let (kind, words) = refused(pair.world.copy_chunks(&job, &mut ledger));
    let after = at.elapsed();
    assert_eq!(kind, FaultKind::Interrupted, "{words}");
    assert!(after < Duration::from_secs(8), "{after:?}");
    assert_eq!(refused(pair.world.wait(Duration::from_secs(60))).0, FaultKind::Interrupted);
    // Short work goes on: a suspension is written down after Ctrl-C.
    assert!(pair.destination.stat("/").unwrap().is_some());
}

#[test]
fn an_interrupt_ends_waiting_for_libvirt() {
    let sshd = Sshd::start();
    let pair = sshd.pair();
    let interrupt = pair.interrupt.clone();
    // It hangs up on who calls, as one that is being started does.
    let libvirt = UnixListener::bind(sshd.path("no-libvirt")).unwrap();
    let presser = std::thread::spawn(move || {
        drop(libvirt.accept().unwrap());
        interrupt.raise("interrupted");
        Instant::now()
    });
    let (kind, words) = refused(pair.source.domains());
    let after = presser.join().unwrap().elapsed();
    assert_eq!(kind, FaultKind::Interrupted, "{words}");
    assert!(after < Duration::from_secs(3), "{after:?}");
}

/// More than a channel takes before anybody reads.
const LARGE_AGENT_BYTES: u64 = 16 << 20;

/// A host that answers what it is asked first, then takes nothing more and is gone.
#[test]
fn a_connection_that_ends_while_the_agent_is_sent_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let (shell, agent) = (directory.path().join("shell"), directory.path().join("agent"));
    let script = "#!/bin/sh\ncase $SSH_ORIGINAL_COMMAND in\n*--unlink-self*) sleep 1; kill -KILL $PPID ;;\n\
                  *) eval \"$SSH_ORIGINAL_COMMAND\" ;;\nesac\n";
    std::fs::write(&shell, script).unwrap();
    set_mode(&shell, 0o755);
    std::fs::File::create(&agent).unwrap().set_len(LARGE_AGENT_BYTES).unwrap();
    let sshd = Sshd::start_with(&format!("ForceCommand {}", shell.display()));
    let connector = Connector::new(ConnectOptions { agent_binary: Some(agent), ..sshd.options() }).unwrap();
    let began = Instant::now();
    let (kind, words) = refused(connector.connect(&access("test"), Role::Survey));
    assert_eq!(kind, FaultKind::Unreachable, "{words}");
    assert!(words.contains("while the agent was sent"), "{words}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}
