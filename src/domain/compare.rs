//! Two definitions, compared as trees: what libvirt made of what it was sent, and whether a source is still what it was.
//!
//! Values that may be secrets never get into a message.

use std::collections::{BTreeMap, VecDeque};

use roxmltree::Node;

use super::DomainError;
use super::definition::{is_automatic_tap, scaled_bytes};
use super::xml::{elements, is_plain, parse};

/// Pairs of elements that are looked at in one comparison. libvirt's definitions need some thousands.
const COMPARISONS_MAX: usize = 4_000_000;

/// Something that was sent and is not in what libvirt gave back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadBackError {
    /// One of the two cannot be read.
    #[error(transparent)]
    Unreadable(#[from] DomainError),
    /// Lost or changed.
    #[error("libvirt did not keep {path}: sent {sent}, got {got}")]
    Lost {
        /// Where, such as `domain/devices/disk[2]/driver/@cache`.
        path: String,
        /// What was sent.
        sent: String,
        /// What is there instead.
        got: String,
    },
}

/// Checks that `got` contains everything of `sent`, whatever order siblings are in, and returns what was added, a line each.
pub fn read_back(sent: &str, got: &str) -> Result<Vec<String>, ReadBackError> {
    let (sent, got) = (parse(sent)?, parse(got)?);
    let (sent, got) = (sent.root_element(), got.root_element());
    let mut comparison = Comparison { left: COMPARISONS_MAX };
    if sent.tag_name() != got.tag_name() {
        return Err(ReadBackError::Lost {
            path: sent.tag_name().name().to_owned(),
            sent: show_element(sent),
            got: show_element(got),
        });
    }
    let mut added = Vec::new();
    comparison.walk(sent, got, "domain", &mut added)?;
    Ok(added)
}

/// Are two definitions equal as trees, in order? White space between elements, comments and prefixes do not count.
pub fn same(a: &str, b: &str) -> Result<bool, DomainError> {
    let (a_tree, b_tree) = (parse(a)?, parse(b)?);
    Ok(a == b || same_element(a_tree.root_element(), b_tree.root_element()))
}

pub(super) fn same_element(a: Node<'_, '_>, b: Node<'_, '_>) -> bool {
    a.tag_name() == b.tag_name()
        && a.attributes().len() == b.attributes().len()
        && a.attributes().all(|attribute| b.attributes().any(|other| attribute == other))
        && {
            let (a, b) = (items(a), items(b));
            a.len() == b.len()
                && a.iter().zip(&b).all(|pair| match pair {
                    (Item::Element(a), Item::Element(b)) => same_element(*a, *b),
                    (Item::Text(a), Item::Text(b)) => a == b,
                    _ => false,
                })
        }
}

/// What an element holds: elements, and texts that are not just white space. A comment does not part a text.
enum Item<'a, 'i> {
    Element(Node<'a, 'i>),
    Text(String),
}

fn items<'a, 'i>(node: Node<'a, 'i>) -> Vec<Item<'a, 'i>> {
    let mut items = Vec::new();
    let mut text = String::new();
    for child in node.children() {
        if child.is_element() {
            if !text.trim().is_empty() {
                items.push(Item::Text(std::mem::take(&mut text)));
            }
            text.clear();
            items.push(Item::Element(child));
        } else if child.is_text() {
            text.push_str(child.text().unwrap_or_default());
        }
    }
    if !text.trim().is_empty() {
        items.push(Item::Text(text));
    }
    items
}

/// One comparison, with what it may still cost.
struct Comparison {
    left: usize,
}

/// The children of two elements: who is whose counterpart, and who has none.
struct Pairs<'a, 'i, 'b, 'j> {
    matched: Vec<(Node<'a, 'i>, Node<'b, 'j>)>,
    /// Sent, with something of its name that is left over, if there is any.
    lost: Vec<(Node<'a, 'i>, Option<Node<'b, 'j>>)>,
    added: Vec<Node<'b, 'j>>,
}

/// The children of one name: sent, and got.
type Group<'a, 'i, 'b, 'j> = (Vec<Node<'a, 'i>>, Vec<Node<'b, 'j>>);

