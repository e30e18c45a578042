//! Metric push: a backend gets the derived metrics by OTLP, as a scrape shows them, across a kill.

use crate::common::program::Setup;
use crate::common::random;
use crate::common::send::{Route, Sender};
use crate::common::sink::{Delivery, Sink};
use crate::common::spans;
use crate::reload::{READ_AGAIN, reloaded};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::metrics::v1::{AggregationTemporality, NumberDataPoint, metric, number_data_point};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::json;

const METRIC: &str = "code_executions_total";

/// The newest point of the one series, and what the sender calls itself.
fn newest(deliveries: &[Delivery]) -> Option<(NumberDataPoint, f64, String)> {
    let requests = deliveries.iter().filter(|delivery| delivery.path == "/v1/metrics");
    let requests = requests.map(|delivery| ExportMetricsServiceRequest::decode(delivery.body.clone()).unwrap());
    let resources = requests.flat_map(|request| request.resource_metrics);
    let points = resources.flat_map(|resource| {
        let attributes = resource.resource.unwrap().attributes;
        let instance = attributes
            .into_iter()
            .find(|attribute| attribute.key == "service.instance.id")
            .unwrap();
        let metrics = resource.scope_metrics.into_iter().flat_map(|scope| scope.metrics);
        let named = metrics.filter(|metric| metric.name == METRIC);
        let points = named.flat_map(|metric| match metric.data {
            Some(metric::Data::Sum(sum)) => {
                assert!(sum.is_monotonic);
                assert_eq!(sum.aggregation_temporality, AggregationTemporality::Cumulative as i32);
                sum.data_points
            }
            other => panic!("{other:?}"),
        });
        points
            .map(move |point| (point, format!("{:?}", instance.value)))
            .collect::<Vec<_>>()
    });
    let (point, instance) = points.max_by_key(|(point, _)| point.time_unix_nano)?;
    let Some(number_data_point::Value::AsDouble(value)) = point.value else {
        panic!("{point:?}")
    };
    Some((point, value, instance))
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_begins_and_ends_pushing() {
    let sink = Sink::start().await;
    let setup = Setup::forwarding_to(sink.url());
    let program = setup.start().await;
    let request = spans::request(
        Vec::new(),
        [(
            "sos".to_owned(),
            Span {
                trace_id: vec![1; 16],
                span_id: vec![2; 8],
                name: "code.execute".to_owned(),
                attributes: spans::attributes(&json!({"code.runtime": "e2b", "code.success": true})),
                ..Span::default()
            },
        )],
    );
    Sender::to(&program).await.accepted(Route::Grpc, &request).await;
    let setup = setup.set("metrics.push_interval", "1s");
    setup.config();
    program.signal(rustix::process::Signal::HUP);
    sink.wait("a push of one execution", |all| {
        newest(all).filter(|(_, value, _)| *value == 1.0)
    })
    .await;
    let setup = setup.set("metrics.push_interval", "");
    setup.config();
    program.signal(rustix::process::Signal::HUP);
    // Both are named as applied, and after the second there is not even the push at the end.
    let key = "\"key\":\"metrics.push_interval\"";
    crate::common::eventually("the log names the key twice", || async {
        let log = program.log();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(key)).collect();
        assert!(!lines.iter().any(|line| line.contains("restart")), "{lines:?}");
        if lines.len() == 2 {
            Ok(())
        } else {
            Err(format!("{lines:?}"))
        }
    })
    .await;
    program.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_sighup_pushed_metrics_go_to_the_exporter_that_runs_whatever_the_file_has_in_its_place() {
    let sink = Sink::start().await;
    let mut setup = Setup::forwarding_to(sink.url()).set("metrics.push_interval", "1s");
    let program = setup.start().await;
    let sender = Sender::to(&program).await;
    let execute = async |number: u8| {
        let span = Span {
            trace_id: vec![number; 16],
            span_id: vec![number; 8],
            name: "code.execute".to_owned(),
            attributes: spans::attributes(&json!({"code.runtime": "e2b", "code.success": true})),
            ..Span::default()
        };
        let request = spans::request(Vec::new(), [("sos".to_owned(), span)]);
        sender.accepted(Route::Grpc, &request).await;
        // The push before this one was read: what was not read keeps further ones back.
        let executions = f64::from(number);
        sink.wait(&format!("a push of {number} executions"), |all| {
            newest(all).filter(|(_, value, _)| *value == executions)
        })
        .await;
    };
    execute(1).await;
    let renamed = json!({"otlp/renamed": {"endpoint": sink.url()}});
    let without_metrics = json!({"otlp/renamed": {"endpoint": sink.url(), "signals": ["traces"]}});
    for (times, exporters) in [renamed, without_metrics, json!({})].into_iter().enumerate() {
        setup = setup.set("exporters", exporters);
        setup.config();
        reloaded(&program, READ_AGAIN, times + 1).await;
        execute(times as u8 + 2).await;
    }
    program.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pushed_metrics_are_those_of_the_scrape_and_a_killed_program_goes_on_where_it_was() {
    let mut random = random("pushed_metrics");
    let sink = Sink::start().await;
    let setup = Setup::forwarding_to(sink.url()).set("metrics.push_interval", "1s");
    let mut send = async |program: &_, many: usize| {
        let span = |random: &mut fastrand::Rng| Span {
            trace_id: random.u128(1..).to_be_bytes().to_vec(),
            span_id: random.u64(1..).to_be_bytes().to_vec(),
            name: "code.execute".to_owned(),
            attributes: spans::attributes(
                &json!({"code.runtime": "e2b", "code.language": "python", "code.success": true}),
            ),
            ..Span::default()
        };
        let spans: Vec<_> = (0..many)
            .map(|_| ("sos-backend".to_owned(), span(&mut random)))
            .collect();
        Sender::to(program)
            .await
            .accepted(Route::Grpc, &spans::request(Vec::new(), spans))
            .await;
    };

    let program = setup.start().await;
    send(&program, 7).await;
    let seven = |deliveries: &[Delivery]| newest(deliveries).filter(|(_, value, _)| *value == 7.0);
    let (first, _, instance) = sink.wait("a push of seven executions", seven).await;
    assert!(first.start_time_unix_nano > 0 && first.start_time_unix_nano <= first.time_unix_nano);
    let labels = [("runtime", "e2b"), ("language", "python"), ("outcome", "success")];
    assert_eq!(first.attributes.len(), labels.len());
    assert_eq!(program.scrape().await.get(METRIC, &labels), Some(7.0));
    program.kill();

    let program = setup.start().await;
    send(&program, 5).await;
    let twelve = |deliveries: &[Delivery]| newest(deliveries).filter(|(_, value, _)| *value == 12.0);
    let (second, _, same_instance) = sink.wait("a push of twelve executions", twelve).await;
    assert_eq!(
        second.start_time_unix_nano, first.start_time_unix_nano,
        "the series is the same one"
    );
    assert_eq!(same_instance, instance);

    // What was counted last is pushed at the end, whenever the next turn would have been.
    send(&program, 3).await;
    program
        .scrape_until("fifteen counted", |scrape| match scrape.get(METRIC, &labels) {
            Some(15.0) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    let (status, log) = program.terminate().await;
    assert!(status.success(), "{log}");
    let fifteen = |deliveries: &[Delivery]| newest(deliveries).filter(|(_, value, _)| *value == 15.0);
    sink.wait("a push of fifteen executions", fifteen).await;
}
