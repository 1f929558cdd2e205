//! Random histories, each from one seed: several lives with several faults, and strangers, until all is settled.
//!
//! `KVM_CLONE_HISTORIES` says how many (`tests/course`), `KVM_CLONE_TRACE` has a broken one tell every operation. What
//! happened is printed as rows (`tally.rs`).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::thread;

use journal_format::AttemptPurpose;
use kvm_clone::engine::Ending;
use kvm_clone::world::{FaultKind, Side};

use crate::course::{Course, Violation, said_by};
use crate::durability::Survival;
use crate::faults::{Effect, Fault, FaultPlan};
use crate::gone::end_from_record;
use crate::history::{History, LANDING_MILLIS_MAX, Life};
use crate::scene::Shape;
use crate::seed::Seed;
use crate::strangers::{Act, DISTURBING, HARMLESS, Strangers};
use crate::tally::Tally;

const HISTORIES_DEFAULT: u64 = 20_000;
/// A little more than a clean clone of three disks takes.
const OPERATIONS_OF_A_LIFE: u64 = 360;
const FAULTY_LIVES_MAX: u64 = 5;
/// After so many on one thread a run ends.
const VIOLATIONS_MAX: usize = 100;
/// No operation changes files more often than that.
const PARTIAL_CHANGES: u64 = 4;

fn survival(seed: &mut Seed) -> Survival {
    match seed.below(4) {
        0 => Survival::Nothing,
        1 => Survival::Everything,
        2 => Survival::Prefix(seed.next()),
        _ => Survival::Subset(seed.next()),
    }
}

fn effect(seed: &mut Seed, fault: &Fault) -> Effect {
    let may_be_partial = matches!(fault, Fault::PowerCut(..) | Fault::Fails(FaultKind::NoSpace | FaultKind::Io));
    if matches!(fault, Fault::BrokenOff) || (may_be_partial && seed.chance(50)) {
        return Effect::Part(seed.below(PARTIAL_CHANGES));
    }
    match seed.below(4) {
        0 => Effect::Late(1 + seed.below(LANDING_MILLIS_MAX)),
        1 => Effect::Never,
        _ => Effect::First,
    }
}

fn fault(seed: &mut Seed, strangers: &Strangers, disturbing: bool) -> Fault {
    if disturbing && seed.chance(50) {
        return strangers.fault(*seed.pick(&DISTURBING), seed.next());
    }
    match seed.below(100) {
        0..33 => Fault::Crash,
        33..40 => Fault::BrokenOff,
        40..50 => Fault::LinkCut,
        50..58 => Fault::AgentDies,
        58..68 => Fault::PowerCut(Side::Destination, survival(seed)),
        68..70 => Fault::PowerCut(Side::Source, survival(seed)),
        70..80 => Fault::TimesOut,
        80..86 => Fault::Fails(*seed.pick(&[FaultKind::NoSpace, FaultKind::Io, FaultKind::LibvirtDown])),
        86..89 => Fault::DiskFull,
        89..92 => Fault::Interrupt,
        92..95 => Fault::JournalFails,
        _ => strangers.fault(*seed.pick(&HARMLESS), seed.next()),
    }
}

fn faults(seed: &mut Seed, strangers: &Strangers, disturbing: bool) -> FaultPlan {
    let mut plan = FaultPlan::none();
    for _ in 0..=seed.below(2) {
        let until = if seed.chance(50) { OPERATIONS_OF_A_LIFE } else { 80 };
        let fault = fault(seed, strangers, disturbing);
        let effect = effect(seed, &fault);
        plan = plan.and(seed.below(until), fault, effect);
    }
    plan
}

/// Between two lives.
fn interlude(history: &mut History, seed: &mut Seed, strangers: &Strangers, disturbing: bool) {
    match seed.below(10) {
        0..3 => history.scene.world.idle(seed.below(60_000)),
        3 => history.cut_power(Side::Destination, survival(seed)),
        4 => {
            let disks = history.scene.plan.images.len() as u64;
            let lost = u32::try_from(seed.below(disks)).unwrap();
            history.told.push(format!("the ledger of disk {lost} is lost in part"));
            history.scene.world.with(|core| core.count("ledger lost in part"));
            if let Some(ledger) = history.durable.borrow_mut().ledger.get_mut(&lost) {
                ledger.retain(|_, _| seed.chance(40));
            }
        }
        5 if disturbing => {
            let act = *seed.pick(&DISTURBING);
            meet(history, seed, strangers, act);
        }
        6 => {
            let act = *seed.pick(&HARMLESS);
            meet(history, seed, strangers, act);
        }
        _ => {}
    }
}

fn meet(history: &mut History, seed: &mut Seed, strangers: &Strangers, act: Act) {
    history.told.push(act.name().to_owned());
    history.scene.world.with(|core| core.count(act.name()));
    strangers.act(&history.scene.world, act, seed.next());
}

/// One history, told and counted.
fn history(number: u64) -> Tally {
    let mut tally = Tally { histories: 1, ..Tally::default() };
    // A panic is a broken promise like any other, and has a seed too.
    let lived = catch_unwind(AssertUnwindSafe(|| live(number, &mut tally)));
    let story = match lived {
        Ok(Ok(())) => return tally,
        Ok(Err(story)) => story,
        Err(payload) => format!("panic: {}", said_by(&*payload)),
    };
    tally.violations.push(Violation { seed: number, story, replay: replay(number) });
    tally
}

fn replay(number: u64) -> String {
    format!("KVM_CLONE_TRACE=1 KVM_CLONE_SEED={number} cargo test --test simulation random_histories -- --nocapture")
}

