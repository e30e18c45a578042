//! What happens when the backend does not take what is sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::rig::{Received, Reply, Rig, Sink, request};
use crate::forward::{list_refused, read_refused};
use crate::otlp::{Encoding, Signal};

/// Answers `first`, then 200.
fn first(count: usize, reply: Reply) -> impl Fn(usize, &Received) -> Reply + Send + Sync + 'static {
    move |index, _| {
        if index < count {
            reply.clone()
        } else {
            Reply::status(200)
        }
    }
}

/// The reasons and span names of what is kept.
fn kept(rig: &Rig) -> Vec<(String, Vec<String>)> {
    let kept = list_refused(&rig.refused()).unwrap();
    let describe = |kept: &crate::forward::Kept| {
        let encoding = kept.refusal.encoding().unwrap();
        let body = crate::otlp::decompress(encoding, &read_refused(kept).unwrap(), 1 << 20).unwrap();
        (kept.refusal.reason.clone(), super::rig::names(&body))
    };
    kept.iter().map(describe).collect()
}

#[tokio::test]
async fn transient_answers_are_retried_until_the_request_is_delivered() {
    let transient = [
        Reply::status(503),
        Reply::status(502),
        Reply::status(429),
        Reply::status(500),
        Reply::Reset,
    ];
    for reply in transient {
        let mut sink = Sink::start(first(3, reply)).await;
        let rig = Rig::new(&sink.url());
        let body = rig.append(Signal::Traces, Encoding::Gzip, request(["a"])).await;
        let running = rig.start();
        for _ in 0..4 {
            assert_eq!(sink.next().await.body, body);
        }
        running.stop().await;
        assert_eq!(rig.saved(), Some(rig.end()));
        assert_eq!(rig.degraded(), None);
        assert_eq!(kept(&rig), []);
    }
}

#[tokio::test]
async fn retry_after_is_honoured() {
    let reply = Reply::Http {
        status: 503,
        headers: vec![("retry-after", "1")],
        body: Bytes::new(),
    };
    let mut sink = Sink::start(first(1, reply)).await;
    let rig = Rig::new(&sink.url());
    rig.spans(["a"]).await;
    let running = rig.start();
    sink.next().await;
    let refused = Instant::now();
    sink.next().await;
    assert!(
        refused.elapsed() >= Duration::from_millis(950),
        "{:?}",
        refused.elapsed()
    );
    running.stop().await;
}

#[tokio::test]
async fn a_backend_that_is_away_is_named_and_gets_everything_when_it_is_back() {
    let sink = Sink::start(|_, _| Reply::status(200)).await;
    let (address, url) = (sink.address.to_string(), sink.url());
    drop(sink);
    let rig = Rig::new(&url);
    rig.spans(["a", "b"]).await;
    let running = rig.start();
    let degraded = loop {
        match rig.degraded() {
            Some(degraded) => break degraded,
            None => tokio::task::yield_now().await,
        }
    };
    assert!(
        degraded.contains(&url) && degraded.contains("exporters.otlp.endpoint"),
        "{degraded}"
    );
    assert_eq!(rig.saved(), None);
    let mut sink = Sink::start_at(&address, None, |_, _| Reply::status(200)).await;
    assert_eq!(sink.next_spans(2).await, ["a", "b"]);
    running.stop().await;
    assert_eq!(rig.degraded(), None);
    assert_eq!(rig.saved(), Some(rig.end()));
}

#[tokio::test]
async fn an_answer_that_the_operator_can_cure_holds_the_queue_names_the_key_and_heals() {
    for (status, key) in [
        (401, "headers"),
        (403, "headers"),
        (404, "endpoint"),
        (405, "endpoint"),
        (415, "compression"),
    ] {
        let is_healed = Arc::new(AtomicBool::new(false));
        let healed = Arc::clone(&is_healed);
        let answers =
            move |_: usize, _: &Received| Reply::status(if healed.load(Ordering::SeqCst) { 200 } else { status });
        let mut sink = Sink::start(answers).await;
        let rig = Rig::new(&sink.url());
        rig.spans(["a"]).await;
        rig.spans(["b"]).await;
        let running = rig.start();
        for _ in 0..5 {
            sink.next().await;
        }
        let degraded = rig.degraded().unwrap();
        assert!(
            degraded.contains(&format!("exporters.otlp.{key}")) && degraded.contains(&status.to_string()),
            "{degraded}"
        );
        is_healed.store(true, Ordering::SeqCst);
        assert_eq!(sink.next().await.names(), ["a", "b"]);
        while rig.degraded().is_some() {
            tokio::task::yield_now().await;
        }
        running.stop().await;
        assert_eq!((rig.degraded(), kept(&rig)), (None, vec![]));
        assert_eq!(rig.saved(), Some(rig.end()));
    }
}

