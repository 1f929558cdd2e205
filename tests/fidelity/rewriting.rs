//! A rewrite changes what it names and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use journal_format::ImageFormat;
use kvm_clone::domain::{
    Change, CloneMark, Definition, DiskSource, DomainError, Identity, InterfaceSource, Rewrite, read_back, rewrite,
    same, uncarried,
};
use proptest::prelude::*;

use super::{CLONE_GENID, CLONE_UUID, carried, mark, whole_rewrite};

fn read(text: &str) -> Definition {
    Definition::parse(text).unwrap()
}

fn fixture(name: &str) -> String {
    carried().into_iter().find(|fixture| fixture.name == name).unwrap().text
}

#[test]
fn nothing_asked_changes_nothing() {
    for fixture in carried() {
        assert_eq!(rewrite(&read(&fixture.text), &Rewrite::default()).unwrap(), fixture.text, "{}", fixture.name);
    }
}

#[test]
fn everything_asked_is_there_afterwards() {
    for fixture in carried() {
        let before = read(&fixture.text);
        let asked = whole_rewrite(&before);
        let text = rewrite(&before, &asked).unwrap();
        let after = read(&text);
        assert_eq!(Some(&after.name), asked.name.as_ref());
        assert_eq!(after.uuid, CLONE_UUID);
        assert_eq!(after.title.as_deref(), Some("Unfinished clone"));
        assert_eq!(after.emulator, asked.emulator);
        assert_eq!(after.sysinfo_uuid, before.sysinfo_uuid.map(|_| CLONE_UUID.to_string()));
        assert_eq!(after.genid, before.genid.map(|_| CLONE_GENID.to_string()));
        assert_eq!(CloneMark::read(&text).unwrap(), Some(mark()));
        for disk in &after.disks {
            let kept = before.disks[disk.index].source.clone();
            let expected = asked.disk_files.get(&disk.index).map_or(kept, |file| DiskSource::File(file.clone()));
            assert_eq!(disk.source, expected, "{}", fixture.name);
        }
        for interface in &after.interfaces {
            assert_eq!(interface.mac.as_ref(), asked.macs.get(&interface.index));
            match &interface.source {
                InterfaceSource::Network(name) | InterfaceSource::Bridge(name) => {
                    assert_eq!(*name, format!("net-{}", interface.index));
                }
                other => assert_eq!(*other, before.interfaces[interface.index].source),
            }
        }
        assert_eq!(before.description, after.description);
        // Nothing of the old identity is left.
        assert!(!text.to_lowercase().contains(&before.uuid.to_string()), "{}", fixture.name);
    }
}

/// Not written as libvirt writes: judged by their bytes alone.
const BY_HAND: [&str; 5] = ["odd-writing", "comments", "cdata", "entities", "double-quotes"];

/// The independent judge of "only what was named": line by line, with a list of what a changed line may be.
#[test]
fn no_other_line_changes() {
    for fixture in carried().iter().filter(|fixture| !BY_HAND.contains(&fixture.name.as_str())) {
        let before = read(&fixture.text);
        let after = rewrite(&before, &whole_rewrite(&before)).unwrap();
        let named = |line: &str| {
            let line = line.trim_start();
            [
                "<name>",
                "<uuid>",
                "<genid>",
                "<title",
                "<emulator>",
                "<nvram",
                "<mac ",
                "<source file=",
                "<source network=",
                "<source bridge=",
                "<metadata",
                "</metadata",
            ]
            .iter()
            .any(|start| line.starts_with(start))
                || line.starts_with("<entry name='uuid'>")
                || line.contains("kvm-clone:")
                || is_old_mark(line)
        };
        let rest = |text: &str| text.lines().filter(|line| !named(line)).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(rest(&fixture.text), rest(&after), "{}", fixture.name);
        // And of a disk's or an interface's line only the value.
        let blank = |text: &str| {
            text.lines()
                .filter(|line| {
                    ["<source file=", "<source network=", "<source bridge=", "<mac "]
                        .iter()
                        .any(|tag| line.contains(tag))
                })
                .map(|line| {
                    let mut parts = line.split('\'');
                    format!("{}#{}", parts.next().unwrap_or_default(), parts.skip(1).collect::<Vec<_>>().join("'"))
                })
                .collect::<Vec<_>>()
        };
        let (before, after) = (blank(&fixture.text), blank(&after));
        assert_eq!(before, after, "{}", fixture.name);
    }
}

