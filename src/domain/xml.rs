//! The one door to the XML parser, with its bounds, and edits of a document's text by spans.
//!
//! The parser's own offsets of attribute values are 16 and 8 bit wide and its text nodes know only their first piece, so
//! spans are found again in the text itself.

use std::ops::Range;

use roxmltree::{Document, Node, ParsingOptions};

use super::DomainError;

/// libvirt's own bound for a string in one call (`REMOTE_STRING_MAX`).
pub(super) const DEFINITION_BYTES_MAX: usize = 4 << 20;
/// Elements, texts and comments together.
const NODES_MAX: u32 = 200_000;
/// Nesting of elements. libvirt's own elements reach about 10; the rest is for foreign metadata.
pub(super) const DEPTH_MAX: usize = 64;
/// Attributes (and namespace declarations) of one element: the parser compares each with each.
const ATTRIBUTES_MAX: usize = 256;

/// Parses a document within all bounds. A document type declaration is refused, and with it every entity but the five.
pub(super) fn parse(text: &str) -> Result<Document<'_>, DomainError> {
    if text.len() > DEFINITION_BYTES_MAX {
        return Err(DomainError::TooLarge { bytes: text.len(), max: DEFINITION_BYTES_MAX });
    }
    bound_attributes(text)?;
    let options = ParsingOptions { allow_dtd: false, nodes_limit: NODES_MAX, ..ParsingOptions::default() };
    let document = Document::parse_with_options(text, options).map_err(|error| match error {
        roxmltree::Error::NodesLimitReached => {
            DomainError::Excessive { what: "too many elements and texts", max: NODES_MAX as usize }
        }
        error => DomainError::NotXml { why: error.to_string() },
    })?;
    bound_depth(&document)?;
    Ok(document)
}

/// Counts the quoted values of every tag, skipping comments, CDATA and instructions. Agrees with the parser on every
/// well-formed prefix, and the parser stops at the first ill-formed byte.
fn bound_attributes(text: &str) -> Result<(), DomainError> {
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(open) = bytes[at..].iter().position(|byte| *byte == b'<') {
        let start = at + open;
        let rest = &text[start..];
        let skipped = [("<!--", "-->"), ("<![CDATA[", "]]>"), ("<?", "?>")].into_iter().find_map(|(open, close)| {
            rest.strip_prefix(open)
                .map(|inner| inner.find(close).map_or(rest.len(), |length| open.len() + length + close.len()))
        });
        at = start + if let Some(length) = skipped { length } else { tag_length(rest)? };
    }
    Ok(())
}

/// Length of the tag that `rest` begins with, up to and with its `>`; all of `rest` when it does not end.
fn tag_length(rest: &str) -> Result<usize, DomainError> {
    let mut quote = None;
    let mut values = 0;
    for (at, byte) in rest.bytes().enumerate() {
        match (quote, byte) {
            (None, b'>') => return Ok(at + 1),
            (None, b'"' | b'\'') => {
                quote = Some(byte);
                values += 1;
                if values > ATTRIBUTES_MAX {
                    return Err(DomainError::Excessive {
                        what: "an element with too many attributes",
                        max: ATTRIBUTES_MAX,
                    });
                }
            }
            (Some(open), byte) if open == byte => quote = None,
            _ => {}
        }
    }
    Ok(rest.len())
}

fn bound_depth(document: &Document<'_>) -> Result<(), DomainError> {
    // Nodes come in document order, so a parent's depth is known before its children's.
    let mut depths: Vec<usize> = Vec::new();
    for node in document.root().descendants() {
        let depth = node.parent().and_then(|parent| depths.get(parent.id().get_usize())).map_or(0, |depth| depth + 1);
        if depth > DEPTH_MAX {
            return Err(DomainError::Excessive { what: "elements nested too deeply", max: DEPTH_MAX });
        }
        depths.push(depth);
    }
    Ok(())
}

/// All text below a node, as `XPath`'s `string()` and libvirt read it: comments left out, CDATA and pieces joined.
pub(super) fn content(node: Node<'_, '_>) -> String {
    node.descendants().filter(Node::is_text).filter_map(|text| text.text()).collect()
}

/// The child elements of a node.
pub(super) fn elements<'a, 'i>(node: Node<'a, 'i>) -> impl Iterator<Item = Node<'a, 'i>> {
    node.children().filter(Node::is_element)
}

