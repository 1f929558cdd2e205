//! libvirt: definitions, what is edited in them, pools.

use journal_format::{ControllerId, DomainUuid};
use kvm_clone::domain::{CloneMark, MarkState};
use kvm_clone::world::{DomainState, FaultKind, Side};

use super::{Ground, Owner, assert_kind, bytes, cases, fresh_name, fresh_uuid, kind};

cases![
    a_domain_is_defined_and_read_back,
    defining_again_replaces,
    a_name_has_one_domain,
    nonsense_is_not_defined,
    our_element_is_set_and_removed,
    a_title_is_set_and_removed,
    autostart_is_set_and_removed,
    undefining_leaves_the_disks,
    a_domain_that_is_off_is_renamed,
    a_guest_is_switched_off,
    memory_is_saved_and_restored,
    snapshots_are_told_and_forgotten,
    snapshots_follow_their_domain,
    what_is_not_there_is_not_changed,
    qemus_command_is_shown,
    pools_and_networks_are_listed,
    a_volume_has_a_path,
];

struct Guest {
    uuid: DomainUuid,
    name: String,
    image: String,
    definition: String,
}

fn guest(owner: &Owner, ground: &dyn Ground, image: &str) -> Guest {
    let image = owner.path(image);
    ground.put(Side::Destination, &image, 1 << 20, &[(0, bytes(4096, 1))]);
    let uuid = fresh_uuid(ground);
    let name = fresh_name(uuid);
    let definition = ground.definition(&name, uuid, &image);
    Guest { uuid, name, image, definition }
}

fn a_domain_is_defined_and_read_back(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let guest = guest(&owner, ground, "image");
    assert_eq!(owner.host.domain(guest.uuid).unwrap(), None);
    assert_eq!(owner.host.domain_named(&guest.name).unwrap(), None);
    owner.host.define(&guest.definition).unwrap();
    let facts = owner.host.domain(guest.uuid).unwrap().unwrap();
    assert_eq!((facts.brief.uuid, facts.brief.name.as_str()), (guest.uuid, guest.name.as_str()));
    assert_eq!(facts.brief.state, DomainState::ShutOff);
    assert!(facts.persistent && !facts.autostart && !facts.managed_save);
    assert_eq!((facts.snapshots, facts.checkpoints), (0, 0));
    assert!(facts.definition.contains(&guest.image) && facts.definition.contains(&guest.uuid.to_string()));
    assert_eq!(owner.host.domain_named(&guest.name).unwrap().unwrap(), facts);
    assert!(owner.host.domains().unwrap().contains(&facts.brief));
    owner.host.start(guest.uuid).unwrap();
    assert_eq!(owner.host.domain(guest.uuid).unwrap().unwrap().brief.state, DomainState::Active);
    ground.destroy_by_hand(guest.uuid);
    owner.host.undefine(guest.uuid).unwrap();
}

fn defining_again_replaces(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let guest = guest(&owner, ground, "image");
    owner.host.define(&guest.definition).unwrap();
    owner.host.define(&guest.definition).unwrap();
    owner.host.define(&ground.definition(&guest.name, guest.uuid, &owner.path("another"))).unwrap();
    let facts = owner.host.domain(guest.uuid).unwrap().unwrap();
    assert!(facts.definition.contains(&owner.path("another")) && !facts.definition.contains(&guest.image));
    assert_eq!(owner.host.domains().unwrap().iter().filter(|brief| brief.name == guest.name).count(), 1);
    owner.host.undefine(guest.uuid).unwrap();
}

fn a_name_has_one_domain(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let guest = guest(&owner, ground, "image");
    owner.host.define(&guest.definition).unwrap();
    let before = owner.host.domain(guest.uuid).unwrap();
    let second = fresh_uuid(ground);
    assert_eq!(
        kind(owner.host.define(&ground.definition(&guest.name, second, &guest.image))),
        FaultKind::AlreadyExists
    );
    assert_eq!(owner.host.domain(second).unwrap(), None);
    assert_eq!(owner.host.domain(guest.uuid).unwrap(), before);
    let renamed = ground.definition(&format!("{}-other", guest.name), guest.uuid, &guest.image);
    assert_kind(owner.host.define(&renamed), &[FaultKind::AlreadyExists, FaultKind::Refused]);
    assert_eq!(owner.host.domain(guest.uuid).unwrap(), before);
    owner.host.undefine(guest.uuid).unwrap();
}

