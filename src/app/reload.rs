//! SIGHUP: what can be applied to the running program is applied, the rest is named; a broken file changes nothing.
//!
//! Everything is read and checked first. Then readers of the journal are made anew where they are to be made of something
//! else (they save their positions and go on from there), tokens and certificates are exchanged, and the level of the log
//! is set. Listeners, the journal, the database and the set of exporters stay what they are.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tokio::sync::watch;

use super::StartError;
use super::push::Pace;
use super::stages::{Plan, Stages};
use crate::api::query::QueryApi;
use crate::config::Mistakes;
use crate::config::render;
use crate::config::section::KeyRecord;
use crate::journal::JournalId;
use crate::listen::{Auth, TlsReloader};
use crate::settings::{LIVE, LIVE_API_CREDENTIALS, Loaded, Settings};
use crate::telemetry::LogControl;

/// What a running program can change.
pub(super) struct Reloader {
    in_force: BTreeMap<String, String>,
    log: LogControl,
    certificates: Vec<TlsReloader>,
    admission: [Auth; 3],
    own_addresses: Vec<SocketAddr>,
    pace: watch::Sender<Option<Pace>>,
}

impl Reloader {
    pub(super) fn new(
        records: Vec<KeyRecord>,
        log: LogControl,
        certificates: Vec<TlsReloader>,
        settings: &Settings,
        own_addresses: Vec<SocketAddr>,
        pace: watch::Sender<Option<Pace>>,
    ) -> Self {
        Self {
            in_force: render::values(&records),
            log,
            certificates,
            admission: admission(settings),
            own_addresses,
            pace,
        }
    }

    /// Reads certificates and configuration again.
    pub(super) fn reload(
        &mut self,
        reread: &impl Fn() -> Result<Loaded, Mistakes>,
        journal: JournalId,
        stages: &Stages,
        query: &QueryApi,
    ) {
        for certificate in &self.certificates {
            if let Err(error) = certificate.reload() {
                tracing::error!(reason = %error, "certificates were not read again; the old ones stay");
            }
        }
        let checked = reread().map_err(StartError::from).and_then(|loaded| {
            let plan = Plan::of(&loaded.settings, journal, &self.own_addresses)?;
            Ok((loaded, plan))
        });
        match checked {
            Ok((loaded, plan)) => self.apply(loaded, plan, stages, query),
            Err(StartError::Rules(Mistakes(mistakes))) => {
                for mistake in mistakes {
                    tracing::error!(%mistake, "the configuration was not read again; the old one stays");
                }
            }
            Err(error) => tracing::error!(mistake = %error, "the configuration was not read again; the old one stays"),
        }
    }

    fn apply(&mut self, Loaded { settings, records, .. }: Loaded, plan: Plan, stages: &Stages, query: &QueryApi) {
        self.log.set_level(settings.logs.level);
        for (in_use, wanted) in self.admission.iter().zip(&admission(&settings)) {
            in_use.replace(wanted);
        }
        let asked = &settings.api.query;
        let has_api_credentials = query.replace_credentials(asked.tokens.clone(), &asked.users);
        stages.replace(plan);
        self.pace.send_replace(Pace::of(&settings));
        let wanted = render::values(&records);
        for key in changed(&self.in_force, &wanted) {
            let is_applied = LIVE.iter().any(|applied| is_below(&key, applied))
                || exporter_of(&key).is_some_and(|name| stages.has_exporter(name) && wanted.contains_key(&key))
                || has_api_credentials
                    && LIVE_API_CREDENTIALS
                        .iter()
                        .any(|credentials| is_below(&key, credentials));
            if is_applied {
                tracing::info!(key, "changed");
                if let Some(value) = wanted.get(&key) {
                    self.in_force.insert(key, value.clone());
                }
            } else {
                tracing::warn!(key, "changed; takes effect after a restart");
            }
        }
        tracing::info!("configuration, rules and certificates were read again");
    }
}

/// Who is let in: by the receivers, the scrape, and health.
fn admission(settings: &Settings) -> [Auth; 3] {
    [
        settings.receivers.auth.clone(),
        settings.metrics.listen.auth.clone(),
        settings.health.auth.clone(),
    ]
}

/// Whether a key is this one or lies below it.
fn is_below(key: &str, above: &str) -> bool {
    key.strip_prefix(above)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The exporter that a key belongs to.
fn exporter_of(key: &str) -> Option<&str> {
    key.strip_prefix("exporters.")?.split('.').next()
}

/// Keys whose values differ, in order.
fn changed(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Vec<String> {
    let mut keys = before.keys().chain(after.keys()).collect::<Vec<_>>();
    keys.sort();
    keys.dedup();
    keys.into_iter()
        .filter(|key| before.get(*key) != after.get(*key))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_keys_are_those_with_another_value_or_that_came_or_went() {
        let map = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(key, value)| (key.to_string(), value.to_string()))
                .collect()
        };
        let before = map(&[("a", "1"), ("b", "2"), ("c", "3")]);
        let after = map(&[("a", "1"), ("b", "5"), ("d", "4")]);
        assert_eq!(changed(&before, &after), ["b", "c", "d"]);
    }

    #[test]
    fn keys_are_found_below_what_is_applied_and_belong_to_their_exporter() {
        assert!(is_below("receivers.otlp.auth.bearer_tokens", "receivers.otlp.auth"));
        assert!(is_below("metrics.rules", "metrics.rules"));
        assert!(!is_below("metrics.rules_of_thumb", "metrics.rules"));
        assert_eq!(exporter_of("exporters.otlp/a.headers"), Some("otlp/a"));
        assert_eq!(exporter_of("journal.exporters"), None);
    }
}
