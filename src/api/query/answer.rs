//! Answers in the making, and the memory that they may take.
//!
//! # Bounds
//!
//! An answer holds [`ANSWER`] of what it gathers (groups, counts, durations) and as much of text; what would hold more is
//! refused with words about what to narrow, and lists of rows are sent in parts instead. [`AT_ONCE`] answers are made at
//! once. Each has a [`Seat`] while it is made, or a part of it is, and keeps of it what its text takes that is not taken yet.
//! Nothing of the database is held meanwhile.
//!
//! What is there has to be taken at [`LEAST_RATE`]; else text and seat are given up, whatever the connection is doing: over
//! HTTP/2 it may be busy with other answers.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use serde_json::Value;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::listing::Rest;
use super::{QueryError, database, live};
use crate::listen::Body;

/// What an answer may gather, and what its text may take, in bytes.
pub(super) const ANSWER: usize = 8 << 20;

/// Answers that are made at once; as many as there are connections.
pub(super) const AT_ONCE: usize = database::CONNECTIONS as usize;

/// How long a request waits for its seat.
const PATIENCE: Duration = Duration::from_secs(5);

/// Text is kept and sent in pieces of this many bytes, and of one element more.
const PIECE: usize = 64 << 10;

/// Seats are counted in these, in bytes.
const UNIT: usize = 1 << 10;

/// The most memory that the API takes, in bytes: answers, what the connections to the database hold, live streams.
pub fn memory_bound() -> usize {
    AT_ONCE * 2 * ANSWER + database::MEMORY + live::MEMORY
}

/// What an answer may gather. Beyond it, the caller is told what to narrow.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowance {
    pub(super) narrow: &'static str,
}

impl Allowance {
    /// Whether so many bytes may be held.
    pub(super) fn check(self, held: usize) -> Result<(), QueryError> {
        if held > ANSWER {
            return Err(QueryError::TooLarge { narrow: self.narrow });
        }
        Ok(())
    }
}

/// Room for answers; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Seats {
    units: Arc<Semaphore>,
    pub(super) patience: Duration,
    /// [`TAKEN_WITHIN`]
    grace: Duration,
    /// [`LEAST_RATE`]
    least_rate: usize,
}

impl Default for Seats {
    fn default() -> Seats {
        Seats {
            units: Arc::new(Semaphore::new(AT_ONCE * ANSWER / UNIT)),
            patience: PATIENCE,
            grace: TAKEN_WITHIN,
            least_rate: LEAST_RATE,
        }
    }
}

impl Seats {
    /// Room for an answer in the making, in the order of asking.
    pub(super) async fn take(&self) -> Result<Seat, QueryError> {
        self.take_within(self.patience).await
    }

    /// How long so many bytes may be left untaken.
    fn time_for(&self, bytes: usize) -> Duration {
        self.grace + Duration::from_secs((bytes / self.least_rate) as u64)
    }

    async fn take_within(&self, patience: Duration) -> Result<Seat, QueryError> {
        let seat = Arc::clone(&self.units).acquire_many_owned((ANSWER / UNIT) as u32);
        match tokio::time::timeout(patience, seat).await {
            Ok(Ok(seat)) => Ok(Seat(seat)),
            _ => Err(QueryError::Crowded),
        }
    }
}

/// Room for one answer, until it is dropped.
#[derive(Debug)]
pub(super) struct Seat(OwnedSemaphorePermit);

impl Seat {
    /// Leaves to others what an answer of so many bytes does not need.
    fn keep(&mut self, bytes: usize) {
        let unneeded = self.0.num_permits().saturating_sub(bytes.div_ceil(UNIT));
        drop(self.0.split(unneeded));
    }
}

/// Text in pieces.
#[derive(Debug, Default)]
pub(super) struct Text {
    full: VecDeque<Bytes>,
    last: Vec<u8>,
    length: usize,
}

impl Text {
    pub(super) fn len(&self) -> usize {
        self.length
    }

    fn push(&mut self, text: &str) {
        self.write(text.as_bytes());
        self.cut();
    }

    pub(super) fn push_json(&mut self, value: &Value) {
        // Neither values nor memory refuse to be written.
        serde_json::to_writer(&mut *self, value).ok();
        self.cut();
    }

    fn write(&mut self, bytes: &[u8]) {
        self.last.extend_from_slice(bytes);
        self.length += bytes.len();
    }

    fn cut(&mut self) {
        if self.last.len() >= PIECE {
            self.full.push_back(std::mem::take(&mut self.last).into());
        }
    }

    /// The pieces, of which nothing is left here.
    fn take_pieces(&mut self) -> VecDeque<Bytes> {
        let Text { mut full, last, .. } = std::mem::take(self);
        if !last.is_empty() {
            full.push_back(last.into());
        }
        full
    }
}

