//! What the VMs of a host reach, whatever path they name it by: no file of theirs is deleted.

use journal_format::DomainUuid;
use kvm_clone::reach::Reached;
use kvm_clone::world::{Side, World};

use crate::content::Content;
use crate::scene::{self, SECOND};
use crate::snapshots::{self, Snapshot};

const OTHER: DomainUuid = DomainUuid([0x44; 16]);

#[test]
fn a_file_is_reached_by_any_path_that_leads_to_it() {
    let world = scene::empty_world(11);
    let real = |name: &str| format!("{SECOND}/{name}");
    let names = ["top.img", "VARS.fd", "before.img", "KEPT.fd", "nobodys.img"];
    world.with(|core| {
        let machine = core.machine_mut(Side::Destination);
        for name in names {
            machine.files.make_file(&real(name), 0o600, Content::of(b"some bytes")).unwrap();
        }
        machine.files.make_symlink("/link", SECOND).unwrap();
        let with_variables = |disk: &str, variables: &str| {
            let nvram = format!("<nvram>/link/{variables}</nvram>\n  </os>");
            scene::definition("other", OTHER, &[("vda", "raw", disk)]).replace("</os>", &nvram)
        };
        machine.libvirt.define(&mut machine.files, &with_variables("/link/top.img", "VARS.fd")).unwrap();
        let inside = with_variables("/link/before.img", "KEPT.fd");
        let monday = Snapshot { text: snapshots::document("monday", None, 1, &inside), parent: None, current: true };
        machine.libvirt.domains.get_mut(&OTHER).unwrap().snapshots.insert("monday".into(), monday);
    });
    let host = world.connect(Side::Destination).unwrap();
    let reached = Reached::on(host.as_ref(), None).unwrap();
    for name in names {
        let who = reached.by(&real(name)).unwrap();
        let by_other = who.as_deref().is_some_and(|who| who.starts_with("the VM other"));
        assert_eq!(by_other, name != "nobodys.img", "{name}: {who:?}");
    }
}
