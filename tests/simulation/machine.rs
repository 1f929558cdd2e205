//! One simulated host: its files, its libvirt, and the agents that live on it with their locks.

use std::collections::BTreeSet;

use journal_format::{CountsV1, Inode};
use kvm_clone::world::{FaultKind, HostFacts, OwnerLock, ProcessId};

use crate::durability::Survival;
use crate::filesystem::{Filesystem, NodeId, Refusal};
use crate::libvirt::Libvirt;

/// Where transactions keep their host records.
pub const HOST_RECORDS: &str = "/var/lib/kvm-clone/host";

/// An agent, dead or alive.
#[derive(Debug)]
pub struct Agent {
    pub process: ProcessId,
    /// Which controller it serves.
    pub controller: usize,
    pub alive: bool,
    /// Its controller can still be heard.
    pub linked: bool,
    /// When it will have waited too long for its controller.
    pub ends_at_ns: Option<i128>,
    /// What it may change, as `allow` named it; `None` on the source, where nothing may be changed.
    pub allowed: Option<Vec<String>>,
    pub owner_locks: BTreeSet<NodeId>,
    pub image_locks: BTreeSet<NodeId>,
    /// Block devices that it has opened alone.
    pub devices: BTreeSet<NodeId>,
    pub counts: CountsV1,
}

/// How long a guest takes to shut down.
const SHUTDOWN_NS: i128 = 7_000_000_000;

/// Who has an effect in hand that nobody waits for any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// It dies with this agent.
    Agent(usize),
    /// libvirt has it already, and forgets it when it is restarted.
    Libvirt,
    /// A guest does it by itself.
    Guest,
}

/// An effect that happens without anybody waiting for it any more.
pub struct Late {
    pub at_ns: i128,
    pub whose: Whose,
    pub effect: Box<dyn FnOnce(&mut Machine)>,
}

pub struct Machine {
    pub facts: HostFacts,
    pub files: Filesystem,
    pub libvirt: Libvirt,
    pub agents: Vec<Agent>,
    pub late: Vec<Late>,
}

impl Machine {
    /// Starts a domain: by an agent's relay, or by a person at that host.
    pub fn start(&mut self, uuid: journal_format::DomainUuid) -> Result<(), Refusal> {
        let locks = self.image_locks();
        let started = self.libvirt.start(&mut self.files, &locks, uuid);
        self.pin();
        started
    }

    /// `virsh destroy`.
    pub fn destroy(&mut self, uuid: journal_format::DomainUuid) {
        self.libvirt.stop(uuid);
        self.pin();
    }

    /// `virsh shutdown`: the guest takes its time, or does not listen.
    pub fn shut_down(&mut self, uuid: journal_format::DomainUuid) -> Result<(), Refusal> {
        if !self.libvirt.domains.contains_key(&uuid) {
            return Err((FaultKind::NotFound, format!("no domain {uuid}")));
        }
        let Some(memory) = self.libvirt.memories.get(&uuid).copied() else { return Ok(()) };
        if !self.libvirt.deaf.contains(&uuid) {
            let effect = Box::new(move |machine: &mut Machine| {
                // Only this life of the guest was asked.
                if machine.libvirt.memories.get(&uuid) == Some(&memory) {
                    machine.libvirt.power_off(&mut machine.files, uuid);
                    machine.pin();
                }
            });
            self.late.push(Late { at_ns: self.files.now_ns + SHUTDOWN_NS, whose: Whose::Guest, effect });
        }
        Ok(())
    }

    /// `virsh save`.
    pub fn save(&mut self, uuid: journal_format::DomainUuid, path: &str) -> Result<(), Refusal> {
        let saved = self.libvirt.save(&mut self.files, uuid, path);
        self.pin();
        saved
    }

    /// `virsh restore`.
    pub fn restore(&mut self, path: &str) -> Result<(), Refusal> {
        let locks = self.image_locks();
        let restored = self.libvirt.restore(&mut self.files, &locks, path);
        self.pin();
        restored
    }

    fn image_locks(&self) -> BTreeSet<NodeId> {
        self.living().flat_map(|agent| agent.image_locks.iter().copied()).collect()
    }

    fn living(&self) -> impl Iterator<Item = &Agent> {
        self.agents.iter().filter(|agent| agent.alive)
    }

    /// What is open keeps its inode number, whatever becomes of its names.
    fn pin(&mut self) {
        let written: Vec<NodeId> = self.libvirt.written().filter_map(|path| self.files.find(path)).collect();
        let locked = self.living().flat_map(|agent| agent.image_locks.iter().chain(&agent.owner_locks));
        let open = locked.copied().chain(written).collect();
        self.files.open = open;
    }

    pub fn end_agent(&mut self, agent: usize) {
        let agent = &mut self.agents[agent];
        agent.alive = false;
        agent.linked = false;
        agent.owner_locks.clear();
        agent.image_locks.clear();
        self.pin();
    }

    /// Agents that have waited too long end, and what was asked of libvirt long ago happens.
    pub fn pass_time(&mut self, now_ns: i128) -> bool {
        self.files.now_ns = now_ns;
        let silent = |agent: &Agent| agent.alive && agent.ends_at_ns.is_some_and(|ends_at_ns| ends_at_ns <= now_ns);
        for agent in 0..self.agents.len() {
            if silent(&self.agents[agent]) {
                self.end_agent(agent);
            }
        }
        if self.late.iter().all(|late| late.at_ns > now_ns) {
            return false;
        }
        let (due, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.late).into_iter().partition(|late| late.at_ns <= now_ns);
        self.late = waiting;
        for late in due {
            let lives = match late.whose {
                Whose::Agent(agent) => self.agents[agent].alive,
                Whose::Libvirt | Whose::Guest => true,
            };
            if lives {
                (late.effect)(self);
            }
        }
        true
    }

