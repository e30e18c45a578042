//! The files that users read say what the program does.

use super::*;
use crate::config::expand::Environment;

struct Empty;

impl Environment for Empty {
    fn variable(&self, _: &str) -> Option<String> {
        None
    }

    fn file(&self, _: &str) -> std::io::Result<String> {
        Err(std::io::ErrorKind::NotFound.into())
    }
}

fn loaded(text: &str) -> Result<Loaded, Mistakes> {
    let layers = [Layer::File {
        name: "c.yaml".into(),
        text: text.into(),
    }];
    let root = load(&layers, &Empty, &mut Notes::default())?;
    let reader = Reader::new(&Empty);
    let settings = reader.read(&root, bind);
    Ok(Loaded {
        settings,
        records: reader.finish()?,
        unset_variables: Vec::new(),
    })
}

/// Compares with the file, or writes it when SPANLEDGER_WRITE_DOCS is set.
fn assert_file_is(path: &str, expected: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("SPANLEDGER_WRITE_DOCS").is_some() {
        std::fs::write(&path, expected).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == expected,
        "{} is out of date: SPANLEDGER_WRITE_DOCS=1 cargo test settings::",
        path.display()
    );
}

#[test]
fn the_built_in_defaults_are_valid() {
    let settings = loaded("").unwrap().settings;
    assert_eq!(settings.shutdown_timeout, Duration::from_secs(10));
    assert_eq!(settings.receivers.grpc.unwrap().endpoint, "127.0.0.1:4317");
    assert_eq!(settings.database.url, "sqlite:./spanledger-data/executions.db");
    assert!(settings.exporters.is_empty());
}

#[test]
fn the_example_file_holds_every_key_and_is_valid() {
    let example = Reference::new(&Empty).example();
    assert_file_is("config.example.yaml", &example);
    assert!(loaded(&example).is_ok());
    for key in [
        "max_recv_msg_size_mib",
        "when_full",
        "signoz_url",
        "assembly_window",
        "# exporters:",
        "max_age",
    ] {
        assert!(example.contains(key), "{key} is missing");
    }
}

#[test]
fn the_exporters_of_the_example_are_valid_once_they_have_an_endpoint() {
    let example = Reference::new(&Empty).example();
    let mut uncommented = String::new();
    for line in example.lines() {
        let line = line
            .strip_prefix("# ")
            .filter(|rest| rest.contains(':') && !rest.contains("${"))
            .unwrap_or(line);
        uncommented.push_str(&line.replace("    endpoint:  ", "    endpoint: http://signoz:4318 "));
        uncommented.push('\n');
    }
    let uncommented = uncommented
        .replace("# Durations", "# durations")
        .replace("Durations: ", "# ");
    if let Err(mistakes) = loaded(&uncommented) {
        panic!("{mistakes}\n{uncommented}");
    }
}

#[test]
fn the_reference_holds_every_key() {
    assert_file_is("docs/configuration.md", &Reference::new(&Empty).document());
}

#[test]
fn what_takes_effect_while_the_program_runs_are_keys_that_exist() {
    let keys = crate::config::render::values(&Reference::new(&Empty).records);
    for live in LIVE.iter().chain(&LIVE_API_CREDENTIALS) {
        assert!(keys.keys().any(|path| live.is_above(path)), "{}", live.key);
    }
}

/// Of what takes effect while the program runs, the values.
fn live_values(settings: &Settings) -> String {
    let Settings {
        receivers,
        database,
        metrics,
        prices,
        api,
        health,
        logs,
        ..
    } = settings;
    let of_rows = (
        database.retention,
        database.assembly_window,
        database.max_pending,
        database.standalone,
        &database.redact,
        &database.prices,
    );
    let of_metrics = (
        &metrics.listen.auth,
        metrics.max_series_per_metric,
        &metrics.resource_labels,
        &metrics.const_labels,
        &metrics.rules,
        metrics.push_interval,
    );
    let of_listeners = (
        &receivers.auth,
        &health.auth,
        api.query.tokens.len(),
        api.query.users.len(),
    );
    format!("{of_rows:?} {of_metrics:?} {of_listeners:?} {prices:?} {}", logs.level)
}