impl Comparison {
    /// Collects what was added; the first thing that was lost is the error.
    fn walk(
        &mut self,
        sent: Node<'_, '_>,
        got: Node<'_, '_>,
        path: &str,
        added: &mut Vec<String>,
    ) -> Result<(), ReadBackError> {
        for attribute in sent.attributes() {
            let other = got.attributes().find(|other| is_named_alike(attribute, *other));
            if !other.is_some_and(|other| same_value(sent, got, attribute.name(), attribute.value(), other.value())) {
                return Err(ReadBackError::Lost {
                    path: format!("{path}/@{}", attribute.name()),
                    sent: show_value(attribute.name(), attribute.value()),
                    got: other.map_or_else(|| "nothing".to_owned(), |other| show_value(other.name(), other.value())),
                });
            }
        }
        let (text, other) = (own_text(sent), own_text(got));
        if !is_same_text(sent, got) {
            let name = sent.tag_name().name();
            let (sent, got) = (show_value(name, &text), show_value(name, &other));
            return Err(ReadBackError::Lost { path: path.to_owned(), sent, got });
        }
        if text.is_empty() && !other.is_empty() {
            added.push(format!("{path}: {}", show_value(got.tag_name().name(), &other)));
        }
        let new =
            got.attributes().filter(|other| !sent.attributes().any(|attribute| is_named_alike(attribute, *other)));
        added.extend(new.map(|new| format!("{path}/@{}: {}", new.name(), show_value(new.name(), new.value()))));
        let pairs = self.pair_up(sent, got)?;
        if let Some((lost, instead)) = pairs.lost.first() {
            let path = format!("{path}/{}", place(*lost));
            if let Some(instead) = instead {
                // What exactly differs is more use than the whole; it is an error, as the two are no pair.
                self.walk(*lost, *instead, &path, &mut Vec::new())?;
            }
            return Err(ReadBackError::Lost { path, sent: show_element(*lost), got: "nothing".to_owned() });
        }
        added.extend(pairs.added.iter().map(|new| format!("{path}/{}: {}", new.tag_name().name(), show_element(*new))));
        for (child, counterpart) in pairs.matched {
            self.walk(child, counterpart, &format!("{path}/{}", place(child)), added)?;
        }
        Ok(())
    }

    /// Is everything of `sent` in `got`?
    fn contains(&mut self, sent: Node<'_, '_>, got: Node<'_, '_>) -> Result<bool, DomainError> {
        self.spend()?;
        let attributes = sent.attributes().all(|attribute| {
            let other = got.attributes().find(|other| is_named_alike(attribute, *other));
            other.is_some_and(|other| same_value(sent, got, attribute.name(), attribute.value(), other.value()))
        });
        Ok(attributes && is_same_text(sent, got) && self.pair_up(sent, got)?.lost.is_empty())
    }

    fn spend(&mut self) -> Result<(), DomainError> {
        self.left = self
            .left
            .checked_sub(1)
            .ok_or(DomainError::Excessive { what: "too many alike elements to compare", max: COMPARISONS_MAX })?;
        Ok(())
    }

    fn pair_up<'a, 'i, 'b, 'j>(
        &mut self,
        sent: Node<'a, 'i>,
        got: Node<'b, 'j>,
    ) -> Result<Pairs<'a, 'i, 'b, 'j>, DomainError> {
        let mut groups: BTreeMap<(String, String), Group<'a, 'i, 'b, 'j>> = BTreeMap::new();
        let key = |node: Node<'_, '_>| {
            let name = node.tag_name();
            (name.namespace().unwrap_or_default().to_owned(), name.name().to_owned())
        };
        for child in elements(sent) {
            groups.entry(key(child)).or_default().0.push(child);
        }
        for child in elements(got) {
            groups.entry(key(child)).or_default().1.push(child);
        }
        let mut all = Pairs { matched: Vec::new(), lost: Vec::new(), added: Vec::new() };
        for (sent, got) in groups.into_values() {
            let matched = self.match_group(&sent, &got)?;
            let mut left: VecDeque<_> =
                got.iter().enumerate().filter(|(at, _)| !matched.contains(&Some(*at))).map(|(_, node)| *node).collect();
            for (child, counterpart) in sent.iter().zip(&matched) {
                match counterpart.and_then(|at| got.get(at)) {
                    Some(counterpart) => all.matched.push((*child, *counterpart)),
                    None if is_droppable(*child) => {}
                    None => all.lost.push((*child, left.pop_front())),
                }
            }
            all.added.extend(left);
        }
        Ok(all)
    }

