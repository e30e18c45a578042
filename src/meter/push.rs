//! The derived metrics as OTLP, for people without a Prometheus: the same names, labels and values as a scrape shows.
//!
//! Temporality is cumulative. A series begins when the scrape's `_created` says, which a restart does not change; so a
//! point that is delivered twice, or late, says nothing new.

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Exemplar, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
    ScopeMetrics, Sum, exemplar, metric, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;

use crate::rules::series_key::label_values;

use super::store::{self, Description, FamilySnapshot, OVERFLOW_KEY};

/// Data points in one request: far below what any backend takes.
const POINTS: usize = 2_000;

/// A request, and how many data points it has.
pub(super) struct Request {
    pub(super) body: Vec<u8>,
    pub(super) points: u32,
}

/// All series as requests. `instance` tells this program from others that send to the same backend.
pub(super) fn encode(families: &[FamilySnapshot], instance: &str, now: u64) -> Vec<Request> {
    let mut requests = Vec::new();
    let mut metrics: Vec<Metric> = Vec::new();
    let mut points = 0;
    for family in families {
        for series in family.directory.order.chunks(POINTS) {
            if points + series.len() > POINTS {
                requests.push(request(std::mem::take(&mut metrics), instance, points));
                points = 0;
            }
            points += series.len();
            metrics.push(metric(family, series, now));
        }
    }
    if points > 0 {
        requests.push(request(metrics, instance, points));
    }
    requests
}

fn request(metrics: Vec<Metric>, instance: &str, points: usize) -> Request {
    let resource = Resource {
        attributes: vec![
            text("service.name", env!("CARGO_PKG_NAME")),
            text("service.version", env!("CARGO_PKG_VERSION")),
            text("service.instance.id", instance),
        ],
        ..Resource::default()
    };
    let scope = InstrumentationScope {
        name: env!("CARGO_PKG_NAME").to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    let request = ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(resource),
            scope_metrics: vec![ScopeMetrics {
                scope: Some(scope),
                metrics,
                ..ScopeMetrics::default()
            }],
            ..ResourceMetrics::default()
        }],
    };
    Request {
        body: request.encode_to_vec(),
        points: u32::try_from(points).unwrap_or(u32::MAX),
    }
}

fn metric(family: &FamilySnapshot, series: &[u32], now: u64) -> Metric {
    let description = &family.description;
    let series = series.iter().map(|series| *series as usize);
    let cumulative = AggregationTemporality::Cumulative as i32;
    let data = if description.is_counter {
        metric::Data::Sum(Sum {
            data_points: series.map(|series| number(family, series, now)).collect(),
            aggregation_temporality: cumulative,
            is_monotonic: true,
        })
    } else {
        metric::Data::Histogram(Histogram {
            data_points: series.map(|series| histogram(family, series, now)).collect(),
            aggregation_temporality: cumulative,
        })
    };
    Metric {
        // Without a unit: with one, some backends would append it to a name that ends in it already.
        name: description.name.clone(),
        description: description.help.clone(),
        data: Some(data),
        ..Metric::default()
    }
}

fn number(family: &FamilySnapshot, series: usize, now: u64) -> NumberDataPoint {
    NumberDataPoint {
        attributes: attributes(&family.description, &family.directory.keys[series]),
        start_time_unix_nano: family.directory.created[series],
        time_unix_nano: now,
        value: Some(number_data_point::Value::AsDouble(family.cells.sums[series])),
        exemplars: exemplars(family, series..series + 1),
        ..NumberDataPoint::default()
    }
}

fn histogram(family: &FamilySnapshot, series: usize, now: u64) -> HistogramDataPoint {
    let stride = family.description.stride();
    let cells = series * stride..(series + 1) * stride;
    let counts = &family.cells.counts[cells.clone()];
    HistogramDataPoint {
        attributes: attributes(&family.description, &family.directory.keys[series]),
        start_time_unix_nano: family.directory.created[series],
        time_unix_nano: now,
        count: counts.iter().sum(),
        sum: Some(family.cells.sums[series]),
        bucket_counts: counts.to_vec(),
        explicit_bounds: family.description.buckets.to_vec(),
        exemplars: exemplars(family, cells),
        ..HistogramDataPoint::default()
    }
}

