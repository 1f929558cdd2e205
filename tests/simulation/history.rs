//! One history: lives of controllers with what goes wrong in each, until the transaction is settled; then the verdict.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use journal_format::{AttemptPurpose, ControllerId, Epoch, EventV1, RecordV1, TxnId};
use kvm_clone::engine::{self, Ending, GivingUp, Recovery, Settings};
use kvm_clone::journal::JournalError;
use kvm_clone::observer::{Observer, Progress};
use kvm_clone::records::{RecordState, host_records};
use kvm_clone::world::{Side, World};

use crate::durability::Survival;
use crate::faults::FaultPlan;
use crate::libvirt::DEFINITIONS;
use crate::notebook::{Durable, Notebook};
use crate::oracle::{Cause, Changed, Oracle};
use crate::scene::{Scene, Shape};
use crate::strangers::STRANGER;
use crate::world::{Crash, SimWorld};

/// Undisturbed lives until a transaction must be settled.
const LIVES_MAX: u32 = 4;
/// Between two lives of which the first left an agent behind.
const PAUSE_MILLIS: u64 = 40_000;

/// Within that a libvirt call that was accepted lands.
pub const LANDING_MILLIS_MAX: u64 = 4000;

pub struct Listener(pub Rc<RefCell<Oracle>>);

impl Observer for Listener {
    fn appended(&mut self, _: u64, _: &RecordV1) {}
    fn progress(&mut self, _: &Progress) {}
    fn warning(&mut self, words: &str) {
        if words.starts_with("the pool was not refreshed") {
            self.0.borrow_mut().pools_given_up = true;
        }
    }
}

/// How one life of a controller ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Life {
    Crashed,
    Ended(Ending),
}

/// A transaction's whole story.
pub struct History {
    pub scene: Scene,
    pub durable: Rc<RefCell<Durable>>,
    pub oracle: Rc<RefCell<Oracle>>,
    /// What happened, for a person who has to understand a failure.
    pub told: Vec<String>,
    /// Lives of controllers so far.
    pub lives: u64,
    /// Their operations.
    pub operations: u64,
    traced: bool,
}

impl History {
    pub fn new(shape: Shape, seed: u64) -> Self {
        let scene = Scene::new(shape, seed);
        let begun = RecordV1 {
            at: scene.plan.created_at,
            epoch: Epoch(0),
            event: EventV1::Begun { plan: Box::new(scene.plan.clone()) },
        };
        let durable = Rc::new(RefCell::new(Durable { records: vec![begun], ..Durable::default() }));
        let oracle = Rc::new(RefCell::new(Oracle::new(&scene)));
        let watching = Rc::clone(&oracle);
        scene.world.with(|core| core.watch = Some(Rc::new(move |core| watching.borrow_mut().watch(core))));
        let traced = std::env::var_os("KVM_CLONE_TRACE").is_some();
        Self { scene, durable, oracle, told: Vec::new(), lives: 0, operations: 0, traced }
    }

    /// One life of a controller, with what goes wrong in it. Returns the world of that life too.
    pub fn live(&mut self, purpose: AttemptPurpose, faults: FaultPlan) -> (Life, SimWorld) {
        let (txn, durable, oracle) = (self.scene.plan.txn, Rc::clone(&self.durable), Rc::clone(&self.oracle));
        self.lead(&format!("{purpose:?}"), faults, |world| drive(world, txn, &durable, &oracle, purpose))
    }

    /// One life of a controller that gives the transaction up.
    pub fn abandon(&mut self, faults: FaultPlan) -> (Life, SimWorld) {
        let (txn, durable, oracle) = (self.scene.plan.txn, Rc::clone(&self.durable), Rc::clone(&self.oracle));
        self.lead("abandon", faults, |world| abandon(world, txn, &durable, &oracle))
    }

    /// One life of another controller, which knows the transaction by what its destination says. `None`: by nothing.
    pub fn recover_from(&mut self, forget: bool, faults: FaultPlan) -> Option<(Life, SimWorld)> {
        let plan = self.scene.plan.clone();
        let recovery = Recovery {
            controller: ControllerId { machine_id: "e".repeat(32), state_dir: "/elsewhere".to_owned() },
            controller_pid: 2,
            forget,
        };
        let looking = self.scene.world.another_life(FaultPlan::none());
        let host = looking.connect(Side::Destination).expect("nothing goes wrong while looking");
        let found = host_records(host.as_ref()).expect("nothing goes wrong while looking");
        looking.end();
        let found = found.into_iter().find(|record| record.txn == plan.txn)?;
        let oracle = Rc::clone(&self.oracle);
        Some(self.lead("recover --from", faults, |world| match (found.state, found.plan) {
            (RecordState::Scaffold, _) => life(|| Ok(engine::clear_scaffold(world, plan.txn, &recovery.controller))),
            (_, Ok(planned)) => {
                life(|| engine::drive_from_record(world, &planned, &mut Listener(Rc::clone(&oracle)), &recovery))
            }
            (state, Err(why)) => panic!("a record {state:?} whose plan cannot be read: {why}"),
        }))
    }

