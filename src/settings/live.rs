//! What takes effect in a running program: one table says which settings do, and takes them over. What is not in it stays
//! as it was at the start.

use super::Settings;

/// A setting that takes effect on SIGHUP, or a section with everything below it.
pub struct Live {
    /// Its key.
    pub key: &'static str,
    /// Takes its value over from a file that was read again.
    pub(super) take: fn(&mut Settings, &Settings),
}

/// Each key with the fields of [`Settings`] that hold its value.
macro_rules! live {
    ($($key:literal => $($($field:ident).+),+;)+) => {
        [$(Live {
            key: $key,
            take: |running, file| {
                $(running.$($field).+.clone_from(&file.$($field).+);)+
            },
        }),+]
    };
}

/// What takes effect on SIGHUP. So does everything of an exporter that is there.
pub static LIVE: [Live; 15] = live! {
    "receivers.otlp.auth" => receivers.auth;
    "database.retention" => database.retention;
    "database.assembly_window" => database.assembly_window;
    "database.max_pending" => database.max_pending;
    "database.standalone" => database.standalone;
    "database.redact" => database.redact;
    "metrics.auth" => metrics.listen.auth;
    "metrics.max_series_per_metric" => metrics.max_series_per_metric;
    "metrics.resource_labels" => metrics.resource_labels;
    "metrics.const_labels" => metrics.const_labels;
    "metrics.rules" => metrics.rules;
    "metrics.push_interval" => metrics.push_interval;
    "prices" => prices, database.prices;
    "health.auth" => health.auth;
    "telemetry.logs.level" => logs.level;
};

/// These do as long as there are some before and after; whether the API is open at all is decided at the start.
pub static LIVE_API_CREDENTIALS: [Live; 2] = live! {
    "api.auth.bearer_tokens" => api.query.tokens;
    "api.auth.basic_users" => api.query.users;
};

impl Live {
    /// Whether the setting is this one or lies below it.
    pub(super) fn is_above(&self, path: &[String]) -> bool {
        let mut path = path.iter();
        self.key
            .split('.')
            .all(|word| path.next().is_some_and(|part| part == word))
    }
}

impl Settings {
    /// These settings, with what a running program can take over from `file`. Which exporters there are takes a restart:
    /// one that the file no longer has stays as it is, a new one is not there.
    pub fn taking_over(&self, file: &Settings) -> Settings {
        let mut taken = self.clone();
        for live in self.takeable(file) {
            (live.take)(&mut taken, file);
        }
        for (name, options) in &mut taken.exporters {
            if let Some((_, wanted)) = file.exporters.iter().find(|(other, _)| other == name) {
                options.clone_from(wanted);
            }
        }
        taken
    }

    /// Whether [`Settings::taking_over`] takes over the setting at this path.
    pub fn takes_over(&self, file: &Settings, path: &[String]) -> bool {
        match path {
            [section, name, ..] if section == "exporters" => self.has_exporter(name) && file.has_exporter(name),
            _ => self.takeable(file).any(|live| live.is_above(path)),
        }
    }

    fn takeable(&self, file: &Settings) -> impl Iterator<Item = &'static Live> {
        let has_credentials = |settings: &Settings| {
            let asked = &settings.api.query;
            !asked.tokens.is_empty() || !asked.users.is_empty()
        };
        let of_api = has_credentials(self) && has_credentials(file);
        let of_api = LIVE_API_CREDENTIALS.iter().filter(move |_| of_api);
        LIVE.iter().chain(of_api)
    }

    fn has_exporter(&self, name: &str) -> bool {
        self.exporters.iter().any(|(other, _)| other == name)
    }
}