fn nonsense_is_not_defined(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let before = owner.host.domains().unwrap();
    for nonsense in ["", "<domain", "<network><name>x</name></network>", "<domain type='qemu'></domain>"] {
        assert_eq!(kind(owner.host.define(nonsense)), FaultKind::Refused, "{nonsense}");
    }
    assert_eq!(owner.host.domains().unwrap(), before);
}

fn mark(ground: &dyn Ground, guest: &Guest, state: MarkState) -> CloneMark {
    CloneMark {
        txn: ground.txn(),
        controller: ControllerId { machine_id: "0".repeat(32), state_dir: "/var/lib/kvm-clone".to_owned() },
        source_machine_id: "1".repeat(32),
        source_host: "root@source".to_owned(),
        source_uuid: DomainUuid([7; 16]),
        source_definition: None,
        clone_uuid: guest.uuid,
        same_identity: false,
        state,
        disks: Vec::new(),
        bases: Vec::new(),
    }
}

fn our_element_is_set_and_removed(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let guest = guest(&owner, ground, "image");
    let read = || CloneMark::read(&owner.host.domain(guest.uuid).unwrap().unwrap().definition).unwrap();
    owner.host.define(&guest.definition).unwrap();
    assert_eq!(read(), None);
    for state in [MarkState::Unfinished, MarkState::Finished] {
        let mark = mark(ground, &guest, state);
        owner.host.set_metadata(guest.uuid, Some(&mark.to_element().unwrap())).unwrap();
        assert_eq!(read(), Some(mark));
    }
    let facts = owner.host.domain(guest.uuid).unwrap().unwrap();
    assert!(facts.definition.contains(&guest.image));
    owner.host.set_metadata(guest.uuid, None).unwrap();
    owner.host.set_metadata(guest.uuid, None).unwrap();
    assert_eq!(read(), None);
    owner.host.undefine(guest.uuid).unwrap();
}

fn a_title_is_set_and_removed(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let guest = guest(&owner, ground, "image");
    let has = |text: &str| owner.host.domain(guest.uuid).unwrap().unwrap().definition.contains(text);
    owner.host.define(&guest.definition).unwrap();
    owner.host.set_title(guest.uuid, Some("one & <two>")).unwrap();
    assert!(has("<title>one &amp; &lt;two&gt;</title>") || has("<title>one &amp; &lt;two></title>"));
    owner.host.set_title(guest.uuid, Some("three")).unwrap();
    assert!(has("<title>three</title>") && !has("two"));
    owner.host.set_title(guest.uuid, None).unwrap();
    owner.host.set_title(guest.uuid, None).unwrap();
    assert!(!has("<title>"));
    owner.host.undefine(guest.uuid).unwrap();
}

fn autostart_is_set_and_removed(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let guest = guest(&owner, ground, "image");
    let on = || owner.host.domain(guest.uuid).unwrap().unwrap().autostart;
    owner.host.define(&guest.definition).unwrap();
    for autostart in [true, true, false, false, true] {
        owner.host.set_autostart(guest.uuid, autostart).unwrap();
        assert_eq!(on(), autostart);
    }
    owner.host.undefine(guest.uuid).unwrap();
    owner.host.define(&guest.definition).unwrap();
    assert!(!on(), "autostart does not outlive its domain");
    owner.host.undefine(guest.uuid).unwrap();
}

fn undefining_leaves_the_disks(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let guest = guest(&owner, ground, "image");
    owner.host.define(&guest.definition).unwrap();
    owner.host.undefine(guest.uuid).unwrap();
    assert_eq!(owner.host.domain(guest.uuid).unwrap(), None);
    assert!(owner.host.stat(&guest.image).unwrap().is_some());
    owner.host.undefine(guest.uuid).unwrap();
}

