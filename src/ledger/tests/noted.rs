//! Spans that were noted at the door tell what all of the request tells.

use bytes::Bytes;
use prost::Message;

use crate::ledger::extract::{Extractor, Limit, Taking};
use crate::otlp::TraceRequest;
use crate::otlp::schema::TRACE_REQUEST;
use crate::otlp::tests::for_seeds;
use crate::otlp::tests::generate::Generator;
use crate::rules::telling::Telling;

const NAMES: [&str; 6] = [
    "node.execute.action.code",
    "runtimeRouter.route",
    "etlHook.preIngest",
    "wasmedge.execute",
    "code.execute",
    "GET /",
];

const KEYS: [&str; 19] = [
    "code.runtime",
    "code.success",
    "code.exit_code",
    "code.duration_ms",
    "code.language",
    "node.status",
    "node.attempts",
    "node.error",
    "node.id",
    "organization.id",
    "workspace.id",
    "user.id",
    "workflow.execution_id",
    "hook.agent_id",
    "runtime.selected",
    "tool_id",
    "e2b.runtime",
    "wasmedge.runtime",
    "bacalhau.runtime",
];

#[test]
fn what_was_noted_at_the_door_tells_all_that_the_request_tells_however_it_is_written_and_in_whichever_parts() {
    let (told, skipped) = (
        std::sync::atomic::AtomicUsize::new(0),
        std::sync::atomic::AtomicUsize::new(0),
    );
    for_seeds(2_000, |seed| {
        let mut generator = Generator::new(seed);
        generator.keys = KEYS.map(str::to_owned).to_vec();
        let mut request = generator.traces();
        for resource in &mut request.resource_spans {
            for span in resource.scope_spans.iter_mut().flat_map(|scope| &mut scope.spans) {
                span.name = NAMES[generator.rng.usize(..NAMES.len())].into();
                // Others would be cut out, and nothing be noted.
                span.trace_id = generator.rng.u128(1..).to_be_bytes().to_vec();
                span.span_id = generator.rng.u64(1..).to_be_bytes().to_vec();
            }
        }
        let plain = request.encode_to_vec();
        let scrambled = generator.scrambled(&plain, &TRACE_REQUEST);
        for body in [plain, scrambled] {
            let checked = TraceRequest::parse_noting(Bytes::from(body), &mut Telling::default()).unwrap();
            let mut extractor = Extractor::default();
            assert!(extractor.goes_by_notes());
            let mut all = Vec::new();
            extractor.extract(&checked.request, 1, &mut all);
            let oddities = std::mem::take(&mut extractor.oddities);
            let notes = checked.noted.unwrap();
            for notes in [None, Some(&notes)] {
                let mut parts = Vec::new();
                let mut taking = Taking {
                    request: &checked.request,
                    noted: notes,
                    received_at: 1,
                    done: 0,
                };
                extractor.oddities = Default::default();
                loop {
                    let limit = Limit {
                        facts: generator.rng.usize(1..4),
                        bytes: generator.rng.usize(1..2_000),
                    };
                    let before = parts.len();
                    let taken = extractor.take(&taking, limit, &mut parts);
                    assert!(parts.len() - before <= limit.facts);
                    let Some(done) = taken.rest else { break };
                    assert!(done > taking.done);
                    taking.done = done;
                }
                assert_eq!(parts, all);
                assert_eq!(extractor.oddities, oddities);
            }
            told.fetch_add(all.len(), std::sync::atomic::Ordering::Relaxed);
            skipped.fetch_add(checked.spans as usize - all.len(), std::sync::atomic::Ordering::Relaxed);
        }
    });
    let (told, skipped) = (told.into_inner(), skipped.into_inner());
    assert!(told > 1_000 && skipped > 1_000, "{told} told, {skipped} did not");
}

#[test]
fn a_request_of_which_a_part_was_cut_out_has_no_notes() {
    let mut generator = Generator::new(1);
    let mut request = generator.traces();
    while request
        .resource_spans
        .iter()
        .flat_map(|resource| &resource.scope_spans)
        .all(|scope| scope.spans.is_empty())
    {
        request = generator.traces();
    }
    let scopes = request
        .resource_spans
        .iter_mut()
        .flat_map(|resource| &mut resource.scope_spans);
    let span = scopes.flat_map(|scope| &mut scope.spans).next().unwrap();
    span.trace_id.clear();
    let checked = TraceRequest::parse_noting(request.encode_to_vec().into(), &mut Telling::default()).unwrap();
    assert!(checked.rejected > 0);
    assert_eq!(checked.noted, None);
}
