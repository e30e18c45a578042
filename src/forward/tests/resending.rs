//! What was refused is sent again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value;
use prost::Message;

use super::rig::{Received, Reply, Rig, Sink, request};
use crate::checksum;
use crate::egress::{EgressOptions, Glob, KeepRule, Secret, SpanCondition, SpanRule, Threshold};
use crate::forward::{ExporterOptions, Kept, Resender, Resent, Verdict, list_refused, read_refused};
use crate::otlp::wire::put_bytes;
use crate::otlp::{Encoding, Signal};

/// A backend that refuses everything until it is healed.
struct Backend {
    sink: Sink,
    is_healed: Arc<AtomicBool>,
}

impl Backend {
    async fn start() -> Backend {
        let is_healed = Arc::new(AtomicBool::new(false));
        let healed = Arc::clone(&is_healed);
        let answers =
            move |_: usize, _: &Received| Reply::status(if healed.load(Ordering::SeqCst) { 200 } else { 400 });
        Backend {
            sink: Sink::start(answers).await,
            is_healed,
        }
    }

    fn heal(&mut self) {
        self.is_healed.store(true, Ordering::SeqCst);
        self.sink.rest();
    }
}

/// A journal with one request, which the backend has refused.
async fn refused(backend: &Backend, encoding: Encoding, body: Bytes, egress: EgressOptions) -> (Rig, Kept) {
    let mut rig = Rig::new(&backend.sink.url());
    rig.options.egress = egress;
    rig.append(Signal::Traces, encoding, body).await;
    rig.start().stop().await;
    let kept = list_refused(&rig.refused()).unwrap();
    assert_eq!(kept.len(), 1);
    (rig, kept.into_iter().next().unwrap())
}

async fn resend(rig: &Rig, egress: EgressOptions, kept: &Kept) -> std::io::Result<Resent> {
    let options = ExporterOptions {
        egress,
        ..rig.options.clone()
    };
    Resender::new(&options).unwrap().resend(kept).await
}

fn redacting(patterns: &[&str]) -> EgressOptions {
    EgressOptions {
        redact: patterns.iter().map(|pattern| (*pattern).to_owned()).collect(),
        ..EgressOptions::default()
    }
}

fn holds(body: &[u8], text: &str) -> bool {
    body.windows(text.len()).any(|window| window == text.as_bytes())
}

#[tokio::test]
async fn it_goes_as_it_came_when_the_backend_takes_it() {
    let mut backend = Backend::start().await;
    let none = EgressOptions::default;
    let (rig, kept) = refused(&backend, Encoding::Gzip, request(["a"]), none()).await;
    let body = read_refused(&kept).unwrap();
    let Resent::Refused(answer) = resend(&rig, none(), &kept).await.unwrap() else {
        panic!("it is not healed yet");
    };
    assert_eq!(answer.verdict, Verdict::Refused);
    assert_eq!(list_refused(&rig.refused()).unwrap(), std::slice::from_ref(&kept));
    backend.heal();
    assert_eq!(resend(&rig, none(), &kept).await.unwrap(), Resent::Delivered);
    assert_eq!(list_refused(&rig.refused()).unwrap(), []);
    assert_eq!(backend.sink.next().await.body, body);
}

/// `ExportTraceServiceResponse` with so many rejected spans.
fn partial_success(rejected: u8) -> Reply {
    Reply::Http {
        status: 200,
        headers: vec![("content-type", "application/x-protobuf")],
        body: vec![0x0a, 0x08, 0x08, rejected, 0x12, 0x04, b'l', b'a', b't', b'e'].into(),
    }
}

#[tokio::test]
async fn a_success_that_rejects_every_span_delivers_nothing_and_the_file_stays() {
    for (rejected, stays) in [(2, true), (1, false)] {
        let answers = move |index: usize, _: &Received| match index {
            0 => Reply::status(400),
            _ => partial_success(rejected),
        };
        let sink = Sink::start(answers).await;
        let rig = Rig::new(&sink.url());
        rig.spans(["a", "b"]).await;
        rig.start().stop().await;
        let kept = list_refused(&rig.refused()).unwrap().remove(0);
        let answer = match resend(&rig, EgressOptions::default(), &kept).await.unwrap() {
            Resent::Refused(answer) if stays => answer,
            Resent::Partly(answer) if !stays => answer,
            other => panic!("{rejected}: {other:?}"),
        };
        let reason = format!("the backend took the request and rejected {rejected} of its 2 items: late");
        assert_eq!(answer.reason, reason);
        assert_eq!(list_refused(&rig.refused()).unwrap().len(), usize::from(stays));
    }
}

#[tokio::test]
async fn rules_that_came_since_are_applied_in_every_encoding() {
    for encoding in [Encoding::Identity, Encoding::Gzip] {
        for before in [EgressOptions::default(), redacting(&["something else"])] {
            let mut backend = Backend::start().await;
            let (rig, kept) = refused(&backend, encoding, request(["a SECRET name"]), before).await;
            backend.heal();
            let resent = resend(&rig, redacting(&["SECRET"]), &kept).await.unwrap();
            assert_eq!(resent, Resent::Delivered);
            let received = backend.sink.next().await;
            assert_eq!(received.names(), ["a [redacted] name"]);
            assert_eq!(
                received.header("content-encoding"),
                if encoding == Encoding::Gzip { "gzip" } else { "" }
            );
            assert_eq!(list_refused(&rig.refused()).unwrap(), []);
        }
    }
}

