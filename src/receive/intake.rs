//! The one way into the journal: what happens to a request between its last byte and its answer.
//!
//! 1. A trace request whose digest is known is answered as the first one was. This comes before any decoding, because
//!    a re-sent request was decoded already.
//! 2. The body is decompressed and, if JSON, transcoded; both within the size limit.
//! 3. The protobuf is checked once. Spans with invalid ids are cut out; anything else that is wrong refuses all of it.
//! 4. It is appended to the journal on this very thread, and the answer waits for the sync.
//!
//! Steps 1 to 4 up to the sync are one synchronous function, so that a sender that goes away can not leave half of it. Small
//! requests are taken in the order in which their bodies were whole, and let what reads the journal have its turns (see
//! [`Turnstile`]).
//!
//! # Large requests
//!
//! A small request takes microseconds, less than handing it to another thread would. One that may take milliseconds
//! (see [`is_heavy`]) runs on the blocking pool, at most one per core at a time and in turn between peers, so that the
//! others' requests, health checks and scrapes are not kept waiting. A small compressed body may be a large one in
//! disguise: it is decompressed in place up to [`INLINE_INFLATED`], and handed over if that does not suffice.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use http::header::GetAll;
use tokio::sync::Semaphore;
use tokio::time::MissedTickBehavior;

use super::admission::{Admission, Reservation};
use super::collect::SizeLimit;
use super::meters::{Meters, Protocol, Unanswered};
use super::refusal::{Reason, Refusal};
use super::turnstile::Turnstile;
use crate::clock::unix_nanos;
use crate::journal::{Appended, Digest, Entry, Journal};
use crate::listen::Peer;
use crate::otlp::{DecodeError, Encoding, NotedSpans, Signal, TraceRequest, decompress_into, json, opaque, room_for};
use crate::rules::telling::Telling;

/// JSON and compressed bodies from this size on, and plain ones from [`HEAVY_PLAIN`] on, leave the receiving thread.
const HEAVY_ENCODED: usize = 256 * 1024;

/// See [`HEAVY_ENCODED`].
const HEAVY_PLAIN: usize = 4 * 1024 * 1024;

/// What is decompressed on the receiving thread at most.
const INLINE_INFLATED: usize = 2 * 1024 * 1024;

/// How long memory for bodies is kept without need, or twice as long.
const GIVE_UP_EVERY: Duration = Duration::from_secs(5);

/// Takes requests into the journal. Cheap to clone.
#[derive(Clone)]
pub struct Intake {
    shared: Arc<Shared>,
}

struct Shared {
    journal: Journal,
    /// Our own id as it stands in `spanledger-hop`.
    hop: String,
    admission: Arc<Admission>,
    turnstile: Turnstile,
    heavy: Arc<Semaphore>,
    meters: Meters,
}

/// A request as it arrived, whole.
pub(super) struct Received {
    pub(super) signal: Signal,
    pub(super) protocol: Protocol,
    pub(super) encoding: Encoding,
    pub(super) body: Bytes,
    pub(super) limit: SizeLimit,
    /// The room that `body` takes.
    pub(super) room: Reservation,
}

/// What the sender is told of a request that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Taken {
    /// Spans that were cut out because of their ids.
    pub(super) rejected: u32,
}

/// How far [`Shared::store`] came.
enum Stored {
    /// Nothing in it is worth keeping: an empty request, or one of which every span is rejected.
    Nothing { rejected: u32 },
    Appended {
        appended: Appended,
        items: u32,
        /// From here on: the sender may go away while this is under way on another thread.
        unanswered: Unanswered,
    },
}

enum Stop {
    Refused(Refusal),
    /// More work than the receiving thread should do, or more memory than it may have beside the others.
    Heavy,
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Stop {
        Stop::Refused(refusal)
    }
}

impl Intake {
    /// An intake for `journal` that holds at most `max_in_flight_bytes` of requests in memory.
    pub fn new(journal: Journal, max_in_flight_bytes: usize) -> Intake {
        let meters = Meters::new();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let shared = Shared {
            hop: journal.id().to_string(),
            journal,
            admission: Admission::new(max_in_flight_bytes, meters.in_flight_bytes.clone()),
            turnstile: Turnstile::new(cores),
            heavy: Arc::new(Semaphore::new(cores)),
            meters,
        };
        Intake {
            shared: Arc::new(shared),
        }
    }

    /// Gives memory for bodies, here and in the journal, that is not needed any more back to the system. Does not end.
    pub(super) async fn give_up_unneeded(&self) {
        let mut ticks = tokio::time::interval(GIVE_UP_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.shared.admission.buffers().give_up_unneeded();
            self.shared.journal.give_up_unneeded();
        }
    }

