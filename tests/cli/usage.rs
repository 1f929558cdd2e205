//! What was typed cannot be meant: exit 2, nothing touched, and words that help.

use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::program::{Program, said};
use crate::transactions::Transaction;

const HOSTS: [&str; 3] = ["run", "kvm1.invalid", "kvm2.invalid"];

#[test]
fn wrong_usage_exits_2_and_makes_no_state_directory() {
    let program = Program::new();
    for (words, part) in [
        (vec![], "Usage:"),
        (vec!["frobnicate"], "frobnicate"),
        (vec!["run", "a", "b"], "<VM>"),
        (vec!["run", "a", "b", "c", "--keep-replaced"], "--idempotent"),
        (vec!["run", "a", "b", "c", "d", "c"], "named twice"),
        (vec!["run", "a", "b", "c", "d", "--new-name", "e"], "--new-name"),
        (vec!["run", "a", "b", "--all", "--new-name", "e"], "--new-name"),
        (vec!["run", "a", "b", "c", "--all"], "--all"),
        (vec!["run", "a", "b", "c", "--match", "c*"], "--match"),
        (vec!["run", "a", "a", "--all"], "one host"),
        (vec!["run", "a", "b", "c", "d", "--parallel-vms", "17"], "--parallel-vms"),
        (vec!["run", "a", "b", "c", "d", "--parallel-vms", "0"], "--parallel-vms"),
        (vec!["run", "a", "b", "c", "--force", "--stop", "gently"], "gently"),
        (vec!["run", "a", "b", "c", "--drop", "everything"], "managed-save"),
        (vec!["run", "a", "b", "c", "--compress"], "--compress"),
        (vec!["run", "a", "b", "c", "--timeout", "0"], "--timeout"),
        (vec!["run", "a", "b", "c", "--pool", "p", "--directory", "/d"], "--pool"),
        (vec!["recover", "--resume-all", "--rollback-all"], "--rollback-all"),
        (vec!["list", "-q", "-v"], "--verbose"),
        (vec!["prune", "--older-than", "30"], "30d"),
        (vec!["prune", "--keep", "some"], "--keep"),
        (vec!["verify"], "<TXN>"),
        (vec!["vms"], "<HOST>"),
        (vec!["resume"], "<TXN>"),
    ] {
        program.run(&words).exits(2).holds(&[part]);
    }
    assert!(!program.state().exists());
}

#[test]
fn bad_names_and_amounts_are_refused_before_any_host_is_asked() {
    let program = Program::new();
    let long = "x".repeat(300);
    for (words, part) in [
        (vec!["a/b"], "a/b"),
        (vec!["."], "\".\""),
        (vec![".."], "\"..\""),
        (vec![""], "VM"),
        (vec!["web\u{1b}[2J01"], "control character"),
        (vec!["web01", "--new-name", "a/b"], "a/b"),
        (vec!["web01", "--new-name", ".."], ".."),
        (vec!["web01", "--new-name", "a\nb"], "a\\nb"),
        (vec!["web01", "--new-name", &long], "bytes"),
        (vec!["web01", "--bandwidth-limit", "fast"], "\"fast\""),
        (vec!["web01", "--chunk-size", "3M"], "\"3M\""),
        (vec!["web01", "--network-map", "a"], "A=B"),
        (vec!["web01", "--network-map", "a=b", "--network-map", "a=c"], "twice"),
        (vec!["web01", "--disk-map", "vda"], "TARGET="),
        (vec!["web01", "--disk-map", "vda=p/a", "--disk-map", "vda=p/b"], "twice"),
        (vec!["web01", "--disk-map", "vda=p/a", "--disk-map", "vdb=p/a"], "vda and vdb"),
        (vec!["web01", "web02", "--disk-map", "vda=p/a"], "several VMs"),
        (vec!["web01", "--disk-map", "vda=/dev/sdx"], "add --overwrite-device /dev/sdx"),
        (vec!["web01", "--disk-map", "vda=p/a", "--overwrite-device", "/dev/sdx"], "no disk goes there"),
        (vec!["web01", "--directory", "/dev"], "holds devices"),
        (vec!["web01", "--directory", "relative"], "absolute"),
        (vec!["web01", "--pool", ""], "pool"),
    ] {
        let words = [&HOSTS[..], &words].concat();
        let said = program.run(&words);
        said.exits(2).holds(&["error: ", part]);
        assert!(!said.stderr.contains('\u{1b}'), "an escape sequence reached the terminal: {:?}", said.stderr);
        let (exit, value) = program.json(&words);
        assert_eq!((exit, value["error"]["exit_status"].as_u64()), (2, Some(2)), "{value}");
    }
    assert!(!program.state().exists());
}

#[test]
fn bad_host_addresses_are_refused() {
    let program = Program::new();
    for address in ["", "user@", "host:99999", "2001:db8::1", "-oProxyCommand=x", "a b"] {
        // Behind `--`, so that a leading hyphen is not taken for an option.
        program.run(&["run", "--", address, "kvm2.invalid", "web01"]).exits(2).holds(&["error: ", "host address"]);
        program.run(&["vms", "--", address]).exits(2).holds(&["error: ", "host address"]);
    }
}

#[test]
fn the_source_cannot_be_its_own_clone() {
    let program = Program::new();
    program
        .run(&["run", "kvm1", "kvm1", "web01", "--new-name", "web01"])
        .exits(2)
        .holds(&["source itself", "--new-name"]);
}