/// Where a rewrite may change a text: contents and values, found by a parser of this test's own; and where it may put something
/// in, behind an element.
fn spans(text: &str) -> Vec<Range<usize>> {
    let document = roxmltree::Document::parse(text).unwrap();
    let mut spans = Vec::new();
    for node in document.descendants().filter(roxmltree::Node::is_element) {
        let parent = node.parent_element().map(|parent| parent.tag_name().name().to_owned()).unwrap_or_default();
        let end = node.range().end;
        match (parent.as_str(), node.tag_name().name()) {
            ("domain", "name" | "uuid" | "genid" | "title" | "metadata")
            | ("devices", "emulator")
            | ("os", "nvram")
            | ("interface", "mac") => spans.push(node.range()),
            ("system", "entry") if node.attribute("name") == Some("uuid") => spans.push(node.range()),
            // A new title, element, address or emulator.
            ("domain", "description") | ("os", "loader" | "type") => spans.push(end..end),
            ("", "domain") | ("domain", "devices") | ("devices", "interface") => {
                let first = node.first_element_child().map(|child| child.range().start);
                spans.extend(first.map(|start| start..start));
            }
            ("disk" | "interface", "source") => {
                let moved = node.attributes().filter(|one| ["file", "network", "bridge"].contains(&one.name()));
                spans.extend(moved.map(|attribute| attribute.range_value()));
            }
            _ => {}
        }
    }
    spans.sort_by_key(|span| (span.start, span.end));
    spans
}

/// The other judge, by bytes and for every way of writing: all between those spans is there again, in its order, and nothing
/// else is between.
#[test]
fn every_byte_outside_of_the_named_spans_stays() {
    for fixture in carried() {
        let before = read(&fixture.text);
        let after = rewrite(&before, &whole_rewrite(&before)).unwrap();
        let mut kept = Vec::new();
        let mut at = 0;
        for span in spans(&fixture.text) {
            kept.push(&fixture.text[at..span.start.max(at)]);
            at = span.end.max(at);
        }
        kept.push(&fixture.text[at..]);
        let mut rest = after.as_str();
        for (number, piece) in kept.iter().enumerate() {
            let found = rest.find(piece).unwrap_or_else(|| panic!("{}: {piece:?} is gone:\n{after}", fixture.name));
            assert!(number > 0 || found == 0, "{}: something is before the beginning", fixture.name);
            let new = &rest[..found];
            let longest = 2_000;
            assert!(new.len() < longest, "{}: {new:?} is more than a rewrite puts in", fixture.name);
            rest = &rest[found + piece.len()..];
        }
        assert_eq!(rest, "", "{}: something is behind the end", fixture.name);
    }
}

fn is_old_mark(line: &str) -> bool {
    line.starts_with("<k:") || line.starts_with("</k:")
}

