//! The loop: connect, resume where the database says, write batch after batch, and begin again when anything fails.
//!
//! # Recovery
//!
//! After any failure, an unknown outcome of COMMIT included, the connection is given up and the position is read again
//! on a new one. That is the only place where the loop learns how far it has come, so there is one way back from
//! everything: a batch that was committed is not read again, one that was not is. A database that was restored to an
//! older state names an older position, and what follows it is written again.
//!
//! # Ahead
//!
//! While the database works on one batch, the facts of the next one are taken out of its spans (see [`Ahead`]). What was
//! read ahead is forgotten with the connection.
//!
//! # Many batches in one transaction
//!
//! Where the store can keep rows until the end of a transaction ([`Store::defer`]), one that has a full batch takes the full
//! ones that follow, too. What the database refuses then, it refuses for all of them: the transaction is given up, the
//! reader goes back, and what was in it is written batch by batch, as [`apply`] does. [`Pace`] says how long one may take.

use std::pin::pin;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::ahead::Ahead;
use super::commit::{Applied, Batch, apply, apply_among_others, end};
use super::extract::{Extractor, Limit};
use super::facts::Facts;
use super::meters::Meters;
use super::pace::{Backoff, LONGEST_WAIT, Pace, TURN_OF_OTHERS, is_worth_telling};
use super::store::{Store, StoreError};
use super::upkeep::{Upkeep, Work};
use super::{Ledger, LedgerError, Rebuilt};
use crate::clock::unix_nanos;
use crate::journal::{JournalId, Position, ReadError, Reader, Record};
use crate::telemetry::{Heartbeat, StageStatus};

/// Bytes of requests that are read at a time. Their facts are taken out before more is read, so that the memory they are
/// read into is used again, and is in the processor's cache.
pub(super) const READ_BYTES: usize = 1 << 20;
const READ_RECORDS: usize = 256;

/// How long the position may be behind records that had nothing for the ledger.
const SAVE_EVERY: Duration = Duration::from_millis(250);

/// How long facts are taken out before the batch that is being written may go on.
const TURN: Duration = Duration::from_micros(200);

pub(super) async fn run<S: Store>(
    ledger: &Ledger,
    mut reader: Reader,
    shutdown: CancellationToken,
    heartbeat: &Heartbeat,
    status: &StageStatus,
    tell: impl FnOnce(Result<(), LedgerError>),
) {
    reader.watch(status.clone());
    let extractor = ledger.extractor();
    let mut stage = Stage {
        ledger,
        reader,
        shutdown,
        heartbeat,
        status,
        extractor,
        meters: Meters::new(),
        has_committed: false,
        unsaved_since: None,
        pace: Pace::new(),
        upkeep: Upkeep::new(),
    };
    let mut backoff = Backoff::new();
    let mut tell = Some(tell);
    loop {
        stage.has_committed = false;
        stage.unsaved_since = None;
        let connected = stage.connect::<S>().await;
        if let Some(tell) = tell.take() {
            tell(connected.as_ref().map(|_| ()).map_err(|error| error.clone().into()));
        }
        let began = Instant::now();
        let outcome = match connected {
            Ok(store) => stage.follow(store).await,
            Err(error) => Err(error),
        };
        let Err(error) = outcome else { return };
        stage.meters.failed();
        status.set_degraded(error.to_string());
        // A connection that was there for long was of use, too, when there was nothing to commit.
        let wait = backoff.after(stage.has_committed || began.elapsed() >= LONGEST_WAIT);
        let jittered = wait.mul_f64(0.5 + fastrand::f64() / 2.0);
        if is_worth_telling(wait) || !error.is_retryable() {
            tracing::warn!(%error, "no rows are written for now; they wait in the journal");
        } else {
            tracing::debug!(%error, ?jittered, "the database is still not usable");
        }
        tokio::select! {
            () = heartbeat.while_waiting(tokio::time::sleep(jittered)) => {}
            // What is not written stays in the journal.
            () = stage.shutdown.cancelled() => return,
        }
    }
}

