//! Attacks on the receivers of the real program: what memory they cost, and what a well-behaved client notices meanwhile.
//!
//! Each attack comes from one address and the client from another one. In every test run each lasts a moment;
//! `docs/attacks.md` is written by
//!
//! ```text
//! ATTACK_SECONDS=5 UPDATE_DOCS=1 cargo test --test e2e attacks
//! ```

use crate::common::program::{Program, Setup};
use crate::common::spans;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::Request;
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::client::conn::http2;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Map, Value, json};
use spanledger::otlp::{Encoding, Signal, compress};
use std::convert::Infallible;
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// A bomb, decompressed, four times over, for buffers that are moved while they grow, and what the program takes by itself.
const MEMORY_BOUND: u64 = 320 << 20;

/// Where nothing large is decompressed and nothing comes whole.
const MEMORY_BOUND_OF_BEGINNINGS: u64 = 80 << 20;

/// Far above what is seen, for machines that are busy with other tests.
const LATENCY_BOUND: Duration = Duration::from_secs(15);

/// What the attackers know of their victim.
#[derive(Clone)]
struct Victim {
    grpc: SocketAddr,
    http: SocketAddr,
}

/// What one attack came to.
struct Outcome {
    name: &'static str,
    requests: usize,
    median: Duration,
    worst: Duration,
    resident: u64,
}

fn seconds() -> f64 {
    std::env::var("ATTACK_SECONDS").map_or(1.0, |seconds| seconds.parse().unwrap())
}

/// A header and then, for ever, `piece` after each pause; begins anew when the connection ends.
async fn drip(to: SocketAddr, head: Vec<u8>, piece: Bytes, pause: Duration) {
    loop {
        let Ok(mut stream) = TcpStream::connect(to).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let mut alive = stream.write_all(&head).await.is_ok();
        while alive {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            alive = stream.write_all(&piece).await.is_ok();
        }
    }
}

/// A beginning and then, for ever and as fast as it is taken, the same bytes; answers are read, so that they stop nothing.
async fn flood(to: SocketAddr, head: Vec<u8>, piece: Bytes) {
    loop {
        let Ok(stream) = TcpStream::connect(to).await else {
            continue;
        };
        let (mut answers, mut stream) = stream.into_split();
        let write = async {
            let mut alive = stream.write_all(&head).await.is_ok();
            while alive {
                alive = stream.write_all(&piece).await.is_ok();
            }
        };
        let mut nowhere = tokio::io::sink();
        tokio::select! {
            () = write => {}
            _ = tokio::io::copy(&mut answers, &mut nowhere) => {}
        }
    }
}

/// The same request over and over, each time with its answer read.
async fn repeat(to: SocketAddr, request: Bytes) {
    let mut answer = vec![0; 4096];
    loop {
        let Ok(mut stream) = TcpStream::connect(to).await else {
            continue;
        };
        while stream.write_all(&request).await.is_ok() && stream.read(&mut answer).await.is_ok_and(|read| read > 0) {}
    }
}

fn post(content_type: &str, encoding: &str, body: &[u8]) -> Bytes {
    let head = format!(
        "POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-type: {content_type}\r\ncontent-encoding: {encoding}\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat().into()
}

const PROTOBUF: &str = "application/x-protobuf";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The beginning of an HTTP/2 connection and what is sent over it for ever, of the kind that costs the peer work for nothing.
fn frames(of: &str) -> (Vec<u8>, Bytes) {
    const POST_HTTP_SLASH: [u8; 3] = [0x83, 0x86, 0x84];
    let mut head = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    head.extend(frame(SETTINGS, 0, 0, b""));
    let piece = match of {
        "SETTINGS" => frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]),
        "PING" => frame(PING, 0, 0, b"a ping!!"),
        "WINDOW_UPDATE" => frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes()),
        "empty DATA" => {
            head.extend(frame(HEADERS, END_HEADERS, 1, &POST_HTTP_SLASH));
            frame(DATA, 0, 1, b"")
        }
        "CONTINUATION" => {
            head.extend(frame(HEADERS, 0, 1, &POST_HTTP_SLASH));
            // `a: a`, not indexed.
            frame(CONTINUATION, 0, 1, &[0, 1, b'a', 1, b'a'])
        }
        other => panic!("no frame {other}"),
    };
    (head, piece.repeat(1000).into())
}

