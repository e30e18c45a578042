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

use bytes::Bytes;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::answer::{Answer, Verdict};
use super::client::Client;
use super::lane::{Lane, Outcome, Ticket};
use super::leaving::{Leaving, Loaded};
use super::parcel::{Load, Parcel};
use super::refused::{Refused, RefusedStore};
use super::report::Report;
use super::window::Window;
use super::{ExporterOptions, ForwardError, MAX_BYTES_IN_FLIGHT, READ_AHEAD, SAVE_EVERY};
use crate::egress::Policy;
use crate::failpoint::{self, Point};
use crate::journal::{JournalId, Position, ReadError, Reader, Record, load_position, save_position};
use crate::otlp::Signal;
use crate::telemetry::{Heartbeat, StageStatus};

/// Records between the position and the last one read. While one request cannot be delivered, so many others may
/// overtake it (and would be sent again after a crash).
const MOST_AHEAD: usize = 65_536;

/// The same while traces wait to be decided: their records, and all that came since, lie in between.
const MOST_AHEAD_WAITING: usize = 262_144;

/// Records read at once.
const BATCH: usize = 1024;

/// The pause after the journal could not be read or the position not be saved.
const AFTER_ERROR: Duration = Duration::from_secs(1);

/// What a [`Forwarder`] is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Setup {
    /// `otlp` or `otlp/<name>`: the key below `exporters`, and the name of the journal reader.
    pub name: String,
    /// The configuration.
    pub options: ExporterOptions,
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
    policy: Arc<Policy>,
}

impl Setup {
    /// Whether a [`Forwarder`] can be made of it. Reads the certificates, connects to nothing.
    pub fn check(&self) -> Result<(), ForwardError> {
        Policy::compile(&self.options.egress)?;
        Client::new(&self.options, &self.journal.to_string()).map(drop)
    }
}

impl Forwarder {
    /// Checks the options and reads the certificates. Connects to nothing.
    pub fn new(setup: Setup, reader: Reader) -> Result<Forwarder, ForwardError> {
        let client = Arc::new(Client::new(&setup.options, &setup.journal.to_string())?);
        let policy = Arc::new(Policy::compile(&setup.options.egress)?);
        Ok(Forwarder {
            setup,
            reader,
            client,
            policy,
        })
    }

    /// The rules for what leaves, with what they counted.
    pub fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy)
    }

    /// Forwards until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken, heartbeat: Heartbeat, status: StageStatus) {
        let mut report = Report::new(self.setup.name.clone(), self.client.endpoint().to_string(), status);
        let opened = open(&self.setup, &mut report, &heartbeat, &shutdown).await;
        if let Some((position, refused)) = opened {
            let mut run = Run::resume(self, position, refused, report);
            while run.step(&shutdown, &heartbeat).await {}
            heartbeat.while_waiting(run.finish()).await;
        }
        heartbeat.finish();
    }
}