#[tokio::test]
async fn a_web_page_where_the_receiver_should_be_holds_the_queue_and_names_the_endpoint() {
    let is_healed = Arc::new(AtomicBool::new(false));
    let healed = Arc::clone(&is_healed);
    let answers = move |_: usize, _: &Received| match healed.load(Ordering::SeqCst) {
        true => Reply::status(200),
        false => Reply::Http {
            status: 200,
            headers: vec![("content-type", "text/html; charset=utf-8")],
            body: "<!doctype html>".into(),
        },
    };
    let mut sink = Sink::start(answers).await;
    let rig = Rig::new(&sink.url());
    rig.spans(["a"]).await;
    let running = rig.start();
    for _ in 0..3 {
        sink.next().await;
    }
    let degraded = rig.degraded().unwrap();
    assert!(
        degraded.contains("web page") && degraded.contains("exporters.otlp.endpoint"),
        "{degraded}"
    );
    assert_eq!(rig.saved(), None);
    is_healed.store(true, Ordering::SeqCst);
    while rig.degraded().is_some() {
        tokio::task::yield_now().await;
    }
    running.stop().await;
    assert_eq!((kept(&rig), rig.saved()), (vec![], Some(rig.end())));
}

#[tokio::test]
async fn of_a_joined_request_that_is_refused_only_the_culprit_is_set_aside() {
    let answers = |_: usize, received: &Received| match received.names().iter().any(|name| name.starts_with("bad")) {
        true => Reply::Http {
            status: 400,
            headers: vec![("content-type", "text/plain")],
            body: "odd span".into(),
        },
        false => Reply::status(200),
    };
    let mut sink = Sink::start(answers).await;
    let rig = Rig::new(&sink.url());
    for index in 0..30 {
        let name = if index % 10 == 3 {
            format!("bad {index}")
        } else {
            format!("good {index}")
        };
        rig.spans([name.as_str()]).await;
    }
    rig.start().stop().await;
    let taken = sink.rest().into_iter().map(|received| received.names());
    let taken = taken.filter(|names| !names.iter().any(|name| name.starts_with("bad")));
    let mut taken: Vec<String> = taken.flatten().collect();
    taken.sort();
    let mut good: Vec<String> = (0..30)
        .filter(|index| index % 10 != 3)
        .map(|index| format!("good {index}"))
        .collect();
    good.sort();
    assert_eq!(taken, good);
    let mut kept = kept(&rig);
    kept.sort();
    let reason = "400 Bad Request: odd span".to_owned();
    let expected = ["bad 13", "bad 23", "bad 3"].map(|name| (reason.clone(), vec![name.to_owned()]));
    assert_eq!(kept, expected);
    assert_eq!(rig.saved(), Some(rig.end()));
}

#[tokio::test]
async fn too_large_is_split_down_to_the_span_that_is_too_large_by_itself() {
    for encoding in [Encoding::Identity, Encoding::Gzip] {
        let answers =
            |_: usize, received: &Received| Reply::status(if received.decoded().len() > 400 { 413 } else { 200 });
        let mut sink = Sink::start(answers).await;
        let rig = Rig::new(&sink.url());
        let huge = "h".repeat(1000);
        let mut names: Vec<String> = (0..40).map(|index| format!("span {index:02}")).collect();
        names.insert(17, huge.clone());
        rig.append(Signal::Traces, encoding, request(names.iter().map(String::as_str)))
            .await;
        rig.start().stop().await;
        let taken = sink
            .rest()
            .into_iter()
            .filter(|received| received.decoded().len() <= 400);
        let mut taken: Vec<String> = taken.flat_map(|received| received.names()).collect();
        taken.sort();
        names.retain(|name| *name != huge);
        assert_eq!(taken, names);
        assert_eq!(kept(&rig), [("413 Payload Too Large".to_owned(), vec![huge])]);
        assert_eq!(rig.saved(), Some(rig.end()));
    }
}

#[tokio::test]
async fn a_success_is_a_success_whatever_its_body_and_partial_success_is_not_retried() {
    let partial = [0x0a, 0x08, 0x08, 0x01, 0x12, 0x04, b'l', b'a', b't', b'e'];
    for body in [
        Bytes::from_static(b"\xff\xff garbage"),
        Bytes::copy_from_slice(&partial),
        Bytes::from(vec![7; 5 << 20]),
    ] {
        let headers = vec![("content-type", "application/x-protobuf")];
        let reply = Reply::Http {
            status: 200,
            headers,
            body,
        };
        let mut sink = Sink::start(move |_, _| reply.clone()).await;
        let rig = Rig::new(&sink.url());
        rig.spans(["a", "b"]).await;
        let running = rig.start();
        sink.next().await;
        running.stop().await;
        assert_eq!(sink.rest().len(), 0);
        assert_eq!(rig.saved(), Some(rig.end()));
    }
}

