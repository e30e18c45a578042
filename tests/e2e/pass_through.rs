//! Every way in leads to every way out, and the bytes are the same: all signals over every protocol and content encoding
//! in, to exporters of every protocol and compression at once. The sinks keep what is on the wire, undecoded.

use crate::common::http::{Http, io, whole};
use crate::common::program::Setup;
use crate::common::random;
use crate::common::send::{grpc_call_to, gzip};
use crate::common::{DEADLINE, spans};
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt;
use http_body_util::combinators::BoxBody;
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioExecutor;
use hyper_util::server::conn::auto;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// A signal, with what its two protocols call it.
struct Signal {
    path: &'static str,
    method: &'static str,
}

const SIGNALS: [Signal; 3] = [
    Signal {
        path: "/v1/traces",
        method: "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    },
    Signal {
        path: "/v1/metrics",
        method: "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    },
    Signal {
        path: "/v1/logs",
        method: "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
    },
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum In {
    Grpc,
    HttpProtobuf,
    HttpJson,
}

/// What receivers take, on both protocols.
const ENCODINGS: [&str; 6] = ["identity", "gzip", "zstd", "deflate", "snappy", "lz4"];

/// An exporter's configuration, and the encoding in which it must send what came in each of [`ENCODINGS`].
struct Out {
    name: &'static str,
    compression: &'static str,
    accepts: &'static [&'static str],
    sends: [&'static str; ENCODINGS.len()],
}

const OUT: [Out; 5] = [
    Out {
        name: "as_received",
        compression: "as_received",
        accepts: &[],
        sends: ["identity", "gzip", "gzip", "gzip", "gzip", "gzip"],
    },
    Out {
        name: "accepting_more",
        compression: "as_received",
        accepts: &["zstd", "deflate"],
        sends: ["identity", "gzip", "zstd", "deflate", "gzip", "gzip"],
    },
    Out {
        name: "none",
        compression: "none",
        accepts: &[],
        sends: ["identity"; ENCODINGS.len()],
    },
    Out {
        name: "gzip",
        compression: "gzip",
        accepts: &[],
        sends: ["gzip"; ENCODINGS.len()],
    },
    Out {
        name: "zstd",
        compression: "zstd",
        accepts: &[],
        sends: ["zstd"; ENCODINGS.len()],
    },
];

// ----- what is sent

/// A request of a signal in both forms, with a mark by which it is found again.
struct Form {
    protobuf: Bytes,
    json: Bytes,
}

fn form(signal: usize, mark: &str) -> Form {
    let resource = json!({"attributes": [{"key": "service.name", "value": {"stringValue": mark}}]});
    let padding = "the same text again and again, so that compressing pays; ".repeat(20);
    let json = match signal {
        0 => json!({"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": [{
            "traceId": "0af7651916cd43dd8448eb211c80319c", "spanId": "b7ad6b7169203331", "name": padding, "kind": 1,
            "startTimeUnixNano": "1764000000000000000", "endTimeUnixNano": "1764000001000000000"}]}]}]}),
        1 => json!({"resourceMetrics": [{"resource": resource, "scopeMetrics": [{"metrics": [
            {"name": "requests", "description": padding, "sum": {"aggregationTemporality": 2, "isMonotonic": true,
                "dataPoints": [{"asInt": "7", "timeUnixNano": "1764000060000000000"}]}},
            {"name": "load", "gauge": {"dataPoints": [{"asDouble": 0.5, "timeUnixNano": "1764000060000000000"}]}}]}]}]}),
        _ => json!({"resourceLogs": [{"resource": resource, "scopeLogs": [{"logRecords": [
            {"timeUnixNano": "1764000000000000000", "severityNumber": 9, "body": {"stringValue": padding}}]}]}]}),
    };
    Form {
        protobuf: protobuf(signal, &json).into(),
        json: json.to_string().into(),
    }
}

/// The protobuf that the published definitions make of the JSON.
fn protobuf(signal: usize, json: &Value) -> Vec<u8> {
    let json = json.clone();
    match signal {
        0 => serde_json::from_value::<ExportTraceServiceRequest>(json)
            .unwrap()
            .encode_to_vec(),
        1 => serde_json::from_value::<ExportMetricsServiceRequest>(json)
            .unwrap()
            .encode_to_vec(),
        _ => serde_json::from_value::<ExportLogsServiceRequest>(json)
            .unwrap()
            .encode_to_vec(),
    }
}

