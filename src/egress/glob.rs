//! Texts with `*`, which stands for any characters, and keys that are found by them.

/// A pattern in which `*` stands for any number of any characters. Upper and lower case differ, as in attribute keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob(String);

impl Glob {
    /// A pattern.
    pub fn new(pattern: impl Into<String>) -> Glob {
        Glob(pattern.into())
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it has a `*`.
    pub(super) fn is_open(&self) -> bool {
        self.0.contains('*')
    }

    /// Whether a text matches as a whole. Takes time in proportion to both lengths.
    pub fn matches(&self, text: &[u8]) -> bool {
        let pattern = self.0.as_bytes();
        let (mut at, mut next) = (0, 0);
        // Where to go on when the text behind the last `*` was not the right one.
        let mut retry = None;
        while at < text.len() {
            match pattern.get(next) {
                Some(b'*') => {
                    next += 1;
                    retry = Some((at, next));
                }
                Some(expected) if *expected == text[at] => {
                    at += 1;
                    next += 1;
                }
                _ => {
                    let Some((from, behind)) = retry else { return false };
                    retry = Some((from + 1, behind));
                    (at, next) = (from + 1, behind);
                }
            }
        }
        pattern.get(next..).unwrap_or_default().iter().all(|rest| *rest == b'*')
    }
}

/// Keys, exact or with `*`, each with what it stands for. Most keys of a span are in no set: they are told apart by their
/// length mostly.
#[derive(Debug, Clone, Default)]
pub(super) struct KeySet {
    by_length: Vec<Vec<(Box<[u8]>, usize)>>,
    open: Vec<(Glob, usize)>,
}

impl KeySet {
    /// Adds a key. Of several that match, the first exact one counts, then the first with `*`.
    pub(super) fn insert(&mut self, key: &str, stands_for: usize) {
        let glob = Glob::new(key);
        if glob.is_open() {
            self.open.push((glob, stands_for));
            return;
        }
        if self.by_length.len() <= key.len() {
            self.by_length.resize(key.len() + 1, Vec::new());
        }
        self.by_length[key.len()].push((key.as_bytes().into(), stands_for));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_length.is_empty() && self.open.is_empty()
    }

    /// What a key stands for.
    #[inline]
    pub(super) fn find(&self, key: &[u8]) -> Option<usize> {
        if let Some(candidates) = self.by_length.get(key.len())
            && let Some((_, found)) = candidates.iter().find(|(candidate, _)| **candidate == *key)
        {
            return Some(*found);
        }
        self.open
            .iter()
            .find(|(glob, _)| glob.matches(key))
            .map(|(_, found)| *found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters_and_nothing_else_is_special() {
        let matches = |pattern: &str, text: &str| Glob::new(pattern).matches(text.as_bytes());
        for (pattern, text) in [
            ("", ""),
            ("a", "a"),
            ("*", ""),
            ("*", "abc"),
            ("http.*", "http.route"),
            ("*.prompt", "gen_ai.prompt"),
            ("a*b*c", "axxbyybzzc"),
            ("*aab", "aaaaab"),
            ("[a].?", "[a].?"),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("", "a"),
            ("a", "A"),
            ("a*", "ba"),
            ("a*b", "ac"),
            ("http.*", "http"),
            ("a?", "ab"),
        ] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn keys_are_found_exactly_or_by_a_star() {
        let mut keys = KeySet::default();
        for (index, key) in ["user.id", "http.*", "user.ip"].into_iter().enumerate() {
            keys.insert(key, index);
        }
        assert_eq!(
            ["user.ip", "http.x", "user.if", ""].map(|key| keys.find(key.as_bytes())),
            [Some(2), Some(1), None, None]
        );
    }
}
