//! Attributes, and the entries of maps: what happens to them by their key.

use super::{Nested, Walk};
use crate::egress::attributes::Action;
use crate::egress::hash::DIGEST;
use crate::otlp::entry::Entry;
use crate::otlp::schema;
use crate::otlp::wire::{Broken, Cursor, MAX_DEPTH, delimited, put_header};

/// The value of an attribute.
const VALUE: u32 = 2;

impl<'a> Walk<'_, 'a> {
    /// An attribute, or an entry of a map.
    #[inline]
    pub(super) fn key_value(&mut self, nested: Nested<'a>, is_in_value: bool, depth: u32) -> Result<(), Broken> {
        let rules = &self.policy.attributes;
        if !rules.is_empty() {
            let entry = Entry::decode(nested.inner.rest());
            match rules.action(entry.key().as_bytes(), is_in_value) {
                Action::Remove(rule) => {
                    self.count(rule);
                    self.edits.remove(nested.whole);
                    return Ok(());
                }
                Action::Hash(rule) if !entry.value().is_empty() || has_value(nested.inner)? => {
                    return self.hash(nested, &entry, rule);
                }
                Action::Hash(_) | Action::None => {}
            }
            let may_go_deeper = rules.reaches_into_values() && !is_usual_scalar(nested.inner.rest());
            let is_plain =
                nested.contents.len() <= self.policy.truncate && !self.sweep.may_match(nested.contents.clone());
            if is_plain && !may_go_deeper {
                return Ok(());
            }
        }
        let open = self.edits.enter(nested.length_at, nested.contents.len());
        self.fields(nested.inner, &schema::KEY_VALUE, depth)?;
        self.edits.leave(open);
        Ok(())
    }

    /// Puts a digest in the place of a value.
    fn hash(&mut self, nested: Nested<'a>, entry: &Entry<'a>, rule: usize) -> Result<(), Broken> {
        const STRING: u32 = 1;
        let hasher = &self.policy.hasher;
        self.count(rule);
        let open = self.edits.enter(nested.length_at, nested.contents.len());
        let mut cursor = nested.inner;
        let mut is_first = true;
        while !cursor.is_done() {
            let begin = cursor.position();
            let key = cursor.key()?;
            if key.raw() != delimited(VALUE) {
                self.field(&mut cursor, begin, key, &schema::KEY_VALUE, MAX_DEPTH)?;
                continue;
            }
            let encoded = cursor.slice()?;
            if std::mem::take(&mut is_first) {
                self.edits.replace(begin..cursor.position(), |out| {
                    put_header(out, VALUE, 2 + DIGEST);
                    put_header(out, STRING, DIGEST);
                    hasher.digest(&entry.value(), encoded, out);
                });
            } else {
                self.edits.remove(begin..cursor.position());
            }
        }
        self.edits.leave(open);
        Ok(())
    }
}

/// Whether an attribute has a value somewhere, even if what comes later says that it has none.
#[cold]
fn has_value(mut key_value: Cursor<'_>) -> Result<bool, Broken> {
    while !key_value.is_done() {
        let key = key_value.key()?;
        if key.raw() != delimited(VALUE) {
            key_value.skip(key, MAX_DEPTH)?;
            continue;
        }
        let mut value = key_value.message()?;
        while !value.is_done() {
            let key = value.key()?;
            value.skip(key, MAX_DEPTH)?;
            // All that a value may be but a place in a dictionary, which a request has none of.
            if (1..=7).contains(&key.number()) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Whether an attribute is a key and one value that has nothing in it. Saying no is no verdict.
#[inline]
fn is_usual_scalar(key_value: &[u8]) -> bool {
    const KEY: u32 = delimited(1);
    let mut cursor = Cursor::new(key_value);
    if cursor.short_slice(KEY).is_none() {
        return false;
    }
    let value = cursor
        .key()
        .ok()
        .filter(|key| key.raw() == delimited(VALUE))
        .and_then(|_| cursor.slice().ok());
    let Some(value) = value.filter(|_| cursor.is_done()) else {
        return false;
    };
    let mut cursor = Cursor::new(value);
    match cursor.key() {
        Ok(key) if key.raw() == delimited(5) || key.raw() == delimited(6) => false,
        Ok(key) => cursor.skip(key, 1).is_ok() && cursor.is_done(),
        Err(_) => value.is_empty(),
    }
}
