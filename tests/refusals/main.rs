//! What is refused after looking: hosts that cannot be used, VMs that cannot be cloned, destinations that cannot take
//! them, names that are taken. Each time: the right exit status, a message that names it, no transaction, and both hosts
//! exactly as they were.
#![allow(clippy::unwrap_used, clippy::format_collect, clippy::unused_self, missing_docs)]

#[path = "../lab/mod.rs"]
mod lab;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lab::{Content, Controller, Disk, Lab, Outside, Vm, staged_bytes};
use nix::sys::signal::Signal;

const MIB: u64 = 1 << 20;
const IMAGES: &str = "/var/lib/libvirt/images";
const BOUND: Duration = Duration::from_secs(120);

/// A lab with a VM `web` on host a, and how both hosts look.
struct Ground {
    lab: Lab,
    controller: Controller,
    before: (Outside, Outside),
}

impl Ground {
    fn new(prepare: impl FnOnce(&Lab)) -> Self {
        let lab = Lab::up();
        lab.a().define(&Vm::new("web").disk(Disk::raw(8 * MIB).content(Content::Random)));
        prepare(&lab);
        let before = lab.outside();
        Self { controller: lab.controller(), lab, before }
    }

    /// Runs the program: it exits so, says these words to people and its status to programs, and begins nothing.
    #[track_caller]
    fn refuses(&self, words: &[&str], exit: i32, says: &[&str]) {
        refuses_by(&self.controller, words, exit, says);
    }

    /// After all that, both hosts are exactly as they were.
    #[track_caller]
    fn is_untouched(&self) {
        let (a, b) = self.lab.outside();
        self.before.0.assert_same(&a, "after all refusals");
        self.before.1.assert_same(&b, "after all refusals");
    }
}

/// Runs the program of a controller whose surroundings are odd, likewise.
#[track_caller]
fn refuses_by(controller: &Controller, words: &[&str], exit: i32, says: &[&str]) {
    let said = controller.run(words.iter().chain(&["--json"])).expect(exit);
    for words in [&["error: "], says] {
        assert!(words.iter().all(|word| said.stderr.contains(word)), "{words:?} are not in\n{}", said.stderr);
    }
    assert_eq!(said.json()["error"]["exit_status"], exit, "{}", said.stdout);
    assert!(!controller.state_dir().join("txn").exists(), "{words:?}: a transaction was begun");
}