/// Loads the position and what is kept, for as long as it takes. `None` if the shutdown came first.
async fn open(
    setup: &Setup,
    report: &mut Report,
    heartbeat: &Heartbeat,
    shutdown: &CancellationToken,
) -> Option<(Option<Position>, RefusedStore)> {
    loop {
        let setup = setup.clone();
        let opening = tokio::task::spawn_blocking(move || {
            let refused = RefusedStore::open(setup.refused, &setup.name, setup.options.refused)?;
            Ok((load_position(&setup.positions, &setup.name), refused))
        });
        let opened: Result<std::io::Result<_>, _> = heartbeat.while_waiting(opening).await;
        let error = match opened.unwrap_or_else(|panic| rethrow(panic)) {
            Ok((Ok(position), refused)) => return Some((position, refused)),
            Ok((Err(error), refused)) if error.kind() == std::io::ErrorKind::InvalidData => {
                report.position_damaged(&error);
                return Some((None, refused));
            }
            Ok((Err(error), _)) | Err(error) => error,
        };
        report.cannot_start(&error);
        let pause = async { tokio::time::timeout(AFTER_ERROR, shutdown.cancelled()).await.is_ok() };
        if heartbeat.while_waiting(pause).await {
            return None;
        }
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
    options: Arc<ExporterOptions>,
    reader: Reader,
    client: Arc<Client>,
    policy: Arc<Policy>,
    /// Lent to a thread while it loads.
    leaving: Leaving,
    refused: Arc<Mutex<RefusedStore>>,
    report: Report,
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
}

impl Run {
    fn resume(forwarder: Forwarder, position: Option<Position>, refused: RefusedStore, mut report: Report) -> Run {
        let Forwarder {
            setup,
            mut reader,
            client,
            policy,
        } = forwarder;
        reader.resume(position);
        let next = reader.position().next;
        report.started(next);
        report.has_rules(&policy);
        let now = Instant::now();
        Run {
            lanes: Signal::ALL.map(|_| Lane::new(&setup.options)),
            window: Window::new(next),
            under_way: JoinSet::new(),
            bytes_under_way: 0,
            saving: None,
            saved: next,
            save_at: now,
            deadline: None,
            read_at: now,
            refused: Arc::new(Mutex::new(refused)),
            options: Arc::new(setup.options.clone()),
            setup,
            reader,
            client,
            leaving: Leaving::new(&policy),
            policy,
            report,
        }
    }

    /// One turn of the loop: sends what may be sent, then waits for the next thing to happen. False at the end.
    async fn step(&mut self, shutdown: &CancellationToken, heartbeat: &Heartbeat) -> bool {
        self.decide().await;
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
                read = self.reader.next_batch(self.options.max_request_size, BATCH), if may_read => Turn::Read(read),
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
        let decision = self
            .leaving
            .due()
            .filter(|_| self.reader.is_caught_up() && self.has_room())
            .map(|due| {
                // At least a moment, so that a clock that is set back is not asked in a circle.
                now + Duration::from_nanos(due.saturating_sub(unix_nanos())).max(Duration::from_millis(1))
            });
        let mine = [saving, self.deadline, Some(self.read_at), decision]
            .into_iter()
            .flatten();
        lanes.chain(mine).filter(|moment| *moment > now).min()
    }

    /// Whether more may be read: enough to fill the next request while one is under way. A signal that is stuck lets
    /// the others go on until what it holds takes all the room.
    fn has_room(&self) -> bool {
        let held: usize = self.lanes.iter().map(Lane::held).sum();
        self.window.len() < self.most_ahead() && held < READ_AHEAD * self.options.max_request_size
    }

    fn most_ahead(&self) -> usize {
        match self.policy.decides_over_traces() {
            true => MOST_AHEAD_WAITING,
            false => MOST_AHEAD,
        }
    }

    // ----- from the journal

    async fn read_the_rest(&mut self) {
        // What is to be decided first makes room for the traces that are read next.
        while self.has_room() && !self.leaving.is_due(None, false) {
            match self.reader.try_next_batch(self.options.max_request_size, BATCH) {
                Ok(records) if records.is_empty() => return,
                Ok(records) => self.load(records).await,
                Err(error) => return self.unreadable(&error),
            }
        }
    }

    fn unreadable(&mut self, error: &ReadError) {
        self.read_at = Instant::now() + AFTER_ERROR;
        self.report.cannot_read(error);
    }

    async fn load(&mut self, records: Vec<Record>) {
        let limit = self
            .lanes
            .iter()
            .map(|lane| lane.loader.limit())
            .min()
            .unwrap_or(usize::MAX);
        let is_costly = records
            .iter()
            .any(|record| Load::is_costly(record, &self.options, &self.policy, limit));
        let loaded = self
            .lend(is_costly, move |leaving, options| {
                let load = |record: Record| (leaving.load(&record, options, limit), record);
                records.into_iter().map(load).collect::<Vec<_>>()
            })
            .await;
        for (loaded, record) in loaded {
            let sequence = record.sequence;
            if !self.options.signals.contains(&record.signal) {
                self.report.skipped();
                self.window.add(sequence, 0);
                continue;
            }
            let lane = self.lane(record.signal);
            let pieces = match loaded {
                Ok(Loaded::Now(load)) => lane.push(load),
                Ok(Loaded::Later(begins)) => usize::from(begins),
                Err(error) => {
                    lane.set_aside(Parcel::as_received(&record), error.to_string());
                    1
                }
            };
            self.window.add(sequence, pieces);
        }
        self.window.read_up_to(self.reader.position().next);
    }

    /// Lets a thread work with what is [`Leaving`], one that serves sockets only if it takes no time.
    async fn lend<T: Send + 'static>(
        &mut self,
        is_costly: bool,
        work: impl FnOnce(&mut Leaving, &ExporterOptions) -> T + Send + 'static,
    ) -> T {
        let options = Arc::clone(&self.options);
        let mut leaving = self.leaving.lend();
        let work = move || {
            let done = work(&mut leaving, &options);
            (leaving, done)
        };
        let (leaving, done) = match is_costly {
            true => tokio::task::spawn_blocking(work)
                .await
                .unwrap_or_else(|panic| rethrow(panic)),
            false => work(),
        };
        self.leaving = leaving;
        self.report.applied(&self.policy, self.leaving.workspace());
        done
    }

    // ----- traces that wait to be decided

    /// Sends on what is decided now: the traces whose time is over, and those for which there is no more room.
    async fn decide(&mut self) {
        if !self.leaving.waits() {
            return;
        }
        let now = self.reader.is_caught_up().then(unix_nanos);
        let is_urgent = self.window.len() >= self.most_ahead();
        while self.leaving.is_due(now, is_urgent) && (is_urgent || self.has_room()) {
            let bytes = self.options.max_request_size;
            let decided = self
                .lend(true, move |leaving, options| {
                    leaving.decide(now, is_urgent, bytes, options)
                })
                .await;
            for (sequence, load) in decided {
                let pieces = match load {
                    Ok(load) => self.lane(Signal::Traces).push(load),
                    Err((parcel, reason)) => {
                        self.lane(Signal::Traces).set_aside(parcel, reason);
                        1
                    }
                };
                match pieces {
                    0 => self.window.done(sequence),
                    pieces => self.window.divided(sequence, pieces),
                }
            }
            if is_urgent {
                break;
            }
        }
    }

    fn lane(&mut self, signal: Signal) -> &mut Lane {
        &mut self.lanes[signal_index(signal)]
    }

    // ----- to the backend

    /// Starts everything that may start, oldest record first.
    fn launch(&mut self, now: Instant) {
        while self.under_way.len() < self.options.max_concurrent_requests.max(1)
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
        self.report.under_way(self.under_way.len(), self.bytes_under_way);
    }

    fn send(&mut self, parcel: Parcel, ticket: Ticket) {
        let (client, counters) = (Arc::clone(&self.client), Arc::clone(self.report.counters()));
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
            let (began, length) = (Instant::now(), body.iter().map(Bytes::len).sum());
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
                self.report.kept(&parcel, evicted);
                self.done(&parcel);
            }
            Event::Kept(Err(error)) => {
                self.report.cannot_keep(&error);
                let signal = parcel.signal;
                self.lane(signal).not_kept(now.into_std(), parcel, fastrand::f64());
            }
        }
        self.report.lanes(&self.lanes);
    }

    fn answered(&mut self, now: Instant, parcel: Parcel, ticket: Ticket, answer: &Answer, length: usize) {
        let signal = parcel.signal;
        if answer.cure == "tls"
            && let Err(error) = self.client.reload_certificates()
        {
            self.report.cannot_reload(&error);
        }
        let (outcome, notice) = self
            .lane(signal)
            .answered(now.into_std(), parcel, ticket, answer, fastrand::f64());
        match outcome {
            Outcome::Delivered(parcel) => {
                self.report.delivered(&parcel, answer, length);
                self.done(&parcel);
            }
            Outcome::Divided(pieces) => {
                pieces
                    .into_iter()
                    .for_each(|(sequence, pieces)| self.window.divided(sequence, pieces));
            }
            Outcome::GaveUp(parcel) => {
                self.report.gave_up(&parcel, answer);
                self.done(&parcel);
            }
            Outcome::Waits => {
                let is_of_request = matches!(answer.verdict, Verdict::Refused | Verdict::TooLarge);
                if !is_of_request && self.lane(signal).trouble().is_none() {
                    self.report.stuck(signal, answer);
                }
            }
        }
        if let Some(notice) = notice {
            self.report.gate(signal, answer, &notice);
        }
    }

    fn done(&mut self, parcel: &Parcel) {
        parcel.parts.iter().for_each(|part| self.window.done(part.sequence));
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
            let saving = move || {
                failpoint::hit(Point::BeforePositionSave);
                save_position(&directory, &name, position)?;
                failpoint::hit(Point::AfterPositionSave);
                Ok(position)
            };
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
                self.save_at = Instant::now() + AFTER_ERROR;
                self.report.cannot_save(&error);
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
        self.report.stopped(self.saved, is_complete);
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

fn unix_nanos() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
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
