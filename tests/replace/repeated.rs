//! Three VMs, cloned with `--idempotent` again and again while the program is killed at random: in the end there are three clones,
//! each like its source, and nothing else.

use std::time::{Duration, Instant};

use crate::images_of;
use crate::lab::{Disk, Lab, Vm};

const ROUNDS_SECONDS: u64 = 60;
const SEED: u64 = 77;

fn draw(state: &mut u64, bound: u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % bound
}

#[test]
fn three_vms_converge_whatever_is_killed() {
    let lab = Lab::up();
    let vms = [
        Vm::new("one").disk(Disk::raw(4 << 20).seed(1)),
        Vm::new("two").disk(Disk::qcow2(3 << 20).seed(2)),
        Vm::new("three").disk(Disk::raw(2 << 20).seed(3)).disk(Disk::qcow2(1 << 20).seed(4)),
    ];
    for vm in &vms {
        lab.a().define(vm);
    }
    let before = lab.a().outside();
    let controller = lab.controller();
    let mut state = SEED;
    let (mut killed, mut rounds) = (0, 0);
    let began = Instant::now();
    let arguments = |vm: &Vm| {
        ["run", "a", "b", vm.name(), "--chunk-size", "64K", "--idempotent", "--stop", "destroy"].map(str::to_owned)
    };
    while began.elapsed() < Duration::from_secs(ROUNDS_SECONDS) {
        rounds += 1;
        let mut running: Vec<_> = vms.iter().map(|vm| controller.spawn(arguments(vm))).collect();
        // The later ones are killed later; some live.
        while let Some(mut one) = running.pop() {
            let patience = Duration::from_millis(200 + draw(&mut state, 2500));
            let until = Instant::now() + patience;
            while Instant::now() < until && !one.has_ended() {
                std::thread::sleep(Duration::from_millis(5));
            }
            if one.has_ended() {
                let finished = one.wait();
                assert!(matches!(finished.code(), Some(0 | 1 | 3 | 5 | 7)), "{finished:?}");
            } else {
                one.kill();
                killed += 1;
            }
        }
        // Now and then a clone is used, so that there is something to replace. One that says that it is unfinished and is
        // started all the same stops its transaction: that is a test of its own.
        let vm = &vms[usize::try_from(draw(&mut state, 3)).unwrap()];
        let clone = format!("{}_clone", vm.name());
        if draw(&mut state, 2) == 0
            && lab.b().state(&clone).as_deref() == Some("shut off")
            && !lab.b().virsh(["desc", &clone, "--title"]).contains("do not start")
        {
            lab.b().try_virsh(["start", &clone]);
        }
    }
    // Undisturbed, it comes to an end: what is unfinished is resumed, what then differs is replaced.
    for vm in &vms {
        for _ in 0..3 {
            let finished = controller.run(arguments(vm));
            assert!(matches!(finished.code(), Some(0 | 1 | 3)), "{finished:?}");
        }
        let last = controller.run(arguments(vm).into_iter().chain(["--json".to_owned()])).expect(0).json();
        assert_eq!(last["status"], "up_to_date", "{}: {last}", vm.name());
    }
    println!("repeated: {rounds} rounds, {killed} killed");
    assert!(killed > 0, "nothing was killed");
    before.assert_same(&lab.a().outside(), "the sources");
    let outside = lab.b().outside();
    assert_eq!(outside.domains.len(), 3, "{:?}", outside.domains.keys());
    let mut images = Vec::new();
    for vm in &vms {
        let of_clone = images_of(lab.b(), &format!("{}_clone", vm.name()));
        for (disk, image) in vm.disks().iter().zip(&of_clone) {
            assert_eq!(lab.a().blake3(disk.path()), lab.b().blake3(image), "{image}");
        }
        images.extend(of_clone);
    }
    let left = outside.files.keys().map(|path| path.display().to_string());
    let left: Vec<_> = left
        .filter(|path| path.starts_with("/var/lib/libvirt/images/") || path.contains("kvm-clone"))
        .filter(|path| !images.contains(path))
        .collect();
    assert_eq!(left, Vec::<String>::new(), "left over");
}
