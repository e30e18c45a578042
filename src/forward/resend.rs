//! Sends again what a backend refused (`spanledger refused retry`).
//!
//! What is kept went through the rules for what leaves as they were then. If they have changed since, today's are applied
//! to it: what a rule says must not leave does not leave by this door either.

use std::io;
use std::path::Path;

use bytes::Bytes;

use super::answer::{Answer, Verdict};
use super::client::Client;
use super::load::DECODED_LIMIT;
use super::refused::{Kept, read_refused, remove_refused};
use super::{ExporterOptions, ForwardError};
use crate::egress::{Outcome, Policy, Workspace};
use crate::otlp::{Encoding, compress, decompress};

/// Stands for no journal in [`super::HOP_HEADER`]: the journal may be in use by the running program.
const NO_JOURNAL: &str = "00000000000000000000000000000000";

/// Sends kept requests to the backend of one exporter.
pub struct Resender {
    client: Client,
    options: ExporterOptions,
}

/// What is sent of a kept request.
struct Outgoing {
    /// Of the body.
    encoding: Encoding,
    body: Bytes,
    items: u64,
}

/// What became of a kept request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resent {
    /// The backend has it, and its file is removed.
    Delivered,
    /// The backend has it but for items that it rejected, as this answer says. Its file is removed: the others would be there
    /// twice.
    Partly(Answer),
    /// The rules for what leaves drop all of it today. Nothing was sent, and its file is removed.
    Dropped,
    /// It stays, because of this answer.
    Refused(Answer),
}

impl Resender {
    /// Checks the options and reads the certificates.
    pub fn new(options: &ExporterOptions) -> Result<Resender, ForwardError> {
        Policy::compile(&options.egress)?;
        Ok(Resender {
            client: Client::new(options, NO_JOURNAL)?,
            options: options.clone(),
        })
    }

    /// Sends one request, once.
    ///
    /// # Errors
    ///
    /// The file cannot be read or is damaged, or the rules cannot be applied to what it holds. It stays.
    pub async fn resend(&self, kept: &Kept) -> io::Result<Resent> {
        let Some(Outgoing { encoding, body, items }) = self.outgoing(kept)? else {
            remove_refused(kept)?;
            return Ok(Resent::Dropped);
        };
        let signal = kept.refusal.signal().ok_or_else(|| damaged(&kept.path))?;
        let mut answer = self.client.send(signal, encoding, vec![body], |_, _| {}).await;
        if answer.verdict != Verdict::Delivered {
            return Ok(Resent::Refused(answer));
        }
        if answer.rejected == 0 {
            remove_refused(kept)?;
            return Ok(Resent::Delivered);
        }
        answer.reason = format!(
            "the backend took the request and rejected {} of its {items} items: {}",
            answer.rejected, answer.reason
        );
        if answer.rejected >= items {
            return Ok(Resent::Refused(answer));
        }
        remove_refused(kept)?;
        Ok(Resent::Partly(answer))
    }

    /// What may leave of a request; `None` if nothing may.
    fn outgoing(&self, kept: &Kept) -> io::Result<Option<Outgoing>> {
        let damaged = || damaged(&kept.path);
        let signal = kept.refusal.signal().ok_or_else(damaged)?;
        let held = kept.refusal.encoding().ok_or_else(damaged)?;
        let encoding = self.options.encoding_for(held);
        let body = read_refused(kept)?;
        let decode = || decompress(held, &body, DECODED_LIMIT).map_err(|_| damaged());
        let encode = |decoded: Bytes| match encoding {
            Encoding::Identity => decoded,
            _ => compress(encoding, &decoded),
        };
        let rules = self.options.egress.for_kept(kept.refusal.went_through.as_ref());
        let policy = rules.map(|rules| Policy::compile(&rules).map_err(io::Error::other));
        if let Some(policy) = policy.transpose()?.filter(|policy| policy.is_for(signal)) {
            let unreadable = |fault| {
                let path = kept.path.display();
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!(
                        "{path} cannot be read ({fault:?}), so the rules for what leaves cannot be applied, and it is not \
                         sent: remove the file, or send it with a configuration whose exporters.{} has no such rules",
                        kept.refusal.exporter
                    ),
                )
            };
            let decoded = decode()?;
            match policy
                .apply(signal, &decoded, &mut Workspace::default())
                .map_err(unreadable)?
            {
                Outcome::Nothing => return Ok(None),
                Outcome::Changed { body, dropped } => {
                    return Ok(Some(Outgoing {
                        encoding,
                        body: encode(body),
                        items: kept.refusal.items.saturating_sub(dropped.into()),
                    }));
                }
                Outcome::Unchanged => {}
            }
        }
        let body = match encoding == held {
            true => body.clone(),
            false => encode(decode()?),
        };
        Ok(Some(Outgoing {
            encoding,
            body,
            items: kept.refusal.items,
        }))
    }
}

fn damaged(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{} is damaged", path.display()))
}
