//! Content encodings, undone within a limit and applied.
//!
//! Invariants:
//! * What comes out is never larger than the limit, and memory grows with what really comes out, not with what a header
//!   promises: a bomb costs what the limit allows and no more.
//! * A body is one stream from its first to its last byte. gzip members and frames of zstd, Snappy and LZ4 may follow one
//!   another; anything else behind the end is an error, since it would be lost silently.

use std::cell::RefCell;
use std::io::{self, Read};
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use zstd::zstd_safe::{self, DCtx, DParameter, InBuffer, OutBuffer};

use super::Encoding;
use crate::buffers::{Buffer, Buffers};

/// Why a body could not be decompressed.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// It is larger than allowed. Raise the receiver's size limit if it should not be.
    #[error("the body is larger than {limit} bytes (max_recv_msg_size_mib, max_request_body_size)")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// It is not what its content encoding says.
    #[error("the body is not valid {encoding}: {reason}")]
    Broken {
        /// The encoding that was announced.
        encoding: Encoding,
        /// What the decoder said.
        reason: String,
    },
}

/// For what is seldom enough that its memory may go back to the system.
static NOT_KEPT: LazyLock<Arc<Buffers>> = LazyLock::new(|| Buffers::new(0));

/// Undoes `encoding`. At most `limit` bytes come out; identity is passed on without a copy.
pub fn decompress(encoding: Encoding, body: &Bytes, limit: usize) -> Result<Bytes, DecodeError> {
    if encoding == Encoding::Identity && body.len() <= limit {
        return Ok(body.clone());
    }
    let mut decoded = NOT_KEPT.take(room_for(body, limit));
    decompress_into(encoding, body, limit, &mut decoded)?;
    Ok(decoded.freeze())
}

/// As [`decompress`], into an empty buffer, which best has [`room_for`] what comes out.
pub(crate) fn decompress_into(
    encoding: Encoding,
    body: &[u8],
    limit: usize,
    decoded: &mut Buffer,
) -> Result<(), DecodeError> {
    let outcome = match encoding {
        Encoding::Identity if body.len() <= limit => {
            decoded.extend_from_slice(body);
            Ok(())
        }
        Encoding::Identity => Err(Failure::TooLarge),
        Encoding::Gzip => gunzip(body, limit, decoded),
        Encoding::Deflate => inflate(body, limit, decoded),
        Encoding::Zstd => unzstd(body, limit, decoded),
        Encoding::Snappy => unsnappy(body, limit, decoded),
        Encoding::Lz4 => unlz4(body, limit, decoded),
    };
    match outcome {
        Ok(()) => Ok(()),
        Err(Failure::TooLarge) => Err(DecodeError::TooLarge { limit }),
        Err(Failure::Broken(reason)) => Err(DecodeError::Broken { encoding, reason }),
    }
}

/// Applies `encoding`, at the fast end of its levels: the link to the next hop is seldom slower than our processor.
pub fn compress(encoding: Encoding, body: &[u8]) -> Bytes {
    let compressed = match encoding {
        Encoding::Identity => return Bytes::copy_from_slice(body),
        Encoding::Gzip => read_all(
            flate2::read::GzEncoder::new(body, flate2::Compression::fast()),
            body.len() / 4,
        ),
        Encoding::Deflate => read_all(
            flate2::read::ZlibEncoder::new(body, flate2::Compression::fast()),
            body.len() / 4,
        ),
        Encoding::Zstd => zstd::bulk::compress(body, 1),
        // The encoder writes nothing for nothing, and nothing is no stream.
        Encoding::Snappy if body.is_empty() => Ok(SNAPPY_STREAM.to_vec()),
        Encoding::Snappy => read_all(snap::read::FrameEncoder::new(body), body.len() / 4),
        Encoding::Lz4 => lz4_frame(body),
    };
    // Compressing memory into memory has no way to fail.
    Bytes::from(compressed.unwrap_or_default())
}

fn read_all(mut from: impl Read, guess: usize) -> io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(guess);
    from.read_to_end(&mut out)?;
    Ok(out)
}

enum Failure {
    TooLarge,
    Broken(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Broken(error.to_string())
    }
}