/// An HTTP/2 connection with a thousand streams, which are reset at once or left open.
fn streams(reset: bool) -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, b""));
    for id in (1..2001).step_by(2) {
        bytes.extend(frame(HEADERS, END_HEADERS, id, &[0x83, 0x86, 0x84]));
        if reset {
            bytes.extend(frame(RST_STREAM, 0, id, &8u32.to_be_bytes()));
        }
    }
    bytes
}

/// Many large requests on one connection of HTTP/2, of which nothing comes but the beginning.
async fn announce(to: SocketAddr) {
    const MESSAGE: u32 = 20 << 20;
    let mut beginning = vec![0];
    beginning.extend(MESSAGE.to_be_bytes());
    beginning.resize(380 << 10, 0);
    let beginning = Bytes::from(beginning);
    loop {
        let Ok(socket) = TcpStream::connect(to).await else {
            continue;
        };
        let Ok((sender, connection)) = http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await else {
            continue;
        };
        let mut at_once = JoinSet::new();
        at_once.spawn(async move { drop(connection.await) });
        for _ in 0..250 {
            let frame = Ok::<_, Infallible>(Frame::data(beginning.clone()));
            let body = StreamBody::new(stream::iter([frame]).chain(stream::pending()));
            let request = Request::post(format!("http://{to}{}", Signal::Traces.grpc_path()))
                .header("content-type", "application/grpc")
                .body(body)
                .unwrap();
            let mut sender = sender.clone();
            at_once.spawn(async move { drop(sender.send_request(request).await) });
        }
        drop(sender);
        while at_once.join_next().await.is_some() {}
    }
}

fn million_attributes() -> Bytes {
    let attributes: Map<String, Value> = (0..1_000_000)
        .map(|number| (number.to_string(), json!(number)))
        .collect();
    let span = opentelemetry_proto::tonic::trace::v1::Span {
        trace_id: vec![7; 16],
        span_id: vec![7; 8],
        attributes: spans::attributes(&Value::Object(attributes)),
        ..Default::default()
    };
    spans::request(Vec::new(), vec![("t".to_owned(), span)])
        .encode_to_vec()
        .into()
}

/// Starts the attackers.
fn attack(name: &str, at: &Victim) -> JoinSet<()> {
    let mut attackers = JoinSet::new();
    let slow = Duration::from_millis(50);
    let mut many = |count: usize, start: &dyn Fn(&mut JoinSet<()>)| (0..count).for_each(|_| start(&mut attackers));
    let http = at.http;
    match name {
        "nothing" => {}
        "slow head" => many(300, &|them| {
            let head = b"POST /v1/traces HTTP/1.1\r\nx: ".to_vec();
            drop(them.spawn(drip(http, head, Bytes::from_static(b"a"), slow)));
        }),
        "slow body" => many(300, &|them| {
            let head = format!(
                "POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-type: {PROTOBUF}\r\ncontent-length: 60000000\r\n\r\n"
            );
            drop(them.spawn(drip(http, head.into(), Bytes::from_static(b"a"), slow)));
        }),
        "never-ending request" => many(8, &|them| {
            let head = format!(
                "POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-type: {PROTOBUF}\r\ntransfer-encoding: chunked\r\n\r\n"
            );
            let chunk = [&b"10000\r\n"[..], &[0; 0x10000], b"\r\n"].concat();
            drop(them.spawn(drip(http, head.into(), chunk.into(), Duration::ZERO)));
        }),
        "rapid reset" => many(4, &|them| {
            drop(them.spawn(drip(
                at.grpc,
                streams(true),
                Bytes::from_static(b"\0\0\0\x04\0\0\0\0\0"),
                slow,
            )));
        }),
        "many streams" => many(4, &|them| {
            drop(them.spawn(drip(
                at.grpc,
                streams(false),
                Bytes::from_static(b"\0\0\0\x04\0\0\0\0\0"),
                slow,
            )));
        }),
        "large requests" => many(4, &|them| drop(them.spawn(announce(at.grpc)))),
        "many connections" => many(1500, &|them| {
            drop(them.spawn(drip(http, Vec::new(), Bytes::new(), slow)));
        }),
        "deep nesting" => {
            let nested = format!("{{\"x\":{}", "[".repeat(4 << 20));
            let request = post("application/json", "identity", nested.as_bytes());
            many(4, &|them| drop(them.spawn(repeat(http, request.clone()))));
        }
        "a million attributes" => {
            let request = post(PROTOBUF, "identity", &million_attributes());
            many(2, &|them| drop(them.spawn(repeat(http, request.clone()))));
        }
        name if name.starts_with("flood of ") => {
            let (head, piece) = frames(name.trim_start_matches("flood of "));
            many(4, &|them| drop(them.spawn(flood(at.grpc, head.clone(), piece.clone()))));
        }
        bomb => {
            let encoding = Encoding::from_token(bomb.trim_start_matches("bomb of ")).unwrap();
            let request = post(PROTOBUF, encoding.token(), &compress(encoding, &vec![0; 256 << 20]));
            many(4, &|them| drop(them.spawn(repeat(http, request.clone()))));
        }
    }
    attackers
}

