//! Forwards the journal to OTLP backends.