/// Room for the first part of what comes out: telemetry shrinks to a fifth or less, but a large body may hold something
/// else. More is added as it is needed.
pub(crate) fn room_for(body: &[u8], limit: usize) -> usize {
    const CERTAIN: usize = 2 << 20;
    let usual = body.len().saturating_mul(6);
    usual.min(body.len().max(CERTAIN)).clamp(256, limit.max(256))
}

fn read_within(from: &mut impl Read, limit: usize, out: &mut Buffer) -> Result<(), Failure> {
    while out.len() <= limit {
        let mut one = [0];
        let is_full = out.room().is_empty();
        // What came may be all of it and fill the room to the last byte: no more is made only to find that out.
        let count = from.read(if is_full { &mut one } else { make_room(out, limit) })?;
        if count == 0 {
            return Ok(());
        }
        if is_full {
            make_room(out, limit)[0] = one[0];
        }
        out.fill(count);
    }
    Err(Failure::TooLarge)
}

/// Room in the buffer. One byte more than allowed is enough to know that there is too much.
fn make_room(out: &mut Buffer, limit: usize) -> &mut [u8] {
    let allowed = limit.saturating_add(1).saturating_sub(out.len()).max(1);
    if out.room().is_empty() {
        out.grow(out.len() + out.len().clamp(1, allowed));
    }
    let room = out.room();
    let length = room.len().min(allowed);
    &mut room[..length]
}

fn gunzip(body: &[u8], limit: usize, out: &mut Buffer) -> Result<(), Failure> {
    if body.is_empty() {
        return Err(Failure::Broken("it is empty".into()));
    }
    read_within(&mut flate2::bufread::MultiGzDecoder::new(body), limit, out)
}

fn inflate(body: &[u8], limit: usize, out: &mut Buffer) -> Result<(), Failure> {
    let mut decoder = flate2::bufread::ZlibDecoder::new(body);
    read_within(&mut decoder, limit, out)?;
    if decoder.total_in() < body.len() as u64 {
        return Err(Failure::Broken("bytes follow its end".into()));
    }
    Ok(())
}

/// How a stream of Snappy frames begins. As a raw block these bytes would promise 127 bytes and hold none.
const SNAPPY_STREAM: &[u8] = b"\xff\x06\x00\x00sNaPpY";

/// A raw Snappy block grows at most to this many times its size: three bytes make 64.
const SNAPPY_GROWTH: usize = 22;

fn unsnappy(body: &[u8], limit: usize, out: &mut Buffer) -> Result<(), Failure> {
    if body.is_empty() {
        return Err(Failure::Broken("it is empty".into()));
    }
    if body.starts_with(SNAPPY_STREAM) {
        return read_within(&mut snap::read::FrameDecoder::new(body), limit, out);
    }
    let broken = |error: snap::Error| Failure::Broken(error.to_string());
    // The block says how long it will be; what it cannot become is not believed, so that no room is made for it.
    let length = snap::raw::decompress_len(body).map_err(broken)?;
    if length / SNAPPY_GROWTH > body.len() {
        return Err(Failure::Broken("it promises more than it can hold".into()));
    }
    if length > limit {
        return Err(Failure::TooLarge);
    }
    if length > out.room().len() {
        out.grow(length);
    }
    let written = snap::raw::Decoder::new().decompress(body, out.room()).map_err(broken)?;
    out.fill(written);
    Ok(())
}

fn lz4_frame(body: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::with_capacity(body.len() / 4));
    io::Write::write_all(&mut encoder, body)?;
    Ok(encoder.finish()?)
}

fn unlz4(body: &[u8], limit: usize, out: &mut Buffer) -> Result<(), Failure> {
    if body.is_empty() {
        return Err(Failure::Broken("it is empty".into()));
    }
    let mut rest = body;
    while !rest.is_empty() {
        // The decoder takes the end of its input for the end of a frame: it gets one frame, and that one whole.
        let length = lz4_frame_length(rest).ok_or_else(|| Failure::Broken("it ends inside a frame".into()))?;
        let (frame, further) = rest.split_at(length);
        read_within(&mut lz4_flex::frame::FrameDecoder::new(frame), limit, out)?;
        rest = further;
    }
    Ok(())
}