/// Whether two messages are equal, however they are written down.
fn is_equal(signal: usize, one: &Bytes, other: &Bytes) -> bool {
    match signal {
        0 => ExportTraceServiceRequest::decode(one.clone()) == ExportTraceServiceRequest::decode(other.clone()),
        1 => ExportMetricsServiceRequest::decode(one.clone()) == ExportMetricsServiceRequest::decode(other.clone()),
        _ => ExportLogsServiceRequest::decode(one.clone()) == ExportLogsServiceRequest::decode(other.clone()),
    }
}

fn encoded(encoding: &str, message: &Bytes) -> Bytes {
    match encoding {
        "identity" => message.clone(),
        "gzip" => gzip(message),
        "zstd" => zstd::encode_all(&message[..], 3).unwrap().into(),
        "snappy" => {
            let mut encoder = snap::write::FrameEncoder::new(Vec::new());
            encoder.write_all(message).unwrap();
            encoder.into_inner().unwrap().into()
        }
        "lz4" => {
            let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
            encoder.write_all(message).unwrap();
            encoder.finish().unwrap().into()
        }
        _ => {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
            encoder.write_all(message).unwrap();
            encoder.finish().unwrap().into()
        }
    }
}

fn decoded(encoding: &str, body: &Bytes) -> Bytes {
    match encoding {
        "identity" => body.clone(),
        "gzip" => {
            let mut plain = Vec::new();
            flate2::read::GzDecoder::new(&body[..]).read_to_end(&mut plain).unwrap();
            plain.into()
        }
        "zstd" => zstd::decode_all(&body[..]).unwrap().into(),
        "deflate" => {
            let mut plain = Vec::new();
            flate2::read::ZlibDecoder::new(&body[..])
                .read_to_end(&mut plain)
                .unwrap();
            plain.into()
        }
        other => panic!("the sink was not told to take {other}"),
    }
}

// ----- the sink

/// A request as it was on the wire.
#[derive(Debug, Clone)]
struct Seen {
    path: String,
    headers: HeaderMap,
    /// What `content-encoding`, or `grpc-encoding` with the frame's flag, says.
    encoding: String,
    /// The body; of gRPC the message behind its five bytes.
    body: Bytes,
}

/// Takes OTLP/HTTP and OTLP/gRPC on one port and keeps every request.
struct RawSink {
    address: SocketAddr,
    seen: watch::Receiver<usize>,
    all: Arc<Mutex<Vec<Seen>>>,
}

impl RawSink {
    async fn start() -> RawSink {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let all = Arc::new(Mutex::new(Vec::new()));
        let (count, seen) = watch::channel(0);
        let (kept, count) = (all.clone(), Arc::new(count));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (kept, count) = (kept.clone(), count.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let (kept, count) = (kept.clone(), count.clone());
                        async move {
                            let (seen, answer) = take(request).await;
                            kept.lock().unwrap().push(seen);
                            count.send_modify(|count| *count += 1);
                            Ok::<_, Infallible>(answer)
                        }
                    });
                    // A connection that ends with the test is nobody's business.
                    auto::Builder::new(TokioExecutor::new())
                        .serve_connection(io(stream), service)
                        .await
                        .ok();
                });
            }
        });
        RawSink { address, seen, all }
    }

    /// Everything, once there is so much.
    async fn wait(&self, count: usize) -> Vec<Seen> {
        let mut seen = self.seen.clone();
        let enough = seen.wait_for(|seen| *seen >= count);
        if tokio::time::timeout(DEADLINE, enough).await.is_err() {
            panic!("{} of {count} requests arrived", self.all.lock().unwrap().len());
        }
        self.all.lock().unwrap().clone()
    }
}

