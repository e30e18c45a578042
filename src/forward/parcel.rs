//! What is sent in one request, and how records become requests.
//!
//! * **Joining.** Bodies that travel uncompressed, or have to be encoded anyway, are joined by plain concatenation:
//!   protobuf defines that as the union of their repeated fields, in order. Only requests of one signal and one
//!   encoding are joined, up to `max_request_size`.
//! * **Compressed bodies that pass through are not joined.** A gzip body may legally consist of several members, but
//!   decoders that stop after the first are common (it is the default of Rust's flate2 and of zlib itself), and they
//!   would lose the rest without an error.
//! * **Splitting.** What is larger than `max_request_size` before compression is cut between spans, see [`super::split`].
//!
//! Sans-io: [`Loader`] turns [`Load`]s into [`Parcel`]s and knows no clock and no network.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::{Bytes, BytesMut};

use super::ExporterOptions;
use super::load::{DECODED_LIMIT, Load};
use super::split::{Cut, Fragment, split};
use crate::egress::Decided;
use crate::journal::Record;
use crate::otlp::{Encoding, Signal, compress, decompress};

/// Parts from this size on are sent as they are; smaller ones are copied together.
const LARGE_PART: usize = 32 << 10;

/// What small parts are copied together to.
const PIECE: usize = 128 << 10;

/// A refused parcel is divided into so many, until the culprit is alone.
const DIVISION: usize = 4;

/// A record, or a fragment of one.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) sequence: u64,
    pub(super) received_at: u64,
    pub(super) items: u32,
    pub(super) body: Bytes,
}

/// What is sent in one request.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) signal: Signal,
    /// The encoding on the wire.
    pub(super) encoding: Encoding,
    /// The parts' bodies are in `encoding` already; then there is exactly one.
    pub(super) is_packed: bool,
    /// It could not be read: no rule for what leaves was applied to it. It is set aside, and never sent.
    pub(super) is_unruled: bool,
    /// Never empty.
    pub(super) parts: Vec<Part>,
    /// Bytes before compression.
    pub(super) size: usize,
    /// Others could have been joined to it.
    pub(super) is_partial: bool,
    /// What happened to it so far.
    pub(super) history: History,
}

/// What happened to a parcel so far.
#[derive(Debug, Default)]
pub(super) struct History {
    /// Failed attempts.
    pub(super) failures: u32,
    /// Failures although the backend took other requests since the failure before: it may be this parcel's own fault.
    pub(super) suspicion: u32,
    /// When it was first suspect.
    pub(super) suspect_since: Option<Instant>,
    /// How many requests the backend had taken at the last failure.
    pub(super) others_delivered: u64,
    pub(super) first_failure: Option<Instant>,
    /// Not to be sent before.
    pub(super) not_before: Option<Instant>,
    /// The backend refused the content: to be set aside for this reason.
    pub(super) refused: Option<String>,
}

impl Parcel {
    /// The number of items, for metrics.
    pub(super) fn items(&self) -> u64 {
        self.parts.iter().map(|part| u64::from(part.items)).sum()
    }

    /// Bytes held in memory.
    pub(super) fn held(&self) -> usize {
        self.parts.iter().map(|part| part.body.len()).sum()
    }

    /// The body before compression, or as it came if it passes through.
    pub(super) fn joined(&self) -> Bytes {
        match self.parts.as_slice() {
            [only] => only.body.clone(),
            parts => {
                let mut joined = BytesMut::with_capacity(self.held());
                parts.iter().for_each(|part| joined.extend_from_slice(&part.body));
                joined.freeze()
            }
        }
    }

    /// Whether [`Parcel::wire_body`] takes long enough to keep it from the threads that serve sockets.
    pub(super) fn is_costly_to_encode(&self) -> bool {
        !self.is_packed && self.encoding != Encoding::Identity && self.size > 32 << 10
    }

    /// The body as it is sent, in pieces: large parts are not copied.
    pub(super) fn wire_body(&self) -> Vec<Bytes> {
        if self.is_packed || self.encoding == Encoding::Identity {
            pieces(&self.parts)
        } else {
            vec![compress(self.encoding, &self.joined())]
        }
    }

