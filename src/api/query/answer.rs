//! Answers in the making, and the memory that they may take.
//!
//! # Bounds
//!
//! An answer holds [`ANSWER`] of what it gathers (groups, counts, durations) and as much of text; what would hold more is
//! refused with words about what to narrow, and lists of rows are sent in parts instead. [`AT_ONCE`] answers are made at
//! once. Each has a [`Seat`], which it keeps until its text is sent, as large as the text: those who take small answers
//! slowly keep nobody waiting.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::listing::Rest;
use super::{QueryError, database, live};
use crate::listen::{Body, BoxError};

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
}

impl Default for Seats {
    fn default() -> Seats {
        Seats {
            units: Arc::new(Semaphore::new(AT_ONCE * ANSWER / UNIT)),
            patience: PATIENCE,
        }
    }
}

impl Seats {
    /// Room for an answer in the making, in the order of asking.
    pub(super) async fn take(&self) -> Result<Seat, QueryError> {
        let seat = Arc::clone(&self.units).acquire_many_owned((ANSWER / UNIT) as u32);
        match tokio::time::timeout(self.patience, seat).await {
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

    /// The body, whose text keeps its seat until it is sent.
    pub(super) fn into_body(mut self, mut seat: Seat) -> Body {
        if let Some(rest) = self.rest.take() {
            let (sender, parts) = mpsc::channel(1);
            tokio::spawn(send_parts(self, rest, sender, seat));
            return Body::stream(Parts { parts, is_whole: false });
        }
        self.text.push(END);
        seat.keep(self.text.len());
        Body::ready(Made {
            left: self.text.len(),
            pieces: self.text.take_pieces(),
            _seat: seat,
        })
    }
}

/// How long a piece of an answer that holds up others may be left untaken.
pub(super) const TAKEN_WITHIN: Duration = Duration::from_secs(30);

/// How every good answer ends.
const END: &str = ",\"success\":true}";

/// What [`Parts`] is sent: text, and at the end [`Part::End`].
enum Part {
    Text(Bytes),
    End,
}

/// Sends a list part by part: the next one is asked for when the one before is taken.
async fn send_parts(mut answer: Answer, mut rest: Box<Rest>, sender: mpsc::Sender<Part>, _seat: Seat) {
    let send = async |part| sender.send_timeout(part, TAKEN_WITHIN).await.ok();
    let mut is_more = true;
    loop {
        if !is_more {
            answer.text.push(END);
        }
        for piece in answer.text.take_pieces() {
            if send(Part::Text(piece)).await.is_none() {
                return;
            }
        }
        if !is_more {
            send(Part::End).await;
            return;
        }
        // Whoever is gone asks for nothing more.
        let next = tokio::select! {
            next = rest.next_part(&mut answer) => next,
            () = sender.closed() => return,
        };
        match next {
            Ok(more) => is_more = more,
            Err(error) => {
                tracing::warn!(reason = %error, "a list of rows could not be sent to its end");
                return;
            }
        }
    }
}

/// Text that is there.
struct Made {
    pieces: VecDeque<Bytes>,
    left: usize,
    _seat: Seat,
}

impl http_body::Body for Made {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let piece = self.pieces.pop_front();
        self.left -= piece.as_ref().map_or(0, Bytes::len);
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left as u64)
    }
}

/// Text of which there is more than may be held. It ends with an error, and the connection with it, when not all of it
/// could be had: nobody shall take a part for the whole.
struct Parts {
    parts: mpsc::Receiver<Part>,
    is_whole: bool,
}

impl http_body::Body for Parts {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.parts.poll_recv(context).map(|part| match part {
            Some(Part::Text(text)) => Some(Ok(Frame::data(text))),
            Some(Part::End) => {
                self.is_whole = true;
                None
            }
            None if self.is_whole => None,
            None => Some(Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())),
        })
    }
}