    /// libvirtd ends and starts again. What it had accepted and not done is forgotten.
    pub fn restart_libvirt(&mut self) {
        self.late.retain(|late| late.whose != Whose::Libvirt);
        self.libvirt.load(&mut self.files, false);
        self.pin();
    }

    /// The power goes and comes back.
    pub fn cut_power(&mut self, survival: Survival) {
        for agent in 0..self.agents.len() {
            self.end_agent(agent);
        }
        self.late.clear();
        self.files.cut_power(survival);
        self.libvirt.load(&mut self.files, true);
        self.pin();
    }

    pub fn lock_owner(&mut self, agent: usize, path: &str) -> Result<OwnerLock, Refusal> {
        let Some(node) = self.files.find(path) else { return Ok(OwnerLock::Missing) };
        if self.agents.iter().enumerate().any(|(other, held)| other != agent && held.owner_locks.contains(&node)) {
            return Ok(OwnerLock::Taken);
        }
        self.agents[agent].owner_locks = BTreeSet::from([node]);
        self.pin();
        Ok(OwnerLock::Held { inode: Inode(node.inode) })
    }

    pub fn kill_agent(&mut self, process: ProcessId) {
        if let Some(agent) = self.agents.iter().position(|agent| agent.alive && agent.process == process) {
            self.end_agent(agent);
        }
    }

    pub fn lock_image(&mut self, agent: usize, path: &str) -> Result<Inode, Refusal> {
        let Some(node) = self.files.find(path) else {
            return Err((FaultKind::NotFound, format!("{path}: no such file or directory")));
        };
        if self.libvirt.written().any(|written| self.files.find(written) == Some(node)) {
            return Err((FaultKind::InUse, format!("{path}: a running guest writes to it")));
        }
        self.agents[agent].image_locks.insert(node);
        self.pin();
        Ok(Inode(node.inode))
    }

    pub fn unlock_image(&mut self, agent: usize, path: &str) {
        if let Some(node) = self.files.find(path) {
            self.agents[agent].image_locks.remove(&node);
            self.pin();
        }
    }

    /// Opens a block device alone, until the agent ends.
    pub fn hold_device(&mut self, agent: usize, path: &str, identity: &str) -> Result<Inode, Refusal> {
        let node = self.files.expect(path)?;
        let Some(found) = self.files.identity(node) else {
            return Err((FaultKind::Unsupported, format!("{path} is no block device")));
        };
        if found != identity {
            return Err((FaultKind::Changed, format!("{path} is {found}, not {identity}")));
        }
        let others = self.agents.iter().enumerate().filter(|(other, held)| *other != agent && held.alive);
        if self.files.mounted.contains(&node) || others.into_iter().any(|(_, held)| held.devices.contains(&node)) {
            return Err((FaultKind::InUse, format!("{path} is in use")));
        }
        self.agents[agent].devices.insert(node);
        Ok(Inode(node.inode))
    }

    /// An agent writes only to a device that it holds.
    pub fn check_held(&self, agent: usize, path: &str) -> Result<(), Refusal> {
        let node = self.files.expect(path)?;
        if self.files.identity(node).is_some() && !self.agents[agent].devices.contains(&node) {
            return Err((FaultKind::Fenced, format!("{path}: this agent does not hold that device")));
        }
        Ok(())
    }

    /// Removes a name, unless a guest writes to the file or another agent has it locked.
    pub fn unlink_unused(&mut self, agent: usize, path: &str, inode: Inode) -> Result<(), Refusal> {
        let Some(node) = self.files.find(path) else { return Ok(()) };
        self.agents[agent].image_locks.remove(&node);
        self.pin();
        let written = self.libvirt.written().any(|written| self.files.find(written) == Some(node));
        if written || self.image_locks().contains(&node) {
            return Err((FaultKind::InUse, format!("{path}: another process has a lock on it")));
        }
        self.files.unlink(path, inode)
    }

    /// May this agent change these paths?
    pub fn check_change(&self, agent: usize, paths: &[String]) -> Result<(), Refusal> {
        let agent = &self.agents[agent];
        let Some(allowed) = &agent.allowed else {
            return Err((FaultKind::Denied, "nothing is changed on the source".to_owned()));
        };
        for path in paths {
            let record = path == "/var/lib/kvm-clone" || path == HOST_RECORDS || below(path, HOST_RECORDS);
            if agent.owner_locks.is_empty() && !(record && builds_record(path)) {
                return Err((FaultKind::Fenced, format!("{path}: this agent does not hold the owner lock")));
            }
            let named = |allow: &String| match allow.strip_suffix('/') {
                Some(directory) => below(path, directory),
                None => path == allow,
            };
            if !record && !allowed.iter().any(named) {
                return Err((FaultKind::Denied, format!("{path}: not among the paths of this transaction")));
            }
        }
        Ok(())
    }
}

fn below(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
}

/// What an agent may change before it holds an owner lock: a host record that is being built or cleared.
fn builds_record(path: &str) -> bool {
    let Some(rest) = path.strip_prefix(HOST_RECORDS).map(|rest| rest.trim_start_matches('/')) else { return true };
    let first = rest.split('/').next().unwrap_or_default();
    ["", "names", "devices"].contains(&rest)
        || first.starts_with(".new-")
        || first.starts_with(".gone-")
        // A record takes its name by a rename before its lock counts, and loses it by one after.
        || rest.parse::<journal_format::TxnId>().is_ok()
}
