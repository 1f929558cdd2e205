//! The engine in a simulated world: every primitive operation as a crash point, power cuts, strangers, and an oracle
//! that knows nothing of the engine.

// A world in memory is small, mirrors a trait it does not shape, and is read more than it is run: style that helps a library hinders here.
#![allow(
    clippy::cast_possible_truncation,
    clippy::format_collect,
    clippy::match_same_arms,
    clippy::maybe_infinite_iter,
    clippy::needless_for_each,
    clippy::needless_pass_by_value,
    clippy::similar_names,
    clippy::struct_excessive_bools,
    clippy::too_many_lines,
    clippy::unnecessary_wraps,
    clippy::unused_self
)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod abandoned;
mod bases;
mod broken_off;
mod chains;
#[path = "../conformance/mod.rs"]
mod conformance;
mod content;
mod copy;
#[path = "../course/mod.rs"]
mod course;
mod crashes;
mod definition;
mod devices;
mod durability;
mod faults;
mod filesystem;
mod flattened;
mod gone;
mod ground;
mod histories;
mod history;
mod host;
mod kept;
mod kinds;
mod libvirt;
mod machine;
mod matrix;
mod mishaps;
mod notebook;
mod old_verdict;
mod old_vm;
mod oracle;
mod overtaken;
mod planning;
mod reached;
mod removed;
mod replacing;
mod rivals;
mod scene;
mod seed;
mod snapshots;
mod strangers;
mod tally;
mod targets;
mod twice;
mod unmounted;
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
        let shape = if seed % 3 == 2 { Shape { flattened: true, device: false, chain: false, ..shape } } else { shape };
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
