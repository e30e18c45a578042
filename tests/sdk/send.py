"""Emits the spans of a scenario file through the official OpenTelemetry SDK for Python.

    send.py grpc|http/protobuf none|gzip ENDPOINT SCENARIO BASE_UNIX_MS

Prints one JSON line for each span: its key in the scenario, its trace id and its span id. Exits 1 unless the exporter
was told that everything was accepted.
"""

import argparse
import json
import sys

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, Status, StatusCode


def exporter(protocol, endpoint, compression):
    """The exporter as a user would make it; both kinds take gzip."""
    if protocol == "grpc":
        import grpc
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        chosen = grpc.Compression.Gzip if compression == "gzip" else grpc.Compression.NoCompression
        return OTLPSpanExporter(endpoint=endpoint, insecure=True, compression=chosen)
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    chosen = Compression.Gzip if compression == "gzip" else Compression.NoCompression
    return OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces", compression=chosen)


class Noting(SpanExporter):
    """Passes batches on and remembers whether one of them failed: the SDK itself only logs that."""

    def __init__(self, inner):
        self.inner = inner
        self.failed = False

    def export(self, spans):
        result = self.inner.export(spans)
        self.failed |= result is not SpanExportResult.SUCCESS
        return result

    def shutdown(self):
        self.inner.shutdown()

    def force_flush(self, timeout_millis=30000):
        return self.inner.force_flush(timeout_millis)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("protocol", choices=["grpc", "http/protobuf"])
    arguments.add_argument("compression", choices=["none", "gzip"])
    arguments.add_argument("endpoint")
    arguments.add_argument("scenario")
    arguments.add_argument("base_unix_ms", type=int)
    given = arguments.parse_args()

    with open(given.scenario, encoding="utf-8") as file:
        scenario = json.load(file)
    noting = Noting(exporter(given.protocol, given.endpoint, given.compression))
    provider = TracerProvider(resource=Resource(scenario["resource"]))
    provider.add_span_processor(BatchSpanProcessor(noting, max_export_batch_size=10))

    def nanoseconds(offset_ms):
        return given.base_unix_ms * 1_000_000 + round(offset_ms * 1_000_000)

    for wanted in scenario["spans"]:
        attributes = scenario["attribute_sets"].get(wanted.get("with"), {}) | wanted["attributes"]
        span = provider.get_tracer(wanted["tracer"]).start_span(
            wanted["name"],
            context=Context(),
            kind=SpanKind[wanted.get("kind", "INTERNAL")],
            attributes=attributes,
            start_time=nanoseconds(wanted["start_ms"]),
        )
        if exception := wanted.get("exception"):
            span.add_event(
                "exception",
                {f"exception.{name}": text for name, text in exception.items()},
                timestamp=nanoseconds(wanted["end_ms"]),
            )
        if status := wanted.get("status"):
            span.set_status(Status(StatusCode[status["code"]], status.get("message")))
        span.end(end_time=nanoseconds(wanted["end_ms"]))
        ids = span.get_span_context()
        print(json.dumps({"key": wanted["key"], "trace_id": f"{ids.trace_id:032x}", "span_id": f"{ids.span_id:016x}"}))

    provider.force_flush()
    provider.shutdown()
    sys.exit(1 if noting.failed else 0)


main()