#[test]
fn each_key_that_takes_effect_while_the_program_runs_takes_its_own_value_over_and_no_other() {
    let before = loaded("api: {auth: {bearer_tokens: [a]}}").unwrap();
    let texts = [
        ("receivers.otlp.auth", "receivers: {otlp: {auth: {bearer_tokens: [x]}}}"),
        ("database.retention", "database: {retention: 7d}"),
        ("database.assembly_window", "database: {assembly_window: 7m}"),
        ("database.max_pending", "database: {max_pending: 7}"),
        ("database.standalone", "database: {standalone: true}"),
        ("database.redact", "database: {redact: [x]}"),
        ("metrics.auth", "metrics: {auth: {bearer_tokens: [x]}}"),
        ("metrics.max_series_per_metric", "metrics: {max_series_per_metric: 7}"),
        ("metrics.resource_labels", "metrics: {resource_labels: [x]}"),
        ("metrics.const_labels", "metrics: {const_labels: {x: y}}"),
        ("metrics.rules", "metrics: {rules: [x.yaml]}"),
        ("metrics.push_interval", "metrics: {push_interval: 7s}"),
        ("prices", "prices: {models: {x: {input: 7}}}"),
        ("health.auth", "health: {auth: {bearer_tokens: [x]}}"),
        ("telemetry.logs.level", "telemetry: {logs: {level: debug}}"),
        ("api.auth.bearer_tokens", "api: {auth: {bearer_tokens: [a, x]}}"),
        (
            "api.auth.basic_users",
            "api: {auth: {bearer_tokens: [a], basic_users: {x: y}}}",
        ),
    ];
    for live in LIVE.iter().chain(&LIVE_API_CREDENTIALS) {
        let of_key = texts.iter().find(|(key, _)| *key == live.key);
        let text = of_key
            .unwrap_or_else(|| panic!("a text that sets {} is missing here", live.key))
            .1;
        let text = match text.starts_with("api:") {
            true => text.to_owned(),
            false => format!("api: {{auth: {{bearer_tokens: [a]}}}}\n{text}"),
        };
        let file = loaded(&text).unwrap();
        let values = crate::config::render::values;
        let (keys_before, keys) = (values(&before.records), values(&file.records));
        let differs = |path: &&Vec<String>| keys_before.get(*path) != keys.get(*path);
        let changed: Vec<_> = keys.keys().filter(differs).collect();
        assert!(!changed.is_empty(), "{text} changes nothing");
        for path in changed {
            assert!(before.settings.takes_over(&file.settings, path), "{path:?}");
            assert!(live.is_above(path), "{text} changes {path:?}");
        }
        let mut taken = before.settings.clone();
        (live.take)(&mut taken, &file.settings);
        assert_ne!(live_values(&taken), live_values(&before.settings), "{}", live.key);
        assert_eq!(live_values(&taken), live_values(&file.settings), "{}", live.key);
        let taken = before.settings.taking_over(&file.settings);
        assert_eq!(live_values(&taken), live_values(&file.settings), "{}", live.key);
    }
}

#[test]
fn what_takes_a_restart_stays_as_it_is_and_is_said_to() {
    let running =
        loaded("exporters: {otlp: {endpoint: 'http://a:1'}, otlp/eu.west: {endpoint: 'http://b:1'}}").unwrap();
    let file = loaded(
        "journal: {directory: elsewhere, retain: 2h}\nshutdown_timeout: 7s\n\
         database: {url: 'postgres://db/x', schema: s, table: t, migrate: false, tables: [event_logs], statement_timeout: 7s}\n\
         metrics: {endpoint: '127.0.0.1:7'}\napi: {rows: all, auth: {bearer_tokens: [x]}}\ntelemetry: {logs: {format: json}}\n\
         exporters: {otlp/new: {endpoint: 'http://a:1'}, otlp/eu.west: {endpoint: 'http://c:1'}}",
    )
    .unwrap();
    let (taken, before) = (running.settings.taking_over(&file.settings), running.settings);
    assert_eq!(live_values(&taken), live_values(&before));
    assert_eq!(taken.database, before.database);
    assert_eq!(taken.shutdown_timeout, before.shutdown_timeout);
    assert_eq!(taken.journal.directory, before.journal.directory);
    assert_eq!(taken.journal.retain, before.journal.retain);
    assert_eq!(taken.metrics.listen.endpoint, before.metrics.listen.endpoint);
    let exporters: Vec<_> = taken
        .exporters
        .iter()
        .map(|(name, options)| (name.as_str(), &options.endpoint[..]))
        .collect();
    assert_eq!(exporters, [("otlp", "http://a:1"), ("otlp/eu.west", "http://c:1")]);
    let path = |parts: &[&str]| parts.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>();
    for (parts, is_taken) in [
        (["exporters", "otlp/eu.west", "endpoint"], true),
        (["exporters", "otlp", "endpoint"], false),
        (["exporters", "otlp/new", "endpoint"], false),
        // The beginning of a name is another name.
        (["exporters", "otlp/eu", "west"], false),
        (["api", "auth", "bearer_tokens"], false),
    ] {
        assert_eq!(before.takes_over(&file.settings, &path(&parts)), is_taken, "{parts:?}");
    }
    for key in [
        "journal.retain",
        "shutdown_timeout",
        "database.url",
        "api.rows",
        "telemetry.logs.format",
    ] {
        let parts: Vec<_> = key.split('.').collect();
        assert!(!before.takes_over(&file.settings, &path(&parts)), "{key}");
    }
}

