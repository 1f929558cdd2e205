//! The table of `--force` and `--idempotent`, row by row, and the identity that a clone may share with its source.

use std::io::Write;
use std::time::Duration;

use crate::lab::RUN_BOUND;
use crate::{CLONE, Ground, SOURCE, images_of, run};

fn uuid(ground: &Ground) -> String {
    ground.lab.b().virsh(["domuuid", CLONE]).trim().to_owned()
}

fn write_into(path: &std::path::Path) {
    let mut file = std::fs::File::options().write(true).open(path).unwrap();
    file.write_all(b"changed").unwrap();
    file.sync_all().unwrap();
}

#[test]
fn each_row_of_the_table() {
    let ground = Ground::new();
    let (a, b) = (ground.lab.a(), ground.lab.b());
    let controller = ground.lab.controller();
    let run = |more: &[&str]| run(&controller, more);

    // No VM of that name: all flags clone.
    run(&["--idempotent"]).expect(0);
    let first = uuid(&ground);
    // One is there: without a flag it is refused, untouched.
    let refused = run(&[]).expect(5);
    assert!(refused.stderr.contains("--force"), "{}", refused.stderr);
    assert_eq!(uuid(&ground), first);
    // Made from this source, nothing changed: nothing to do, with both flags too.
    for flags in [&["--idempotent"][..], &["--idempotent", "--force"]] {
        let finished = run(&[flags, &["--json"]].concat()).expect(0);
        assert_eq!(finished.json()["status"], "up_to_date");
        assert_eq!(uuid(&ground), first);
    }
    assert_eq!(controller.list().len(), 1, "what has nothing to do begins no transaction");
    // Times alone do not count: bytes do.
    let image = images_of(b, CLONE).remove(0);
    b.run(["touch", &image]);
    assert_eq!(run(&["--idempotent", "--json"]).expect(0).json()["status"], "up_to_date");
    // The clone was written to: replaced.
    write_into(&b.path(&image));
    let replaced = run(&["--idempotent"]).expect(0);
    assert!(
        replaced.stderr.contains("a clone of this VM") && replaced.stderr.contains("written to since"),
        "{}",
        replaced.stderr
    );
    let second = uuid(&ground);
    assert_ne!(second, first);
    ground.assert_replaced(&first, &[], "after the clone was written to");
    // It runs: replaced, stopped as allowed, or not at all.
    b.virsh(["start", CLONE]);
    let refused = run(&["--idempotent", "--stop", "never"]).expect(5);
    assert!(refused.stderr.contains("--stop never forbids"), "{}", refused.stderr);
    assert_eq!(b.state(CLONE).as_deref(), Some("running"));
    let replaced = run(&["--idempotent", "--stop", "destroy"]).expect(0);
    assert!(replaced.stderr.contains("running"), "{}", replaced.stderr);
    let third = uuid(&ground);
    ground.assert_replaced(&second, &[], "after the clone ran");
    // The source was written to: replaced.
    write_into(&a.path(ground.source.disks()[0].path()));
    run(&["--idempotent"]).expect(0);
    let fourth = uuid(&ground);
    assert_ne!(third, fourth);
    assert_eq!(a.blake3(ground.source.disks()[0].path()), b.blake3(&images_of(b, CLONE)[0]));
    // Force replaces also where there would be nothing to do; kept, both are there.
    run(&["--force", "--keep-replaced"]).expect(0);
    let names = b.virsh(["list", "--all", "--name"]);
    let kept = names.lines().find(|name| name.starts_with("web_clone.replaced-")).expect("it is kept").to_owned();
    assert_eq!(b.virsh(["domuuid", &kept]).trim(), fourth);
    b.virsh(["start", &kept]);
    b.virsh(["destroy", &kept]);
    assert_eq!(run(&["--keep-replaced"]).code(), Some(2), "nothing would be kept");
}

