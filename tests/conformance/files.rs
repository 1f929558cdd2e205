//! Files, names, and who may change them.

use kvm_clone::world::{FaultKind, FileKind, Side};

use super::{Ground, Owner, assert_kind, bytes, cases, kind, other};

cases![
    a_directory_is_made_once,
    a_file_is_made_once,
    writing_needs_the_inode,
    a_size_is_set_with_and_without_blocks,
    attributes_are_set,
    a_link_takes_no_name_that_is_taken,
    a_rename_takes_no_name_that_is_taken,
    a_name_goes_only_if_it_is_that_inode,
    only_an_empty_directory_goes,
    reading_is_bounded_and_follows_no_symlink,
    names_are_listed_in_order,
    symlinks_are_resolved,
    a_filesystem_is_described,
    syncing_needs_something_there,
    nothing_is_changed_without_the_owner_lock,
    nothing_is_changed_that_was_not_named,
    nothing_is_changed_on_the_source,
    a_host_is_described,
    users_are_looked_up,
    time_and_randomness_go_on,
    a_disconnected_host_is_unreachable,
    a_label_is_given_where_there_are_any,
];

fn a_directory_is_made_once(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let path = owner.path("d");
    let inode = owner.host.make_dir(&path, 0o711).unwrap();
    let stat = owner.host.stat(&path).unwrap().unwrap();
    assert_eq!((stat.kind, stat.inode, stat.mode), (FileKind::Directory, inode, 0o711));
    assert_eq!(kind(owner.host.make_dir(&path, 0o711)), FaultKind::AlreadyExists);
    assert_eq!(kind(owner.host.make_file(&path, 0o600, b"")), FaultKind::AlreadyExists);
    assert_eq!(kind(owner.host.make_dir(&owner.path("absent/d"), 0o711)), FaultKind::NotFound);
}

fn a_file_is_made_once(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let path = owner.path("f");
    let inode = owner.host.make_file(&path, 0o640, b"content").unwrap();
    let stat = owner.host.stat(&path).unwrap().unwrap();
    assert_eq!((stat.kind, stat.inode, stat.mode, stat.size), (FileKind::File, inode, 0o640, 7));
    assert_eq!(stat.links, 1);
    assert_eq!(ground.get(Side::Destination, &path).unwrap(), b"content");
    assert_eq!(kind(owner.host.make_file(&path, 0o640, b"other")), FaultKind::AlreadyExists);
    assert_eq!(kind(owner.host.make_dir(&path, 0o700)), FaultKind::AlreadyExists);
    assert_eq!(ground.get(Side::Destination, &path).unwrap(), b"content");
    ground.put_symlink(Side::Destination, &owner.path("s"), &owner.path("nowhere"));
    assert_eq!(kind(owner.host.make_file(&owner.path("s"), 0o640, b"other")), FaultKind::AlreadyExists);
}

fn writing_needs_the_inode(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let path = owner.path("f");
    let inode = owner.host.make_file(&path, 0o600, b"0123456789").unwrap();
    owner.host.write_at(&path, inode, 3, b"abc").unwrap();
    assert_eq!(ground.get(Side::Destination, &path).unwrap(), b"012abc6789");
    assert_eq!(kind(owner.host.write_at(&path, other(inode), 0, b"x")), FaultKind::Changed);
    assert_eq!(kind(owner.host.set_size(&path, other(inode), 0, false)), FaultKind::Changed);
    assert_eq!(kind(owner.host.set_attributes(&path, other(inode), 0, 0, 0)), FaultKind::Changed);
    let gone = [FaultKind::NotFound, FaultKind::Changed];
    assert_kind(owner.host.write_at(&owner.path("absent"), inode, 0, b"x"), &gone);
    assert_kind(owner.host.set_size(&owner.path("absent"), inode, 0, false), &gone);
    assert_eq!(ground.get(Side::Destination, &path).unwrap(), b"012abc6789");
}

fn a_size_is_set_with_and_without_blocks(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let (sparse, whole) = (owner.path("sparse"), owner.path("whole"));
    let size = 1 << 20;
    let inode = owner.host.make_file(&sparse, 0o600, b"").unwrap();
    owner.host.set_size(&sparse, inode, size, false).unwrap();
    let stat = owner.host.stat(&sparse).unwrap().unwrap();
    assert_eq!((stat.size, stat.allocated), (size, 0));
    let inode = owner.host.make_file(&whole, 0o600, b"").unwrap();
    owner.host.set_size(&whole, inode, size, true).unwrap();
    let stat = owner.host.stat(&whole).unwrap().unwrap();
    assert_eq!(stat.size, size);
    assert!(stat.allocated >= size);
    let space = owner.host.filesystem(&whole).unwrap().available_bytes;
    assert_eq!(kind(owner.host.set_size(&whole, inode, size + 4 * space, true)), FaultKind::NoSpace);
    owner.host.set_size(&whole, inode, 5, false).unwrap();
    assert_eq!(ground.get(Side::Destination, &whole).unwrap(), [0; 5]);
}

