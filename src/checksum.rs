//! CRC32C (Castagnoli; RFC 3720, section 12.1): what the files of this program know by that they were not damaged.

use crc_fast::{CrcAlgorithm, Digest, crc32_iscsi};

/// The checksum of `bytes`.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    crc32_iscsi(bytes)
}

/// The checksum of what has `before` as its own, with `bytes` behind it. Any number does for `before`: then that is a
/// seed.
pub(crate) fn crc32c_append(before: u32, bytes: &[u8]) -> u32 {
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, u64::from(!before));
    digest.update(bytes);
    digest.finalize() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bit by bit, with the polynomial of the RFC, reversed.
    fn plain(before: u32, bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!before, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                crc >> 1 ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 }
            })
        })
    }

    #[test]
    fn checksums_are_those_of_the_rfc_at_every_length_and_place() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(&[0xFF; 32]), 0x62A8_AB43);
        let mut random = fastrand::Rng::with_seed(1);
        let bytes: Vec<u8> = (0..(1 << 20) + 100).map(|_| random.u8(..)).collect();
        for length in (0..300).chain([1_000, 2_049, 4_096, 4_900, 65_549, 300_001, (1 << 20) + 5]) {
            let (seed, begin) = (random.u32(..), random.usize(..64));
            let part = &bytes[begin..begin + length];
            assert_eq!(crc32c(part), plain(0, part), "{length} bytes from {begin}");
            assert_eq!(
                crc32c_append(seed, part),
                plain(seed, part),
                "{length} bytes from {begin}"
            );
            let (first, second) = part.split_at(random.usize(..=length));
            assert_eq!(crc32c_append(crc32c(first), second), crc32c(part));
        }
    }
}