struct Stage<'a> {
    ledger: &'a Ledger,
    reader: Reader,
    shutdown: CancellationToken,
    heartbeat: &'a Heartbeat,
    status: &'a StageStatus,
    extractor: Extractor,
    meters: Meters,
    /// Whether a batch was committed on this connection, whatever went wrong then.
    has_committed: bool,
    /// Since when there are records behind the saved position. Those without anything for the ledger, which are most,
    /// are worth no transaction of their own.
    unsaved_since: Option<Instant>,
    /// Of all connections, as is upkeep: what was learned of the database holds for the next one.
    pace: Pace,
    upkeep: Upkeep,
}

impl Stage<'_> {
    async fn connect<S: Store>(&mut self) -> Result<S, StoreError> {
        self.heartbeat.while_waiting(S::connect(&self.ledger.settings)).await
    }

    /// Writes until the shutdown, or until something fails.
    async fn follow<S: Store>(&mut self, mut store: S) -> Result<(), StoreError> {
        let heartbeat = self.heartbeat;
        let journal = self.reader.position().journal;
        let saved = heartbeat
            .while_waiting(saved_position(&mut store, self.reader.name(), journal))
            .await?;
        let resume = self.reader.resume(saved);
        tracing::info!(?resume, "writing rows");
        let mut committed = self.reader.position();
        self.tell_status();
        let mut ahead = Ahead::new(Limit::of::<S>());
        loop {
            let deferring = S::DEFERRING_BYTES.filter(|_| self.pace.may_have_many(committed.next));
            ahead.limit = deferring.map_or_else(Limit::of::<S>, Limit::of_many);
            if Instant::now() >= self.upkeep.due() {
                let work = Work {
                    limits: &self.ledger.limits,
                    destinations: &self.ledger.settings.destinations,
                    standalone: self.ledger.standalone.then_some(&*self.ledger.prices),
                };
                let turn = self.upkeep.turn(&mut store, &work, unix_nanos(), &self.meters);
                heartbeat.while_waiting(turn).await?;
                self.tell_status();
            }
            let save_due = self.unsaved_since.map(|since| since + SAVE_EVERY);
            let mut is_over = false;
            if ahead.is_empty() {
                let upkeep_due = self.upkeep.due();
                let due = save_due.map_or(upkeep_due, |due| due.min(upkeep_due));
                match self.records(due).await {
                    Ok(Some(records)) => {
                        is_over = records.is_empty();
                        ahead.waiting.extend(records);
                    }
                    // Time for upkeep, or for the position.
                    Ok(None) => {}
                    Err(ReadError::Closed) => is_over = true,
                    Err(error) => return Err(StoreError::Unavailable(error.to_string())),
                }
            }
            if !ahead.is_empty() {
                self.unsaved_since.get_or_insert_with(Instant::now);
            }
            let is_well = self.fill(&mut ahead).await;
            let is_due = self
                .unsaved_since
                .is_some_and(|since| is_over || !is_well || since.elapsed() >= SAVE_EVERY);
            if ahead.has_no_facts() && !is_due {
                if is_over {
                    return Ok(());
                }
                continue;
            }
            let began = Instant::now();
            let is_full = ahead.is_full();
            if is_full {
                self.pace.begin(began);
            }
            let (position, applied) = if deferring.is_some() && is_full {
                let latest = self.upkeep.due();
                match self.write_many(&mut store, &mut ahead, committed, latest).await? {
                    Some(written) => written,
                    None => {
                        ahead = Ahead::new(Limit::of::<S>());
                        self.reader.rewind(committed);
                        continue;
                    }
                }
            } else {
                self.write(&mut store, &mut ahead, true).await?
            };
            self.reader.passed(position);
            // A part of a request is no way forward: the next one may be what cannot be written, again and again.
            self.has_committed |= position != committed;
            committed = position;
            self.upkeep.add(applied.context, &self.ledger.limits);
            // What was read meanwhile waits from now on.
            self.unsaved_since = (ahead.position(&self.reader) != position).then(Instant::now);
            self.meters.transaction(&applied, began.elapsed().as_secs_f64());
            if is_over {
                return Ok(());
            }
            let is_turn_of_others = is_full && self.pace.end(Instant::now());
            if is_turn_of_others && S::DEFERRING_BYTES.is_some() && !self.shutdown.is_cancelled() {
                heartbeat.while_waiting(tokio::time::sleep(TURN_OF_OTHERS)).await;
            }
        }
    }

    /// The connection is there; what beside the rows does not work is said.
    fn tell_status(&self) {
        match self.upkeep.trouble() {
            Some(trouble) => self.status.set_degraded(trouble),
            None => self.status.clear(),
        }
    }

    /// Writes the facts that were taken in, in a transaction of their own if it is `alone` or else in the one that has begun;
    /// behind what, and what was done.
    async fn write<S: Store>(
        &mut self,
        store: &mut S,
        ahead: &mut Ahead,
        alone: bool,
    ) -> Result<(Position, Applied), StoreError> {
        let position = ahead.position(&self.reader);
        let (facts, noticed) = ahead.take_facts();
        let heartbeat = self.heartbeat;
        let journal = position.journal.to_string();
        let reader = self.reader.name().to_owned();
        let batch = Batch {
            position: alone.then_some((&reader, &journal, position.next)),
            ..batch_of(self.ledger, &facts)
        };
        let apply = async {
            if alone {
                apply(store, &batch).await
            } else {
                apply_among_others(store, &batch).await
            }
        };
        let mut applied = {
            let mut applying = pin!(heartbeat.while_waiting(apply));
            tokio::select! {
                biased;
                applied = &mut applying => applied,
                () = self.read_ahead(ahead) => applying.await,
            }?
        };
        applied.noticed += noticed;
        ahead.reuse(facts);
        Ok((position, applied))
    }

    /// Writes this batch, which is behind `committed`, and the full ones that follow it in one transaction, which takes no more
    /// at `latest`; behind what, and what was done. `None` if the database refused something: it is not known what, and all of
    /// them are to be written again one by one.
    async fn write_many<S: Store>(
        &mut self,
        store: &mut S,
        ahead: &mut Ahead,
        committed: Position,
        latest: Instant,
    ) -> Result<Option<(Position, Applied)>, StoreError> {
        let heartbeat = self.heartbeat;
        match self.try_to_write_many(store, ahead, latest).await {
            Ok(written) => Ok(Some(written)),
            Err(error) => {
                // Also where it was too much for the disk, say.
                self.pace.refused(committed.next..self.reader.position().next);
                let StoreError::Refused { reason, .. } = error else {
                    return Err(error);
                };
                tracing::info!(
                    reason,
                    "the database refused something of a backlog: it is written batch by batch"
                );
                heartbeat.while_waiting(store.rollback()).await?;
                Ok(None)
            }
        }
    }

    async fn try_to_write_many<S: Store>(
        &mut self,
        store: &mut S,
        ahead: &mut Ahead,
        latest: Instant,
    ) -> Result<(Position, Applied), StoreError> {
        let heartbeat = self.heartbeat;
        // More would make more wait than upkeep knows of.
        let may_wait = self.ledger.limits.max_pending / 4;
        heartbeat.while_waiting(store.begin()).await?;
        let began = Instant::now();
        let latest = latest.min(began + self.pace.taking());
        store.defer();
        let mut applied = Applied::default();
        let last = loop {
            let (position, done) = self.write(store, ahead, false).await?;
            applied += done;
            if store.is_full() || applied.context >= may_wait || Instant::now() >= latest {
                break position;
            }
            // What is less than full has a transaction of its own, and so has what comes before something that went wrong.
            if !self.fill(ahead).await || !ahead.is_full() {
                break position;
            }
        };
        let taking = began.elapsed();
        let journal = last.journal.to_string();
        let position = Some((self.reader.name(), journal.as_str(), last.next));
        heartbeat.while_waiting(end(store, position)).await?;
        self.pace.written(taking, began.elapsed());
        Ok((last, applied))
    }

    /// Takes in what is there already, for a moment, up to what one transaction may have. False if something went wrong:
    /// what was read before it is to be written first, and the position saved, so that who reads next meets it alone.
    async fn fill(&mut self, ahead: &mut Ahead) -> bool {
        let until = Instant::now() + SAVE_EVERY;
        loop {
            while ahead.take_in(&mut self.extractor) {}
            if ahead.is_full() || self.reader.is_caught_up() || Instant::now() >= until {
                return true;
            }
            // What is there may be damaged to its end: then the wait would be for a new record.
            match self.records(until).await {
                Ok(Some(records)) if !records.is_empty() => ahead.waiting.extend(records),
                Ok(_) => return true,
                Err(error) => return matches!(error, ReadError::Closed),
            }
            self.unsaved_since.get_or_insert_with(Instant::now);
        }
    }

    /// Takes in what is there already. To be dropped as soon as the batch before is written: no step of it loses
    /// anything. What goes wrong is met again, and told, by who reads next.
    async fn read_ahead(&mut self, ahead: &mut Ahead) {
        let mut turn = Instant::now();
        loop {
            if ahead.is_under_way() {
                return;
            }
            if ahead.waiting.is_empty() && !self.reader.is_caught_up() {
                match self.reader.next_batch(READ_BYTES, READ_RECORDS).await {
                    Ok(records) => ahead.waiting.extend(records),
                    Err(_) => return,
                }
            }
            if !ahead.begin(&mut self.extractor) {
                return;
            }
            if turn.elapsed() >= TURN {
                tokio::task::yield_now().await;
                turn = Instant::now();
            }
        }
    }

    /// The next records; `None` when something else is due first; none at all when shutting down and everything is written.
    async fn records(&mut self, due: Instant) -> Result<Option<Vec<Record>>, ReadError> {
        if self.shutdown.is_cancelled() {
            return self.reader.try_next_batch(READ_BYTES, READ_RECORDS).map(Some);
        }
        let next = self
            .heartbeat
            .while_waiting(self.reader.next_batch(READ_BYTES, READ_RECORDS));
        tokio::select! {
            records = next => records.map(Some),
            () = tokio::time::sleep_until(due.into()) => Ok(None),
            () = self.shutdown.cancelled() => Ok(None),
        }
    }
}

