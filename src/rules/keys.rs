//! Looking up short byte strings: a fixed set of attribute keys, and hashes for series keys.

/// A fixed set of keys, each with a number.
///
/// Open addressing at a load of at most a half, over the length and the first and last eight bytes. Most keys of a span
/// are of no interest, and are dismissed by one multiplication and one comparison; of the others, only those of more
/// than 16 bytes are compared in full.
#[derive(Debug, Clone, Default)]
pub(super) struct KeyTable {
    /// A power of two in length, or empty.
    places: Box<[Place]>,
    /// The keys in full.
    keys: Vec<Box<[u8]>>,
    shift: u32,
}

#[derive(Debug, Clone, Copy, Default)]
struct Place {
    ends: Ends,
    number: u32,
    /// Index into the keys plus one; 0 is vacant.
    key: u32,
}

/// The length and the first and last eight bytes, overlapping or zero-filled where there are fewer. Up to 16 bytes they
/// are the whole key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Ends {
    first: u64,
    last: u64,
    length: usize,
}

impl KeyTable {
    pub(super) fn new(keys: impl IntoIterator<Item = (String, u32)>) -> Self {
        let keys: Vec<(Box<[u8]>, u32)> = keys
            .into_iter()
            .map(|(key, number)| (key.into_bytes().into(), number))
            .collect();
        if keys.is_empty() {
            return Self::default();
        }
        let size = (keys.len() * 2).next_power_of_two();
        let mut table = Self {
            places: vec![Place::default(); size].into(),
            keys: Vec::new(),
            shift: 64 - size.trailing_zeros(),
        };
        for (key, number) in keys {
            let ends = Ends::of(&key);
            let mut place = table.first_place(ends);
            while table.places[place].key != 0 {
                place = (place + 1) % size;
            }
            table.keys.push(key);
            let key = table.keys.len() as u32;
            table.places[place] = Place { ends, number, key };
        }
        table
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The number of `key`.
    #[inline]
    pub(super) fn get(&self, key: &[u8]) -> Option<u32> {
        let mask = self.places.len().checked_sub(1)?;
        let ends = Ends::of(key);
        let mut place = self.first_place(ends);
        loop {
            let candidate = self.places.get(place & mask)?;
            if candidate.key == 0 {
                return None;
            }
            if candidate.ends == ends && (ends.length <= 16 || *self.keys[candidate.key as usize - 1] == *key) {
                return Some(candidate.number);
            }
            place += 1;
        }
    }

    #[inline]
    fn first_place(&self, ends: Ends) -> usize {
        let mixed = ends.first ^ ends.last.rotate_left(29) ^ (ends.length as u64) << 56;
        (mixed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> self.shift) as usize
    }
}

impl Ends {
    #[inline]
    fn of(key: &[u8]) -> Self {
        let (first, last) = ends(key);
        Self {
            first,
            last,
            length: key.len(),
        }
    }
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
        }
        assert_eq!(KeyTable::new([]).get(b"a"), None);
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
