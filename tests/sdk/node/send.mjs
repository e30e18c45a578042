// Emits the spans of a scenario file through the official OpenTelemetry SDK for Node.js.
//
//     node send.mjs grpc|http/protobuf|http/json none|gzip ENDPOINT SCENARIO BASE_UNIX_MS
//
// Prints one JSON line for each span: its key in the scenario, its trace id and its span id. Exits 1 unless the exporter
// was told that everything was accepted.

import { readFileSync } from "node:fs";
import { ROOT_CONTEXT, SpanKind, SpanStatusCode } from "@opentelemetry/api";
import { resourceFromAttributes } from "@opentelemetry/resources";
import { BasicTracerProvider, BatchSpanProcessor } from "@opentelemetry/sdk-trace-base";

const [protocol, compression, endpoint, file, base] = process.argv.slice(2);
const scenario = JSON.parse(readFileSync(file, "utf8"));

const kinds = { grpc: "grpc", "http/protobuf": "proto", "http/json": "http" };
const { OTLPTraceExporter } = await import(`@opentelemetry/exporter-trace-otlp-${kinds[protocol]}`);
const exporter = new OTLPTraceExporter({ url: protocol === "grpc" ? endpoint : `${endpoint}/v1/traces`, compression });
let failed = false;
const noting = {
  export: (spans, done) =>
    exporter.export(spans, (result) => {
      if (result.code !== 0) {
        console.error(result.error);
        failed = true;
      }
      done(result);
    }),
  forceFlush: () => exporter.forceFlush(),
  shutdown: () => exporter.shutdown(),
};
const provider = new BasicTracerProvider({
  resource: resourceFromAttributes(scenario.resource),
  spanProcessors: [new BatchSpanProcessor(noting, { maxExportBatchSize: 10 })],
});

// [seconds, nanoseconds], the SDK's own form, which keeps every digit.
const time = (offsetMs) => {
  const nanoseconds = BigInt(base) * 1_000_000n + BigInt(Math.round(offsetMs * 1e6));
  return [Number(nanoseconds / 1_000_000_000n), Number(nanoseconds % 1_000_000_000n)];
};

for (const wanted of scenario.spans) {
  const span = provider.getTracer(wanted.tracer).startSpan(
    wanted.name,
    {
      kind: SpanKind[wanted.kind ?? "INTERNAL"],
      startTime: time(wanted.start_ms),
      attributes: { ...scenario.attribute_sets[wanted.with], ...wanted.attributes },
    },
    ROOT_CONTEXT,
  );
  if (wanted.exception) {
    const attributes = Object.entries(wanted.exception).map(([name, text]) => [`exception.${name}`, text]);
    span.addEvent("exception", Object.fromEntries(attributes), time(wanted.end_ms));
  }
  if (wanted.status) {
    span.setStatus({ code: SpanStatusCode[wanted.status.code], message: wanted.status.message });
  }
  span.end(time(wanted.end_ms));
  const { traceId, spanId } = span.spanContext();
  console.log(JSON.stringify({ key: wanted.key, trace_id: traceId, span_id: spanId }));
}

await provider.forceFlush();
await provider.shutdown();
process.exitCode = failed ? 1 : 0;