#[tokio::test]
async fn what_was_kept_by_a_version_that_did_not_say_under_which_rules_goes_through_those_of_today() {
    let mut backend = Backend::start().await;
    let rules = || redacting(&["SECRET"]);
    let (rig, kept) = refused(&backend, Encoding::Identity, request(["a"]), EgressOptions::default()).await;
    let contents = std::fs::read(&kept.path).unwrap();
    let end = contents.iter().position(|byte| *byte == b'\n').unwrap();
    let mut head: serde_json::Value = serde_json::from_slice(&contents[..end]).unwrap();
    let body = request(["a SECRET"]);
    head.as_object_mut().unwrap().remove("went_through").unwrap();
    head["body_bytes"] = body.len().into();
    head["body_crc32c"] = checksum::crc32c(&body).into();
    std::fs::write(&kept.path, [head.to_string().as_bytes(), b"\n", &body].concat()).unwrap();
    let kept = list_refused(&rig.refused()).unwrap().remove(0);
    backend.heal();
    assert_eq!(resend(&rig, rules(), &kept).await.unwrap(), Resent::Delivered);
    assert_eq!(backend.sink.next().await.names(), ["a [redacted]"]);
}

/// A request with an attribute of a resource.
fn with_attribute(key: &str, value: &str) -> Bytes {
    let (mut text, mut entry, mut resource, mut resources, mut body) = Default::default();
    put_bytes(&mut text, 1, value.as_bytes());
    put_bytes(&mut entry, 1, key.as_bytes());
    put_bytes(&mut entry, 2, &text);
    put_bytes(&mut resource, 1, &entry);
    put_bytes(&mut resources, 1, &resource);
    put_bytes(&mut body, 1, &resources);
    [Bytes::from(body), request(["a SECRET"])].concat().into()
}

fn attribute(body: Bytes) -> String {
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    let attributes = &request.resource_spans[0].resource.as_ref().unwrap().attributes;
    match attributes[0].value.as_ref().unwrap().value.as_ref().unwrap() {
        any_value::Value::StringValue(text) => text.clone(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_value_that_was_hashed_is_not_hashed_again_unless_the_rules_for_hashing_changed() {
    let hashing = |key: &str, patterns: &[&str]| EgressOptions {
        hash_attributes: vec!["user".to_owned()],
        hash_key: Secret::new(key),
        ..redacting(patterns)
    };
    let mut backend = Backend::start().await;
    let (rig, kept) = refused(
        &backend,
        Encoding::Identity,
        with_attribute("user", "alice"),
        hashing("k", &[]),
    )
    .await;
    let contents = std::fs::read(&kept.path).unwrap();
    assert!(!holds(&contents, "alice"));
    let digest = attribute(read_refused(&kept).unwrap());
    backend.heal();
    for (rules, is_equal) in [
        (hashing("k", &[]), true),
        (hashing("k", &["SECRET"]), true),
        (hashing("another", &["SECRET"]), false),
    ] {
        std::fs::write(&kept.path, &contents).unwrap();
        assert_eq!(resend(&rig, rules, &kept).await.unwrap(), Resent::Delivered);
        let received = backend.sink.next().await.decoded();
        assert_eq!(attribute(received) == digest, is_equal);
    }
}

#[tokio::test]
async fn spans_that_are_dropped_today_do_not_go_and_a_request_of_nothing_else_is_removed() {
    let dropping = |name: &str| EgressOptions {
        drop_spans: vec![SpanRule {
            any_of: vec![SpanCondition {
                names: vec![Glob::new(name)],
                ..SpanCondition::default()
            }],
            says: String::new(),
        }],
        // Of whole traces nothing is known here, so none is left out.
        ratio: Threshold::NEVER,
        keep: vec![KeepRule::Errors],
        ..EgressOptions::default()
    };
    let mut backend = Backend::start().await;
    let (rig, kept) = refused(
        &backend,
        Encoding::Identity,
        request(["a", "b"]),
        EgressOptions::default(),
    )
    .await;
    let contents = std::fs::read(&kept.path).unwrap();
    backend.heal();
    assert_eq!(resend(&rig, dropping("a"), &kept).await.unwrap(), Resent::Delivered);
    assert_eq!(backend.sink.next().await.names(), ["b"]);
    std::fs::write(&kept.path, contents).unwrap();
    assert_eq!(resend(&rig, dropping("*"), &kept).await.unwrap(), Resent::Dropped);
    assert_eq!(list_refused(&rig.refused()).unwrap(), []);
    assert_eq!(backend.sink.rest().len(), 0);
}

#[tokio::test]
async fn what_cannot_be_read_is_sent_only_without_rules_and_the_error_says_what_to_do() {
    let mut backend = Backend::start().await;
    let mut rig = Rig::new(&backend.sink.url());
    rig.options.egress = redacting(&["SECRET"]);
    let body = Bytes::from_static(&[0x0a, 0x7f]);
    rig.append_unchecked(Signal::Traces, body.clone()).await;
    rig.start().stop().await;
    let kept = list_refused(&rig.refused()).unwrap().remove(0);
    backend.heal();
    let error = resend(&rig, rig.options.egress.clone(), &kept)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("exporters.otlp") && error.contains("remove the file"),
        "{error}"
    );
    assert_eq!(list_refused(&rig.refused()).unwrap().len(), 1);
    assert_eq!(
        resend(&rig, EgressOptions::default(), &kept).await.unwrap(),
        Resent::Delivered
    );
    assert_eq!(backend.sink.next().await.body, body);
}