impl io::Write for Text {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Text::write(self, bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The JSON object that an answer is, as text.
#[derive(Debug)]
pub(super) struct Answer {
    text: Text,
    /// Elements of its list.
    count: usize,
    /// What of its list is still to be asked for.
    rest: Option<Box<Rest>>,
}

impl Answer {
    pub(super) fn one(data: Value) -> Answer {
        let mut answer = Answer::begun("{\"data\":");
        answer.text.push_json(&data);
        answer
    }

    /// A list without elements yet; [`Answer::listed`] ends it.
    pub(super) fn list() -> Answer {
        Answer::begun("{\"data\":[")
    }

    /// A list without elements yet within the data; [`Answer::listed_beside`] ends both.
    pub(super) fn list_within(key: &str) -> Answer {
        Answer::begun(&format!("{{\"data\":{{\"{key}\":["))
    }

    fn begun(beginning: &str) -> Answer {
        let mut text = Text::default();
        text.push(beginning);
        Answer {
            text,
            count: 0,
            rest: None,
        }
    }

    /// One more element.
    pub(super) fn push(&mut self, element: Value) {
        if self.count > 0 {
            self.text.push(",");
        }
        self.count += 1;
        self.text.push_json(&element);
    }

    /// One more element, where there may be too many for one answer.
    pub(super) fn push_within(&mut self, element: Value, allowance: Allowance) -> Result<(), QueryError> {
        self.push(element);
        allowance.check(self.text.len())
    }

    /// The list has no further elements.
    pub(super) fn listed(mut self) -> Answer {
        self.end_list();
        self
    }

    /// Neither has the list, nor the data that it is in but these.
    pub(super) fn listed_beside(mut self, others: &[(&str, Value)]) -> Answer {
        self.text.push("]");
        for (key, value) in others {
            self.add(key, value);
        }
        self.text.push("}");
        self
    }

    /// The same as [`Answer::listed`].
    pub(super) fn end_list(&mut self) {
        self.text.push("]");
        let count = self.count;
        self.add("count", &count.into());
    }

    pub(super) fn with(mut self, key: &str, value: Value) -> Answer {
        self.add(key, &value);
        self
    }

    /// The same as [`Answer::with`].
    pub(super) fn add(&mut self, key: &str, value: &Value) {
        self.text.push(&format!(",\"{key}\":"));
        self.text.push_json(value);
    }

    /// Bytes of text that are not sent yet.
    pub(super) fn len(&self) -> usize {
        self.text.len()
    }

    /// A list of which the first part is there.
    pub(super) fn followed_by(mut self, rest: Rest) -> Answer {
        self.rest = Some(Box::new(rest));
        self
    }

    /// The body, whose text keeps its seat until it is taken.
    pub(super) fn into_body(mut self, seat: Seat, seats: &Seats) -> Body {
        let rest = self.rest.take();
        if rest.is_none() {
            self.text.push(END);
        }
        let length = rest.is_none().then(|| self.text.len());
        let outbox = Arc::new(Outbox::default());
        outbox.put(&mut self.text, seat, rest.is_none());
        let body = Taken {
            outbox: Arc::clone(&outbox),
            left: length,
        };
        tokio::spawn(send(self, rest, seats.clone(), outbox));
        match length {
            Some(_) => Body::ready(body),
            None => Body::stream(body),
        }
    }
}

/// How long a piece of an answer that holds up others may be left untaken.
pub(super) const TAKEN_WITHIN: Duration = Duration::from_secs(30);

/// How much has to be taken in a second, beyond what is taken within [`TAKEN_WITHIN`], in bytes.
const LEAST_RATE: usize = 64 << 10;

/// How every good answer ends.
const END: &str = ",\"success\":true}";

/// Sees to it that an answer is taken, and makes the further parts of a list: each when the one before is taken.
async fn send(mut answer: Answer, mut rest: Option<Box<Rest>>, seats: Seats, outbox: Arc<Outbox>) {
    let _guard = EndsOnPanic(Arc::clone(&outbox));
    loop {
        if !outbox.is_taken(&seats).await {
            return;
        }
        let Some(list) = &mut rest else { return };
        let made = async {
            let seat = seats.take_within(TAKEN_WITHIN).await?;
            Ok((list.next_part(&mut answer).await?, seat))
        };
        // Whoever is gone asks for nothing more.
        let made: Result<_, QueryError> = tokio::select! {
            made = made => made,
            () = outbox.changed.notified() => return,
        };
        match made {
            Ok((is_more, seat)) => {
                if !is_more {
                    answer.text.push(END);
                    rest = None;
                }
                outbox.put(&mut answer.text, seat, !is_more);
            }
            Err(error) => {
                tracing::warn!(reason = %error, "a list of rows could not be sent to its end");
                outbox.give_up();
                return;
            }
        }
    }
}

/// Text that is there to be taken.
#[derive(Default)]
struct Outbox {
    content: Mutex<Content>,
    /// All of it was taken, or nobody will take it any more.
    changed: Notify,
}

#[derive(Default)]
struct Content {
    pieces: VecDeque<Bytes>,
    /// As large as the pieces.
    seat: Option<Seat>,
    /// Bytes of the pieces.
    left: usize,
    /// Whether these are all, once it is known; otherwise there will be no others.
    is_whole: Option<bool>,
    is_abandoned: bool,
    taker: Option<Waker>,
}

impl Content {
    fn next(&mut self) -> Option<Bytes> {
        let piece = self.pieces.pop_front()?;
        self.left -= piece.len();
        if let Some(seat) = &mut self.seat {
            seat.keep(self.left);
        }
        Some(piece)
    }
}

impl Outbox {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Text of which nothing is left there, with its seat.
    fn put(&self, text: &mut Text, mut seat: Seat, is_last: bool) {
        seat.keep(text.len());
        let mut content = self.content();
        content.left = text.len();
        content.pieces = text.take_pieces();
        content.seat = Some(seat);
        content.is_whole = is_last.then_some(true);
        let taker = content.taker.take();
        drop(content);
        if let Some(taker) = taker {
            taker.wake();
        }
    }

    /// Waits until all that is there is taken. Whether it was: who takes it too slowly gets nothing more.
    async fn is_taken(&self, seats: &Seats) -> bool {
        let within = seats.time_for(self.content().left);
        if tokio::time::timeout(within, self.changed.notified()).await.is_err() {
            tracing::debug!("an answer was not taken in time");
            self.give_up();
            return false;
        }
        !self.content().is_abandoned
    }

    /// The answer ends here, which is not its end.
    fn give_up(&self) {
        let mut content = self.content();
        let taker = content.taker.take();
        *content = Content {
            is_whole: Some(false),
            ..Content::default()
        };
        drop(content);
        if let Some(taker) = taker {
            taker.wake();
        }
    }
}

/// Ends the answer when what makes it panics, lest its client wait for ever.
struct EndsOnPanic(Arc<Outbox>);

impl Drop for EndsOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.give_up();
        }
    }
}