    /// Smaller parcels with the same parts in the same order; one that has a single part comes back as it is.
    pub(super) fn ungroup(self) -> Vec<Parcel> {
        let group = self.parts.len().div_ceil(DIVISION);
        let (signal, encoding, is_packed) = (self.signal, self.encoding, self.is_packed);
        if is_packed || self.parts.len() == 1 {
            return vec![self];
        }
        let groups = self.parts.chunks(group).map(|parts| Parcel {
            signal,
            encoding,
            is_packed,
            is_unruled: self.is_unruled,
            parts: parts.to_vec(),
            size: parts.iter().map(|part| part.body.len()).sum(),
            is_partial: false,
            history: History {
                first_failure: self.history.first_failure,
                ..History::default()
            },
        });
        groups.collect()
    }

    /// As [`Parcel::ungroup`], but a single part with several items is cut in two as well. What cannot be divided
    /// comes back as it is.
    pub(super) fn divide(self) -> Vec<Parcel> {
        let [part] = self.parts.as_slice() else {
            return self.ungroup();
        };
        let decoded = if self.is_packed {
            decompress(self.encoding, &part.body, DECODED_LIMIT)
        } else {
            Ok(part.body.clone())
        };
        let Some(halves) = decoded
            .ok()
            .and_then(|body| split(&body, Cut::Halves).ok())
            .filter(|halves| halves.len() > 1)
        else {
            return vec![self];
        };
        let first_failure = self.history.first_failure;
        fragments(part, halves)
            .map(|part| Parcel {
                history: History {
                    first_failure,
                    ..History::default()
                },
                ..Parcel::single(self.signal, self.encoding, part)
            })
            .collect()
    }

    /// A record that could not be understood, to be set aside as it is.
    pub(super) fn as_received(record: &Record) -> Parcel {
        let part = Part {
            sequence: record.sequence,
            received_at: record.received_at,
            items: record.items,
            body: record.body.clone(),
        };
        Parcel {
            is_packed: true,
            is_unruled: true,
            ..Parcel::single(record.signal, record.encoding, part)
        }
    }

    /// Spans of traces that waited and could not be understood, to be set aside as they are.
    pub(super) fn decided(decided: &Decided, body: Bytes, items: u32) -> Parcel {
        let part = Part {
            sequence: decided.sequence,
            received_at: decided.received_at,
            items,
            body,
        };
        Parcel {
            is_unruled: true,
            ..Parcel::single(Signal::Traces, Encoding::Identity, part)
        }
    }

    /// The encoding of the parts' bodies.
    pub(super) fn held_encoding(&self) -> Encoding {
        if self.is_packed {
            self.encoding
        } else {
            Encoding::Identity
        }
    }

    /// One uncompressed part on its own.
    fn single(signal: Signal, encoding: Encoding, part: Part) -> Parcel {
        let size = part.body.len();
        Parcel {
            signal,
            encoding,
            is_packed: false,
            is_unruled: false,
            parts: vec![part],
            size,
            is_partial: false,
            history: History::default(),
        }
    }
}

/// The bodies of the parts, the small ones copied together: each piece becomes a write to the socket.
fn pieces(parts: &[Part]) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    let mut small = BytesMut::new();
    let mut left: usize = parts.iter().map(|part| part.body.len()).sum();
    for Part { body, .. } in parts {
        let is_small = body.len() < LARGE_PART;
        if !small.is_empty() && (!is_small || small.len() + body.len() > small.capacity()) {
            pieces.push(std::mem::take(&mut small).freeze());
        }
        if is_small && body.len() < left {
            if small.is_empty() {
                small.reserve(left.min(PIECE));
            }
            small.extend_from_slice(body);
        } else if small.is_empty() {
            pieces.push(body.clone());
        } else {
            small.extend_from_slice(body);
        }
        left -= body.len();
    }
    if !small.is_empty() {
        pieces.push(small.freeze());
    }
    pieces
}

/// The fragments as parts. Each gets its share of the items: a fragment of metrics knows only its metrics, while data
/// points are counted.
fn fragments(whole: &Part, fragments: Vec<Fragment>) -> impl Iterator<Item = Part> + use<> {
    let total = fragments.iter().map(|fragment| fragment.items).sum::<usize>().max(1) as u64;
    let (sequence, received_at, items) = (whole.sequence, whole.received_at, u64::from(whole.items));
    let mut before = 0;
    fragments.into_iter().map(move |fragment| {
        let share = |leaves: u64| items * leaves / total;
        let from = share(before);
        before += fragment.items as u64;
        let items = u32::try_from(share(before) - from).unwrap_or(u32::MAX);
        Part {
            sequence,
            received_at,
            items,
            body: fragment.body,
        }
    })
}

