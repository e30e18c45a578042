//! `spanledger refused …`: requests that a backend refused for their content.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context as _;

use super::commands::say;
use crate::forward::{ExporterOptions, Kept, Resender, Resent, list_refused, refused_directory};

/// Exporters by name, as the settings have them.
type Exporters = [(String, ExporterOptions)];

/// Prints what is kept of every exporter, oldest first, a line each.
pub(super) fn list(directory: &Path, exporters: &Exporters) -> anyhow::Result<ExitCode> {
    let mut count = 0;
    for (name, _) in exporters {
        let kept = kept_of(directory, name)?;
        count += kept.len();
        kept.iter().for_each(|kept| say(&line(kept)));
    }
    say(&format!("{count} refused requests are kept in {}", directory.display()));
    Ok(ExitCode::SUCCESS)
}

/// Sends every kept request once; what is delivered or dropped by today's rules goes, the rest stays. Failure when something
/// stays.
pub(super) async fn retry(directory: &Path, exporters: &Exporters) -> anyhow::Result<ExitCode> {
    let (mut delivered, mut dropped, mut left) = (0, 0, 0);
    for (name, options) in exporters {
        let resender = Resender::new(options).with_context(|| format!("exporters.{name}"))?;
        for kept in kept_of(directory, name)? {
            match resender.resend(&kept).await {
                Ok(Resent::Delivered) => delivered += 1,
                Ok(Resent::Partly(answer)) => {
                    delivered += 1;
                    say(&format!("{}\n  delivered, but {}", line(&kept), answer.reason));
                }
                Ok(Resent::Dropped) => {
                    dropped += 1;
                    say(&format!(
                        "{}\n  not sent: the rules of exporters.{name} drop all of it",
                        line(&kept)
                    ));
                }
                Ok(Resent::Refused(answer)) => {
                    left += 1;
                    say(&format!("{}\n  again: {}", line(&kept), answer.reason));
                }
                // It keeps no other from being sent.
                Err(error) => {
                    left += 1;
                    say(&format!("{}\n  not sent: {error}", line(&kept)));
                }
            }
        }
    }
    let dropped = match dropped {
        0 => String::new(),
        dropped => format!("{dropped} dropped by rules, "),
    };
    say(&format!("{delivered} delivered, {dropped}{left} still refused"));
    Ok(if left == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn kept_of(directory: &Path, exporter: &str) -> anyhow::Result<Vec<Kept>> {
    let directory = refused_directory(directory, exporter);
    list_refused(&directory).with_context(|| format!("cannot read {}", directory.display()))
}

fn line(kept: &Kept) -> String {
    let refusal = &kept.refusal;
    let at = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_nanos(refusal.refused_at));
    let (exporter, signal, items) = (&refusal.exporter, &refusal.signal, refusal.items);
    let (bytes, encoding, reason) = (refusal.body_bytes, &refusal.encoding, &refusal.reason);
    format!(
        "{at}  {exporter}  {signal}: {items} items, {bytes} bytes {encoding}: {reason}  ({})",
        kept.path.display()
    )
}
