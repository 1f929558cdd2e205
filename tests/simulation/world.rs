//! `World` and `Host` in memory: two machines, virtual time, one seed, and faults at numbered operations.
//!
//! A `SimWorld` is one life of a controller in it; `another_life` gives the next one the same two machines.

use std::any::Any;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use journal_format::{ChunkRecordV1, ChunkState, ChunkValue, DomainUuid, Inode, UnixMillis};
use kvm_clone::world::{
    BATCH_CHUNKS_MAX, ChunkGeometry, ChunkSink, CopyJob, CopySummary, DomainBrief, DomainFacts, Fault, FaultKind,
    FileStat, FilesystemFacts, HashJob, Host, HostFacts, NetworkFacts, OwnerLock, PoolFacts, ProcessId, Side, World,
    ZeroChunks,
};

use crate::content::Content;
use crate::faults::{self, Effect, FaultPlan, Injection};
use crate::filesystem::Refusal;
use crate::machine::{Agent, Late, Machine};
use crate::seed::Seed;

/// Operations of one life of a controller at most: more is an engine that runs in circles.
const OPERATIONS_MAX: u64 = 200_000;
/// An agent ends after so much silence.
const SILENCE_MILLIS_MAX: u64 = 30_000;
const MILLISECOND_NS: i128 = 1_000_000;

/// Unwinds what a controller was doing when it died.
pub struct Crash;

struct Controller {
    faults: FaultPlan,
    operations: u64,
    /// Index of its agent on each side.
    agents: [Option<usize>; 2],
    alive: bool,
    interrupted: bool,
    trace: Option<Vec<String>>,
}

/// Called after everything that changed something: what it returns is a broken promise.
pub type Watch = Rc<dyn Fn(&Core) -> Result<(), String>>;

/// Both machines and all that is outside of them.
pub struct Core {
    pub machines: [Machine; 2],
    pub now_ns: i128,
    seed: Seed,
    controllers: Vec<Controller>,
    next_pid: u32,
    pub watch: Option<Watch>,
    pub broken: Vec<String>,
}

fn index(side: Side) -> usize {
    match side {
        Side::Source => 0,
        Side::Destination => 1,
    }
}

impl Core {
    pub fn machine(&self, side: Side) -> &Machine {
        &self.machines[index(side)]
    }

    pub fn machine_mut(&mut self, side: Side) -> &mut Machine {
        &mut self.machines[index(side)]
    }

    fn pass_time(&mut self, millis: u64) {
        // In steps of a second, so that late effects and ends of agents come in the order of their times.
        let end_ns = self.now_ns + i128::from(millis) * MILLISECOND_NS;
        while self.now_ns < end_ns {
            self.now_ns = end_ns.min(self.now_ns + 1000 * MILLISECOND_NS);
            let now_ns = self.now_ns;
            let mut changed = false;
            for machine in &mut self.machines {
                changed |= machine.pass_time(now_ns);
            }
            if changed {
                self.look();
            }
        }
    }

    /// Asks the watch.
    pub fn look(&mut self) {
        if let Some(watch) = self.watch.clone()
            && let Err(broken) = watch(self)
        {
            self.broken.push(broken);
        }
    }

    /// The controller is gone; its agents find out at once or by silence.
    fn end_controller(&mut self, controller: usize) {
        self.controllers[controller].alive = false;
        self.controllers[controller].agents = [None, None];
        for machine in 0..2 {
            for agent in 0..self.machines[machine].agents.len() {
                let owned = &self.machines[machine].agents[agent];
                if owned.controller == controller && owned.alive {
                    self.orphan(machine, agent);
                }
            }
        }
    }

    fn orphan(&mut self, machine: usize, agent: usize) {
        let at_once = self.seed.chance(50);
        let later = i128::from(self.seed.below(SILENCE_MILLIS_MAX)) * MILLISECOND_NS;
        if at_once {
            self.machines[machine].end_agent(agent);
        } else {
            let agent = &mut self.machines[machine].agents[agent];
            agent.linked = false;
            agent.ends_at_ns = Some(self.now_ns + later);
        }
    }