fn name_of(ending: Option<&Ending>) -> &'static str {
    match ending {
        None => "none",
        Some(Ending::Committed { warnings }) if warnings.is_empty() => "committed",
        Some(Ending::Committed { .. }) => "committed, something left",
        Some(Ending::RolledBack { failure: None }) => "rolled back, as asked",
        Some(Ending::RolledBack { failure: Some(_) }) => "turned back",
        Some(Ending::Suspended(_)) => "suspended",
        Some(Ending::Stuck(_)) => "stopped",
        Some(Ending::Refused(_)) => "refused",
        Some(Ending::Abandoned { .. }) => "abandoned",
        Some(Ending::CloneGone { .. }) => "the clone was removed",
    }
}

fn live(number: u64, tally: &mut Tally) -> Result<(), String> {
    let mut seed = Seed::new(number);
    let shape = Shape::random(&mut seed).varied_by(&mut Seed::new(number.rotate_left(31)));
    let mut history = History::new(shape, seed.next());
    history.told.push(format!("{shape:?}"));
    let strangers = Strangers::of(&history);
    let disturbing = seed.chance(25);
    let mut purpose = AttemptPurpose::Run;
    let mut asked = false;
    let mut settled = None;
    for _ in 0..=seed.below(FAULTY_LIVES_MAX) {
        let faults = faults(&mut seed, &strangers, disturbing);
        match history.live(purpose, faults).0 {
            Life::Crashed | Life::Ended(Ending::Suspended(_) | Ending::Refused(_)) => {}
            Life::Ended(ending) => {
                settled = Some(ending);
                break;
            }
        }
        interlude(&mut history, &mut seed, &strangers, disturbing);
        purpose =
            if seed.chance(if asked { 80 } else { 25 }) { AttemptPurpose::Rollback } else { AttemptPurpose::Resume };
        asked |= purpose == AttemptPurpose::Rollback;
    }
    // Now and then the controller's disk is gone. Whoever recovers may die as well.
    let mut losing = Seed::new(number.rotate_left(17));
    if settled.is_none() && !disturbing && losing.chance(8) {
        history.scene.world.with(|core| core.count("controller's disk lost"));
        let dies_at = losing.below(OPERATIONS_OF_A_LIFE);
        history.recover_from(false, FaultPlan::at(dies_at, Fault::Crash, Effect::First));
        let verdict = end_from_record(&mut history);
        tally.told_by(&history, "recovered from its record");
        return verdict.map_err(|broken| history.report(&broken, &replay(number)));
    }
    // Now and then somebody gives it up instead. What that person may not give up is brought to its end.
    let mut giving_up = Seed::new(!number);
    if settled.is_none() && giving_up.chance(8) {
        for _ in 0..=giving_up.below(2) {
            history.abandon(FaultPlan::at(
                giving_up.below(40),
                fault(&mut giving_up, &strangers, disturbing),
                Effect::First,
            ));
        }
        match history.give_up() {
            Some(Ending::Refused(_)) => purpose = AttemptPurpose::Resume,
            ending => settled = ending,
        }
    }
    // A commit with something left is tried again, as `recover` does.
    let open = matches!(&settled, None | Some(Ending::Committed { .. }));
    let ending =
        if open { history.settle(if settled.is_some() { AttemptPurpose::Resume } else { purpose }) } else { settled };
    let verdict = history.verdict(ending.as_ref(), asked);
    let verdict = verdict.and_then(|()| still_so(&mut history, ending.as_ref(), asked));
    tally.told_by(&history, name_of(ending.as_ref()));
    verdict.map_err(|broken| history.report(&broken, &replay(number)))
}

/// What is settled stays so: through another power cut, and when it is asked for again.
fn still_so(history: &mut History, ending: Option<&Ending>, asked: bool) -> Result<(), String> {
    let again = match ending {
        Some(Ending::Committed { .. }) => AttemptPurpose::Resume,
        Some(Ending::RolledBack { .. }) => AttemptPurpose::Rollback,
        _ => return Ok(()),
    };
    history.cut_power(Side::Destination, Survival::Nothing);
    let (life, _) = history.live(again, FaultPlan::none());
    match (&life, ending) {
        (Life::Ended(Ending::Committed { .. }), Some(Ending::Committed { .. }))
        | (Life::Ended(Ending::RolledBack { .. }), Some(Ending::RolledBack { .. })) => {}
        _ => return Err(format!("asked again, it says {life:?}")),
    }
    history.verdict(ending, asked)
}

/// Lives the whole course on all cores that this process may use.
fn run(course: &Course) -> Tally {
    let total = Mutex::new(Tally::default());
    let work = || {
        let mut mine = Tally::default();
        while let Some(seed) = course.next() {
            mine.add(history(seed));
            // One that breaks everything need not break it a million times.
            if mine.violations.len() >= VIOLATIONS_MAX {
                course.end();
            }
        }
        total.lock().unwrap().add(mine);
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, std::num::NonZero::get) {
            scope.spawn(work);
        }
    });
    total.into_inner().unwrap()
}

#[test]
fn random_histories_keep_every_promise() {
    let course = Course::of_environment("KVM_CLONE_HISTORIES", HISTORIES_DEFAULT);
    let mut tally = run(&course);
    tally.violations.sort_by_key(|violation| violation.seed);
    tally.print(&course);
    assert!(tally.histories > 0, "no history was lived");
    if let Some(first) = tally.violations.first() {
        panic!("{} of {} histories, the first: {}", tally.violations.len(), tally.histories, first.story);
    }
}