#[test]
fn a_rewrite_and_its_opposite_give_the_same_bytes() {
    for fixture in carried() {
        let before = read(&fixture.text);
        // These are written in ways that a rewrite does not write, or have nothing to put back.
        let name = fixture.name.as_str();
        if BY_HAND.contains(&name) || ["cloned-before", "consoles", "diskless"].contains(&name) {
            continue;
        }
        let mut asked = whole_rewrite(&before);
        // A sent emulator cannot be taken out again.
        asked.emulator = before.emulator.as_ref().and(asked.emulator);
        let after = read(&rewrite(&before, &asked).unwrap());
        let files = before.images().map(|disk| (disk.index, disk.image().unwrap().to_owned()));
        let macs = before.interfaces.iter().filter_map(|interface| Some((interface.index, interface.mac.clone()?)));
        let networks = before.interfaces.iter().filter_map(|interface| match &interface.source {
            InterfaceSource::Network(name) | InterfaceSource::Bridge(name) => Some((interface.index, name.clone())),
            _ => None,
        });
        let genid = before.genid.as_ref().map_or(CLONE_GENID, |genid| genid.parse().unwrap());
        let back = Rewrite {
            name: Some(before.name.clone()),
            identity: Some(Identity { uuid: before.uuid, genid }),
            title: before.title.clone().map_or(Change::Remove, Change::Set),
            emulator: before.emulator.clone(),
            disk_files: files.collect(),
            disk_devices: BTreeMap::new(),
            chain_files: BTreeMap::new(),
            flattened: BTreeSet::new(),
            emptied: BTreeSet::new(),
            variables: before.os.variables.clone().and_then(|variables| variables.path),
            macs: macs.collect(),
            networks: networks.collect(),
            mark: Change::Remove,
        };
        let text = rewrite(&after, &back).unwrap();
        // An element of ours made its own <metadata>; empty, it stays.
        let text = text.replace("\n  <metadata></metadata>", "");
        assert_eq!(text, fixture.text, "{}", fixture.name);
    }
}

/// Comments, CDATA, entities, both kinds of quotes, blanks inside tags, elements on one line: to the byte.
#[test]
fn odd_writing_is_left_alone() {
    let text = fixture("odd-writing");
    let before = read(&text);
    assert_eq!(before.name, "odd & <quaint>");
    assert_eq!(before.disks[0].image(), Some("/srv/it's \"odd\" & <long>.img"));
    assert_eq!(before.disks[1].image(), Some("/srv/say \"hi\".qcow2"));
    let asked = Rewrite {
        name: Some("a & b".into()),
        identity: Some(Identity { uuid: CLONE_UUID, genid: CLONE_GENID }),
        disk_files: BTreeMap::from([(0, "/new/it's \"so\" & <so>.img".into()), (1, "/new/it's \"so\".img".into())]),
        macs: BTreeMap::from([(0, "52:54:00:00:00:01".into()), (1, "52:54:00:00:00:02".into())]),
        ..Rewrite::default()
    };
    let expected = text
        .replace("<![CDATA[odd & <quaint>]]>", "a &amp; b")
        .replace("<uuid>6A1C2B1E-0A55-4D8E-9F43-0D7C5B1A0004<", &format!("<uuid>{CLONE_UUID}<"))
        .replace(
            "\"/srv/it's &quot;odd&quot; &amp; &lt;long&gt;.img\"",
            "\"/new/it&apos;s &quot;so&quot; &amp; &lt;so&gt;.img\"",
        )
        .replace("'/srv/say \"hi\".qcow2'", "'/new/it&apos;s &quot;so&quot;.img'")
        .replace("52:54:00:AB:CD:EF", "52:54:00:00:00:01")
        .replace("<model type='e1000'/>", "<mac address='52:54:00:00:00:02'/>\n<model type='e1000'/>");
    assert_eq!(rewrite(&before, &asked).unwrap(), expected);
}

#[test]
fn a_device_or_a_volume_becomes_a_file_and_the_rest_of_its_disk_stays() {
    let text = fixture("one-basename");
    let plain = text.find("<disk type='file'").unwrap();
    let source = "<source file='/srv/a/disk.qcow2'/>";
    for (kind, odd, expected) in [
        ("block", "<source dev='/dev/vg/a &amp; b' index='1'/>", "<source file='/new/one' index='1'/>"),
        (
            "block",
            "<source startupPolicy='requisite'  dev = \"/dev/sdx\"/>",
            "<source startupPolicy='requisite'  file='/new/one'/>",
        ),
        ("volume", "<source pool='images' volume='web.img'/>", "<source file='/new/one'/>"),
        (
            "volume",
            "<source mode='host' volume='web.img'\n pool='images' index='2'/>",
            "<source\n file='/new/one' index='2'/>",
        ),
    ] {
        let mut before = text.replacen(source, odd, 1);
        before.replace_range(plain..plain + "<disk type='file'".len(), &format!("<disk type='{kind}'"));
        let asked = Rewrite { disk_files: BTreeMap::from([(0, "/new/one".into())]), ..Rewrite::default() };
        let parsed = read(&before);
        assert!(parsed.disks[0].is_own() && parsed.disks[0].image().is_none(), "{:?}", parsed.disks[0]);
        assert_eq!(rewrite(&parsed, &asked).unwrap(), text.replacen(source, expected, 1), "{odd}");
    }
}