/// The child elements of that name that belong to no namespace.
pub(super) fn named<'a, 'i>(node: Node<'a, 'i>, name: &str) -> impl Iterator<Item = Node<'a, 'i>> {
    elements(node).filter(move |child| is_plain(*child, name))
}

/// The first child element of that name that belongs to no namespace.
pub(super) fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    named(node, name).next()
}

/// An element of libvirt's own (of no namespace) with that name?
pub(super) fn is_plain(node: Node<'_, '_>, name: &str) -> bool {
    node.is_element() && node.tag_name().namespace().is_none() && node.tag_name().name() == name
}

/// Escapes text for the inside of an element.
pub(super) fn escape_text(what: &str, value: &str) -> Result<String, DomainError> {
    escape(what, value, false)
}

/// Escapes text for an attribute in either kind of quotes.
pub(super) fn escape_attribute(what: &str, value: &str) -> Result<String, DomainError> {
    escape(what, value, true)
}

fn escape(what: &str, value: &str, attribute: bool) -> Result<String, DomainError> {
    let mut out = String::with_capacity(value.len());
    for character in value.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' if attribute => out.push_str("&quot;"),
            '\'' if attribute => out.push_str("&apos;"),
            // A parser turns these into spaces or newlines unless they are written by number.
            '\t' | '\n' if attribute => out.push_str(if character == '\t' { "&#9;" } else { "&#10;" }),
            '\r' => out.push_str("&#13;"),
            '\t' | '\n' => out.push(character),
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => {
                return Err(DomainError::Inexpressible { what: what.to_owned(), value: value.to_owned() });
            }
            _ => out.push(character),
        }
    }
    Ok(out)
}

/// An attribute of no namespace.
fn plain_attribute<'a>(node: Node<'a, '_>, name: &str) -> Option<roxmltree::Attribute<'a, 'a>> {
    node.attributes().find(|attribute| attribute.namespace().is_none() && attribute.name() == name)
}

/// What lies between an element's tags.
enum Inside {
    /// `<a/>`: the span of the `/>`.
    Nothing(Range<usize>),
    /// `<a>…</a>`: the span of `…`.
    Span(Range<usize>),
}

/// Changes of a document's text. Nothing but the given spans changes.
pub(super) struct Edits<'t> {
    text: &'t str,
    edits: Vec<(Range<usize>, String)>,
}

impl<'t> Edits<'t> {
    /// No edits yet.
    pub(super) fn new(text: &'t str) -> Self {
        Self { text, edits: Vec::new() }
    }

    /// Replaces a span by something already escaped.
    pub(super) fn replace(&mut self, span: Range<usize>, with: String) {
        self.edits.push((span, with));
    }

    /// Makes `value` the whole content of an element.
    pub(super) fn set_content(&mut self, node: Node<'_, '_>, value: &str) -> Result<(), DomainError> {
        let value = escape_text(node.tag_name().name(), value)?;
        match self.inside(node) {
            Inside::Span(span) => self.replace(span, value),
            Inside::Nothing(end) => {
                let closing = format!(">{value}</{}>", self.qualified_name(node));
                self.replace(end, closing);
            }
        }
        Ok(())
    }

    /// Adds markup as the last content of an element.
    pub(super) fn append_inside(&mut self, node: Node<'_, '_>, markup: &str) {
        match self.inside(node) {
            Inside::Span(span) => {
                // Before the white space that indents the closing tag.
                let kept = self.text[span.clone()].trim_end_matches([' ', '\t', '\n', '\r']).len();
                let indent = self.indent(node);
                let at = span.start + kept;
                let tail = if at == span.end { format!("\n{indent}") } else { String::new() };
                self.replace(at..at, format!("\n{indent}  {markup}{tail}"));
            }
            Inside::Nothing(end) => {
                let indent = self.indent(node);
                let name = self.qualified_name(node).to_owned();
                self.replace(end, format!(">\n{indent}  {markup}\n{indent}</{name}>"));
            }
        }
    }