    fn full(&mut self, full: bool) {
        self.machines[index(Side::Destination)].files.set_full(full);
    }
}

/// One life of a controller.
#[derive(Clone)]
pub struct SimWorld {
    core: Rc<RefCell<Core>>,
    controller: usize,
}

impl SimWorld {
    pub fn new(source: Machine, destination: Machine, seed: u64) -> Self {
        let core = Core {
            machines: [source, destination],
            now_ns: 1_800_000_000_000 * MILLISECOND_NS,
            seed: Seed::new(seed),
            controllers: Vec::new(),
            next_pid: 1000,
            watch: None,
            broken: Vec::new(),
        };
        let world = Self { core: Rc::new(RefCell::new(core)), controller: 0 };
        world.with(|core| core.pass_time(1000));
        world.another_life(FaultPlan::none())
    }

    /// The next controller process.
    pub fn another_life(&self, faults: FaultPlan) -> Self {
        let mut core = self.core.borrow_mut();
        core.controllers.push(Controller {
            faults,
            operations: 0,
            agents: [None, None],
            alive: true,
            interrupted: false,
            trace: None,
        });
        Self { core: Rc::clone(&self.core), controller: core.controllers.len() - 1 }
    }

    /// From outside.
    pub fn with<T>(&self, look: impl FnOnce(&mut Core) -> T) -> T {
        look(&mut self.core.borrow_mut())
    }

    /// How many operations this life has had.
    pub fn operations(&self) -> u64 {
        self.core.borrow().controllers[self.controller].operations
    }

    /// Everything that was planned to go wrong did.
    pub fn is_spent(&self) -> bool {
        self.core.borrow().controllers[self.controller].faults.is_spent()
    }

    pub fn keep_trace(&self) {
        self.core.borrow_mut().controllers[self.controller].trace = Some(Vec::new());
    }

    pub fn trace(&self) -> Vec<String> {
        self.core.borrow().controllers[self.controller].trace.clone().unwrap_or_default()
    }

    /// The process ends, by itself or not.
    pub fn end(&self) {
        let mut core = self.core.borrow_mut();
        core.full(false);
        core.end_controller(self.controller);
    }

    /// Lets virtual time pass while no controller runs.
    pub fn idle(&self, millis: u64) {
        self.core.borrow_mut().pass_time(millis);
    }

    /// The agent of this controller on the destination holds an owner lock.
    pub fn holds_owner_lock(&self) -> bool {
        let core = self.core.borrow();
        let agent = core.controllers[self.controller].agents[index(Side::Destination)];
        agent.is_some_and(|agent| !core.machine(Side::Destination).agents[agent].owner_locks.is_empty())
    }

    /// While this controller is stopped (SIGSTOP) its agents hear nothing of it.
    pub fn stop_and(&self, meanwhile: impl FnOnce()) {
        let mine = |core: &mut Core, ends_at_ns: Option<i128>, controller| {
            for machine in &mut core.machines {
                for agent in machine.agents.iter_mut().filter(|agent| agent.controller == controller && agent.alive) {
                    agent.ends_at_ns = ends_at_ns;
                }
            }
        };
        self.with(|core| {
            mine(core, Some(core.now_ns + i128::from(SILENCE_MILLIS_MAX) * MILLISECOND_NS), self.controller);
        });
        meanwhile();
        self.with(|core| mine(core, None, self.controller));
    }

    fn crash(&self) -> ! {
        self.end();
        std::panic::resume_unwind(Box::new(Crash) as Box<dyn Any + Send>)
    }

    /// Numbers an operation, lets time pass, and says what goes wrong at it.
    fn number(&self, operation: &dyn Fn() -> String) -> Option<Injection> {
        let mut core = self.core.borrow_mut();
        core.pass_time(1);
        let controller = &mut core.controllers[self.controller];
        assert!(controller.alive, "a dead controller does nothing");
        let number = controller.operations;
        controller.operations += 1;
        assert!(number < OPERATIONS_MAX, "the engine runs in circles");
        if let Some(trace) = &mut controller.trace {
            trace.push(operation());
        }
        controller.faults.take(number)
    }

