//! Two transactions that want one name: at every operation of the one the other runs from its beginning to its end.
//! One clone comes of it, whole, and nothing is left of the other.

use std::cell::RefCell;
use std::rc::Rc;

use journal_format::{AttemptPurpose, ControllerId, DomainUuid, Epoch, EventV1, PlanV1, RecordV1, TxnId, UnixMillis};
use kvm_clone::engine::Ending;

use crate::faults::{Effect, Fault, FaultPlan};
use crate::history::{History, Life, drive};
use crate::notebook::Durable;
use crate::oracle::{Cause, Oracle};
use crate::scene::{Scene, Shape};
use crate::world::SimWorld;

const SEED: u64 = 31;

/// The same clone once more: other transaction, other UUID, same name and paths.
fn rival_of(plan: &PlanV1, controller: ControllerId) -> PlanV1 {
    let txn = TxnId::new(UnixMillis(1_799_999_500_000), [9; 10]);
    let clone_uuid = DomainUuid([0x77; 16]);
    let mut rival = plan.clone();
    rival.definition = plan.definition.replace(&plan.clone_uuid.to_string(), &clone_uuid.to_string());
    for directory in &mut rival.directories {
        directory.staging = directory.staging.replace(&plan.txn.to_string(), &txn.to_string());
        directory.nonce = [0x88; 16];
    }
    for disk in &mut rival.images {
        disk.staging_path = disk.staging_path.replace(&plan.txn.to_string(), &txn.to_string());
    }
    let made = rival.new_directories.iter_mut().map(|made| &mut made.path);
    for path in made.chain(rival.images.iter_mut().map(|image| &mut image.final_path)) {
        *path = path.replace(&plan.clone_uuid.to_string(), &clone_uuid.to_string());
    }
    PlanV1 { txn, clone_uuid, controller, ..rival }
}

/// The rival's whole life, while the other one waits for an answer of its own.
fn run_rival(world: &SimWorld, plan: &PlanV1, oracle: &Rc<RefCell<Oracle>>) -> Life {
    let begun = EventV1::Begun { plan: Box::new(plan.clone()) };
    let records = vec![RecordV1 { at: plan.created_at, epoch: Epoch(0), event: begun }];
    let durable = Rc::new(RefCell::new(Durable { records, ..Durable::default() }));
    let other = world.another_life(FaultPlan::none());
    let life = drive(&other, plan.txn, &durable, oracle, AttemptPurpose::Run);
    other.end();
    life
}

fn every_rivalry(controller: &dyn Fn(&PlanV1) -> ControllerId) {
    let shape = Shape { disks: 1, ..Shape::plain() };
    let mut clean = History::new(shape, SEED);
    let (_, world) = clean.live(AttemptPurpose::Run, FaultPlan::none());
    let (mut first_won, mut rival_won) = (0, 0);
    for operation in 0..world.operations() {
        let mut history = History::new(shape, SEED);
        let plan = rival_of(&history.scene.plan, controller(&history.scene.plan));
        let scene =
            Scene { world: history.scene.world.clone(), plan: plan.clone(), images: history.scene.images.clone() };
        let oracle = Rc::new(RefCell::new(Oracle::new(&scene)));
        let came_to: Rc<RefCell<Option<Life>>> = Rc::default();
        let (result, judge) = (Rc::clone(&came_to), Rc::clone(&oracle));
        let act = move |world: &SimWorld| *result.borrow_mut() = Some(run_rival(world, &plan, &judge));
        let faults = FaultPlan::at(operation, Fault::Meanwhile("a rival", Rc::new(act)), Effect::First);
        history.oracle.borrow_mut().causes.insert(Cause::Rival);
        let (life, _) = history.live(AttemptPurpose::Run, faults);
        let (Life::Ended(first), Some(Life::Ended(rival))) = (life, came_to.take()) else { unreachable!() };
        let verdict = match (&first, &rival) {
            (Ending::Committed { .. }, Ending::RolledBack { failure: Some(failure) }) => {
                first_won += 1;
                // Held by one that runs. Once the claim is given back it is the domain that has the name.
                let told = [7, 1].contains(&failure.exit);
                history.verdict(Some(&first), false).and(if told { Ok(()) } else { Err(format!("{failure:?}")) })
            }
            (Ending::RolledBack { failure: Some(_) }, Ending::Committed { .. }) => {
                rival_won += 1;
                scene.world.with(|core| oracle.borrow().committed(core, false))
            }
            other => Err(format!("they came to {other:?}")),
        };
        if let Err(broken) = verdict {
            panic!("{}", history.report(&broken, &format!("a rival at operation {operation}: {rival:?}")));
        }
    }
    println!("the first won {first_won} times, its rival {rival_won} times");
    assert!(first_won > 100 && rival_won > 10, "both must be able to win");
}

#[test]
fn two_transactions_of_one_controller_never_share_a_name() {
    every_rivalry(&|plan| plan.controller.clone());
}

#[test]
fn two_controllers_never_share_a_name() {
    every_rivalry(&|_| ControllerId { machine_id: "d".repeat(32), state_dir: "/elsewhere".to_owned() });
}