#[test]
fn a_flattened_disk_is_raw_and_stands_on_nothing() {
    let text = fixture("one-basename");
    let plain = text.find("<disk type='file'").unwrap();
    let driver = "<driver name='qemu' type='qcow2'";
    let at = text.find(driver).unwrap();
    let end = at + text[at..].find('>').unwrap() + 1;
    assert!(at > plain);
    let layer =
        "<backingStore type='file'><format type='raw'/><source file='/srv/a/base.img'/><backingStore/></backingStore>";
    let mut before = text.clone();
    before.replace_range(
        at..end,
        &format!(
            "<driver name='qemu' type='qcow2' cache='none' discard_no_unref='on'><metadata_cache><max_size unit='KiB'>64</max_size></metadata_cache></driver>{layer}"
        ),
    );
    let mut expected = text.clone();
    expected.replace_range(at..end, "<driver name='qemu' type='raw' cache='none'></driver>");
    let asked = Rewrite { flattened: BTreeSet::from([0]), ..Rewrite::default() };
    let after = rewrite(&read(&before), &asked).unwrap();
    assert_eq!(after, expected);
    assert_eq!((read(&after).disks[0].image_format(), &read(&after).disks[0].chain), (Some(ImageFormat::Raw), &None));
}

#[test]
fn a_file_or_a_volume_becomes_a_device_and_the_rest_of_its_disk_stays() {
    let text = fixture("one-basename");
    let plain = text.find("<disk type='file'").unwrap();
    let source = "<source file='/srv/a/disk.qcow2'/>";
    for (kind, odd, expected) in [
        ("file", source, "<source dev='/dev/new &amp; one'/>"),
        ("block", "<source dev='/dev/vg/a' index='1'/>", "<source dev='/dev/new &amp; one' index='1'/>"),
        ("volume", "<source pool='images' volume='web.img'/>", "<source dev='/dev/new &amp; one'/>"),
    ] {
        let typed = |kind: &str, source_of: &str| {
            let mut text = text.replacen(source, source_of, 1);
            text.replace_range(plain..plain + "<disk type='file'".len(), &format!("<disk type='{kind}'"));
            text
        };
        let asked = Rewrite { disk_devices: BTreeMap::from([(0, "/dev/new & one".into())]), ..Rewrite::default() };
        assert_eq!(rewrite(&read(&typed(kind, odd)), &asked).unwrap(), typed("block", expected), "{odd}");
    }
}

#[test]
fn one_path_that_begins_like_another_is_not_touched() {
    let text = fixture("one-basename");
    let asked = Rewrite { disk_files: BTreeMap::from([(0, "/new/one".into())]), ..Rewrite::default() };
    let after = rewrite(&read(&text), &asked).unwrap();
    assert_eq!(after, text.replacen("'/srv/a/disk.qcow2'", "'/new/one'", 1));
    let after = read(&after);
    let images: Vec<_> = after.images().filter_map(|disk| disk.image()).collect();
    assert_eq!(images, ["/new/one", "/srv/a/disk.qcow2.raw", "/srv/a/b/disk.qcow2"]);
}

