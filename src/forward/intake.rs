//! From the journal to what may be sent.
//!
//! # Invariant
//!
//! Memory is bounded, whatever the requests were compressed to: of what was read at once so much is taken in as decodes to
//! about [`ExporterOptions::max_request_size`]; the rest waits, and holds what it decoded to only as far as it may be taken
//! in soon. One request is always taken whole. Bodies that were read from a file share memory with those beside them, and
//! where most of these are not sent, those that are do without it.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::leaving::{Leaving, Loaded, Sent};
use super::load::{Load, LoadError};
use super::{ExporterOptions, READ_AHEAD, rethrow};
use crate::clock::unix_nanos;
use crate::egress::{Policy, Workspace};
use crate::journal::{Position, ReadError, Reader, Record};
use crate::otlp::Encoding;

/// Records read at once.
const BATCH: usize = 1024;

/// Bytes read at once at most: little enough to be in the processor's cache still when they are sent.
const BATCH_BYTES: usize = 1 << 20;

/// How little of what was read is little: so many times as much as what is sent may be held for it.
pub(super) const LITTLE: usize = 2;

/// Bytes over which that is looked at: what came before them counts for half.
const SHARE_OF: usize = 16 << 20;

/// A record that was taken in.
pub(super) struct Taken {
    pub(super) record: Record,
    pub(super) loaded: Result<Loaded, LoadError>,
}

/// The reading end of one exporter.
pub(super) struct Intake {
    options: Arc<ExporterOptions>,
    policy: Arc<Policy>,
    reader: Reader,
    /// Read, and not taken in yet.
    waiting: VecDeque<Record>,
    /// Lent to a thread while it works.
    leaving: Leaving,
    share: Share,
}

/// How much of what was read of late is sent.
#[derive(Debug, Default)]
struct Share {
    read: usize,
    sent: usize,
}

impl Share {
    /// Notes a body of `read` bytes of which `sent` are held to be sent. Whether that is little of what is read.
    fn is_little(&mut self, read: usize, sent: usize) -> bool {
        self.read += read;
        self.sent += sent;
        if self.read > SHARE_OF {
            self.read /= 2;
            self.sent /= 2;
        }
        self.sent < self.read / LITTLE
    }
}

impl Intake {
    /// `reader` stands where it is to begin.
    pub(super) fn new(options: Arc<ExporterOptions>, policy: Arc<Policy>, reader: Reader) -> Intake {
        Intake {
            leaving: Leaving::new(&policy),
            options,
            policy,
            reader,
            waiting: VecDeque::new(),
            share: Share::default(),
        }
    }

    /// Behind the last record that was taken in.
    pub(super) fn position(&self) -> Position {
        let mut position = self.reader.position();
        if let Some(next) = self.waiting.front() {
            position.next = next.sequence;
        }
        position
    }

    /// See [`Reader::passed`].
    pub(super) fn passed(&self, position: Position) {
        self.reader.passed(position);
    }

    /// Whether everything that is in the journal now was taken in.
    pub(super) fn is_caught_up(&self) -> bool {
        self.waiting.is_empty() && self.reader.is_caught_up()
    }

    /// Something was read and not taken in.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// What waits is not taken in soon: it does without the memory for its decoded bodies.
    pub(super) fn wait_compressed(&mut self) {
        self.waiting.iter_mut().for_each(Record::forget_decoded);
    }

    /// Waits for records and reads some. Dropping the future loses nothing.
    pub(super) async fn read(&mut self) -> Result<(), ReadError> {
        let records = self.reader.next_batch(self.most_at_once(), BATCH).await?;
        self.wait(records);
        Ok(())
    }

    /// Reads some if there are any.
    pub(super) fn try_read(&mut self) -> Result<(), ReadError> {
        let records = self.reader.try_next_batch(self.most_at_once(), BATCH)?;
        self.wait(records);
        Ok(())
    }

    fn most_at_once(&self) -> usize {
        self.options.max_request_size.min(BATCH_BYTES)
    }

