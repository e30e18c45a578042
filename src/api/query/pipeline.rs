//! `/pipeline`: how far each stage is, and whether it is well. What people ask when a row is missing.

use std::time::Instant;

use serde_json::{Value, json};

use super::{Asked, QueryApi, QueryError};
use crate::egress::RuleInfo;
use crate::journal;
use crate::telemetry::health::{Health, StageReport};

/// The state of the pipeline.
#[derive(Debug, Clone, Default)]
pub struct PipelineReport {
    /// Every stage, as the health listener knows it.
    pub stages: Vec<StageReport>,
    /// The journal with its readers.
    pub journal: Option<journal::Status>,
    /// The exporters that have rules for what leaves.
    pub exporters: Vec<ExporterRules>,
}

/// The rules of an exporter, with what they did since the start.
#[derive(Debug, Clone)]
pub struct ExporterRules {
    /// Name of the exporter.
    pub name: String,
    /// Each rule with its count.
    pub rules: Vec<(RuleInfo, u64)>,
}

impl PipelineReport {
    /// As of now.
    pub fn of(health: &Health, journal: Option<journal::Status>, exporters: Vec<ExporterRules>) -> PipelineReport {
        PipelineReport {
            stages: health.report(Instant::now()),
            journal,
            exporters,
        }
    }

    fn to_json(&self) -> Value {
        let stages: Vec<Value> = self
            .stages
            .iter()
            .map(|stage| {
                json!({
                    "name": stage.name,
                    "alive": stage.alive,
                    "secondsSinceProgress": stage.age.as_secs_f64(),
                    "degraded": stage.degraded,
                })
            })
            .collect();
        let journal = self.journal.as_ref().map(|journal| {
            let reader = |reader: &journal::ReaderStatus| {
                json!({
                    "name": reader.name,
                    "position": reader.next,
                    "lagRecords": reader.lag_records,
                    "lagBytes": reader.lag_bytes,
                    "lagSeconds": reader.lag_seconds,
                })
            };
            json!({
                "id": journal.journal.to_string(),
                "bytes": journal.bytes,
                "maxBytes": journal.max_bytes,
                "records": journal.records,
                "segments": journal.segments,
                "next": journal.next,
                "secondsUntilFull": journal.seconds_until_full,
                "problem": journal.not_writable,
                "readers": journal.readers.iter().map(reader).collect::<Vec<_>>(),
            })
        });
        let healthy = self.stages.iter().all(|stage| stage.alive && stage.degraded.is_none())
            && self
                .journal
                .as_ref()
                .is_none_or(|journal| journal.not_writable.is_none());
        let rule = |(rule, count): &(RuleInfo, u64)| json!({"rule": rule.name, "says": rule.says, "counts": rule.counts.as_str(), "count": count});
        let exporter = |exporter: &ExporterRules| json!({"name": exporter.name, "rules": exporter.rules.iter().map(rule).collect::<Vec<_>>()});
        let exporters = self.exporters.iter().map(exporter).collect::<Vec<_>>();
        json!({"healthy": healthy, "stages": stages, "journal": journal, "exporters": exporters})
    }
}

impl QueryApi {
    pub(super) fn pipeline(&self, asked: Asked) -> Result<Value, QueryError> {
        asked.parameters.finish("none")?;
        if asked.scope.is_some() {
            return Err(QueryError::Forbidden(
                "the pipeline serves every organization: it needs a token for all",
            ));
        }
        Ok((self.inner.pipeline)().to_json())
    }
}
