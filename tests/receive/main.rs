//! The receivers from outside: what senders see, and what is in the journal afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used, unreachable_pub)]

mod abuse;
mod access;
mod fixture;
mod grpc;
mod http;
mod large;
mod observed;
mod streams;
mod unreadable;
