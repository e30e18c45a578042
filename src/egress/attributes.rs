//! What happens to an attribute because of its key.

use super::glob::KeySet;

/// What happens to an attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Its value is looked at as every other.
    None,
    /// It goes, because of this rule.
    Remove(usize),
    /// Its value is replaced by a digest, because of this rule.
    Hash(usize),
}

/// The rules that go by keys.
#[derive(Debug, Clone, Default)]
pub(super) struct AttributeRules {
    /// Keys to the rules that remove them.
    pub(super) removed: KeySet,
    /// Keys that are not removed by the rule beside them.
    pub(super) kept: Option<(KeySet, usize)>,
    /// Keys to the rules that hash their values.
    pub(super) hashed: KeySet,
}

impl AttributeRules {
    /// No rule goes by keys.
    pub(super) fn is_empty(&self) -> bool {
        !self.reaches_into_values() && self.kept.is_none()
    }

    /// A key within a value can matter.
    pub(super) fn reaches_into_values(&self) -> bool {
        !self.removed.is_empty() || !self.hashed.is_empty()
    }

    /// What happens to the attribute with this key; or to an entry of a map within a value.
    #[inline]
    pub(super) fn action(&self, key: &[u8], is_in_value: bool) -> Action {
        if let Some(rule) = self.removed.find(key) {
            return Action::Remove(rule);
        }
        if !is_in_value
            && let Some((kept, rule)) = &self.kept
            && kept.find(key).is_none()
        {
            return Action::Remove(*rule);
        }
        match self.hashed.find(key) {
            Some(rule) => Action::Hash(rule),
            None => Action::None,
        }
    }
}
