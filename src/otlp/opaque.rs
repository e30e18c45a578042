//! Metrics and logs: checked as thoroughly as traces, and otherwise left alone. They are journalled and forwarded as the
//! bytes that arrived; nothing is derived from them.

use super::check::{self, Malformed};
use super::schema;

/// Checks an `ExportMetricsServiceRequest` and counts its data points.
pub fn check_metrics(body: &[u8]) -> Result<u32, Malformed> {
    check::request(body, &schema::METRICS_REQUEST).map(|found| found.items)
}

/// Checks an `ExportLogsServiceRequest` and counts its log records.
pub fn check_logs(body: &[u8]) -> Result<u32, Malformed> {
    check::request(body, &schema::LOGS_REQUEST).map(|found| found.items)
}
