"""An OTLP/HTTP backend made of the official protobuf package and nothing else.

    sink.py --port N --record FILE

Decodes every trace request it gets, answers as a backend does, and appends to FILE one JSON line for each: the body with
its content encoding taken off, every ResourceSpans in it, the ids and names of its spans, and the headers. A body that
is not a trace request is answered with 400 and recorded as an error. Prints `ready` when it accepts connections.
"""

import argparse
import base64
import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse


def record_of(body, headers):
    """What is written down of one request."""
    request = ExportTraceServiceRequest.FromString(body)
    return {
        "headers": {name.lower(): value for name, value in headers.items()},
        "body": base64.b64encode(body).decode(),
        "resource_spans": [base64.b64encode(each.SerializeToString()).decode() for each in request.resource_spans],
        "spans": [
            [span.trace_id.hex(), span.span_id.hex(), span.name]
            for resource_spans in request.resource_spans
            for scope_spans in resource_spans.scope_spans
            for span in scope_spans.spans
        ],
    }


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--port", type=int, required=True)
    arguments.add_argument("--record", required=True)
    given = arguments.parse_args()
    lock = threading.Lock()

    class Backend(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def body(self):
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers["Content-Length"]))
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)

        def do_POST(self):
            body = self.body()
            status, answer = 200, ExportTraceServiceResponse().SerializeToString()
            try:
                if self.path != "/v1/traces" or self.headers["Content-Type"] != "application/x-protobuf":
                    raise ValueError(f"{self.path} {self.headers['Content-Type']}")
                if self.headers.get("Content-Encoding", "identity") == "gzip":
                    body = gzip.decompress(body)
                line = record_of(body, self.headers)
            except (DecodeError, ValueError, OSError) as mistake:
                status, answer, line = 400, b"", {"error": repr(mistake)}
            # Written down before it is answered: what the sender was told is delivered, is recorded.
            with lock, open(given.record, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self.send_response(status)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", given.port), Backend)
    print("ready", flush=True)
    server.serve_forever()


main()
