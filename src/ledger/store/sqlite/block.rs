//! Many waiting spans in one value: a row for each would cost more than its span.
//!
//! # Format
//!
//! The number of spans in four bytes, then one span after the other, each behind its length in four bytes. A span is its
//! trace (16 bytes) and its own id (8), its beginning, its end and when it was received (8 bytes each, nanoseconds since 1970),
//! whether it has a node (1) and the hash of the node's key (8), and the rest as JSON. Numbers are little-endian. A length of
//! zero is a span that no longer waits: the others keep their places.

use crate::ledger::facts::{Facts, SpanId, Told};

/// Spans in a block, at most.
pub(super) const SPANS: usize = 64;

/// A block that has as many bytes takes no more spans: two pages of the file. Who looks for one span reads all of it.
const BYTES: usize = 16 << 10;

/// Bytes of a span before its JSON.
const HEAD: usize = 16 + 8 + 3 * 8 + 1 + 8;

/// A block that is being made.
#[derive(Debug)]
pub(super) struct Block {
    data: Vec<u8>,
    spans: u32,
    received_at: u64,
}

impl Block {
    pub(super) fn new() -> Block {
        Block {
            data: vec![0; 4],
            spans: 0,
            received_at: 0,
        }
    }

    /// Takes one more; the hash of its node's key.
    pub(super) fn push(&mut self, facts: &Facts) -> Option<i64> {
        let node = facts.node_hash();
        let told = facts.told.to_json();
        let data = &mut self.data;
        data.extend_from_slice(&((HEAD + told.len()) as u32).to_le_bytes());
        data.extend_from_slice(&facts.id.trace);
        data.extend_from_slice(&facts.id.span);
        for at in [facts.start, facts.end, facts.received_at] {
            data.extend_from_slice(&at.to_le_bytes());
        }
        data.push(u8::from(node.is_some()));
        data.extend_from_slice(&node.unwrap_or_default().to_le_bytes());
        data.extend_from_slice(told.as_bytes());
        self.spans += 1;
        self.received_at = self.received_at.max(facts.received_at);
        node
    }

    pub(super) fn is_full(&self) -> bool {
        self.spans as usize >= SPANS || self.data.len() >= BYTES
    }

    pub(super) fn spans(&self) -> u32 {
        self.spans
    }

    /// When the last of its spans was received, Unix nanoseconds.
    pub(super) fn received_at(&self) -> u64 {
        self.received_at
    }

    pub(super) fn data(&mut self) -> &[u8] {
        if let Some(count) = self.data.first_chunk_mut() {
            *count = self.spans.to_le_bytes();
        }
        &self.data
    }
}

/// A span in a block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot<'b> {
    pub(super) id: SpanId,
    /// The hash of its node's key.
    pub(super) node: Option<i64>,
    times: [u64; 3],
    told: &'b [u8],
}

impl Slot<'_> {
    /// The span. `None` if it cannot be read, because a later version wrote it: it is as if it were not there.
    pub(super) fn facts(&self) -> Option<Facts> {
        let told: Told = serde_json::from_slice(self.told).ok()?;
        let [start, end, received_at] = self.times;
        Some(Facts {
            id: self.id,
            start,
            end,
            received_at,
            told,
        })
    }

    /// How much it tells.
    pub(super) fn told_bytes(&self) -> usize {
        self.told.len()
    }

    fn read(span: &[u8]) -> Option<Slot<'_>> {
        fn number(bytes: &mut &[u8]) -> Option<[u8; 8]> {
            let (number, rest) = bytes.split_first_chunk()?;
            *bytes = rest;
            Some(*number)
        }
        let (trace, mut rest) = span.split_first_chunk()?;
        let id = SpanId {
            trace: *trace,
            span: number(&mut rest)?,
        };
        let mut times = [0; 3];
        for time in &mut times {
            *time = u64::from_le_bytes(number(&mut rest)?);
        }
        let (has_node, mut rest) = rest.split_first()?;
        let node = i64::from_le_bytes(number(&mut rest)?);
        Some(Slot {
            id,
            node: (*has_node != 0).then_some(node),
            times,
            told: rest,
        })
    }
}