    /// What can happen anywhere, an append to the journal included. Returns what only an operation on a host knows.
    fn strike(&self, injection: Injection) -> Option<Injection> {
        match injection.fault {
            faults::Fault::Crash if injection.effect == Effect::Never => self.crash(),
            faults::Fault::PowerCut(side, survival) if injection.effect == Effect::Never => {
                self.with(|core| {
                    core.machine_mut(side).cut_power(survival);
                    core.look();
                });
                None
            }
            faults::Fault::DiskFull => {
                self.with(|core| core.full(true));
                None
            }
            faults::Fault::Interrupt => {
                self.with(|core| core.controllers[self.controller].interrupted = true);
                None
            }
            faults::Fault::Meanwhile(_, ref act) => {
                act(self);
                self.with(Core::look);
                None
            }
            _ => Some(injection),
        }
    }

    /// A place in the journal where the controller can die. `false`: the journal's disk fails instead.
    pub fn journal_point(&self, operation: &dyn Fn() -> String, effect: impl FnOnce()) -> bool {
        let injection = self.number(operation).and_then(|injection| self.strike(injection));
        let fails = |injection: &Injection| matches!(injection.fault, faults::Fault::JournalFails);
        if injection.as_ref().is_none_or(|injection| !fails(injection) || injection.effect == Effect::First) {
            effect();
        }
        match injection.map(|injection| injection.fault) {
            Some(faults::Fault::Crash) => self.crash(),
            Some(faults::Fault::JournalFails) => return false,
            Some(faults::Fault::PowerCut(side, survival)) => self.with(|core| {
                core.machine_mut(side).cut_power(survival);
                core.look();
            }),
            // Nothing of a host is asked for here.
            _ => {}
        }
        true
    }

    fn host(&self, side: Side) -> Result<SimHost, Fault> {
        match self.core.borrow().controllers[self.controller].agents[index(side)] {
            Some(agent) => Ok(SimHost { world: self.clone(), side, agent }),
            None => Err(Fault {
                kind: FaultKind::Unreachable,
                host: side.to_string(),
                operation: "use".to_owned(),
                detail: "not connected".to_owned(),
            }),
        }
    }
}

/// What kind of operation it is.
enum Kind<'a> {
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
    world: SimWorld,
    side: Side,
    agent: usize,
}

impl SimHost {
    fn fault(&self, operation: &dyn Fn() -> String, kind: FaultKind, detail: &str) -> Fault {
        Fault { kind, host: self.side.to_string(), operation: operation(), detail: detail.to_owned() }
    }

