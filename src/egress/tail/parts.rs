//! Trace requests taken apart into resources, scopes and spans, and put together from them.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::envelope::Envelope;
use crate::otlp::wire::{Broken, Cursor, MAX_DEPTH, delimited, put_header};

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
    scopes: Vec<(Arc<Envelope>, Vec<u8>)>,
    places: HashMap<*const Envelope, usize>,
    spans: u32,
}

impl Gathered {
    /// Takes in so many spans, with their keys and lengths.
    pub(super) fn add(&mut self, envelope: &Arc<Envelope>, spans: &[u8], count: u32) {
        let place = *self.places.entry(Arc::as_ptr(envelope)).or_insert_with(|| {
            self.scopes.push((Arc::clone(envelope), Vec::new()));
            self.scopes.len() - 1
        });
        self.scopes[place].1.extend_from_slice(spans);
        self.spans += count;
    }

    /// How many there are.
    pub(super) fn spans(&self) -> u32 {
        self.spans
    }

    /// A trace request with them: each resource once, with its scopes.
    pub(super) fn write(&self) -> Bytes {
        let mut resources: Vec<(&[u8], Vec<u8>)> = Vec::new();
        let mut places: HashMap<*const u8, usize> = HashMap::new();
        for (envelope, spans) in &self.scopes {
            let place = *places.entry(Arc::as_ptr(&envelope.resource).cast()).or_insert_with(|| {
                resources.push((&*envelope.resource, Vec::new()));
                resources.len() - 1
            });
            let out = &mut resources[place].1;
            put_header(out, SCOPES, envelope.scope.len() + spans.len());
            out.extend_from_slice(&envelope.scope);
            out.extend_from_slice(spans);
        }
        let mut out = Vec::new();
        for (resource, scopes) in resources {
            put_header(&mut out, RESOURCES, resource.len() + scopes.len());
            out.extend_from_slice(resource);
            out.extend_from_slice(&scopes);
        }
        Bytes::from(out)
    }
}
