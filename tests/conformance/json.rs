//! The peculiarities of OTLP/JSON.

use bytes::Bytes;
use http::Method;

use crate::fixture::{request, send};
use crate::requirements;
use crate::target::*;

requirements! {
    ids_are_hexadecimal: "JSON Protobuf Encoding", "MUST",
        "ids are hexadecimal in either case" => |target| accepts(target, &[
            r#""traceId":"5B8EFFF798038103D269B633813FC60C","spanId":"eee19b7ec3c1b174","parentSpanId":"EEE19B7EC3C1B173""#,
        ]);
    ids_are_not_base64: "JSON Protobuf Encoding", "MUST",
        "ids in base64, as protobuf's own JSON has them, are refused with 400" => |target| refuses(target, &[
            r#""traceId":"W47/95gDgQPSabYzgT/GDA==","spanId":"7uGbfsPBsXQ=""#,
        ]);
    enums_are_integers: "JSON Protobuf Encoding", "MUST",
        "enums are integers, also ones that are not known" => |target| accepts_with_ids(target, &[
            r#""kind":3,"status":{"code":2}"#,
            r#""kind":77"#,
        ]);
    unknown_keys_are_ignored: "JSON Protobuf Encoding", "MUST",
        "unknown keys are ignored, whatever their value" => |target| accepts_with_ids(target, &[
            r#""later":{"a":[1,{"b":null}]},"other":"x""#,
            r#""dropped_attributes_count":"not a number""#,
        ]);
    snake_case_is_unknown: "JSON Protobuf Encoding", "MUST",
        "keys are lowerCamelCase: `trace_id` is an unknown key" => |target| rejects(target,
            r#""trace_id":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174""#);
    integers_in_every_form: "JSON Protobuf Encoding", "MUST",
        "64-bit integers are strings or numbers, exponents included" => |target| accepts_with_ids(target, &[
            r#""startTimeUnixNano":"1544712660000000000","endTimeUnixNano":1544712661000000000"#,
            r#""startTimeUnixNano":1.5e9,"endTimeUnixNano":"1544712661000000000""#,
            r#""attributes":[{"key":"a","value":{"intValue":"-9223372036854775808"}},{"key":"b","value":{"intValue":5}}]"#,
        ]);
    integers_have_a_range: "JSON mapping of protobuf", "MUST",
        "integers out of range and fractions are refused with 400" => |target| refuses_with_ids(target, &[
            r#""startTimeUnixNano":"18446744073709551616""#,
            r#""startTimeUnixNano":1.5"#,
            r#""flags":-1"#,
            r#""kind":2147483648"#,
        ]);
    large_attributes_are_doubles: "Bad Data", "MAY",
        "an attribute's `intValue` that no 64-bit integer holds, as JavaScript may send it, is taken as a double and harms no other span" => |target| accepts_with_ids(target, &[
            r#""attributes":[{"key":"a","value":{"intValue":100000000000000000000}}]"#,
            r#""attributes":[{"key":"a","value":{"intValue":"9223372036854775808"}},{"key":"b","value":{"intValue":-1e30}}]"#,
        ]);
    null_is_absent: "JSON mapping of protobuf", "MUST",
        "`null` is as good as absent" => |target| accepts_with_ids(target, &[
            r#""parentSpanId":null,"attributes":null,"status":null,"kind":null,"startTimeUnixNano":null"#,
            r#""attributes":[{"key":"a","value":null},{"key":"b","value":{}}]"#,
        ]);
    special_numbers: "JSON mapping of protobuf", "MUST",
        "NaN and infinities are strings" => |target| accepts_with_ids(target, &[
            r#""attributes":[{"key":"a","value":{"doubleValue":"NaN"}},{"key":"b","value":{"doubleValue":"-Infinity"}}]"#,
        ]);
    bytes_are_base64: "JSON mapping of protobuf", "MUST",
        "other bytes are base64, standard or URL-safe, padded or not" => |target| accepts_with_ids(target, &[
            r#""attributes":[{"key":"a","value":{"bytesValue":"+/8="}},{"key":"b","value":{"bytesValue":"-_8"}}]"#,
        ]);
    content_types_may_have_parameters: "JSON Protobuf Encoding", "SHOULD",
        "`application/json; charset=utf-8` is JSON, and so is the answer" => parameters;
    structure_is_checked: "Bad Data", "MUST",
        "values of the wrong kind are refused with 400" => |target| refuses_with_ids(target, &[
            r#""name":5"#,
            r#""attributes":{}"#,
            r#""attributes":[{"key":"a","value":{"boolValue":"true"}}]"#,
            r#""events":[[]]"#,
        ]);
}

async fn parameters(target: &Target) -> Outcomes {
    over(&[Protocol::HttpJson], |_| async move {
        use hyper_util::client::legacy::Client;
        use hyper_util::rt::TokioExecutor;
        let headers = [("content-type", "application/json; charset=utf-8")];
        let body = Bytes::from(with_span(IDS));
        let request = request(Method::POST, target.http_address(), "/v1/traces", &headers, body);
        let answer = send(Client::builder(TokioExecutor::new()).build_http(), request).await;
        all([
            expect("the status", answer.status.as_u16(), 200),
            expect("JSON", answer.content_type().starts_with("application/json"), true),
        ])
    })
    .await
}

const IDS: &str = r#""traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174""#;

fn with_span(fields: &str) -> String {
    format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{{{fields}}}]}}]}}]}}"#)
}

async fn outcome(target: &Target, fields: &str, expected: Meaning) -> Outcome {
    let found = target.ask(Protocol::HttpJson, with_span(fields).as_bytes()).await;
    expect(&format!("the answer to {fields}"), found, expected)
}

async fn accepts(target: &Target, spans: &[&str]) -> Outcomes {
    let mut outcomes = Vec::new();
    for fields in spans {
        outcomes.push(outcome(target, fields, Meaning::Success(None)).await);
    }
    vec![(Protocol::HttpJson.name(), all(outcomes))]
}

async fn accepts_with_ids(target: &Target, spans: &[&str]) -> Outcomes {
    let spans: Vec<String> = spans.iter().map(|fields| format!("{IDS},{fields}")).collect();
    accepts(target, &spans.iter().map(String::as_str).collect::<Vec<_>>()).await
}

async fn rejects(target: &Target, fields: &str) -> Outcomes {
    vec![(
        Protocol::HttpJson.name(),
        outcome(target, fields, Meaning::Success(Some(1))).await,
    )]
}

async fn refuses_with_ids(target: &Target, spans: &[&str]) -> Outcomes {
    let spans: Vec<String> = spans.iter().map(|fields| format!("{IDS},{fields}")).collect();
    refuses(target, &spans.iter().map(String::as_str).collect::<Vec<_>>()).await
}

async fn refuses(target: &Target, spans: &[&str]) -> Outcomes {
    let mut outcomes = Vec::new();
    for fields in spans {
        let found = target.ask(Protocol::HttpJson, with_span(fields).as_bytes()).await;
        let code = match found {
            Meaning::Refused { code, .. } => code,
            Meaning::Success(_) | Meaning::Nonsense(_) => 200,
        };
        outcomes.push(expect(&format!("the status for {fields}"), code, 400));
    }
    vec![(Protocol::HttpJson.name(), all(outcomes))]
}
