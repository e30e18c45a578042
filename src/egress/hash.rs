//! Digests that stand for values: equal values stay equal, and cannot be read.

use ring::{digest, hmac};

use super::options::Secret;
use crate::hex;
use crate::otlp::AnyValue;

/// The length of a digest.
pub(super) const DIGEST: usize = 64;

/// Makes digests.
#[derive(Debug, Clone)]
pub(super) struct Hasher {
    key: Option<hmac::Key>,
}

impl Hasher {
    /// With a key: HMAC-SHA-256; without: SHA-256.
    pub(super) fn new(key: &Secret) -> Hasher {
        let key = Some(key.reveal()).filter(|key| !key.is_empty());
        Hasher {
            key: key.map(|key| hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes())),
        }
    }

    /// The digest of a value in lower-case hexadecimal; `encoded` are the bytes of a value that has no text.
    pub(super) fn digest(&self, value: &AnyValue<'_>, encoded: &[u8], out: &mut Vec<u8>) {
        let text;
        let bytes = match value {
            AnyValue::Text(text) => text.as_bytes(),
            AnyValue::Bytes(bytes) => bytes,
            AnyValue::Bool(value) => {
                text = value.to_string();
                text.as_bytes()
            }
            AnyValue::Int(value) => {
                text = value.to_string();
                text.as_bytes()
            }
            AnyValue::Double(value) => {
                text = value.to_string();
                text.as_bytes()
            }
            AnyValue::Array(_) | AnyValue::Map(_) | AnyValue::Empty => encoded,
        };
        match &self.key {
            Some(key) => push_hex(hmac::sign(key, bytes).as_ref(), out),
            None => push_hex(digest::digest(&digest::SHA256, bytes).as_ref(), out),
        }
    }
}

fn push_hex(bytes: &[u8], out: &mut Vec<u8>) {
    bytes.iter().for_each(|byte| out.extend(hex::digits(*byte)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(key: &str, value: AnyValue<'_>) -> String {
        let mut out = Vec::new();
        Hasher::new(&Secret::new(key)).digest(&value, b"", &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_value_without_a_key_is_hashed_as_by_the_collector_and_sha256sum() {
        // printf 42 | sha256sum
        let expected = "73475cb40a568e8da8a045ced110137e159f890ac4da883b6b17dc651b3a8049";
        assert_eq!(digest("", AnyValue::Int(42)), expected);
        assert_eq!(digest("", AnyValue::Bytes(b"42")), expected);
    }

    #[test]
    fn a_keyed_digest_is_an_hmac() {
        // RFC 4231, test case 2.
        let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(
            digest("Jefe", AnyValue::Bytes(b"what do ya want for nothing?")),
            expected
        );
    }
}