/// The length of the frame that begins here; `None` if it is not whole, or no frame (LZ4 Frame Format, 1.6.4).
fn lz4_frame_length(bytes: &[u8]) -> Option<usize> {
    const MAGIC: u32 = 0x184d_2204;
    let number = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    if number(0)? != MAGIC {
        return None;
    }
    let flags = *bytes.get(4)?;
    let if_flag = |bit: u8, bytes: usize| if flags & 1 << bit == 0 { 0 } else { bytes };
    let (dictionary, checksum, content_size, block_checksum) =
        (if_flag(0, 4), if_flag(2, 4), if_flag(3, 8), if_flag(4, 4));
    // Magic number, flags, block descriptor, and the header's checksum.
    let mut at = 4 + 1 + 1 + content_size + dictionary + 1;
    loop {
        // The uppermost bit says that the block is not compressed; a block of nothing ends the frame.
        let block = (number(at)? & 0x7fff_ffff) as usize;
        at += 4;
        if block == 0 {
            break;
        }
        at = at.checked_add(block)?.checked_add(block_checksum)?;
    }
    at += checksum;
    (at <= bytes.len()).then_some(at)
}

/// The window that every zstd decoder has to support (RFC 8878, section 3.1.1.1.2).
const SMALLEST_WINDOW_LOG: u32 = 23;
/// A context that has grown beyond this is not kept for the next body.
const LARGEST_KEPT_CONTEXT: usize = 1 << 20;

thread_local! {
    /// Setting up a context costs more than decoding a small body.
    static ZSTD: RefCell<Option<DCtx<'static>>> = const { RefCell::new(None) };
}

fn unzstd(body: &[u8], limit: usize, out: &mut Buffer) -> Result<(), Failure> {
    if body.is_empty() {
        return Err(Failure::Broken("it is empty".into()));
    }
    let mut context = match ZSTD.take() {
        Some(context) => context,
        None => DCtx::try_create().ok_or_else(|| Failure::Broken("no memory for a decoder".into()))?,
    };
    let decoded = unzstd_with(&mut context, body, limit, out);
    if context.sizeof() <= LARGEST_KEPT_CONTEXT {
        ZSTD.set(Some(context));
    }
    decoded
}

