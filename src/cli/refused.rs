//! `spanledger refused …`: requests that a backend refused for their content.

use std::path::Path;

use anyhow::Context as _;

use super::commands::say;
use crate::forward::{Kept, list_refused, refused_directory};

/// Prints what is kept of every exporter, oldest first, a line each.
pub(super) fn list<'a>(directory: &Path, exporters: impl IntoIterator<Item = &'a str>) -> anyhow::Result<()> {
    let mut count = 0;
    for exporter in exporters {
        let directory = refused_directory(directory, exporter);
        let kept = list_refused(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
        count += kept.len();
        kept.iter().for_each(|kept| say(&line(kept)));
    }
    say(&format!("{count} refused requests are kept in {}", directory.display()));
    Ok(())
}

fn line(kept: &Kept) -> String {
    let refusal = &kept.refusal;
    let at = httpdate::fmt_http_date(std::time::UNIX_EPOCH + std::time::Duration::from_nanos(refusal.refused_at));
    format!(
        "{at}  {}  {} {} items, {} bytes {}: {}  ({})",
        refusal.exporter,
        refusal.signal,
        refusal.items,
        refusal.body_bytes,
        refusal.encoding,
        refusal.reason,
        kept.path.display()
    )
}