    /// Gives each of `sent` one of `got` of its own that contains it, for as many as possible: an element that says little
    /// must not take the only counterpart of one that says more. Breadth first, as the groups may be large.
    fn match_group(&mut self, sent: &[Node<'_, '_>], got: &[Node<'_, '_>]) -> Result<Vec<Option<usize>>, DomainError> {
        let mut matched: Vec<Option<usize>> = vec![None; sent.len()];
        let mut owner: Vec<Option<usize>> = vec![None; got.len()];
        for first in 0..sent.len() {
            // Most often nothing was reordered.
            if owner.get(first) == Some(&None) && self.contains(sent[first], got[first])? {
                matched[first] = Some(first);
                owner[first] = Some(first);
                continue;
            }
            let mut reached_from: Vec<Option<usize>> = vec![None; got.len()];
            let mut queue = VecDeque::from([first]);
            let mut free = None;
            'search: while let Some(at) = queue.pop_front() {
                // From its own place on: what was inserted before moved all the others by little.
                for candidate in (at.min(got.len())..got.len()).chain(0..at.min(got.len())) {
                    self.spend()?;
                    if reached_from[candidate].is_some() || !self.contains(sent[at], got[candidate])? {
                        continue;
                    }
                    reached_from[candidate] = Some(at);
                    match owner[candidate] {
                        None => {
                            free = Some(candidate);
                            break 'search;
                        }
                        Some(other) => queue.push_back(other),
                    }
                }
            }
            // Back along the way: each gives up what it had for what it reached.
            while let Some(candidate) = free {
                let Some(at) = reached_from[candidate] else { break };
                free = matched[at].replace(candidate);
                owner[candidate] = Some(at);
                if at == first {
                    break;
                }
            }
        }
        Ok(matched)
    }
}

pub(super) fn is_named_alike(a: roxmltree::Attribute<'_, '_>, b: roxmltree::Attribute<'_, '_>) -> bool {
    a.name() == b.name() && a.namespace() == b.namespace()
}

/// Text that belongs to the element itself, without the white space around it.
pub(super) fn own_text(node: Node<'_, '_>) -> String {
    let text: String = node.children().filter(Node::is_text).filter_map(|text| text.text()).collect();
    text.trim().to_owned()
}

/// Elements that libvirt does not write when there is nothing of the user's in them. An empty one of any other name may mean something.
fn is_droppable(node: Node<'_, '_>) -> bool {
    if elements(node).next().is_some() || !own_text(node).is_empty() {
        return false;
    }
    // The socket of a channel for which libvirt chooses the path: measured, it goes with libvirt 9.0.
    let is_chosen_socket = is_plain(node, "source")
        && node.attributes().len() == 1
        && node.attribute("mode") == Some("bind")
        && node.parent().is_some_and(|channel| channel.attribute("type") == Some("unix"));
    let is_chosen_tap = is_plain(node, "target")
        && node.attributes().len() == 1
        && node.attribute("dev").is_some_and(is_automatic_tap)
        && node.parent().is_some_and(|interface| is_plain(interface, "interface"));
    let is_empty = node.attributes().len() == 0;
    is_chosen_socket
        || is_chosen_tap
        || (is_empty && ["metadata", "title", "description"].into_iter().any(|name| is_plain(node, name)))
}

fn is_same_text(sent: Node<'_, '_>, got: Node<'_, '_>) -> bool {
    let (text, other) = (own_text(sent), own_text(got));
    // An empty element that libvirt fills, such as <genid/>, lost nothing.
    text.is_empty() || same_size(sent, got, &text, &other).unwrap_or_else(|| text == other || same_uuid(&text, &other))
}