/// The position of the first span of a block whose last one is at `last`.
pub(super) fn first(block: &[u8], last: i64) -> i64 {
    last - places(block) as i64 + 1
}

/// How many spans the block has or had.
fn places(block: &[u8]) -> usize {
    let count = block.first_chunk().map(|count| u32::from_le_bytes(*count));
    count.unwrap_or_default() as usize
}

/// The bytes of the spans in their places; none where one no longer waits.
fn spans(block: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = block.get(4..).unwrap_or_default();
    (0..places(block)).map_while(move |_| {
        let (length, after) = rest.split_first_chunk()?;
        let (span, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        rest = after;
        Some(span)
    })
}

/// The spans in their places; `None` where one no longer waits.
pub(super) fn slots(block: &[u8]) -> impl Iterator<Item = Option<Slot<'_>>> {
    spans(block).map(Slot::read)
}

/// The block without the spans of these ids; how many it still has.
pub(super) fn without(block: &[u8], is_gone: impl Fn(&SpanId) -> bool) -> (Vec<u8>, usize) {
    let mut kept = 0;
    let mut data = (places(block) as u32).to_le_bytes().to_vec();
    for span in spans(block) {
        let stays = Slot::read(span).is_some_and(|slot| !is_gone(&slot.id));
        let span = if stays { span } else { &[] };
        data.extend_from_slice(&(span.len() as u32).to_le_bytes());
        data.extend_from_slice(span);
        kept += usize::from(stays);
    }
    (data, kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::tests::support::{at, node, success};

    #[test]
    fn spans_come_out_of_a_block_as_they_went_in_and_keep_their_places() {
        let spans = [
            success(1, 1, 0, 10),
            node(2, 2, 5, 20).ids("wf", "we", "n"),
            success(3, 3, 7, 9).ids("wf", "we", "n"),
        ];
        let facts = at(&spans, 5);
        let mut block = Block::new();
        for facts in &facts {
            assert_eq!(block.push(facts), facts.node_hash());
        }
        assert_eq!((block.spans(), block.received_at()), (3, facts[0].received_at));
        let data = block.data().to_vec();
        let read: Vec<Facts> = slots(&data).map(|slot| slot.unwrap().facts().unwrap()).collect();
        assert_eq!(read, facts);
        let nodes: Vec<Option<i64>> = slots(&data).map(|slot| slot.unwrap().node).collect();
        assert_eq!(nodes, facts.iter().map(Facts::node_hash).collect::<Vec<_>>());

        let (data, kept) = without(&data, |id| *id == facts[1].id);
        assert_eq!((kept, places(&data)), (2, 3));
        let left: Vec<Option<SpanId>> = slots(&data).map(|slot| slot.map(|slot| slot.id)).collect();
        assert_eq!(left, [Some(facts[0].id), None, Some(facts[2].id)]);
        assert_eq!(without(&data, |id| *id != facts[1].id).1, 0);
    }

    #[test]
    fn what_is_no_block_has_no_spans_beyond_its_end() {
        let mut block = Block::new();
        for facts in at(&[success(1, 1, 0, 10), success(2, 2, 0, 10)], 0) {
            block.push(&facts);
        }
        let data = block.data().to_vec();
        for end in 0..data.len() {
            assert!(slots(&data[..end]).flatten().count() < 2);
        }
        let later = slots(&data).next().flatten().unwrap();
        assert!(Slot { told: b"{", ..later }.facts().is_none());
    }

    #[test]
    fn a_block_takes_so_many_spans_and_no_more() {
        let facts = at(&[success(1, 1, 0, 10)], 0).remove(0);
        let mut block = Block::new();
        let mut count = 0;
        while !block.is_full() {
            block.push(&facts);
            count += 1;
        }
        assert!(count > 1 && count <= SPANS, "{count}");
        assert!(block.data().len() < BYTES + 4096);
    }
}