/// The body of an answer. It ends with an error, and the connection or the stream with it, when not all of it could be had:
/// nobody shall take a part for the whole.
struct Taken {
    outbox: Arc<Outbox>,
    /// Bytes that are still to come, where it is known.
    left: Option<usize>,
}

impl http_body::Body for Taken {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let taken = &mut *self;
        let mut content = taken.outbox.content();
        if let Some(piece) = content.next() {
            if content.pieces.is_empty() {
                taken.outbox.changed.notify_one();
            }
            taken.left = taken.left.map(|left| left - piece.len());
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        match content.is_whole {
            Some(true) => Poll::Ready(None),
            Some(false) => Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into()))),
            None => {
                content.taker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left
            .map_or_else(SizeHint::default, |left| SizeHint::with_exact(left as u64))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut content = self.outbox.content();
        *content = Content {
            is_abandoned: true,
            ..Content::default()
        };
        self.outbox.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    /// Half of what an answer may be, in a seat.
    async fn large(seats: &Seats) -> Body {
        let mut answer = Answer::list();
        for _ in 0..ANSWER / 2 / PIECE {
            answer.push("x".repeat(PIECE).into());
        }
        answer.listed().into_body(seats.take().await.unwrap(), seats)
    }

    fn free(seats: &Seats) -> usize {
        seats.units.available_permits() * UNIT
    }

    #[tokio::test]
    async fn an_answer_that_nobody_takes_gives_its_room_back_although_nobody_asks_for_it() {
        let seats = Seats {
            grace: Duration::from_millis(1),
            least_rate: usize::MAX,
            ..Seats::default()
        };
        let all = free(&seats);
        let body = large(&seats).await;
        // Resolves when there is room.
        let room = seats.units.acquire_many((all / UNIT) as u32).await;
        assert!(room.is_ok());
        assert!(body.collect().await.is_err(), "it is not whole");
    }

    #[test]
    fn the_longer_an_answer_is_the_longer_it_may_take() {
        let seats = Seats::default();
        assert_eq!(seats.time_for(1000), TAKEN_WITHIN);
        assert_eq!(seats.time_for(ANSWER), TAKEN_WITHIN + Duration::from_secs(128));
    }

    #[tokio::test]
    async fn what_was_taken_is_left_to_others_and_all_of_it_comes() {
        let seats = Seats::default();
        let all = free(&seats);
        let mut body = large(&seats).await;
        let length = http_body::Body::size_hint(&body).exact().unwrap() as usize;
        assert!(all - free(&seats) >= length);
        let mut taken = 0;
        while let Some(frame) = body.frame().await {
            taken += frame.unwrap().into_data().unwrap().len();
            assert!(all - free(&seats) < length - taken + UNIT);
        }
        assert_eq!(taken, length);
        assert_eq!(free(&seats), all);
    }

    #[tokio::test]
    async fn a_body_that_is_dropped_leaves_its_room_at_once() {
        let seats = Seats::default();
        let all = free(&seats);
        drop(large(&seats).await);
        assert_eq!(free(&seats), all);
    }
}