/// The most memory that a process ever had, in bytes.
fn most_resident(program: &Program) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

async fn suffer(name: &'static str) -> Outcome {
    let setup = Setup::new().set("journal.max_size", "512MiB");
    let program = setup.start().await;
    let victim = Victim {
        grpc: program.address("otlp_grpc").await,
        http: program.address("otlp_http").await,
    };
    let mut attackers = attack(name, &victim);
    let mut connector = HttpConnector::new();
    connector.set_local_address(Some(Ipv4Addr::new(127, 0, 0, 2).into()));
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
    let mut latencies = Vec::new();
    let began = Instant::now();
    while began.elapsed().as_secs_f64() < seconds() {
        let span = opentelemetry_proto::tonic::trace::v1::Span {
            trace_id: vec![9; 16],
            span_id: (latencies.len() as u64 + 1).to_be_bytes().to_vec(),
            ..Default::default()
        };
        let body = spans::request(Vec::new(), vec![("t".to_owned(), span)]).encode_to_vec();
        let request = Request::post(format!("http://{}/v1/traces", victim.http))
            .header("content-type", PROTOBUF)
            .body(Full::new(body.into()))
            .unwrap();
        let sent = Instant::now();
        let answer = client.request(request).await.unwrap();
        assert_eq!(answer.status(), 200, "{name}: a well-behaved client is refused");
        answer.into_body().collect().await.unwrap();
        latencies.push(sent.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    attackers.shutdown().await;
    if name == "large requests" {
        let scrape = program.scrape().await;
        let labels = [("protocol", "grpc"), ("signal", "traces"), ("reason", "overloaded")];
        let refused = scrape.get("spanledger_receiver_requests_refused_total", &labels);
        assert!(
            refused.is_some_and(|refused| refused > 100.0),
            "{refused:?}: it was no attack"
        );
    }
    latencies.sort();
    Outcome {
        name,
        requests: latencies.len(),
        median: latencies[latencies.len() / 2],
        worst: latencies[latencies.len() - 1],
        resident: most_resident(&program),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attacks_cost_bounded_memory_and_a_client_beside_them_is_served() {
    // Here and in the program, which inherits it: one connection is one file.
    let limit = getrlimit(Resource::Nofile);
    let more = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, more).unwrap();
    let mut table = String::new();
    for name in [
        "nothing",
        "slow head",
        "slow body",
        "never-ending request",
        "bomb of gzip",
        "bomb of zstd",
        "bomb of deflate",
        "bomb of snappy",
        "bomb of lz4",
        "rapid reset",
        "many streams",
        "flood of SETTINGS",
        "flood of PING",
        "flood of WINDOW_UPDATE",
        "flood of empty DATA",
        "flood of CONTINUATION",
        "large requests",
        "many connections",
        "deep nesting",
        "a million attributes",
    ] {
        let outcome = suffer(name).await;
        println!(
            "{name}: {} requests, median {:?}, worst {:?}, {} MiB",
            outcome.requests,
            outcome.median,
            outcome.worst,
            outcome.resident >> 20
        );
        let bound = match name {
            "large requests" => MEMORY_BOUND_OF_BEGINNINGS,
            _ => MEMORY_BOUND,
        };
        assert!(outcome.resident < bound, "{name}: {} bytes", outcome.resident);
        assert!(outcome.worst < LATENCY_BOUND, "{name}: {:?}", outcome.worst);
        let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
        writeln!(
            table,
            "| {} | {} | {:.1} ms | {:.0} ms | {} MiB |",
            outcome.name,
            outcome.requests,
            milliseconds(outcome.median),
            milliseconds(outcome.worst),
            outcome.resident >> 20
        )
        .unwrap();
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/attacks.md");
        let text = std::fs::read_to_string(&path).unwrap();
        let (before, _) = text.split_once("<!-- measured -->\n").unwrap();
        let head = "| attack | requests of the client | median | worst | most memory |\n|---|---|---|---|---|\n";
        std::fs::write(&path, format!("{before}<!-- measured -->\n{head}{table}")).unwrap();
    }
}
