// Emits the spans of a scenario file through the official OpenTelemetry SDK for Go, and asks a server about itself by the
// official gRPC clients.
//
//	send grpc|http/protobuf none|gzip ENDPOINT SCENARIO BASE_UNIX_MS
//	send probe ADDRESS
//
// Prints one JSON line for each span: its key in the scenario, its trace id and its span id. Exits 1 unless the exporter
// was told that everything was accepted.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"math"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

type scenario struct {
	Resource      map[string]any            `json:"resource"`
	AttributeSets map[string]map[string]any `json:"attribute_sets"`
	Spans         []struct {
		Key        string            `json:"key"`
		Tracer     string            `json:"tracer"`
		Name       string            `json:"name"`
		Kind       string            `json:"kind"`
		With       string            `json:"with"`
		StartMs    float64           `json:"start_ms"`
		EndMs      float64           `json:"end_ms"`
		Attributes map[string]any    `json:"attributes"`
		Exception  map[string]string `json:"exception"`
		Status     *struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"status"`
	} `json:"spans"`
}

// noting passes batches on and remembers whether one of them failed.
type noting struct {
	sdk.SpanExporter
	failed atomic.Bool
}

func (n *noting) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	err := n.SpanExporter.ExportSpans(ctx, spans)
	if err != nil {
		log.Print(err)
		n.failed.Store(true)
	}
	return err
}

func exporter(ctx context.Context, protocol, compression, endpoint string) (*otlptrace.Exporter, error) {
	switch protocol {
	case "grpc":
		options := []otlptracegrpc.Option{otlptracegrpc.WithEndpointURL(endpoint)}
		if compression == "gzip" {
			options = append(options, otlptracegrpc.WithCompressor("gzip"))
		}
		return otlptracegrpc.New(ctx, options...)
	case "http/protobuf":
		chosen := otlptracehttp.NoCompression
		if compression == "gzip" {
			chosen = otlptracehttp.GzipCompression
		}
		return otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(endpoint+"/v1/traces"), otlptracehttp.WithCompression(chosen))
	}
	return nil, fmt.Errorf("no protocol %s", protocol)
}

func attributes(of map[string]any) []attribute.KeyValue {
	var all []attribute.KeyValue
	for key, value := range of {
		switch value := value.(type) {
		case string:
			all = append(all, attribute.String(key, value))
		case bool:
			all = append(all, attribute.Bool(key, value))
		case json.Number:
			if whole, err := value.Int64(); err == nil {
				all = append(all, attribute.Int64(key, whole))
			} else if number, err := value.Float64(); err == nil {
				all = append(all, attribute.Float64(key, number))
			}
		case []any:
			texts := make([]string, len(value))
			for i, text := range value {
				texts[i] = text.(string)
			}
			all = append(all, attribute.StringSlice(key, texts))
		default:
			log.Fatalf("%s: %T", key, value)
		}
	}
	return all
}

func send(protocol, compression, endpoint, file, base string) error {
	baseMs, err := strconv.ParseInt(base, 10, 64)
	if err != nil {
		return err
	}
	at := func(offset float64) time.Time {
		return time.Unix(0, baseMs*1_000_000+int64(math.Round(offset*1e6)))
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var given scenario
	decoder := json.NewDecoder(strings.NewReader(string(text)))
	decoder.UseNumber()
	if err := decoder.Decode(&given); err != nil {
		return err
	}
	ctx := context.Background()
	inner, err := exporter(ctx, protocol, compression, endpoint)
	if err != nil {
		return err
	}
	noting := &noting{SpanExporter: inner}
	provider := sdk.NewTracerProvider(
		sdk.WithBatcher(noting, sdk.WithMaxExportBatchSize(10)),
		sdk.WithResource(resource.NewSchemaless(attributes(given.Resource)...)),
	)
	kinds := map[string]trace.SpanKind{
		"": trace.SpanKindInternal, "INTERNAL": trace.SpanKindInternal, "CLIENT": trace.SpanKindClient,
		"SERVER": trace.SpanKindServer, "PRODUCER": trace.SpanKindProducer, "CONSUMER": trace.SpanKindConsumer,
	}
	for _, wanted := range given.Spans {
		_, span := provider.Tracer(wanted.Tracer).Start(ctx, wanted.Name,
			trace.WithNewRoot(), trace.WithSpanKind(kinds[wanted.Kind]), trace.WithTimestamp(at(wanted.StartMs)),
			trace.WithAttributes(attributes(given.AttributeSets[wanted.With])...),
			trace.WithAttributes(attributes(wanted.Attributes)...))
		if wanted.Exception != nil {
			exception := map[string]any{}
			for name, text := range wanted.Exception {
				exception["exception."+name] = text
			}
			span.AddEvent("exception", trace.WithTimestamp(at(wanted.EndMs)), trace.WithAttributes(attributes(exception)...))
		}
		if wanted.Status != nil {
			code := map[string]codes.Code{"OK": codes.Ok, "ERROR": codes.Error, "UNSET": codes.Unset}[wanted.Status.Code]
			span.SetStatus(code, wanted.Status.Message)
		}
		span.End(trace.WithTimestamp(at(wanted.EndMs)))
		ids := span.SpanContext()
		line, err := json.Marshal(map[string]string{"key": wanted.Key, "trace_id": ids.TraceID().String(), "span_id": ids.SpanID().String()})
		if err != nil {
			return err
		}
		fmt.Println(string(line))
	}
	if err := provider.Shutdown(ctx); err != nil {
		return err
	}
	if noting.failed.Load() {
		return fmt.Errorf("a batch was not accepted")
	}
	return nil
}

// probe asks as grpc_health_probe and grpcurl do; prints one JSON object.
func probe(address string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	health := grpc_health_v1.NewHealthClient(connection)
	checked, err := health.Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		return err
	}
	listed, err := health.List(ctx, &grpc_health_v1.HealthListRequest{})
	if err != nil {
		return err
	}
	watch, err := health.Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		return err
	}
	watched, err := watch.Recv()
	if err != nil {
		return err
	}
	stream, err := grpc_reflection_v1.NewServerReflectionClient(connection).ServerReflectionInfo(ctx)
	if err != nil {
		return err
	}
	ask := func(request *grpc_reflection_v1.ServerReflectionRequest) (*grpc_reflection_v1.ServerReflectionResponse, error) {
		if err := stream.Send(request); err != nil {
			return nil, err
		}
		return stream.Recv()
	}
	answer, err := ask(&grpc_reflection_v1.ServerReflectionRequest{
		MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{},
	})
	if err != nil {
		return err
	}
	var methods []string
	for _, service := range answer.GetListServicesResponse().GetService() {
		answer, err := ask(&grpc_reflection_v1.ServerReflectionRequest{
			MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: service.Name},
		})
		if err != nil {
			return err
		}
		var set descriptorpb.FileDescriptorSet
		for _, bytes := range answer.GetFileDescriptorResponse().GetFileDescriptorProto() {
			var file descriptorpb.FileDescriptorProto
			if err := proto.Unmarshal(bytes, &file); err != nil {
				return err
			}
			set.File = append(set.File, &file)
		}
		// Fails when anything that is referred to is not there.
		files, err := protodesc.NewFiles(&set)
		if err != nil {
			return err
		}
		found, err := files.FindDescriptorByName(protoreflect.FullName(service.Name))
		if err != nil {
			return err
		}
		described := protodesc.ToServiceDescriptorProto(found.(protoreflect.ServiceDescriptor))
		for _, method := range described.Method {
			methods = append(methods, service.Name+"/"+method.GetName())
		}
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"check": checked.Status.String(), "watch": watched.Status.String(), "services": len(listed.Statuses), "methods": methods,
	})
}

func main() {
	var err error
	switch {
	case len(os.Args) == 6:
		err = send(os.Args[1], os.Args[2], os.Args[3], os.Args[4], os.Args[5])
	case len(os.Args) == 3 && os.Args[1] == "probe":
		err = probe(os.Args[2])
	default:
		err = fmt.Errorf("see the head of this file")
	}
	if err != nil {
		log.Fatal(err)
	}
}