    pub(super) fn meters(&self) -> &Meters {
        &self.shared.meters
    }

    /// Room for the bytes of one request of this peer.
    pub(super) fn room(&self, peer: Peer) -> Reservation {
        self.shared.admission.begin(peer)
    }

    /// Refuses a request that this very process has forwarded. `hops`: values of `spanledger-hop`.
    pub(super) fn check_hops(&self, hops: &GetAll<'_, HeaderValue>) -> Result<(), Refusal> {
        let is_ours = |hop: &[u8]| hop.trim_ascii().eq_ignore_ascii_case(self.shared.hop.as_bytes());
        if hops
            .iter()
            .any(|hops| hops.as_bytes().split(|&byte| byte == b',').any(is_ours))
        {
            return Err(Refusal::new(
                Reason::Loop,
                "this request was forwarded by this very process: an exporter leads back to one of its own listeners",
            ));
        }
        Ok(())
    }

    /// Whether requests can be taken now, for the gRPC health service.
    pub(super) fn is_serving(&self) -> bool {
        self.shared.journal.is_writable().is_ok()
    }

    /// Takes a request; when this returns success it is durable.
    pub(super) async fn take(&self, received: Received) -> Result<Taken, Refusal> {
        let (protocol, signal, bytes) = (received.protocol, received.signal, received.body.len());
        let meters = self.shared.meters.of(protocol, signal);
        // What the request holds of the memory that is admitted it holds until it is on the disk.
        let (stored, _room) = self.store(received).await.map_err(|refusal| refusal.of_body(bytes))?;
        let (appended, items, unanswered) = match stored {
            Stored::Nothing { rejected } => {
                meters.accepted(0, rejected, bytes);
                return Ok(Taken { rejected });
            }
            Stored::Appended {
                appended,
                items,
                unanswered,
            } => (appended, items, unanswered),
        };
        let Appended {
            duplicate,
            rejected,
            durable,
            ..
        } = appended;
        let synced = durable.await;
        unanswered.answered();
        synced.map_err(|error| Refusal::from(error).of_body(bytes))?;
        if duplicate {
            meters.duplicate(bytes);
        } else {
            meters.accepted(items, rejected, bytes);
        }
        Ok(Taken { rejected })
    }

    async fn store(&self, mut received: Received) -> Result<(Stored, Reservation), Refusal> {
        if received.body.is_empty() {
            return Ok((Stored::Nothing { rejected: 0 }, received.room));
        }
        if !is_heavy(&received) {
            let stored = self
                .shared
                .turnstile
                .pass(|| self.shared.store(&mut received, INLINE_INFLATED));
            match stored.await {
                Ok(stored) => return Ok((stored, received.room)),
                Err(Stop::Refused(refusal)) => return Err(refusal),
                Err(Stop::Heavy) => {}
            }
        }
        // At first only what the request may hold beside the others is decompressed; one that becomes larger waits for its
        // turn to go alone, so that no more than one at a time does.
        let shareable = received.room.shareable().max(INLINE_INFLATED + 1);
        let (stored, mut received) = self.work(received, shareable).await?;
        let stored = match stored {
            Err(Stop::Heavy) => {
                received.room.wait_alone().await?;
                let (stored, again) = self.work(received, usize::MAX).await?;
                received = again;
                stored
            }
            settled => settled,
        };
        match stored {
            Ok(stored) => Ok((stored, received.room)),
            Err(Stop::Refused(refusal)) => Err(refusal),
            Err(Stop::Heavy) => Err(defect()),
        }
    }

    /// Stores a request on the blocking pool.
    async fn work(&self, mut received: Received, inflated: usize) -> Result<(Result<Stored, Stop>, Received), Refusal> {
        // First in the peer's own queue and then in that of all, so that thousands of requests of one peer do not stand
        // before another's only one. A turn ends with the work, also when the sender is gone by then. The semaphores are
        // never closed.
        let of_peer = received.room.peer().turns().clone().acquire_owned().await.ok();
        let of_all = self.shared.heavy.clone().acquire_owned().await.ok();
        let shared = self.shared.clone();
        let work = move || {
            let stored = shared.store(&mut received, inflated);
            drop((of_peer, of_all));
            (stored, received)
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| defect())
    }
}

fn defect() -> Refusal {
    Refusal::new(Reason::Internal, "a defect of spanledger; see its log")
}