/// Collects the records of one signal into parcels.
#[derive(Debug)]
pub(super) struct Loader {
    is_merging: bool,
    /// `max_request_size`, or less once the backend has refused a request for its size.
    ceiling: usize,
    /// The ceiling, or less while the backend is slow.
    limit: usize,
    /// Complete, in order.
    ready: VecDeque<Parcel>,
    /// Room is left in these; one for each encoding.
    open: Vec<Parcel>,
    held: usize,
}

impl Loader {
    pub(super) fn new(options: &ExporterOptions) -> Loader {
        Loader {
            is_merging: options.merge,
            ceiling: options.max_request_size,
            limit: options.max_request_size,
            ready: VecDeque::new(),
            open: Vec::new(),
            held: 0,
        }
    }

    /// The largest request before compression.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// The backend refused a request of `size` bytes for its size.
    pub(super) fn lower_limit(&mut self, size: usize) {
        const LOWEST: usize = 64 << 10;
        self.ceiling = self.ceiling.min((size / 2).max(LOWEST));
        self.limit = self.limit.min(self.ceiling);
    }

    /// The backend did not manage a request of `size` bytes in time.
    pub(super) fn too_slow(&mut self, size: usize) {
        const LOWEST: usize = 256 << 10;
        self.limit = self.limit.min((size / 2).max(LOWEST));
    }

    /// The backend took a request: after being slow it is trusted with larger ones again, step by step.
    pub(super) fn went_well(&mut self) {
        self.limit = (self.limit + self.limit / 4).min(self.ceiling);
    }

    /// Bytes that wait here.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// The first record that waits here.
    pub(super) fn first_sequence(&self) -> Option<u64> {
        let first = |parcel: &Parcel| parcel.parts.first().map(|part| part.sequence);
        self.ready.front().into_iter().chain(&self.open).filter_map(first).min()
    }

    /// Takes a record in; returns in how many pieces it travels: none if it says nothing.
    pub(super) fn push(&mut self, load: Load) -> usize {
        let Load {
            signal,
            encoding,
            is_packed,
            size,
            part,
        } = load;
        if size == 0 {
            return 0;
        }
        self.held += part.body.len();
        if is_packed {
            self.ready.push_back(Parcel {
                is_packed,
                size,
                ..Parcel::single(signal, encoding, part)
            });
            return 1;
        }
        if size > self.limit
            && let Ok(cut) = split(&part.body, Cut::Size(self.limit))
            && cut.len() > 1
        {
            self.seal(encoding);
            self.held -= part.body.len();
            let pieces = cut.len();
            for part in fragments(&part, cut) {
                self.held += part.body.len();
                self.ready.push_back(Parcel::single(signal, encoding, part));
            }
            return pieces;
        }
        if self
            .open
            .iter()
            .any(|open| open.encoding == encoding && open.size + size > self.limit)
        {
            self.seal(encoding);
        }
        match self.open.iter_mut().find(|open| open.encoding == encoding) {
            Some(open) => {
                open.size += size;
                open.parts.push(part);
            }
            None => self.open.push(Parcel {
                is_partial: true,
                ..Parcel::single(signal, encoding, part)
            }),
        }
        if !self.is_merging {
            self.seal(encoding);
        }
        1
    }

    /// Nothing more is joined to what is open in this encoding.
    fn seal(&mut self, encoding: Encoding) {
        if let Some(index) = self.open.iter().position(|open| open.encoding == encoding) {
            let sealed = self.open.remove(index);
            self.ready.push_back(Parcel {
                is_partial: false,
                ..sealed
            });
        }
    }

    /// What [`Loader::take`] would give out.
    pub(super) fn peek(&self, partial: bool) -> Option<&Parcel> {
        self.ready.front().or_else(|| self.open.first().filter(|_| partial))
    }

    /// The next parcel; one that others could still be joined to only if `partial`.
    pub(super) fn take(&mut self, partial: bool) -> Option<Parcel> {
        let parcel = match self.ready.pop_front() {
            Some(ready) => ready,
            None if partial && !self.open.is_empty() => self.open.remove(0),
            None => return None,
        };
        self.held -= parcel.held();
        Some(parcel)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.open.is_empty()
    }
}
