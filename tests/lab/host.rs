//! One host of the lab, handled from outside: commands on it, its files, its services, its link, its power.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::{Format, GUEST, LAB, Outside, Vm, output_of};

/// A daemon of a host that a test may end and start.
#[derive(Debug, Clone, Copy)]
pub enum Service {
    /// With all its connections.
    Sshd,
    /// Guests go on without it.
    Libvirtd,
}

impl Service {
    fn name(self) -> &'static str {
        match self {
            Self::Sshd => "sshd",
            Self::Libvirtd => "libvirtd",
        }
    }
}

/// One host.
pub struct Host {
    name: &'static str,
    lab_id: String,
    directory: PathBuf,
}

impl Host {
    pub(super) fn new(name: &'static str, lab_id: &str, directory: PathBuf) -> Self {
        Self { name, lab_id: lab_id.to_owned(), directory }
    }

    /// `a` or `b`: also its alias for ssh.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its first process, as this machine sees it.
    fn init(&self) -> u32 {
        let text = std::fs::read_to_string(self.directory.join("init")).expect("the host runs");
        text.split(' ').next().and_then(|pid| pid.parse().ok()).expect("a process id")
    }

    /// Where this machine sees a file of the host, while the host runs.
    pub fn path(&self, absolute: impl AsRef<Path>) -> PathBuf {
        let inner = absolute.as_ref().strip_prefix("/").expect("an absolute path");
        Path::new("/proc").join(self.init().to_string()).join("root").join(inner)
    }

