//! Sends again what a backend refused (`spanledger refused retry`).

use std::io;

use bytes::Bytes;

use super::answer::{Answer, Verdict};
use super::client::Client;
use super::refused::{Kept, read_refused, remove_refused};
use super::{ExporterOptions, ForwardError};
use crate::egress::Policy;
use crate::otlp::{Encoding, Malformed, Signal, TraceRequest, compress, decompress, opaque};

/// Stands for no journal in [`super::HOP_HEADER`]: the journal may be in use by the running program.
const NO_JOURNAL: &str = "00000000000000000000000000000000";

/// No body decodes to more: its receiver accepted it.
const DECODED_LIMIT: usize = 1 << 30;

/// Sends kept requests to the backend of one exporter.
pub struct Resender {
    client: Client,
    options: ExporterOptions,
}

impl Resender {
    /// Checks the options and reads the certificates.
    pub fn new(options: &ExporterOptions) -> Result<Resender, ForwardError> {
        Ok(Resender {
            client: Client::new(options, NO_JOURNAL)?,
            options: options.clone(),
        })
    }

    /// Sends one request, once. If it is delivered its file is removed; else it stays, and the answer says why.
    pub async fn resend(&self, kept: &Kept) -> io::Result<Answer> {
        let damaged = || {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} is damaged", kept.path.display()),
            )
        };
        let signal = kept.refusal.signal().ok_or_else(damaged)?;
        let held = kept.refusal.encoding().ok_or_else(damaged)?;
        let body = read_refused(kept)?;
        // What is kept went through the rules for what leaves, but for what they could not be applied to.
        if !Policy::compile(&self.options.egress).is_ok_and(|policy| policy.is_empty()) {
            let decoded = decompress(held, &body, DECODED_LIMIT).map_err(|_| damaged())?;
            is_readable(signal, decoded).map_err(|_| damaged())?;
        }
        let encoding = self.options.encoding_for(held);
        let body = if encoding == held {
            body
        } else {
            let decoded = decompress(held, &body, DECODED_LIMIT).map_err(|_| damaged())?;
            if encoding == Encoding::Identity {
                decoded
            } else {
                compress(encoding, &decoded)
            }
        };
        let answer = self.client.send(signal, encoding, vec![body]).await;
        if answer.verdict == Verdict::Delivered {
            remove_refused(kept)?;
        }
        Ok(answer)
    }
}

fn is_readable(signal: Signal, body: Bytes) -> Result<(), Malformed> {
    match signal {
        Signal::Traces => TraceRequest::parse(body).map(drop),
        Signal::Metrics => opaque::check_metrics(&body).map(drop),
        Signal::Logs => opaque::check_logs(&body).map(drop),
    }
}