/// A file of the lab's own directory with this content, that only its owner may read.
fn private_file(lab: &Lab, name: &str, content: &[u8]) -> PathBuf {
    let path = lab.directory().join(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// A key pair that no host knows.
fn new_key(lab: &Lab, name: &str) -> PathBuf {
    let path = lab.directory().join(name);
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path).status();
    assert!(made.unwrap().success());
    path
}

/// The lab's ssh configuration with another file of known hosts.
fn with_known_hosts(lab: &Lab, name: &str, known_hosts: &str) -> PathBuf {
    let file = private_file(lab, &format!("{name}_known_hosts"), known_hosts.as_bytes());
    let config = fs::read_to_string(lab.ssh_config()).unwrap();
    let config = config.replace(&lab.known_hosts().display().to_string(), &file.display().to_string());
    private_file(lab, &format!("{name}_ssh_config"), config.as_bytes())
}

#[test]
fn hosts_that_cannot_be_used() {
    let ground = Ground::new(|_| ());
    let lab = &ground.lab;
    ground.refuses(&["run", "a", "nosuch.invalid", "web"], 5, &["nosuch.invalid"]);
    ground.refuses(&["run", "nosuch.invalid", "b", "web"], 5, &["nosuch.invalid"]);
    ground.refuses(&["run", "a", "root@127.0.0.1:1", "web"], 5, &["127.0.0.1:1", "refused"]);
    ground.refuses(&["run", "viewer@a", "b", "web"], 5, &["viewer@a", "root", "sudo"]);
    // Who is nobody to libvirt, but root by `sudo -n`, may look as well.
    ground.controller.run(["vms", "operator@a"]).expect(0).says(&["web"]);
    let nobody = ground.controller.run(["vms", "nosuch.invalid"]).expect(5);
    assert_eq!(nobody.stdout, "", "a host that was not asked is not said to have no VMs");

    let changed = new_key(lab, "another_host_key").with_extension("pub");
    let changed: Vec<String> = fs::read_to_string(changed).unwrap().split(' ').take(2).map(str::to_owned).collect();
    let known = fs::read_to_string(lab.known_hosts()).unwrap();
    let hosts = known.lines().filter_map(|line| line.split(' ').next());
    let changed: Vec<_> = hosts.map(|host| format!("{host} {} {}\n", changed[0], changed[1].trim())).collect();
    let changed = lab.controller().ssh_config(&with_known_hosts(lab, "changed", &changed.concat()));
    refuses_by(&changed, &["run", "a", "b", "web"], 5, &["a:", "HAS CHANGED", "changed_known_hosts line 1"]);
    let unknown = lab.controller().ssh_config(&with_known_hosts(lab, "unknown", ""));
    refuses_by(&unknown, &["run", "a", "b", "web"], 5, &["a:", "key"]);

    let no_agent = lab.controller().env("KVM_CLONE_AGENT", "/nonexistent/agent");
    refuses_by(&no_agent, &["run", "a", "b", "web"], 5, &["/nonexistent/agent"]);
    ground.is_untouched();
}

#[test]
fn keys_that_cannot_be_used() {
    let ground = Ground::new(|_| ());
    let lab = &ground.lab;
    // Without the configuration's own key, so that only the named one is tried.
    let config = fs::read_to_string(lab.ssh_config()).unwrap();
    let config = config.lines().filter(|line| !line.contains("IdentityFile")).collect::<Vec<_>>().join("\n");
    let config = private_file(lab, "no_key_ssh_config", config.as_bytes());
    let controller = lab.controller().ssh_config(&config);
    let refuses = |key: &Path, says: &[&str]| {
        let key = key.display().to_string();
        refuses_by(&controller, &["run", "a", "b", "web", "--ssh-key", &key], 5, says);
    };
    refuses(&new_key(lab, "stranger"), &["a:", "stranger"]);
    refuses(Path::new("/nonexistent/key"), &["/nonexistent/key"]);
    refuses(&private_file(lab, "no_key", b"not a key"), &["no_key", "no private key"]);
    refuses(&new_key(lab, "halves").with_extension("pub"), &["halves.pub", "public key"]);
    let readable = private_file(lab, "readable", &fs::read(lab.client_key()).unwrap());
    fs::set_permissions(&readable, fs::Permissions::from_mode(0o644)).unwrap();
    refuses(&readable, &["readable", "chmod 600"]);
    ground.is_untouched();
}

#[test]
fn vms_that_cannot_be_cloned() {
    let ground = Ground::new(|lab| {
        let a = lab.a();
        a.define(&Vm::new("gone").disk(Disk::raw(MIB)));
        fs::remove_file(a.path(format!("{IMAGES}/gone-0.raw"))).unwrap();
        a.define(&Vm::new("odd").disk(Disk::raw(MIB)));
        fs::remove_file(a.path(format!("{IMAGES}/odd-0.raw"))).unwrap();
        fs::create_dir(a.path(format!("{IMAGES}/odd-0.raw"))).unwrap();
        a.define(&Vm::new("on").disk(Disk::raw(MIB)));
        a.virsh(["start", "on"]);
        let secret = "<encryption secret='6a1f3f0e-0d5d-4b55-9c1d-000000000001'/>";
        let tpm = format!("<tpm model='tpm-crb'><backend type='emulator' version='2.0'>{secret}</backend></tpm>");
        a.define(&Vm::new("tpm").disk(Disk::raw(MIB)).device(&tpm));
    });
    ground.refuses(&["run", "a", "b", "nosuch"], 5, &["a:", "no VM nosuch", "web"]);
    ground.refuses(
        &["run", "a", "b", "6a1f3f0e-0d5d-4b55-9c1d-0123456789ab"],
        5,
        &["6a1f3f0e-0d5d-4b55-9c1d-0123456789ab"],
    );
    ground.refuses(&["run", "a", "b", "gone"], 5, &["gone-0.raw"]);
    ground.refuses(&["run", "a", "b", "odd"], 5, &["odd-0.raw"]);
    ground.refuses(&["run", "a", "b", "on"], 5, &["VM on is running", "virsh shutdown on"]);
    ground.refuses(&["run", "a", "b", "tpm"], 5, &["an encrypted TPM"]);
    ground.is_untouched();
    ground.lab.a().virsh(["destroy", "on"]);
}

#[test]
fn destinations_that_cannot_take_the_clone() {
    let ground = Ground::new(|lab| {
        let b = lab.b();
        b.define(&Vm::new("web_clone").disk(Disk::raw(MIB)));
        fs::create_dir_all(b.path("/srv/small")).unwrap();
        b.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", "/srv/small"]);
        fs::create_dir_all(b.path("/var/lib/libvirt/qemu/nvram")).unwrap();
        fs::write(b.path("/var/lib/libvirt/qemu/nvram/stale_VARS.fd"), b"stale").unwrap();
    });
    let run = |words: &[&'static str]| [&["run", "a", "b", "web"], words].concat();
    ground.refuses(&run(&[]), 5, &["b:", "web_clone", "--new-name"]);
    ground.refuses(&run(&["--new-name", "stale"]), 5, &["stale_VARS.fd"]);
    ground.refuses(&run(&["--new-name", "c", "--pool", "nosuch"]), 5, &["b:", "pool nosuch"]);
    ground.refuses(&run(&["--new-name", "c", "--directory", "/srv/nosuch"]), 5, &["b:", "/srv/nosuch"]);
    ground.refuses(
        &run(&["--new-name", "c", "--directory", "/srv/small"]),
        5,
        &[
            "Insufficient disk space on b (/srv/small). Required: 0.01 GB (including 15% safety margin), Available:",
            "free up",
        ],
    );
    ground.refuses(&run(&["--new-name", "c", "--network-map", "default=nosuch"]), 5, &["b:", "nosuch"]);
    // All at once, not one a run.
    ground.refuses(
        &run(&["--directory", "/srv/nosuch", "--network-map", "default=nonet"]),
        5,
        &["3 things", "web_clone", "/srv/nosuch", "nonet"],
    );
    ground.is_untouched();
    ground.lab.b().run(["umount", "/srv/small"]);
}

#[test]
fn what_only_the_hosts_themselves_can_say() {
    const OLD: &str = "web_old.qcow2";
    let ground = Ground::new(|lab| {
        let (a, b) = (lab.a(), lab.b());
        // A table that leads nowhere: the first entry of the first level, behind header and refcounts.
        a.define(&Vm::new("torn").disk(Disk::qcow2(MIB).at(&format!("{IMAGES}/{OLD}"))));
        let image = a.path(format!("{IMAGES}/{OLD}"));
        let mut bytes = fs::read(&image).unwrap();
        let table = usize::try_from(u64::from_be_bytes(bytes[40..48].try_into().unwrap())).unwrap();
        bytes[table..table + 8].copy_from_slice(&(0x8000_0000_0000_0000_u64 | 0x1234).to_be_bytes());
        fs::write(&image, bytes).unwrap();
        let cpu =
            "<cpu mode='custom' match='exact' check='partial'><model fallback='forbid'>Skylake-Server</model></cpu>";
        a.define(&Vm::new("modern").disk(Disk::raw(MIB)).element(cpu));
        fs::create_dir_all(b.path("/srv/kept")).unwrap();
        b.run(["chattr", "+i", "/srv/kept"]);
    });
    ground.refuses(&["run", "a", "b", "torn"], 5, &["a:", "disk vda", OLD, "qemu-img check", "-r all"]);
    ground.refuses(&["run", "a", "b", "modern"], 5, &["b:", "CPU cannot be had", "avx512"]);
    ground.refuses(&["run", "a", "b", "web", "--directory", "/srv/kept"], 5, &["b:", "cannot write to /srv/kept"]);

    // The same, and all at once, as `plan` says it.
    let words = ["plan", "a", "b", "torn", "--directory", "/srv/kept", "--network-map", "default=nonet"];
    let planned = ground.controller.run(words.iter().chain(&["--json"])).expect(5).json();
    let kinds: Vec<_> = planned["blockers"].as_array().unwrap().iter().map(|one| one["kind"].clone()).collect();
    assert_eq!(kinds, ["disk_tables", "not_writable", "network_missing"]);
    assert_eq!(planned["plan"], serde_json::Value::Null);
    let told = ground.controller.run(words).expect(5);
    told.says(&["PREFLIGHT", "blocker    a", "blocker    b", "nonet", "Nothing was touched."]);
    ground.is_untouched();
    ground.lab.b().run(["chattr", "-i", "/srv/kept"]);
}

#[test]
fn the_source_itself_under_whatever_name_of_its_host() {
    let ground = Ground::new(|_| ());
    let uuid = ground.lab.a().virsh(["domuuid", "web"]);
    ground.refuses(&["run", "a", "root@a", "web", "--new-name", "web"], 5, &["web"]);
    ground.refuses(&["run", "a", "a", uuid.trim(), "--new-name", "web"], 5, &["web"]);
    ground.refuses(&["run", "a", "a", "web", "--new-name", "web"], 2, &["source itself"]);
    ground.is_untouched();
}

#[test]
fn a_name_that_an_unfinished_clone_has_reserved_and_a_transaction_that_is_driven() {
    let ground = Ground::new(|_| ());
    let (lab, controller) = (&ground.lab, &ground.controller);
    let words = ["run", "a", "b", "web", "--bandwidth-limit", "400K"];
    let mut running = controller.spawn(words);
    running.wait_until(BOUND, "something is staged", || staged_bytes(lab.b(), IMAGES) > 0);
    let txn = controller.only_txn();
    assert_eq!(controller.status(&txn), "running");
    for command in ["resume", "rollback"] {
        controller.run([command, &txn]).expect(7).says(&["held by process", &running.pid().to_string()]);
    }
    controller.run(["recover", "--resume-all"]).expect(7);

    // Impatience makes nothing worse.
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGINT] {
        running.signal(signal);
    }
    let commands = [format!("kvm-clone resume {txn}"), format!("kvm-clone rollback {txn}")];
    running.wait_for(Duration::from_secs(30)).expect(3).says(&["suspended", &commands[0], &commands[1]]);
    assert_eq!(controller.status(&txn), "interrupted");

    controller.run(words).expect(5).says(&["web_clone", &txn, "resume", "rollback"]);
    lab.controller().run(words).expect(7).says(&["web_clone"]);
    assert_eq!(controller.list().len(), 1);

    controller.run(["rollback", &txn]).expect(0).says(&["rolled back"]);
    ground.is_untouched();
}