    /// One numbered operation: what goes wrong, who may, the effect, and who watches.
    fn operate<T: 'static>(
        &self,
        operation: &dyn Fn() -> String,
        kind: &Kind,
        effect: impl FnOnce(&mut Machine, usize) -> Result<T, Refusal> + 'static,
    ) -> Result<T, Fault> {
        let told = || format!("{}: {}", self.side, operation());
        let injection = self.world.number(&told).and_then(|injection| self.world.strike(injection));
        if let Some(Injection { fault: faults::Fault::Fails(kind), .. }) = injection {
            return Err(self.fault(operation, kind, "injected"));
        }
        self.check(kind).map_err(|(kind, detail)| self.fault(operation, kind, &detail))?;
        let agent = self.agent;
        let Some(injection) = injection else {
            return self.carry_out(kind, effect).map_err(|(kind, detail)| self.fault(operation, kind, &detail));
        };
        match injection.effect {
            Effect::Never => {}
            Effect::First => {
                let _ = self.carry_out(kind, effect);
            }
            Effect::Late(millis) => self.world.with(|core| {
                let at_ns = core.now_ns + i128::from(millis) * MILLISECOND_NS;
                let libvirts = matches!(kind, Kind::TellLibvirt);
                let effect = Box::new(move |machine: &mut Machine| drop(effect(machine, agent)));
                let late = Late { at_ns, agent: if libvirts { None } else { Some(agent) }, effect };
                core.machine_mut(self.side).late.push(late);
            }),
        }
        Err(self.go_wrong(operation, injection.fault))
    }

    fn go_wrong(&self, operation: &dyn Fn() -> String, fault: faults::Fault) -> Fault {
        let machine = index(self.side);
        match fault {
            faults::Fault::Crash => self.world.crash(),
            faults::Fault::LinkCut => self.world.with(|core| {
                core.orphan(machine, self.agent);
                core.machines[machine].agents[self.agent].linked = false;
            }),
            faults::Fault::PowerCut(side, survival) => self.world.with(|core| {
                core.machine_mut(side).cut_power(survival);
                core.look();
            }),
            faults::Fault::TimesOut => return self.fault(operation, FaultKind::TimedOut, "no answer in time"),
            // `AgentDies`, and what makes no other sense on a host.
            _ => self.world.with(|core| core.machines[machine].end_agent(self.agent)),
        }
        self.fault(operation, FaultKind::Unreachable, "the agent is gone")
    }

    fn check(&self, kind: &Kind) -> Result<(), Refusal> {
        let core = self.world.core.borrow();
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
    }

    fn carry_out<T>(
        &self,
        kind: &Kind,
        effect: impl FnOnce(&mut Machine, usize) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        self.world.with(|core| {
            let done = effect(core.machine_mut(self.side), self.agent);
            if !matches!(kind, Kind::AskLibvirt) {
                core.look();
            }
            done
        })
    }

    fn look<T: 'static>(
        &self,
        operation: &dyn Fn() -> String,
        look: impl FnOnce(&mut Machine, usize) -> Result<T, Refusal> + 'static,
    ) -> Result<T, Fault> {
        self.operate(operation, &Kind::Look, look)
    }

    /// Bytes and whether they are a hole, of one chunk.
    fn chunk(
        &self,
        path: &str,
        inode: Option<Inode>,
        geometry: ChunkGeometry,
        chunk: u64,
    ) -> Result<(Vec<u8>, bool), Fault> {
        let owned = path.to_owned();
        self.look(&|| format!("read chunk {chunk} of {path}"), move |machine, _| {
            let stat = machine.files.stat(&owned).ok_or((FaultKind::NotFound, "no such file".to_owned()))?;
            if inode.is_some_and(|inode| inode != stat.inode) || stat.size != geometry.image_bytes {
                return Err((FaultKind::Changed, "another file, or another size".to_owned()));
            }
            let start = chunk * u64::from(geometry.chunk_bytes);
            let content = machine.files.content(&owned).ok_or((FaultKind::Unsupported, "not a file".to_owned()))?;
            let len = geometry.chunk_len(chunk);
            Ok((content.read(start, len), content.is_hole(&(start..start + len))))
        })
    }
}

/// The subtree value of one chunk.
pub fn chunk_value(geometry: ChunkGeometry, chunk: u64, bytes: &[u8]) -> ChunkValue {
    use blake3::hazmat::HasherExt;
    if geometry.chunk_count() == 1 {
        return ChunkValue(*blake3::hash(bytes).as_bytes());
    }
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(chunk * u64::from(geometry.chunk_bytes));
    hasher.update(bytes);
    ChunkValue(hasher.finalize_non_root())
}