fn a_domain_that_is_off_is_renamed(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let (guest, other) = (guest(&owner, ground, "image"), guest(&owner, ground, "other"));
    owner.host.define(&guest.definition).unwrap();
    owner.host.define(&other.definition).unwrap();
    owner.host.set_autostart(guest.uuid, true).unwrap();
    let name = format!("{}.new", guest.name);
    for _ in 0..2 {
        owner.host.rename_domain(guest.uuid, &name).unwrap();
        let facts = owner.host.domain(guest.uuid).unwrap().unwrap();
        assert_eq!((facts.brief.name.as_str(), facts.autostart), (name.as_str(), true));
        assert!(facts.definition.contains(&format!("<name>{name}</name>")) && facts.definition.contains(&guest.image));
    }
    assert_eq!(owner.host.domain_named(&guest.name).unwrap(), None);
    let file = |name: &str| owner.host.stat(&format!("/etc/libvirt/qemu/{name}.xml")).unwrap().is_some();
    assert!(file(&name) && !file(&guest.name));
    assert_eq!(kind(owner.host.rename_domain(guest.uuid, &other.name)), FaultKind::AlreadyExists);
    owner.host.start(guest.uuid).unwrap();
    assert_eq!(kind(owner.host.rename_domain(guest.uuid, &guest.name)), FaultKind::Refused);
    assert_eq!(owner.host.domain(guest.uuid).unwrap().unwrap().brief.name, name);
    owner.host.destroy(guest.uuid).unwrap();
    owner.host.undefine_whole(guest.uuid).unwrap();
    owner.host.undefine_whole(guest.uuid).unwrap();
    owner.host.undefine(other.uuid).unwrap();
    assert!(owner.host.stat(&guest.image).unwrap().is_some());
}

fn a_guest_is_switched_off(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let guest = guest(&owner, ground, "image");
    let state = || owner.host.domain(guest.uuid).unwrap().unwrap().brief.state;
    owner.host.define(&guest.definition).unwrap();
    assert_eq!(owner.host.live_definition(guest.uuid).unwrap(), None);
    owner.host.start(guest.uuid).unwrap();
    let live = owner.host.live_definition(guest.uuid).unwrap().unwrap();
    assert!(live.contains(&guest.image) && live.contains(&guest.uuid.to_string()));
    assert_eq!(owner.host.snapshots(guest.uuid).unwrap(), Vec::new());
    owner.host.shut_down(guest.uuid).unwrap();
    for _ in 0..2 {
        owner.host.destroy(guest.uuid).unwrap();
        assert_eq!(state(), DomainState::ShutOff);
        owner.host.shut_down(guest.uuid).unwrap();
    }
    owner.host.undefine(guest.uuid).unwrap();
    assert_eq!(kind(owner.host.shut_down(guest.uuid)), FaultKind::NotFound);
    assert_eq!(kind(owner.host.destroy(guest.uuid)), FaultKind::NotFound);
}

fn memory_is_saved_and_restored(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let guest = guest(&owner, ground, "image");
    let state = || {
        let facts = owner.host.domain(guest.uuid).unwrap().unwrap();
        assert!(facts.persistent && !facts.saving && !facts.managed_save);
        facts.brief.state
    };
    let saved = owner.path("saved");
    owner.host.define(&guest.definition).unwrap();
    assert_eq!(kind(owner.host.save(guest.uuid, &saved)), FaultKind::Refused);
    owner.host.start(guest.uuid).unwrap();
    owner.host.save(guest.uuid, &saved).unwrap();
    assert_eq!(state(), DomainState::ShutOff);
    let disk = owner.host.stat(&guest.image).unwrap().unwrap();
    let memory = owner.host.stat(&saved).unwrap().unwrap();
    assert!(memory.size > 0 && disk.mtime_ns <= memory.mtime_ns, "the disk is not written to after the memory");
    owner.host.sync(&saved).unwrap();
    owner.host.restore(&saved).unwrap();
    assert_eq!(state(), DomainState::Active);
    assert_eq!(owner.host.stat(&guest.image).unwrap().unwrap().mtime_ns, disk.mtime_ns);
    owner.host.destroy(guest.uuid).unwrap();
    owner.host.unlink(&saved, memory.inode).unwrap();
    owner.host.make_file(&saved, 0o600, b"not a memory at all, and much too short to be one").unwrap();
    assert_eq!(kind(owner.host.restore(&saved)), FaultKind::Refused);
    assert_eq!(state(), DomainState::ShutOff);
    owner.host.undefine(guest.uuid).unwrap();
}