#[test]
fn the_effective_configuration_reads_back_as_itself_and_shows_no_secret() {
    let text = "exporters:\n  otlp:\n    endpoint: http://signoz:4318/base?key=s3cr3t\n    headers: {signoz-ingestion-key: s3cr3t}\n\
        database: {url: 'postgres://u:s3cr3t@db/x'}\n\
        receivers: {otlp: {auth: {bearer_tokens: [s3cr3t], basic_users: {ann: s3cr3t}}}}\n\
        metrics: {auth: {basic_users: {prometheus: 'http://s3cr3t'}}}\n\
        api: {auth: {bearer_tokens: [{token: s3cr3t, organization: o1}], basic_users: {bob: s3cr3t}}}\n";
    let printed = render::effective(&loaded(text).unwrap().records);
    assert!(!printed.contains("s3cr3t"), "{printed}");
    let Settings {
        database,
        api,
        receivers,
        exporters,
        metrics,
        ..
    } = loaded(text).unwrap().settings;
    let debug = format!(
        "{database:?} {:?} {receivers:?} {exporters:?} {:?}",
        api.query, metrics.listen
    );
    assert!(!debug.contains("s3cr3t") && debug.contains("code_exec_logs"), "{debug}");
    assert!(printed.contains("signoz-ingestion-key: \"[redacted]\""), "{printed}");
    assert!(printed.contains("http://signoz:4318/base?[redacted]"), "{printed}");
    let again = render::effective(
        &loaded(&printed)
            .unwrap_or_else(|error| panic!("{error}\n{printed}"))
            .records,
    );
    assert_eq!(printed, again);
}

#[test]
fn rules_for_what_leaves_are_read_as_they_are_written() {
    let text = "exporters:\n  otlp:\n    endpoint: http://signoz:4318\n    hash_key: s3cr3t\n    truncate: 4KiB\n\
        \x20   drop_spans:\n      - health_checks\n      - {name: [GET *, HEAD *], kind: server, resource: {service.name: x}}\n\
        \x20   sample: {ratio: 0.1, keep: [errors, slower_than: 5s, {attribute: keep.me}], wait: 5s}\n\
        \x20   redact: [builtin:email, 'x+']\n    set_resource: {service.name: mine}\n";
    let loaded = loaded(text).unwrap();
    assert!(!render::effective(&loaded.records).contains("s3cr3t"));
    let rules = &loaded.settings.exporters[0].1.egress;
    assert_eq!(
        rules.drop_spans[1].says,
        "name: [GET *, HEAD *], kind: server, resource: {service.name: x}"
    );
    assert_eq!(rules.drop_spans[1].any_of[0].names.len(), 2);
    assert_eq!(rules.ratio.to_string(), "e666");
    let says: Vec<String> = rules.keep.iter().map(crate::egress::KeepRule::says).collect();
    assert_eq!(says, ["errors", "slower_than: 5s", "attribute: keep.me"]);
    assert_eq!((rules.wait, rules.truncate), (Duration::from_secs(5), 4096));
    assert_eq!(rules.set_resource, [("service.name".to_owned(), "mine".to_owned())]);
}

#[test]
fn a_password_of_its_own_may_hold_any_character() {
    for (url, expected) in [
        ("postgres://u@db/x", "postgres://u@db/x?password=p%40s%2Fs%23%25%26"),
        (
            "postgres://u@db/x?sslmode=require",
            "postgres://u@db/x?sslmode=require&password=p%40s%2Fs%23%25%26",
        ),
    ] {
        let text = format!("database: {{url: '{url}', password: 'p@s/s#%&'}}");
        assert_eq!(loaded(&text).unwrap().settings.database.url, expected);
    }
    let printed = render::effective(
        &loaded("database: {url: 'postgres://u@db/x', password: s3cr3t}")
            .unwrap()
            .records,
    );
    assert!(!printed.contains("s3cr3t"), "{printed}");
}