async fn take(request: Request<Incoming>) -> (Seen, Response<BoxBody<Bytes, Infallible>>) {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let header = |name: &str| head.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let is_grpc = header("content-type").unwrap().starts_with("application/grpc");
    let (encoding, body) = if is_grpc {
        assert_eq!(
            body.len() - 5,
            u32::from_be_bytes(body[1..5].try_into().unwrap()) as usize
        );
        let encoding = header("grpc-encoding").unwrap_or_else(|| "identity".to_owned());
        let encoding = if body[0] == 0 { "identity".to_owned() } else { encoding };
        (encoding, body.slice(5..))
    } else {
        (
            header("content-encoding").unwrap_or_else(|| "identity".to_owned()),
            body,
        )
    };
    let seen = Seen {
        path: head.uri.path().to_owned(),
        headers: head.headers,
        encoding,
        body,
    };
    let answer = Response::builder();
    let answer = if is_grpc {
        let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
        let frames = [Frame::data(Bytes::from_static(&[0; 5])), Frame::trailers(trailers)];
        answer.header("content-type", "application/grpc").body(body_of(frames))
    } else {
        answer.header("content-type", "application/x-protobuf").body(whole(""))
    };
    (seen, answer.unwrap())
}

/// A body of these frames.
fn body_of(frames: [Frame<Bytes>; 2]) -> BoxBody<Bytes, Infallible> {
    struct Frames(std::array::IntoIter<Frame<Bytes>, 2>);
    impl hyper::body::Body for Frames {
        type Data = Bytes;
        type Error = Infallible;
        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            std::task::Poll::Ready(self.0.next().map(Ok))
        }
    }
    Frames(frames.into_iter()).boxed()
}

// ----- the table

