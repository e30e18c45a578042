//! The loop of one exporter: from the journal through the [`Lane`]s to the [`Client`], and the position behind it.
//!
//! * Everything is decided in one task. Sending, setting aside and saving the position run beside it and report back;
//!   nothing is shared between them.
//! * **Shutdown**: what the journal still holds is sent for at most the shutdown time-out, as long as the backend takes
//!   it; a backend that is away is asked once more and not waited for. Then the position is saved a last time.
//! * **Failure of a task**: a panic in any of them ends the loop, the stage's heartbeat and so the process's health.
//!   Everything undelivered is still in the journal.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::answer::{Answer, Verdict};
use super::client::Client;
use super::counters::Counters;
use super::gate::Notice;
use super::lane::{Lane, Outcome, Ticket};
use super::parcel::{Load, Parcel};
use super::refused::{Refused, RefusedStore};
use super::window::Window;
use super::{ExporterOptions, ForwardError, MAX_BYTES_IN_FLIGHT, SAVE_EVERY};
use crate::journal::{JournalId, Position, ReadError, Reader, Record, load_position, save_position};
use crate::otlp::Signal;
use crate::telemetry::{Heartbeat, StageStatus};

/// Records between the position and the last one read. While one request cannot be delivered, so many others may
/// overtake it (and would be sent again after a crash).
const MOST_AHEAD: usize = 65_536;

/// Records read at once.
const BATCH: usize = 1024;

/// A trouble that does not end is told about this often.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// What a [`Forwarder`] is made of.
#[derive(Debug, Clone)]
pub struct Setup {
    /// `otlp` or `otlp/<name>`: the key below `exporters`, and the name of the journal reader.
    pub name: String,
    /// The configuration.
    pub options: Arc<ExporterOptions>,
    /// The id that [`super::HOP_HEADER`] carries.
    pub journal: JournalId,
    /// Where the position is saved.
    pub positions: PathBuf,
    /// The exporter's own directory for refused requests, see [`super::refused_directory`].
    pub refused: PathBuf,
    /// How long a shutdown may try to deliver the rest.
    pub shutdown_timeout: Duration,
}

/// One exporter, ready to run.
pub struct Forwarder {
    setup: Setup,
    reader: Reader,
    client: Arc<Client>,
    counters: Arc<Counters>,
}

impl Forwarder {
    /// Checks the options and reads the certificates. Connects to nothing.
    pub fn new(setup: Setup, reader: Reader) -> Result<Forwarder, ForwardError> {
        let client = Arc::new(Client::new(&setup.options, &setup.journal.to_string())?);
        let counters = Arc::new(Counters::new(&setup.name));
        Ok(Forwarder {
            setup,
            reader,
            client,
            counters,
        })
    }

    /// Forwards until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken, heartbeat: Heartbeat, status: StageStatus) {
        let Some(mut run) = Run::resume(self, status, &heartbeat, &shutdown).await else {
            heartbeat.finish();
            return;
        };
        while run.step(&shutdown, &heartbeat).await {}
        heartbeat.while_waiting(run.finish()).await;
        heartbeat.finish();
    }
}

/// What a task reports.
struct Returned {
    parcel: Parcel,
    ticket: Ticket,
    event: Event,
}

enum Event {
    /// An answer to so many bytes.
    Answered(Answer, usize),
    /// Set aside; so many had to be deleted for it.
    Kept(std::io::Result<u64>),
}

/// See [`Run::step`].
enum Turn {
    Shutdown,
    Returned(Result<Returned, tokio::task::JoinError>),
    Read(Result<Vec<Record>, ReadError>),
    Saved(Result<std::io::Result<Position>, tokio::task::JoinError>),
    Woken,
}

struct Run {
    setup: Setup,
    reader: Reader,
    client: Arc<Client>,
    counters: Arc<Counters>,
    refused: Arc<Mutex<RefusedStore>>,
    status: StageStatus,
    /// In the order of [`Signal::ALL`].
    lanes: [Lane; Signal::ALL.len()],
    window: Window,
    under_way: JoinSet<Returned>,
    bytes_under_way: usize,
    saving: Option<JoinHandle<std::io::Result<Position>>>,
    saved: u64,
    save_at: Instant,
    /// The end of the shutdown, once it has begun.
    deadline: Option<Instant>,
    /// After an error, the journal is not read before this.
    read_at: Instant,
    is_degraded: bool,
    told: Told,
}

/// When the less important troubles were last told.
#[derive(Default)]
struct Told {
    rejected: Option<Instant>,
    stuck: Option<Instant>,
    saving: Option<Instant>,
    reading: Option<Instant>,
}