fn is_heavy(received: &Received) -> bool {
    let plain = received.encoding == Encoding::Identity && received.protocol != Protocol::HttpJson;
    received.body.len() >= if plain { HEAVY_PLAIN } else { HEAVY_ENCODED }
}

impl Shared {
    /// Everything up to the sync. `inflated` bounds the work of decompression.
    fn store(&self, received: &mut Received, inflated: usize) -> Result<Stored, Stop> {
        let Received { signal, encoding, .. } = *received;
        let received_at = unix_nanos();
        let digest = (signal == Signal::Traces).then(|| self.journal.digest(signal, encoding, &received.body));
        if let Some(digest) = &digest
            && let Some(appended) = self.journal.duplicate_of(digest, received_at)
        {
            return Ok(self.appended(received, appended, 0));
        }
        let plain = self.decode(received, inflated)?;
        let checked = match signal {
            Signal::Traces => {
                let checked = TraceRequest::parse_noting(plain.clone(), &mut Telling::default());
                let checked = checked.map_err(Refusal::malformed)?;
                Checked {
                    items: checked.spans,
                    rejected: checked.rejected,
                    bytes: checked.request.bytes().clone(),
                    noted: checked.noted,
                }
            }
            Signal::Metrics => Checked::whole(opaque::check_metrics(&plain).map_err(Refusal::malformed)?, &plain),
            Signal::Logs => Checked::whole(opaque::check_logs(&plain).map_err(Refusal::malformed)?, &plain),
        };
        if checked.items == 0 {
            return Ok(Stored::Nothing {
                rejected: checked.rejected,
            });
        }
        let entry = self.entry(received, digest, received_at, checked);
        let items = entry.items;
        let appended = self.journal.append(entry).map_err(Refusal::from)?;
        Ok(self.appended(received, appended, items))
    }

    fn appended(&self, received: &Received, appended: Appended, items: u32) -> Stored {
        let unanswered = self.meters.of(received.protocol, received.signal).unanswered();
        Stored::Appended {
            appended,
            items,
            unanswered,
        }
    }

    /// The request as protobuf, neither compressed nor JSON.
    fn decode(&self, received: &mut Received, inflated: usize) -> Result<Bytes, Stop> {
        let Received {
            signal,
            protocol,
            encoding,
            limit,
            ref body,
            ref mut room,
        } = *received;
        let mut plain = body.clone();
        if encoding != Encoding::Identity {
            let most = limit.bytes.min(inflated);
            let mut decoded = room.buffers().take(room_for(body, most));
            decompress_into(encoding, body, most, &mut decoded).map_err(|error| match error {
                DecodeError::TooLarge { .. } if inflated < limit.bytes => Stop::Heavy,
                DecodeError::TooLarge { .. } => limit.exceeded().into(),
                broken => Stop::from(Refusal::malformed(broken)),
            })?;
            plain = decoded.freeze();
        }
        if protocol == Protocol::HttpJson {
            if plain.len() >= HEAVY_ENCODED && inflated == INLINE_INFLATED {
                return Err(Stop::Heavy);
            }
            plain = json::transcode(signal, &plain).map_err(Refusal::malformed)?;
        }
        if protocol == Protocol::HttpJson || encoding != Encoding::Identity {
            let must_go_alone = plain.len() > room.shareable();
            room.grow(plain.len()).map_err(|no_room| match must_go_alone {
                true => Stop::Heavy,
                false => Refusal::from(no_room).into(),
            })?;
        }
        Ok(plain)
    }

    /// The journal keeps the body as it was received, unless it was JSON or a part of it was rejected.
    fn entry(&self, received: &Received, digest: Option<Digest>, received_at: u64, checked: Checked) -> Entry {
        let as_received = received.protocol != Protocol::HttpJson && checked.rejected == 0;
        let (encoding, body) = if as_received {
            (received.encoding, received.body.clone())
        } else {
            (Encoding::Identity, checked.bytes.clone())
        };
        Entry {
            signal: received.signal,
            encoding,
            received_at,
            items: checked.items,
            rejected: checked.rejected,
            digest,
            body,
            decoded: checked.bytes,
            noted: checked.noted,
        }
    }
}

/// A request that passed its check.
struct Checked {
    items: u32,
    rejected: u32,
    /// The protobuf without what was rejected.
    bytes: Bytes,
    /// Spans that may tell something of an execution.
    noted: Option<NotedSpans>,
}

impl Checked {
    fn whole(items: u32, bytes: &Bytes) -> Checked {
        Checked {
            items,
            rejected: 0,
            bytes: bytes.clone(),
            noted: None,
        }
    }
}