fn exemplars(family: &FamilySnapshot, cells: std::ops::Range<usize>) -> Vec<Exemplar> {
    let held = family.cells.exemplars.get(cells).unwrap_or_default();
    let given = held.iter().filter(|exemplar| exemplar.time_unix_nano > 0);
    given
        .map(|held: &store::Exemplar| Exemplar {
            time_unix_nano: held.time_unix_nano,
            trace_id: held.trace_id.to_vec(),
            span_id: held.span_id.to_vec(),
            value: Some(exemplar::Value::AsDouble(held.value)),
            ..Exemplar::default()
        })
        .collect()
}

/// As a scrape shows them: an empty label is as good as none.
fn attributes(description: &Description, key: &[u8]) -> Vec<KeyValue> {
    if key == OVERFLOW_KEY {
        return vec![attribute("otel.metric.overflow", any_value::Value::BoolValue(true))];
    }
    let own = description.labels.iter().map(String::as_str).zip(label_values(key));
    let constant = description.const_labels.iter();
    let constant = constant.map(|(name, value)| (name.as_str(), value.as_str()));
    let given = own.chain(constant).filter(|(_, value)| !value.is_empty());
    given.map(|(name, value)| text(name, value)).collect()
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, any_value::Value::StringValue(value.to_owned()))
}

fn attribute(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::store::{RecordTime, Store};
    use crate::rules::Catalogue;
    use crate::rules::matcher::{Matcher, Workspace};
    use crate::rules::testing::{request as spans, span};

    fn pushed(max_series: usize, tools: usize) -> Vec<Metric> {
        let catalogue = Catalogue::built_in();
        let mut store = Store::new(&catalogue, max_series);
        let at = RecordTime {
            sequence: 0,
            received_at: 17,
        };
        let calls = (0..tools).map(|tool| span("runtime.execute_tool").with("tool_id", format!("t{tool:05}").as_str()));
        store.count(
            &Matcher::new(&catalogue, 1),
            &mut Workspace::default(),
            &spans(calls.collect::<Vec<_>>()),
            at,
        );
        let requests = encode(&store.snapshot(true), "journal-1", 99);
        assert!(requests.iter().all(|request| request.points as usize <= POINTS));
        let decoded = requests
            .iter()
            .map(|request| ExportMetricsServiceRequest::decode(&*request.body).unwrap());
        decoded
            .flat_map(|mut request| request.resource_metrics.remove(0).scope_metrics.remove(0).metrics)
            .collect()
    }

    fn points(metrics: &[Metric], name: &str) -> Vec<HistogramDataPoint> {
        let named = metrics.iter().filter(|metric| metric.name == name);
        named
            .flat_map(|metric| match &metric.data {
                Some(metric::Data::Histogram(histogram)) => {
                    assert_eq!(
                        histogram.aggregation_temporality,
                        AggregationTemporality::Cumulative as i32
                    );
                    histogram.data_points.clone()
                }
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn a_histogram_has_the_buckets_of_its_rule_and_begins_when_it_was_created() {
        let found = points(&pushed(2000, 1), "runtime_tool_execute_seconds");
        let [point] = &found[..] else { panic!("{found:?}") };
        assert_eq!(
            (point.start_time_unix_nano, point.time_unix_nano, point.count),
            (17, 99, 1)
        );
        assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
        assert_eq!(point.bucket_counts.iter().sum::<u64>(), 1);
        assert_eq!(point.attributes.len(), 2);
        assert_eq!(point.exemplars.len(), 1);
    }

    #[test]
    fn many_series_are_several_requests_and_none_is_missing() {
        let found = points(&pushed(10_000, 4_500), "runtime_tool_execute_seconds");
        assert_eq!(found.len(), 4_500);
    }

    #[test]
    fn what_is_over_the_limit_is_one_series_that_says_so() {
        let found = points(&pushed(3, 10), "runtime_tool_execute_seconds");
        assert_eq!(found.len(), 4);
        let overflow = found
            .iter()
            .find(|point| point.attributes[0].key == "otel.metric.overflow")
            .unwrap();
        assert_eq!(overflow.count, 7);
    }
}
