//! A real libvirt (its QEMU driver inside virsh, `qemu:///embed`, no daemon) takes every rewritten definition with `--validate`,
//! and gives all of it back. Without virsh and its QEMU driver there is nothing to ask, and the tests say so.

use std::path::Path;
use std::process::Command;

use kvm_clone::domain::metadata::{NAMESPACE, PREFIX};
use kvm_clone::domain::{CloneMark, Definition, MarkState, Rewrite, read_back, rewrite, uncarried};

use super::{Fixture, carried, mark, whole_rewrite};

/// A libvirt of its own, in a directory.
struct Libvirt {
    root: tempfile::TempDir,
}

impl Libvirt {
    /// `None` where there is none to start.
    fn start() -> Option<Self> {
        let libvirt = Self { root: tempfile::tempdir().unwrap() };
        match libvirt.virsh(&["list", "--all"]) {
            Ok(_) => Some(libvirt),
            Err(why) => {
                eprintln!("not tested against libvirt: {why}");
                None
            }
        }
    }

    fn virsh(&self, arguments: &[&str]) -> Result<String, String> {
        let uri = format!("qemu:///embed?root={}", self.root.path().display());
        let mut command = Command::new("virsh");
        let output = command.args(["-q", "-c", &uri]).args(arguments).output().map_err(|error| error.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    fn define(&self, definition: &str) -> Result<(), String> {
        let file = self.root.path().join("definition.xml");
        std::fs::write(&file, definition).unwrap();
        self.virsh(&["define", "--validate", &file.to_string_lossy()]).map(drop)
    }

    /// Defines, reads back, undefines: in one process, as each one asks QEMU anew what it can do.
    fn define_and_read(&self, name: &str, definition: &str) -> Result<String, String> {
        let file = self.root.path().join("definition.xml");
        std::fs::write(&file, definition).unwrap();
        let file = file.display();
        self.virsh(&[&format!("define --validate {file}; dumpxml --inactive --security-info {name}; undefine {name}")])
    }

    fn definition(&self, name: &str) -> String {
        self.virsh(&["dumpxml", "--inactive", "--security-info", name]).unwrap()
    }
}

/// Does this machine have the emulator? libvirt looks at the schema first and at the emulator then.
fn is_definable(fixture: &Fixture) -> bool {
    let definition = Definition::parse(&fixture.text).unwrap();
    let emulator = definition.emulator.unwrap_or_else(|| "/usr/bin/qemu-system-x86_64".into());
    Path::new(&emulator).exists() && (definition.virt_type != "kvm" || Path::new("/dev/kvm").exists())
}

#[test]
fn libvirt_takes_every_rewritten_definition_and_keeps_all_of_it() {
    let Some(libvirt) = Libvirt::start() else { return };
    let mut defined = 0;
    for fixture in carried() {
        let before = Definition::parse(&fixture.text).unwrap();
        let mut asked = whole_rewrite(&before);
        if !is_definable(&fixture) {
            asked.emulator = None;
            let why = libvirt.define(&rewrite(&before, &asked).unwrap()).err().unwrap_or_default();
            assert!(!why.contains("validate"), "{}: {why}", fixture.name);
            continue;
        }
        let sent = rewrite(&before, &asked).unwrap();
        let define = |name: &str, sent: &str| {
            let got = libvirt.define_and_read(name, sent);
            got.unwrap_or_else(|why| panic!("{}: {why}\n{sent}", fixture.name))
        };
        let got = define("the-clone", &sent);
        read_back(&sent, &got).unwrap_or_else(|lost| panic!("{}: {lost}\n{got}", fixture.name));
        assert_eq!(CloneMark::read(&got).unwrap(), Some(mark()), "{}", fixture.name);

        // What libvirt wrote is the source of most clones: the clone's clone.
        let again = Definition::parse(&got).unwrap();
        assert!(uncarried(&again).unwrap().blockers.is_empty(), "{}: {:?}", fixture.name, uncarried(&again));
        let sent = rewrite(&again, &Rewrite { name: Some("the-second".into()), ..whole_rewrite(&again) }).unwrap();
        let got = define("the-second", &sent);
        let added = read_back(&sent, &got).unwrap_or_else(|lost| panic!("{}: {lost}\n{got}", fixture.name));
        assert!(added.is_empty(), "{}: libvirt adds to its own writing: {added:?}", fixture.name);
        defined += 1;
    }
    assert!(defined >= 10, "only {defined} were defined");
}

#[test]
fn a_definition_that_lost_something_is_noticed() {
    let Some(libvirt) = Libvirt::start() else { return };
    let fixture = carried().into_iter().find(|fixture| fixture.name == "server").unwrap();
    // Without VALIDATE libvirt drops what it does not know, in silence.
    let sent = fixture.text.replace("cache='none'", "cache='none' unheard-of='yes'");
    let file = libvirt.root.path().join("unheard.xml");
    std::fs::write(&file, &sent).unwrap();
    libvirt.virsh(&["define", &file.to_string_lossy()]).unwrap();
    let lost = read_back(&sent, &libvirt.definition("web01")).unwrap_err().to_string();
    assert!(lost.contains("domain/devices/disk/driver/@unheard-of"), "{lost}");
    assert!(libvirt.define(&sent).unwrap_err().contains("validate"));
}

#[test]
fn set_metadata_makes_the_same_element_as_a_definition() {
    let Some(libvirt) = Libvirt::start() else { return };
    let fixture = carried().into_iter().find(|fixture| fixture.name == "cloned-before").unwrap();
    libvirt.define(&fixture.text).unwrap();
    let marked = |mark: &CloneMark| {
        let element = mark.to_element().unwrap();
        libvirt
            .virsh(&["metadata", "cloned-before", NAMESPACE, "--config", "--key", PREFIX, "--set", &element])
            .unwrap();
        libvirt.definition("cloned-before")
    };
    let unfinished = marked(&mark());
    assert_eq!(CloneMark::read(&unfinished).unwrap(), Some(mark()));
    let finished = CloneMark { state: MarkState::Finished, ..mark() };
    let got = marked(&finished);
    assert_eq!(CloneMark::read(&got).unwrap(), Some(finished.clone()));
    assert_eq!(got.replace("'finished'", "'unfinished'").replace("\"finished\"", "\"unfinished\""), unfinished);
    let asked = Rewrite { mark: kvm_clone::domain::Change::Set(finished), ..Rewrite::default() };
    let sent = rewrite(&Definition::parse(&fixture.text).unwrap(), &asked).unwrap();
    read_back(&sent, &got).unwrap();
}
