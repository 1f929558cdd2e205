//! `Host` on one simulated machine: every call is a numbered operation with everything that can become of it.

use journal_format::{CountsV1, DomainUuid, Inode};
use kvm_clone::world::{
    ChunkSink, DeviceFacts, DomainBrief, DomainFacts, Fault, FaultKind, FileStat, FilesystemFacts, HashJob, Host,
    HostFacts, ImageCheck, NetworkFacts, OwnerLock, PoolFacts, ProcessId, Side, SnapshotFacts,
};

use crate::content::Content;
use crate::copy;
use crate::faults::{self, Effect, Injection};
use crate::filesystem::Refusal;
use crate::machine::{Late, Machine, Whose};
use crate::world::{MILLISECOND_NS, SimWorld};

/// What kind of operation it is.
pub enum Kind<'a> {
    /// Looks, locks, syncs.
    Look,
    /// Changes these paths.
    Change(&'a [&'a str]),
    /// Asks libvirt.
    AskLibvirt,
    /// Tells libvirt to change something.
    TellLibvirt,
}

/// A connected host.
pub struct SimHost {
    pub world: SimWorld,
    pub side: Side,
    /// Which of the machine's agents it is.
    pub agent: usize,
}

impl SimHost {
    pub fn fault(&self, operation: &dyn Fn() -> String, kind: FaultKind, detail: &str) -> Fault {
        Fault { kind, host: self.side.to_string(), operation: operation(), detail: detail.to_owned() }
    }