fn attributes_are_set(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let path = owner.path("f");
    let inode = owner.host.make_file(&path, 0o600, b"").unwrap();
    owner.host.set_attributes(&path, inode, 64_055, 104, 0o644).unwrap();
    let stat = owner.host.stat(&path).unwrap().unwrap();
    assert_eq!((stat.uid, stat.gid, stat.mode), (64_055, 104, 0o644));
}

fn a_link_takes_no_name_that_is_taken(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let (path, link) = (owner.path("f"), owner.path("l"));
    let inode = owner.host.make_file(&path, 0o600, b"f").unwrap();
    owner.host.link(&path, &link).unwrap();
    let stat = owner.host.stat(&link).unwrap().unwrap();
    assert_eq!((stat.inode, stat.links), (inode, 2));
    assert_eq!(kind(owner.host.link(&path, &link)), FaultKind::AlreadyExists);
    owner.host.make_file(&owner.path("g"), 0o600, b"g").unwrap();
    assert_eq!(kind(owner.host.link(&path, &owner.path("g"))), FaultKind::AlreadyExists);
    ground.put_symlink(Side::Destination, &owner.path("s"), &owner.path("nowhere"));
    assert_eq!(kind(owner.host.link(&path, &owner.path("s"))), FaultKind::AlreadyExists);
    assert_eq!(kind(owner.host.link(&owner.path("absent"), &owner.path("m"))), FaultKind::NotFound);
    assert_eq!(ground.get(Side::Destination, &owner.path("g")).unwrap(), b"g");
}

fn a_rename_takes_no_name_that_is_taken(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let (from, to) = (owner.path("from"), owner.path("to"));
    let inode = owner.host.make_file(&from, 0o600, b"from").unwrap();
    owner.host.make_file(&to, 0o600, b"to").unwrap();
    assert_eq!(kind(owner.host.rename(&from, &to)), FaultKind::AlreadyExists);
    assert_eq!(ground.get(Side::Destination, &to).unwrap(), b"to");
    owner.host.rename(&from, &owner.path("free")).unwrap();
    assert_eq!(owner.host.stat(&from).unwrap(), None);
    assert_eq!(owner.host.stat(&owner.path("free")).unwrap().unwrap().inode, inode);
    assert_eq!(kind(owner.host.rename(&from, &owner.path("m"))), FaultKind::NotFound);

    let directory = owner.host.make_dir(&owner.path("d"), 0o700).unwrap();
    owner.host.make_file(&owner.path("d/f"), 0o600, b"").unwrap();
    owner.host.make_dir(&owner.path("e"), 0o700).unwrap();
    assert_kind(owner.host.rename(&owner.path("d"), &owner.path("e")), &[FaultKind::AlreadyExists]);
    owner.host.rename(&owner.path("d"), &owner.path("n")).unwrap();
    assert_eq!(owner.host.stat(&owner.path("n")).unwrap().unwrap().inode, directory);
    assert!(owner.host.stat(&owner.path("n/f")).unwrap().is_some());
}

fn a_name_goes_only_if_it_is_that_inode(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let path = owner.path("f");
    let inode = owner.host.make_file(&path, 0o600, b"").unwrap();
    assert_eq!(kind(owner.host.unlink(&path, other(inode))), FaultKind::Changed);
    assert!(owner.host.stat(&path).unwrap().is_some());
    owner.host.unlink(&path, inode).unwrap();
    assert_eq!(owner.host.stat(&path).unwrap(), None);
    owner.host.unlink(&path, inode).unwrap();
    owner.host.unlink(&owner.path("absent/f"), inode).unwrap();
    let directory = owner.host.make_dir(&owner.path("d"), 0o700).unwrap();
    owner.host.unlink(&owner.path("d"), directory).unwrap_err();
    assert!(owner.host.stat(&owner.path("d")).unwrap().is_some());
}

fn only_an_empty_directory_goes(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let path = owner.path("d");
    owner.host.make_dir(&path, 0o700).unwrap();
    let inode = owner.host.make_file(&owner.path("d/f"), 0o600, b"").unwrap();
    assert_eq!(kind(owner.host.remove_dir(&path)), FaultKind::NotEmpty);
    owner.host.unlink(&owner.path("d/f"), inode).unwrap();
    owner.host.remove_dir(&path).unwrap();
    assert_eq!(owner.host.stat(&path).unwrap(), None);
    owner.host.remove_dir(&path).unwrap();
    owner.host.make_file(&owner.path("f"), 0o600, b"").unwrap();
    owner.host.remove_dir(&owner.path("f")).unwrap_err();
    assert!(owner.host.stat(&owner.path("f")).unwrap().is_some());
}