    /// A command to be run on the host.
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg("--target")
            .arg(self.init().to_string())
            .args(["--mount", "--uts", "--net", "--pid", "--"])
            .args(arguments)
            .env("LC_ALL", "C")
            .env("LIBVIRT_DEFAULT_URI", "qemu:///system");
        command
    }

    /// Runs a command on the host that has to succeed, and returns what it printed.
    pub fn run<S: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> String {
        output_of(&mut self.command(arguments))
    }

    /// Runs a command on the host that may fail.
    pub fn try_run<S: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Output {
        self.command(arguments).stdin(Stdio::null()).output().expect("run nsenter")
    }

    /// Runs `virsh`, which has to succeed.
    pub fn virsh<'s>(&self, arguments: impl IntoIterator<Item = &'s str>) -> String {
        self.run(["virsh", "--quiet"].into_iter().chain(arguments))
    }

    /// Runs `virsh`, which may fail.
    pub fn try_virsh<'s>(&self, arguments: impl IntoIterator<Item = &'s str>) -> Output {
        self.try_run(["virsh", "--quiet"].into_iter().chain(arguments))
    }

    /// Makes a VM's images and defines it.
    pub fn define(&self, vm: &Vm) {
        for disk in vm.disks() {
            disk.make(&self.path(disk.path()));
        }
        self.define_xml(&vm.definition());
    }

    /// Defines a VM from its definition alone.
    pub fn define_xml(&self, definition: &str) {
        let file = self.path("/run/definition.xml");
        std::fs::write(&file, definition).expect("write a definition");
        self.virsh(["define", "/run/definition.xml"]);
        std::fs::remove_file(&file).expect("remove a definition");
    }

    /// Defines a guest that boots from its own disk, with so many MiB of random bytes on it; returns its marker.
    pub fn define_guest(&self, name: &str, format: Format, fill_mib: u32) -> String {
        let image = format!("/var/lib/libvirt/images/{name}.{format}");
        let marker = output_of(
            Command::new(GUEST)
                .env("TMPDIR", &self.directory)
                .args(["make", "--format", &format.to_string()])
                .args(["--size", &(96 + fill_mib + fill_mib / 16).to_string()])
                .args(["--fill", &fill_mib.to_string()])
                .arg(self.path(&image)),
        );
        self.define_xml(&output_of(Command::new(GUEST).args(["definition", name, &image, &format.to_string()])));
        marker
    }

    /// Makes a disk that boots by UEFI; returns its marker.
    pub fn make_uefi_guest(&self, image: &str) -> String {
        output_of(Command::new(GUEST).env("TMPDIR", &self.directory).args(["make", "--uefi"]).arg(self.path(image)))
    }

    /// Boots a guest, and returns the marker it prints before it powers off.
    pub fn boot_guest(&self, name: &str) -> String {
        self.listen_to_guest(name).split(' ').next().unwrap_or_default().to_owned()
    }

    /// Boots a guest, and returns all that it says of itself before it powers off.
    pub fn listen_to_guest(&self, name: &str) -> String {
        output_of(Command::new(GUEST).args(["marker", self.name, name]).env("KVM_CLONE_LAB", &self.lab_id))
    }

    /// A VM's state, as `virsh domstate` says it; `None` when there is no such VM.
    pub fn state(&self, vm: &str) -> Option<String> {
        let output = self.try_virsh(["domstate", vm]);
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// BLAKE3 of one of the host's files.
    pub fn blake3(&self, path: impl AsRef<Path>) -> blake3::Hash {
        super::outside::hash_file(&self.path(path))
    }

    /// What the host looks like from outside.
    pub fn outside(&self) -> Outside {
        Outside::of(self)
    }

    /// The host's processes whose program (its file's name, or what it calls itself) is this one, by their ids on the host.
    pub fn processes(&self, program: &str) -> Vec<u32> {
        let processes = std::fs::read_dir(self.path("/proc")).expect("list the host's processes");
        let mut found: Vec<u32> = processes
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|pid| {
                let directory = self.path(format!("/proc/{pid}"));
                let called = std::fs::read_to_string(directory.join("comm")).unwrap_or_default();
                // What a process calls itself is cut off after 15 bytes.
                let is_called = called.trim_end() == &program[..program.len().min(15)];
                let runs = std::fs::read_link(directory.join("exe")).unwrap_or_default();
                let runs = runs.to_string_lossy();
                is_called || Path::new(runs.trim_end_matches(" (deleted)")).file_name().is_some_and(|n| n == program)
            })
            .collect();
        found.sort_unstable();
        found
    }

    /// Sends a signal, such as `KILL` or `STOP`, to a process of the host.
    pub fn signal(&self, pid: u32, signal: &str) {
        self.run(["/bin/kill", "-s", signal, &pid.to_string()]);
    }

    /// Kills a daemon, sshd with all its connections.
    pub fn kill(&self, service: Service) {
        self.lab(&["kill", self.name, service.name()]);
    }

    /// Ends a daemon in good order, sshd with all its connections.
    pub fn stop(&self, service: Service) {
        self.lab(&["stop", self.name, service.name()]);
    }

    /// Starts a daemon again.
    pub fn start(&self, service: Service) {
        self.lab(&["start", self.name, service.name()]);
    }

    /// Takes the host's network link down.
    pub fn cut_link(&self) {
        self.lab(&["cut", self.name]);
    }

    /// Takes the host's network link up again.
    pub fn join_link(&self) {
        self.lab(&["join", self.name]);
    }

    /// Cuts the host's power: nothing survives that was not synced. Host b of a lab with `--loop` only.
    pub fn cut_power(&self) {
        self.lab(&["power-cut", self.name]);
    }

    /// Ends all processes of the host at once; what they had written is there.
    pub fn halt(&self) {
        self.lab(&["halt", self.name]);
    }

    /// Boots the host again.
    pub fn boot(&self) {
        self.lab(&["boot", self.name]);
    }

    fn lab(&self, arguments: &[&str]) {
        output_of(
            Command::new(LAB)
                .args(arguments)
                .env("KVM_CLONE_LAB", &self.lab_id)
                .env("KVM_CLONE_LAB_DIR", self.directory.ancestors().nth(2).expect("the directory of all labs")),
        );
    }
}