    /// One numbered operation: what goes wrong, who may, the effect, and who watches.
    pub fn operate<T: 'static>(
        &self,
        operation: &dyn Fn() -> String,
        kind: &Kind,
        effect: impl FnOnce(&mut Machine, usize) -> Result<T, Refusal> + 'static,
    ) -> Result<T, Fault> {
        let told = || format!("{}: {}", self.side, operation());
        self.world.with(|core| {
            let counts = &mut core.machine_mut(self.side).agents[self.agent].counts;
            match kind {
                Kind::Look | Kind::Change(_) => counts.requests += 1,
                Kind::AskLibvirt | Kind::TellLibvirt => counts.libvirt_calls += 1,
            }
        });
        let injection = self.world.number(&told).and_then(|injection| self.world.strike(injection));
        if let Some(Injection { fault: faults::Fault::Fails(failing), effect: how }) = injection {
            if let Effect::Part(changes) = how
                // libvirtd takes its own half-written file away when it lives to see the error.
                && !matches!(kind, Kind::TellLibvirt)
                && self.check(kind).is_ok()
            {
                self.carry_out_in_part(kind, changes, effect);
            }
            return Err(self.fault(operation, failing, "injected"));
        }
        self.check(kind).map_err(|(kind, detail)| self.fault(operation, kind, &detail))?;
        let agent = self.agent;
        let Some(injection) = injection else {
            return self.carry_out(kind, effect).map_err(|(kind, detail)| self.fault(operation, kind, &detail));
        };
        // The other host's power: nothing of this operation depends on it.
        if let faults::Fault::PowerCut(side, survival) = injection.fault
            && side != self.side
        {
            let done = self.carry_out(kind, effect);
            self.world.cut_power(side, survival);
            return done.map_err(|(kind, detail)| self.fault(operation, kind, &detail));
        }
        match injection.effect {
            Effect::Never => {}
            Effect::Part(changes) => self.carry_out_in_part(kind, changes, effect),
            Effect::First => {
                let _ = self.carry_out(kind, effect);
            }
            Effect::Late(millis) => self.world.with(|core| {
                let at_ns = core.now_ns + i128::from(millis) * MILLISECOND_NS;
                let libvirts = matches!(kind, Kind::TellLibvirt);
                let effect = Box::new(move |machine: &mut Machine| drop(effect(machine, agent)));
                let whose = if libvirts { Whose::Libvirt } else { Whose::Agent(agent) };
                let late = Late { at_ns, whose, effect };
                core.machine_mut(self.side).late.push(late);
            }),
        }
        Err(self.go_wrong(operation, kind, injection.fault))
    }

    fn go_wrong(&self, operation: &dyn Fn() -> String, kind: &Kind, fault: faults::Fault) -> Fault {
        match fault {
            faults::Fault::Crash => self.world.crash(),
            faults::Fault::LinkCut => self.world.with(|core| {
                core.orphan(self.side, self.agent);
                core.machine_mut(self.side).agents[self.agent].linked = false;
            }),
            faults::Fault::PowerCut(side, survival) => self.world.cut_power(side, survival),
            faults::Fault::BrokenOff if matches!(kind, Kind::AskLibvirt | Kind::TellLibvirt) => {
                self.world.with(|core| {
                    core.machine_mut(self.side).restart_libvirt();
                    core.look();
                });
                return self.fault(operation, FaultKind::LibvirtDown, "End of file while reading data");
            }
            faults::Fault::TimesOut => return self.fault(operation, FaultKind::TimedOut, "no answer in time"),
            // `AgentDies`, and what makes no other sense on a host.
            _ => self.world.with(|core| core.machine_mut(self.side).end_agent(self.agent)),
        }
        self.fault(operation, FaultKind::Unreachable, "the agent is gone")
    }

    fn check(&self, kind: &Kind) -> Result<(), Refusal> {
        self.world.with(|core| {
            let machine = core.machine(self.side);
            let agent = &machine.agents[self.agent];
            if !agent.alive || !agent.linked {
                return Err((FaultKind::Unreachable, "the agent is gone".to_owned()));
            }
            match kind {
                Kind::Look => Ok(()),
                Kind::Change(paths) => {
                    machine.check_change(self.agent, &paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>())
                }
                Kind::AskLibvirt | Kind::TellLibvirt if machine.libvirt.down => {
                    Err((FaultKind::LibvirtDown, "Failed to connect socket".to_owned()))
                }
                Kind::TellLibvirt if agent.allowed.is_none() => {
                    Err((FaultKind::Denied, "nothing is changed on the source".to_owned()))
                }
                Kind::TellLibvirt if agent.owner_locks.is_empty() => {
                    Err((FaultKind::Fenced, "this agent does not hold the owner lock".to_owned()))
                }
                Kind::AskLibvirt | Kind::TellLibvirt => Ok(()),
            }
        })
    }

    fn carry_out<T>(
        &self,
        kind: &Kind,
        effect: impl FnOnce(&mut Machine, usize) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        self.world.with(|core| {
            let syncs = core.machine(self.side).files.syncs;
            let done = effect(core.machine_mut(self.side), self.agent);
            let only_looked = match kind {
                Kind::AskLibvirt => true,
                Kind::Look => core.machine(self.side).files.syncs == syncs,
                Kind::Change(_) | Kind::TellLibvirt => false,
            };
            if !only_looked {
                core.look();
            }
            done
        })
    }

    /// Carries it out until so many changes of files have been made. Nobody hears of it.
    fn carry_out_in_part<T>(
        &self,
        kind: &Kind,
        changes: u64,
        effect: impl FnOnce(&mut Machine, usize) -> Result<T, Refusal>,
    ) {
        self.world.with(|core| core.machine_mut(self.side).files.break_off_after(Some(changes)));
        let _ = self.carry_out(kind, effect);
        self.world.with(|core| core.machine_mut(self.side).files.break_off_after(None));
    }

    pub fn look<T: 'static>(
        &self,
        operation: &dyn Fn() -> String,
        look: impl FnOnce(&mut Machine, usize) -> Result<T, Refusal> + 'static,
    ) -> Result<T, Fault> {
        self.operate(operation, &Kind::Look, look)
    }
}

impl Host for SimHost {
    fn name(&self) -> String {
        self.side.to_string()
    }

    fn facts(&self) -> Result<HostFacts, Fault> {
        self.look(&|| "facts".to_owned(), |machine, _| Ok(machine.facts.clone()))
    }

    fn agent(&self) -> Result<ProcessId, Fault> {
        Ok(self.world.with(|core| core.machine(self.side).agents[self.agent].process))
    }

    fn counts(&self) -> Result<CountsV1, Fault> {
        self.look(&|| "counts".to_owned(), |machine, agent| Ok(machine.agents[agent].counts))
    }

