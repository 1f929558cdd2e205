//! The owner lock, image locks, and the end of an agent.

use journal_format::DomainUuid;
use kvm_clone::world::{FaultKind, OwnerLock, ProcessId, Side};

use super::{
    Ground, HOST_RECORDS, Owner, assert_kind, bytes, cases, clear_record, fresh_name, fresh_uuid, kind, other,
};

cases![
    an_owner_file_that_is_not_there_is_missing,
    the_owner_lock_has_one_holder,
    the_owner_lock_ends_with_its_agent,
    an_agent_of_another_start_time_is_not_killed,
    an_image_is_locked_more_than_once,
    a_domain_does_not_start_on_a_locked_image,
    an_image_in_use_is_not_locked,
    what_somebody_uses_is_not_removed,
];

fn an_owner_file_that_is_not_there_is_missing(ground: &dyn Ground) {
    let host = ground.world().connect(Side::Destination).unwrap();
    let path = format!("{HOST_RECORDS}/{}/owner", ground.txn());
    assert_eq!(host.lock_owner(&path).unwrap(), OwnerLock::Missing);
    ground.world().disconnect(Side::Destination);
}

fn the_owner_lock_has_one_holder(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let path = format!("{}/owner", owner.record);
    let inode = owner.host.stat(&path).unwrap().unwrap().inode;
    assert_eq!(owner.host.lock_owner(&path).unwrap(), OwnerLock::Held { inode });
    let second = ground.other_world().connect(Side::Destination).unwrap();
    assert_eq!(second.lock_owner(&path).unwrap(), OwnerLock::Taken);
    assert_kind(second.make_dir(&owner.path("d"), 0o700), &[FaultKind::Fenced, FaultKind::Denied]);
    // Another name of the same file is the same lock.
    owner.host.link(&path, &format!("{HOST_RECORDS}/names/{}", ground.txn())).unwrap();
    owner.host.unlink(&format!("{HOST_RECORDS}/names/{}", ground.txn()), inode).unwrap();
    ground.other_world().disconnect(Side::Destination);
    owner.host.make_dir(&owner.path("d"), 0o700).unwrap();
}

fn the_owner_lock_ends_with_its_agent(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let path = format!("{}/owner", owner.record);
    let image = owner.path("image");
    ground.put(Side::Destination, &image, 4096, &[(0, bytes(4096, 1))]);
    owner.host.lock_image(&image).unwrap();
    let agent = owner.host.agent().unwrap();
    let second = ground.other_world().connect(Side::Destination).unwrap();
    second.kill_agent(agent).unwrap();
    second.kill_agent(agent).unwrap();
    assert_eq!(kind(owner.host.stat(&path)), FaultKind::Unreachable);
    assert_eq!(kind(owner.host.make_dir(&owner.path("d"), 0o700)), FaultKind::Unreachable);
    assert!(matches!(second.lock_owner(&path).unwrap(), OwnerLock::Held { .. }));
    clear_record(second.as_ref(), ground.txn());
    ground.other_world().disconnect(Side::Destination);
}

fn an_agent_of_another_start_time_is_not_killed(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let agent = owner.host.agent().unwrap();
    let second = ground.other_world().connect(Side::Destination).unwrap();
    second.kill_agent(ProcessId { started: agent.started + 1, ..agent }).unwrap();
    ground.other_world().disconnect(Side::Destination);
    owner.host.make_dir(&owner.path("d"), 0o700).unwrap();
}

fn an_image_is_locked_more_than_once(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let image = owner.path("image");
    ground.put(Side::Destination, &image, 4096, &[(0, bytes(4096, 1))]);
    let inode = owner.host.stat(&image).unwrap().unwrap().inode;
    assert_eq!(owner.host.lock_image(&image).unwrap(), inode);
    assert_eq!(owner.host.lock_image(&image).unwrap(), inode);
    let second = ground.other_world().connect(Side::Destination).unwrap();
    assert_eq!(second.lock_image(&image).unwrap(), inode);
    ground.other_world().disconnect(Side::Destination);
    owner.host.unlock_image(&image).unwrap();
    owner.host.unlock_image(&image).unwrap();
    assert_eq!(kind(owner.host.lock_image(&owner.path("absent"))), FaultKind::NotFound);
}

/// A domain on an image of its own, defined.
fn guest(owner: &Owner, ground: &dyn Ground) -> (DomainUuid, String) {
    let image = owner.path("image");
    ground.put(Side::Destination, &image, 1 << 20, &[(0, bytes(4096, 1))]);
    let uuid = fresh_uuid(ground);
    owner.host.define(&ground.definition(&fresh_name(uuid), uuid, &image)).unwrap();
    (uuid, image)
}

fn a_domain_does_not_start_on_a_locked_image(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let (uuid, image) = guest(&owner, ground);
    owner.host.lock_image(&image).unwrap();
    // The lock is on the file, not on its name.
    owner.host.link(&image, &owner.path("second")).unwrap();
    ground.start_by_hand(uuid).unwrap_err();
    assert_kind(owner.host.start(uuid), &[FaultKind::InUse, FaultKind::Refused]);
    assert_eq!(ground.get(Side::Destination, &image).unwrap()[..4096], bytes(4096, 1));
    owner.host.unlock_image(&owner.path("second")).unwrap();
    owner.host.start(uuid).unwrap();
    owner.host.start(uuid).unwrap();
    ground.destroy_by_hand(uuid);
    owner.host.undefine(uuid).unwrap();
}

fn an_image_in_use_is_not_locked(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let (uuid, image) = guest(&owner, ground);
    ground.start_by_hand(uuid).unwrap();
    assert_eq!(kind(owner.host.lock_image(&image)), FaultKind::InUse);
    ground.destroy_by_hand(uuid);
    owner.host.lock_image(&image).unwrap();
    owner.host.unlock_image(&image).unwrap();
    owner.host.undefine(uuid).unwrap();
}

fn what_somebody_uses_is_not_removed(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let (uuid, image) = guest(&owner, ground);
    let inode = owner.host.stat(&image).unwrap().unwrap().inode;
    ground.start_by_hand(uuid).unwrap();
    assert_eq!(kind(owner.host.unlink_unused(&image, inode)), FaultKind::InUse);
    ground.destroy_by_hand(uuid);
    // Who only reads uses it too.
    let second = ground.other_world().connect(Side::Destination).unwrap();
    second.lock_image(&image).unwrap();
    owner.host.lock_image(&image).unwrap();
    assert_eq!(kind(owner.host.unlink_unused(&image, inode)), FaultKind::InUse);
    ground.other_world().disconnect(Side::Destination);
    assert_eq!(kind(owner.host.unlink_unused(&image, other(inode))), FaultKind::Changed);
    assert!(owner.host.stat(&image).unwrap().is_some());
    // Nothing of ours is left on it.
    ground.start_by_hand(uuid).unwrap();
    ground.destroy_by_hand(uuid);
    owner.host.lock_image(&image).unwrap();
    owner.host.unlink_unused(&image, inode).unwrap();
    owner.host.unlink_unused(&image, inode).unwrap();
    assert_eq!(owner.host.stat(&image).unwrap(), None);
    owner.host.undefine(uuid).unwrap();
}
