//! Cuts one export request into several that together say the same.
//!
//! Requests of all three signals have one shape: a request holds resources (field 1), a resource holds scopes
//! (field 2), a scope holds spans, metrics or log records (field 2). Only the last are distributed; what stands beside
//! them on the way (resource, scope, schema URLs, fields of future versions) is repeated in every fragment that has
//! one of their items, byte for byte.
//!
//! Invariants:
//! * Every item is in exactly one fragment, with its bytes unchanged, in the order of the original.
//! * No fragment is larger than asked for, unless it has a single item.
//! * Unknown fields of the request itself go with the first fragment. Resources and scopes without items are left
//!   out, as OTLP allows to forwarders.

use std::ops::Range;

use bytes::Bytes;

use crate::otlp::wire::{Broken, Cursor, delimited, put_varint, varint_len};

/// The resources in a request; the scopes in a resource; the items in a scope.
const RESOURCES: u32 = 1;
const SCOPES: u32 = 2;
const ITEMS: u32 = 2;

/// An upper bound of the key and length that precede a resource or a scope.
const HEADER: usize = 6;

/// How a request is to be cut.
#[derive(Debug, Clone, Copy)]
pub(super) enum Cut {
    /// Fragments of at most so many bytes.
    Size(usize),
    /// Two fragments with half of the items each.
    Halves,
}

/// A part of a request that is a request itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fragment {
    pub(super) body: Bytes,
    /// How many spans, metrics or log records it has.
    pub(super) items: usize,
}

struct Scope<'a> {
    envelope: Vec<&'a [u8]>,
    /// With their keys and lengths.
    items: Vec<&'a [u8]>,
}

struct Resource<'a> {
    envelope: Vec<&'a [u8]>,
    scopes: Vec<Scope<'a>>,
}

/// Cuts `body`. A request with at most one item comes back whole.
pub(super) fn split(body: &Bytes, cut: Cut) -> Result<Vec<Fragment>, Broken> {
    let mut loose = Vec::new();
    let mut resources = Vec::new();
    each_field(Cursor::new(body), RESOURCES, |field| {
        match field {
            Field::Nested(resource) => resources.push(outline_resource(resource)?),
            Field::Other(bytes) => loose.push(bytes),
        }
        Ok(())
    })?;
    let total = resources
        .iter()
        .flat_map(|resource| &resource.scopes)
        .map(|scope| scope.items.len())
        .sum::<usize>();
    if total <= 1 {
        return Ok(vec![Fragment {
            body: body.clone(),
            items: total,
        }]);
    }
    let loose_size = size_of(&loose);
    let mut draft = Draft {
        size: loose_size,
        ..Draft::default()
    };
    let mut drafts = Vec::new();
    for (resource_index, resource) in resources.iter().enumerate() {
        for (scope_index, scope) in resource.scopes.iter().enumerate() {
            for (item_index, item) in scope.items.iter().enumerate() {
                let place = Place {
                    resource: resource_index,
                    scope: scope_index,
                    item: item_index,
                };
                let is_full = match cut {
                    Cut::Size(limit) => draft.size + draft.cost(place, &resources) + item.len() > limit,
                    Cut::Halves => draft.items >= total.div_ceil(2),
                };
                if is_full && draft.items > 0 {
                    drafts.push(std::mem::take(&mut draft));
                }
                draft.size += draft.cost(place, &resources) + item.len();
                draft.add(place);
            }
        }
    }
    drafts.push(draft);
    let fragments = drafts.iter().enumerate().map(|(index, draft)| {
        let loose = if index == 0 { loose.as_slice() } else { &[] };
        Fragment {
            body: draft.write(loose, &resources),
            items: draft.items,
        }
    });
    Ok(fragments.collect())
}