    fn allow(&self, paths: &[String]) -> Result<(), Fault> {
        let paths = paths.to_vec();
        self.look(&|| "allow".to_owned(), move |machine, agent| match &mut machine.agents[agent].allowed {
            Some(allowed) => {
                allowed.extend(paths);
                Ok(())
            }
            None => Err((FaultKind::Denied, "nothing is changed on the source".to_owned())),
        })
    }

    fn stat(&self, path: &str) -> Result<Option<FileStat>, Fault> {
        let owned = path.to_owned();
        self.look(&|| format!("stat {path}"), move |machine, _| Ok(machine.files.stat(&owned)))
    }

    fn read(&self, path: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, Fault> {
        let owned = path.to_owned();
        self.look(&|| format!("read {path}"), move |machine, _| machine.files.read(&owned, max_bytes))
    }

    fn list(&self, directory: &str) -> Result<Option<Vec<String>>, Fault> {
        let owned = directory.to_owned();
        self.look(&|| format!("list {directory}"), move |machine, _| machine.files.list(&owned))
    }

    fn resolve(&self, path: &str) -> Result<Option<String>, Fault> {
        let owned = path.to_owned();
        self.look(&|| format!("resolve {path}"), move |machine, _| Ok(machine.files.resolve(&owned)))
    }

    fn filesystem(&self, path: &str) -> Result<FilesystemFacts, Fault> {
        let owned = path.to_owned();
        self.look(&|| format!("statfs {path}"), move |machine, _| machine.files.facts(&owned))
    }

    fn ids_of(&self, user: &str, group: &str) -> Result<(Option<u32>, Option<u32>), Fault> {
        let of = |name: &str| {
            [("root", 0), ("libvirt-qemu", 64055), ("kvm", 104)].iter().find(|(n, _)| *n == name).map(|(_, id)| *id)
        };
        let ids = (of(user), of(group));
        self.look(&|| format!("ids of {user}, {group}"), move |_, _| Ok(ids))
    }

    fn check_qcow2(&self, path: &str) -> Result<ImageCheck, Fault> {
        self.look(&|| format!("check {path}"), |_, _| Ok(ImageCheck::NoTool))
    }

    fn swtpm_version(&self) -> Result<Option<String>, Fault> {
        self.look(&|| "version of swtpm".to_owned(), |_, _| Ok(None))
    }

    fn make_dir(&self, path: &str, mode: u32) -> Result<Inode, Fault> {
        let owned = path.to_owned();
        self.operate(&|| format!("mkdir {path}"), &Kind::Change(&[path]), move |machine, _| {
            machine.files.make_dir(&owned, mode)
        })
    }

    fn make_file(&self, path: &str, mode: u32, content: &[u8]) -> Result<Inode, Fault> {
        let (owned, content) = (path.to_owned(), Content::of(content));
        self.operate(&|| format!("create {path}"), &Kind::Change(&[path]), move |machine, _| {
            machine.files.make_file(&owned, mode, content)
        })
    }

    fn write_at(&self, path: &str, inode: Inode, offset: u64, bytes: &[u8]) -> Result<(), Fault> {
        let (owned, bytes) = (path.to_owned(), bytes.to_vec());
        self.operate(&|| format!("write {path}"), &Kind::Change(&[path]), move |machine, _| {
            machine.files.write_at(&owned, inode, offset, &bytes)
        })
    }

    fn set_size(&self, path: &str, inode: Inode, bytes: u64, allocate: bool) -> Result<(), Fault> {
        let owned = path.to_owned();
        self.operate(&|| format!("set size of {path}"), &Kind::Change(&[path]), move |machine, _| {
            machine.files.set_size(&owned, inode, bytes, allocate)
        })
    }

    fn set_attributes(&self, path: &str, inode: Inode, uid: u32, gid: u32, mode: u32) -> Result<(), Fault> {
        let owned = path.to_owned();
        self.operate(&|| format!("set attributes of {path}"), &Kind::Change(&[path]), move |machine, _| {
            machine.files.set_attributes(&owned, inode, uid, gid, mode)
        })
    }

    fn relabel(&self, path: &str) -> Result<Option<String>, Fault> {
        self.operate(&|| format!("label {path}"), &Kind::Change(&[path]), |_, _| Ok(None))
    }

    fn sync(&self, path: &str) -> Result<(), Fault> {
        let owned = path.to_owned();
        self.look(&|| format!("sync {path}"), move |machine, agent| {
            machine.check_change(agent, &[])?;
            machine.files.sync(&owned)
        })
    }

    fn sync_filesystem(&self, path: &str) -> Result<(), Fault> {
        let owned = path.to_owned();
        self.look(&|| format!("syncfs {path}"), move |machine, agent| {
            machine.check_change(agent, &[])?;
            machine.files.sync_mount(&owned)
        })
    }

    fn link(&self, from: &str, to: &str) -> Result<(), Fault> {
        let (owned, new) = (from.to_owned(), to.to_owned());
        self.operate(&|| format!("link {from} to {to}"), &Kind::Change(&[to]), move |machine, _| {
            machine.files.link(&owned, &new)
        })
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), Fault> {
        let (owned, new) = (from.to_owned(), to.to_owned());
        self.operate(&|| format!("rename {from} to {to}"), &Kind::Change(&[from, to]), move |machine, _| {
            machine.files.rename(&owned, &new)
        })
    }

    fn unlink(&self, path: &str, inode: Inode) -> Result<(), Fault> {
        let owned = path.to_owned();
        self.operate(&|| format!("unlink {path}"), &Kind::Change(&[path]), move |machine, _| {
            machine.files.unlink(&owned, inode)
        })
    }

    fn remove_dir(&self, path: &str) -> Result<(), Fault> {
        let owned = path.to_owned();
        self.operate(&|| format!("rmdir {path}"), &Kind::Change(&[path]), move |machine, _| {
            machine.files.remove_dir(&owned)
        })
    }

    fn lock_owner(&self, path: &str) -> Result<OwnerLock, Fault> {
        let owned = path.to_owned();
        self.look(&|| format!("lock owner file {path}"), move |machine, agent| {
            machine.check_change(agent, &[])?;
            machine.lock_owner(agent, &owned)
        })
    }

    fn kill_agent(&self, agent: ProcessId) -> Result<(), Fault> {
        self.look(&|| format!("kill agent {}", agent.pid), move |machine, me| {
            machine.check_change(me, &[])?;
            machine.kill_agent(agent);
            Ok(())
        })
    }

    fn lock_image(&self, path: &str) -> Result<Inode, Fault> {
        let owned = path.to_owned();
        self.look(&|| format!("lock image {path}"), move |machine, agent| machine.lock_image(agent, &owned))
    }

    fn unlock_image(&self, path: &str) -> Result<(), Fault> {
        let owned = path.to_owned();
        self.look(&|| format!("unlock image {path}"), move |machine, agent| {
            machine.unlock_image(agent, &owned);
            Ok(())
        })
    }

    fn unlink_unused(&self, path: &str, inode: Inode) -> Result<(), Fault> {
        let owned = path.to_owned();
        self.operate(&|| format!("unlink unused {path}"), &Kind::Change(&[path]), move |machine, agent| {
            machine.unlink_unused(agent, &owned, inode)
        })
    }

    fn device(&self, path: &str) -> Result<Option<DeviceFacts>, Fault> {
        let owned = path.to_owned();
        self.look(&|| format!("look at device {path}"), move |machine, _| Ok(machine.files.device_facts(&owned)))
    }

    fn devices_like(&self, identity: &str) -> Result<Vec<String>, Fault> {
        let owned = identity.to_owned();
        self.look(&|| format!("look for the device {identity}"), move |machine, _| {
            Ok(machine.files.devices_like(&owned))
        })
    }

    fn hold_device(&self, path: &str, identity: &str) -> Result<Inode, Fault> {
        let (owned, identity) = (path.to_owned(), identity.to_owned());
        self.look(&|| format!("hold device {path}"), move |machine, agent| {
            machine.check_change(agent, std::slice::from_ref(&owned))?;
            machine.hold_device(agent, &owned, &identity)
        })
    }

    fn hash_chunks(&self, job: &HashJob, sink: &mut dyn ChunkSink) -> Result<(), Fault> {
        copy::hash(self, job, sink)
    }

    fn domains(&self) -> Result<Vec<DomainBrief>, Fault> {
        self.operate(&|| "list domains".to_owned(), &Kind::AskLibvirt, |machine, _| Ok(machine.libvirt.briefs()))
    }

    fn domain(&self, uuid: DomainUuid) -> Result<Option<DomainFacts>, Fault> {
        self.operate(&|| format!("look for domain {uuid}"), &Kind::AskLibvirt, move |machine, _| {
            Ok(machine.libvirt.facts(&machine.files, uuid))
        })
    }

    fn domain_named(&self, name: &str) -> Result<Option<DomainFacts>, Fault> {
        let owned = name.to_owned();
        self.operate(&|| format!("look for domain {name}"), &Kind::AskLibvirt, move |machine, _| {
            Ok(machine.libvirt.facts_named(&machine.files, &owned))
        })
    }

    fn define(&self, definition: &str) -> Result<(), Fault> {
        let owned = definition.to_owned();
        self.operate(&|| "define".to_owned(), &Kind::TellLibvirt, move |machine, _| {
            machine.libvirt.define(&mut machine.files, &owned)
        })
    }

    fn undefine(&self, uuid: DomainUuid) -> Result<(), Fault> {
        self.operate(&|| format!("undefine {uuid}"), &Kind::TellLibvirt, move |machine, _| {
            machine.libvirt.undefine(&mut machine.files, uuid)
        })
    }

    fn undefine_whole(&self, uuid: DomainUuid) -> Result<(), Fault> {
        self.operate(&|| format!("undefine {uuid} whole"), &Kind::TellLibvirt, move |machine, _| {
            machine.libvirt.undefine(&mut machine.files, uuid)
        })
    }

    fn rename_domain(&self, uuid: DomainUuid, name: &str) -> Result<(), Fault> {
        let owned = name.to_owned();
        self.operate(&|| format!("rename {uuid} to {name}"), &Kind::TellLibvirt, move |machine, _| {
            machine.libvirt.rename(&mut machine.files, uuid, &owned)
        })
    }

    fn live_definition(&self, uuid: DomainUuid) -> Result<Option<String>, Fault> {
        self.operate(&|| format!("look at what {uuid} runs with"), &Kind::AskLibvirt, move |machine, _| {
            Ok(machine.libvirt.live_definition(uuid))
        })
    }

    fn snapshots(&self, uuid: DomainUuid) -> Result<Vec<SnapshotFacts>, Fault> {
        self.operate(&|| format!("look at the snapshots of {uuid}"), &Kind::AskLibvirt, move |machine, _| {
            Ok(machine.libvirt.snapshots(uuid))
        })
    }

    fn snapshot(&self, uuid: DomainUuid, name: &str) -> Result<Option<SnapshotFacts>, Fault> {
        let owned = name.to_owned();
        self.operate(&|| format!("look at the snapshot {name} of {uuid}"), &Kind::AskLibvirt, move |machine, _| {
            Ok(machine.libvirt.snapshots(uuid).into_iter().find(|snapshot| snapshot.name == owned))
        })
    }

    fn define_snapshot(&self, uuid: DomainUuid, definition: &str, current: bool) -> Result<(), Fault> {
        let owned = definition.to_owned();
        self.operate(&|| format!("define a snapshot of {uuid}"), &Kind::TellLibvirt, move |machine, _| {
            machine.libvirt.define_snapshot(&mut machine.files, uuid, &owned, current)
        })
    }

    fn forget_snapshot(&self, uuid: DomainUuid, name: &str) -> Result<(), Fault> {
        let owned = name.to_owned();
        self.operate(&|| format!("forget the snapshot {name} of {uuid}"), &Kind::TellLibvirt, move |machine, _| {
            machine.libvirt.forget_snapshot(&mut machine.files, uuid, &owned)
        })
    }

    fn set_metadata(&self, uuid: DomainUuid, element: Option<&str>) -> Result<(), Fault> {
        let owned = element.map(str::to_owned);
        self.operate(&|| format!("set metadata of {uuid}"), &Kind::TellLibvirt, move |machine, _| {
            machine.libvirt.set_metadata(&mut machine.files, uuid, owned.as_deref())
        })
    }

    fn set_title(&self, uuid: DomainUuid, title: Option<&str>) -> Result<(), Fault> {
        let owned = title.map(str::to_owned);
        self.operate(&|| format!("set title of {uuid}"), &Kind::TellLibvirt, move |machine, _| {
            machine.libvirt.set_title(&mut machine.files, uuid, owned.as_deref())
        })
    }

    fn set_autostart(&self, uuid: DomainUuid, autostart: bool) -> Result<(), Fault> {
        self.operate(&|| format!("set autostart of {uuid}"), &Kind::TellLibvirt, move |machine, _| {
            machine.libvirt.set_autostart(&mut machine.files, uuid, autostart)
        })
    }

    fn start(&self, uuid: DomainUuid) -> Result<(), Fault> {
        self.operate(&|| format!("start {uuid}"), &Kind::TellLibvirt, move |machine, _| machine.start(uuid))
    }

    fn shut_down(&self, uuid: DomainUuid) -> Result<(), Fault> {
        self.operate(&|| format!("shut down {uuid}"), &Kind::TellLibvirt, move |machine, _| machine.shut_down(uuid))
    }

    fn destroy(&self, uuid: DomainUuid) -> Result<(), Fault> {
        self.operate(&|| format!("destroy {uuid}"), &Kind::TellLibvirt, move |machine, _| {
            if !machine.libvirt.domains.contains_key(&uuid) {
                return Err((FaultKind::NotFound, format!("no domain {uuid}")));
            }
            machine.destroy(uuid);
            Ok(())
        })
    }

    fn save(&self, uuid: DomainUuid, path: &str) -> Result<(), Fault> {
        let owned = path.to_owned();
        self.operate(&|| format!("save {uuid} to {path}"), &Kind::TellLibvirt, move |machine, _| {
            machine.save(uuid, &owned)
        })
    }

    fn restore(&self, path: &str) -> Result<(), Fault> {
        let owned = path.to_owned();
        self.operate(&|| format!("restore {path}"), &Kind::TellLibvirt, move |machine, _| machine.restore(&owned))
    }

    fn native_command(&self, definition: &str) -> Result<String, Fault> {
        let owned = definition.to_owned();
        self.operate(&|| "native command".to_owned(), &Kind::AskLibvirt, move |_, _| {
            let definition = crate::definition::Definition::parse(&owned)?;
            Ok(format!("/usr/bin/qemu-system-x86_64 -name guest={}", definition.name))
        })
    }

    fn domain_capabilities(&self, arch: &str, machine: &str, virt_type: &str) -> Result<String, Fault> {
        let told = format!(
            "<domainCapabilities><path>/usr/bin/qemu-system-x86_64</path><domain>{virt_type}</domain><machine>{machine}</machine><arch>{arch}</arch></domainCapabilities>"
        );
        self.operate(&|| "domain capabilities".to_owned(), &Kind::AskLibvirt, move |_, _| Ok(told))
    }

    fn lacks_of_cpu(&self, _: &str, _: &str, _: &str, _: &str) -> Result<Option<String>, Fault> {
        self.operate(&|| "compare a CPU".to_owned(), &Kind::AskLibvirt, |_, _| Ok(None))
    }

    fn networks(&self) -> Result<Vec<NetworkFacts>, Fault> {
        self.operate(&|| "list networks".to_owned(), &Kind::AskLibvirt, |machine, _| {
            Ok(machine.libvirt.network_facts())
        })
    }

    fn pools(&self) -> Result<Vec<PoolFacts>, Fault> {
        self.operate(&|| "list pools".to_owned(), &Kind::AskLibvirt, |machine, _| Ok(machine.libvirt.pool_facts()))
    }

    fn volume_path(&self, pool: &str, volume: &str) -> Result<Option<String>, Fault> {
        let owned = (pool.to_owned(), volume.to_owned());
        self.operate(&|| format!("look at volume {volume} of pool {pool}"), &Kind::AskLibvirt, move |machine, _| {
            Ok(machine.libvirt.volume_path(&owned.0, &owned.1))
        })
    }

    fn refresh_pool(&self, name: &str) -> Result<(), Fault> {
        let owned = name.to_owned();
        self.operate(&|| format!("refresh pool {name}"), &Kind::TellLibvirt, move |machine, _| {
            machine.libvirt.refresh_pool(&machine.files, &owned)
        })
    }

    fn renew_libvirt(&self) -> Result<(), Fault> {
        self.operate(&|| "renew libvirt".to_owned(), &Kind::Look, |_, _| Ok(()))
    }
}