fn reading_is_bounded_and_follows_no_symlink(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let path = owner.path("f");
    let content = bytes(10_000, 1);
    owner.host.make_file(&path, 0o600, &content).unwrap();
    assert_eq!(owner.host.read(&path, 1 << 20).unwrap().unwrap(), content);
    assert_eq!(owner.host.read(&path, 100).unwrap().unwrap(), content[..100]);
    assert_eq!(owner.host.read(&owner.path("absent"), 100).unwrap(), None);
    assert_eq!(owner.host.stat(&owner.path("absent")).unwrap(), None);
    assert_eq!(owner.host.stat(&owner.path("absent/f")).unwrap(), None);
    ground.put_symlink(Side::Destination, &owner.path("s"), &path);
    assert_eq!(owner.host.stat(&owner.path("s")).unwrap().unwrap().kind, FileKind::Symlink);
    owner.host.read(&owner.path("s"), 100).unwrap_err();
}

fn names_are_listed_in_order(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    for name in ["b", "a", ".hidden", "c c"] {
        owner.host.make_file(&owner.path(name), 0o600, b"").unwrap();
    }
    assert_eq!(owner.host.list(&owner.scratch).unwrap().unwrap(), [".hidden", "a", "b", "c c"]);
    assert_eq!(owner.host.list(&owner.path("absent")).unwrap(), None);
}

fn symlinks_are_resolved(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    owner.host.make_dir(&owner.path("d"), 0o700).unwrap();
    owner.host.make_file(&owner.path("d/f"), 0o600, b"").unwrap();
    ground.put_symlink(Side::Destination, &owner.path("s"), "d");
    assert_eq!(owner.host.resolve(&owner.path("s/f")).unwrap(), Some(owner.path("d/f")));
    assert_eq!(owner.host.resolve(&owner.path("d/f")).unwrap(), Some(owner.path("d/f")));
    assert_eq!(owner.host.resolve(&owner.path("s/absent")).unwrap(), None);
}

fn a_filesystem_is_described(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let facts = owner.host.filesystem(&owner.scratch).unwrap();
    assert_eq!(facts.device, owner.host.stat(&owner.scratch).unwrap().unwrap().device);
    assert!(facts.available_bytes > 0 && !facts.read_only && !facts.kind.is_empty());
    assert_eq!(kind(owner.host.filesystem(&owner.path("absent"))), FaultKind::NotFound);
}

fn syncing_needs_something_there(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    owner.host.make_file(&owner.path("f"), 0o600, b"x").unwrap();
    owner.host.sync(&owner.path("f")).unwrap();
    owner.host.sync(&owner.scratch).unwrap();
    owner.host.sync_filesystem(&owner.scratch).unwrap();
    assert_eq!(kind(owner.host.sync(&owner.path("absent"))), FaultKind::NotFound);
}

fn nothing_is_changed_without_the_owner_lock(ground: &dyn Ground) {
    let host = ground.world().connect(Side::Destination).unwrap();
    let scratch = ground.scratch(Side::Destination);
    let path = format!("{scratch}/f");
    ground.put(Side::Destination, &path, 4096, &[(0, bytes(4096, 1))]);
    let inode = host.stat(&path).unwrap().unwrap().inode;
    host.allow(&[scratch.clone(), format!("{scratch}/")]).unwrap();
    let to = format!("{scratch}/new");
    assert_eq!(kind(host.make_dir(&to, 0o700)), FaultKind::Fenced);
    assert_eq!(kind(host.make_file(&to, 0o700, b"")), FaultKind::Fenced);
    assert_eq!(kind(host.write_at(&path, inode, 0, b"x")), FaultKind::Fenced);
    assert_eq!(kind(host.set_size(&path, inode, 0, false)), FaultKind::Fenced);
    assert_eq!(kind(host.set_attributes(&path, inode, 0, 0, 0)), FaultKind::Fenced);
    assert_eq!(kind(host.link(&path, &to)), FaultKind::Fenced);
    assert_eq!(kind(host.rename(&path, &to)), FaultKind::Fenced);
    assert_eq!(kind(host.unlink(&path, inode)), FaultKind::Fenced);
    assert_eq!(kind(host.remove_dir(&scratch)), FaultKind::Fenced);
    let uuid = super::fresh_uuid(ground);
    assert_eq!(kind(host.define(&ground.definition("fenced", uuid, &path))), FaultKind::Fenced);
    assert_eq!(kind(host.undefine(uuid)), FaultKind::Fenced);
    assert_eq!(kind(host.start(uuid)), FaultKind::Fenced);
    assert_eq!(kind(host.set_autostart(uuid, true)), FaultKind::Fenced);
    assert_eq!(kind(host.set_title(uuid, None)), FaultKind::Fenced);
    assert_eq!(kind(host.set_metadata(uuid, None)), FaultKind::Fenced);
    assert_eq!(ground.get(Side::Destination, &path).unwrap(), bytes(4096, 1));
    assert_eq!(host.list(&scratch).unwrap().unwrap(), ["f"]);
    ground.world().disconnect(Side::Destination);
}

