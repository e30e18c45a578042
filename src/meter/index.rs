//! Finds a series by the hash of its key.

/// Open addressing over hashes; what a hash stands for is the caller's to compare. Entries are never removed.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    /// Number of the series plus one; 0 is vacant. A power of two in length, or empty.
    places: Vec<u32>,
    /// Hash of each series, by its number.
    hashes: Vec<u64>,
}

impl Index {
    /// The series with this hash for which `matches` holds.
    #[inline]
    pub(super) fn find(&self, hash: u64, matches: impl Fn(usize) -> bool) -> Option<usize> {
        let mask = self.places.len().checked_sub(1)?;
        let mut place = hash as usize & mask;
        loop {
            let series = match self.places[place] {
                0 => return None,
                number => number as usize - 1,
            };
            if self.hashes[series] == hash && matches(series) {
                return Some(series);
            }
            place = (place + 1) & mask;
        }
    }

    /// Adds the next series; returns its number.
    pub(super) fn insert(&mut self, hash: u64) -> usize {
        let series = self.hashes.len();
        self.hashes.push(hash);
        // At most half full, so that a search ends soon.
        if self.hashes.len() * 2 > self.places.len() {
            let size = (self.hashes.len() * 4).next_power_of_two();
            self.places.clear();
            self.places.resize(size, 0);
            (0..self.hashes.len()).for_each(|series| self.place(series));
        } else {
            self.place(series);
        }
        series
    }

    fn place(&mut self, series: usize) {
        let mask = self.places.len() - 1;
        let mut place = self.hashes[series] as usize & mask;
        while self.places[place] != 0 {
            place = (place + 1) & mask;
        }
        self.places[place] = series as u32 + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_is_found_again_even_when_all_hashes_are_the_same() {
        for modulus in [1, 7, u64::MAX] {
            let mut index = Index::default();
            let hash = |key: u64| key.wrapping_mul(0x9E37_79B9_7F4A_7C15) % modulus;
            for key in 0..1000 {
                assert_eq!(index.find(hash(key), |series| series as u64 == key), None);
                assert_eq!(index.insert(hash(key)), key as usize);
            }
            for key in 0..1000 {
                assert_eq!(index.find(hash(key), |series| series as u64 == key), Some(key as usize));
            }
        }
    }
}
