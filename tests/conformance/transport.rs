//! Transport, paths, sizes, encodings, and what success looks like.

use bytes::Bytes;
use http::Method;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList};
use opentelemetry_proto::tonic::trace::v1::ResourceSpans;
use prost::Message;
use spanledger::otlp::{Encoding, Signal};

use crate::fixture::*;
use crate::requirements;
use crate::target::*;

requirements! {
    none_and_gzip_are_taken: "Protocol details", "MUST",
        "the compressions `none` and `gzip` are supported" => compressions;
    further_compressions_are_taken: "–", "MAY",
        "zstd, deflate, snappy and lz4 are supported, which the reference Collector takes too" => further_compressions;
    every_signal_is_served: "OTLP/gRPC, OTLP/HTTP", "MUST",
        "traces, metrics and logs are served at their services and paths" => signals;
    both_encodings_share_a_port: "OTLP/HTTP Default Port", "SHOULD",
        "protobuf and JSON are served on one port, chosen by content type" => one_port;
    grpc_and_http_share_a_port: "OTLP/HTTP Default Port", "MAY",
        "gRPC and HTTP are served on one port" => grpc_on_the_http_port;
    http2_is_served: "OTLP/HTTP", "MAY",
        "HTTP/1.1 and HTTP/2 are both served" => http2;
    empty_requests_succeed: "Full Success", "SHOULD",
        "a request without telemetry succeeds" => empty;
    empty_envelopes_are_harmless: "Implementation Recommendations", "MAY",
        "envelopes without spans are ignored" => empty_envelopes;
    full_success_is_plain: "Full Success", "MUST",
        "full success leaves `partial_success` unset, with status 200 and the content type of the request" => full_success;
    invalid_ids_are_partial_success: "Partial Success", "MUST",
        "spans with ids of the wrong length or all zero are rejected singly, with their number and a message" => partial_success;
    every_value_is_taken: "AnyValue", "MUST",
        "empty, bytes, mixed array and nested map values are accepted" => values;
    string_references_are_absent: "KeyValue, AnyValue", "MUST",
        "references into the string table of profiles are not fatal in other signals" => string_references;
    timestamps_need_not_be_in_order: "Span", "MUST",
        "a span that ends before it starts, has no kind, or no name is accepted" => odd_spans;
    unknown_fields_are_ignored: "Future Versions and Interoperability", "MUST",
        "unknown protobuf fields are ignored" => unknown_fields;
}

async fn compressions(target: &Target) -> Outcomes {
    over(&ALL, |protocol| async move {
        let mut outcomes = Vec::new();
        for encoding in [Encoding::Identity, Encoding::Gzip] {
            let answer = target.send(protocol, encoding, &protocol.encode(&traces(1))).await;
            outcomes.push(expect(
                encoding.token(),
                meaning(protocol, &answer),
                Meaning::Success(None),
            ));
        }
        all(outcomes)
    })
    .await
}

async fn further_compressions(target: &Target) -> Outcomes {
    over(&ALL, |protocol| async move {
        let mut outcomes = Vec::new();
        for encoding in [Encoding::Zstd, Encoding::Deflate, Encoding::Snappy, Encoding::Lz4] {
            let answer = target.send(protocol, encoding, &protocol.encode(&traces(1))).await;
            outcomes.push(expect(
                encoding.token(),
                meaning(protocol, &answer),
                Meaning::Success(None),
            ));
        }
        all(outcomes)
    })
    .await
}

async fn signals(target: &Target) -> Outcomes {
    let mut outcomes = Vec::new();
    let calls = Signal::ALL.map(|signal| target.call(target.grpc_address(), signal.grpc_path(), &[], framed(0, b"")));
    let mut grpc = Vec::new();
    for call in calls {
        grpc.push(expect(
            "grpc-status",
            call.await.grpc_status().to_owned(),
            "0".to_owned(),
        ));
    }
    outcomes.push((Protocol::Grpc.name(), all(grpc)));
    for (protocol, body) in [(Protocol::HttpProtobuf, ""), (Protocol::HttpJson, "{}")] {
        let mut http = Vec::new();
        for signal in Signal::ALL {
            let answer = target
                .http(protocol, Method::POST, signal.path(), &[], Bytes::from(body))
                .await;
            http.push(expect("status", answer.status.as_u16(), 200));
        }
        outcomes.push((protocol.name(), all(http)));
    }
    outcomes
}

async fn one_port(target: &Target) -> Outcomes {
    over(&HTTP, |protocol| async move {
        let found = target.ask(protocol, &protocol.encode(&traces(1))).await;
        expect("the answer", found, Meaning::Success(None))
    })
    .await
}

async fn grpc_on_the_http_port(target: &Target) -> Outcomes {
    over(&[Protocol::Grpc], |protocol| async move {
        let message = framed(0, &protocol.encode(&traces(1)));
        let answer = target.call(target.http_address(), GRPC_TRACES, &[], message).await;
        expect("the answer", meaning(protocol, &answer), Meaning::Success(None))
    })
    .await
}

