//! An sshd of the test's own: own keys, own port on loopback, own files; and the worlds that go through it.

use std::fs::Permissions;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use journal_format::{Inode, TxnId, UnixMillis};
use kvm_clone::host::{Access, ConnectOptions, Connector, Interrupt, Overrides, RealWorld};
use kvm_clone::world::{FaultKind, Host, OwnerLock, Side, World};

/// A program that takes longer to come up is a failure of the test.
const UP_SECONDS_MAX: u64 = 20;

pub struct Sshd {
    directory: tempfile::TempDir,
    port: u16,
    child: Child,
}

impl Sshd {
    /// With a host key that is known, and a client key that is accepted.
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// With more lines in its configuration.
    pub fn start_with(more: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "tests with hosts need root");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        // sshd wants its own directory, though nothing is ever put there.
        std::fs::create_dir_all("/run/sshd").unwrap();
        for name in ["host_key", "client_key", "other_key"] {
            keygen(&path.join(name), "");
        }
        std::fs::copy(path.join("client_key.pub"), path.join("authorized_keys")).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let shown = path.display();
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {shown}/host_key\nAuthorizedKeysFile {shown}/authorized_keys\n\
             PidFile none\nUsePAM no\nStrictModes no\nPermitRootLogin yes\nPasswordAuthentication no\n{more}\n"
        );
        std::fs::write(path.join("sshd_config"), config).unwrap();
        let child = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(path.join("sshd_config"))
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(path.join("sshd.log")).unwrap())
            .spawn()
            .expect("start sshd");
        let sshd = Self { directory, port, child };
        wait_until("sshd listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        sshd.know("host_key");
        sshd.configure("client_key", "");
        sshd
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Makes one of the keys the one that the host is known by.
    pub fn know(&self, key: &str) {
        let public = std::fs::read_to_string(self.path(&format!("{key}.pub"))).unwrap();
        std::fs::write(self.path("known_hosts"), format!("[127.0.0.1]:{} {public}", self.port)).unwrap();
    }

    /// Writes the ssh configuration: the alias `test` with that key.
    pub fn configure(&self, key: &str, more: &str) {
        let shown = self.directory.path().display();
        let config = format!(
            "Host test\n HostName 127.0.0.1\n Port {}\n User root\n IdentityFile {shown}/{key}\n \
             UserKnownHostsFile {shown}/known_hosts\n GlobalKnownHostsFile none\n{more}\nHost *\n IdentityAgent none\n",
            self.port
        );
        std::fs::write(self.path("ssh_config"), config).unwrap();
    }

    pub fn options(&self) -> ConnectOptions {
        ConnectOptions {
            ssh_config_file: Some(self.path("ssh_config")),
            agent_binary: Some(agent()),
            overrides: Overrides {
                libvirt_socket: Some(self.path("no-libvirt").display().to_string()),
                host_record_root: Some(self.path("records").display().to_string()),
            },
            ..ConnectOptions::default()
        }
    }

    pub fn connector(&self) -> Connector {
        Connector::new(self.options()).unwrap()
    }

    /// From this machine to the sshd, connected, the destination with its owner lock and leave to change what is below
    /// [`Pair::scratch`].
    pub fn pair(&self) -> Pair {
        Pair::new(self, Side::Destination)
    }

    /// From the sshd to this machine.
    pub fn pair_back(&self) -> Pair {
        Pair::new(self, Side::Source)
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Two connected sides, one of them through ssh.
pub struct Pair {
    pub world: RealWorld,
    pub source: Rc<dyn Host>,
    pub destination: Rc<dyn Host>,
    pub interrupt: Interrupt,
    scratch: PathBuf,
}

impl Pair {
    fn new(sshd: &Sshd, through_ssh: Side) -> Self {
        let options = sshd.options();
        let interrupt = options.interrupt.clone();
        let records = sshd.path("records");
        let txn = TxnId::new(UnixMillis(1), [7; 10]);
        let access = |side| access(if side == through_ssh { "test" } else { "local" });
        let connector = Connector::new(options).unwrap();
        let world = RealWorld::new(connector, access(Side::Source), access(Side::Destination), Some(txn));
        let scratch = sshd.path("scratch");
        std::fs::create_dir_all(&scratch).unwrap();
        std::fs::create_dir_all(records.join("names")).unwrap();
        let source = world.connect(Side::Source).unwrap();
        let destination = world.connect(Side::Destination).unwrap();
        destination.allow(&[format!("{}/", scratch.display())]).unwrap();
        let new = records.join(format!(".new-{txn}")).display().to_string();
        destination.make_dir(&new, 0o700).unwrap();
        let owner = format!("{new}/owner");
        let inode = destination.make_file(&owner, 0o600, &[0; 8192]).unwrap();
        assert_eq!(destination.lock_owner(&owner).unwrap(), OwnerLock::Held { inode });
        destination.rename(&new, &records.join(txn.to_string()).display().to_string()).unwrap();
        Self { world, source, destination, interrupt, scratch }
    }

    /// A path that both sides may use, the destination to write.
    pub fn scratch(&self, name: &str) -> String {
        self.scratch.join(name).display().to_string()
    }

    /// An empty staged image.
    pub fn stage(&self, name: &str, size: u64) -> Inode {
        let path = self.scratch(name);
        let inode = self.destination.make_file(&path, 0o600, b"").unwrap();
        self.destination.set_size(&path, inode, size, false).unwrap();
        inode
    }
}

pub fn access(address: &str) -> Access {
    Access::new(address.parse().unwrap(), None)
}

/// The kind and the words of an error.
pub fn refused<T>(result: Result<T, kvm_clone::world::Fault>) -> (FaultKind, String) {
    let fault = result.err().expect("this must be refused");
    (fault.kind, fault.to_string())
}

pub fn keygen(path: &Path, passphrase: &str) {
    let status = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", passphrase, "-C", "of-a-test", "-f"])
        .arg(path)
        .status()
        .expect("run ssh-keygen");
    assert!(status.success());
}

pub fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

pub fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(UP_SECONDS_MAX), "not within {UP_SECONDS_MAX} s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The agent that is tested: the one beside the program.
pub fn agent() -> PathBuf {
    let agent = std::env::var_os("KVM_CLONE_AGENT")
        .map_or_else(|| Path::new(env!("CARGO_BIN_EXE_kvm-clone")).with_file_name("kvm-clone-agent"), PathBuf::from);
    assert!(agent.is_file(), "{} is not there: `cargo build -p kvm-clone-agent`", agent.display());
    agent
}
