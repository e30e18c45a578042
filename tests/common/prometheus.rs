//! Reads the Prometheus text format, and says what derived metrics must be shown for given observations.

use std::collections::BTreeMap;
use std::fmt;

/// A name with its labels.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Series {
    /// Name as it is exposed: `x_bucket`, not `x`.
    pub name: String,
    /// Labels; the value of `le` is normalised.
    pub labels: BTreeMap<String, String>,
}

impl fmt::Display for Series {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.name)?;
        let labels: Vec<String> = self
            .labels
            .iter()
            .map(|(key, value)| format!("{key}={value:?}"))
            .collect();
        if labels.is_empty() {
            Ok(())
        } else {
            write!(out, "{{{}}}", labels.join(","))
        }
    }
}

/// All series of one scrape.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scrape(pub BTreeMap<Series, f64>);

impl Scrape {
    /// Reads the text format 0.0.4 or OpenMetrics; exemplars and time stamps are passed over.
    pub fn parse(text: &str) -> Scrape {
        let mut all = BTreeMap::new();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (series, rest) = parse_series(line).unwrap_or_else(|| panic!("not a sample: {line}"));
            let value = rest.split_whitespace().next().and_then(|value| value.parse().ok());
            let value = value.unwrap_or_else(|| panic!("no value: {line}"));
            let twice = all.insert(series, value);
            assert!(twice.is_none(), "the same series twice in one scrape: {line}");
        }
        Scrape(all)
    }

    /// Adds a sample; of `le` it keeps the number, however it was written.
    pub fn insert(&mut self, name: &str, mut labels: BTreeMap<String, String>, value: f64) {
        if let Some(le) = labels.get_mut("le") {
            *le = bound(le.parse().unwrap());
        }
        let name = name.to_owned();
        let twice = self.0.insert(Series { name, labels }, value);
        assert!(twice.is_none(), "the same series twice");
    }

    /// One sample.
    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        self.0
            .get(&Series {
                name: name.to_owned(),
                labels,
            })
            .copied()
    }

    /// Only the metrics that are made from spans, not those about the program.
    pub fn derived(&self) -> Scrape {
        let own = |name: &str| name.starts_with("spanledger_") || name.starts_with("process_");
        Scrape(
            self.0
                .iter()
                .filter(|(series, _)| !own(&series.name))
                .map(|(s, v)| (s.clone(), *v))
                .collect(),
        )
    }

    /// What is not as in the other one; empty when both are equal but for the rounding of sums.
    pub fn difference(&self, expected: &Scrape) -> Vec<String> {
        let mut found = Vec::new();
        for (series, wanted) in &expected.0 {
            match self.0.get(series) {
                None => found.push(format!("{series} is missing, expected {wanted}")),
                Some(value) if (value - wanted).abs() > 1e-9 * wanted.abs().max(1.0) => {
                    found.push(format!("{series} is {value}, expected {wanted}"));
                }
                Some(_) => {}
            }
        }
        let unexpected = self.0.iter().filter(|(series, _)| !expected.0.contains_key(series));
        found.extend(unexpected.map(|(series, value)| format!("{series} is {value}, expected no such series")));
        found
    }

    /// The series that are less than in an earlier scrape, or gone.
    pub fn decreased_since(&self, earlier: &Scrape) -> Vec<String> {
        let mut found = Vec::new();
        for (series, before) in &earlier.0 {
            match self.0.get(series) {
                None => found.push(format!("{series} was {before} and is gone")),
                Some(now) if now < before => found.push(format!("{series} was {before} and is {now}")),
                Some(_) => {}
            }
        }
        found
    }
}

fn parse_series(line: &str) -> Option<(Series, &str)> {
    let end = line.find(['{', ' '])?;
    let name = line[..end].to_owned();
    let mut labels = BTreeMap::new();
    let mut rest = &line[end..];
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            rest = rest.trim_start_matches(',');
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (key, after) = rest.split_once("=\"")?;
            let mut value = String::new();
            let mut characters = after.char_indices();
            let close = loop {
                match characters.next()? {
                    (at, '"') => break at,
                    (_, '\\') => match characters.next()?.1 {
                        'n' => value.push('\n'),
                        other => value.push(other),
                    },
                    (_, other) => value.push(other),
                }
            };
            rest = &after[close + 1..];
            if key == "le" {
                value = bound(value.parse().ok()?);
            }
            labels.insert(key.to_owned(), value);
        }
    }
    Some((Series { name, labels }, rest))
}

