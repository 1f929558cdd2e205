//! Every step twice: each apply and each undo, repeated, leaves the same world and the same ledger.

use std::collections::BTreeSet;
use std::rc::Rc;

use journal_format::{AttemptPurpose, EventV1, FailureV1, OutcomeV1, StepRef};
use kvm_clone::journal::recorder::Recorder;
use kvm_clone::observer::Observer;
use kvm_clone::steps::host_record::HostRecord;
use kvm_clone::steps::{self, Applied, Context, Counted, Probe};
use kvm_clone::world::{Side, World};

use crate::faults::FaultPlan;
use crate::history::{History, Listener};
use crate::kinds::{CLEAN_UP_STEPS, STEPS, name_of_clean_up_step, name_of_step};
use crate::notebook::Notebook;
use crate::old_vm::OldVm;
use crate::oracle::Snapshot;
use crate::scene::Shape;
use crate::world::SimWorld;

const SEED: u64 = 17;

/// One attempt whose steps are done by hand, each of them twice.
struct Attempt<'a> {
    context: Context<'a>,
    world: SimWorld,
    visited: BTreeSet<&'static str>,
}

impl<'a> Attempt<'a> {
    fn open(world: &'a SimWorld, journal: &'a mut Notebook, observer: &'a mut dyn Observer) -> Self {
        let recorder = Recorder::new(journal, observer).unwrap();
        let plan = recorder.plan();
        let destination = world.connect(Side::Destination).unwrap();
        // Which paths an agent may change is tried by the conformance suite.
        destination.allow(&["/".to_owned()]).unwrap();
        let source = world.connect(Side::Source).unwrap();
        let mut context = Context {
            world,
            controller: plan.controller.clone(),
            record: HostRecord::of(plan.txn, &plan.request.new_name),
            plan,
            recorder,
            destination,
            source: Some(source),
            bandwidth_limit_bytes_per_second: None,
            keeps_record: false,
            read_back: std::collections::BTreeMap::new(),
            counted: Counted::default(),
        };
        let epoch = journal_format::Epoch(1);
        let opened = EventV1::AttemptOpened { epoch, purpose: AttemptPurpose::Run, pid: 1 };
        context.recorder.append(world.now(), opened).unwrap();
        Self { context, world: world.clone(), visited: BTreeSet::new() }
    }

    fn append(&mut self, event: EventV1) {
        self.context.recorder.append(self.world.now(), event).unwrap();
    }

    /// Both hosts, and the ledger.
    fn seen(&self) -> (Vec<Snapshot>, Vec<String>) {
        let sides = [Side::Source, Side::Destination];
        let hosts =
            self.world.with(|core| sides.map(|side| Snapshot::of(core.machine(side)).without_times_and_numbers()));
        let disks = 0..u32::try_from(self.context.plan.images.len()).unwrap();
        let ledgers = disks.map(|disk| format!("{:?}", self.context.recorder.chunks(disk).unwrap()));
        (hosts.into(), ledgers.collect())
    }

    /// Does it, and once more, and compares.
    fn twice<T>(&mut self, what: &str, act: &mut dyn FnMut(&mut Self) -> T) -> T {
        act(self);
        let once = self.seen();
        let done = act(self);
        let twice = self.seen();
        for (before, after) in once.0.iter().zip(&twice.0) {
            before.is(after).unwrap_or_else(|changed| panic!("{what}, a second time: {changed}"));
        }
        assert_eq!(once.1, twice.1, "{what}, a second time: the ledger");
        done
    }

    /// All steps before the commit.
    fn forward(&mut self) {
        for (index, planned) in (0..).zip(self.context.plan.clone().steps.clone()) {
            let (place, step) = (StepRef::Forward(index), steps::step(planned));
            self.append(EventV1::Started { step: place });
            let outcome = self.twice(&format!("apply of {planned:?}"), &mut |this| {
                let applied = step.apply(&mut this.context).unwrap();
                step.settle(&this.context).unwrap();
                let Applied::Done(outcome) = applied else { panic!("{planned:?} came to {applied:?}") };
                outcome
            });
            self.append(EventV1::Done { step: place, outcome });
            let probe = step.probe(&self.context).unwrap();
            assert!(matches!(probe, Probe::Ours(_)), "{planned:?}: {probe:?}");
            step.hold(&self.context).unwrap();
            self.visited.insert(name_of_step(planned));
        }
    }

