//! Trace requests taken apart into resources, scopes and spans, and put together from them.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::envelope::Envelope;
use crate::otlp::wire::{Broken, Cursor, MAX_DEPTH, delimited, put_header, varint_len};

const RESOURCES: u32 = 1;
const SCOPES: u32 = 2;
pub(super) const SPANS: u32 = 2;

/// One resource of a request, taken apart.
pub(super) struct Outline<'a> {
    pub(super) contents: &'a [u8],
    /// All but the scopes.
    pub(super) others: Vec<u8>,
    /// Each scope that has spans, without them, and its spans with their key and length, and without.
    pub(super) scopes: Vec<Parts<'a>>,
}

pub(super) fn outline(body: &Bytes) -> Result<Vec<Outline<'_>>, Broken> {
    let mut resources = Vec::new();
    let mut cursor = Cursor::new(body);
    while !cursor.is_done() {
        let key = cursor.key()?;
        if key.raw() != delimited(RESOURCES) {
            cursor.skip(key, MAX_DEPTH)?;
            continue;
        }
        let contents = cursor.slice()?;
        let (others, inner) = take_apart(contents, SCOPES)?;
        let mut scopes = Vec::new();
        for (_, scope) in inner {
            let (scope, spans) = take_apart(scope, SPANS)?;
            if !spans.is_empty() {
                scopes.push((scope, spans));
            }
        }
        resources.push(Outline {
            contents,
            others,
            scopes,
        });
    }
    Ok(resources)
}

pub(super) type Parts<'a> = (Vec<u8>, Vec<(&'a [u8], &'a [u8])>);

/// The fields with this number, each with and without its key and length; and all others.
pub(super) fn take_apart(message: &[u8], number: u32) -> Result<Parts<'_>, Broken> {
    let (mut others, mut wanted) = (Vec::new(), Vec::new());
    let mut cursor = Cursor::new(message);
    while !cursor.is_done() {
        let begin = cursor;
        let key = cursor.key()?;
        if key.raw() == delimited(number) {
            let contents = cursor.slice()?;
            wanted.push((cursor.since(&begin), contents));
        } else {
            cursor.skip(key, MAX_DEPTH)?;
            others.extend_from_slice(cursor.since(&begin));
        }
    }
    Ok((others, wanted))
}

/// Spans that are sent, or set aside, together.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    /// In the order in which they came up.
    scopes: Vec<Scope>,
    places: HashMap<*const Envelope, usize>,
    spans: u32,
}

#[derive(Debug)]
struct Scope {
    envelope: Arc<Envelope>,
    /// With their keys and lengths, as they came together.
    spans: Vec<Vec<u8>>,
    /// Bytes of all of them.
    size: usize,
}

impl Scope {
    fn length(&self) -> usize {
        self.envelope.scope.len() + self.size
    }
}

/// A resource with its scopes.
struct Resource {
    envelope: Arc<[u8]>,
    scopes: Vec<Scope>,
    length: usize,
}

impl Gathered {
    /// Takes in so many spans, with their keys and lengths.
    pub(super) fn add(&mut self, envelope: &Arc<Envelope>, spans: Vec<u8>, count: u32) {
        if count == 0 {
            return;
        }
        let place = *self.places.entry(Arc::as_ptr(envelope)).or_insert_with(|| {
            self.scopes.push(Scope {
                envelope: Arc::clone(envelope),
                spans: Vec::new(),
                size: 0,
            });
            self.scopes.len() - 1
        });
        let scope = &mut self.scopes[place];
        scope.size += spans.len();
        scope.spans.push(spans);
        self.spans += count;
    }

    /// How many there are.
    pub(super) fn spans(&self) -> u32 {
        self.spans
    }

    /// A trace request with them: each resource once, with its scopes. It is written once, into as much memory as it
    /// takes, and what was written is let go.
    pub(super) fn write(self) -> Bytes {
        let resources = self.resources();
        let length = resources.iter().map(|resource| field(resource.length)).sum();
        let mut out = Vec::with_capacity(length);
        for resource in resources {
            put_header(&mut out, RESOURCES, resource.length);
            out.extend_from_slice(&resource.envelope);
            for scope in resource.scopes {
                put_header(&mut out, SCOPES, scope.length());
                out.extend_from_slice(&scope.envelope.scope);
                scope.spans.into_iter().for_each(|spans| out.extend_from_slice(&spans));
            }
        }
        debug_assert_eq!(out.len(), length, "lengths are known before");
        Bytes::from(out)
    }

    fn resources(self) -> Vec<Resource> {
        let mut resources: Vec<Resource> = Vec::new();
        let mut places: HashMap<*const u8, usize> = HashMap::new();
        for scope in self.scopes {
            let envelope = &scope.envelope.resource;
            let place = *places.entry(Arc::as_ptr(envelope).cast()).or_insert_with(|| {
                resources.push(Resource {
                    envelope: Arc::clone(envelope),
                    scopes: Vec::new(),
                    length: envelope.len(),
                });
                resources.len() - 1
            });
            let resource = &mut resources[place];
            resource.length += field(scope.length());
            resource.scopes.push(scope);
        }
        resources
    }
}

/// What a resource or scope takes with its key and length.
const fn field(length: usize) -> usize {
    1 + varint_len(length as u64) + length
}
