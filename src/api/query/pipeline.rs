//! `/pipeline`: how far each stage is, and whether it is well. What people ask when a row is missing.

use std::time::Instant;

use serde_json::{Value, json};

use super::{Answer, Asked, QueryApi, QueryError};
use crate::journal;
use crate::telemetry::health::{Health, StageReport};

/// The state of the pipeline.
#[derive(Debug, Clone, Default)]
pub struct PipelineReport {
    /// Every stage, as the health listener knows it.
    pub stages: Vec<StageReport>,
    /// The journal with its readers.
    pub journal: Option<journal::Status>,
}

impl PipelineReport {
    /// As of now.
    pub fn of(health: &Health, journal: Option<journal::Status>) -> PipelineReport {
        PipelineReport {
            stages: health.report(Instant::now()),
            journal,
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
        json!({"healthy": healthy, "stages": stages, "journal": journal})
    }
}

impl QueryApi {
    pub(super) fn pipeline(&self, asked: Asked) -> Result<Answer, QueryError> {
        asked.parameters.finish("none")?;
        if asked.scope.is_some() {
            return Err(QueryError::Forbidden(
                "the pipeline serves every organization: it needs a token for all",
            ));
        }
        Ok(Answer::one((self.inner.pipeline)().to_json()))
    }
}
