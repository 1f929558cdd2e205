//! One real host: each operation is a request to its agent or a call of its libvirt, waited for on the engine's thread.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use journal_format::{CountsV1, DomainUuid, Inode};
use kvm_clone_agent::protocol::{self as wire, Ran, Reply, Request, Tool};

use super::client::Client;
use super::connect::{Connector, Role};
use super::copy;
use super::libvirt::Libvirt;
use crate::world::{
    ChunkSink, DeviceFacts, DomainBrief, DomainFacts, Fault, FaultKind, FileKind, FileStat, FilesystemFacts, HashJob,
    Host, HostFacts, ImageCheck, NetworkFacts, OwnerLock, PoolFacts, ProcessId, SnapshotFacts,
};

/// How long the agent may take for what touches little: it may wait for a busy disk.
const QUICK_SECONDS_MAX: u64 = 60;
/// How long it may take to say what it did: nothing depends on it.
const COUNTS_SECONDS_MAX: u64 = 5;
/// How long it may take for what may move much: a sync, an allocation, the removal of a large file.
const LONG_SECONDS_MAX: u64 = 900;

/// A host with its agent.
pub(super) struct RealHost {
    connector: Connector,
    role: Role,
    client: Arc<Client>,
    libvirt: Libvirt,
    holds_owner_lock: Cell<bool>,
}

impl RealHost {
    pub(super) fn new(connector: Connector, role: Role, client: Client) -> Self {
        let client = Arc::new(client);
        let libvirt = Libvirt::new(Arc::clone(&client), connector.options.interrupt.clone());
        Self { connector, role, client, libvirt, holds_owner_lock: Cell::new(false) }
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Ends the agent, and with it its locks and its relay.
    pub(super) fn end(&self) {
        self.libvirt.renew();
        self.connector.runtime.block_on(self.client.end());
    }

    fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.connector.runtime.block_on(work)
    }

    /// A call that changes something in libvirt. The agent relays changes for the holder of the owner lock alone, but
    /// cannot tell them from questions; so they are refused here too, in words that fit.
    fn tell_libvirt(
        &self,
        operation: impl Fn() -> String,
        call: impl Future<Output = Result<(), Fault>>,
    ) -> Result<(), Fault> {
        let refuse = |kind, detail: &str| {
            Err(Fault { kind, host: self.name(), operation: operation(), detail: detail.to_owned() })
        };
        match self.role {
            Role::Destination(_) if self.holds_owner_lock.get() => self.block_on(call),
            Role::Destination(_) => refuse(FaultKind::Fenced, "this agent does not hold the owner lock"),
            Role::Source(_) => refuse(FaultKind::Denied, "nothing is changed on the source"),
            Role::Look | Role::Survey => refuse(FaultKind::Denied, "nothing is changed while looking"),
        }
    }

    fn ask<T>(
        &self,
        request: &Request,
        seconds_max: u64,
        operation: impl Fn() -> String,
        understand: impl FnOnce(Reply) -> Option<T>,
    ) -> Result<T, Fault> {
        let reply = self.block_on(self.client.request(request, Duration::from_secs(seconds_max), &operation))?;
        understand(reply).ok_or_else(|| Fault {
            kind: FaultKind::Unsupported,
            host: self.name(),
            operation: operation(),
            detail: "the agent's answer does not fit the question".into(),
        })
    }

    fn quick<T>(
        &self,
        request: &Request,
        operation: impl Fn() -> String,
        understand: impl FnOnce(Reply) -> Option<T>,
    ) -> Result<T, Fault> {
        self.ask(request, QUICK_SECONDS_MAX, operation, understand)
    }

    fn run_tool<T>(
        &self,
        tool: Tool,
        operation: impl Fn() -> String,
        understand: impl FnOnce(Option<Ran>) -> T,
    ) -> Result<T, Fault> {
        self.quick(&Request::RunTool { tool }, operation, |reply| match reply {
            Reply::Ran(ran) => Some(understand(ran)),
            _ => None,
        })
    }
}