/// A batch of these facts, as they are received now.
fn batch_of<'a>(ledger: &'a Ledger, facts: &'a [Facts]) -> Batch<'a> {
    let now = unix_nanos();
    Batch {
        destinations: &ledger.settings.destinations,
        facts,
        position: None,
        release: &[],
        anew: false,
        window: ledger.limits.window_nanos(),
        oldest: ledger.limits.oldest(now),
        now,
        prices: &ledger.prices,
    }
}

/// Writes anew what is in the journal, from its oldest record on; when that was received, and how many rows there are.
pub(super) async fn rebuild<S: Store>(ledger: &Ledger, mut reader: Reader) -> Result<Rebuilt, LedgerError> {
    let mut store = S::connect(&ledger.settings).await?;
    let mut extractor = ledger.extractor();
    reader.resume(None);
    let mut rebuilt = Rebuilt::default();
    let mut ahead = Ahead::new(Limit::of::<S>());
    loop {
        let before = ahead.position(&reader);
        loop {
            while ahead.take_in(&mut extractor) {}
            if ahead.is_full() {
                break;
            }
            let records = reader.try_next_batch(READ_BYTES, READ_RECORDS)?;
            let Some(first) = records.first() else { break };
            rebuilt.since.get_or_insert(first.received_at);
            ahead.waiting.extend(records);
        }
        let position = ahead.position(&reader);
        if position == before && ahead.has_no_facts() {
            return Ok(rebuilt);
        }
        let (facts, _) = ahead.take_facts();
        let journal = position.journal.to_string();
        let batch = Batch {
            position: Some((reader.name(), &journal, position.next)),
            anew: true,
            ..batch_of(ledger, &facts)
        };
        let applied = apply(&mut store, &batch).await?;
        reader.passed(position);
        rebuilt.rows += applied.written + applied.taken_over + applied.records;
        rebuilt.quarantined += applied.quarantined;
    }
}

async fn saved_position<S: Store>(
    store: &mut S,
    reader: &str,
    journal: JournalId,
) -> Result<Option<Position>, StoreError> {
    store.begin().await?;
    let next = store.position(reader, &journal.to_string()).await?;
    store.commit().await?;
    Ok(next.map(|next| Position { journal, next }))
}