async fn http2(target: &Target) -> Outcomes {
    use hyper_util::client::legacy::Client;
    use hyper_util::rt::TokioExecutor;
    over(&HTTP, |protocol| async move {
        let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
        let headers = [("content-type", protocol.content_type())];
        let body = protocol.encode(&traces(1));
        let answer = send(
            client,
            request(Method::POST, target.http_address(), "/v1/traces", &headers, body),
        )
        .await;
        expect(
            "the answer over HTTP/2",
            meaning(protocol, &answer),
            Meaning::Success(None),
        )
    })
    .await
}

async fn empty(target: &Target) -> Outcomes {
    over(&ALL, |protocol| async move {
        let found = target
            .ask(protocol, &protocol.encode(&ExportTraceServiceRequest::default()))
            .await;
        expect("the answer", found, Meaning::Success(None))
    })
    .await
}

async fn empty_envelopes(target: &Target) -> Outcomes {
    over(&ALL, |protocol| async move {
        let mut request = traces_of(Vec::new());
        request.resource_spans.push(ResourceSpans::default());
        expect(
            "the answer",
            target.ask(protocol, &protocol.encode(&request)).await,
            Meaning::Success(None),
        )
    })
    .await
}

async fn full_success(target: &Target) -> Outcomes {
    over(&ALL, |protocol| async move {
        let answer = target
            .send(protocol, Encoding::Identity, &protocol.encode(&traces(1)))
            .await;
        all([
            expect("the status", answer.status.as_u16(), 200),
            expect("the content type", answer.content_type(), protocol.content_type()),
            expect("the answer", meaning(protocol, &answer), Meaning::Success(None)),
            expect(
                "that partial_success is set",
                response(protocol, &answer).is_ok_and(|it| it.partial_success.is_some()),
                false,
            ),
        ])
    })
    .await
}

async fn partial_success(target: &Target) -> Outcomes {
    over(&ALL, |protocol| async move {
        let mut zero = span("zero", 2);
        zero.trace_id = vec![0; 16];
        let mut short = span("short", 3);
        short.span_id = vec![3; 7];
        let mut absent = span("absent", 4);
        absent.span_id = Vec::new();
        let request = traces_of(vec![span("good", 1), zero, short, absent]);
        expect(
            "the answer",
            target.ask(protocol, &protocol.encode(&request)).await,
            Meaning::Success(Some(3)),
        )
    })
    .await
}

async fn values(target: &Target) -> Outcomes {
    over(&ALL, |protocol| async move {
        let value = |value| Some(AnyValue { value: Some(value) });
        let nested = KeyValue {
            key: "k".to_owned(),
            value: Some(AnyValue { value: None }),
            ..Default::default()
        };
        let mixed = [
            Value::StringValue("a".to_owned()),
            Value::BoolValue(true),
            Value::BytesValue(vec![0, 255]),
        ];
        let array = ArrayValue {
            values: mixed.into_iter().filter_map(value).collect(),
        };
        let values = [
            Some(AnyValue { value: None }),
            None,
            value(Value::BytesValue(vec![1, 2, 3])),
            value(Value::DoubleValue(-0.5)),
            value(Value::IntValue(i64::MIN)),
            value(Value::ArrayValue(array)),
            value(Value::KvlistValue(KeyValueList { values: vec![nested] })),
        ];
        let mut span = span("values", 1);
        span.attributes.extend(values.into_iter().map(|value| KeyValue {
            key: "the same".to_owned(),
            value,
            ..Default::default()
        }));
        let found = target.ask(protocol, &protocol.encode(&traces_of(vec![span]))).await;
        expect("the answer", found, Meaning::Success(None))
    })
    .await
}

async fn string_references(target: &Target) -> Outcomes {
    over(&ALL, |protocol| async move {
        let mut span = span("references", 1);
        span.attributes.push(KeyValue {
            key_strindex: 3,
            value: Some(AnyValue {
                value: Some(Value::StringValueStrindex(7)),
            }),
            ..Default::default()
        });
        let found = target.ask(protocol, &protocol.encode(&traces_of(vec![span]))).await;
        expect("the answer", found, Meaning::Success(None))
    })
    .await
}

async fn odd_spans(target: &Target) -> Outcomes {
    over(&ALL, |protocol| async move {
        let mut backwards = span("backwards", 1);
        backwards.end_time_unix_nano = 1;
        let mut plain = span("", 2);
        plain.kind = 0;
        plain.flags = u32::MAX;
        let request = traces_of(vec![backwards, plain]);
        let found = target.ask(protocol, &protocol.encode(&request)).await;
        expect("the answer", found, Meaning::Success(None))
    })
    .await
}

async fn unknown_fields(target: &Target) -> Outcomes {
    over(&[Protocol::Grpc, Protocol::HttpProtobuf], |protocol| async move {
        let mut body = traces(1).encode_to_vec();
        prost::encoding::string::encode(1000, &"of a later version".to_owned(), &mut body);
        expect("the answer", target.ask(protocol, &body).await, Meaning::Success(None))
    })
    .await
}