#[test]
fn mistakes_across_settings_are_found() {
    for (text, expected) in [
        ("exporters: {otlp: {}}", "c.yaml:1:13: exporters.otlp.endpoint: "),
        (
            "exporters: {zipkin: {endpoint: 'http://x:1'}}",
            "c.yaml:1:13: exporters.zipkin: an exporter is called otlp or otlp/<name>",
        ),
        ("database: {url: 'mysql://x'}", "postgres://"),
        ("journal: {max_size: 1MiB}", "16MiB or more"),
        ("metrics: {tls: {cert_file: x}}", "go together"),
        ("database: {redact: ['(']}", "database.redact"),
        (
            "exporters: {otlp: {endpoint: 'http://x:1', sample: {keep: [errors]}}}",
            "a `ratio` of 1 keeps everything",
        ),
        (
            "exporters: {otlp: {endpoint: 'http://x:1', sample: {keep: [slow]}}}",
            "slower_than: DURATION",
        ),
        ("database: {redact: ['builtin:mail']}", "there are tokens, keys, email"),
        (
            "exporters: {otlp: {endpoint: 'http://x:1', redact: ['x*']}}",
            "exporters.otlp.redact",
        ),
        (
            "exporters: {otlp: {endpoint: 'http://x:1', sample: {ratio: 2}}}",
            "from 0 to 1",
        ),
        (
            "exporters: {otlp: {endpoint: 'http://x:1', drop_spans: [{nam: x}]}}",
            "`nam` is not one of",
        ),
        (
            "exporters: {otlp: {endpoint: 'http://x:1', drop_spans: [{attributes: {'a*': x}}]}}",
            "not in the keys",
        ),
        (
            "database: {tables: [event_log]}",
            "`event_log` is none of model_cost_logs",
        ),
        ("database: {statement_timeout: 0s}", "expected more than 0"),
        ("database: {password: x}", "only PostgreSQL has one"),
        ("receivers: {otlp: {auth: {bearer_tokens: ['']}}}", "a token is empty"),
        ("health: {auth: {basic_users: {'a:b': p}}}", "has a colon"),
        ("api: {auth: {basic_users: {ann: ''}}}", "a password is empty"),
        (
            "telemetry: {logs: {level: loud}}",
            "expected one of error, warn, info, debug, trace",
        ),
    ] {
        let mistakes = loaded(text)
            .err()
            .unwrap_or_else(|| panic!("{text} was accepted"))
            .to_string();
        assert!(mistakes.contains(expected), "{text}: {mistakes}");
    }
}

#[test]
fn an_exporter_that_leads_back_to_a_listener_is_found_without_starting() {
    let text =
        |endpoint: &str| format!("metrics: {{endpoint: ':9999'}}\nexporters:\n  otlp/a.b:\n    endpoint: {endpoint}\n");
    let loop_at = |endpoint| loaded(&text(endpoint)).unwrap().check();
    for endpoint in [
        "http://127.0.0.1:4318",
        "http://localhost:4317",
        "http://127.0.0.1:9999",
    ] {
        assert_eq!(
            loop_at(endpoint).unwrap_err().to_string(),
            "c.yaml:4:15: exporters.otlp/a.b.endpoint: is one of our own listeners; what is forwarded would go round \
             for ever"
        );
    }
    for endpoint in [
        "http://127.0.0.1:4319",
        "http://192.0.2.7:4318",
        "http://no-such-host.invalid:4318",
    ] {
        loop_at(endpoint).unwrap();
    }
}

#[test]
fn the_example_prices_are_valid_and_mean_what_they_say() {
    let settings = loaded(EXAMPLE_PRICES).unwrap().settings;
    let hour_on_e2b = settings.prices.execution_cost("e2b", Some(3_600_000.0)).unwrap();
    assert!((hour_on_e2b - 0.1089).abs() < 1e-9, "{hour_on_e2b}");
    let own = |runtime| settings.prices.execution_cost(runtime, Some(3_600_000.0)).unwrap();
    assert!((own("vm2") - 0.25 * (0.04048 + 0.004445)).abs() < 1e-6);
    assert_eq!(own("vm2"), own("subprocess"));
    assert!(settings.prices.models.is_empty());
    assert_eq!(settings.database.prices, settings.prices);
}

