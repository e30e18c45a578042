//! `/`, `/healthz`: alive, which means that every stage makes progress. `/readyz`: listeners are bound and the journal
//! takes requests. A destination that is away is named as degraded, and is no reason to be unready: its data waits in
//! the journal, and taking the receiver out of service would only lose more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use http::{Method, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::telemetry::Health;
use crate::telemetry::health::StageReport;

/// Answers health checks; cheap to clone.
#[derive(Clone)]
pub struct HealthEndpoint {
    health: Health,
    serving: Arc<AtomicBool>,
    journal_problem: Arc<dyn Fn() -> Option<String> + Send + Sync>,
}

impl HealthEndpoint {
    /// `journal_problem` says why the journal takes no requests, if it does not.
    pub fn new(health: Health, journal_problem: impl Fn() -> Option<String> + Send + Sync + 'static) -> Self {
        Self {
            health,
            serving: Arc::new(AtomicBool::new(false)),
            journal_problem: Arc::new(journal_problem),
        }
    }

    /// Says whether the receivers are bound and serve: true once they do, false from the shutdown on.
    pub fn set_serving(&self, serving: bool) {
        self.serving.store(serving, Ordering::Release);
    }

    /// The answer to a request.
    pub fn answer(&self, method: &Method, path: &str) -> Response<String> {
        if method != Method::GET && method != Method::HEAD {
            let mut response = json_response(StatusCode::METHOD_NOT_ALLOWED, &json!({"error": "use GET"}));
            response
                .headers_mut()
                .insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match path {
            "/" | "/healthz" | "/health" => self.alive(),
            "/readyz" => self.ready(),
            _ => json_response(StatusCode::NOT_FOUND, &json!({"error": "try /healthz or /readyz"})),
        }
    }

    fn alive(&self) -> Response<String> {
        let stages = self.health.report(Instant::now());
        let alive = stages.iter().all(|stage| stage.alive);
        let status = if alive { "alive" } else { "stalled" };
        let body = json!({"status": status, "stages": stages.iter().map(stage_json).collect::<Vec<_>>()});
        json_response(
            if alive {
                StatusCode::OK
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            },
            &body,
        )
    }

    fn ready(&self) -> Response<String> {
        let mut problems = Vec::new();
        if !self.serving.load(Ordering::Acquire) {
            problems.push("the receivers do not serve (starting or stopping)".to_owned());
        }
        problems.extend((self.journal_problem)());
        let degraded = self.health.report(Instant::now()).into_iter().filter_map(|stage| {
            stage
                .degraded
                .as_ref()
                .map(|reason| json!({"stage": stage.name, "reason": reason}))
        });
        let ready = problems.is_empty();
        let body = json!({
            "status": if ready { "ready" } else { "not ready" },
            "problems": problems,
            "degraded": degraded.collect::<Vec<_>>(),
        });
        json_response(
            if ready {
                StatusCode::OK
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            },
            &body,
        )
    }
}

fn stage_json(stage: &StageReport) -> Value {
    json!({
        "stage": stage.name,
        "alive": stage.alive,
        "secondsSinceProgress": stage.age.as_secs(),
        "degraded": stage.degraded,
    })
}

fn json_response(status: StatusCode, body: &Value) -> Response<String> {
    let mut response = Response::new(format!("{body}\n"));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(problem: Option<&'static str>) -> (Health, HealthEndpoint) {
        let health = Health::default();
        let endpoint = HealthEndpoint::new(health.clone(), move || problem.map(str::to_owned));
        (health, endpoint)
    }

    #[test]
    fn alive_means_that_no_stage_has_died() {
        let (health, endpoint) = endpoint(None);
        let heartbeat = health.stage("meter");
        for path in ["/", "/healthz"] {
            assert_eq!(endpoint.answer(&Method::GET, path).status(), StatusCode::OK);
        }
        drop(heartbeat);
        let response = endpoint.answer(&Method::GET, "/healthz");
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(response.body().contains("\"stage\":\"meter\""), "{}", response.body());
    }

    #[test]
    fn ready_means_serving_with_a_journal_that_takes_requests() {
        let (_, endpoint) = endpoint(None);
        assert_eq!(
            endpoint.answer(&Method::GET, "/readyz").status(),
            StatusCode::SERVICE_UNAVAILABLE
        );
        endpoint.set_serving(true);
        assert_eq!(endpoint.answer(&Method::GET, "/readyz").status(), StatusCode::OK);
        let (_, full) = self::endpoint(Some("the journal is full (journal.max_size)"));
        full.set_serving(true);
        let response = full.answer(&Method::GET, "/readyz");
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(response.body().contains("journal.max_size"));
    }

    #[test]
    fn a_destination_that_is_away_is_named_and_readiness_stays() {
        let (health, endpoint) = endpoint(None);
        endpoint.set_serving(true);
        let heartbeat = health.stage("exporter otlp");
        heartbeat
            .status()
            .set_degraded("http://signoz:4318: connection refused");
        let response = endpoint.answer(&Method::GET, "/readyz");
        assert_eq!(response.status(), StatusCode::OK);
        assert!(response.body().contains("connection refused"), "{}", response.body());
    }
}