    /// The receiver's copies of decoded bodies are not this exporter's to hold: more than there is room for among what may be
    /// sent would be there for nothing.
    fn wait(&mut self, records: Vec<Record>) {
        let most = READ_AHEAD * self.options.max_request_size;
        let mut held = 0;
        self.waiting.extend(records.into_iter().map(|mut record| {
            let decoded = match record.encoding {
                Encoding::Identity => 0,
                _ => record.decoded().map_or(0, Bytes::len),
            };
            if held > 0 && held + decoded > most {
                record.forget_decoded();
            } else {
                held += decoded;
            }
            record
        }));
    }

    /// Takes in some of what waits. Requests over `limit` before compression are cut.
    pub(super) async fn take(&mut self, limit: usize) -> Vec<Taken> {
        let is_costly = self
            .waiting
            .iter()
            .any(|record| Load::is_costly(record, &self.options, &self.policy, limit));
        let waiting = std::mem::take(&mut self.waiting);
        let (waiting, mut taken) = self
            .lend(is_costly, move |leaving, options| {
                let mut waiting = waiting;
                let taken = take(leaving, options, &mut waiting, limit);
                (waiting, taken)
            })
            .await;
        self.waiting = waiting;
        for Taken { record, loaded } in &mut taken {
            let mut load = match loaded {
                Ok(Loaded::Now(load)) => Some(load),
                Ok(Loaded::NotSent) => None,
                // They hold pieces of it, or a copy.
                Ok(Loaded::Later { .. }) | Err(_) => continue,
            };
            let sent = load.as_ref().map_or(0, |load| load.held());
            if self.share.is_little(record.body.len(), sent)
                && let Some(load) = &mut load
            {
                load.share_nothing();
            }
        }
        taken
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
        done
    }

    /// What the rules counted.
    pub(super) fn workspace(&mut self) -> &mut Workspace {
        self.leaving.workspace()
    }

    // ----- traces that wait to be decided

    /// Traces wait to be decided.
    pub(super) fn has_undecided(&self) -> bool {
        self.leaving.waits()
    }

    /// In how many nanoseconds the next of them are due, if nothing comes before.
    pub(super) fn due_in(&self) -> Option<u64> {
        let due = self.leaving.due().filter(|_| self.is_caught_up())?;
        Some(due.saturating_sub(unix_nanos()))
    }

    /// Whether [`Intake::decide`] has some to decide.
    pub(super) fn is_due(&self, is_urgent: bool) -> bool {
        self.leaving.is_due(self.now(), is_urgent)
    }

    /// Whether that is so by the records that were seen alone, whatever the time is.
    pub(super) fn is_overdue(&self) -> bool {
        self.leaving.is_due(None, false)
    }

    /// Decides over some of them; over the oldest in any case if `is_urgent`.
    pub(super) async fn decide(&mut self, is_urgent: bool) -> Vec<Sent> {
        let (now, bytes) = (self.now(), self.options.max_request_size);
        self.lend(true, move |leaving, options| {
            leaving.decide(now, is_urgent, bytes, options)
        })
        .await
    }

    /// The time, if everything that was received before it was taken in.
    fn now(&self) -> Option<u64> {
        self.is_caught_up().then(unix_nanos)
    }
}

/// Takes in as many of `waiting` as decode to no more than a request, or one.
fn take(leaving: &mut Leaving, options: &ExporterOptions, waiting: &mut VecDeque<Record>, limit: usize) -> Vec<Taken> {
    let mut taken = Vec::new();
    let mut bytes = 0;
    while bytes < options.max_request_size
        && let Some(record) = waiting.pop_front()
    {
        let loaded = leaving.load(&record, options, limit);
        bytes += match &loaded {
            Ok(Loaded::Now(load)) => load.held(),
            Ok(Loaded::Later { bytes, .. }) => *bytes,
            Ok(Loaded::NotSent) => 0,
            Err(_) => record.body.len(),
        };
        taken.push(Taken { record, loaded });
    }
    taken
}
