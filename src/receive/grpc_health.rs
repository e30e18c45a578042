//! `grpc.health.v1.Health`: whether requests are taken, for load balancers, `grpc_health_probe` and Kubernetes.
//!
//! Every service has the same health, that of the journal: it takes requests, or it does not.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tokio::time::Instant;

use super::grpc_stream::{LONGEST, StreamPlace, Turn};
use super::intake::Intake;
use super::otlp_grpc::prefixed;
use super::refusal::{Reason, Refusal};
use crate::otlp::Signal;

pub(super) const CHECK: &str = "/grpc.health.v1.Health/Check";
pub(super) const LIST: &str = "/grpc.health.v1.Health/List";
pub(super) const WATCH: &str = "/grpc.health.v1.Health/Watch";

/// How often a watched journal is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(enumeration = "ServingStatus", tag = "1")]
    status: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthListResponse {
    #[prost(map = "string, message", tag = "1")]
    statuses: HashMap<String, HealthCheckResponse>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
enum ServingStatus {
    Unknown = 0,
    Serving = 1,
    NotServing = 2,
    ServiceUnknown = 3,
}

fn status(intake: &Intake) -> ServingStatus {
    if intake.is_serving() {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

/// The services that are asked about by name; the empty name is the whole server.
fn services() -> impl Iterator<Item = &'static str> {
    let of_signals = Signal::ALL.into_iter().map(Signal::grpc_service);
    std::iter::once("").chain(of_signals)
}

/// The service that a message asks about, if it is one of ours.
fn asked(message: Bytes) -> Result<Result<(), String>, Refusal> {
    let request = HealthCheckRequest::decode(message).map_err(Refusal::malformed)?;
    let is_known = services().any(|service| service == request.service);
    Ok(if is_known { Ok(()) } else { Err(request.service) })
}

/// Answers `Check`.
pub(super) fn check(intake: &Intake, message: Bytes) -> Result<Bytes, Refusal> {
    match asked(message)? {
        Ok(()) => Ok(prefixed(&response(status(intake)).encode_to_vec())),
        Err(unknown) => Err(Refusal::new(
            Reason::UnknownService,
            format!("no service {unknown} here"),
        )),
    }
}

/// Answers `List`.
pub(super) fn list(intake: &Intake) -> Bytes {
    let statuses = services()
        .map(|service| (service.to_owned(), response(status(intake))))
        .collect();
    prefixed(&HealthListResponse { statuses }.encode_to_vec())
}

/// One client of `Watch`.
pub(super) struct Watch {
    intake: Intake,
    is_known: bool,
    told: Option<ServingStatus>,
    until: Instant,
    place: StreamPlace,
}

impl Watch {
    pub(super) fn new(intake: Intake, message: Bytes, place: StreamPlace) -> Result<Watch, Refusal> {
        Ok(Watch {
            intake,
            is_known: asked(message)?.is_ok(),
            told: None,
            until: Instant::now() + LONGEST,
            place,
        })
    }

    /// Waits for the next change, to tell it; the end of the listener is the last one.
    pub(super) async fn turn(mut self) -> (Watch, Turn) {
        loop {
            let ended = self.place.shutdown.is_cancelled();
            let now = match self.is_known {
                _ if ended => ServingStatus::NotServing,
                true => status(&self.intake),
                false => ServingStatus::ServiceUnknown,
            };
            if self.told != Some(now) {
                self.told = Some(now);
                return (self, Ok(Some(prefixed(&response(now).encode_to_vec()))));
            }
            if ended || Instant::now() >= self.until {
                return (self, Ok(None));
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = self.place.shutdown.cancelled() => {}
            }
        }
    }
}
