//! Requests of HTTP/1.1 whose head cannot be read: garbage, contradictory lengths, far too much of it.
//!
//! hyper answers these by itself, with a status and without a body, and never asks the service. But a refusal says what is
//! wrong in the form of the listener's protocol. So the stream puts a body into what hyper writes while the service owes
//! no answer, and takes what the peer is still sending: closing with unread bytes would have the system send a reset,
//! which makes the peer lose the answer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection::Activity;
use super::{Body, NotAdmitted, Refuse};

/// So much of the fields of a head is remembered for the answer; those that say in which form it is wanted stand among the
/// first.
const REMEMBERED: usize = 2048;

/// So often a peer's bytes are looked at that come while it is refused, whatever it sends.
const HURRIED_READS: usize = 32;

/// So much of what a peer sends after its unreadable head is taken and thrown away.
const DISCARD: usize = 1024 * 1024;

/// A stream below hyper that answers unreadable heads.
pub(super) struct Outspoken<T> {
    stream: T,
    activity: Arc<Activity>,
    refuse: Refuse,
    /// The beginning of the last head, readable or not, from the end of the request line on.
    head: Vec<u8>,
    /// The next bytes begin another head.
    is_head_over: bool,
    refusal: Option<Refusal>,
}

/// An answer that is sent in the place of hyper's.
struct Refusal {
    unsent: Bytes,
    is_shut_down: bool,
    discarded: usize,
}

impl<T> Outspoken<T> {
    pub(super) fn new(stream: T, activity: Arc<Activity>, refuse: Refuse) -> Outspoken<T> {
        Outspoken {
            stream,
            activity,
            refuse,
            head: Vec::new(),
            is_head_over: false,
            refusal: None,
        }
    }

