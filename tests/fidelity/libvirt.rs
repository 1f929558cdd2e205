//! A real libvirt (its QEMU driver inside virsh, `qemu:///embed`, no daemon) takes every rewritten definition with `--validate`,
//! and gives all of it back. Without virsh and its QEMU driver there is nothing to ask, and the tests say so.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use kvm_clone::domain::metadata::{NAMESPACE, PREFIX};
use kvm_clone::domain::{Change, CloneMark, Definition, MarkState, Rewrite, read_back, rewrite, uncarried};

use super::{Fixture, carried, mark, whole_rewrite};

/// A line between the answers of two commands.
const NEXT: &str = "---next---";

/// A libvirt of its own, in a directory.
struct Libvirt {
    root: tempfile::TempDir,
}

impl Libvirt {
    /// `None` where there is none to start.
    fn start() -> Option<Self> {
        let libvirt = Self { root: tempfile::tempdir().unwrap() };
        // Where /dev/kvm belongs to root alone, QEMU's own user finds it and cannot use it: libvirt 9.0 then forgets at every
        // look what it learned of QEMU, and asks again for seconds.
        std::fs::create_dir(libvirt.root.path().join("etc")).unwrap();
        std::fs::write(libvirt.root.path().join("etc/qemu.conf"), "user = \"root\"\ngroup = \"root\"\n").unwrap();
        match libvirt.virsh("list --all") {
            Ok(_) => Some(libvirt),
            Err(why) => {
                eprintln!("not tested against libvirt: {why}");
                None
            }
        }
    }

    /// Runs commands in one process.
    fn virsh(&self, commands: &str) -> Result<String, String> {
        let uri = format!("qemu:///embed?root={}", self.root.path().display());
        let output =
            Command::new("virsh").args(["-q", "-c", &uri, commands]).output().map_err(|error| error.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let said = text(&output.stderr);
        if output.status.success() && said.is_empty() { Ok(text(&output.stdout)) } else { Err(said) }
    }

    /// Puts a definition where a command can read it.
    fn file(&self, name: &str, definition: &str) -> String {
        let path = self.root.path().join(name);
        std::fs::write(&path, definition).unwrap();
        path.display().to_string()
    }

    /// Defines each, reads it back, undefines it.
    fn read_back_all(&self, sent: &[(String, String)]) -> Vec<String> {
        let mut commands = String::new();
        for (fixture, sent) in sent {
            let name = Definition::parse(sent).unwrap().name;
            let file = self.file(&format!("{fixture}.xml"), sent);
            write!(
                commands,
                "define --validate {file}; dumpxml --inactive --security-info {name}; undefine {name}; echo {NEXT};"
            )
            .unwrap();
        }
        let said = self.virsh(&commands).unwrap_or_else(|why| panic!("{why}"));
        let answers: Vec<_> =
            said.split(NEXT).map(str::trim).filter(|got| !got.is_empty()).map(str::to_owned).collect();
        assert_eq!(answers.len(), sent.len());
        answers
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
    let (definable, others): (Vec<_>, Vec<_>) = carried().into_iter().partition(is_definable);
    assert!(definable.len() >= 10, "only {} can be defined here", definable.len());
    let rewritten = |fixture: &Fixture| {
        let before = Definition::parse(&fixture.text).unwrap();
        (fixture.name.clone(), rewrite(&before, &whole_rewrite(&before)).unwrap())
    };
    let first: Vec<_> = definable.iter().map(rewritten).collect();
    let mut second = Vec::new();
    for ((fixture, sent), got) in first.iter().zip(libvirt.read_back_all(&first)) {
        read_back(sent, &got).unwrap_or_else(|lost| panic!("{fixture}: {lost}\n{got}"));
        assert_eq!(CloneMark::read(&got).unwrap(), Some(mark()), "{fixture}");
        // What libvirt wrote is the source of most clones: the clone's clone.
        let again = Definition::parse(&got).unwrap();
        assert!(uncarried(&again).unwrap().blockers.is_empty(), "{fixture}: {:?}", uncarried(&again));
        let asked = Rewrite { name: Some("the-second".into()), ..whole_rewrite(&again) };
        second.push((fixture.clone(), rewrite(&again, &asked).unwrap()));
    }
    for ((fixture, sent), got) in second.iter().zip(libvirt.read_back_all(&second)) {
        let added = read_back(sent, &got).unwrap_or_else(|lost| panic!("{fixture}: {lost}\n{got}"));
        assert!(added.is_empty(), "{fixture}: libvirt adds to its own writing: {added:?}");
    }
    for fixture in others {
        let before = Definition::parse(&fixture.text).unwrap();
        let asked = Rewrite { emulator: None, ..whole_rewrite(&before) };
        let file = libvirt.file("other.xml", &rewrite(&before, &asked).unwrap());
        let why = libvirt.virsh(&format!("define --validate {file}")).expect_err("there is no emulator");
        assert!(!why.contains("validate"), "{}: {why}", fixture.name);
    }
}

#[test]
fn a_definition_that_lost_something_is_noticed() {
    let Some(libvirt) = Libvirt::start() else { return };
    let fixture = carried().into_iter().find(|fixture| fixture.name == "server").unwrap();
    let sent = fixture.text.replace("cache='none'", "cache='none' unheard-of='yes'");
    let file = libvirt.file("unheard.xml", &sent);
    // Without VALIDATE libvirt drops what it does not know, in silence.
    let got = libvirt.virsh(&format!("define {file}; dumpxml --inactive --security-info web01")).unwrap();
    let lost = read_back(&sent, &got).unwrap_err().to_string();
    assert!(lost.contains("domain/devices/disk/driver/@unheard-of"), "{lost}");
    assert!(libvirt.virsh(&format!("define --validate {file}")).unwrap_err().contains("validate"));
}

#[test]
fn set_metadata_makes_the_same_element_as_a_definition() {
    let Some(libvirt) = Libvirt::start() else { return };
    let fixture = carried().into_iter().find(|fixture| fixture.name == "cloned-before").unwrap();
    let file = libvirt.file("definition.xml", &fixture.text);
    let finished = CloneMark { state: MarkState::Finished, ..mark() };
    let marking = |mark: &CloneMark| {
        // The element is written with single quotes alone.
        let element = mark.to_element().unwrap();
        let name = "cloned-before";
        format!(
            "metadata {name} {NAMESPACE} --config --key {PREFIX} --set \"{element}\"; \
             echo {NEXT}; dumpxml --inactive --security-info {name}; echo {NEXT};"
        )
    };
    let said = libvirt.virsh(&format!("define {file}; {} {}", marking(&mark()), marking(&finished))).unwrap();
    let answers: Vec<_> = said.split(NEXT).map(str::trim).filter(|got| got.starts_with("<domain")).collect();
    assert_eq!(CloneMark::read(answers[0]).unwrap(), Some(mark()));
    assert_eq!(CloneMark::read(answers[1]).unwrap(), Some(finished.clone()));
    assert_eq!(answers[1].replace("\"finished\"", "\"unfinished\""), answers[0]);
    let asked = Rewrite { mark: Change::Set(finished), ..Rewrite::default() };
    let sent = rewrite(&Definition::parse(&fixture.text).unwrap(), &asked).unwrap();
    read_back(&sent, answers[1]).unwrap();
}