#[tokio::test(flavor = "multi_thread")]
async fn bytes_arrive_unchanged_over_every_pair_of_ways_in_and_out() {
    let mut setup = Setup::new();
    let mut outs = Vec::new();
    for protocol in ["http/protobuf", "grpc"] {
        for out in &OUT {
            let sink = RawSink::start().await;
            let key = format!("exporters.otlp/{}_{}", &protocol[..4], out.name);
            setup = setup
                .set(&format!("{key}.endpoint"), format!("http://{}", sink.address))
                .set(&format!("{key}.protocol"), protocol)
                .set(&format!("{key}.compression"), out.compression)
                .set(&format!("{key}.accepts"), json!(out.accepts))
                // One request in is one request out, so that each can be followed.
                .set(&format!("{key}.merge"), false);
            outs.push((protocol, out, sink));
        }
    }
    let program = setup.start().await;
    let (grpc, http) = (program.address("otlp_grpc").await, program.address("otlp_http").await);
    let (http1, http2) = (Http::new(), Http::h2());

    let mut sent = Vec::new();
    for (number, signal) in SIGNALS.iter().enumerate() {
        for way in [In::Grpc, In::HttpProtobuf, In::HttpJson] {
            for (index, encoding) in ENCODINGS.into_iter().enumerate() {
                let mark = format!("signal {number}, in {way:?} {encoding}");
                let Form { mut protobuf, json } = form(number, &mark);
                if way != In::HttpJson {
                    // Field 999, a string that no schema knows; field 1000, a number written longer than needed.
                    let unknown = [0xba, 0x3e, 4, b'n', b'e', b'w', b'!', 0xc0, 0x3e, 0x81, 0x00];
                    protobuf = [&protobuf[..], &unknown].concat().into();
                }
                let body = encoded(encoding, if way == In::HttpJson { &json } else { &protobuf });
                let named = (encoding != "identity").then_some(encoding);
                if way == In::Grpc {
                    let answer = grpc_call_to(&http2, grpc, signal.method, &body, named).await.unwrap();
                    assert_eq!(answer.header("grpc-status"), "0", "{mark}: {:?}", answer.trailers);
                } else {
                    let kind = if way == In::HttpJson { "json" } else { "x-protobuf" };
                    let mut request = Request::post(format!("http://{http}{}", signal.path))
                        .header("content-type", format!("application/{kind}"));
                    if let Some(named) = named {
                        request = request.header("content-encoding", named);
                    }
                    let answer = http1.send(request.body(whole(body.clone())).unwrap()).await.unwrap();
                    assert_eq!(answer.status, 200, "{mark}: {}", answer.text());
                }
                sent.push((number, way, index, mark, protobuf, body));
            }
        }
    }

    let mut checked = 0;
    for (protocol, out, sink) in &outs {
        let all = sink.wait(sent.len()).await;
        assert_eq!(all.len(), sent.len(), "{protocol} {}: nothing is sent twice", out.name);
        let paths: BTreeSet<&str> = all.iter().map(|seen| seen.path.as_str()).collect();
        assert_eq!(paths.len(), SIGNALS.len());
        for (number, way, index, mark, message, body) in &sent {
            let case = format!("{mark}; out {protocol} {}", out.name);
            let is_it = |seen: &&Seen| {
                let plain = decoded(&seen.encoding, &seen.body);
                plain.windows(mark.len()).any(|window| window == mark.as_bytes())
            };
            let seen = all
                .iter()
                .find(is_it)
                .unwrap_or_else(|| panic!("{case}: did not arrive"));
            let signal = &SIGNALS[*number];
            let path = if *protocol == "grpc" {
                signal.method
            } else {
                signal.path
            };
            assert_eq!(seen.path, path, "{case}");
            assert_eq!(seen.headers["spanledger-hop"].len(), 32, "{case}");
            let plain = decoded(&seen.encoding, &seen.body);
            // JSON is turned into protobuf at the door, whatever it was compressed with.
            let received = if *way == In::HttpJson { 0 } else { *index };
            assert_eq!(seen.encoding, out.sends[received], "{case}");
            if *way == In::HttpJson {
                assert!(is_equal(*number, &plain, message), "{case}: another message");
            } else {
                assert_eq!(plain, message, "{case}: other bytes");
                if seen.encoding == ENCODINGS[received] {
                    assert_eq!(seen.body, body, "{case}: compressed anew, for nothing");
                }
            }
            checked += 1;
        }
    }
    assert_eq!(checked, 3 * 3 * ENCODINGS.len() * 2 * OUT.len());
    let (status, log) = program.terminate().await;
    assert_eq!(status.code(), Some(0), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_request_larger_than_the_backend_takes_arrives_in_pieces_and_no_byte_of_a_span_changes() {
    let mut random =
        random("one_request_larger_than_the_backend_takes_arrives_in_pieces_and_no_byte_of_a_span_changes");
    let request = crate::common::load::Load::new(&mut random).request(0).request;
    let span = request.resource_spans[0].scope_spans[0].spans[0].clone();
    let mut large = request;
    large.resource_spans[0].scope_spans[0].spans = (0..400_u64)
        .map(|number| {
            let mut span = span.clone();
            span.span_id = (number + 1).to_be_bytes().to_vec();
            span
        })
        .collect();
    let message: Bytes = large.encode_to_vec().into();
    for (protocol, encoding) in [("http/protobuf", "gzip"), ("grpc", "zstd"), ("grpc", "identity")] {
        let sink = RawSink::start().await;
        let limit = message.len() / 5;
        let setup = Setup::new()
            .set("exporters.otlp.endpoint", format!("http://{}", sink.address))
            .set("exporters.otlp.protocol", protocol)
            .set("exporters.otlp.max_request_size", limit);
        let program = setup.start().await;
        let named = (encoding != "identity").then_some(encoding);
        let address = program.address("otlp_grpc").await;
        let body = encoded(encoding, &message);
        let answer = grpc_call_to(&Http::h2(), address, SIGNALS[0].method, &body, named)
            .await
            .unwrap();
        assert_eq!(answer.header("grpc-status"), "0");
        program.terminate().await;
        let all = sink.wait(5).await;
        let mut ids = Vec::new();
        for seen in &all {
            let plain = decoded(&seen.encoding, &seen.body);
            assert!(plain.len() <= limit, "a piece of {} bytes, over {limit}", plain.len());
            let piece = ExportTraceServiceRequest::decode(plain).unwrap();
            assert_eq!(piece.resource_spans[0].resource, large.resource_spans[0].resource);
            ids.extend(spans::spans(&piece).map(spans::id));
            for piece in spans::spans(&piece) {
                let bytes = piece.encode_to_vec();
                assert!(message.windows(bytes.len()).any(|window| window == bytes));
            }
        }
        let expected: Vec<String> = spans::spans(&large).map(spans::id).collect();
        ids.sort();
        let mut sorted = expected;
        sorted.sort();
        assert_eq!(ids, sorted, "{protocol} {encoding}");
    }
}
