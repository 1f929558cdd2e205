//! The conformance suite on the simulated world.

use journal_format::{DomainUuid, TxnId};
use kvm_clone::world::{Side, World};

use crate::conformance::{self, Ground};
use crate::content::Content;
use crate::faults::FaultPlan;
use crate::scene;
use crate::world::SimWorld;

struct Simulated {
    world: SimWorld,
    other: SimWorld,
}

const SCRATCH: &str = "/var/lib/libvirt/images/case";

impl Simulated {
    fn new() -> Self {
        let world = scene::empty_world(1);
        for side in [Side::Source, Side::Destination] {
            world.with(|core| core.machine_mut(side).files.make_dir(SCRATCH, 0o711)).unwrap();
        }
        let other = world.another_life(FaultPlan::none());
        Self { world, other }
    }
}

impl Ground for Simulated {
    fn world(&self) -> &dyn World {
        &self.world
    }

    fn other_world(&self) -> &dyn World {
        &self.other
    }

    fn txn(&self) -> TxnId {
        TxnId([0x42; 16])
    }

    fn scratch(&self, _: Side) -> String {
        SCRATCH.to_owned()
    }

    fn put(&self, side: Side, path: &str, size: u64, extents: &[(u64, Vec<u8>)]) {
        let mut content = Content::default();
        content.set_size(size);
        extents.iter().for_each(|(offset, bytes)| content.write(*offset, bytes));
        self.world.with(|core| core.machine_mut(side).files.make_file(path, 0o600, content)).unwrap();
    }

    fn put_device(&self, side: Side, content: &[u8]) -> String {
        let path = format!("{SCRATCH}/device");
        self.world.with(|core| {
            let files = &mut core.machine_mut(side).files;
            files.make_file(&path, 0o660, Content::of(content)).unwrap();
            files.make_device(&path);
        });
        path
    }

    fn put_symlink(&self, side: Side, path: &str, target: &str) {
        self.world.with(|core| core.machine_mut(side).files.make_symlink(path, target)).unwrap();
    }

    fn get(&self, side: Side, path: &str) -> Option<Vec<u8>> {
        self.world.with(|core| core.machine(side).files.content(path).map(Content::bytes))
    }

    fn definition(&self, name: &str, uuid: DomainUuid, disk: &str) -> String {
        scene::definition(name, uuid, &[("vda", "raw", disk)])
    }

    fn start_by_hand(&self, uuid: DomainUuid) -> Result<(), String> {
        self.world.with(|core| core.machine_mut(Side::Destination).start(uuid)).map_err(|(_, detail)| detail)
    }

    fn destroy_by_hand(&self, uuid: DomainUuid) {
        self.world.with(|core| core.machine_mut(Side::Destination).destroy(uuid));
    }

    fn pool(&self) -> String {
        "default".to_owned()
    }
}

#[test]
fn the_simulated_world_conforms() {
    for (name, case) in conformance::suite() {
        println!("{name}");
        case(&Simulated::new());
    }
}