fn nothing_is_changed_that_was_not_named(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let elsewhere = format!("{}-elsewhere", owner.scratch);
    assert_eq!(kind(owner.host.make_dir(&elsewhere, 0o700)), FaultKind::Denied);
    let inode = owner.host.make_file(&owner.path("f"), 0o600, b"").unwrap();
    assert_eq!(kind(owner.host.link(&owner.path("f"), &elsewhere)), FaultKind::Denied);
    assert_eq!(kind(owner.host.rename(&owner.path("f"), &elsewhere)), FaultKind::Denied);
    assert_eq!(owner.host.stat(&elsewhere).unwrap(), None);
    assert_eq!(owner.host.stat(&owner.path("f")).unwrap().unwrap().inode, inode);
}

fn nothing_is_changed_on_the_source(ground: &dyn Ground) {
    let host = ground.world().connect(Side::Source).unwrap();
    let scratch = ground.scratch(Side::Source);
    let path = format!("{scratch}/f");
    ground.put(Side::Source, &path, 4096, &[(0, bytes(4096, 1))]);
    let inode = host.stat(&path).unwrap().unwrap().inode;
    let refused = [FaultKind::Denied, FaultKind::Fenced];
    assert_kind(host.make_dir(&format!("{scratch}/d"), 0o700), &refused);
    assert_kind(host.make_file(&format!("{scratch}/n"), 0o600, b""), &refused);
    assert_kind(host.write_at(&path, inode, 0, b"x"), &refused);
    assert_kind(host.unlink(&path, inode), &refused);
    assert_kind(host.rename(&path, &format!("{scratch}/n")), &refused);
    assert_kind(host.undefine(super::fresh_uuid(ground)), &refused);
    assert_eq!(host.list(&scratch).unwrap().unwrap(), ["f"]);
    ground.world().disconnect(Side::Source);
}

fn a_host_is_described(ground: &dyn Ground) {
    for side in [Side::Source, Side::Destination] {
        let host = ground.world().connect(side).unwrap();
        let facts = host.facts().unwrap();
        assert_eq!(facts.machine_id.len(), 32);
        assert!(!facts.hostname.is_empty() && facts.cpus > 0 && facts.memory_bytes > 1 << 20);
        assert!(facts.libvirt_version >= 1_000_000);
        assert!(facts.capabilities.contains("<capabilities>"));
        assert!(host.agent().unwrap().pid > 0);
        assert!(!host.name().is_empty());
        ground.world().disconnect(side);
    }
}

fn users_are_looked_up(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    assert_eq!(owner.host.ids_of("root", "root").unwrap(), (Some(0), Some(0)));
    assert_eq!(owner.host.ids_of("no-such-user", "no-such-group").unwrap(), (None, None));
}

fn time_and_randomness_go_on(ground: &dyn Ground) {
    let world = ground.world();
    let before = world.now();
    world.wait(std::time::Duration::from_millis(20)).unwrap();
    assert!(world.now().0 >= before.0 + 20);
    assert_ne!(world.random(), world.random());
    world.check_interrupted().unwrap();
}

fn a_disconnected_host_is_unreachable(ground: &dyn Ground) {
    let host = ground.world().connect(Side::Destination).unwrap();
    assert_eq!(host.stat("/etc").unwrap().unwrap().kind, FileKind::Directory);
    ground.world().disconnect(Side::Destination);
    ground.world().disconnect(Side::Destination);
    assert_eq!(kind(host.stat("/etc")), FaultKind::Unreachable);
    assert_eq!(kind(host.domains()), FaultKind::Unreachable);
}

/// Hosts of tests have none.
fn a_label_is_given_where_there_are_any(ground: &dyn Ground) {
    let owner = Owner::new(ground);
    let path = owner.path("f");
    owner.host.make_file(&path, 0o600, b"content").unwrap();
    assert_eq!(owner.host.relabel(&path).unwrap(), None);
    assert_eq!(ground.get(Side::Destination, &path).unwrap(), b"content");
    assert_eq!(kind(owner.host.relabel("/var/lib/elsewhere/f")), FaultKind::Denied);
}
