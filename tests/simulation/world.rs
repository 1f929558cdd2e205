//! `World` in memory: two machines, virtual time, one seed, and faults at numbered operations.
//!
//! A `SimWorld` is one life of a controller in it; `another_life` gives the next one the same two machines.

use std::any::Any;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use journal_format::UnixMillis;
use kvm_clone::world::{ChunkSink, CopyJob, CopySummary, Fault, FaultKind, Host, ProcessId, Side, World};

use crate::copy;
use crate::durability::Survival;
use crate::faults::{self, Effect, FaultPlan, Injection};
use crate::host::SimHost;
use crate::machine::{Agent, Machine};
use crate::seed::Seed;

/// Operations of one life of a controller at most: more is an engine that runs in circles.
const OPERATIONS_MAX: u64 = 200_000;
/// An agent ends after so much silence.
const SILENCE_MILLIS_MAX: u64 = 30_000;
pub const MILLISECOND_NS: i128 = 1_000_000;

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
    /// Staged images and their chunks that were read back while they were copied.
    read_back: BTreeSet<(String, u64)>,
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
    /// The operation at which something went wrong last, in words.
    pub operation: String,
    /// How often what went wrong.
    pub struck: BTreeMap<&'static str, u64>,
    /// The next chunk that is written arrives with a byte flipped.
    pub flips_next_write: bool,
}

fn index(side: Side) -> usize {
    match side {
        Side::Source => 0,
        Side::Destination => 1,
    }
}

impl Core {
    /// Has a controller that lives read this chunk of a staged image back?
    pub fn is_read_back(&self, path: &str, chunk: u64) -> bool {
        let read = (path.to_owned(), chunk);
        self.controllers.iter().any(|controller| controller.alive && controller.read_back.contains(&read))
    }

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
        for side in [Side::Source, Side::Destination] {
            for agent in 0..self.machine(side).agents.len() {
                let owned = &self.machine(side).agents[agent];
                if owned.controller == controller && owned.alive {
                    self.orphan(side, agent);
                }
            }
        }
    }

    /// The agent does not hear its controller any more: it ends at once, or finds out by silence.
    pub fn orphan(&mut self, side: Side, agent: usize) {
        let at_once = self.seed.chance(50);
        let later = i128::from(self.seed.below(SILENCE_MILLIS_MAX)) * MILLISECOND_NS;
        let now_ns = self.now_ns;
        let machine = self.machine_mut(side);
        if at_once {
            machine.end_agent(agent);
        } else {
            let agent = &mut machine.agents[agent];
            agent.linked = false;
            agent.ends_at_ns = Some(now_ns + later);
        }
    }

    /// Something went wrong.
    pub fn count(&mut self, kind: &'static str) {
        *self.struck.entry(kind).or_default() += 1;
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
            operation: String::new(),
            struck: BTreeMap::new(),
            flips_next_write: false,
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
            read_back: BTreeSet::new(),
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

    /// A number in `0..bound` that the world's seed decides.
    pub fn draw(&self, bound: u64) -> u64 {
        self.core.borrow_mut().seed.below(bound)
    }

    /// This life has read back a chunk of a staged image.
    pub fn has_read_back(&self, path: &str, chunk: u64) {
        self.core.borrow_mut().controllers[self.controller].read_back.insert((path.to_owned(), chunk));
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

    pub fn crash(&self) -> ! {
        self.end();
        std::panic::resume_unwind(Box::new(Crash) as Box<dyn Any + Send>)
    }

    /// Numbers an operation, lets time pass, and says what goes wrong at it.
    pub fn number(&self, operation: &dyn Fn() -> String) -> Option<Injection> {
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
        let injection = controller.faults.take(number);
        if let Some(injection) = &injection {
            core.operation = operation();
            core.count(injection.kind());
        }
        injection
    }

    /// What can happen anywhere, an append to the journal included. Returns what only an operation on a host knows.
    pub fn strike(&self, injection: Injection) -> Option<Injection> {
        match injection.fault {
            faults::Fault::Crash if injection.effect == Effect::Never => self.crash(),
            faults::Fault::PowerCut(side, survival) if injection.effect == Effect::Never => {
                self.cut_power(side, survival);
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

    /// That host's power goes and comes back.
    pub fn cut_power(&self, side: Side, survival: Survival) {
        self.with(|core| {
            core.machine_mut(side).cut_power(survival);
            core.look();
        });
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
            Some(faults::Fault::PowerCut(side, survival)) => self.cut_power(side, survival),
            // Nothing of a host is asked for here.
            _ => {}
        }
        true
    }

    pub fn host(&self, side: Side) -> Result<SimHost, Fault> {
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
            Some(Injection { fault: faults::Fault::PowerCut(other, survival), .. }) if other != side => {
                let agent = self.add_agent(side);
                self.cut_power(other, survival);
                return Ok(Rc::new(SimHost { world: self.clone(), side, agent }));
            }
            Some(Injection { fault: faults::Fault::PowerCut(side, survival), .. }) => {
                self.cut_power(side, survival);
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
        copy::copy(self, job, sink)
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
            devices: std::collections::BTreeSet::default(),
            image_locks: std::collections::BTreeSet::default(),
            counts: journal_format::CountsV1::default(),
        };
        let agents = &mut core.machine_mut(side).agents;
        agents.push(agent);
        let index_of_agent = agents.len() - 1;
        core.controllers[self.controller].agents[index(side)] = Some(index_of_agent);
        index_of_agent
    }
}