fn state_of(geometry: ChunkGeometry, chunk: u64, bytes: &[u8]) -> ChunkState {
    if bytes.iter().all(|byte| *byte == 0) {
        return ChunkState::Zero;
    }
    ChunkState::Data(chunk_value(geometry, chunk, bytes))
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

    fn hash_chunks(&self, job: &HashJob, sink: &mut dyn ChunkSink) -> Result<(), Fault> {
        let operation = || format!("hash {}", job.path);
        let closed = || self.fault(&operation, FaultKind::Sink, "the caller wants no more");
        let mut batch = Vec::new();
        for chunk in job.wanted.iter().cloned().flatten() {
            let (bytes, hole) = self.chunk(&job.path, job.inode, job.geometry, chunk)?;
            if hole {
                if !batch.is_empty() {
                    sink.chunks(&std::mem::take(&mut batch)).map_err(|_| closed())?;
                }
                sink.holes(chunk..chunk + 1).map_err(|_| closed())?;
                continue;
            }
            batch.push(ChunkRecordV1 { index: chunk, state: state_of(job.geometry, chunk, &bytes) });
            if batch.len() == BATCH_CHUNKS_MAX {
                sink.chunks(&std::mem::take(&mut batch)).map_err(|_| closed())?;
            }
        }
        if !batch.is_empty() {
            sink.chunks(&batch).map_err(|_| closed())?;
        }
        Ok(())
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

    fn networks(&self) -> Result<Vec<NetworkFacts>, Fault> {
        self.operate(&|| "list networks".to_owned(), &Kind::AskLibvirt, |machine, _| {
            Ok(machine.libvirt.network_facts())
        })
    }

    fn pools(&self) -> Result<Vec<PoolFacts>, Fault> {
        self.operate(&|| "list pools".to_owned(), &Kind::AskLibvirt, |machine, _| Ok(machine.libvirt.pool_facts()))
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

impl World for SimWorld {
    fn connect(&self, side: Side) -> Result<Rc<dyn Host>, Fault> {
        let fault = |kind, detail: &str| Fault {
            kind,
            host: side.to_string(),
            operation: "connect".to_owned(),
            detail: detail.to_owned(),
        };
        let injection = self.number(&|| format!("connect to the {side}")).and_then(|injection| self.strike(injection));
        match injection {
            None => {}
            Some(Injection { fault: faults::Fault::Crash, .. }) => {
                self.add_agent(side);
                self.crash();
            }
            Some(Injection { fault: faults::Fault::PowerCut(side, survival), .. }) => {
                self.with(|core| core.machine_mut(side).cut_power(survival));
                return Err(fault(FaultKind::Unreachable, "connection refused"));
            }
            Some(Injection { fault: faults::Fault::Fails(kind), .. }) => return Err(fault(kind, "injected")),
            Some(_) => return Err(fault(FaultKind::Unreachable, "connection timed out")),
        }
        let agent = self.add_agent(side);
        Ok(Rc::new(SimHost { world: self.clone(), side, agent }))
    }

    fn disconnect(&self, side: Side) {
        let mut core = self.core.borrow_mut();
        if let Some(agent) = core.controllers[self.controller].agents[index(side)].take() {
            core.machine_mut(side).end_agent(agent);
        }
    }

    fn copy_chunks(&self, job: &CopyJob, sink: &mut dyn ChunkSink) -> Result<CopySummary, Fault> {
        let (source, destination) = (self.host(Side::Source)?, self.host(Side::Destination)?);
        let mut copy = Copy { job, destination: &destination, sink, unsynced: Vec::new() };
        let mut summary = CopySummary::default();
        for chunk in job.wanted.iter().cloned().flatten() {
            self.check_interrupted()?;
            let (bytes, hole) = source.chunk(&job.from, None, job.geometry, chunk)?;
            let zero = bytes.iter().all(|byte| *byte == 0);
            match job.zero_chunks {
                ZeroChunks::Skip if hole => copy.report_hole(chunk)?,
                // Nothing was ever there, so nothing has to become durable.
                ZeroChunks::Skip if zero => copy.unsynced.push(ChunkRecordV1 { index: chunk, state: ChunkState::Zero }),
                ZeroChunks::Punch if zero => copy.punch(chunk)?,
                _ => {
                    summary.sent_bytes += bytes.len() as u64;
                    copy.write(chunk, bytes)?;
                }
            }
            let batch_chunks = 1 + self.with(|core| core.seed.below(3));
            if copy.unsynced.len() as u64 >= batch_chunks {
                copy.sync_and_report()?;
            }
        }
        copy.sync_and_report()?;
        Ok(summary)
    }

    fn now(&self) -> UnixMillis {
        UnixMillis(u64::try_from(self.core.borrow().now_ns / MILLISECOND_NS).expect("time is after 1970"))
    }

    fn random(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        self.with(|core| core.seed.fill(&mut bytes));
        bytes
    }

    fn wait(&self, time: Duration) -> Result<(), Fault> {
        self.with(|core| core.pass_time(u64::try_from(time.as_millis()).expect("a bounded wait")));
        self.check_interrupted()
    }

    fn check_interrupted(&self) -> Result<(), Fault> {
        if !self.core.borrow().controllers[self.controller].interrupted {
            return Ok(());
        }
        Err(Fault {
            kind: FaultKind::Interrupted,
            host: "local".to_owned(),
            operation: "go on".to_owned(),
            detail: "interrupted".to_owned(),
        })
    }
}

impl SimWorld {
    fn add_agent(&self, side: Side) -> usize {
        self.disconnect(side);
        let mut core = self.core.borrow_mut();
        core.next_pid += 1;
        let process = ProcessId { pid: core.next_pid, started: u64::try_from(core.now_ns / 10_000_000).unwrap_or(0) };
        let allowed = match side {
            Side::Source => None,
            Side::Destination => Some(Vec::new()),
        };
        let agent = Agent {
            process,
            controller: self.controller,
            alive: true,
            linked: true,
            ends_at_ns: None,
            allowed,
            owner_locks: std::collections::BTreeSet::default(),
            image_locks: std::collections::BTreeSet::default(),
        };
        let agents = &mut core.machine_mut(side).agents;
        agents.push(agent);
        let index_of_agent = agents.len() - 1;
        core.controllers[self.controller].agents[index(side)] = Some(index_of_agent);
        index_of_agent
    }
}

/// The destination's half of a copy.
struct Copy<'a> {
    job: &'a CopyJob,
    destination: &'a SimHost,
    sink: &'a mut dyn ChunkSink,
    /// Written, not durable, not reported.
    unsynced: Vec<ChunkRecordV1>,
}

impl Copy<'_> {
    fn closed(&self) -> Fault {
        self.destination.fault(&|| format!("copy {}", self.job.from), FaultKind::Sink, "the caller wants no more")
    }

    fn start_of(&self, chunk: u64) -> u64 {
        chunk * u64::from(self.job.geometry.chunk_bytes)
    }

    fn report_hole(&mut self, chunk: u64) -> Result<(), Fault> {
        self.sink.holes(chunk..chunk + 1).map_err(|_| self.closed())
    }

    fn punch(&mut self, chunk: u64) -> Result<(), Fault> {
        let start = self.start_of(chunk);
        let end = start + self.job.geometry.chunk_len(chunk);
        let (path, inode) = (self.job.to.clone(), self.job.to_inode);
        let told = || format!("punch chunk {chunk} of {}", self.job.to);
        self.destination.operate(&told, &Kind::Change(&[&self.job.to]), move |machine, _| {
            machine.files.punch(&path, inode, start..end)
        })?;
        self.unsynced.push(ChunkRecordV1 { index: chunk, state: ChunkState::Zero });
        Ok(())
    }

    fn write(&mut self, chunk: u64, bytes: Vec<u8>) -> Result<(), Fault> {
        let start = self.start_of(chunk);
        let state = state_of(self.job.geometry, chunk, &bytes);
        let (path, inode) = (self.job.to.clone(), self.job.to_inode);
        let told = || format!("write chunk {chunk} of {}", self.job.to);
        self.destination.operate(&told, &Kind::Change(&[&self.job.to]), move |machine, _| {
            machine.files.write_at(&path, inode, start, &bytes)
        })?;
        self.unsynced.push(ChunkRecordV1 { index: chunk, state });
        Ok(())
    }

    /// `fdatasync`: the times of the file are not durable yet.
    fn sync_and_report(&mut self) -> Result<(), Fault> {
        if self.unsynced.is_empty() {
            return Ok(());
        }
        let path = self.job.to.clone();
        let told = || format!("fdatasync {}", self.job.to);
        self.destination.look(&told, move |machine, _| machine.files.sync_data(&path))?;
        self.sink.chunks(&std::mem::take(&mut self.unsynced)).map_err(|_| self.closed())
    }
}
