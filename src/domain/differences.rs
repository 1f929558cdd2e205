//! In what two definitions differ, part by part: what a plan says of the clone's, found by comparing and never by
//! remembering what was changed. Values that may be secrets never get into it.

use roxmltree::Node;
use serde::Serialize;

use super::DomainError;
use super::compare::{is_named_alike, is_secret, own_text, place, same_element};
use super::metadata::NAMESPACE;
use super::xml::{elements, parse};

/// What stands for a value that may be a secret.
const HIDDEN: &str = "(hidden)";

/// One part that differs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Difference {
    /// Which part, such as `domain/devices/disk[2]/source/@file`.
    pub path: String,
    /// The text or attribute before, or the tag of an element that goes; `None`: the part is new.
    pub old: Option<String>,
    /// Likewise after; `None`: the part goes.
    pub new: Option<String>,
}

/// Compares two definitions as trees. White space around texts, comments, and the order of elements of different names do
/// not count; elements of one name are counterparts in their order, and where one side has more, alike ones first.
/// kvm-clone's own mark is one part, and named by its transaction.
pub fn differences(old: &str, new: &str) -> Result<Vec<Difference>, DomainError> {
    let (old, new) = (parse(old)?, parse(new)?);
    let mut found = Vec::new();
    compare("domain", old.root_element(), new.root_element(), &mut found);
    Ok(found)
}

fn compare(path: &str, old: Node<'_, '_>, new: Node<'_, '_>, found: &mut Vec<Difference>) {
    let mut tell = |path: String, old: Option<String>, new: Option<String>| found.push(Difference { path, old, new });
    if is_mark(old) {
        if !same_element(old, new) {
            tell(path.to_owned(), Some(tag(old)), Some(tag(new)));
        }
        return;
    }
    for attribute in old.attributes() {
        let (name, value) = (attribute.name(), attribute.value());
        let other = new.attributes().find(|other| is_named_alike(attribute, *other)).map(|other| other.value());
        if other != Some(value) {
            tell(format!("{path}/@{name}"), Some(shown(name, value)), other.map(|other| shown(name, other)));
        }
    }
    for attribute in new.attributes().filter(|new| !old.attributes().any(|old| is_named_alike(old, *new))) {
        tell(format!("{path}/@{}", attribute.name()), None, Some(shown(attribute.name(), attribute.value())));
    }
    let (text, other) = (own_text(old), own_text(new));
    if text != other {
        let some = |text: &str| (!text.is_empty()).then(|| shown(old.tag_name().name(), text));
        tell(path.to_owned(), some(&text), some(&other));
    }
    for (old, new) in counterparts(old, new) {
        match (old, new) {
            (Some(old), Some(new)) => compare(&format!("{path}/{}", place(old)), old, new, found),
            (Some(gone), None) => tell_whole(path, gone, true, found),
            (None, Some(added)) => tell_whole(path, added, false, found),
            (None, None) => {}
        }
    }
}

/// An element that only one side has, with all below it.
fn tell_whole(parent: &str, node: Node<'_, '_>, gone: bool, found: &mut Vec<Difference>) {
    let path = format!("{parent}/{}", place(node));
    let text = own_text(node);
    let text = if text.is_empty() { text } else { shown(node.tag_name().name(), &text) };
    let whole = Some(format!("{}{text}", tag(node)));
    let (old, new) = if gone { (whole, None) } else { (None, whole) };
    found.push(Difference { path: path.clone(), old, new });
    if !is_mark(node) {
        elements(node).for_each(|child| tell_whole(&path, child, gone, found));
    }
}

type Pair<'a, 'i, 'b, 'j> = (Option<Node<'a, 'i>>, Option<Node<'b, 'j>>);