    /// All of them undone, in the opposite order.
    fn back(&mut self) {
        let failure = FailureV1 {
            class: journal_format::FailureClassV1::TurnBack,
            exit: 0,
            message: "asked for".to_owned(),
            advice: String::new(),
        };
        self.append(EventV1::RollingBack { failure });
        for (index, planned) in (0..).zip(self.context.plan.clone().steps.clone()).collect::<Vec<_>>().into_iter().rev()
        {
            let step = steps::step(planned);
            self.twice(&format!("undo of {planned:?}"), &mut |this| step.undo(&mut this.context).unwrap());
            self.append(EventV1::Undone { step: StepRef::Forward(index) });
        }
    }

    fn clean_up(&mut self) {
        let (host, record) = (Rc::clone(&self.context.destination), self.context.record.clone());
        host.rename(&record.owner(), &record.committed()).unwrap();
        host.sync(&record.directory).unwrap();
        self.append(EventV1::Committed);
        for (index, planned) in (0..).zip(self.context.plan.clone().clean_up.clone()) {
            let (place, step) = (StepRef::CleanUp(index), steps::clean_up_step(planned));
            self.append(EventV1::Started { step: place });
            self.twice(&format!("apply of {planned:?}"), &mut |this| {
                step.apply(&mut this.context).unwrap();
                step.settle(&this.context).unwrap();
            });
            self.append(EventV1::Done { step: place, outcome: OutcomeV1::Nothing });
            let probe = step.probe(&self.context).unwrap();
            assert!(matches!(probe, Probe::Ours(_)), "{planned:?}: {probe:?}");
            self.visited.insert(name_of_clean_up_step(planned));
        }
    }
}

/// The second disk stands on another image, which is copied too or is there already, or arrives as one with those below it; the first is a file, or
/// a device on either side.
fn shapes(start: bool) -> [Shape; 5] {
    let kept = Shape { start, old: Some(OldVm::running()), snapshots: true, ..Shape::plain() };
    let (device, flattened) = (Shape { device: true, ..kept }, Shape { flattened: true, ..kept });
    [kept, device, flattened, Shape { target: true, ..kept }, Shape { base: true, ..kept }]
}

fn in_one_attempt(history: &History, live: &dyn Fn(&mut Attempt)) -> BTreeSet<&'static str> {
    let world = history.scene.world.another_life(FaultPlan::none());
    let mut journal = Notebook::open(history.scene.plan.txn, &world, &history.durable, &history.oracle);
    let mut observer = Listener(Rc::clone(&history.oracle));
    let mut attempt = Attempt::open(&world, &mut journal, &mut observer);
    live(&mut attempt);
    let visited = std::mem::take(&mut attempt.visited);
    world.end();
    visited
}

#[test]
fn each_step_done_twice_and_undone_twice_leaves_the_world_as_before() {
    let mut visited = BTreeSet::new();
    for shape in shapes(false) {
        let history = History::new(shape, SEED);
        visited.extend(in_one_attempt(&history, &|attempt| {
            attempt.forward();
            attempt.back();
        }));
        history
            .scene
            .world
            .with(|core| {
                assert_eq!(core.broken, Vec::<String>::new());
                history.oracle.borrow().undone(core)
            })
            .unwrap();
    }
    assert_eq!(visited, STEPS.iter().copied().collect());
}

#[test]
fn each_step_done_twice_and_cleaned_up_twice_leaves_the_clone() {
    let mut visited = BTreeSet::new();
    for shape in shapes(true) {
        let history = History::new(shape, SEED);
        visited.extend(in_one_attempt(&history, &|attempt| {
            attempt.forward();
            attempt.clean_up();
        }));
        let ending = kvm_clone::engine::Ending::Committed { warnings: Vec::new() };
        history.verdict(Some(&ending), false).unwrap();
    }
    assert_eq!(visited, STEPS.iter().chain(CLEAN_UP_STEPS).copied().collect());
}
