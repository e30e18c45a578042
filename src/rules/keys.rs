//! Looking up short byte strings: a fixed set of attribute keys, and hashes for series keys.

/// A fixed set of keys, each with a number.
///
/// A key's length, first and last byte (the latter two mixed into six bits) lead to the keys that are alike in these.
/// Most keys of a span are of no interest, and there is nothing alike. Those that are alike are compared one by one, by
/// their first and last bytes: 16 of each, or 8 or 4 where there are fewer. Only keys of more than 32 bytes are compared
/// in full.
#[derive(Debug, Clone)]
pub(super) struct KeyTable {
    /// Where in `places` those begin that are alike; 0: there are none.
    heads: Box<[u32; HEADS]>,
    /// The first one is nobody's.
    places: Vec<Place>,
}

const LENGTHS: usize = 64;
const MESHES: usize = 64;
const HEADS: usize = LENGTHS * MESHES;

#[derive(Debug, Clone, Default)]
struct Place {
    ends: Ends,
    number: u32,
    /// The next one that is alike; 0: there is none.
    next: u32,
    /// Empty if the ends are all of it.
    full: Box<[u8]>,
}

/// Up to this length the [`Ends`] of a key are the whole of it.
const COVERED: usize = 32;

/// The length and the first and last bytes, overlapping or zero-filled where there are fewer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Ends {
    first: [u64; 2],
    last: [u64; 2],
    length: usize,
}

impl KeyTable {
    /// Of a key that is given twice the last number counts.
    pub(super) fn new(keys: impl IntoIterator<Item = (String, u32)>) -> Self {
        let mut table = Self {
            heads: Box::new([0; HEADS]),
            places: vec![Place::default()],
        };
        for (key, number) in keys {
            let key = key.as_bytes();
            let head = &mut table.heads[head(key)];
            let place = table.places.len() as u32;
            table.places.push(Place {
                ends: Ends::of(key),
                number,
                next: std::mem::replace(head, place),
                full: if key.len() > COVERED {
                    key.into()
                } else {
                    Box::default()
                },
            });
        }
        table
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.len() == 1
    }

    /// The number of `key`.
    #[inline(always)]
    pub(super) fn get(&self, key: &[u8]) -> Option<u32> {
        match self.heads[head(key)] {
            0 => None,
            first => self.find(key, first),
        }
    }

    #[inline]
    fn find(&self, key: &[u8], first: u32) -> Option<u32> {
        let ends = Ends::of(key);
        let mut next = first;
        while next != 0 {
            let place = self.places.get(next as usize)?;
            if place.ends == ends && (ends.length <= COVERED || *place.full == *key) {
                return Some(place.number);
            }
            next = place.next;
        }
        None
    }
}

/// Where keys like this one begin.
#[inline(always)]
fn head(key: &[u8]) -> usize {
    let mesh = match *key {
        [first, .., last] => first.wrapping_mul(5).wrapping_add(last),
        _ => 0,
    };
    key.len().min(LENGTHS - 1) * MESHES + usize::from(mesh) % MESHES
}

impl Ends {
    #[inline]
    fn of(key: &[u8]) -> Self {
        let length = key.len();
        if let (Some(first), Some(last)) = (key.first_chunk(), key.last_chunk()) {
            return Self {
                first: words(first),
                last: words(last),
                length,
            };
        }
        let (first, last) = ends(key);
        Self {
            first: [first, 0],
            last: [0, last],
            length,
        }
    }
}

#[inline(always)]
fn words(bytes: &[u8; 16]) -> [u64; 2] {
    let both = u128::from_le_bytes(*bytes);
    [both as u64, (both >> 64) as u64]
}

/// The first and the last eight bytes, overlapping or zero-filled where there are fewer.
#[inline]
fn ends(key: &[u8]) -> (u64, u64) {
    if let (Some(first), Some(last)) = (key.first_chunk(), key.last_chunk()) {
        return (u64::from_le_bytes(*first), u64::from_le_bytes(*last));
    }
    if let (Some(first), Some(last)) = (key.first_chunk(), key.last_chunk()) {
        return (
            u64::from(u32::from_le_bytes(*first)),
            u64::from(u32::from_le_bytes(*last)),
        );
    }
    let mut bytes = [0; 8];
    bytes[..key.len()].copy_from_slice(key);
    (u64::from_le_bytes(bytes), 0)
}

/// Hashes the key of a series. `seed` is random, so that a sender cannot choose keys that collide.
#[inline]
pub(crate) fn hash(seed: u64, key: &[u8]) -> u64 {
    let mut state = seed ^ (key.len() as u64).wrapping_mul(0xA076_1D64_78BD_642F);
    let mut chunks = key.chunks_exact(16);
    for chunk in &mut chunks {
        let (low, high) = ends(chunk);
        state = fold(low ^ state, high ^ 0xE703_7ED1_A0B4_28DB);
    }
    let mut rest = [0; 16];
    rest[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    let (low, high) = ends(&rest);
    fold(
        fold(low ^ state, high ^ 0x8EBC_6AF0_9C88_C6E3),
        seed ^ 0x5899_65CC_7537_4CC3,
    )
}

#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_found_and_nothing_else() {
        let keys: Vec<String> = (0..500)
            .map(|n| format!("some.prefix.{n}.suffix"))
            .chain((0..300).map(|n| n.to_string()))
            .chain([String::new(), "a".repeat(300)])
            .collect();
        let table = KeyTable::new(keys.iter().cloned().zip(0..));
        for (number, key) in keys.iter().enumerate() {
            assert_eq!(table.get(key.as_bytes()), Some(number as u32), "{key}");
            assert_eq!(table.get(format!("{key}x").as_bytes()), None);
            // The same length, first and last bytes.
            if let Some(middle) = key
                .get(17..key.len().saturating_sub(17))
                .filter(|middle| !middle.is_empty())
            {
                let other = format!("{}{}{}", &key[..17], "?".repeat(middle.len()), &key[key.len() - 17..]);
                assert_eq!(table.get(other.as_bytes()), None, "{other}");
            }
        }
        assert_eq!(KeyTable::new([]).get(b"a"), None);
        assert_eq!(KeyTable::new([]).get(b""), None);
    }

    #[test]
    fn hashes_depend_on_every_byte_and_on_the_seed() {
        let key: Vec<u8> = (0..100).collect();
        let mut seen = std::collections::HashSet::new();
        for length in 0..key.len() {
            assert!(seen.insert(hash(1, &key[..length])));
            assert!(seen.insert(hash(2, &key[..length])));
            let mut other = key[..=length].to_vec();
            other[length / 2] ^= 128;
            assert!(seen.insert(hash(1, &other)));
        }
    }
}
