//! The answer to one append, shared by the request and those that repeat it while it is on its way to the disk.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use super::error::AppendError;
use super::segment::lock;

#[derive(Default)]
struct Inner {
    outcome: Option<Result<(), AppendError>>,
    wakers: Vec<Waker>,
}

/// Written once.
#[derive(Default)]
pub(super) struct Completion(Mutex<Inner>);

impl Completion {
    /// Answers everybody who waits. The first answer stands.
    pub(super) fn complete(&self, outcome: Result<(), AppendError>) {
        let wakers = {
            let mut inner = lock(&self.0);
            if inner.outcome.is_some() {
                return;
            }
            inner.outcome = Some(outcome);
            std::mem::take(&mut inner.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(super) fn outcome(&self) -> Option<Result<(), AppendError>> {
        lock(&self.0).outcome.clone()
    }
}

/// Resolves when the request is as durable as `journal.fsync` promises, or was refused.
#[must_use = "a request may be acknowledged only after this has resolved"]
#[derive(Debug)]
pub struct Durable(State);

enum State {
    Now(Result<(), AppendError>),
    Later(Arc<Completion>),
}

impl std::fmt::Debug for State {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Now(_) => "Now",
            Self::Later(_) => "Later",
        })
    }
}

impl Durable {
    pub(super) fn now() -> Self {
        Self(State::Now(Ok(())))
    }

    pub(super) fn later(completion: Arc<Completion>) -> Self {
        Self(State::Later(completion))
    }

    /// The answer, if it is known: does not wait.
    pub fn outcome(&self) -> Option<Result<(), AppendError>> {
        match &self.0 {
            State::Now(outcome) => Some(outcome.clone()),
            State::Later(completion) => completion.outcome(),
        }
    }
}

impl Future for Durable {
    type Output = Result<(), AppendError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &self.0 {
            State::Now(outcome) => Poll::Ready(outcome.clone()),
            State::Later(completion) => {
                let mut inner = lock(&completion.0);
                if let Some(outcome) = &inner.outcome {
                    return Poll::Ready(outcome.clone());
                }
                if !inner.wakers.iter().any(|waker| waker.will_wake(context.waker())) {
                    inner.wakers.push(context.waker().clone());
                }
                Poll::Pending
            }
        }
    }
}