#[test]
fn prices_are_off_unless_they_are_set_and_every_mistake_in_them_is_named() {
    assert_eq!(*loaded("").unwrap().settings.prices, Prices::default());
    let settings =
        loaded("prices: {models: {'gpt-4o*': {input: 2.5, output: 10, cached_tokens: additional}}}").unwrap();
    let (pattern, price) = &settings.settings.prices.models[0];
    assert_eq!(
        (pattern.as_str(), price.input, price.cache_read),
        ("gpt-4o*", 2.5, None)
    );
    assert!(price.cached_tokens_are_additional);
    for (text, at) in [
        (
            "prices: {runtimes: {e2b: {vcpu_secnd: 1}}}",
            "prices.runtimes.e2b.vcpu_secnd",
        ),
        (
            "prices: {runtimes: {e2b: {execution: -1}}}",
            "prices.runtimes.e2b.execution",
        ),
        ("prices: {models: {x: {input: cheap}}}", "prices.models.x.input"),
    ] {
        let Err(mistakes) = loaded(text) else {
            panic!("{text} is valid")
        };
        assert!(mistakes.to_string().contains(at), "{mistakes}");
    }
}

#[test]
fn every_listener_takes_limits_by_the_names_of_the_collector_and_none_of_them_may_be_nothing() {
    let text = "
receivers:
  otlp:
    protocols:
      grpc:
        max_concurrent_streams: 100
        max_connections: 8
        read_timeout: 7s
        keepalive:
          server_parameters: {max_connection_idle: 11s, max_connection_age: 1h, max_connection_age_grace: 5s, time: 30s, timeout: 3s}
      http: {read_timeout: 1m, read_header_timeout: 2s, write_timeout: 3s, idle_timeout: 4s, max_connections_per_peer: 5}
metrics: {idle_timeout: 6s}
api: {max_connections: 10}
health: {write_timeout: 8s}
";
    let settings = loaded(text).unwrap().settings;
    let grpc = settings.receivers.grpc.unwrap();
    let seconds = Duration::from_secs;
    assert_eq!((grpc.read_timeout, grpc.limits.max_streams), (seconds(7), 100));
    assert_eq!(
        (grpc.limits.max_connections, grpc.limits.max_connections_of_one_peer),
        (8, 6)
    );
    assert_eq!(grpc.limits.idle_timeout, seconds(11));
    assert_eq!(grpc.limits.max_connection_age, Some(seconds(3600)));
    assert_eq!(grpc.limits.max_connection_age_grace, Some(seconds(5)));
    assert_eq!(
        (grpc.limits.ping_interval, grpc.limits.ping_timeout),
        (Some(seconds(30)), seconds(3))
    );
    let http = settings.receivers.http.unwrap();
    let limits = &http.limits;
    assert_eq!(http.read_timeout, seconds(60));
    assert_eq!(
        (limits.header_timeout, limits.write_timeout, limits.idle_timeout),
        (seconds(2), seconds(3), seconds(4))
    );
    assert_eq!((limits.max_connections, limits.max_connections_of_one_peer), (1024, 5));
    assert_eq!(settings.metrics.listen.limits.idle_timeout, seconds(6));
    assert_eq!(settings.api.listen.limits.max_connections, 10);
    assert_eq!(settings.health.limits.write_timeout, seconds(8));

    let nothing = "
receivers:
  otlp:
    protocols:
      grpc: {max_connections: 0, keepalive: {server_parameters: {max_connection_age: 0s}}}
      http: {read_timeout: 0, max_connections_per_peer: 0}
";
    let mistakes = loaded(nothing).err().unwrap().to_string();
    for key in [
        "max_connections",
        "max_connection_age",
        "read_timeout",
        "max_connections_per_peer",
    ] {
        assert!(mistakes.contains(key), "{key}: {mistakes}");
    }
    assert_eq!(loaded(nothing).err().unwrap().0.len(), 4);
}

#[test]
fn limits_that_are_not_configured_are_the_built_in_ones() {
    let settings = loaded("").unwrap().settings;
    let built_in = format!("{:?}", crate::listen::Limits::default());
    for limits in [
        settings.receivers.grpc.unwrap().limits,
        settings.receivers.http.unwrap().limits,
        settings.metrics.listen.limits,
        settings.api.listen.limits,
        settings.health.limits,
    ] {
        assert_eq!(format!("{limits:?}"), built_in);
    }
}
