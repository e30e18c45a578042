//! Measurements, to be run by hand: `cargo test --release --lib meter::measure -- --ignored --nocapture`.

use std::time::Instant;

use super::{ExpositionFormat, Tally};
use crate::rules::Catalogue;
use crate::rules::testing::{TestSpan, request, span};

/// The spans of an executor, with the attributes that nobody asks for.
fn mixed(index: usize) -> TestSpan {
    let common = |span: TestSpan| {
        span.with("node.id", format!("node-{}", index % 100))
            .with("workflow.id", "w-1")
            .with("workflow.execution_id", format!("execution-{index}"))
    };
    match index % 5 {
        0 | 1 => common(span("code.execute"))
            .with("code.language", ["python", "javascript", "bash"][index % 3])
            .with("code.runtime", "vm2")
            .with("code.has_input_schema", false)
            .with("code.has_output_schema", false)
            .with("code.packages_count", 2i64)
            .with("code.timeout_ms", 30_000i64)
            .with("security.namespace", "default")
            .with("code.success", !index.is_multiple_of(7))
            .with("code.duration_ms", (index % 900) as i64)
            .with("code.memory_mb", 0.37 + index as f64),
        2 => common(span("node.execute.ai.llm"))
            .with("node.type", "ai.llm")
            .with("node.status", "completed")
            .with("node.latency_ms", 120i64)
            .with("user.id", "u")
            .with("organization.id", "o"),
        3 => common(span("llm.generate"))
            .with("llm.provider", "openai")
            .with("llm.model", "gpt-4o")
            .with("llm.input_tokens", 100i64)
            .with("llm.output_tokens", 20i64)
            .with("llm.cost_usd", 0.002)
            .with("llm.latency_ms", 800i64)
            .with("llm.status", "success"),
        _ => span("GET /api/v1/workflows")
            .with("http.request.method", "GET")
            .with("http.response.status_code", 200i64)
            .with("http.route", "/api/v1/workflows")
            .with("url.path", "/api/v1/workflows")
            .with("url.scheme", "http")
            .with("server.address", "localhost")
            .with("server.port", 3000i64)
            .with("network.protocol.version", "1.1")
            .with("client.address", "127.0.0.1")
            .with("user_agent.original", "node"),
    }
}

fn nanos_per_span(name: &str, spans: usize, repeat: usize, mut run: impl FnMut()) {
    run();
    let times = (0..repeat).map(|_| {
        let started = Instant::now();
        run();
        started.elapsed().as_nanos() as f64 / spans as f64
    });
    let mut times: Vec<f64> = times.collect();
    times.sort_by(f64::total_cmp);
    eprintln!(
        "{name}: {:.0} ns/span (median of {repeat}), {:.0} at best",
        times[repeat / 2],
        times[0]
    );
}

#[test]
#[ignore = "a measurement"]
fn deriving() {
    let request = request((0..5120).map(mixed));
    let bytes = request.bytes().len();
    eprintln!("{} bytes/span", bytes / 5120);
    let mut tally = Tally::new(&Catalogue::built_in(), 2000);
    nanos_per_span("walk alone", 5120, 200, || {
        let mut keys = 0;
        for resource in request.resource_spans() {
            for span in resource.scope_spans().flat_map(|scope| scope.spans()) {
                keys += span
                    .attributes()
                    .entries()
                    .map(|entry| entry.key().len())
                    .sum::<usize>();
            }
        }
        std::hint::black_box(keys);
    });
    nanos_per_span("built-in catalogue", 5120, 200, || tally.count(&request, 1));
    for kind in 0..5 {
        let one = crate::rules::testing::request((0..5120).map(|index| mixed(index * 5 + kind)));
        nanos_per_span(&format!("spans of kind {kind}"), 5120, 50, || tally.count(&one, 1));
    }
    eprintln!("{} series", tally.series());
}

#[test]
#[ignore = "a measurement"]
fn scraping() {
    let mut tally = Tally::new(&Catalogue::built_in(), 2000);
    let spans = (0..2000).map(|index| {
        span("code.execute")
            .with("code.language", format!("language-{}", index % 50))
            .with("code.runtime", format!("runtime-{}", index / 50))
            .with("code.success", true)
            .with("code.memory_mb", 1.5)
            .with("code.tokens_used", 5i64)
            .with("code.exit_code", 1i64)
            .with("code.validation_passed", true)
            .with("tool_id", format!("tool-{index}"))
            .with("output_bytes", 100i64)
            .with("error_kind", "timeout")
            .with("node.status", format!("completed-{index}"))
            .with("node.type", "ai.llm")
    });
    tally.count(&request(spans), 1);
    eprintln!("{} series", tally.series());
    for format in [ExpositionFormat::Text, ExpositionFormat::OpenMetrics] {
        for _ in 0..5 {
            let started = Instant::now();
            let text = tally.exposition(format);
            eprintln!("{format:?}: {:?} for {} bytes", started.elapsed(), text.len());
        }
    }
}
