import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.google.gson.JsonPrimitive;
import io.opentelemetry.api.common.AttributeKey;
import io.opentelemetry.api.common.Attributes;
import io.opentelemetry.api.common.AttributesBuilder;
import io.opentelemetry.api.trace.Span;
import io.opentelemetry.api.trace.SpanKind;
import io.opentelemetry.api.trace.StatusCode;
import io.opentelemetry.context.Context;
import io.opentelemetry.exporter.otlp.http.trace.OtlpHttpSpanExporter;
import io.opentelemetry.exporter.otlp.trace.OtlpGrpcSpanExporter;
import io.opentelemetry.sdk.common.CompletableResultCode;
import io.opentelemetry.sdk.resources.Resource;
import io.opentelemetry.sdk.trace.SdkTracerProvider;
import io.opentelemetry.sdk.trace.data.SpanData;
import io.opentelemetry.sdk.trace.export.BatchSpanProcessor;
import io.opentelemetry.sdk.trace.export.SpanExporter;
import java.math.BigDecimal;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;

/**
 * Emits the spans of a scenario file through the official OpenTelemetry SDK for Java.
 *
 * <pre>Send grpc|http/protobuf none|gzip ENDPOINT SCENARIO BASE_UNIX_MS</pre>
 *
 * Prints one JSON line for each span: its key in the scenario, its trace id and its span id. Exits 1 unless the exporter
 * was told that everything was accepted.
 */
public class Send {
    /** Passes batches on and remembers whether one of them failed: the SDK itself only logs that. */
    record Noting(SpanExporter inner, AtomicBoolean failed) implements SpanExporter {
        @Override
        public CompletableResultCode export(Collection<SpanData> spans) {
            CompletableResultCode result = inner.export(spans);
            result.whenComplete(() -> {
                if (!result.isSuccess()) {
                    failed.set(true);
                }
            });
            return result;
        }

        @Override
        public CompletableResultCode flush() {
            return inner.flush();
        }

        @Override
        public CompletableResultCode shutdown() {
            return inner.shutdown();
        }
    }

    static SpanExporter exporter(String protocol, String compression, String endpoint) {
        return switch (protocol) {
            case "grpc" -> OtlpGrpcSpanExporter.builder().setEndpoint(endpoint).setCompression(compression).build();
            case "http/protobuf" -> OtlpHttpSpanExporter.builder()
                .setEndpoint(endpoint + "/v1/traces").setCompression(compression).build();
            default -> throw new IllegalArgumentException(protocol);
        };
    }

    static Attributes attributes(JsonElement of) {
        AttributesBuilder all = Attributes.builder();
        for (Map.Entry<String, JsonElement> entry : of.getAsJsonObject().entrySet()) {
            String key = entry.getKey();
            if (entry.getValue().isJsonArray()) {
                List<String> texts = new ArrayList<>();
                entry.getValue().getAsJsonArray().forEach(text -> texts.add(text.getAsString()));
                all.put(AttributeKey.stringArrayKey(key), texts);
                continue;
            }
            JsonPrimitive value = entry.getValue().getAsJsonPrimitive();
            if (value.isBoolean()) {
                all.put(key, value.getAsBoolean());
            } else if (value.isString()) {
                all.put(key, value.getAsString());
            } else if (value.getAsString().matches("-?[0-9]+")) {
                all.put(key, value.getAsLong());
            } else {
                all.put(key, value.getAsDouble());
            }
        }
        return all.build();
    }

    static String text(JsonObject of, String key, String otherwise) {
        return of.has(key) ? of.get(key).getAsString() : otherwise;
    }

    public static void main(String[] given) throws Exception {
        JsonObject scenario = JsonParser.parseString(Files.readString(Path.of(given[3]))).getAsJsonObject();
        BigDecimal base = new BigDecimal(given[4]);
        AtomicBoolean failed = new AtomicBoolean();
        Noting noting = new Noting(exporter(given[0], given[1], given[2]), failed);
        SdkTracerProvider provider = SdkTracerProvider.builder()
            .setResource(Resource.create(attributes(scenario.get("resource"))))
            .addSpanProcessor(BatchSpanProcessor.builder(noting).setMaxExportBatchSize(10).build())
            .build();
        for (JsonElement element : scenario.getAsJsonArray("spans")) {
            JsonObject wanted = element.getAsJsonObject();
            long start = nanos(base, wanted.get("start_ms"));
            long end = nanos(base, wanted.get("end_ms"));
            // Joined here: to this SDK a key with a value of another type is another key, and both would be sent.
            JsonObject all = new JsonObject();
            JsonElement set = scenario.getAsJsonObject("attribute_sets").get(text(wanted, "with", ""));
            for (JsonElement part : new JsonElement[] {set, wanted.get("attributes")}) {
                if (part != null) {
                    part.getAsJsonObject().entrySet().forEach(entry -> all.add(entry.getKey(), entry.getValue()));
                }
            }
            Span span = provider.get(text(wanted, "tracer", "")).spanBuilder(text(wanted, "name", ""))
                .setParent(Context.root())
                .setSpanKind(SpanKind.valueOf(text(wanted, "kind", "INTERNAL")))
                .setStartTimestamp(start, TimeUnit.NANOSECONDS)
                .setAllAttributes(attributes(all))
                .startSpan();
            if (wanted.has("exception")) {
                JsonObject exception = new JsonObject();
                wanted.getAsJsonObject("exception").entrySet()
                    .forEach(entry -> exception.add("exception." + entry.getKey(), entry.getValue()));
                span.addEvent("exception", attributes(exception), end, TimeUnit.NANOSECONDS);
            }
            if (wanted.has("status")) {
                JsonObject status = wanted.getAsJsonObject("status");
                span.setStatus(StatusCode.valueOf(text(status, "code", "UNSET")), text(status, "message", ""));
            }
            span.end(end, TimeUnit.NANOSECONDS);
            JsonObject line = new JsonObject();
            line.addProperty("key", text(wanted, "key", ""));
            line.addProperty("trace_id", span.getSpanContext().getTraceId());
            line.addProperty("span_id", span.getSpanContext().getSpanId());
            System.out.println(line);
        }
        boolean flushed = provider.forceFlush().join(30, TimeUnit.SECONDS).isSuccess();
        provider.shutdown().join(10, TimeUnit.SECONDS);
        System.exit(flushed && !failed.get() ? 0 : 1);
    }

    static long nanos(BigDecimal base, JsonElement offset) {
        return base.add(offset.getAsBigDecimal()).movePointRight(6).longValue();
    }
}