    /// Undisturbed lives until it is given up, or that is refused. `None`: neither.
    pub fn give_up(&mut self) -> Option<Ending> {
        for _ in 0..LIVES_MAX {
            match self.abandon(FaultPlan::none()).0 {
                Life::Ended(Ending::Suspended(_)) => self.pause(),
                Life::Ended(ending) => return Some(ending),
                Life::Crashed => unreachable!("nothing goes wrong in this life"),
            }
        }
        None
    }

    fn lead(&mut self, what: &str, faults: FaultPlan, live: impl FnOnce(&SimWorld) -> Life) -> (Life, SimWorld) {
        self.told.push(format!("{what} with {faults:?}"));
        self.lives += 1;
        let world = self.scene.world.another_life(faults);
        if self.traced {
            world.keep_trace();
        }
        let life = live(&world);
        world.end();
        self.operations += world.operations();
        self.told.extend(world.trace().iter().enumerate().map(|(number, what)| format!("  {number} {what}")));
        self.told.push(format!("  -> {life:?} after {} operations", world.operations()));
        (life, world)
    }

    /// An undisturbed life whose operations can be read afterwards.
    pub fn live_traced(&mut self, purpose: AttemptPurpose) -> (Life, SimWorld) {
        self.traced = true;
        self.live(purpose, FaultPlan::none())
    }

    pub fn pause(&mut self) {
        self.scene.world.idle(PAUSE_MILLIS);
    }

    pub fn cut_power(&mut self, side: Side, survival: Survival) {
        self.told.push(format!("the {side} loses its power: {survival:?}"));
        self.scene.world.with(|core| {
            core.count(match side {
                Side::Source => "power cut of the source",
                Side::Destination => "power cut of the destination",
            });
        });
        self.scene.world.cut_power(side, survival);
    }

    /// Somebody follows the advice of a suspended resume, and shuts the source off.
    fn shut_source_off(&mut self) {
        let (uuid, name) = (self.scene.plan.request.vm_uuid, self.scene.plan.request.vm_name.clone());
        let oracle = Rc::clone(&self.oracle);
        self.scene.world.with(|core| {
            let machine = core.machine_mut(Side::Source);
            if machine.libvirt.domains.get(&uuid).is_some_and(|domain| domain.active) {
                machine.destroy(uuid);
                let changed = Changed { paths: Vec::new(), domains: vec![name] };
                oracle.borrow_mut().accept(core, Side::Source, &changed);
            }
        });
    }

    /// Somebody follows the advice of a suspended clean-up: shuts clone and old VM off, and frees the clone's name.
    pub fn free_the_name(&mut self) {
        let (clone, name) = (self.scene.plan.clone_uuid, self.scene.plan.request.new_name.clone());
        let Some(old) = self.scene.plan.replaced.as_ref().map(|old| old.uuid) else { return };
        let oracle = Rc::clone(&self.oracle);
        let marked = self.scene.world.with(|core| oracle.borrow().is_marked(core));
        self.scene.world.with(|core| {
            let machine = core.machine_mut(Side::Destination);
            if machine.libvirt.domains.get(&clone).is_some_and(|domain| domain.active && domain.definition.name != name)
            {
                machine.destroy(clone);
            }
            let of_old = machine.libvirt.domains.get(&old);
            if marked && of_old.is_some_and(|domain| domain.active && domain.definition.name == name) {
                machine.destroy(old);
            }
            if machine.libvirt.domains.contains_key(&STRANGER) {
                machine.libvirt.undefine(&mut machine.files, STRANGER).unwrap();
                machine.files.sync(DEFINITIONS).unwrap();
                let changed = Changed { paths: vec![format!("{DEFINITIONS}/{name}.xml")], domains: vec![name] };
                oracle.borrow_mut().accept(core, Side::Destination, &changed);
            }
        });
    }