#[test]
fn a_source_s_own_mark_is_replaced_and_others_metadata_kept() {
    let text = fixture("cloned-before");
    let old = CloneMark::read(&text).unwrap().unwrap();
    assert_eq!((old.source_host.as_str(), old.disks.len()), ("kvm1", 1));
    let start = text.find("<k:clone").unwrap();
    let end = text.find("</k:clone>").unwrap() + "</k:clone>".len();
    let set = rewrite(&read(&text), &Rewrite { mark: Change::Set(mark()), ..Rewrite::default() }).unwrap();
    assert_eq!(set, format!("{}{}{}", &text[..start], mark().to_qualified_element().unwrap(), &text[end..]));
    let removed = rewrite(&read(&text), &Rewrite { mark: Change::Remove, ..Rewrite::default() }).unwrap();
    let line = text[..start].rfind('\n').unwrap();
    assert_eq!(removed, format!("{}{}", &text[..line], &text[end..]));
    assert_eq!(CloneMark::read(&removed).unwrap(), None);
}

#[test]
fn metadata_is_made_where_it_is_missing_or_empty() {
    let element = mark().to_qualified_element().unwrap();
    let set = Rewrite { mark: Change::Set(mark()), ..Rewrite::default() };
    for (name, old, new) in [
        ("consoles", "<metadata/>", format!("<metadata>\n    {element}\n  </metadata>")),
        ("diskless", "<metadata>\n  </metadata>", format!("<metadata>\n    {element}\n  </metadata>")),
        ("minimal", "</uuid>", format!("</uuid>\n  <metadata>{element}</metadata>")),
        ("server", "</libosinfo:libosinfo>", format!("</libosinfo:libosinfo>\n    {element}")),
    ] {
        let text = fixture(name);
        assert_eq!(rewrite(&read(&text), &set).unwrap(), text.replacen(old, &new, 1), "{name}");
    }
}

#[test]
fn titles_come_change_and_go() {
    let set = |title: &str| Rewrite { title: Change::Set(title.into()), ..Rewrite::default() };
    let text = fixture("minimal");
    let titled = rewrite(&read(&text), &set("a < b")).unwrap();
    assert_eq!(titled, text.replace("</uuid>", "</uuid>\n  <title>a &lt; b</title>"));
    let changed = rewrite(&read(&titled), &set("c")).unwrap();
    assert_eq!(changed, titled.replace("a &lt; b", "c"));
    let removed = rewrite(&read(&changed), &Rewrite { title: Change::Remove, ..Rewrite::default() }).unwrap();
    assert_eq!(removed, text);
    assert!(matches!(rewrite(&read(&text), &set("two\nlines")), Err(DomainError::Inexpressible { .. })));
    let empty = text.replace("</uuid>", "</uuid><title/>");
    assert_eq!(rewrite(&read(&empty), &set("x")).unwrap(), empty.replace("<title/>", "<title>x</title>"));
}

#[test]
fn line_ends_of_another_system_are_kept() {
    let text = fixture("server").replace('\n', "\r\n");
    let before = read(&text);
    let after = rewrite(&before, &whole_rewrite(&before)).unwrap();
    assert!(after.contains("<name>the-clone</name>\r\n  <uuid>"));
    assert!(after.contains("<features>\r\n    <acpi/>\r\n"));
    let removed = Rewrite { title: Change::Remove, ..Rewrite::default() };
    assert!(read(&rewrite(&before, &removed).unwrap()).title.is_none());
}

#[test]
fn what_is_not_there_is_not_rewritten() {
    let before = read(&fixture("empty-drives"));
    for index in [0, 1, 3, usize::MAX] {
        let asked = Rewrite { disk_files: BTreeMap::from([(index, "/x".into())]), ..Rewrite::default() };
        assert!(matches!(rewrite(&before, &asked), Err(DomainError::NoSuchTarget { .. })), "disk {index}");
    }
    let asked = Rewrite { macs: BTreeMap::from([(0, "52:54:00:00:00:00".into())]), ..Rewrite::default() };
    assert!(matches!(rewrite(&before, &asked), Err(DomainError::NoSuchTarget { .. })));
    let asked = Rewrite { name: Some("a\u{1}".into()), ..Rewrite::default() };
    assert!(matches!(rewrite(&before, &asked), Err(DomainError::Inexpressible { .. })));
}

