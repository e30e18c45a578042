//! A backend inside the test: it remembers every request unless told otherwise, and can be away, slow or unwilling.

use super::http::{io, whole};
use super::{DEADLINE, ReservedPort, in_time};
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;
use std::io::Read;
use std::sync::{Arc, Mutex};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How it answers.
#[derive(Debug, Clone)]
pub enum Mode {
    /// 200.
    Willing,
    /// Always this status, with these headers.
    Unwilling(u16, Vec<(&'static str, &'static str)>),
    /// 503 to a random part of the requests, in percent.
    Flaky(u8, fastrand::Rng),
    /// Takes requests and never answers.
    Silent,
}

/// A request that was answered with 200.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Path it was sent to.
    pub path: String,
    /// Headers it came with.
    pub headers: HeaderMap,
    /// Body without its content encoding.
    pub body: Bytes,
}

impl Delivery {
    /// The body as a trace request.
    pub fn request(&self) -> ExportTraceServiceRequest {
        ExportTraceServiceRequest::decode(self.body.clone()).expect("what is forwarded is a trace request")
    }
}

/// The backend.
pub struct Sink {
    port: ReservedPort,
    state: Arc<State>,
    server: Option<JoinHandle<()>>,
}

type Watcher = Box<dyn Fn(&Delivery) + Send + Sync>;

struct State {
    mode: Mutex<Mode>,
    deliveries: Mutex<Vec<Delivery>>,
    watcher: Option<Watcher>,
    attempts: watch::Sender<usize>,
}

impl Sink {
    /// A backend that is there.
    pub async fn start() -> Sink {
        let mut sink = Sink::away();
        sink.come_back().await;
        sink
    }

    /// A backend that shows each delivery to the watcher and forgets it, for more than should be kept in memory.
    pub async fn watched(watcher: impl Fn(&Delivery) + Send + Sync + 'static) -> Sink {
        let mut sink = Sink::with(Some(Box::new(watcher)));
        sink.come_back().await;
        sink
    }

    /// A backend that is not there yet: connections to it are refused.
    pub fn away() -> Sink {
        Sink::with(None)
    }

    fn with(watcher: Option<Watcher>) -> Sink {
        let state = State {
            mode: Mutex::new(Mode::Willing),
            deliveries: Mutex::new(Vec::new()),
            watcher,
            attempts: watch::channel(0).0,
        };
        Sink {
            port: ReservedPort::new(),
            state: Arc::new(state),
            server: None,
        }
    }

    /// What an exporter is configured with.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port.number)
    }

    /// Accepts connections from now on.
    pub async fn come_back(&mut self) {
        if self.server.is_some() {
            return;
        }
        let listener = self.port.listen();
        let state = self.state.clone();
        self.server = Some(tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let state = state.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request| answer(state.clone(), request));
                    // A connection that breaks is the business of the one who broke it.
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(io(stream), service)
                        .await
                        .ok();
                });
            }
        }));
    }

    /// Breaks every connection and refuses new ones.
    pub async fn go_away(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
            // Cancelled is what it shall be.
            server.await.ok();
        }
    }

    /// Changes how it answers.
    pub fn set(&self, mode: Mode) {
        *self.state.mode.lock().unwrap() = mode;
    }

    /// All requests answered with 200 so far, in their order.
    pub fn deliveries(&self) -> Vec<Delivery> {
        self.state.deliveries.lock().unwrap().clone()
    }

    /// How many requests were read to their end, whatever the answer.
    pub fn attempts(&self) -> usize {
        *self.state.attempts.borrow()
    }

    /// Waits until there is what is wanted among the deliveries, looking again after each request.
    pub async fn wait<T>(&self, what: &str, check: impl Fn(&[Delivery]) -> Option<T>) -> T {
        self.wait_for(what, |sink| check(&sink.deliveries())).await
    }

    /// Waits for so many requests, whatever the answer.
    pub async fn wait_attempts(&self, count: usize) {
        self.wait_for(&format!("{count} requests"), |sink| {
            (sink.attempts() >= count).then_some(())
        })
        .await;
    }

    async fn wait_for<T>(&self, what: &str, check: impl Fn(&Sink) -> Option<T>) -> T {
        let mut attempts = self.state.attempts.subscribe();
        let search = async {
            loop {
                attempts.borrow_and_update();
                if let Some(found) = check(self) {
                    return found;
                }
                attempts.changed().await.unwrap();
                // Requests come in bursts, and looking at all of them after each would be slow.
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        match in_time(search).await {
            Some(found) => found,
            None => panic!(
                "the sink: no {what} within {DEADLINE:?}, {} deliveries",
                self.deliveries().len()
            ),
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            server.abort();
        }
    }
}

async fn answer(state: Arc<State>, request: Request<Incoming>) -> Result<Response<super::http::Body>, hyper::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let (status, headers) = match &mut *state.mode.lock().unwrap() {
        Mode::Willing => (200, Vec::new()),
        Mode::Unwilling(status, headers) => (*status, headers.clone()),
        Mode::Flaky(percent, random) => (if random.u8(..100) < *percent { 503 } else { 200 }, Vec::new()),
        Mode::Silent => (0, Vec::new()),
    };
    if status == 200 {
        let encoding = head
            .headers
            .get("content-encoding")
            .map_or("identity", |value| value.to_str().unwrap());
        let body = match encoding {
            "identity" => body,
            "gzip" => {
                let mut plain = Vec::new();
                flate2::read::MultiGzDecoder::new(&body[..])
                    .read_to_end(&mut plain)
                    .expect("valid gzip");
                plain.into()
            }
            other => panic!("the sink was not told to take {other}"),
        };
        let delivery = Delivery {
            path: head.uri.path().to_owned(),
            headers: head.headers,
            body,
        };
        match &state.watcher {
            Some(watcher) => watcher(&delivery),
            None => state.deliveries.lock().unwrap().push(delivery),
        }
    }
    state.attempts.send_modify(|attempts| *attempts += 1);
    if status == 0 {
        std::future::pending::<()>().await;
    }
    let mut answer = Response::builder()
        .status(status)
        .header("content-type", "application/x-protobuf");
    for (name, value) in headers {
        answer = answer.header(name, value);
    }
    Ok(answer.body(whole("")).unwrap())
}