#[tokio::test]
async fn a_backend_that_does_not_answer_in_time_is_asked_again() {
    let mut sink = Sink::start(first(2, Reply::Silence)).await;
    let mut rig = Rig::new(&sink.url());
    rig.options.timeout = Duration::from_millis(50);
    rig.spans(["a"]).await;
    let running = rig.start();
    for _ in 0..3 {
        assert_eq!(sink.next().await.names(), ["a"]);
    }
    running.stop().await;
    assert_eq!(rig.saved(), Some(rig.end()));
}

#[tokio::test]
async fn a_request_that_the_backend_alone_cannot_digest_is_set_aside_while_others_flow() {
    let answers = |_: usize, received: &Received| {
        Reply::status(if received.names().iter().any(|name| name == "bad") {
            500
        } else {
            200
        })
    };
    let mut sink = Sink::start(answers).await;
    let rig = Rig::new(&sink.url());
    rig.spans(["bad"]).await;
    let running = rig.start();
    let mut sent = 0;
    while kept(&rig).is_empty() {
        sent += 1;
        rig.spans([format!("good {sent}").as_str()]).await;
        while !sink.next().await.names().iter().any(|name| name.starts_with("good")) {}
    }
    running.stop().await;
    assert_eq!(
        kept(&rig),
        [("500 Internal Server Error".to_owned(), vec!["bad".to_owned()])]
    );
    assert_eq!(rig.saved(), Some(rig.end()));
}

#[tokio::test]
async fn a_backend_without_metrics_does_not_keep_traces_waiting() {
    let answers = |_: usize, received: &Received| Reply::status(if received.path == "/v1/metrics" { 404 } else { 200 });
    let mut sink = Sink::start(answers).await;
    let rig = Rig::new(&sink.url());
    rig.append(Signal::Metrics, Encoding::Identity, Bytes::from_static(&[0x0a, 0x00]))
        .await;
    let metrics = rig.end() - 1;
    rig.spans(["a"]).await;
    let running = rig.start();
    while sink.next().await.path != "/v1/traces" {}
    while rig.degraded().is_none() {
        tokio::task::yield_now().await;
    }
    let degraded = rig.degraded().unwrap();
    assert!(
        degraded.contains("(metrics): 404") && degraded.contains("exporters.otlp.signals"),
        "{degraded}"
    );
    running.stop().await;
    assert!(rig.saved().is_none_or(|saved| saved <= metrics));
}

#[tokio::test]
async fn with_a_limit_a_request_is_given_up_and_the_next_ones_go() {
    let answers = |_: usize, received: &Received| {
        Reply::status(if received.names().iter().any(|name| name == "a") {
            503
        } else {
            200
        })
    };
    let mut sink = Sink::start(answers).await;
    let mut rig = Rig::new(&sink.url());
    rig.options.merge = false;
    rig.options.retry_on_failure.max_elapsed_time = Duration::from_millis(100);
    rig.spans(["a"]).await;
    let running = rig.start();
    sink.next().await;
    rig.spans(["b"]).await;
    while sink.next().await.names() != ["b"] {}
    while rig.saved() != Some(rig.end()) {
        tokio::task::yield_now().await;
    }
    running.stop().await;
    assert_eq!(kept(&rig), []);
}

#[tokio::test]
async fn an_exporter_whose_backend_is_away_does_not_slow_another_one() {
    let away = Sink::start(|_, _| Reply::status(200)).await;
    let mut here = Sink::start(|_, _| Reply::status(200)).await;
    let mut rig = Rig::new(&here.url());
    let running = rig.start();
    rig.options.endpoint = away.url().into();
    drop(away);
    let second = rig.start_as("otlp/second", &rig.options);
    let names: Vec<String> = (0..100).map(|index| format!("span {index}")).collect();
    for name in &names {
        rig.spans([name.as_str()]).await;
    }
    assert_eq!(here.next_spans(100).await, names);
    running.stop().await;
    assert_eq!(rig.saved(), Some(rig.end()));
    second.stop().await;
    let saved = crate::journal::load_position(&rig.positions(), "otlp/second").unwrap();
    assert!(
        saved.is_none_or(|position| position.next <= rig.end() - 100),
        "{saved:?}"
    );
}

