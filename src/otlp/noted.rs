//! Where some spans of a request are, as was noted while it was checked: who wants only these need not walk over the rest.

use std::sync::Arc;

use bytes::Bytes;

/// Decides, while a request is checked, which of its spans are noted.
pub trait Notice {
    /// An attribute of the next span that ends; of a key that it has twice, both.
    fn attribute(&mut self, key: &[u8]);

    /// A span ends. Whether it is noted.
    fn span(&mut self, name: &[u8]) -> bool;
}

/// Notes nothing.
pub(super) struct NoNotice;

impl Notice for NoNotice {
    #[inline(always)]
    fn attribute(&mut self, _: &[u8]) {}

    #[inline(always)]
    fn span(&mut self, _: &[u8]) -> bool {
        false
    }
}

/// The noted spans of one request, in its order. Belongs to the decoded bytes that were checked and to no others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotedSpans(Arc<[Place]>);

/// Where the message of a span is: offsets in a body, which has at most 2 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) begin: u32,
    pub(super) end: u32,
}

impl NotedSpans {
    pub(super) fn new(places: &[Place]) -> NotedSpans {
        // That of nothing is shared: most requests of most services have nothing to note, and allocate nothing.
        NotedSpans(if places.is_empty() {
            Arc::default()
        } else {
            places.into()
        })
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The memory that this takes beside the request, in bytes.
    pub fn size(&self) -> usize {
        size_of_val(&*self.0)
    }

    /// The messages of the noted spans that lie in `part`, which is a part of `body`, the request that was checked.
    pub(crate) fn within<'a>(&'a self, body: &'a Bytes, part: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let from = part.as_ptr().addr().saturating_sub(body.as_ptr().addr());
        let first = self.0.partition_point(|place| (place.begin as usize) < from);
        self.0[first..]
            .iter()
            .take_while(move |place| place.end as usize <= from + part.len())
            .filter_map(|place| body.get(place.begin as usize..place.end as usize))
    }
}