fn unzstd_with(context: &mut DCtx<'static>, body: &[u8], limit: usize, out: &mut Buffer) -> Result<(), Failure> {
    let broken = |code| Failure::Broken(zstd_safe::get_error_name(code).to_owned());
    let window_log = limit.max(1).next_power_of_two().ilog2().clamp(SMALLEST_WINDOW_LOG, 30);
    context
        .reset(zstd_safe::ResetDirective::SessionAndParameters)
        .map_err(broken)?;
    context
        .set_parameter(DParameter::WindowLogMax(window_log))
        .map_err(broken)?;

    let mut input = InBuffer::around(body);
    loop {
        let mut output = OutBuffer::around(make_room(out, limit));
        let expected = context.decompress_stream(&mut output, &mut input).map_err(|code| {
            match zstd_safe::get_error_name(code) {
                // The window is bounded by the limit: within a larger one the frame may fit.
                "Frame requires too much memory for decoding" => Failure::TooLarge,
                _ => broken(code),
            }
        })?;
        let frame_is_done = expected == 0;
        let (written, room) = (output.pos(), output.capacity());
        out.fill(written);
        if out.len() > limit {
            return Err(Failure::TooLarge);
        }
        if input.pos() == body.len() {
            if frame_is_done {
                return Ok(());
            }
            // Where there was no room, there is perhaps more.
            if written < room {
                return Err(Failure::Broken("it ends inside a frame".into()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPRESSED: [Encoding; 5] = [
        Encoding::Gzip,
        Encoding::Zstd,
        Encoding::Deflate,
        Encoding::Snappy,
        Encoding::Lz4,
    ];

    fn text(length: usize) -> Vec<u8> {
        (0..length)
            .map(|index| b"the same words over and over, "[index % 30] ^ (index / 4000) as u8)
            .collect()
    }

    #[test]
    fn what_is_compressed_comes_back_whatever_its_size() {
        for encoding in Encoding::ALL {
            for length in [0, 1, 300, 65_536, 1_000_000] {
                let body = text(length);
                let packed = compress(encoding, &body);
                assert_eq!(
                    decompress(encoding, &packed, length).unwrap(),
                    body,
                    "{encoding} {length}"
                );
            }
        }
    }

    #[test]
    fn one_byte_over_the_limit_is_too_large() {
        for encoding in Encoding::ALL {
            for length in [1, 300, 65_536, 1_000_000] {
                let packed = compress(encoding, &text(length));
                let refused = decompress(encoding, &packed, length - 1);
                assert!(
                    matches!(refused, Err(DecodeError::TooLarge { .. })),
                    "{encoding} {length}: {refused:?}"
                );
            }
        }
    }

    #[test]
    fn a_zstd_window_that_only_a_larger_limit_allows_is_too_large_and_not_broken() {
        use std::io::Write as _;

        let body = text(1_000_000);
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(25).unwrap();
        encoder.write_all(&body).unwrap();
        let packed = Bytes::from(encoder.finish().unwrap());
        let refused = decompress(Encoding::Zstd, &packed, 8 << 20);
        assert!(matches!(refused, Err(DecodeError::TooLarge { .. })), "{refused:?}");
        assert_eq!(decompress(Encoding::Zstd, &packed, 64 << 20).unwrap(), body);
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        for encoding in COMPRESSED {
            let bomb = compress(encoding, &vec![0; 64 << 20]);
            assert!(bomb.len() < 4 << 20);
            assert!(matches!(
                decompress(encoding, &bomb, 1 << 20),
                Err(DecodeError::TooLarge { .. })
            ));
        }
    }

    #[test]
    fn members_and_frames_in_a_row_are_one_body() {
        for encoding in [Encoding::Gzip, Encoding::Zstd, Encoding::Snappy, Encoding::Lz4] {
            let parts = [
                compress(encoding, b"one "),
                compress(encoding, b""),
                compress(encoding, b"body"),
            ]
            .concat();
            assert_eq!(decompress(encoding, &parts.into(), 100).unwrap(), "one body");
        }
    }

    #[test]
    fn an_empty_body_a_cut_body_and_bytes_behind_the_end_are_broken() {
        for encoding in COMPRESSED {
            let whole = compress(encoding, &text(5000));
            for end in [0, 1, whole.len() / 2, whole.len() - 1] {
                let refused = decompress(encoding, &whole.slice(..end), 1 << 20);
                assert!(
                    matches!(refused, Err(DecodeError::Broken { .. })),
                    "{encoding} cut at {end}: {refused:?}"
                );
            }
            let longer = [&whole[..], b"garbage"].concat().into();
            let refused = decompress(encoding, &longer, 1 << 20);
            assert!(
                matches!(refused, Err(DecodeError::Broken { .. })),
                "{encoding}: {refused:?}"
            );
        }
    }

    #[test]
    fn snappy_is_taken_as_a_raw_block_too_and_its_promise_is_not_believed() {
        let body = text(70_000);
        let block: Bytes = snap::raw::Encoder::new().compress_vec(&body).unwrap().into();
        assert_eq!(decompress(Encoding::Snappy, &block, body.len()).unwrap(), body);
        let refused = decompress(Encoding::Snappy, &block, body.len() - 1);
        assert!(matches!(refused, Err(DecodeError::TooLarge { .. })), "{refused:?}");
        for end in [1, block.len() / 2, block.len() - 1] {
            let refused = decompress(Encoding::Snappy, &block.slice(..end), 1 << 20);
            assert!(matches!(refused, Err(DecodeError::Broken { .. })), "{end}: {refused:?}");
        }
        // Four gigabytes, says a block of six bytes.
        let promise = Bytes::from_static(b"\xff\xff\xff\xff\x0f\x00");
        let refused = decompress(Encoding::Snappy, &promise, usize::MAX);
        assert!(matches!(refused, Err(DecodeError::Broken { .. })), "{refused:?}");
    }

    #[test]
    fn a_broken_body_does_not_harm_the_next_one() {
        let good = compress(Encoding::Zstd, b"good");
        for _ in 0..3 {
            assert!(decompress(Encoding::Zstd, &Bytes::from_static(b"no frame at all"), 100).is_err());
            assert!(decompress(Encoding::Zstd, &good.slice(..good.len() - 1), 100).is_err());
            assert_eq!(decompress(Encoding::Zstd, &good, 100).unwrap(), "good");
        }
    }
}