#[test]
fn usage_errors_are_json_where_json_was_asked_for() {
    let program = Program::new();
    for words in [vec!["run", "a"], vec!["frobnicate"], vec!["show", "zz"], vec!["resume", "ffff"]] {
        let (exit, value) = program.json(&words);
        assert_eq!(exit, 2, "{value}");
        assert_eq!(value["error"]["exit_status"], 2);
        assert!(value["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{value}");
    }
}

#[test]
fn a_transaction_is_named_by_a_unique_beginning_or_end() {
    let program = Program::new();
    for tail in ["aaaa1111", "bbbb1111"] {
        Transaction::begin(&program.state(), tail);
    }
    for command in ["show", "resume", "rollback"] {
        program.run(&[command, "cccc"]).exits(2).holds(&["no transaction cccc", "kvm-clone list"]);
        program.run(&[command, "1111"]).exits(2).holds(&["aaaa1111", "bbbb1111", "more digits"]);
        program.run(&[command, "018bcfe5"]).exits(2).holds(&["more digits"]);
        program.run(&[command, "web01"]).exits(2).holds(&["not a transaction"]);
    }
    program.run(&["show", "AAAA1111"]).exits(0).holds(&["018bcfe5-6800-7000-8000-0000aaaa1111"]);
    program.run(&["show", "018bcfe5-6800-7000-8000-0000bbbb"]).exits(0).holds(&["0000bbbb1111"]);
}

#[test]
fn the_state_directory_comes_from_the_option_else_the_environment_else_the_users_place() {
    let program = Program::new();
    let elsewhere = program.scratch().join("elsewhere");
    let list = |command: &mut std::process::Command| said(&command.arg("list").output().unwrap());
    list(program.command().env("KVM_CLONE_STATE_DIR", &elsewhere)).exits(0).holds(&["elsewhere"]);
    list(program.command().arg("--state-dir").arg(program.state()).env("KVM_CLONE_STATE_DIR", &elsewhere))
        .exits(0)
        .holds(&["/state, which"]);
    let expected = if nix::unistd::geteuid().is_root() { "/var/lib/kvm-clone" } else { "xdg/kvm-clone" };
    list(&mut program.command()).exits(0).holds(&[expected]);
}

#[test]
fn a_state_directory_that_is_a_file_is_refused() {
    let program = Program::new();
    std::fs::write(program.state(), b"").unwrap();
    for words in [&["list"][..], &["recover"], &["run", "kvm1", "kvm2", "web01"]] {
        program.run(words).exits(2).holds(&["is not a directory", "--state-dir"]);
    }
}

/// A closed terminal or a lost ssh session suspends like Ctrl-C; under `nohup` it means nothing.
#[test]
fn a_hangup_is_an_interruption_unless_it_is_ignored() {
    const BOUND: Duration = Duration::from_secs(10);
    for (disposition, signal) in [("--default-signal=HUP", Signal::SIGHUP), ("--ignore-signal=HUP", Signal::SIGTERM)] {
        let program = Program::new();
        // It takes the connection and never speaks.
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = format!("root@127.0.0.1:{}", silent.local_addr().unwrap().port());
        let plain = program.command();
        let mut command = Command::new("env");
        command.arg(disposition).arg(plain.get_program()).arg("--state-dir").arg(program.state());
        command.args(["run", &host, "kvm2.invalid", "web01"]);
        command.env("HOME", program.scratch()).env("KVM_CLONE_AGENT", "/bin/true");
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Signals are caught before anybody is connected to.
        let connection = silent.accept().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        let caught = u64::from_str_radix(caught.trim(), 16).unwrap() & 1 == 1;
        assert_eq!(caught, signal == Signal::SIGHUP, "{disposition}");
        let began = Instant::now();
        nix::sys::signal::kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
        let ended = said(&child.wait_with_output().unwrap());
        ended.exits(5).holds(&["interrupted; nothing was touched"]);
        assert!(began.elapsed() < BOUND, "it waited for the host");
        drop(connection);
    }
}

#[test]
fn help_names_every_command_and_exit_status_and_no_option_that_does_nothing() {
    let program = Program::new();
    let help = program.run(&["--help"]);
    help.exits(0).holds(&[
        "run",
        "clone",
        "plan",
        "resume",
        "rollback",
        "recover",
        "list",
        "show",
        "prune",
        "verify",
        "vms",
        "journal",
        "--state-dir",
        "--json",
        "0 done",
        "7 held",
        "KVM_CLONE_STATE_DIR",
    ]);
    let run = program.run(&["run", "--help"]);
    run.exits(0).holds(&[
        "<SRC> <DST> <VM>...",
        "--all",
        "--match",
        "--parallel-vms",
        "--new-name",
        "--dry-run",
        "--start",
        "--preserve-mac",
        "--network-map",
        "--pool",
        "--directory",
        "--disk-map",
        "--bandwidth-limit",
        "--no-verify",
        "--prealloc",
        "--chunk-size",
        "--ssh-key",
        "--timeout",
        "--force",
        "--idempotent",
        "--stop",
        "--keep-replaced",
        "--preserve-uuid",
    ]);
    for later in ["--compress", "--parallel <"] {
        assert!(!run.stdout.contains(later), "{later} is promised");
    }
    program.run(&["plan", "--help"]).exits(0).holds(&["<SRC> <DST> <VM>", "--network-map", "touch nothing"]);
    assert_eq!(program.run(&["clone", "--help"]).stdout.lines().next(), run.stdout.lines().next());
    program.run(&["--version"]).exits(0).holds(&["kvm-clone 0."]);
}