/// A snapshot of a guest, which stands on another one.
fn snapshot(definition: &str, name: &str, parent: Option<&str>) -> String {
    let parent = parent.map_or(String::new(), |parent| format!("<parent><name>{parent}</name></parent>"));
    format!(
        "<domainsnapshot><name>{name}</name><state>shutoff</state>{parent}<creationTime>1700000000</creationTime>\
         {definition}</domainsnapshot>"
    )
}

/// Names of a guest's snapshots, the current one marked.
fn snapshots_of(owner: &Owner, guest: &Guest) -> Vec<String> {
    let all = owner.host.snapshots(guest.uuid).unwrap();
    for one in &all {
        assert_eq!(owner.host.snapshot(guest.uuid, &one.name).unwrap().as_ref(), Some(one));
        assert!(one.definition.contains(&guest.image) && one.definition.contains(&guest.uuid.to_string()));
    }
    let facts = owner.host.domain(guest.uuid).unwrap().unwrap();
    assert_eq!(facts.snapshots as usize, all.len());
    all.into_iter().map(|one| format!("{}{}", one.name, if one.current { "*" } else { "" })).collect()
}

fn snapshots_are_told_and_forgotten(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let (guest, host) = (guest(&owner, ground, "image"), owner.host.clone());
    host.define(&guest.definition).unwrap();
    let define = |name: &str, parent: Option<&str>, current: bool| {
        host.define_snapshot(guest.uuid, &snapshot(&guest.definition, name, parent), current)
    };
    let disk = host.stat(&guest.image).unwrap();
    assert_kind(define("second", Some("first"), true), &[FaultKind::Refused]);
    for _ in 0..2 {
        define("first", None, false).unwrap();
        assert_eq!(snapshots_of(&owner, &guest).first().map(String::as_str), Some("first"));
        define("second", Some("first"), true).unwrap();
        assert_eq!(snapshots_of(&owner, &guest), ["first", "second*"]);
    }
    define("third", Some("second"), false).unwrap();
    assert_eq!(snapshots_of(&owner, &guest), ["first", "second*", "third"]);
    let other = ground.definition(&guest.name, fresh_uuid(ground), &guest.image);
    assert_kind(host.define_snapshot(guest.uuid, &snapshot(&other, "fourth", None), false), &[FaultKind::Refused]);
    for nonsense in ["", "<domainsnapshot", "<domainsnapshot><name>x</name></domainsnapshot>"] {
        assert!(host.define_snapshot(guest.uuid, nonsense, false).is_err(), "{nonsense}");
    }
    assert_eq!(host.snapshot(guest.uuid, "fourth").unwrap(), None);
    for _ in 0..2 {
        host.forget_snapshot(guest.uuid, "third").unwrap();
        assert_eq!(snapshots_of(&owner, &guest), ["first", "second*"]);
    }
    host.forget_snapshot(guest.uuid, "second").unwrap();
    assert_eq!(snapshots_of(&owner, &guest), ["first*"]);
    assert_eq!(host.stat(&guest.image).unwrap(), disk, "no disk is touched");
    host.undefine(guest.uuid).unwrap();
    assert_eq!(host.snapshots(guest.uuid).unwrap(), Vec::new());
    assert_eq!(host.snapshot(guest.uuid, "first").unwrap(), None);
    host.forget_snapshot(guest.uuid, "first").unwrap();
    assert_eq!(kind(define("first", None, false)), FaultKind::NotFound);
}