/// Whether something may be told again now.
fn is_due(told: &mut Option<Instant>, now: Instant) -> bool {
    let is_due = told.is_none_or(|told| now.duration_since(told) >= TELL_EVERY);
    if is_due {
        *told = Some(now);
    }
    is_due
}

impl Run {
    /// Loads the position. `None` if the shutdown came first.
    async fn resume(
        forwarder: Forwarder,
        status: StageStatus,
        heartbeat: &Heartbeat,
        shutdown: &CancellationToken,
    ) -> Option<Run> {
        let Forwarder {
            setup,
            mut reader,
            client,
            counters,
        } = forwarder;
        let mut told = None;
        let (position, refused) = loop {
            let (positions, name) = (setup.positions.clone(), setup.name.clone());
            let (directory, limits) = (setup.refused.clone(), setup.options.refused);
            let opening = tokio::task::spawn_blocking(move || {
                let position = match load_position(&positions, &name) {
                    // Sent twice is better than not at all.
                    Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                        tracing::warn!(exporter = name, %error, "the saved position is of no use: everything is sent again");
                        None
                    }
                    other => other?,
                };
                Ok((position, RefusedStore::open(directory, &name, limits)?))
            });
            let opened: Result<std::io::Result<_>, _> = heartbeat.while_waiting(opening).await;
            match opened {
                Ok(Ok(opened)) => break opened,
                Ok(Err(error)) => {
                    status.set_degraded(format!("cannot read its own files (SPANLEDGER_DATA): {error}"));
                    if is_due(&mut told, Instant::now()) {
                        tracing::error!(exporter = setup.name, %error, "cannot read the exporter's position or its refused requests");
                    }
                }
                Err(panic) => rethrow(panic),
            }
            let waiting = async {
                tokio::time::timeout(Duration::from_secs(1), shutdown.cancelled())
                    .await
                    .is_ok()
            };
            if heartbeat.while_waiting(waiting).await {
                return None;
            }
        };
        status.clear();
        let resume = reader.resume(position);
        let next = reader.position().next;
        tracing::info!(exporter = setup.name, endpoint = %client.endpoint(), ?resume, next, "forwarding");
        let now = Instant::now();
        Some(Run {
            lanes: Signal::ALL.map(|_| Lane::new(&setup.options)),
            window: Window::new(next),
            under_way: JoinSet::new(),
            bytes_under_way: 0,
            saving: None,
            saved: next,
            save_at: now,
            deadline: None,
            read_at: now,
            is_degraded: false,
            told: Told::default(),
            refused: Arc::new(Mutex::new(refused)),
            setup,
            reader,
            client,
            counters,
            status,
        })
    }

    /// One turn of the loop: sends what may be sent, then waits for the next thing to happen. False at the end.
    async fn step(&mut self, shutdown: &CancellationToken, heartbeat: &Heartbeat) -> bool {
        let now = Instant::now();
        if let Some(deadline) = self.deadline {
            self.read_the_rest().await;
            self.launch(now);
            // With nothing under way there is nothing more to be had from the backend now.
            if self.under_way.is_empty() || now >= deadline {
                return false;
            }
        } else {
            self.launch(now);
        }
        self.save(now);
        let wake_at = self.wake_at(now);
        let may_read = self.deadline.is_none() && self.has_room() && self.read_at <= now;
        let is_saving = self.saving.is_some();
        let turn = heartbeat.while_waiting(async {
            tokio::select! {
                () = shutdown.cancelled(), if self.deadline.is_none() => Turn::Shutdown,
                Some(returned) = self.under_way.join_next() => Turn::Returned(returned),
                Some(saved) = async { Some(self.saving.as_mut()?.await) }, if is_saving => Turn::Saved(saved),
                read = self.reader.next_batch(self.setup.options.max_request_size, BATCH), if may_read => Turn::Read(read),
                () = sleep_until(wake_at) => Turn::Woken,
            }
        });
        match turn.await {
            Turn::Woken => {}
            Turn::Shutdown => self.begin_shutdown(),
            Turn::Returned(Ok(returned)) => self.returned(returned),
            Turn::Saved(saved) => {
                self.saving = None;
                self.after_saving(saved);
            }
            Turn::Read(Ok(records)) => self.load(records).await,
            Turn::Read(Err(error)) => self.unreadable(&error),
            Turn::Returned(Err(panic)) => rethrow(panic),
        }
        true
    }

    fn wake_at(&self, now: Instant) -> Option<Instant> {
        let lanes = self
            .lanes
            .iter()
            .filter_map(|lane| lane.wake_at(now.into_std()))
            .map(Instant::from_std);
        let saving = (self.saving.is_none() && self.window.position() > self.saved).then_some(self.save_at);
        // What is due already waits for something else: for room among what is under way, or for what is being saved.
        let mine = [saving, self.deadline, Some(self.read_at)].into_iter().flatten();
        lanes.chain(mine).filter(|moment| *moment > now).min()
    }

    /// Whether more may be read: each signal holds a bounded number of bytes, so one that is stuck keeps the others
    /// going for a while, but not for ever.
    fn has_room(&self) -> bool {
        let enough = self.setup.options.max_request_size;
        self.window.len() < MOST_AHEAD && self.lanes.iter().all(|lane| lane.held() < enough)
    }

    // ----- from the journal

    async fn read_the_rest(&mut self) {
        while self.has_room() {
            match self.reader.try_next_batch(self.setup.options.max_request_size, BATCH) {
                Ok(records) if records.is_empty() => return,
                Ok(records) => self.load(records).await,
                Err(error) => return self.unreadable(&error),
            }
        }
    }

    fn unreadable(&mut self, error: &ReadError) {
        let now = Instant::now();
        self.read_at = now + Duration::from_secs(1);
        if error.is_retryable() && is_due(&mut self.told.reading, now) {
            tracing::error!(exporter = self.setup.name, %error, "cannot read the journal");
        }
    }

    async fn load(&mut self, records: Vec<Record>) {
        let limit = self
            .lanes
            .iter()
            .map(|lane| lane.loader.limit())
            .min()
            .unwrap_or(usize::MAX);
        let options = Arc::clone(&self.setup.options);
        let prepare = move |record: Record| (Load::of(&record, &options, limit), record);
        let is_costly = records
            .iter()
            .any(|record| Load::is_costly(record, &self.setup.options, limit));
        let prepared: Vec<_> = if is_costly {
            match tokio::task::spawn_blocking(move || records.into_iter().map(prepare).collect()).await {
                Ok(prepared) => prepared,
                Err(panic) => rethrow(panic),
            }
        } else {
            records.into_iter().map(prepare).collect()
        };
        for (load, record) in prepared {
            let sequence = record.sequence;
            if !self.setup.options.signals.contains(&record.signal) {
                self.counters.skipped.increment(1);
                self.window.add(sequence, 0);
                continue;
            }
            let lane = self.lane(record.signal);
            let pieces = match load {
                Ok(load) => lane.push(load),
                Err(error) => {
                    lane.set_aside(Parcel::as_received(&record), format!("cannot be decompressed: {error}"));
                    1
                }
            };
            self.window.add(sequence, pieces);
        }
        self.window.read_up_to(self.reader.position().next);
    }

    fn lane(&mut self, signal: Signal) -> &mut Lane {
        &mut self.lanes[signal_index(signal)]
    }

    // ----- to the backend

    /// Starts everything that may start, oldest record first.
    fn launch(&mut self, now: Instant) {
        while self.under_way.len() < self.setup.options.max_concurrent_requests.max(1)
            && (self.bytes_under_way < MAX_BYTES_IN_FLIGHT || self.under_way.is_empty())
        {
            let mut order = [0, 1, 2];
            order.sort_by_key(|&index: &usize| self.lanes[index].first_sequence().unwrap_or(u64::MAX));
            let next = order
                .into_iter()
                .find_map(|index| self.lanes[index].next(now.into_std()));
            let Some((parcel, ticket)) = next else { break };
            self.bytes_under_way += parcel.held();
            match parcel.history.refused {
                None => self.send(parcel, ticket),
                Some(_) => self.keep(parcel, ticket),
            }
        }
        self.tell_under_way();
    }

    fn tell_under_way(&self) {
        self.counters.in_flight_requests.set(self.under_way.len() as f64);
        self.counters.in_flight_bytes.set(self.bytes_under_way as f64);
    }

    fn send(&mut self, parcel: Parcel, ticket: Ticket) {
        let (client, counters) = (Arc::clone(&self.client), Arc::clone(&self.counters));
        self.under_way.spawn(async move {
            let (parcel, body) = if parcel.is_costly_to_encode() {
                let encoding = tokio::task::spawn_blocking(move || {
                    let body = parcel.wire_body();
                    (parcel, body)
                });
                encoding.await.unwrap_or_else(|panic| rethrow(panic))
            } else {
                let body = parcel.wire_body();
                (parcel, body)
            };
            let (began, length) = (Instant::now(), body.len());
            let answer = client.send(parcel.signal, parcel.encoding, body).await;
            counters.attempted(answer.verdict, began.elapsed());
            Returned {
                parcel,
                ticket,
                event: Event::Answered(answer, length),
            }
        });
    }

    fn keep(&mut self, parcel: Parcel, ticket: Ticket) {
        let store = Arc::clone(&self.refused);
        self.under_way.spawn_blocking(move || {
            let kept = keep(&store, &parcel);
            Returned {
                parcel,
                ticket,
                event: Event::Kept(kept),
            }
        });
    }

    fn returned(&mut self, returned: Returned) {
        let Returned { parcel, ticket, event } = returned;
        self.bytes_under_way -= parcel.held();
        let now = Instant::now();
        match event {
            Event::Answered(answer, length) => self.answered(now, parcel, ticket, &answer, length),
            Event::Kept(Ok(evicted)) => {
                let reason = parcel.history.refused.as_deref().unwrap_or_default();
                let sequence = parcel.parts.first().map(|part| part.sequence);
                tracing::warn!(
                    exporter = self.setup.name, signal = %parcel.signal, items = parcel.items(), sequence, evicted, reason,
                    "the backend refused a request; it is kept under refused/ (`spanledger refused list`)"
                );
                self.counters.refused(parcel.signal, parcel.items(), evicted);
                self.done(&parcel);
            }
            Event::Kept(Err(error)) => {
                if is_due(&mut self.told.saving, now) {
                    tracing::error!(exporter = self.setup.name, %error, "cannot keep a refused request");
                }
                let signal = parcel.signal;
                self.lane(signal).not_kept(now.into_std(), parcel, fastrand::f64());
            }
        }
        self.tell_status();
    }

    fn answered(&mut self, now: Instant, parcel: Parcel, ticket: Ticket, answer: &Answer, length: usize) {
        let signal = parcel.signal;
        if answer.cure == "tls"
            && let Err(error) = self.client.reload_certificates()
        {
            tracing::warn!(exporter = self.setup.name, %error, "cannot read the certificates anew");
        }
        let (outcome, notice) = self
            .lane(signal)
            .answered(now.into_std(), parcel, ticket, answer, fastrand::f64());
        match outcome {
            Outcome::Delivered(parcel) => {
                let rejected = answer.rejected.min(parcel.items());
                self.counters
                    .delivered(signal, parcel.items() - rejected, length as u64, rejected);
                if (rejected > 0 || !answer.reason.is_empty()) && is_due(&mut self.told.rejected, now) {
                    let reason = &answer.reason;
                    tracing::warn!(exporter = self.setup.name, %signal, rejected, reason, "partial success");
                }
                self.done(&parcel);
            }
            Outcome::Divided(pieces) => {
                tracing::debug!(exporter = self.setup.name, %signal, reason = answer.reason, "a request is sent in parts");
                pieces
                    .into_iter()
                    .for_each(|(sequence, pieces)| self.window.divided(sequence, pieces));
            }
            Outcome::GaveUp(parcel) => {
                self.counters.given_up(signal, parcel.items());
                tracing::error!(
                    exporter = self.setup.name, %signal, items = parcel.items(), reason = answer.reason,
                    "a request is given up after retry_on_failure.max_elapsed_time"
                );
                self.done(&parcel);
            }
            Outcome::Waits => {
                let is_failure = !matches!(answer.verdict, Verdict::Refused | Verdict::TooLarge);
                if is_failure && self.lane(signal).trouble().is_none() && is_due(&mut self.told.stuck, now) {
                    let reason = &answer.reason;
                    tracing::warn!(exporter = self.setup.name, %signal, reason, "a request fails while others are taken");
                }
            }
        }
        if let Some(notice) = notice {
            self.tell(signal, answer, &notice);
        }
    }

    fn done(&mut self, parcel: &Parcel) {
        parcel.parts.iter().for_each(|part| self.window.done(part.sequence));
    }

    // ----- what is told

    fn tell(&self, signal: Signal, answer: &Answer, notice: &Notice) {
        let (exporter, endpoint, reason) = (&self.setup.name, self.client.endpoint(), &answer.reason);
        let check = check(exporter, answer);
        match notice {
            Notice::Began => tracing::warn!(
                exporter, %endpoint, %signal, reason, check, "the backend does not take data: it waits in the journal"
            ),
            Notice::Still(since) => tracing::warn!(
                exporter, %endpoint, %signal, reason, check, seconds = since.as_secs(),
                "the backend still does not take data: it waits in the journal"
            ),
            Notice::Recovered(after) => tracing::info!(
                exporter, %endpoint, %signal, seconds = after.as_secs_f64(), "the backend takes data again"
            ),
        }
    }

    fn tell_status(&mut self) {
        for (signal, lane) in Signal::ALL.into_iter().zip(&self.lanes) {
            let holds = lane.trouble().is_some_and(|answer| answer.verdict == Verdict::Curable);
            self.counters.holding(signal, holds);
        }
        let troubles = Signal::ALL.into_iter().zip(&self.lanes);
        let trouble = troubles
            .filter_map(|(signal, lane)| Some((signal, lane.trouble()?)))
            .next();
        match trouble {
            Some((signal, answer)) => {
                let (endpoint, check) = (self.client.endpoint(), check(&self.setup.name, answer));
                let check = if check.is_empty() {
                    check
                } else {
                    format!("; check {check}")
                };
                self.status
                    .set_degraded(format!("{endpoint} ({signal}): {}{check}", answer.reason));
            }
            None if self.is_degraded => self.status.clear(),
            None => {}
        }
        self.is_degraded = trouble.is_some();
    }

    // ----- the position

    fn save(&mut self, now: Instant) {
        let next = self.window.position();
        if self.saving.is_none() && next > self.saved && now >= self.save_at {
            self.save_at = now + SAVE_EVERY;
            let (directory, name) = (self.setup.positions.clone(), self.setup.name.clone());
            let position = Position {
                next,
                ..self.reader.position()
            };
            let saving = move || save_position(&directory, &name, position).map(|()| position);
            self.saving = Some(tokio::task::spawn_blocking(saving));
        }
    }

    fn after_saving(&mut self, saved: Result<std::io::Result<Position>, tokio::task::JoinError>) {
        match saved {
            Ok(Ok(position)) => {
                self.saved = position.next;
                self.reader.passed(position);
            }
            Ok(Err(error)) => {
                let now = Instant::now();
                self.save_at = now + Duration::from_secs(1);
                if is_due(&mut self.told.saving, now) {
                    tracing::error!(exporter = self.setup.name, %error, "cannot save the exporter's position");
                }
            }
            Err(panic) => rethrow(panic),
        }
    }

    // ----- the end

    fn begin_shutdown(&mut self) {
        let now = Instant::now();
        self.deadline = Some(now + self.setup.shutdown_timeout);
        self.lanes.iter_mut().for_each(|lane| lane.hurry(now.into_std()));
    }

    /// Saves the position a last time. What is still under way is left: the journal has it.
    async fn finish(mut self) {
        self.under_way.abort_all();
        if let Some(saving) = self.saving.take() {
            let saved = saving.await;
            self.after_saving(saved);
        }
        self.save_at = Instant::now();
        self.save(self.save_at);
        if let Some(saving) = self.saving.take() {
            let saved = saving.await;
            self.after_saving(saved);
        }
        let is_complete = self.lanes.iter().all(Lane::is_empty) && self.window.len() == 0 && self.reader.is_caught_up();
        let next = self.saved;
        if is_complete {
            tracing::info!(exporter = self.setup.name, next, "everything is forwarded");
        } else {
            tracing::info!(
                exporter = self.setup.name,
                next,
                "stopped; the rest stays in the journal"
            );
        }
    }
}

