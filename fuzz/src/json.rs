//! Any text as OTLP/JSON: what passes is JSON, and becomes protobuf that passes the check.

use serde::Deserialize;
use spanledger::otlp::json::transcode;
use spanledger::otlp::opaque::{check_logs, check_metrics};
use spanledger::otlp::{Signal, TraceRequest};

/// One input.
pub fn run(data: &[u8]) {
    for signal in Signal::ALL {
        match transcode(signal, data) {
            Err(error) => assert!(error.offset() <= data.len()),
            Ok(protobuf) => {
                assert_is_json(data);
                match signal {
                    Signal::Traces => drop(TraceRequest::parse(protobuf).unwrap()),
                    Signal::Metrics => drop(check_metrics(&protobuf).unwrap()),
                    Signal::Logs => drop(check_logs(&protobuf).unwrap()),
                }
            }
        }
    }
}

/// The grammar alone: that half a surrogate pair passes is intended.
fn assert_is_json(data: &[u8]) {
    let mut deserializer = serde_json::Deserializer::from_slice(data);
    // Its limit of depth is another one than ours.
    match serde::de::IgnoredAny::deserialize(&mut deserializer) {
        Err(error) if error.to_string().contains("recursion limit") => {}
        outcome => {
            outcome.unwrap();
            deserializer.end().unwrap();
        }
    }
}