fn snapshots_follow_their_domain(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let (guest, host) = (guest(&owner, ground, "image"), owner.host.clone());
    host.define(&guest.definition).unwrap();
    // The domain inside may have the name that its domain will get.
    let name = format!("{}-renamed", guest.name);
    let inside = ground.definition(&name, guest.uuid, &guest.image);
    host.define_snapshot(guest.uuid, &snapshot(&inside, "first", None), false).unwrap();
    host.define_snapshot(guest.uuid, &snapshot(&inside, "second", Some("first")), true).unwrap();
    let before = host.snapshots(guest.uuid).unwrap();
    let kept = |name: &str| host.list(&format!("/var/lib/libvirt/qemu/snapshot/{name}")).unwrap();
    assert_eq!(kept(&guest.name).unwrap(), ["first.xml", "second.xml"]);
    host.rename_domain(guest.uuid, &name).unwrap();
    assert_eq!(host.snapshots(guest.uuid).unwrap(), before);
    assert_eq!(
        (kept(&guest.name), kept(&name).unwrap()),
        (None, vec!["first.xml".to_owned(), "second.xml".to_owned()])
    );
    host.undefine(guest.uuid).unwrap();
    assert_eq!(kept(&name), None);
}

fn what_is_not_there_is_not_changed(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let uuid = fresh_uuid(ground);
    owner.host.undefine(uuid).unwrap();
    assert_eq!(kind(owner.host.start(uuid)), FaultKind::NotFound);
    assert_eq!(kind(owner.host.set_title(uuid, Some("t"))), FaultKind::NotFound);
    assert_eq!(kind(owner.host.set_metadata(uuid, Some("<clone/>"))), FaultKind::NotFound);
    assert_eq!(kind(owner.host.set_autostart(uuid, true)), FaultKind::NotFound);
    assert_eq!(kind(owner.host.refresh_pool("conform-no-such-pool")), FaultKind::NotFound);
}

fn qemus_command_is_shown(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let guest = guest(&owner, ground, "image");
    let command = owner.host.native_command(&guest.definition).unwrap();
    assert!(command.contains("qemu") && command.contains(&guest.name), "{command}");
    assert_eq!(owner.host.domain(guest.uuid).unwrap(), None);
    assert_eq!(kind(owner.host.native_command("<domain")), FaultKind::Refused);
}

fn pools_and_networks_are_listed(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let name = ground.pool();
    let pools = owner.host.pools().unwrap();
    let pool = pools.iter().find(|pool| pool.name == name).unwrap();
    assert!(pool.active && pool.path.is_some());
    owner.host.refresh_pool(&name).unwrap();
    owner.host.networks().unwrap();
    owner.host.renew_libvirt().unwrap();
    owner.host.domains().unwrap();
}

fn a_volume_has_a_path(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let name = ground.pool();
    let pools = owner.host.pools().unwrap();
    let directory = pools.iter().find(|pool| pool.name == name).unwrap().path.clone().unwrap();
    let volume = format!("{}.img", fresh_name(fresh_uuid(ground)));
    let path = format!("{directory}/{volume}");
    assert_eq!(owner.host.volume_path(&name, &volume).unwrap(), None);
    ground.put(Side::Destination, &path, 1000, &[]);
    owner.host.refresh_pool(&name).unwrap();
    assert_eq!(owner.host.volume_path(&name, &volume).unwrap(), Some(path.clone()));
    assert_eq!(owner.host.volume_path("conform-no-such-pool", &volume).unwrap(), None);
    owner.host.allow(std::slice::from_ref(&path)).unwrap();
    let inode = owner.host.stat(&path).unwrap().unwrap().inode;
    owner.host.unlink(&path, inode).unwrap();
    owner.host.refresh_pool(&name).unwrap();
    assert_eq!(owner.host.volume_path(&name, &volume).unwrap(), None);
}