#[tokio::test]
async fn a_keep_alive_connection_that_the_backend_closes_is_no_failure() {
    // The second request of every pair dies with its connection.
    let mut sink = Sink::start(|index, _| {
        if index % 3 == 1 {
            Reply::Reset
        } else {
            Reply::status(200)
        }
    })
    .await;
    let mut rig = Rig::new(&sink.url());
    rig.options.retry_on_failure.initial_interval = Duration::from_secs(3600);
    rig.options.retry_on_failure.max_interval = Duration::from_secs(3600);
    let running = rig.start();
    for name in ["a", "b", "c", "d"] {
        rig.spans([name]).await;
        while sink.next().await.names() != [name] {}
    }
    running.stop().await;
    assert_eq!(rig.degraded(), None);
    assert_eq!(rig.saved(), Some(rig.end()));
}

#[tokio::test]
async fn a_second_try_at_once_is_an_attempt_of_its_own_in_the_metrics() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let exposition = recorder.handle();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let mut sink = Sink::start(first(1, Reply::Reset)).await;
    let rig = Rig::new(&sink.url());
    rig.spans(["a"]).await;
    let running = rig.start();
    for _ in 0..2 {
        sink.next().await;
    }
    running.stop().await;
    let text = exposition.render();
    for line in [
        r#"spanledger_exporter_attempts_total{exporter="otlp",result="transient"} 1"#,
        r#"spanledger_exporter_attempts_total{exporter="otlp",result="delivered"} 1"#,
        r#"spanledger_exporter_attempt_seconds_count{exporter="otlp"} 2"#,
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn its_metrics_tell_what_became_of_every_request() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let exposition = recorder.handle();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let partial = Bytes::copy_from_slice(&[0x0a, 0x08, 0x08, 0x01, 0x12, 0x04, b'l', b'a', b't', b'e']);
    let answers = move |index: usize, received: &Received| match (index, received.names().join("").as_str()) {
        (0, _) => Reply::status(503),
        (1, _) => Reply::status(401),
        (_, "bad") => Reply::status(400),
        _ => Reply::Http {
            status: 200,
            headers: vec![("content-type", "application/x-protobuf")],
            body: partial.clone(),
        },
    };
    let mut sink = Sink::start(answers).await;
    let mut rig = Rig::new(&sink.url());
    rig.options.merge = false;
    rig.options.max_concurrent_requests = 1;
    rig.spans(["a", "b", "c"]).await;
    rig.spans(["bad"]).await;
    let running = rig.start();
    for _ in 0..4 {
        sink.next().await;
    }
    running.stop().await;
    let text = exposition.render();
    for line in [
        r#"spanledger_exporter_attempts_total{exporter="otlp",result="transient"} 1"#,
        r#"spanledger_exporter_attempts_total{exporter="otlp",result="curable"} 1"#,
        r#"spanledger_exporter_attempts_total{exporter="otlp",result="refused"} 1"#,
        r#"spanledger_exporter_attempts_total{exporter="otlp",result="delivered"} 1"#,
        r#"spanledger_exporter_sent_requests_total{exporter="otlp",signal="traces"} 1"#,
        r#"spanledger_exporter_sent_items_total{exporter="otlp",signal="traces"} 2"#,
        r#"spanledger_exporter_rejected_items_total{exporter="otlp",signal="traces"} 1"#,
        r#"spanledger_exporter_refused_requests_total{exporter="otlp",signal="traces"} 1"#,
        r#"spanledger_exporter_holding{exporter="otlp",signal="traces"} 0"#,
        r#"spanledger_exporter_in_flight_requests{exporter="otlp"} 0"#,
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn shutdown_does_not_wait_for_a_backend_that_is_away_and_keeps_everything() {
    let sink = Sink::start(|_, _| Reply::status(200)).await;
    let (address, url) = (sink.address.to_string(), sink.url());
    drop(sink);
    let mut rig = Rig::new(&url);
    rig.options.retry_on_failure.initial_interval = Duration::from_secs(3600);
    rig.options.retry_on_failure.max_interval = Duration::from_secs(3600);
    rig.spans(["a"]).await;
    let running = rig.start();
    while rig.degraded().is_none() {
        tokio::task::yield_now().await;
    }
    running.stop().await;
    let mut sink = Sink::start_at(&address, None, |_, _| Reply::status(200)).await;
    let running = rig.start();
    assert_eq!(sink.next().await.names(), ["a"]);
    running.stop().await;
}

#[tokio::test]
async fn shutdown_ends_in_time_although_the_backend_is_silent() {
    let mut sink = Sink::start(|_, _| Reply::Silence).await;
    let mut rig = Rig::new(&sink.url());
    rig.shutdown_timeout = Duration::from_millis(50);
    rig.spans(["a"]).await;
    let running = rig.start();
    sink.next().await;
    running.stop().await;
    assert_eq!(rig.saved(), None);
}
