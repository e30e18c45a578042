//! Cuts spans out of a request that was checked.

use bytes::Bytes;

use super::trace::{ResourceSpans, ScopeSpans, Span};
use super::wire::{self, Broken, Cursor, MAX_DEPTH};

/// Copies a checked request without the spans whose ids are invalid. Only the lengths of the messages around them
/// change; everything else is copied as it is, in its order.
pub(super) fn without_rejected(body: &[u8]) -> Bytes {
    /// The fields that lead from the request to a span.
    const PATH: [u32; 3] = [1, ResourceSpans::SCOPE_SPANS as u32, ScopeSpans::SPANS as u32];

    fn copy(message: &[u8], path: &[u32], out: &mut Vec<u8>) -> Result<(), Broken> {
        let Some((&field, inner)) = path.split_first() else {
            return Ok(());
        };
        let mut cursor = Cursor::new(message);
        while !cursor.is_done() {
            let begin = cursor;
            let key = cursor.key()?;
            if key.raw() != wire::delimited(field) {
                cursor.skip(key, MAX_DEPTH)?;
                out.extend_from_slice(cursor.since(&begin));
                continue;
            }
            let contents = cursor.slice()?;
            if !inner.is_empty() {
                let room = wire::varint_len(contents.len() as u64);
                let pending = wire::Pending::begin(out, field, room);
                copy(contents, inner, out)?;
                pending.finish(out);
            } else if Span::decode(contents).has_valid_ids() {
                out.extend_from_slice(cursor.since(&begin));
            }
        }
        Ok(())
    }

    let mut out = Vec::with_capacity(body.len());
    // The bytes have passed the check, so there is no error to come; were there one, the spans before it would stand.
    let _no_error = copy(body, &PATH, &mut out);
    Bytes::from(out)
}