#[test]
fn all_is_carried_and_warnings_are_named() {
    for fixture in carried() {
        let carriage = uncarried(&read(&fixture.text)).unwrap();
        assert!(carriage.blockers.is_empty(), "{}: {:#?}", fixture.name, carriage.blockers);
        let expected: &[&str] = match fixture.name.as_str() {
            "networks" => &["a network filter (clean-traffic)", "a port group (staff)"],
            "fixed-ports" => &[
                "a fixed network address (mode=bind host=127.0.0.1 service=4555)",
                "a fixed port (port 5999)",
                "a fixed port (websocket 5799)",
                "a console on the address 192.0.2.7",
            ],
            "host-cpu" => &["SMBIOS data of the host"],
            _ => &[],
        };
        let whats: Vec<_> = carriage.warnings.iter().map(|warning| warning.what.as_str()).collect();
        assert_eq!(whats, expected, "{}", fixture.name);
        assert!(!format!("{carriage:?}").contains("a<b>"), "a secret is in a message");
    }
}

#[test]
fn what_plan_and_preflight_need_is_read() {
    let server = read(&fixture("server"));
    assert_eq!((server.memory_bytes, server.vcpus), (2 << 30, 4));
    assert_eq!(server.os.machine.as_deref(), Some("pc-q35-7.2"));
    assert_eq!(server.networks(), ["default"]);
    assert_eq!(server.description.as_deref(), Some("Owner: shop team\nRenewed every spring & autumn"));
    let networks = read(&fixture("networks"));
    assert_eq!((networks.networks(), networks.bridges()), (vec!["lan"], vec!["br-wan"]));
    assert_eq!(networks.interfaces[3].source, InterfaceSource::User);
    assert_eq!(networks.macs().next().as_deref(), Some("52:54:00:00:08:01"));
    let fixed = read(&fixture("fixed-ports"));
    assert_eq!(fixed.graphics[0].fixed_ports, [5999, 5799]);
    assert_eq!(fixed.graphics[0].listens, ["192.0.2.7"]);
    let windows = read(&fixture("windows"));
    assert_eq!(windows.memory_bytes, 4 << 30);
    assert_eq!(windows.images().count(), 1);
    assert!(server.graphics[0].fixed_ports.is_empty());
    let minimal = read(&fixture("minimal"));
    assert_eq!((minimal.vcpus, minimal.emulator), (1, None));
}

