//! A record made ready to be sent: what of it travels, and how.

use bytes::Bytes;

use super::ExporterOptions;
use super::parcel::Part;
use crate::egress::{self, Decided, Policy, Workspace};
use crate::journal::Record;
use crate::otlp::wire::Broken;
use crate::otlp::{DecodeError, Encoding, Signal};

/// No record decodes to more: the receiver refused anything over its own, smaller limit.
pub(super) const DECODED_LIMIT: usize = 1 << 30;

/// A record made ready for the [`Loader`](super::parcel::Loader).
#[derive(Debug)]
pub(super) struct Load {
    pub(super) signal: Signal,
    pub(super) encoding: Encoding,
    /// The body is in `encoding` and passes through.
    pub(super) is_packed: bool,
    /// Bytes before compression.
    pub(super) size: usize,
    pub(super) part: Part,
}

/// Why a record cannot be sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    /// Its receiver had decompressed it.
    #[error("cannot be decompressed: {0}")]
    Decode(#[from] DecodeError),
    /// Its receiver had checked it.
    #[error("cannot be read, so the rules for what leaves cannot be applied: {0:?}")]
    Unreadable(Broken),
}

impl Load {
    /// Whether [`Load::of`] takes long enough to keep it from the threads that serve sockets.
    pub(super) fn is_costly(record: &Record, options: &ExporterOptions, policy: &Policy, limit: usize) -> bool {
        if policy.is_for(record.signal) || (policy.decides_over_traces() && record.signal == Signal::Traces) {
            return record.encoding != Encoding::Identity || record.body.len() > 32 << 10;
        }
        record.encoding != Encoding::Identity
            && record.decoded().is_none()
            && (options.encoding_for(record.encoding) != record.encoding
                || decoded_size(record).is_none_or(|size| size > limit))
    }

    /// Decides what of a record travels, and how. Without rules for its signal, or where they change nothing, it is the
    /// body as it was received.
    pub(super) fn of(
        record: &Record,
        options: &ExporterOptions,
        policy: &Policy,
        workspace: &mut Workspace,
        limit: usize,
    ) -> Result<Load, LoadError> {
        if policy.is_for(record.signal) {
            let decoded = decoded(record)?;
            match policy.apply(record.signal, &decoded, workspace) {
                Ok(egress::Outcome::Unchanged) => {}
                Ok(egress::Outcome::Changed { body, dropped }) => {
                    return Ok(Load::plain(record, options, body, record.items.saturating_sub(dropped)));
                }
                Ok(egress::Outcome::Nothing) => return Ok(Load::plain(record, options, Bytes::new(), 0)),
                Err(broken) => return Err(LoadError::Unreadable(broken)),
            }
        }
        let encoding = options.encoding_for(record.encoding);
        if encoding == record.encoding
            && encoding != Encoding::Identity
            && let Some(size) = decoded_size(record).filter(|size| *size <= limit)
        {
            return Ok(Load {
                is_packed: true,
                size,
                ..Load::plain(record, options, record.body.clone(), record.items)
            });
        }
        Ok(Load::plain(record, options, decoded(record)?, record.items))
    }

    /// Bytes held in memory.
    pub(super) fn held(&self) -> usize {
        self.part.body.len()
    }

    /// Holds a copy, and no more the memory that its body may be a small part of.
    pub(super) fn share_nothing(&mut self) {
        self.part.body = Bytes::copy_from_slice(&self.part.body);
    }

    /// What is sent of traces that waited.
    pub(super) fn decided(
        decided: &Decided,
        encoding: Encoding,
        policy: &Policy,
        workspace: &mut Workspace,
    ) -> Result<Load, LoadError> {
        let part = |body| Part {
            sequence: decided.sequence,
            received_at: decided.received_at,
            items: decided.spans,
            body,
        };
        let body = match policy.apply(Signal::Traces, &decided.body, workspace) {
            Ok(egress::Outcome::Unchanged) => decided.body.clone(),
            Ok(egress::Outcome::Changed { body, .. }) => body,
            Ok(egress::Outcome::Nothing) => Bytes::new(),
            Err(broken) => return Err(LoadError::Unreadable(broken)),
        };
        Ok(Load {
            signal: Signal::Traces,
            encoding,
            is_packed: false,
            size: body.len(),
            part: part(body),
        })
    }

    /// An uncompressed body that stands for a record.
    fn plain(record: &Record, options: &ExporterOptions, body: Bytes, items: u32) -> Load {
        Load {
            signal: record.signal,
            encoding: options.encoding_for(record.encoding),
            is_packed: false,
            size: body.len(),
            part: Part {
                sequence: record.sequence,
                received_at: record.received_at,
                items,
                body,
            },
        }
    }
}

/// The body without its content encoding.
pub(super) fn decoded(record: &Record) -> Result<Bytes, DecodeError> {
    record.decode(DECODED_LIMIT)
}

#[cfg(test)]
impl Load {
    /// A trace request that may be joined and is sent in `encoding`.
    pub(super) fn uncompressed(sequence: u64, encoding: Encoding, body: Bytes) -> Load {
        let part = Part {
            sequence,
            received_at: 0,
            items: 1,
            body,
        };
        Load {
            signal: Signal::Traces,
            encoding,
            is_packed: false,
            size: part.body.len(),
            part,
        }
    }

    /// As if it had so many items.
    pub(super) fn set_items(&mut self, items: u32) {
        self.part.items = items;
    }
}

/// The size before compression, where it is known without decompressing.
fn decoded_size(record: &Record) -> Option<usize> {
    if let Some(decoded) = record.decoded() {
        return Some(decoded.len());
    }
    match record.encoding {
        Encoding::Identity => Some(record.body.len()),
        // The trailer holds the size of the last member. Senders write one member; if there are more, this is too low
        // and a backend with a limit has the last word.
        Encoding::Gzip => {
            let trailer = record.body.last_chunk::<4>()?;
            Some(record.body.len().max(u32::from_le_bytes(*trailer) as usize))
        }
        Encoding::Zstd => {
            let declared = zstd::zstd_safe::get_frame_content_size(&record.body).ok().flatten()?;
            usize::try_from(declared).ok()
        }
        Encoding::Deflate | Encoding::Snappy | Encoding::Lz4 => None,
    }
}
