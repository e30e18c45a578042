//! Packs the rows of hours that are over, for statistics: between the batches of the journal, a little at a time.
//!
//! # Invariants
//!
//! * A packed hour holds what its rows hold. Whatever changes rows of an hour that is over takes away what was packed of
//!   it, in the same transaction ([`touched`]); it is packed again later.
//! * Writing rows costs nothing for it: rows are of the hour that is now, of which nothing is packed.
//!
//! Hours without rows are packed too, so that statistics read many hours in one go; but not where more than a week of them
//! follow each other, as after a row of long ago: to ask the table about these costs nothing.
//!
//! What others change in the table cannot be seen. So each hour is looked at again within a day, and packed anew if it
//! is other.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::{Duration, Instant};

use chrono::DateTime;

use super::meters::Meters;
use super::plan::Plan;
use super::store::{HourRow, Store, StoreError, begin_of, hour_at};
use super::table::{Details, NewRow, nanos};
use crate::columns::Packer;

/// Hours that are over are left alone for as long: late rows and the spans that complete them come meanwhile. It is also
/// by how much the clocks of two sidecars on one database may differ.
const SETTLE: i64 = 2;

/// Rows in one part, which are in memory at once.
const PART: i64 = 10_000;

/// Hours in one transaction.
const TOGETHER: usize = 24;

/// As many hours without rows in a row are packed at most.
const EMPTY: i64 = 7 * 24;

/// Hours of which a turn hears, and a little more: more than it can pack mostly.
const MOST: usize = 10 * TOGETHER;

/// How long one turn may take, but for one transaction.
const BUDGET: Duration = Duration::from_millis(300);

/// Turns between two looks at an hour that is packed already: a quarter of a year comes round within a day.
const TURNS_BETWEEN_LOOKS: u64 = 4;

/// The same for one that could not be packed: a quarter of an hour.
const TURNS_UNTIL_RETRY: u64 = 90;

/// An execution cannot have lasted longer, in hours, than the rows that it took over are looked for.
const LONGEST: i64 = 48;

/// What was done so far.
#[derive(Debug, Default)]
pub(super) struct Packing {
    turns: u64,
    /// The next hour to look at again.
    again: i64,
    /// Hours that cannot be packed, because of a row in them: the turn in which to try again, and why. Their rows are read
    /// instead.
    unpackable: BTreeMap<i64, (u64, String)>,
}

impl Packing {
    /// Packs what is over, latest first, and whether there may be more; rows from before `oldest` are about to be
    /// deleted. An hour that cannot be packed keeps no other from it.
    pub(super) async fn turn<S: Store>(
        &mut self,
        store: &mut S,
        oldest: u64,
        now: u64,
        meters: &Meters,
    ) -> Result<bool, StoreError> {
        let began = Instant::now();
        self.turns += 1;
        store.begin().await?;
        let first = store.first_hour().await?.unwrap_or(i64::MAX);
        let hours = first.max(hour_at(oldest) + 1)..hour_at(now) - SETTLE;
        if hours.is_empty() {
            store.commit().await?;
            return Ok(false);
        }
        let (missing, are_all) = self.missing(store, hours.clone(), began).await?;
        let again = match store.first_packed(self.again.max(hours.start)..hours.end).await? {
            None => store.first_packed(hours).await?,
            next => next,
        };
        store.commit().await?;
        for hours in missing.chunks(TOGETHER) {
            self.pack(store, hours, now, meters).await?;
            if began.elapsed() > BUDGET {
                return Ok(true);
            }
        }
        if let Some(again) = again.filter(|_| missing.is_empty() && self.turns.is_multiple_of(TURNS_BETWEEN_LOOKS)) {
            self.pack(store, &[again], now, meters).await?;
            self.again = again + 1;
        }
        Ok(!are_all)
    }

    /// Hours to pack, latest first: those with rows that are not packed, and those without between them; no more than can be
    /// found in a part of the time. And whether these are all.
    async fn missing<S: Store>(
        &mut self,
        store: &mut S,
        hours: Range<i64>,
        began: Instant,
    ) -> Result<(Vec<i64>, bool), StoreError> {
        let unpacked = store.unpacked(hours).await?;
        self.unpackable
            .retain(|hour, _| unpacked.iter().any(|hours| hours.contains(hour)));
        let mut missing = Vec::new();
        for Range { start, mut end } in unpacked {
            while start < end {
                if missing.len() >= MOST || (!missing.is_empty() && began.elapsed() >= BUDGET / 3) {
                    return Ok((missing, false));
                }
                let last = store.last_hour(start..end).await?;
                let empty = last.map_or(start, |hour| hour + 1)..end;
                if empty.end - empty.start <= EMPTY {
                    missing.extend(empty.rev());
                }
                missing.extend(last.filter(|hour| self.may_try(*hour)));
                end = last.unwrap_or(start);
            }
        }
        Ok((missing, true))
    }

