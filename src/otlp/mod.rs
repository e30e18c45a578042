//! OTLP on the wire: a borrowing walk over protobuf bytes, JSON, encodings, answers.