fn same_value(sent: Node<'_, '_>, got: Node<'_, '_>, name: &str, a: &str, b: &str) -> bool {
    // The number is compared with its unit, so the unit need not be compared alone.
    if name == "unit" && is_size(sent) {
        return true;
    }
    if let (true, Some(same)) = (SIZE_ATTRIBUTES.contains(&name), same_size(sent, got, a, b)) {
        return same;
    }
    a == b
        // libvirt writes UUIDs and MAC addresses in small letters.
        || same_uuid(a, b)
        || (is_plain(sent, "mac") && name == "address" && a.eq_ignore_ascii_case(b))
        // It writes PCI numbers with a fixed number of digits, which changed between versions.
        || hexadecimal(a).is_some_and(|value| hexadecimal(b) == Some(value))
        // It puts the version that is meant today in the place of an alias.
        || (name == "machine" && is_plain(sent, "type") && is_machine_alias(a, b))
}

/// Attributes that hold a size when a `unit` stands beside them; elsewhere the element's text does.
const SIZE_ATTRIBUTES: [&str; 2] = ["memory", "size"];

/// Is the element's `unit` that of a size? The one of an `<address>` is a number.
fn is_size(node: Node<'_, '_>) -> bool {
    let is_number = |text: &str| scaled_bytes(text, node.attribute("unit")).is_some();
    is_number(&own_text(node)) || SIZE_ATTRIBUTES.iter().any(|name| node.attribute(*name).is_some_and(is_number))
}

/// Compares two sizes with their units; libvirt keeps them in KiB, rounded up. `None`: they are no sizes.
fn same_size(sent: Node<'_, '_>, got: Node<'_, '_>, a: &str, b: &str) -> Option<bool> {
    if !sent.has_attribute("unit") && !got.has_attribute("unit") {
        return None;
    }
    let kibibytes = |text, node: Node<'_, '_>| Some(scaled_bytes(text, node.attribute("unit"))?.div_ceil(1024));
    Some(kibibytes(a, sent)? == kibibytes(b, got)?)
}

fn same_uuid(a: &str, b: &str) -> bool {
    let uuid = |text: &str| text.parse::<journal_format::DomainUuid>().ok();
    uuid(a).is_some_and(|value| uuid(b) == Some(value))
}