#[test]
fn an_unfinished_transaction_of_the_same_request_is_finished() {
    let ground = Ground::new();
    let b = ground.lab.b();
    let old = ground.put_old(false);
    let controller = ground.lab.controller();
    let dying = controller.clone().env("KVM_CLONE_CRASH_AT", "after:12");
    assert_eq!(run(&dying, &["--force"]).signal(), Some(9));
    let txn = controller.only_txn();
    // Without the flag, and with --force, it is named.
    for flags in [&[][..], &["--force"]] {
        let refused = run(&controller, flags).expect(5);
        assert!(refused.stderr.contains(&txn) && refused.stderr.contains("resume"), "{}", refused.stderr);
    }
    // With it, whoever asks resumes it.
    run(&controller, &["--idempotent"]).expect(0);
    assert_eq!((controller.only_txn(), controller.status(&txn).as_str()), (txn.clone(), "committed"));
    // One that was rolling back is finished, and a new one run.
    write_into(&b.path(&images_of(b, CLONE)[0]));
    assert_eq!(run(&dying, &["--force"]).signal(), Some(9));
    let second = controller.list().into_iter().find(|entry| entry["status"] == "interrupted").unwrap();
    let second = second["id"].as_str().unwrap().to_owned();
    let events = controller.show(&second)["events"].as_array().unwrap().len();
    let crash_at = format!("after:{}", events + 2);
    assert_eq!(controller.clone().env("KVM_CLONE_CRASH_AT", &crash_at).run(["rollback", &second]).signal(), Some(9));
    assert_eq!(controller.status(&second), "rolling_back");
    run(&controller, &["--idempotent"]).expect(0);
    assert_eq!(controller.status(&second), "rolled_back");
    assert_eq!(controller.list().len(), 3);
    drop(old);
}

#[test]
fn one_that_runs_now_is_left_alone() {
    let ground = Ground::new();
    let controller = ground.lab.controller();
    let mut first =
        controller.spawn(["run", "a", "b", SOURCE, "--chunk-size", "64K", "--bandwidth-limit", "300K", "--idempotent"]);
    first.wait_until(Duration::from_secs(60), "it has begun", || {
        controller.list().iter().any(|entry| entry["status"] == "running")
    });
    let second = run(&controller, &["--idempotent"]).expect(7);
    assert!(second.stderr.contains(&controller.only_txn()), "{}", second.stderr);
    first.wait_for(RUN_BOUND).expect(0);
    assert_eq!(run(&controller, &["--idempotent", "--json"]).expect(0).json()["status"], "up_to_date");
}

#[test]
fn a_clone_that_keeps_its_identity_is_marked_and_replaces_no_vm_of_the_same_uuid() {
    let ground = Ground::new();
    let (a, b) = (ground.lab.a(), ground.lab.b());
    let controller = ground.lab.controller();
    let identity = ["--preserve-uuid", "--preserve-mac"];
    let finished = run(&controller, &identity).expect(0);
    assert!(finished.stderr.contains("one machine"), "{}", finished.stderr);
    assert_eq!(uuid(&ground), a.virsh(["domuuid", SOURCE]).trim());
    assert!(b.virsh(["dumpxml", CLONE]).replace('"', "'").contains("identity='source'"));
    let refused = run(&controller, &[&identity[..], &["--force"]].concat()).expect(5);
    assert!(refused.stderr.contains("the UUID") && refused.stderr.contains("undefine"), "{}", refused.stderr);
    let same_host = controller.run(["run", "a", "a", SOURCE, "--preserve-uuid"]).expect(5);
    assert!(same_host.stderr.contains("has the UUID"), "{}", same_host.stderr);
}

/// A VM that the new words keep is not deleted by what older words began.
#[test]
fn an_unfinished_replacement_is_resumed_only_as_it_was_begun() {
    let ground = Ground::new();
    ground.put_old(false);
    let old = uuid(&ground);
    let controller = ground.lab.controller();
    let killed = controller.clone().env("KVM_CLONE_CRASH_AT", "after:4");
    assert_eq!(run(&killed, &["--idempotent"]).signal(), Some(9));
    let txn = controller.only_txn();
    for flags in [&["--idempotent", "--keep-replaced"][..], &["--idempotent", "--stop", "destroy"]] {
        let says = [&*txn, "without --keep-replaced, --stop shutdown", "resume", "rollback"];
        run(&controller, flags).expect(5).says(&says);
        assert_eq!(uuid(&ground), old);
    }
    run(&controller, &["--idempotent"]).expect(0);
    ground.assert_replaced(&old, &[], "resumed as it was begun");
}

/// The clone itself may have taken all the room that a second one would need.
#[test]
fn what_is_up_to_date_needs_no_room() {
    let ground = Ground::new();
    let b = ground.lab.b();
    let small = "/srv/small";
    std::fs::create_dir_all(b.path(small)).unwrap();
    b.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", small]);
    let controller = ground.lab.controller();
    let words = ["--idempotent", "--directory", small];
    run(&controller, &words).expect(0);
    run(&controller, &["--directory", small, "--new-name", "second"]).expect(5).says(&["Insufficient disk space"]);
    assert_eq!(run(&controller, &[&words[..], &["--json"]].concat()).expect(0).json()["status"], "up_to_date");
    b.virsh(["undefine", CLONE]);
    b.run(["umount", small]);
}
