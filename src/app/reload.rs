//! SIGHUP: what can be applied to the running program is applied, the rest is named; a broken file changes nothing.
//!
//! Everything is read and checked first. Then readers of the journal are made anew where they are to be made of something
//! else (they save their positions and go on from there), tokens and certificates are exchanged, and the level of the log
//! is set. Listeners, the journal, the database and the set of exporters stay what they are: the settings in force are those
//! of the start with what [`Settings::taking_over`] takes over, and everything is made of these alone.

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
use crate::settings::{Loaded, Settings};
use crate::telemetry::LogControl;

/// What is written for each setting, by its path. The name of an exporter is one part of it, whatever is in the name.
type Values = BTreeMap<Vec<String>, String>;

/// What a running program can change.
pub(super) struct Reloader {
    in_force: Settings,
    /// Of the settings in force.
    values: Values,
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
            in_force: settings.clone(),
            values: render::values(&records),
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
            // What takes a restart has to be right as well.
            Plan::of(&loaded.settings, journal)?.check_exporters(&self.own_addresses)?;
            let settings = self.in_force.taking_over(&loaded.settings);
            let plan = Plan::of(&settings, journal)?;
            Ok((loaded, settings, plan))
        });
        match checked {
            Ok((loaded, settings, plan)) => self.apply(&loaded, settings, plan, stages, query),
            Err(StartError::Rules(Mistakes(mistakes))) => {
                for mistake in mistakes {
                    tracing::error!(%mistake, "the configuration was not read again; the old one stays");
                }
            }
            Err(error) => tracing::error!(mistake = %error, "the configuration was not read again; the old one stays"),
        }
    }

    fn apply(&mut self, file: &Loaded, settings: Settings, plan: Plan, stages: &Stages, query: &QueryApi) {
        self.log.set_level(settings.logs.level);
        for (in_use, wanted) in self.admission.iter().zip(&admission(&settings)) {
            in_use.replace(wanted);
        }
        let asked = &settings.api.query;
        query.replace_credentials(asked.tokens.clone(), &asked.users);
        stages.replace(plan);
        self.pace.send_replace(Pace::of(&settings));
        let wanted = render::values(&file.records);
        for path in changed(&self.values, &wanted) {
            let key = path.join(".");
            if self.in_force.takes_over(&file.settings, &path) {
                tracing::info!(key, "changed");
                match wanted.get(&path) {
                    Some(value) => self.values.insert(path, value.clone()),
                    None => self.values.remove(&path),
                };
            } else {
                tracing::warn!(key, "changed; takes effect after a restart");
            }
        }
        self.in_force = settings;
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

/// Settings whose values differ, in order.
fn changed(before: &Values, after: &Values) -> Vec<Vec<String>> {
    let mut paths = before.keys().chain(after.keys()).collect::<Vec<_>>();
    paths.sort();
    paths.dedup();
    paths
        .into_iter()
        .filter(|path| before.get(*path) != after.get(*path))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::expand::ProcessEnvironment;

    #[test]
    fn changed_keys_are_those_with_another_value_or_that_came_or_went() {
        let map = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(key, value)| (vec![key.to_string()], value.to_string()))
                .collect()
        };
        let before = map(&[("a", "1"), ("b", "2"), ("c", "3")]);
        let after = map(&[("a", "1"), ("b", "5"), ("d", "4")]);
        assert_eq!(changed(&before, &after), [["b"], ["c"], ["d"]]);
    }

    fn settings(set: &[&str]) -> Settings {
        let set: Vec<String> = set.iter().map(|set| (*set).to_owned()).collect();
        let loaded = crate::settings::read(None, &[], &set, &ProcessEnvironment);
        loaded.unwrap_or_else(|mistakes| panic!("{mistakes}")).settings
    }

    #[test]
    fn metrics_are_pushed_for_the_exporters_that_run_until_they_are_told_to_take_none() {
        let push = "metrics.push_interval=7s";
        let running = settings(&[push, "exporters.otlp.endpoint=http://a:1"]);
        let pace = Pace::of(&running);
        assert!(pace.is_some());
        let renamed = settings(&[push, "exporters.otlp/b.endpoint=http://a:1"]);
        assert_eq!(Pace::of(&running.taking_over(&renamed)), pace);
        let none = settings(&[push]);
        assert_eq!(Pace::of(&running.taking_over(&none)), pace);
        let others = settings(&[
            push,
            "exporters.otlp.endpoint=http://a:1",
            "exporters.otlp.signals=[traces]",
            "exporters.otlp/b.endpoint=http://a:1",
        ]);
        assert_eq!(Pace::of(&running.taking_over(&others)), None);
    }

    #[test]
    fn an_exporter_that_the_file_no_longer_has_runs_on_and_needs_no_certificate_for_it() {
        let running = settings(&[
            "exporters.otlp.endpoint=https://a:1",
            "exporters.otlp.tls.ca_file=/nowhere.pem",
        ]);
        let journal = JournalId([1; 16]);
        let unreadable = Plan::of(&running, journal).unwrap().check_exporters(&[]);
        assert!(matches!(unreadable, Err(StartError::Exporter { .. })), "{unreadable:?}");
        assert!(Plan::of(&running.taking_over(&settings(&[])), journal).is_ok());
    }
}