    /// Sets an attribute of no namespace, adding it where there is none.
    pub(super) fn set_attribute(&mut self, node: Node<'_, '_>, name: &str, value: &str) -> Result<(), DomainError> {
        let value = escape_attribute(name, value)?;
        if let Some(attribute) = plain_attribute(node, name) {
            let span = attribute.range();
            // `name = 'value'`: a name holds no `=`, and the span ends with the closing quote.
            let equals = self.text[span.clone()].find('=').map_or(span.end, |at| span.start + at + 1);
            let blanks = self.text[equals..span.end].len() - self.text[equals..span.end].trim_start().len();
            self.replace(equals + blanks + 1..span.end - 1, value);
        } else {
            let at = node.range().start + 1 + self.qualified_name(node).len();
            self.replace(at..at, format!(" {name}='{value}'"));
        }
        Ok(())
    }

    /// Gives an attribute of no namespace another name and value; `None`: there is none of that name.
    pub(super) fn rename_attribute(
        &mut self,
        node: Node<'_, '_>,
        (name, to): (&str, &str),
        value: &str,
    ) -> Result<Option<()>, DomainError> {
        let value = escape_attribute(to, value)?;
        let Some(attribute) = plain_attribute(node, name) else { return Ok(None) };
        self.replace(attribute.range(), format!("{to}='{value}'"));
        Ok(Some(()))
    }

    /// Removes an attribute of no namespace, and the blanks before it.
    pub(super) fn remove_attribute(&mut self, node: Node<'_, '_>, name: &str) {
        if let Some(attribute) = plain_attribute(node, name) {
            let span = attribute.range();
            let start = self.text[..span.start].trim_end().len();
            self.replace(start..span.end, String::new());
        }
    }

    /// Adds markup on a line of its own after an element.
    pub(super) fn insert_after(&mut self, node: Node<'_, '_>, markup: &str) {
        let at = node.range().end;
        let indent = self.indent(node);
        self.replace(at..at, format!("\n{indent}{markup}"));
    }

    /// Adds markup as the first element of an element, on a line of its own.
    pub(super) fn prepend_inside(&mut self, node: Node<'_, '_>, markup: &str) {
        let Some(first) = elements(node).next() else { return self.append_inside(node, markup) };
        let at = first.range().start;
        let indent = self.indent(first);
        self.replace(at..at, format!("{markup}\n{indent}"));
    }

    /// Removes an element, and the line break and blanks before it.
    pub(super) fn remove(&mut self, node: Node<'_, '_>) {
        let span = node.range();
        let before = &self.text[..span.start];
        let unindented = before.trim_end_matches([' ', '\t']);
        let start = unindented.strip_suffix('\n').map_or(span.start, str::len);
        self.replace(start..span.end, String::new());
    }

    /// The text with all edits made.
    pub(super) fn apply(mut self) -> Result<String, DomainError> {
        self.edits.sort_by_key(|(span, _)| span.start);
        let mut out =
            String::with_capacity(self.text.len() + self.edits.iter().map(|(_, with)| with.len()).sum::<usize>());
        let mut at = 0;
        for (span, with) in &self.edits {
            if span.start < at {
                return Err(DomainError::Overlap { at: span.start });
            }
            out.push_str(&self.text[at..span.start]);
            out.push_str(with);
            at = span.end;
        }
        out.push_str(&self.text[at..]);
        Ok(out)
    }

    /// The blanks between an element and the start of its line; nothing when something else stands there.
    fn indent(&self, node: Node<'_, '_>) -> &'t str {
        let text = self.text;
        let before = &text[..node.range().start];
        let line = &before[before.rfind('\n').map_or(0, |at| at + 1)..];
        if line.bytes().all(|byte| byte == b' ' || byte == b'\t') { line } else { "" }
    }

    /// An element's name as it is written, prefix and all.
    fn qualified_name(&self, node: Node<'_, '_>) -> &'t str {
        let text = self.text;
        let tag = &text[node.range().start + 1..node.range().end];
        &tag[..tag.find([' ', '\t', '\r', '\n', '/', '>']).unwrap_or(tag.len())]
    }

    fn inside(&self, node: Node<'_, '_>) -> Inside {
        let span = node.range();
        let element = &self.text[span.clone()];
        // Parsing went through, so the tag ends and its attributes are within bounds.
        let opened = tag_length(element).unwrap_or(element.len());
        if element[..opened].ends_with("/>") {
            return Inside::Nothing(span.start + opened - 2..span.start + opened);
        }
        // The closing tag holds no `<` but its own.
        let closing = element.rfind("</").unwrap_or(element.len());
        Inside::Span(span.start + opened..span.start + closing)
    }
}
