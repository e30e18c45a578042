//! Any bytes as a compressed body: never more than the limit, and what was compressed comes back.

use bytes::Bytes;
use spanledger::otlp::{Encoding, compress, decompress};

const LIMIT: usize = 1 << 20;

/// One input.
pub fn run(data: &[u8]) {
    let body = Bytes::copy_from_slice(data);
    for encoding in Encoding::ALL {
        if let Ok(decoded) = decompress(encoding, &body, LIMIT) {
            assert!(decoded.len() <= LIMIT);
            // What passes within a limit passes within its own length, and not within less.
            assert_eq!(decompress(encoding, &body, decoded.len()).unwrap(), decoded);
            if !decoded.is_empty() {
                assert!(decompress(encoding, &body, decoded.len() - 1).is_err());
            }
        }
        assert_eq!(
            decompress(encoding, &compress(encoding, &body), body.len()).unwrap(),
            body
        );
    }
}
