//! What is refused, between two real hosts: each time the exit status, a message with what, where, why and what to do,
//! and nothing touched on either host. Journals that are damaged or newer, and bad usage, are in tests/cli.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../lab/mod.rs"]
mod lab;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lab::{Content, Controller, Disk, Lab, Vm, staged_bytes};

/// Refused after looking, nothing touched.
const REFUSED: i32 = 5;
/// Wrong usage or input, no host contacted.
const USAGE: i32 = 2;
/// Held by another controller or process.
const HELD: i32 = 7;

struct Ground {
    lab: Lab,
    controller: Controller,
}

impl Ground {
    fn new() -> Self {
        let lab = Lab::up();
        lab.a().define(&Vm::new("web").disk(Disk::raw(2 << 20)));
        let controller = lab.controller();
        Self { lab, controller }
    }

    /// Refused with this status and these words; nothing changed anywhere, and no transaction was made.
    #[track_caller]
    fn refuses(&self, arguments: &[&str], code: i32, words: &[&str]) {
        self.refuses_for(&self.controller, arguments, code, words);
    }

    #[track_caller]
    fn refuses_for(&self, controller: &Controller, arguments: &[&str], code: i32, words: &[&str]) {
        let before = self.lab.outside();
        let finished = controller.run(arguments).expect(code).says(words);
        let advises = ["hint:", "Please free up"].iter().any(|words| finished.stderr.contains(words));
        assert!(advises, "{arguments:?} does not say what to do:\n{}", finished.stderr);
        println!("{arguments:?}: {}", finished.stderr.trim());
        let after = self.lab.outside();
        before.0.assert_same(&after.0, &format!("{arguments:?}"));
        before.1.assert_same(&after.1, &format!("{arguments:?}"));
        assert_eq!(controller.list().len(), 0, "{arguments:?} made a transaction");
    }
}

#[test]
fn names_that_cannot_be() {
    let ground = Ground::new();
    let long = "x".repeat(300);
    for name in ["a/b", ".", "..", "a\nb", "a\u{7}b", "", long.as_str()] {
        ground.refuses(&["run", "a", "b", "web", "--new-name", name], USAGE, &["name"]);
    }
}

#[test]
fn virtual_machines_that_cannot_be_cloned() {
    let ground = Ground::new();
    let (a, b) = (ground.lab.a(), ground.lab.b());
    ground.refuses(&["run", "a", "b", "nosuch"], REFUSED, &["nosuch", "a"]);
    ground.refuses(&["run", "a", "a", "web", "--new-name", "web"], USAGE, &["web"]);

    b.define(&Vm::new("taken"));
    ground.refuses(&["run", "a", "b", "web", "--new-name", "taken"], REFUSED, &["taken", "b"]);

    a.define(&Vm::new("running").disk(Disk::raw(1 << 20)));
    a.virsh(["start", "running"]);
    ground.refuses(&["run", "a", "b", "running"], REFUSED, &["running", "shut"]);
    a.virsh(["destroy", "running"]);

    let lost = Vm::new("lost").disk(Disk::raw(1 << 20));
    a.define(&lost);
    std::fs::remove_file(a.path(lost.disks()[0].path())).unwrap();
    ground.refuses(&["run", "a", "b", "lost"], REFUSED, &[lost.disks()[0].path(), "a"]);

    let nvram = b.path("/var/lib/libvirt/qemu/nvram");
    std::fs::create_dir_all(&nvram).unwrap();
    std::fs::write(nvram.join("web_clone_VARS.fd"), b"stale").unwrap();
    ground.refuses(&["run", "a", "b", "web"], REFUSED, &["web_clone_VARS.fd", "b"]);
}