fn bound(value: f64) -> String {
    if value.is_infinite() {
        "+Inf".to_owned()
    } else {
        value.to_string()
    }
}

/// Upper bounds of the histograms, as documented.
const BUCKETS: [(&str, &[f64]); 16] = [
    ("code_duration_ms", DURATION_MS),
    ("e2b_duration_ms", DURATION_MS),
    ("wasmedge_execution_time_ms", DURATION_MS),
    ("bacalhau_duration_ms", DURATION_MS),
    ("code_memory_mb", MEMORY_MB),
    ("e2b_memory_mb", MEMORY_MB),
    (
        "runtime_tool_execute_seconds",
        &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0],
    ),
    ("runtime_tool_output_bytes", &[100.0, 1e3, 1e4, 1e5, 1e6, 1e7]),
    (
        "workflow_duration_seconds",
        &[
            0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0,
        ],
    ),
    ("node_latency_ms", LATENCY_MS),
    ("llm_latency_ms", LATENCY_MS),
    ("agent_latency_ms", LATENCY_MS),
    ("connector_latency_ms", LATENCY_MS),
    ("rag_latency_ms", LATENCY_MS),
    ("agent_iterations", &[1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0, 55.0]),
    ("rag_sources_found", &[0.0, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0]),
];
const LATENCY_MS: &[f64] = &[
    5., 10., 25., 50., 100., 250., 500., 1000., 2500., 5000., 10000., 30000., 60000., 120000.,
];
const DURATION_MS: &[f64] = &[
    1., 5., 10., 25., 50., 100., 250., 500., 1000., 2500., 5000., 10000., 30000., 60000., 300000.,
];
const MEMORY_MB: &[f64] = &[1., 4., 16., 32., 64., 128., 256., 512., 1024., 2048., 4096., 8192.];

/// Increments of counters and observations of histograms, and what a scrape shows of them.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    samples: BTreeMap<Series, Vec<f64>>,
}

impl Expected {
    /// Adds to a counter, or an observation to a histogram.
    pub fn add(&mut self, name: &str, labels: impl IntoIterator<Item = (String, String)>, value: f64) {
        let series = Series {
            name: name.to_owned(),
            labels: labels.into_iter().collect(),
        };
        self.samples.entry(series).or_default().push(value);
    }

    /// Adds everything that is in another one.
    pub fn merge(&mut self, other: &Expected) {
        for (series, values) in &other.samples {
            self.samples.entry(series.clone()).or_default().extend(values);
        }
    }

    /// The series of a scrape.
    pub fn series(&self) -> Scrape {
        let mut all = BTreeMap::new();
        for (series, values) in &self.samples {
            let total: f64 = values.iter().sum();
            let Some((_, bounds)) = BUCKETS.iter().find(|(name, _)| *name == series.name) else {
                all.insert(series.clone(), total);
                continue;
            };
            let with = |suffix: &str| Series {
                name: format!("{}{suffix}", series.name),
                labels: series.labels.clone(),
            };
            let count = values.len() as f64;
            all.insert(with("_sum"), total);
            all.insert(with("_count"), count);
            for le in bounds.iter().copied().chain([f64::INFINITY]) {
                let mut bucket = with("_bucket");
                bucket.labels.insert("le".to_owned(), bound(le));
                all.insert(bucket, values.iter().filter(|value| **value <= le).count() as f64);
            }
        }
        Scrape(all)
    }
}

#[test]
fn a_scrape_is_read_with_escapes_exemplars_and_bounds() {
    let text = "# HELP a b\na{x=\"q\\\"\\\\\\n,}\",y=\"\"} 3\nb 1e3 1700000000\nh_bucket{le=\"1.0\"} 4 # {trace_id=\"a\"} 0.5\n# EOF\n";
    let scrape = Scrape::parse(text);
    assert_eq!(scrape.get("a", &[("x", "q\"\\\n,}"), ("y", "")]), Some(3.0));
    assert_eq!(scrape.get("b", &[]), Some(1000.0));
    assert_eq!(scrape.get("h_bucket", &[("le", "1")]), Some(4.0));
}