fn keep(store: &Mutex<RefusedStore>, parcel: &Parcel) -> std::io::Result<u64> {
    let refused_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let first = parcel.parts.first();
    let refused = Refused {
        signal: parcel.signal,
        encoding: parcel.held_encoding(),
        items: parcel.items(),
        reason: parcel.history.refused.as_deref().unwrap_or_default(),
        refused_at: u64::try_from(refused_at.as_nanos()).unwrap_or(u64::MAX),
        received_at: first.map_or(0, |part| part.received_at),
        sequence: first.map_or(0, |part| part.sequence),
        body: &parcel.joined(),
    };
    store.lock().unwrap_or_else(PoisonError::into_inner).keep(&refused)
}

/// The full name of the key that may cure an answer; empty if none would.
fn check(exporter: &str, answer: &Answer) -> String {
    match answer.cure {
        "" => String::new(),
        key => format!("exporters.{exporter}.{key}"),
    }
}

fn signal_index(signal: Signal) -> usize {
    Signal::ALL
        .iter()
        .position(|other| *other == signal)
        .unwrap_or_default()
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// A panic in a task is a panic of the stage: it must not die silently.
fn rethrow(error: tokio::task::JoinError) -> ! {
    match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(cancelled) => panic!("a task of the exporter was cancelled: {cancelled}"),
    }
}