enum Field<'a> {
    /// The nested message that was asked for.
    Nested(Cursor<'a>),
    /// Any other field, with its key.
    Other(&'a [u8]),
}

fn each_field<'a>(
    mut message: Cursor<'a>,
    number: u32,
    mut visit: impl FnMut(Field<'a>) -> Result<(), Broken>,
) -> Result<(), Broken> {
    while !message.is_done() {
        let begin = message;
        let key = message.key()?;
        if key.raw() == delimited(number) {
            visit(Field::Nested(message.message()?))?;
        } else {
            message.skip(key, crate::otlp::wire::MAX_DEPTH)?;
            visit(Field::Other(message.since(&begin)))?;
        }
    }
    Ok(())
}

fn outline_resource(message: Cursor<'_>) -> Result<Resource<'_>, Broken> {
    let mut resource = Resource {
        envelope: Vec::new(),
        scopes: Vec::new(),
    };
    each_field(message, SCOPES, |field| {
        match field {
            Field::Nested(scope) => resource.scopes.push(outline_scope(scope)?),
            Field::Other(bytes) => resource.envelope.push(bytes),
        }
        Ok(())
    })?;
    Ok(resource)
}

fn outline_scope(mut message: Cursor<'_>) -> Result<Scope<'_>, Broken> {
    let mut scope = Scope {
        envelope: Vec::new(),
        items: Vec::new(),
    };
    while !message.is_done() {
        let begin = message;
        let key = message.key()?;
        message.skip(key, crate::otlp::wire::MAX_DEPTH)?;
        let bytes = message.since(&begin);
        if key.raw() == delimited(ITEMS) {
            scope.items.push(bytes)
        } else {
            scope.envelope.push(bytes)
        }
    }
    Ok(scope)
}

#[derive(Debug, Clone, Copy)]
struct Place {
    resource: usize,
    scope: usize,
    item: usize,
}

/// A fragment in the making: which items of which scopes of which resources.
#[derive(Debug, Default)]
struct Draft {
    runs: Vec<Run>,
    items: usize,
    /// An upper bound of the bytes it will have.
    size: usize,
}

/// Items of one scope that follow each other.
#[derive(Debug)]
struct Run {
    resource: usize,
    scope: usize,
    items: Range<usize>,
}

impl Draft {
    /// What has to be repeated before the item at `place` can follow.
    fn cost(&self, place: Place, resources: &[Resource<'_>]) -> usize {
        let resource = &resources[place.resource];
        let of_scope = HEADER + size_of(&resource.scopes[place.scope].envelope);
        match self.runs.last() {
            Some(run) if run.resource == place.resource && run.scope == place.scope => 0,
            Some(run) if run.resource == place.resource => of_scope,
            _ => HEADER + size_of(&resource.envelope) + of_scope,
        }
    }

    fn add(&mut self, place: Place) {
        self.items += 1;
        match self.runs.last_mut() {
            Some(run) if run.resource == place.resource && run.scope == place.scope => run.items.end = place.item + 1,
            _ => {
                let items = place.item..place.item + 1;
                self.runs.push(Run {
                    resource: place.resource,
                    scope: place.scope,
                    items,
                });
            }
        }
    }

    fn write(&self, loose: &[&[u8]], resources: &[Resource<'_>]) -> Bytes {
        let mut out = Vec::with_capacity(self.size);
        put_all(&mut out, loose);
        for runs in self.runs.chunk_by(|a, b| a.resource == b.resource) {
            let resource = &resources[runs[0].resource];
            let scope_of = |run: &Run| &resource.scopes[run.scope];
            let scope_size = |run: &Run| {
                let scope = scope_of(run);
                size_of(&scope.envelope) + size_of(&scope.items[run.items.clone()])
            };
            let scopes: usize = runs
                .iter()
                .map(scope_size)
                .map(|size| 1 + varint_len(size as u64) + size)
                .sum();
            put_header(&mut out, RESOURCES, size_of(&resource.envelope) + scopes);
            put_all(&mut out, &resource.envelope);
            for run in runs {
                put_header(&mut out, SCOPES, scope_size(run));
                put_all(&mut out, &scope_of(run).envelope);
                put_all(&mut out, &scope_of(run).items[run.items.clone()]);
            }
        }
        Bytes::from(out)
    }
}

fn size_of(fields: &[&[u8]]) -> usize {
    fields.iter().map(|field| field.len()).sum()
}

fn put_header(out: &mut Vec<u8>, number: u32, size: usize) {
    put_varint(out, u64::from(delimited(number)));
    put_varint(out, size as u64);
}

fn put_all(out: &mut Vec<u8>, fields: &[&[u8]]) {
    fields.iter().for_each(|field| out.extend_from_slice(field));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::otlp::wire::put_bytes;
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value};
    use opentelemetry_proto::tonic::resource::v1::Resource as ProtoResource;
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
    use prost::Message;

    fn text(value: &str) -> Option<AnyValue> {
        Some(AnyValue {
            value: Some(Value::StringValue(value.to_owned())),
        })
    }

    /// `shape[r][s]` spans in scope `s` of resource `r`, with names of random lengths.
    fn request(shape: &[&[usize]], random: &mut fastrand::Rng) -> ExportTraceServiceRequest {
        let mut resource_spans = Vec::new();
        for (r, scopes) in shape.iter().enumerate() {
            let attribute = KeyValue {
                key: "r".into(),
                value: text(&r.to_string()),
                ..Default::default()
            };
            let resource = ProtoResource {
                attributes: vec![attribute],
                ..Default::default()
            };
            let scope_spans = scopes.iter().enumerate().map(|(s, &count)| {
                let span = |n| Span {
                    name: format!("{r}.{s}.{n}.{}", "x".repeat(random.usize(..200))),
                    ..Span::default()
                };
                let spans = (0..count).map(span).collect();
                let scope = InstrumentationScope {
                    name: format!("scope {s}"),
                    ..Default::default()
                };
                ScopeSpans {
                    scope: Some(scope),
                    spans,
                    schema_url: format!("urn:scope:{s}"),
                }
            });
            let scope_spans = scope_spans.collect();
            resource_spans.push(ResourceSpans {
                resource: Some(resource),
                scope_spans,
                schema_url: format!("urn:{r}"),
            });
        }
        ExportTraceServiceRequest { resource_spans }
    }

    /// Every span with all that it stands in.
    fn spans(request: &ExportTraceServiceRequest) -> Vec<(ResourceSpans, ScopeSpans, Span)> {
        let mut spans = Vec::new();
        for resource in &request.resource_spans {
            for scope in &resource.scope_spans {
                for span in &scope.spans {
                    let resource = ResourceSpans {
                        scope_spans: Vec::new(),
                        ..resource.clone()
                    };
                    spans.push((
                        resource,
                        ScopeSpans {
                            spans: Vec::new(),
                            ..scope.clone()
                        },
                        span.clone(),
                    ));
                }
            }
        }
        spans
    }

    #[test]
    fn every_span_is_in_exactly_one_fragment_with_its_resource_and_scope_and_no_fragment_is_too_large() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let counts: Vec<Vec<usize>> = (0..random.usize(1..5))
                .map(|_| (0..random.usize(0..4)).map(|_| random.usize(0..30)).collect())
                .collect();
            let shape: Vec<&[usize]> = counts.iter().map(Vec::as_slice).collect();
            let request = request(&shape, &mut random);
            let body = Bytes::from(request.encode_to_vec());
            let limit = random.usize(1..4000);
            let fragments = split(&body, Cut::Size(limit)).unwrap();
            let mut found = Vec::new();
            for fragment in &fragments {
                let part = ExportTraceServiceRequest::decode(fragment.body.clone()).unwrap();
                let part_spans = spans(&part);
                assert_eq!(part_spans.len(), fragment.items, "seed {seed}");
                assert!(fragment.body.len() <= limit || fragment.items <= 1, "seed {seed}");
                found.extend(part_spans);
            }
            assert_eq!(found, spans(&request), "seed {seed}");
        }
    }

    #[test]
    fn unknown_fields_are_repeated_where_they_stand_and_spans_keep_their_bytes() {
        let mut span = Vec::new();
        put_bytes(&mut span, 5, b"span");
        put_bytes(&mut span, 99, b"of the span");
        let mut scope = Vec::new();
        put_bytes(&mut scope, 2, &span);
        put_bytes(&mut scope, 98, b"of the scope");
        put_bytes(&mut scope, 2, &span);
        let mut resource = Vec::new();
        put_bytes(&mut resource, 97, b"of the resource");
        put_bytes(&mut resource, 2, &scope);
        let mut body = Vec::new();
        put_bytes(&mut body, 1, &resource);
        put_bytes(&mut body, 96, b"of the request");

        let fragments = split(&Bytes::from(body), Cut::Size(1)).unwrap();
        assert_eq!(fragments.len(), 2);
        let count = |text: &[u8]| -> Vec<usize> {
            let occurrences = |body: &[u8]| body.windows(text.len()).filter(|window| *window == text).count();
            fragments.iter().map(|fragment| occurrences(&fragment.body)).collect()
        };
        assert_eq!(count(b"of the span"), [1, 1]);
        assert_eq!(count(b"of the scope"), [1, 1]);
        assert_eq!(count(b"of the resource"), [1, 1]);
        assert_eq!(count(b"of the request"), [1, 0]);
        assert_eq!(count(&span), [1, 1]);
    }

    #[test]
    fn halves_have_half_of_the_items_each() {
        let body = Bytes::from(request(&[&[3, 4], &[2]], &mut fastrand::Rng::with_seed(7)).encode_to_vec());
        let halves = split(&body, Cut::Halves).unwrap();
        assert_eq!(halves.iter().map(|half| half.items).collect::<Vec<_>>(), [5, 4]);
    }

    #[test]
    fn a_request_with_one_item_or_none_comes_back_whole() {
        for shape in [&[&[1_usize][..]][..], &[&[]], &[]] {
            let body = Bytes::from(request(shape, &mut fastrand::Rng::with_seed(7)).encode_to_vec());
            assert_eq!(split(&body, Cut::Size(1)).unwrap()[0].body, body);
            assert_eq!(split(&body, Cut::Halves).unwrap().len(), 1);
        }
    }

    #[test]
    fn broken_bytes_are_an_error_and_never_a_panic() {
        assert!(split(&Bytes::from_static(b"\x0a\x7f\x01"), Cut::Halves).is_err());
        for seed in 0..2000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let body: Vec<u8> = (0..random.usize(..64)).map(|_| random.u8(..16)).collect();
            drop(split(&Bytes::from(body), Cut::Size(8)));
        }
    }
}
