//! `spanledger journal …`: what a journal holds, and whether every record in it is whole.

use std::process::ExitCode;

use anyhow::Context as _;

use super::commands::say;
use crate::app::{POSITIONS_STATE, journal_options, state_directory};
use crate::journal::{JournalError, inspect, load_position, verify};
use crate::settings::Settings;

/// Prints what the journal holds. The positions of the meter and of the ledger are in their own state; exporters' are
/// known here.
pub(super) fn status(settings: &Settings) -> anyhow::Result<ExitCode> {
    let directory = state_directory(settings, POSITIONS_STATE);
    let mut positions = Vec::new();
    for (name, _) in &settings.exporters {
        let saved = load_position(&directory, name).with_context(|| format!("cannot read {}", directory.display()))?;
        positions.extend(saved.map(|position| (name.clone(), position)));
    }
    let inspection = inspect(&journal_options(settings), &positions)?;
    let status = inspection.status;
    say(&format!("journal {}", status.journal));
    if inspection.is_in_use {
        say("in use by a running program; this is what its files say (more at /api/v1/pipeline of its API)");
    }
    say(&format!(
        "{} records in {} segments, {} of {} bytes",
        status.records, status.segments, status.bytes, status.max_bytes
    ));
    for reader in status.readers.iter().filter(|reader| reader.next.is_some()) {
        say(&format!(
            "{}: {} records ({} bytes) to go",
            reader.name, reader.lag_records, reader.lag_bytes
        ));
    }
    inspection.recovery.notes.iter().for_each(|note| say(note));
    Ok(ExitCode::SUCCESS)
}

/// Checks every record; failure when something is damaged.
pub(super) fn verify_all(settings: &Settings) -> anyhow::Result<ExitCode> {
    let verification = told_when_running(verify(&journal_options(settings)))?;
    for segment in &verification.segments {
        let (first, last) = segment.sequences;
        let damage = match (segment.damaged, &segment.error) {
            (0, None) => "whole".to_owned(),
            (damaged, None) => format!("{damaged} records damaged or missing"),
            (damaged, Some(error)) => format!("{damaged} records damaged or missing: {error}"),
        };
        say(&format!(
            "{}: records {first} to {last}, {} bytes: {damage}",
            segment.file, segment.bytes
        ));
    }
    verification.recovery.notes.iter().for_each(|note| say(note));
    say(&format!("{} whole records", verification.records()));
    Ok(if verification.is_sound() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn told_when_running<T>(looked: Result<T, JournalError>) -> anyhow::Result<T> {
    let is_running = matches!(looked, Err(JournalError::Locked { .. }));
    let looked = looked.map_err(anyhow::Error::from);
    if is_running {
        return looked.context(
            "only the journal of a stopped program can be verified; `spanledger journal status` looks at a running one",
        );
    }
    looked
}
