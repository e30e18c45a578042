//! Which spans may tell something of an execution: most do not, and this says so without looking at any value.
//!
//! The ledger asks; the check at the door notes the answers, so that the ledger need not walk over spans that tell
//! nothing. A span that is noted without need costs a closer look; one that is not noted would be missing in a row.

use crate::otlp::entry::Entry;
use crate::otlp::noted::Notice;
use crate::otlp::trace::{Span, Visitor};

/// Looks at one span after the other: at the keys of its attributes and then at its name.
///
/// Tools are not looked for: they are something only where rows of their own are wanted.
#[derive(Debug, Default)]
pub struct Telling {
    /// Those of the span that is being read.
    marks: u8,
}

impl Telling {
    /// Decodes a span, and says whether it may tell something.
    #[inline(always)]
    pub(crate) fn look(span: &[u8]) -> (Span<'_>, bool) {
        let mut telling = Telling::default();
        let span = Span::visit(span, &mut telling);
        let tells = telling.span(span.name().as_bytes());
        (span, tells)
    }
}

impl<'a> Visitor<'a> for Telling {
    #[inline(always)]
    fn attribute(&mut self, entry: Entry<'a>) {
        Notice::attribute(self, entry.key().as_bytes());
    }
}

impl Notice for Telling {
    #[inline(always)]
    fn attribute(&mut self, key: &[u8]) {
        self.marks |= of_key(key);
    }

    #[inline(always)]
    fn span(&mut self, name: &[u8]) -> bool {
        const TELLING_NODE: u8 = mark::NODE | mark::TELLS;
        let marks = std::mem::take(&mut self.marks) | of_name(name);
        marks & mark::OTHER != 0 || marks & TELLING_NODE == TELLING_NODE
    }
}

/// What a key or a name makes of a span, one bit each.
mod mark {
    /// An execution, or anything to one but a node.
    pub(super) const OTHER: u8 = 1;
    /// A node, if nothing else.
    pub(super) const NODE: u8 = 2;
    /// What an execution can learn from a node: most name no tenant and no error.
    pub(super) const TELLS: u8 = 4;
}

fn of_name(name: &[u8]) -> u8 {
    // The first byte first: most spans are of none of these names.
    match name.first() {
        Some(b'n') if name.starts_with(b"node.execute.") => mark::NODE,
        Some(b'r') if name == b"runtimeRouter.route" => mark::OTHER,
        Some(b'e') if name.starts_with(b"etlHook.") => mark::OTHER,
        Some(b'e' | b'w' | b'b') if runtime_of(name).is_some() => mark::OTHER,
        _ => 0,
    }
}

/// By length, so that a key is compared with three others at most, a few bytes at a time.
#[inline(always)]
fn of_key(key: &[u8]) -> u8 {
    use mark::{NODE, OTHER, TELLS};
    match key.len() {
        7 => if_is(key, b"user.id", TELLS),
        10 => if_is(key, b"node.error", TELLS),
        11 => if_is(key, b"node.status", NODE) | if_is(key, b"e2b.runtime", OTHER),
        12 => {
            if_is(key, b"code.runtime", OTHER) | if_is(key, b"code.success", OTHER) | if_is(key, b"workspace.id", TELLS)
        }
        13 => if_is(key, b"node.attempts", NODE),
        14 => if_is(key, b"code.exit_code", OTHER),
        15 => if_is(key, b"organization.id", TELLS),
        16 => {
            if_is(key, b"code.duration_ms", OTHER)
                | if_is(key, b"wasmedge.runtime", OTHER)
                | if_is(key, b"bacalhau.runtime", OTHER)
        }
        _ => 0,
    }
}

#[inline(always)]
fn if_is<const N: usize>(key: &[u8], wanted: &[u8; N], mark: u8) -> u8 {
    match <&[u8; N]>::try_from(key) {
        Ok(key) if key == wanted => mark,
        _ => 0,
    }
}

/// The runtime whose own span has this name.
pub(crate) fn runtime_of(span_name: &[u8]) -> Option<&'static str> {
    match span_name {
        b"e2b.execute" => Some("e2b"),
        b"wasmedge.execute" => Some("wasmedge"),
        b"bacalhau.execute" => Some("bacalhau"),
        _ => None,
    }
}
