//! The engine in a simulated world: every primitive operation as a crash point, power cuts, strangers, and an oracle
//! that knows nothing of the engine.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../conformance/mod.rs"]
mod conformance;
mod content;
mod crashes;
mod definition;
mod faults;
mod filesystem;
mod ground;
mod histories;
mod history;
mod libvirt;
mod machine;
mod mishaps;
mod notebook;
mod oracle;
mod overtaken;
mod planning;
mod scene;
mod seed;
mod strangers;
mod world;

use journal_format::AttemptPurpose;
use kvm_clone::engine::Ending;

use faults::FaultPlan;
use history::{History, Life};
use scene::Shape;

#[test]
fn an_undisturbed_clone_commits() {
    for seed in 0..20 {
        let shape = if seed == 0 { Shape::plain() } else { Shape::random(&mut seed::Seed::new(seed)) };
        let mut history = History::new(shape, seed);
        let (life, world) = history.live(AttemptPurpose::Run, FaultPlan::none());
        println!("{} operations", world.operations());
        let Life::Ended(ending) = life else { unreachable!() };
        let verdict = history.verdict(Some(&ending), false);
        if let Err(broken) = verdict {
            panic!("{}", history.report(&broken, &format!("seed {seed}")));
        }
        assert_eq!(ending, Ending::Committed { warnings: Vec::new() });
    }
}
