//! SIGHUP: what can be applied to the running program is applied, the rest is named; a broken file changes nothing.

use std::collections::BTreeMap;

use crate::config::Mistakes;
use crate::config::render;
use crate::config::section::KeyRecord;
use crate::listen::TlsReloader;
use crate::settings::Loaded;
use crate::telemetry::LogControl;

/// Settings that take effect without a restart.
const APPLIED: [&str; 1] = ["telemetry.logs.level"];

/// What a running program can change.
pub(super) struct Reloader {
    in_force: BTreeMap<String, String>,
    log: LogControl,
    certificates: Vec<TlsReloader>,
}

impl Reloader {
    pub(super) fn new(records: Vec<KeyRecord>, log: LogControl, certificates: Vec<TlsReloader>) -> Self {
        Self {
            in_force: render::values(&records),
            log,
            certificates,
        }
    }

    /// Reads certificates and configuration again.
    pub(super) fn reload(&mut self, reread: &impl Fn() -> Result<Loaded, Mistakes>) {
        for certificate in &self.certificates {
            if let Err(error) = certificate.reload() {
                tracing::error!(reason = %error, "certificates were not read again; the old ones stay");
            }
        }
        match reread() {
            Ok(loaded) => self.apply(&loaded),
            Err(Mistakes(mistakes)) => {
                for mistake in mistakes {
                    tracing::error!(%mistake, "the configuration was not read again; the old one stays");
                }
            }
        }
    }

    fn apply(&mut self, loaded: &Loaded) {
        let wanted = render::values(&loaded.records);
        self.log.set_level(loaded.settings.logs.level);
        for key in changed(&self.in_force, &wanted) {
            let applied = APPLIED.contains(&key.as_str());
            if applied {
                tracing::info!(key, "changed");
                if let Some(value) = wanted.get(&key) {
                    self.in_force.insert(key, value.clone());
                }
            } else {
                tracing::warn!(key, "changed; takes effect after a restart");
            }
        }
        tracing::info!("configuration and certificates were read again");
    }
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
}
