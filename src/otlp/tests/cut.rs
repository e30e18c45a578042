//! Spans with invalid ids are cut out singly; everything else stays byte for byte.

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;

use super::{Generator, for_seeds};
use crate::otlp::TraceRequest;
use crate::otlp::schema::TRACE_REQUEST;
use crate::otlp::wire::put_bytes;

fn has_valid_ids(span: &opentelemetry_proto::tonic::trace::v1::Span) -> bool {
    let is_valid = |id: &[u8], length| id.len() == length && id.iter().any(|byte| *byte != 0);
    is_valid(&span.trace_id, 16) && is_valid(&span.span_id, 8)
}

#[test]
fn what_is_left_is_what_decoding_filtering_and_encoding_leaves() {
    for_seeds(500, |seed| {
        let mut generator = Generator::new(seed);
        let body = generator.traces().encode_to_vec();
        let body = Bytes::from(generator.scrambled(&body, &TRACE_REQUEST));

        let mut expected = ExportTraceServiceRequest::decode(&body[..]).unwrap();
        let (mut kept, mut rejected) = (0, 0);
        for scope in expected
            .resource_spans
            .iter_mut()
            .flat_map(|resource| &mut resource.scope_spans)
        {
            rejected += scope.spans.iter().filter(|span| !has_valid_ids(span)).count() as u32;
            scope.spans.retain(has_valid_ids);
            kept += scope.spans.len() as u32;
        }

        let checked = TraceRequest::parse(body.clone()).unwrap();
        assert_eq!((checked.spans, checked.rejected), (kept, rejected));
        assert_eq!(checked.request.span_count() as u32, kept);
        let left = checked.request.bytes();
        // Compared as bytes, since a double may be NaN.
        assert_eq!(
            ExportTraceServiceRequest::decode(&left[..]).unwrap().encode_to_vec(),
            expected.encode_to_vec()
        );
        if rejected == 0 {
            assert_eq!(left.as_ptr(), body.as_ptr(), "nothing to cut, nothing to copy");
        }
    });
}

/// A message from its fields: number and contents.
fn message(fields: &[(u32, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    fields
        .iter()
        .for_each(|(number, contents)| put_bytes(&mut out, *number, contents));
    out
}

#[test]
fn unknown_fields_and_the_order_of_fields_survive_at_every_level() {
    let span = |trace_id: &[u8], name: &[u8]| {
        message(&[
            (5, name),
            (99, b"new in span"),
            (1, trace_id),
            (2, b"spanspan"),
            (98, &[0xff; 200]),
        ])
    };
    let good = span(b"tracetracetracet", b"good");
    let request = |spans: &[&[u8]]| {
        let mut scope = message(&[(3, b"schema"), (90, b"new in scope")]);
        spans.iter().for_each(|span| put_bytes(&mut scope, 2, span));
        put_bytes(&mut scope, 91, b"behind the spans");
        let resource = message(&[(2, &scope), (80, b"new in resource"), (1, b""), (2, b"")]);
        Bytes::from(message(&[(70, b"new in request"), (1, &resource), (71, b"end")]))
    };
    let short = span(b"trace", b"short");
    let zero = span(&[0; 16], b"zero");
    let checked = TraceRequest::parse(request(&[&short, &good, &zero, &good, &short])).unwrap();
    assert_eq!((checked.spans, checked.rejected), (2, 3));
    assert_eq!(checked.request.bytes(), &request(&[&good, &good]));

    let nothing_left = TraceRequest::parse(request(&[&zero])).unwrap();
    assert_eq!((nothing_left.spans, nothing_left.rejected), (0, 1));
    assert_eq!(nothing_left.request.bytes(), &request(&[]));
}

#[test]
fn an_id_that_is_given_twice_is_judged_by_its_last_value() {
    let parse = |span: &[(u32, &[u8])]| {
        let scope = message(&[(2, &message(span))]);
        TraceRequest::parse(message(&[(1, &message(&[(2, &scope)]))]).into())
            .unwrap()
            .rejected
    };
    const GOOD: &[u8] = b"tracetracetracet";
    assert_eq!(parse(&[(1, GOOD), (2, b"spanspan"), (1, b"bad")]), 1);
    assert_eq!(parse(&[(1, b"bad"), (2, b"spanspan"), (1, GOOD)]), 0);
    assert_eq!(parse(&[(1, GOOD)]), 1);
}

#[test]
fn an_empty_request_is_accepted() {
    let checked = TraceRequest::parse(Bytes::new()).unwrap();
    assert_eq!((checked.spans, checked.rejected), (0, 0));
}
