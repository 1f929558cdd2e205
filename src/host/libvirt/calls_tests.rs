#![allow(clippy::unwrap_used)]
use super::*;

// libvirt's own test driver: no daemon, no host. It knows neither NVRAM flags nor checkpoints.
fn connect() -> Connect {
    virt::error::clear_error_callback();
    Connect::open(Some("test:///default")).unwrap()
}

#[test]
fn a_domain_is_seen_whole() {
    let connect = connect();
    let facts =
        whole(unless_gone(connect.lookup_domain_by_name("test").map_err(Refusal::from)).unwrap()).unwrap().unwrap();
    assert_eq!(facts.brief.name, "test");
    assert_eq!(facts.brief.state, DomainState::Active);
    assert!(facts.persistent);
    assert_eq!((facts.snapshots, facts.checkpoints, facts.managed_save), (0, 0, false));
    assert!(facts.definition.contains("<name>test</name>"));
    let same = whole(find(&connect, facts.brief.uuid).unwrap()).unwrap().unwrap();
    assert_eq!(same, facts);
}

#[test]
fn what_is_not_there_is_none() {
    let connect = connect();
    assert!(find(&connect, DomainUuid([7; 16])).unwrap().is_none());
    assert!(must_find(&connect, DomainUuid([7; 16])).unwrap_err().is(ErrorNumber::NoDomain));
}

#[test]
fn pools_have_type_and_path() {
    let connect = connect();
    let pool = connect.lookup_storage_pool_by_name("default-pool").unwrap();
    let facts = pool_facts(&pool).unwrap();
    assert_eq!(facts.kind, "dir");
    assert_eq!(facts.path.as_deref(), Some("/default-pool"));
}

#[test]
fn title_and_metadata_are_set_and_removed() {
    let connect = connect();
    let uuid = brief(&connect.lookup_domain_by_name("test").unwrap()).unwrap().uuid;
    let definition = || whole(find(&connect, uuid).unwrap()).unwrap().unwrap().definition;
    let title = virt_sys::VIR_DOMAIN_METADATA_TITLE;
    let element = virt_sys::VIR_DOMAIN_METADATA_ELEMENT;
    let name = Some((METADATA_KEY, METADATA_URI));
    set(&connect, uuid, title, Some("half"), None).unwrap();
    set(&connect, uuid, element, Some("<clone state='unfinished'/>"), name).unwrap();
    assert!(definition().contains("<title>half</title>"));
    assert!(definition().contains("kvm-clone:clone"));
    set(&connect, uuid, title, None, None).unwrap();
    set(&connect, uuid, element, None, name).unwrap();
    // A second time changes nothing.
    set(&connect, uuid, element, None, name).unwrap();
    assert!(!definition().contains("half") && !definition().contains("kvm-clone"));
}