    /// Why hours are not packed, if some cannot be.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.unpackable.values().next().map(|(_, reason)| reason.as_str())
    }

    fn may_try(&self, hour: i64) -> bool {
        self.unpackable.get(&hour).is_none_or(|(again, _)| self.turns >= *again)
    }

    /// Packs hours together, or, if that fails, those that can be packed.
    async fn pack<S: Store>(
        &mut self,
        store: &mut S,
        hours: &[i64],
        now: u64,
        meters: &Meters,
    ) -> Result<(), StoreError> {
        match pack(store, hours, now).await {
            Err(error) if !error.is_of_connection() => store.rollback().await?,
            done => return done,
        }
        for hour in hours {
            match pack(store, &[*hour], now).await {
                Ok(()) => {}
                Err(error) if error.is_of_connection() => return Err(error),
                Err(error) => {
                    store.rollback().await?;
                    meters.failed();
                    let at = text_of(*hour);
                    tracing::warn!(%error, hour = at, "an hour is not packed for statistics, which are slower for it: put its row right");
                    let reason = format!("the hour {at} is not packed for statistics: {error}");
                    self.unpackable.insert(*hour, (self.turns + TURNS_UNTIL_RETRY, reason));
                }
            }
        }
        Ok(())
    }
}

/// Packs hours in one transaction, but for those that are packed so already, or that somebody is about to change.
async fn pack<S: Store>(store: &mut S, hours: &[i64], now: u64) -> Result<(), StoreError> {
    store.begin().await?;
    for hour in hours {
        if !store.lock_hour(*hour).await? {
            continue;
        }
        let parts = parts_of(store, *hour).await?;
        if store.hour(*hour).await? != parts {
            store.put_hour(*hour, nanos(now), parts).await?;
        }
    }
    store.commit().await
}

/// When an hour begins, as people write it.
fn text_of(hour: i64) -> String {
    let begin = DateTime::from_timestamp_nanos(begin_of(hour).cast_signed());
    begin.format("%Y-%m-%d %H:%M UTC").to_string()
}

/// The rows of an hour, packed.
pub(super) async fn parts_of<S: Store>(store: &mut S, hour: i64) -> Result<Vec<Vec<u8>>, StoreError> {
    let mut parts = Vec::new();
    let mut last: Option<HourRow> = None;
    loop {
        let mut rows = store.rows_of_hour(hour, last.as_ref(), PART).await?;
        let is_last = rows.len() < PART as usize;
        if rows.is_empty() && !parts.is_empty() {
            break;
        }
        let mut packer = Packer::default();
        rows.iter().for_each(|row| packer.push(&row.row));
        parts.push(packer.finish());
        last = rows.pop();
        if is_last {
            break;
        }
    }
    Ok(parts)
}

/// The hours that are over, sorted, whose rows the plan may change.
pub(super) fn touched(plan: &Plan<'_>, now: u64) -> Vec<i64> {
    let of_executions = plan.parts.iter().filter(|part| part.destination.is_of_executions());
    let mut hours = Past::before(now);
    for part in of_executions {
        part.rows.iter().for_each(|row| hours.add_row(row));
        let candidates = part.candidates.iter();
        candidates.for_each(|candidate| hours.add(candidate.created_at()));
    }
    hours.into_sorted()
}

/// The same of these rows.
pub(super) fn touched_by(rows: &[NewRow], now: u64) -> Vec<i64> {
    let mut hours = Past::before(now);
    rows.iter().for_each(|row| hours.add_row(row));
    hours.into_sorted()
}

/// Hours that are over.
struct Past {
    current: i64,
    hours: BTreeSet<i64>,
}

impl Past {
    fn before(now: u64) -> Past {
        Past {
            current: hour_at(now),
            hours: BTreeSet::new(),
        }
    }

    fn add(&mut self, created_at: u64) {
        let hour = hour_at(created_at);
        if hour < self.current {
            self.hours.insert(hour);
        }
    }

    fn add_row(&mut self, row: &NewRow) {
        self.add(row.row.created_at);
        // The rows that it takes over lie within its time.
        if let (false, Details::Execution(beside)) = (row.replaces.is_empty(), &row.details) {
            let end = hour_at(row.row.created_at);
            for hour in hour_at(beside.start).max(end - LONGEST)..end {
                self.add(begin_of(hour));
            }
        }
    }

    fn into_sorted(self) -> Vec<i64> {
        self.hours.into_iter().collect()
    }
}