#[test]
fn what_is_no_definition_is_refused_with_its_reason() {
    let deep = format!("{}{}", "<a>".repeat(100), "</a>".repeat(100));
    let deepest = "<a>".repeat(1_000_000);
    let wide = format!("<domain {}/>", (0..300).map(|n| format!("a{n}=''")).collect::<Vec<_>>().join(" "));
    let named = |inside: &str| format!("<domain><name>a</name>{inside}</domain>");
    let uuid = "<uuid>6a1c2b1e-0a55-4d8e-9f43-0d7c5b1a0001</uuid>";
    for (text, why) in [
        (String::new(), "not well-formed"),
        ("<domain>".into(), "not well-formed"),
        ("<network/>".into(), "<network>, not a <domain>"),
        ("<domain xmlns='urn:other'><name>a</name></domain>".into(), "not a <domain>"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><domain><name>&b;</name></domain>".into(), "not well-formed"),
        ("<domain><name>&b;</name></domain>".into(), "not well-formed"),
        (deep, "nested too deeply"),
        (deepest, "too many elements"),
        (wide, "too many attributes"),
        (format!("<domain>{}</domain>", "<a/>".repeat(250_000)), "too many elements"),
        (" ".repeat((4 << 20) + 1), "more than the 4194304"),
        (named("<name>b</name>"), "more than one <name>"),
        (named("<devices/><devices/>"), "more than one <devices>"),
        ("<domain/>".into(), "no name"),
        ("<domain><name/></domain>".into(), "no name"),
        (named(""), "no UUID"),
        (named("<uuid>x</uuid>"), "UUID is \"x\""),
        (named(uuid), "no memory size"),
        (named(&format!("{uuid}<memory unit='acre'>1</memory>")), "memory size is \"1\""),
        (named(&format!("{uuid}<memory unit='EiB'>99</memory>")), "memory size is \"99\""),
        (named(&format!("{uuid}<memory>1</memory><vcpu>many</vcpu>")), "number of CPUs is \"many\""),
        (named(&format!("{uuid}<memory>1</memory><devices><disk/></devices>")), "no target name of disk 1"),
    ] {
        let error = Definition::parse(&text).unwrap_err().to_string();
        assert!(error.contains(why), "{error:?} should say {why:?}");
    }
}

#[test]
fn comparing_finds_what_a_rewrite_changed() {
    for fixture in carried() {
        let before = read(&fixture.text);
        let after = rewrite(&before, &whole_rewrite(&before)).unwrap();
        assert!(same(&fixture.text, &fixture.text).unwrap());
        assert!(!same(&fixture.text, &after).unwrap());
        assert!(read_back(&after, &after).unwrap().is_empty());
        assert!(read_back(&fixture.text, &after).is_err());
    }
}

proptest! {
    /// Any name and any path, in either kind of quotes, is read again as it was written.
    #[test]
    fn values_survive(name in "[^\\p{Cc}\u{fffe}\u{ffff}]{1,40}", path in "/[^\\p{Cc}\u{fffe}\u{ffff}]{0,80}") {
        for text in [fixture("odd-writing"), fixture("minimal")] {
            let before = read(&text);
            let asked = Rewrite {
                name: Some(name.clone()),
                disk_files: BTreeMap::from([(0, path.clone())]),
                ..Rewrite::default()
            };
            let after = read(&rewrite(&before, &asked).unwrap());
            prop_assert_eq!(&after.name, &name);
            prop_assert_eq!(after.disks[0].image(), Some(path.as_str()));
        }
    }

    /// No text, however broken, makes a panic.
    #[test]
    fn broken_definitions_do_no_harm(at in 0_usize..4096, length in 0_usize..64, with in "[<>/='\"a-z!&;\\[\\]-]{0,8}") {
        for fixture in carried() {
            let mut text = fixture.text.into_bytes();
            let at = at % text.len();
            let end = (at + length).min(text.len());
            text.splice(at..end, with.bytes());
            super::seeds::read_domain_xml(&text);
        }
    }
}

/// Variables that no definition names are named from then on: after the loader, or where there is none after the type.
#[test]
fn variables_are_made_explicit() {
    let path = "/n/a'b_VARS.fd";
    for (os, expected) in [
        ("<os firmware='efi'><type>hvm</type></os>", "<type>hvm</type><nvram>/n/a'b_VARS.fd</nvram></os>"),
        (
            "<os><type>hvm</type><loader type='pflash'>/c.fd</loader><boot dev='hd'/></os>",
            "/c.fd</loader><nvram>/n/a'b_VARS.fd</nvram><boot dev='hd'/></os>",
        ),
        ("<os><type>hvm</type><nvram template='/t.fd'/></os>", "<nvram template='/t.fd'>/n/a'b_VARS.fd</nvram></os>"),
        ("<os><type>hvm</type><nvram>/old</nvram></os>", "<type>hvm</type><nvram>/n/a'b_VARS.fd</nvram></os>"),
        (
            "<os><type>hvm</type><nvram type='file' format='raw'><source file='/old'/></nvram></os>",
            "<nvram type='file' format='raw'><source file='/n/a&apos;b_VARS.fd'/></nvram></os>",
        ),
    ] {
        let text = format!(
            "<domain type='kvm'><name>a</name><uuid>6a1c2b1e-0a55-4d8e-9f43-0d7c5b1a0001</uuid><memory>1</memory>{os}</domain>"
        );
        let changes = Rewrite { variables: Some(path.into()), ..Rewrite::default() };
        let after = rewrite(&read(&text), &changes).unwrap();
        let line = after.replace('\n', "");
        assert!(line.contains(expected), "{after}");
        assert_eq!(read(&after).os.variables.unwrap().path.as_deref(), Some(path), "{after}");
    }
}