    fn remember(&mut self, bytes: &[u8]) {
        if self.activity.owes_answer() || self.activity.is_http2() {
            return;
        }
        if std::mem::take(&mut self.is_head_over) {
            self.head.clear();
        }
        let bytes = if self.head.is_empty() {
            let request_line = bytes.iter().position(|&byte| byte == b'\n');
            &bytes[request_line.unwrap_or(bytes.len())..]
        } else {
            bytes
        };
        let room = REMEMBERED - self.head.len();
        self.head.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Outspoken<T> {
    /// The answer to be sent instead of these bytes, if hyper speaks for itself in them.
    fn instead_of(&mut self, written: &[u8], context: &mut Context<'_>) -> Option<Refusal> {
        if self.activity.owes_answer() {
            return None;
        }
        let (head, status) = own_answer(written)?;
        self.remember_what_is_there(context);
        let answer = (self.refuse)(&fields(&self.head), &NotAdmitted::Unreadable { status });
        Some(Refusal {
            unsent: with_body_of(head, answer),
            is_shut_down: false,
            discarded: 0,
        })
    }

    /// hyper may be through with a head that it has seen the beginning of.
    fn remember_what_is_there(&mut self, context: &mut Context<'_>) {
        let mut scratch = [0; REMEMBERED];
        for _ in 0..HURRIED_READS {
            let mut scratch = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.stream).poll_read(context, &mut scratch) {
                Poll::Ready(Ok(())) if !scratch.filled().is_empty() => self.remember(scratch.filled()),
                _ => break,
            }
        }
    }

    /// Writes the refusal; hyper is told that its own bytes are written.
    fn poll_refusal(&mut self, context: &mut Context<'_>, of_hyper: usize) -> Poll<io::Result<usize>> {
        if let Some(refusal) = &mut self.refusal {
            while refusal.unsent.has_remaining() {
                let written = ready!(Pin::new(&mut self.stream).poll_write(context, &refusal.unsent))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                refusal.unsent.advance(written);
            }
        }
        Poll::Ready(Ok(of_hyper))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Outspoken<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if polled.is_ready() {
            self.remember(&buffer.filled()[before..]);
        }
        polled
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Outspoken<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.refusal.is_none() {
            self.refusal = self.instead_of(bytes, context);
        }
        match self.refusal {
            Some(_) => self.poll_refusal(context, bytes.len()),
            None => Pin::new(&mut self.stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.refusal.is_none() {
            let first = slices.iter().find(|slice| !slice.is_empty());
            self.refusal = first.and_then(|slice| self.instead_of(slice, context));
        }
        match self.refusal {
            Some(_) => self.poll_refusal(context, slices.iter().map(|slice| slice.len()).sum()),
            None => Pin::new(&mut self.stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        self.activity.flushed();
        self.is_head_over = !self.activity.owes_answer();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let Some(refusal) = &mut this.refusal else {
            return Pin::new(&mut this.stream).poll_shutdown(context);
        };
        if !refusal.is_shut_down {
            ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
            refusal.is_shut_down = true;
        }
        // How long this may take is for the time-out of heads to say: no request was begun since this one's first byte.
        let mut scratch = [0; 4096];
        while refusal.discarded < DISCARD && !this.activity.close.is_cancelled() {
            let mut scratch = ReadBuf::new(&mut scratch);
            ready!(Pin::new(&mut this.stream).poll_read(context, &mut scratch))?;
            match scratch.filled().len() {
                0 => break,
                read => refusal.discarded += read,
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// What hyper writes by itself: a head of a refusal that announces no body.
fn own_answer(written: &[u8]) -> Option<(&str, StatusCode)> {
    let text = std::str::from_utf8(written).ok()?;
    let head = text.strip_suffix("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let is_refusal = StatusCode::is_client_error(&status) || status.is_server_error();
    is_refusal.then_some((head, status))
}

/// hyper's head with the fields and the body of `answer`.
fn with_body_of(head: &str, answer: Response<Body>) -> Bytes {
    let (answered, body) = answer.into_parts();
    let body = body.into_bytes();
    let mut bytes = Vec::with_capacity(head.len() + body.len() + 256);
    let lines = head.split("\r\n");
    for line in lines.filter(|line| !line.to_ascii_lowercase().starts_with("content-length:")) {
        bytes.extend_from_slice(line.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    for (name, value) in &answered.headers {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
    bytes.extend_from_slice(&body);
    Bytes::from(bytes)
}

/// The fields that can be made out in the lines of a head that may be anything.
fn fields(head: &[u8]) -> HeaderMap {
    let mut fields = HeaderMap::new();
    let lines = head.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii);
    let lines = lines.skip_while(|line| line.is_empty());
    for line in lines.take_while(|line| !line.is_empty()) {
        let Some(colon) = line.iter().position(|&byte| byte == b':') else {
            continue;
        };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        // Of the others none has a say in the answer.
        if let (Ok(name @ (header::CONTENT_TYPE | header::ACCEPT | header::ORIGIN)), Ok(value)) = (name, value) {
            fields.append(name, value);
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_made_out_in_any_head() {
        for (head, expected) in [
            ("\nContent-Type: application/json\r\n\r\n", Some("application/json")),
            ("\ncontent-type:a\nx", Some("a")),
            (
                "\r\n : b\r\n\x01: c\r\ncontent-type: \x01\r\ncontent-type: d",
                Some("d"),
            ),
            ("\n\r\nPOST / HTTP/1.1\r\ncontent-type: a", Some("a")),
            ("\nhost: a\r\n\r\ncontent-type: of the body", None),
            ("", None),
        ] {
            let fields = fields(head.as_bytes());
            let found = fields.get(header::CONTENT_TYPE).map(|it| it.to_str().unwrap());
            assert_eq!(found, expected, "{head:?}");
        }
    }

    #[test]
    fn only_heads_of_refusals_are_taken_for_an_answer_of_hyper() {
        let own = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(own_answer(own.as_bytes()).unwrap().1, StatusCode::BAD_REQUEST);
        for other in [
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}",
            "\0\0\0\x04\0\0\0\0\0",
            "",
        ] {
            assert_eq!(own_answer(other.as_bytes()), None, "{other:?}");
        }
    }

    #[test]
    fn the_answer_has_one_length_the_status_of_hyper_and_the_fields_of_the_protocol() {
        let mut answer = Response::new(Body::from("{}"));
        let json = HeaderValue::from_static("application/json");
        answer.headers_mut().insert(header::CONTENT_TYPE, json);
        let sent = with_body_of("HTTP/1.1 414 URI Too Long\r\ncontent-length: 0\r\ndate: now", answer);
        assert_eq!(
            sent,
            "HTTP/1.1 414 URI Too Long\r\ndate: now\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
        );
    }
}