#[test]
fn places_that_cannot_take_it() {
    let ground = Ground::new();
    let b = ground.lab.b();
    ground.refuses(&["run", "a", "b", "web", "--pool", "nosuch"], REFUSED, &["nosuch", "b"]);
    ground.refuses(&["run", "a", "b", "web", "--directory", "/srv/nosuch"], REFUSED, &["/srv/nosuch", "b"]);
    b.run(["mkdir", "/srv/small"]);
    b.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/srv/small"]);
    let words = ["Insufficient disk space on b (/srv/small)", "15% safety margin", "Please free up at least"];
    ground.refuses(&["run", "a", "b", "web", "--directory", "/srv/small"], REFUSED, &words);
    b.run(["umount", "/srv/small"]);
}

#[test]
fn hosts_that_cannot_be_trusted_or_reached() {
    let ground = Ground::new();
    let directory = ground.lab.directory();
    ground.refuses(&["run", "nosuch.invalid", "b", "web"], REFUSED, &["nosuch.invalid"]);

    let key = directory.join("other_key");
    make_key(&key);
    let named = key.to_str().unwrap();
    ground.refuses(&["run", "a", "b", "web", "--ssh-key", named], REFUSED, &["a", "other_key"]);
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).unwrap();
    ground.refuses(&["run", "a", "b", "web", "--ssh-key", named], REFUSED, &["other_key", "chmod 600"]);

    // Every host now claims to have the new key.
    let public = std::fs::read_to_string(key.with_extension("pub")).unwrap();
    let public: Vec<_> = public.split_whitespace().take(2).collect();
    let known = std::fs::read_to_string(ground.lab.known_hosts()).unwrap();
    let forged: String = known
        .lines()
        .map(|line| format!("{} {}\n", line.split_whitespace().next().unwrap_or_default(), public.join(" ")))
        .collect();
    let with_known_hosts = |name: &str, content: &str| {
        let file = directory.join(name);
        std::fs::write(&file, content).unwrap();
        let config = std::fs::read_to_string(ground.lab.ssh_config()).unwrap();
        let config = config.replace(ground.lab.known_hosts().to_str().unwrap(), file.to_str().unwrap());
        let path = directory.join(format!("{name}_config"));
        std::fs::write(&path, config).unwrap();
        ground.lab.controller().ssh_config(&path)
    };
    let changed = with_known_hosts("changed", &forged);
    ground.refuses_for(&changed, &["run", "a", "b", "web"], REFUSED, &["KEY HAS CHANGED", "a", "ssh-keygen -R"]);
    let unknown = with_known_hosts("empty", "");
    ground.refuses_for(&unknown, &["run", "a", "b", "web"], REFUSED, &["key", "a", "SHA256:"]);
}

fn make_key(path: &Path) {
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path).status();
    assert!(made.unwrap().success());
}

#[test]
fn a_second_process_on_the_same_transaction_or_name() {
    let ground = Ground::new();
    let lab = &ground.lab;
    lab.a().define(&Vm::new("large").disk(Disk::raw(64 << 20).content(Content::Random)));
    let mut first = ground.controller.spawn(["run", "a", "b", "large", "--bandwidth-limit", "4M"]);
    first.wait_until(Duration::from_secs(60), "some is staged", || {
        staged_bytes(lab.b(), "/var/lib/libvirt/images") >= 1 << 20
    });
    let txn = ground.controller.only_txn();
    assert_eq!(ground.controller.status(&txn), "running");
    let pid = first.pid().to_string();
    for command in ["resume", "rollback"] {
        ground.controller.run([command, &txn]).expect(HELD).says(&[&pid, "hint:"]);
    }
    // Another controller, another transaction, the same name: the claim says whose it is.
    lab.controller().run(["run", "a", "b", "web", "--new-name", "large_clone"]).expect(HELD).says(&[&txn]);
    // The same controller: exit 5, with what to do.
    let second = ground.controller.run(["run", "a", "b", "web", "--new-name", "large_clone"]).expect(REFUSED);
    second.says(&[&txn, "resume", "rollback"]);
    first.kill();
    ground.controller.run(["rollback", &txn]).expect(0);
}