impl Drop for RealHost {
    fn drop(&mut self) {
        self.end();
    }
}

fn counts_of(counts: wire::Counts) -> CountsV1 {
    CountsV1 {
        requests: counts.requests,
        image_bytes_read: counts.image_bytes_read,
        image_bytes_written: counts.image_bytes_written,
        file_bytes_read: counts.file_bytes_read,
        libvirt_calls: counts.libvirt_calls,
    }
}

#[allow(clippy::needless_pass_by_value)] // As `ask` hands it over.
fn done(reply: Reply) -> Option<()> {
    matches!(reply, Reply::Done).then_some(())
}

#[allow(clippy::needless_pass_by_value)] // As `ask` hands it over.
fn made(reply: Reply) -> Option<Inode> {
    if let Reply::Made { inode } = reply { Some(inode) } else { None }
}

impl Host for RealHost {
    fn name(&self) -> String {
        self.client.host().to_owned()
    }

    fn facts(&self) -> Result<HostFacts, Fault> {
        let libvirt = self.block_on(self.libvirt.facts())?;
        let hello = self.client.hello();
        Ok(HostFacts {
            machine_id: hello.machine_id.clone(),
            hostname: hello.hostname.clone(),
            libvirt_version: libvirt.libvirt_version,
            hypervisor_version: libvirt.hypervisor_version,
            memory_bytes: hello.memory_bytes,
            cpus: hello.cpus,
            clock_ahead_ms: self.client.clock_ahead_ms(),
            capabilities: libvirt.capabilities,
        })
    }

    fn agent(&self) -> Result<ProcessId, Fault> {
        self.client.check("name the agent")?;
        let agent = self.client.agent();
        Ok(ProcessId { pid: agent.pid, started: agent.started })
    }

    fn counts(&self) -> Result<CountsV1, Fault> {
        self.ask(
            &Request::Counts,
            COUNTS_SECONDS_MAX,
            || "ask what the agent did".into(),
            |reply| match reply {
                Reply::Counts(counts) => Some(counts_of(counts)),
                _ => None,
            },
        )
    }

    fn allow(&self, paths: &[String]) -> Result<(), Fault> {
        self.quick(&Request::Allow { paths: paths.to_vec() }, || "name what may be changed".into(), done)
    }

    fn stat(&self, path: &str) -> Result<Option<FileStat>, Fault> {
        let request = Request::Stat { path: path.into() };
        self.quick(
            &request,
            || format!("stat {path}"),
            |reply| match reply {
                Reply::Stat(stat) => Some(stat.map(file_stat)),
                _ => None,
            },
        )
    }

