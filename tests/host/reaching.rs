//! From an address to an agent, and every way in which that is refused.

use std::process::Command;
use std::time::{Duration, Instant};

use kvm_clone::host::{Access, ConnectOptions, Connector, Role};
use kvm_clone::world::{FaultKind, FileKind};

use super::sshd::{Sshd, access, agent, keygen, refused, set_mode, wait_until};

#[test]
fn an_agent_runs_over_ssh_and_leaves_no_file() {
    let sshd = Sshd::start();
    let host = sshd.connector().connect(&access("test"), Role::Survey).unwrap();
    assert_eq!(host.name(), "test");
    let stat = host.stat(&sshd.path("host_key").display().to_string()).unwrap().unwrap();
    assert_eq!((stat.kind, stat.mode), (FileKind::File, 0o600));
    assert_eq!(host.read("/nonexistent/file", 10).unwrap(), None);
    let running = host.agent().unwrap().pid;
    let program = std::fs::read_link(format!("/proc/{running}/exe")).unwrap().display().to_string();
    assert!(program.ends_with(" (deleted)"), "{program}");
    drop(host);
    assert!(!std::path::Path::new(&format!("/proc/{running}")).exists(), "the agent outlived its host");
}

#[test]
fn a_local_agent_needs_no_ssh() {
    let options = ConnectOptions { agent_binary: Some(agent()), ..ConnectOptions::default() };
    let host = Connector::new(options).unwrap().connect(&access("local"), Role::Survey).unwrap();
    let running = host.agent().unwrap().pid;
    let group = std::fs::read_to_string(format!("/proc/{running}/stat")).unwrap();
    let group = group.rsplit_once(')').unwrap().1.split_whitespace().nth(2).unwrap().to_owned();
    assert_eq!(group, running.to_string(), "Ctrl-C would reach the agent");
    assert!(host.filesystem("/").unwrap().available_bytes > 0);
}

#[test]
fn an_unknown_key_is_refused_with_its_fingerprint() {
    let sshd = Sshd::start();
    std::fs::remove_file(sshd.path("known_hosts")).unwrap();
    let (kind, words) = refused(sshd.connector().connect(&access("test"), Role::Survey));
    assert_eq!(kind, FaultKind::Unusable);
    let output = Command::new("ssh-keygen").arg("-lf").arg(sshd.path("host_key.pub")).output().unwrap();
    let fingerprint = String::from_utf8(output.stdout).unwrap().split(' ').nth(1).unwrap().to_owned();
    assert!(words.contains(&fingerprint) && words.contains("ssh-keyscan"), "{words}");
}

#[test]
fn a_new_key_is_written_down_if_that_was_allowed() {
    let sshd = Sshd::start();
    std::fs::remove_file(sshd.path("known_hosts")).unwrap();
    let options = ConnectOptions { accept_new_host_keys: true, ..sshd.options() };
    Connector::new(options).unwrap().connect(&access("test"), Role::Survey).unwrap();
    sshd.connector().connect(&access("test"), Role::Survey).expect("the key is known now");
    sshd.know("other_key");
    let options = ConnectOptions { accept_new_host_keys: true, ..sshd.options() };
    let (_, words) = refused(Connector::new(options).unwrap().connect(&access("test"), Role::Survey));
    assert!(words.contains("HAS CHANGED"), "{words}");
}

#[test]
fn a_changed_key_is_refused_and_named() {
    let sshd = Sshd::start();
    sshd.know("other_key");
    let (kind, words) = refused(sshd.connector().connect(&access("test"), Role::Survey));
    assert_eq!(kind, FaultKind::Unusable);
    assert!(words.contains("HAS CHANGED") && words.contains("known_hosts line 1"), "{words}");
    assert!(words.contains("ssh-keygen -R"), "{words}");
}

#[test]
fn a_hashed_name_is_known() {
    let sshd = Sshd::start();
    let hashed = Command::new("ssh-keygen").arg("-H").arg("-f").arg(sshd.path("known_hosts")).output().unwrap();
    assert!(hashed.status.success());
    assert!(std::fs::read_to_string(sshd.path("known_hosts")).unwrap().starts_with("|1|"));
    sshd.connector().connect(&access("test"), Role::Survey).unwrap();
}

#[test]
fn a_key_that_the_host_does_not_accept_is_named() {
    let sshd = Sshd::start();
    sshd.configure("other_key", "");
    let (kind, words) = refused(sshd.connector().connect(&access("test"), Role::Survey));
    assert_eq!(kind, FaultKind::Unusable);
    assert!(words.contains("other_key was refused") && words.contains("authorized_keys"), "{words}");
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let sshd = Sshd::start();
    set_mode(&sshd.path("client_key"), 0o644);
    let named = Access { key_file: Some(sshd.path("client_key")), ..access("test") };
    for access in [named, access("test")] {
        let (kind, words) = refused(sshd.connector().connect(&access, Role::Survey));
        assert_eq!(kind, FaultKind::Unusable);
        assert!(words.contains("can be read by others") && words.contains("chmod 600"), "{words}");
    }
}