/// The children of two elements, each with its counterpart, in the order of the first.
fn counterparts<'a, 'i, 'b, 'j>(old: Node<'a, 'i>, new: Node<'b, 'j>) -> Vec<Pair<'a, 'i, 'b, 'j>> {
    let mut names = Vec::new();
    for child in elements(old).map(|child| child.tag_name()).chain(elements(new).map(|child| child.tag_name())) {
        let name = (child.namespace().unwrap_or_default().to_owned(), child.name().to_owned());
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let mut pairs = Vec::new();
    for (namespace, name) in names {
        let alike = |child: &Node<'_, '_>| {
            child.tag_name().name() == name && child.tag_name().namespace().unwrap_or_default() == namespace
        };
        let (old, new): (Vec<_>, Vec<_>) =
            (elements(old).filter(alike).collect(), elements(new).filter(alike).collect());
        let fewer = old.len().min(new.len());
        let same = |at: &usize| same_element(old[*at], new[*at]);
        let ahead = if old.len() == new.len() { fewer } else { (0..fewer).take_while(same).count() };
        // The surplus lies where the two first differ, unless more than that changed.
        let same_behind = |back: &usize| same_element(old[old.len() - back], new[new.len() - back]);
        let behind = (1..=fewer - ahead).take_while(same_behind).count();
        let (old_end, new_end) = (old.len() - behind, new.len() - behind);
        pairs.extend((0..ahead).map(|at| (Some(old[at]), Some(new[at]))));
        pairs.extend(
            (ahead..old_end.max(new_end)).map(|at| (old[..old_end].get(at).copied(), new[..new_end].get(at).copied())),
        );
        pairs.extend((0..behind).map(|at| (Some(old[old_end + at]), Some(new[new_end + at]))));
    }
    pairs
}

fn is_mark(node: Node<'_, '_>) -> bool {
    node.tag_name().namespace() == Some(NAMESPACE)
}

/// An element's opening tag. Of a mark only the transaction: the rest is not known before the clone is.
fn tag(node: Node<'_, '_>) -> String {
    let name = node.tag_name().name();
    let told = |attribute: &roxmltree::Attribute<'_, '_>| !is_mark(node) || attribute.name() == "transaction";
    let attributes = node.attributes().filter(told).map(|attribute| {
        let name = attribute.name();
        format!(" {name}={:?}", shown(name, attribute.value()))
    });
    format!("<{name}{}>", attributes.collect::<String>())
}

fn shown(name: &str, value: &str) -> String {
    if is_secret(name) { HIDDEN.to_owned() } else { value.to_owned() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn told(old: &str, new: &str) -> Vec<String> {
        let part = |part: &Option<String>| part.clone().unwrap_or_else(|| "-".into());
        let line = |one: Difference| format!("{}: {} → {}", one.path, part(&one.old), part(&one.new));
        differences(old, new).unwrap().into_iter().map(line).collect()
    }

    #[test]
    fn what_is_the_same_is_not_told() {
        let old = "<domain a='1' b='2'><name>x</name><!-- c --><d><e/><e/></d></domain>";
        assert_eq!(told(old, old), [""; 0]);
        assert_eq!(told(old, "<domain b='2' a='1'>\n<d><e></e><e/></d><name>\n x</name></domain>"), [""; 0]);
    }

    #[test]
    fn texts_and_attributes_are_told_by_their_path() {
        assert_eq!(
            told(
                "<domain><name>a</name><devices><disk/><disk><source file='/a'/><x y='1'/></disk></devices></domain>",
                "<domain><name>b</name><devices><disk/><disk><source file='/b' z='2'/><x/></disk></devices></domain>",
            ),
            [
                "domain/name: a → b",
                "domain/devices/disk[2]/source/@file: /a → /b",
                "domain/devices/disk[2]/source/@z: - → 2",
                "domain/devices/disk[2]/x/@y: 1 → -",
            ]
        );
    }

    #[test]
    fn what_one_side_alone_has_is_told_with_all_below_it() {
        assert_eq!(
            told("<domain><os/></domain>", "<domain><os><nvram a='1'>/n</nvram></os><m><k/></m></domain>"),
            ["domain/os/nvram: - → <nvram a=\"1\">/n", "domain/m: - → <m>", "domain/m/k: - → <k>"]
        );
        assert_eq!(
            told("<d><c><source file='/x'/></c></d>", "<d><c/></d>"),
            ["domain/c/source: <source file=\"/x\"> → -"]
        );
    }

    #[test]
    fn of_several_alike_the_one_that_is_missing_is_told() {
        let three = "<d><c n='1'/><c n='2'/><c n='3'/></d>";
        assert_eq!(told(three, "<d><c n='1'/><c n='3'/></d>"), ["domain/c[2]: <c n=\"2\"> → -"]);
        assert_eq!(told(three, "<d><c n='1'/><c n='2'/></d>"), ["domain/c[3]: <c n=\"3\"> → -"]);
        assert_eq!(told("<d><c n='2'/><c n='3'/></d>", three), ["domain/c[1]: - → <c n=\"1\">"]);
        assert_eq!(told("<d/>", "<d><c/></d>"), ["domain/c: - → <c>"]);
    }

    #[test]
    fn secrets_are_told_to_differ_and_not_shown() {
        let graphics = |word: &str| format!("<d><graphics passwd='{word}'/></d>");
        let told = told(&graphics("first"), &graphics("second"));
        assert_eq!(told, ["domain/graphics/@passwd: (hidden) → (hidden)"]);
    }

    #[test]
    fn the_mark_is_one_part() {
        let mark = |txn: &str| {
            format!("<d><m><k:clone xmlns:k='{NAMESPACE}' transaction='{txn}' uuid='u'><k:disk/></k:clone></m></d>")
        };
        assert_eq!(told("<d><m/></d>", &mark("a")), ["domain/m/clone: - → <clone transaction=\"a\">"]);
        assert_eq!(told(&mark("a"), &mark("a")), [""; 0]);
        assert_eq!(
            told(&mark("a"), &mark("b")),
            ["domain/m/clone: <clone transaction=\"a\"> → <clone transaction=\"b\">"]
        );
    }

    #[test]
    fn what_is_no_definition_is_an_error() {
        assert!(differences("<domain", "<domain/>").is_err());
    }
}
