//! Random histories, each from one seed: several lives with several faults, and strangers, until all is settled.
//!
//! `KVM_CLONE_HISTORIES` says how many, `KVM_CLONE_SEED` from which seed on (alone: that one), `KVM_CLONE_TRACE` has a
//! broken one tell every operation.

use journal_format::AttemptPurpose;
use kvm_clone::engine::Ending;
use kvm_clone::world::{FaultKind, Side};

use crate::durability::Survival;
use crate::faults::{Effect, Fault, FaultPlan};
use crate::history::{History, LANDING_MILLIS_MAX, Life};
use crate::scene::Shape;
use crate::seed::Seed;
use crate::strangers::{DISTURBING, HARMLESS, Strangers};

const HISTORIES_DEFAULT: u64 = 2000;
/// A little more than a clean clone of three disks takes.
const OPERATIONS_OF_A_LIFE: u64 = 360;
const FAULTY_LIVES_MAX: u64 = 5;

fn survival(seed: &mut Seed) -> Survival {
    match seed.below(4) {
        0 => Survival::Nothing,
        1 => Survival::Everything,
        2 => Survival::Prefix(seed.next()),
        _ => Survival::Subset(seed.next()),
    }
}

fn effect(seed: &mut Seed) -> Effect {
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
        0..40 => Fault::Crash,
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
        plan = plan.and(seed.below(until), fault(seed, strangers, disturbing), effect(seed));
    }
    plan
}

/// Between two lives.
fn interlude(history: &mut History, seed: &mut Seed, strangers: &Strangers, disturbing: bool) {
    match seed.below(10) {
        0..3 => history.scene.world.idle(seed.below(60_000)),
        3 => history.cut_power(Side::Destination, survival(seed)),
        4 => {
            let disks = history.scene.plan.disks.len() as u64;
            let lost = u32::try_from(seed.below(disks)).unwrap();
            history.told.push(format!("the ledger of disk {lost} is lost in part"));
            if let Some(ledger) = history.durable.borrow_mut().ledger.get_mut(&lost) {
                ledger.retain(|_, _| seed.chance(40));
            }
        }
        5 if disturbing => {
            let act = *seed.pick(&DISTURBING);
            history.told.push(format!("somebody does {act:?}"));
            strangers.act(&history.scene.world, act, seed.next());
        }
        6 => strangers.act(&history.scene.world, *seed.pick(&HARMLESS), seed.next()),
        _ => {}
    }
}

fn history(number: u64) -> Result<(), String> {
    let mut seed = Seed::new(number);
    let shape = Shape::random(&mut seed);
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
    let replay =
        format!("KVM_CLONE_TRACE=1 KVM_CLONE_SEED={number} cargo test --test simulation histories -- --nocapture");
    history.verdict(ending.as_ref(), asked).map_err(|broken| history.report(&broken, &replay))?;
    still_so(&mut history, ending.as_ref(), asked).map_err(|broken| history.report(&broken, &replay))
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

#[test]
fn random_histories_keep_every_promise() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seeds = match (number("KVM_CLONE_SEED"), number("KVM_CLONE_HISTORIES")) {
        (Some(seed), count) => seed..seed + count.unwrap_or(1),
        (None, count) => 0..count.unwrap_or(HISTORIES_DEFAULT),
    };
    let mut broken = Vec::new();
    for seed in seeds.clone() {
        if let Err(story) = history(seed) {
            println!("broken, seed {seed}: {}", story.lines().next().unwrap_or_default());
            broken.push(story);
        }
    }
    assert!(broken.is_empty(), "{} of {} histories, the first: {}", broken.len(), seeds.count(), broken[0]);
}
