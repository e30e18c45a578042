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

/// The keys that make something of a span.
const KEYS: [(&[u8], u8); 13] = [
    (b"code.runtime", mark::OTHER),
    (b"code.success", mark::OTHER),
    (b"code.exit_code", mark::OTHER),
    (b"code.duration_ms", mark::OTHER),
    (b"e2b.runtime", mark::OTHER),
    (b"wasmedge.runtime", mark::OTHER),
    (b"bacalhau.runtime", mark::OTHER),
    (b"node.status", mark::NODE),
    (b"node.attempts", mark::NODE),
    (b"node.error", mark::TELLS),
    (b"user.id", mark::TELLS),
    (b"workspace.id", mark::TELLS),
    (b"organization.id", mark::TELLS),
];

/// For the low five bits of a first byte, one bit for each length of the [`KEYS`] that begin so: hardly any other key passes.
const LENGTHS: [u32; 32] = {
    let mut lengths = [0; 32];
    let mut index = 0;
    while index < KEYS.len() {
        let key = KEYS[index].0;
        if let Some(first) = key.first() {
            lengths[(*first & 31) as usize] |= 1 << key.len();
        }
        index += 1;
    }
    lengths
};

#[inline(always)]
fn of_key(key: &[u8]) -> u8 {
    let lengths = key.first().map_or(0, |first| LENGTHS[usize::from(*first & 31)]);
    match key.len() < 32 && lengths >> key.len() & 1 == 1 {
        true => of_candidate(key),
        false => 0,
    }
}

fn of_candidate(key: &[u8]) -> u8 {
    KEYS.iter()
        .find(|(wanted, _)| *wanted == key)
        .map_or(0, |(_, mark)| *mark)
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