fn hexadecimal(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

fn is_machine_alias(alias: &str, machine: &str) -> bool {
    let family = match alias {
        "pc" => "pc-i440fx-",
        "q35" => "pc-q35-",
        "virt" => "virt-",
        "pseries" => "pseries-",
        "s390-ccw-virtio" => "s390-ccw-virtio-",
        _ => return false,
    };
    machine.starts_with(family)
}

/// An element's name, with its number where its parent has several.
pub(super) fn place(node: Node<'_, '_>) -> String {
    let alike = |other: &Node<'_, '_>| other.is_element() && other.tag_name() == node.tag_name();
    let before = node.prev_siblings().skip(1).filter(alike).count();
    let after = node.next_siblings().skip(1).any(|other| alike(&other));
    let name = node.tag_name().name();
    if before > 0 || after { format!("{name}[{}]", before + 1) } else { name.to_owned() }
}

/// An element in one line, without what is below it.
fn show_element(node: Node<'_, '_>) -> String {
    let name = node.tag_name().name();
    let attributes = node
        .attributes()
        .map(|attribute| format!("{}={}", attribute.name(), show_value(attribute.name(), attribute.value())));
    let shown: Vec<_> = std::iter::once(name.to_owned()).chain(attributes).collect();
    format!("<{}>", shown.join(" "))
}

/// A value for people; secrets are not shown.
fn show_value(name: &str, value: &str) -> String {
    if is_secret(name) { "(hidden)".to_owned() } else { format!("{value:?}") }
}

/// May what stands under this name be a secret?
pub(super) fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["passw", "secret", "key"].iter().any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn lost(sent: &str, got: &str) -> (String, String, String) {
        match read_back(sent, got).unwrap_err() {
            ReadBackError::Lost { path, sent, got } => (path, sent, got),
            other @ ReadBackError::Unreadable(_) => panic!("{other}"),
        }
    }

    #[test]
    fn finds_everything_in_any_order() {
        let sent = "<domain><name>a</name><devices><disk a='1'/><disk a='2'><b>x</b></disk></devices></domain>";
        let got = "<domain>\n<devices>\n<disk a='2' c='3'><b>x</b></disk><disk a='1'/><new/></devices><name> a </name></domain>";
        let added = read_back(sent, got).unwrap();
        assert_eq!(added, ["domain/devices/new: <new>", "domain/devices/disk[2]/@c: \"3\""]);
    }

    #[test]
    fn one_that_says_little_does_not_take_the_place_of_one_that_says_more() {
        let sent = "<domain><c t='u'/><c t='u' i='1'/><c t='u' i='0'/></domain>";
        let got = "<domain><c t='u' i='1'/><c t='u' i='0'/><c t='u' i='2'/></domain>";
        assert_eq!(read_back(sent, got).unwrap(), ["domain/c[1]/@i: \"2\""]);
        assert_eq!(lost(sent, "<domain><c t='u' i='1'/><c t='u' i='2'/><c t='u' i='3'/></domain>").0, "domain/c[3]/@i");
    }

    #[test]
    fn names_what_was_lost() {
        let lost = |sent, got| lost(sent, got);
        assert_eq!(
            lost("<domain><a/><d><e x='1'/></d></domain>", "<domain><a/><d><e x='2'/></d></domain>"),
            ("domain/d/e/@x".into(), "\"1\"".into(), "\"2\"".into())
        );
        assert_eq!(lost("<domain><a/><a/></domain>", "<domain><a/></domain>").0, "domain/a[2]");
        assert_eq!(lost("<domain><acpi/></domain>", "<domain/>").0, "domain/acpi");
        assert_eq!(lost("<domain><n>x</n></domain>", "<domain><n>y</n></domain>").0, "domain/n");
        assert_eq!(
            lost("<domain type='kvm'/>", "<domain/>"),
            ("domain/@type".into(), "\"kvm\"".into(), "nothing".into())
        );
        assert_eq!(lost("<domain><x:a xmlns:x='u'/></domain>", "<domain><x:a xmlns:x='v'/></domain>").0, "domain/a");
    }

    #[test]
    fn secrets_are_not_shown() {
        let (_, sent, got) = lost("<domain passwd='one'/>", "<domain passwd='two'/>");
        assert_eq!((sent.as_str(), got.as_str()), ("(hidden)", "(hidden)"));
        let (_, sent, _) = lost("<domain><graphics passwd='one'/></domain>", "<domain/>");
        assert!(!sent.contains("one"));
        assert_eq!(read_back("<domain/>", "<domain passwd='one'/>").unwrap(), ["domain/@passwd: (hidden)"]);
    }

    #[test]
    fn what_libvirt_writes_in_another_way_is_not_lost() {
        let same = [
            ("<domain><memory unit='GiB'>1</memory></domain>", "<domain><memory unit='KiB'>1048576</memory></domain>"),
            ("<domain><memory>1024</memory></domain>", "<domain><memory unit='KiB'>1024</memory></domain>"),
            ("<domain><memory unit='b'>1025</memory></domain>", "<domain><memory unit='KiB'>2</memory></domain>"),
            ("<domain><cell memory='1' unit='MiB'/></domain>", "<domain><cell memory='1024' unit='KiB'/></domain>"),
            (
                "<domain><uuid>9116194E-BC39-4BEF-AEC4-F9284862476A</uuid></domain>",
                "<domain><uuid>9116194e-bc39-4bef-aec4-f9284862476a</uuid></domain>",
            ),
            (
                "<domain><mac address='52:54:00:AA:bb:cc'/></domain>",
                "<domain><mac address='52:54:00:aa:bb:cc'/></domain>",
            ),
            ("<domain><address bus='0x0'/></domain>", "<domain><address bus='0x00'/></domain>"),
            ("<domain><type machine='q35'/></domain>", "<domain><type machine='pc-q35-7.2'/></domain>"),
            ("<domain><metadata>\n </metadata><title/></domain>", "<domain/>"),
            ("<domain><genid/></domain>", "<domain><genid>x</genid></domain>"),
            ("<domain><x:a xmlns:x='u'><x:b/></x:a></domain>", "<domain><a xmlns='u'><b/></a></domain>"),
            ("<domain><!-- gone --><a><![CDATA[<&>]]></a></domain>", "<domain><a>&lt;&amp;&gt;</a></domain>"),
        ];
        for (sent, got) in same {
            assert!(read_back(sent, got).is_ok(), "{sent}: {:?}", read_back(sent, got));
        }
        let different = [
            ("<domain><memory unit='GiB'>1</memory></domain>", "<domain><memory unit='KiB'>1</memory></domain>"),
            ("<domain><memory unit='GiB'>1</memory></domain>", "<domain><memory unit='MiB'>1</memory></domain>"),
            ("<domain><vcpu>1</vcpu></domain>", "<domain><vcpu>01</vcpu></domain>"),
            ("<domain><address bus='0x1'/></domain>", "<domain><address bus='0x10'/></domain>"),
            ("<domain><type machine='q35'/></domain>", "<domain><type machine='pc-i440fx-7.2'/></domain>"),
            ("<domain><metadata><x:a xmlns:x='u'/></metadata></domain>", "<domain/>"),
            ("<domain><source file='/A'/></domain>", "<domain><source file='/a'/></domain>"),
        ];
        for (sent, got) in different {
            assert!(read_back(sent, got).is_err(), "{sent}");
        }
    }

    #[test]
    fn same_is_the_same_tree_in_the_same_order() {
        let a = "<domain a='1' b='2'><x/>t<y>\n<z/></y></domain>";
        assert!(same(a, a).unwrap());
        assert!(same(a, "<domain b=\"2\" a='1'><x></x>t<y><!-- c --><z/>\n</y></domain>").unwrap());
        assert!(same("<d><a>x<!-- c -->y</a></d>", "<d><a>xy</a></d>").unwrap());
        for other in [
            "<domain a='1'><x/>t<y><z/></y></domain>",
            "<domain a='1' b='3'><x/>t<y><z/></y></domain>",
            "<domain a='1' b='2'><y><z/></y>t<x/></domain>",
            "<domain a='1' b='2'><x/>u<y><z/></y></domain>",
            "<domain a='1' b='2'><x/>t<y/></domain>",
            "<domain a='1' b='2' c='1'><x/>t<y><z/></y></domain>",
        ] {
            assert!(!same(a, other).unwrap(), "{other}");
        }
    }

    #[test]
    fn a_thousand_disks_and_one_more_are_compared_at_once() {
        let disk = |number: u32| {
            format!("<disk t='f'><driver n='q'/><source file='/i/{number}'/><target dev='v{number}'/></disk>")
        };
        let disks = |numbers: std::ops::Range<u32>| {
            format!("<domain>{}</domain>", numbers.map(disk).collect::<Vec<_>>().concat())
        };
        assert_eq!(read_back(&disks(1..1001), &disks(0..1001)).unwrap(), ["domain/disk: <disk t=\"f\">"]);
        assert!(read_back(&disks(0..1001), &disks(1..1001)).is_err());
    }

    #[test]
    fn a_flood_of_alike_elements_ends_in_an_error_and_not_in_hours() {
        let many = |value: &str| format!("<domain>{}</domain>", format!("<a x='{value}'/>").repeat(20_000));
        let error = read_back(&many("1"), &many("2")).unwrap_err();
        // Either answer is right; what counts is that it comes.
        assert!(matches!(error, ReadBackError::Lost { .. } | ReadBackError::Unreadable(DomainError::Excessive { .. })));
        assert!(read_back(&many("1"), &many("1")).unwrap().is_empty());
    }
}