    /// Undisturbed lives until the transaction is settled. `None`: it never was.
    pub fn settle(&mut self, purpose: AttemptPurpose) -> Option<Ending> {
        let mut purpose = purpose;
        for _ in 0..LIVES_MAX {
            match self.live(purpose, FaultPlan::none()).0 {
                Life::Ended(Ending::Suspended(_)) => {
                    self.pause();
                    self.shut_source_off();
                    self.free_the_name();
                }
                // Asked for the wrong direction: the transaction has gone the other way already.
                Life::Ended(Ending::Refused(_)) if purpose == AttemptPurpose::Rollback => {
                    purpose = AttemptPurpose::Resume;
                }
                Life::Ended(Ending::Refused(_)) => purpose = AttemptPurpose::Rollback,
                Life::Ended(ending) => return Some(ending),
                Life::Crashed => unreachable!("nothing goes wrong in this life"),
            }
        }
        None
    }

    /// What was promised of this ending.
    pub fn verdict(&self, ending: Option<&Ending>, rollback_asked: bool) -> Result<(), String> {
        // What libvirt accepted long ago may land even now.
        self.scene.world.idle(LANDING_MILLIS_MAX);
        let oracle = self.oracle.borrow();
        self.scene.world.with(|core| {
            if let Some(broken) = core.broken.first() {
                return Err(broken.clone());
            }
            oracle.source(core)?;
            oracle.strangers(core)?;
            match ending {
                None => Err("the transaction never ends".to_owned()),
                Some(Ending::Committed { warnings }) => oracle.committed(core, !warnings.is_empty()),
                Some(Ending::RolledBack { .. }) if !rollback_asked && !oracle.may_turn_back() => {
                    Err(format!("rolled back, and nobody asked for it; from outside: {:?}", oracle.causes))
                }
                Some(Ending::RolledBack { .. }) => oracle.rolled_back(core),
                Some(Ending::Abandoned { .. }) => oracle.abandoned(core),
                // Between the last look and the mark an image can be taken as well.
                Some(Ending::CloneGone { .. }) if oracle.causes.contains(&Cause::ImageRemoved) => Ok(()),
                Some(Ending::CloneGone { missing, .. }) => Err(format!("nobody removed anything: {missing:?}")),
                Some(Ending::Stuck(_)) if oracle.may_stop() => Ok(()),
                Some(Ending::Stuck(found)) => {
                    Err(format!("stopped without a cause; from outside: {:?}; {found:?}", oracle.causes))
                }
                Some(ending) => Err(format!("no reason for {ending:?}")),
            }
        })
    }

    /// Whatever else is there, the clone is whole and nothing of anybody else was touched.
    pub fn clone_stays_whole(&self) -> Result<(), String> {
        let oracle = self.oracle.borrow();
        self.scene.world.with(|core| {
            oracle.source(core)?;
            oracle.strangers(core)?;
            oracle.clone_is_whole(core.machine(Side::Destination))
        })
    }

    /// Tells the whole story of a broken promise.
    pub fn report(&self, broken: &str, replay: &str) -> String {
        format!("{broken}\n{}\nreplay: {replay}", self.told.join("\n"))
    }
}

/// One life: unwinding from a crash ends it.
pub fn drive(
    world: &SimWorld,
    txn: TxnId,
    durable: &Rc<RefCell<Durable>>,
    oracle: &Rc<RefCell<Oracle>>,
    purpose: AttemptPurpose,
) -> Life {
    let mut journal = Notebook::open(txn, world, durable, oracle);
    let controller = controller_of(durable);
    let settings =
        Settings { purpose, controller, controller_pid: 1, bandwidth_limit_bytes_per_second: None, survey: None };
    life(|| engine::drive(world, &mut journal, &mut Listener(Rc::clone(oracle)), &settings))
}

/// Who planned is who acts.
fn controller_of(durable: &Rc<RefCell<Durable>>) -> ControllerId {
    match durable.borrow().records.first().map(|record| &record.event) {
        Some(EventV1::Begun { plan }) => plan.controller.clone(),
        first => panic!("a journal that begins with {first:?}"),
    }
}

/// A life in which the transaction is given up.
fn abandon(world: &SimWorld, txn: TxnId, durable: &Rc<RefCell<Durable>>, oracle: &Rc<RefCell<Oracle>>) -> Life {
    let mut journal = Notebook::open(txn, world, durable, oracle);
    let giving_up =
        GivingUp { controller: controller_of(durable), reason: "enough".to_owned(), destination_gone: false };
    life(|| engine::abandon(world, &mut journal, &mut Listener(Rc::clone(oracle)), &giving_up))
}

fn life(act: impl FnOnce() -> Result<Ending, JournalError>) -> Life {
    match catch_unwind(AssertUnwindSafe(act)) {
        Ok(ending) => Life::Ended(ending.expect("the journal can be read")),
        Err(payload) if payload.is::<Crash>() => Life::Crashed,
        Err(payload) => resume_unwind(payload),
    }
}