#[test]
fn a_named_key_is_the_only_one_offered() {
    let sshd = Sshd::start();
    let named = |key: &str| Access { key_file: Some(sshd.path(key)), ..access("test") };
    let (_, words) = refused(sshd.connector().connect(&named("other_key"), Role::Survey));
    assert!(words.contains("other_key was refused"), "{words}");
    let (_, words) = refused(sshd.connector().connect(&named("missing"), Role::Survey));
    assert!(words.contains("missing is not there"), "{words}");
    sshd.configure("other_key", "");
    sshd.connector().connect(&named("client_key"), Role::Survey).unwrap();
}

#[test]
fn an_encrypted_key_needs_the_ssh_agent() {
    let sshd = Sshd::start();
    keygen(&sshd.path("locked_key"), "a passphrase");
    std::fs::copy(sshd.path("locked_key.pub"), sshd.path("authorized_keys")).unwrap();
    sshd.configure("locked_key", "");
    let (kind, words) = refused(sshd.connector().connect(&access("test"), Role::Survey));
    assert_eq!(kind, FaultKind::Unusable);
    assert!(words.contains("encrypted") && words.contains("ssh-add"), "{words}");

    let socket = sshd.path("agent.sock");
    let mut ssh_agent = Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket).spawn().expect("start ssh-agent");
    wait_until("ssh-agent listens", || socket.exists());
    std::fs::write(sshd.path("askpass"), "#!/bin/sh\necho a passphrase\n").unwrap();
    set_mode(&sshd.path("askpass"), 0o700);
    let added = Command::new("ssh-add")
        .arg(sshd.path("locked_key"))
        .env("SSH_AUTH_SOCK", &socket)
        .env("SSH_ASKPASS", sshd.path("askpass"))
        .env("SSH_ASKPASS_REQUIRE", "force")
        .output()
        .unwrap();
    assert!(added.status.success(), "{added:?}");
    sshd.configure("locked_key", &format!(" IdentityAgent {}\n", socket.display()));
    let result = sshd.connector().connect(&access("test"), Role::Survey).map(|_| ());
    drop(ssh_agent.kill());
    drop(ssh_agent.wait());
    result.unwrap();
}

#[test]
fn what_cannot_be_reached_is_named() {
    let sshd = Sshd::start();
    let connector = sshd.connector();
    let (kind, words) = refused(connector.connect(&access("root@host.invalid"), Role::Survey));
    assert!(matches!(kind, FaultKind::Unusable | FaultKind::Unreachable), "{kind:?}");
    assert!(words.contains("root@host.invalid"), "{words}");
    let (kind, words) = refused(connector.connect(&access("127.0.0.1:1"), Role::Survey));
    assert_eq!(kind, FaultKind::Unreachable);
    assert!(words.contains("refused") && words.contains("sshd"), "{words}");
}

#[test]
fn a_server_that_says_nothing_is_given_up() {
    let sshd = Sshd::start();
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("root@127.0.0.1:{}", mute.local_addr().unwrap().port());
    let start = Instant::now();
    let (kind, words) = refused(sshd.connector().connect(&access(&address), Role::Survey));
    assert_eq!(kind, FaultKind::TimedOut, "{words}");
    assert!(start.elapsed() < Duration::from_secs(25));
}

#[test]
fn another_machine_under_the_name_is_refused() {
    let sshd = Sshd::start();
    let planned = Access { machine_id: Some("0123".into()), ..access("test") };
    let (kind, words) = refused(sshd.connector().connect(&planned, Role::Survey));
    assert_eq!(kind, FaultKind::Unusable);
    assert!(words.contains("another machine"), "{words}");
}

#[test]
fn an_account_that_runs_nothing_is_named() {
    let sshd = Sshd::start_with("ForceCommand echo This account is not available; exit 1");
    let (kind, words) = refused(sshd.connector().connect(&access("test"), Role::Survey));
    assert_eq!(kind, FaultKind::Unusable);
    assert!(words.contains("This account is not available"), "{words}");
}

#[test]
fn an_agent_that_cannot_run_is_named_with_its_last_words() {
    let sshd = Sshd::start();
    let bad = sshd.path("bad-agent");
    std::fs::write(&bad, "#!/bin/sh\necho wrong architecture >&2\nexit 126\n").unwrap();
    set_mode(&bad, 0o700);
    for address in ["test", "local"] {
        let options = ConnectOptions { agent_binary: Some(bad.clone()), ..sshd.options() };
        let (kind, words) = refused(Connector::new(options).unwrap().connect(&access(address), Role::Survey));
        assert_eq!(kind, FaultKind::Unusable);
        assert!(words.contains("wrong architecture") && words.contains("126"), "{words}");
    }
}

#[test]
fn a_libvirt_that_is_not_there_is_waited_for_and_named() {
    let sshd = Sshd::start();
    let host = sshd.connector().connect(&access("test"), Role::Survey).unwrap();
    let start = Instant::now();
    let (kind, words) = refused(host.domains());
    assert_eq!(kind, FaultKind::LibvirtDown, "{words}");
    assert!((30..45).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    assert!(words.contains("systemctl start libvirtd"), "{words}");
    assert!(host.stat("/").unwrap().is_some(), "the agent lives");
}
