#!/usr/bin/env python3
"""Writes src/receive/grpc_reflection.bin: what server reflection tells about the services that are served.

Run with the tests' Python, whose opentelemetry-proto package has the descriptors:
    tests/sdk/.venv/bin/python scripts/descriptors.py          writes the file
    tests/sdk/.venv/bin/python scripts/descriptors.py --check  fails when the file is another
"""

import pathlib
import sys

from google.protobuf import descriptor_pb2
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

FILE = pathlib.Path(__file__).parent.parent / "src/receive/grpc_reflection.bin"


def health() -> descriptor_pb2.FileDescriptorProto:
    """grpc.health.v1, as the gRPC documentation has it ("GRPC Health Checking Protocol")."""
    file = descriptor_pb2.FileDescriptorProto(name="grpc/health/v1/health.proto", package="grpc.health.v1", syntax="proto3")
    field = descriptor_pb2.FieldDescriptorProto

    def message(parent, name, *fields):
        made = parent.add(name=name)
        for number, (field_name, kind, type_name, repeated) in enumerate(fields, 1):
            label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            made.field.add(name=field_name, number=number, type=kind, type_name=type_name, label=label)
        return made

    of_service = ("service", field.TYPE_STRING, None, False)
    message(file.message_type, "HealthCheckRequest", of_service)
    status = ("status", field.TYPE_ENUM, ".grpc.health.v1.HealthCheckResponse.ServingStatus", False)
    response = message(file.message_type, "HealthCheckResponse", status)
    serving = response.enum_type.add(name="ServingStatus")
    for number, name in enumerate(["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"]):
        serving.value.add(name=name, number=number)
    message(file.message_type, "HealthListRequest")
    entry = ".grpc.health.v1.HealthListResponse.StatusesEntry"
    listed = message(file.message_type, "HealthListResponse", ("statuses", field.TYPE_MESSAGE, entry, True))
    value = ("value", field.TYPE_MESSAGE, ".grpc.health.v1.HealthCheckResponse", False)
    message(listed.nested_type, "StatusesEntry", ("key", field.TYPE_STRING, None, False), value).options.map_entry = True
    service = file.service.add(name="Health")
    for name, asked, answered, streaming in [
        ("Check", "HealthCheckRequest", "HealthCheckResponse", False),
        ("List", "HealthListRequest", "HealthListResponse", False),
        ("Watch", "HealthCheckRequest", "HealthCheckResponse", True),
    ]:
        method = service.method.add(name=name, server_streaming=streaming)
        method.input_type, method.output_type = f".grpc.health.v1.{asked}", f".grpc.health.v1.{answered}"
    return file


def main() -> None:
    files = {}

    def add(descriptor) -> None:
        if descriptor.name in files:
            return
        for dependency in descriptor.dependencies:
            add(dependency)
        file = descriptor_pb2.FileDescriptorProto.FromString(descriptor.serialized_pb)
        file.ClearField("source_code_info")
        files[descriptor.name] = file

    for module in (trace_service_pb2, metrics_service_pb2, logs_service_pb2):
        add(module.DESCRIPTOR)
    found = descriptor_pb2.FileDescriptorSet(file=[*files.values(), health()]).SerializeToString(deterministic=True)
    if "--check" in sys.argv[1:]:
        if FILE.read_bytes() != found:
            sys.exit(f"{FILE} is not what the package says; run this without --check")
    else:
        FILE.write_bytes(found)
        print(f"{FILE}: {len(found)} bytes of {len(files) + 1} files")


if __name__ == "__main__":
    main()