    fn read(&self, path: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, Fault> {
        let request = Request::Read { path: path.into(), max_bytes };
        self.quick(
            &request,
            || format!("read {path}"),
            |reply| match reply {
                Reply::Content(content) => Some(content),
                _ => None,
            },
        )
    }

    fn list(&self, directory: &str) -> Result<Option<Vec<String>>, Fault> {
        let request = Request::List { directory: directory.into() };
        self.quick(
            &request,
            || format!("list {directory}"),
            |reply| match reply {
                Reply::Names(names) => Some(names),
                _ => None,
            },
        )
    }

    fn resolve(&self, path: &str) -> Result<Option<String>, Fault> {
        let request = Request::Resolve { path: path.into() };
        self.quick(
            &request,
            || format!("resolve {path}"),
            |reply| match reply {
                Reply::Resolved(path) => Some(path),
                _ => None,
            },
        )
    }

    fn filesystem(&self, path: &str) -> Result<FilesystemFacts, Fault> {
        let request = Request::Filesystem { path: path.into() };
        self.quick(
            &request,
            || format!("look at the filesystem of {path}"),
            |reply| match reply {
                Reply::Filesystem(facts) => Some(filesystem_facts(facts)),
                _ => None,
            },
        )
    }

    fn ids_of(&self, user: &str, group: &str) -> Result<(Option<u32>, Option<u32>), Fault> {
        let request = Request::IdsOf { user: user.into(), group: group.into() };
        self.quick(
            &request,
            || format!("look up user {user} and group {group}"),
            |reply| match reply {
                Reply::Ids { user, group } => Some((user, group)),
                _ => None,
            },
        )
    }

    fn check_qcow2(&self, path: &str) -> Result<ImageCheck, Fault> {
        match self.run_tool(Tool::CheckQcow2 { path: path.into() }, || format!("check the image {path}"), image_check) {
            Err(fault) if fault.kind == FaultKind::TimedOut && self.client.check("look on").is_ok() => {
                Ok(ImageCheck::Unchecked(fault.detail))
            }
            checked => checked,
        }
    }

    fn swtpm_version(&self) -> Result<Option<String>, Fault> {
        let understand = |ran: Option<Ran>| ran.and_then(|ran| swtpm_version(&ran.words));
        self.run_tool(Tool::SwtpmVersion, || "ask for the version of swtpm".into(), understand)
    }

    fn make_dir(&self, path: &str, mode: u32) -> Result<Inode, Fault> {
        self.quick(&Request::MakeDir { path: path.into(), mode }, || format!("make directory {path}"), made)
    }

    fn make_file(&self, path: &str, mode: u32, content: &[u8]) -> Result<Inode, Fault> {
        let request = Request::MakeFile { path: path.into(), mode, content: content.into() };
        self.quick(&request, || format!("make file {path}"), made)
    }

    fn write_at(&self, path: &str, inode: Inode, offset: u64, bytes: &[u8]) -> Result<(), Fault> {
        let request = Request::WriteAt { path: path.into(), inode, offset, bytes: bytes.into() };
        self.quick(&request, || format!("write to {path}"), done)
    }

    fn set_size(&self, path: &str, inode: Inode, bytes: u64, allocate: bool) -> Result<(), Fault> {
        let request = Request::SetSize { path: path.into(), inode, bytes, allocate };
        self.ask(&request, LONG_SECONDS_MAX, || format!("set the size of {path} to {bytes}"), done)
    }

    fn set_attributes(&self, path: &str, inode: Inode, uid: u32, gid: u32, mode: u32) -> Result<(), Fault> {
        let request = Request::SetAttributes { path: path.into(), inode, uid, gid, mode };
        self.quick(&request, || format!("set owner and mode of {path}"), done)
    }

    fn relabel(&self, path: &str) -> Result<Option<String>, Fault> {
        let relabelled = self.quick(
            &Request::Relabel { path: path.into() },
            || format!("label {path}"),
            |reply| match reply {
                Reply::Ran(ran) => Some(ran.filter(|ran| ran.status != Some(0)).map(|ran| ran.words)),
                _ => None,
            },
        );
        match relabelled {
            Err(fault) if fault.kind == FaultKind::TimedOut && self.client.check("look on").is_ok() => {
                Ok(Some(fault.detail))
            }
            relabelled => relabelled,
        }
    }

    fn sync(&self, path: &str) -> Result<(), Fault> {
        self.ask(&Request::Sync { path: path.into() }, LONG_SECONDS_MAX, || format!("sync {path}"), done)
    }

    fn sync_filesystem(&self, path: &str) -> Result<(), Fault> {
        let request = Request::SyncFilesystem { path: path.into() };
        self.ask(&request, LONG_SECONDS_MAX, || format!("sync the filesystem of {path}"), done)
    }

    fn link(&self, from: &str, to: &str) -> Result<(), Fault> {
        let request = Request::Link { from: from.into(), to: to.into() };
        self.quick(&request, || format!("link {from} to {to}"), done)
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), Fault> {
        let request = Request::Rename { from: from.into(), to: to.into() };
        self.quick(&request, || format!("rename {from} to {to}"), done)
    }

    fn unlink(&self, path: &str, inode: Inode) -> Result<(), Fault> {
        let request = Request::Unlink { path: path.into(), inode };
        self.ask(&request, LONG_SECONDS_MAX, || format!("unlink {path}"), done)
    }

    fn remove_dir(&self, path: &str) -> Result<(), Fault> {
        self.quick(&Request::RemoveDir { path: path.into() }, || format!("remove directory {path}"), done)
    }

    fn lock_owner(&self, path: &str) -> Result<OwnerLock, Fault> {
        let request = Request::LockOwner { path: path.into() };
        let lock = self.quick(
            &request,
            || format!("lock {path}"),
            |reply| match reply {
                Reply::OwnerLock(wire::OwnerLock::Held { inode }) => Some(OwnerLock::Held { inode }),
                Reply::OwnerLock(wire::OwnerLock::Taken) => Some(OwnerLock::Taken),
                Reply::OwnerLock(wire::OwnerLock::Missing) => Some(OwnerLock::Missing),
                _ => None,
            },
        )?;
        let held = matches!(lock, OwnerLock::Held { .. });
        self.holds_owner_lock.set(held);
        self.libvirt.set_may_change(held);
        Ok(lock)
    }

    fn kill_agent(&self, agent: ProcessId) -> Result<(), Fault> {
        let ProcessId { pid, started } = agent;
        let request = Request::KillAgent { agent: wire::ProcessId { pid, started } };
        self.quick(&request, || format!("end the older agent {pid}"), done)
    }

    fn lock_image(&self, path: &str) -> Result<Inode, Fault> {
        self.quick(&Request::LockImage { path: path.into() }, || format!("lock image {path}"), made)
    }

    fn unlock_image(&self, path: &str) -> Result<(), Fault> {
        self.quick(&Request::UnlockImage { path: path.into() }, || format!("unlock image {path}"), done)
    }

    fn unlink_unused(&self, path: &str, inode: Inode) -> Result<(), Fault> {
        let request = Request::UnlinkUnused { path: path.into(), inode };
        self.ask(&request, LONG_SECONDS_MAX, || format!("unlink {path}, unless it is in use"), done)
    }

    fn device(&self, path: &str) -> Result<Option<DeviceFacts>, Fault> {
        let request = Request::Device { path: path.into() };
        self.quick(
            &request,
            || format!("look at the device {path}"),
            |reply| match reply {
                Reply::Device(device) => Some(device.map(device_facts)),
                _ => None,
            },
        )
    }

    fn devices_like(&self, identity: &str) -> Result<Vec<String>, Fault> {
        let request = Request::DevicesLike { identity: identity.into() };
        self.quick(
            &request,
            || format!("look for the device {identity}"),
            |reply| match reply {
                Reply::Names(names) => names,
                _ => None,
            },
        )
    }

    fn hold_device(&self, path: &str, identity: &str) -> Result<Inode, Fault> {
        let request = Request::HoldDevice { path: path.into(), identity: identity.into() };
        self.quick(&request, || format!("hold the device {path}"), made)
    }

    fn hash_chunks(&self, job: &HashJob, sink: &mut dyn ChunkSink) -> Result<(), Fault> {
        self.block_on(copy::hash(&self.client, job, &self.connector.options.interrupt, sink))
    }

    fn domains(&self) -> Result<Vec<DomainBrief>, Fault> {
        self.block_on(self.libvirt.domains())
    }

    fn domain(&self, uuid: DomainUuid) -> Result<Option<DomainFacts>, Fault> {
        self.block_on(self.libvirt.domain(uuid))
    }

    fn domain_named(&self, name: &str) -> Result<Option<DomainFacts>, Fault> {
        self.block_on(self.libvirt.domain_named(name))
    }

    fn define(&self, definition: &str) -> Result<(), Fault> {
        self.tell_libvirt(|| "define a domain".into(), self.libvirt.define(definition))
    }

    fn undefine(&self, uuid: DomainUuid) -> Result<(), Fault> {
        self.tell_libvirt(|| format!("undefine domain {uuid}"), self.libvirt.undefine(uuid))
    }

    fn undefine_whole(&self, uuid: DomainUuid) -> Result<(), Fault> {
        self.tell_libvirt(|| format!("undefine domain {uuid} with its saved state"), self.libvirt.undefine_whole(uuid))
    }

    fn rename_domain(&self, uuid: DomainUuid, name: &str) -> Result<(), Fault> {
        self.tell_libvirt(|| format!("rename domain {uuid} to {name}"), self.libvirt.rename(uuid, name))
    }

    fn live_definition(&self, uuid: DomainUuid) -> Result<Option<String>, Fault> {
        self.block_on(self.libvirt.live_definition(uuid))
    }

    fn snapshots(&self, uuid: DomainUuid) -> Result<Vec<SnapshotFacts>, Fault> {
        self.block_on(self.libvirt.snapshots(uuid))
    }

    fn snapshot(&self, uuid: DomainUuid, name: &str) -> Result<Option<SnapshotFacts>, Fault> {
        self.block_on(self.libvirt.snapshot(uuid, name))
    }

    fn define_snapshot(&self, uuid: DomainUuid, definition: &str, current: bool) -> Result<(), Fault> {
        let operation = || format!("define a snapshot of domain {uuid}");
        self.tell_libvirt(operation, self.libvirt.define_snapshot(uuid, definition, current))
    }

    fn forget_snapshot(&self, uuid: DomainUuid, name: &str) -> Result<(), Fault> {
        let operation = || format!("forget the snapshot {name} of domain {uuid}");
        self.tell_libvirt(operation, self.libvirt.forget_snapshot(uuid, name))
    }

    fn set_metadata(&self, uuid: DomainUuid, element: Option<&str>) -> Result<(), Fault> {
        self.tell_libvirt(|| format!("set our metadata of domain {uuid}"), self.libvirt.set_metadata(uuid, element))
    }

    fn set_title(&self, uuid: DomainUuid, title: Option<&str>) -> Result<(), Fault> {
        self.tell_libvirt(|| format!("set the title of domain {uuid}"), self.libvirt.set_title(uuid, title))
    }

    fn set_autostart(&self, uuid: DomainUuid, autostart: bool) -> Result<(), Fault> {
        self.tell_libvirt(|| format!("set autostart of domain {uuid}"), self.libvirt.set_autostart(uuid, autostart))
    }

    fn start(&self, uuid: DomainUuid) -> Result<(), Fault> {
        self.tell_libvirt(|| format!("start domain {uuid}"), self.libvirt.start(uuid))
    }

    fn shut_down(&self, uuid: DomainUuid) -> Result<(), Fault> {
        self.tell_libvirt(|| format!("ask domain {uuid} to shut down"), self.libvirt.shut_down(uuid))
    }

    fn destroy(&self, uuid: DomainUuid) -> Result<(), Fault> {
        self.tell_libvirt(|| format!("switch domain {uuid} off"), self.libvirt.destroy(uuid))
    }

    fn save(&self, uuid: DomainUuid, path: &str) -> Result<(), Fault> {
        self.tell_libvirt(|| format!("save the memory of domain {uuid} to {path}"), self.libvirt.save(uuid, path))
    }

    fn restore(&self, path: &str) -> Result<(), Fault> {
        self.tell_libvirt(|| format!("restore the memory saved in {path}"), self.libvirt.restore(path))
    }

    fn native_command(&self, definition: &str) -> Result<String, Fault> {
        self.block_on(self.libvirt.native_command(definition))
    }

    fn domain_capabilities(&self, arch: &str, machine: &str, virt_type: &str) -> Result<String, Fault> {
        self.block_on(self.libvirt.domain_capabilities(arch, machine, virt_type))
    }

    fn lacks_of_cpu(&self, arch: &str, machine: &str, virt_type: &str, cpu: &str) -> Result<Option<String>, Fault> {
        self.block_on(self.libvirt.lacks_of_cpu([arch, machine, virt_type], cpu))
    }

    fn networks(&self) -> Result<Vec<NetworkFacts>, Fault> {
        self.block_on(self.libvirt.networks())
    }

    fn pools(&self) -> Result<Vec<PoolFacts>, Fault> {
        self.block_on(self.libvirt.pools())
    }

    fn volume_path(&self, pool: &str, volume: &str) -> Result<Option<String>, Fault> {
        self.block_on(self.libvirt.volume_path(pool, volume))
    }

    fn refresh_pool(&self, name: &str) -> Result<(), Fault> {
        self.tell_libvirt(|| format!("refresh pool {name}"), self.libvirt.refresh_pool(name))
    }

    fn renew_libvirt(&self) -> Result<(), Fault> {
        self.libvirt.renew();
        self.client.check("renew the connection to libvirt")
    }
}

fn file_stat(stat: wire::FileStat) -> FileStat {
    FileStat {
        kind: match stat.kind {
            wire::FileKind::File => FileKind::File,
            wire::FileKind::Directory => FileKind::Directory,
            wire::FileKind::Symlink => FileKind::Symlink,
            wire::FileKind::BlockDevice => FileKind::BlockDevice,
            wire::FileKind::Other => FileKind::Other,
        },
        inode: stat.inode,
        device: stat.device,
        size: stat.size,
        allocated: stat.allocated,
        mode: stat.mode,
        uid: stat.uid,
        gid: stat.gid,
        links: stat.links,
        mtime_ns: stat.mtime_ns,
        ctime_ns: stat.ctime_ns,
    }
}

fn device_facts(device: wire::DeviceFacts) -> DeviceFacts {
    let wire::DeviceFacts { inode, bytes, identity, in_use, read_only } = device;
    DeviceFacts { inode, bytes, identity, in_use, read_only }
}

/// By the exit status that qemu-img's manual gives for `check`.
fn image_check(ran: Option<Ran>) -> ImageCheck {
    let Some(Ran { status, words }) = ran else { return ImageCheck::NoTool };
    match status {
        Some(0) => ImageCheck::Whole,
        Some(2) => ImageCheck::Broken(words),
        Some(3) => ImageCheck::Leaks(words),
        _ => ImageCheck::Unchecked(words),
    }
}

/// `TPM emulator version 0.7.1, Copyright …`
fn swtpm_version(words: &str) -> Option<String> {
    let (_, rest) = words.split_once("version ")?;
    let version = rest.split([',', ' ', '\n']).next()?;
    version.starts_with(|first: char| first.is_ascii_digit()).then(|| version.to_owned())
}

fn filesystem_facts(facts: wire::FilesystemFacts) -> FilesystemFacts {
    FilesystemFacts {
        device: facts.device,
        available_bytes: facts.available_bytes,
        available_inodes: facts.available_inodes,
        kind: facts.kind,
        read_only: facts.read_only,
        writable: facts.writable,
        network: facts.network,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_tool_says_is_understood() {
        let said = |status, words: &str| image_check(Some(Ran { status, words: words.into() }));
        assert_eq!(image_check(None), ImageCheck::NoTool);
        assert_eq!(said(Some(0), "No errors were found on the image."), ImageCheck::Whole);
        assert_eq!(said(Some(2), "bad"), ImageCheck::Broken("bad".into()));
        assert_eq!(said(Some(3), "lost"), ImageCheck::Leaks("lost".into()));
        assert_eq!(said(Some(1), "no"), ImageCheck::Unchecked("no".into()));
        assert_eq!(said(None, ""), ImageCheck::Unchecked(String::new()));
        let version = swtpm_version("TPM emulator version 0.7.1, Copyright (c) 2014-2021");
        assert_eq!(version.as_deref(), Some("0.7.1"));
        assert_eq!(swtpm_version("usage: swtpm"), None);
    }
}
