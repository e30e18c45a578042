//! Medians over the runs, as a table.

use std::collections::BTreeMap;

/// What one run showed.
#[derive(Debug, Clone)]
pub struct Figures {
    pub spans_per_cpu_second: f64,
    pub spans_per_second: f64,
    /// Milliseconds.
    pub p50: f64,
    pub p99: f64,
    pub peak_mib: f64,
    pub written_per_span: f64,
    pub refused: u64,
    pub lost: u64,
}

/// All runs so far.
#[derive(Default)]
pub struct Report {
    order: Vec<(String, String)>,
    runs: BTreeMap<(String, String), Vec<(Figures, f64)>>,
}

impl Report {
    /// Adds a run, with the floor of its round.
    pub fn add(&mut self, scenario: &str, variant: &str, figures: Figures, floor: Option<&Figures>) {
        let key = (scenario.to_owned(), variant.to_owned());
        let ratio = floor.map_or(1.0, |floor| floor.spans_per_cpu_second / figures.spans_per_cpu_second);
        eprintln!(
            "{scenario:<14} {variant:<8} {:>6.0} thousand spans/CPU-s, {ratio:.1} floors, lost {}",
            figures.spans_per_cpu_second / 1e3,
            figures.lost
        );
        if !self.order.contains(&key) {
            self.order.push(key.clone());
        }
        self.runs.entry(key).or_default().push((figures, ratio));
    }

    pub fn print(&self) {
        println!(
            "| scenario | | thousand spans per CPU second: median (min–max) | ns per span | floors | thousand spans/s | ack p50 / p99 ms | peak RSS MiB | bytes written per span | refused | lost |"
        );
        println!("|---|---|---|---|---|---|---|---|---|---|---|");
        for key in &self.order {
            let runs = &self.runs[key];
            let median =
                |what: &dyn Fn(&Figures) -> f64| middle(runs.iter().map(|(figures, _)| what(figures)).collect());
            let spans = sorted(
                runs.iter()
                    .map(|(figures, _)| figures.spans_per_cpu_second / 1e3)
                    .collect(),
            );
            let mid = middle(spans.clone());
            println!(
                "| {} | {} | **{mid:.0}** ({:.0}–{:.0}) | {:.0} | {:.1} | {:.0} | {:.1} / {:.1} | {:.0} | {:.0} | {} | {} |",
                key.0,
                key.1,
                spans[0],
                spans[spans.len() - 1],
                1e6 / mid,
                middle(runs.iter().map(|(_, ratio)| *ratio).collect()),
                median(&|figures| figures.spans_per_second / 1e3),
                median(&|figures| figures.p50),
                median(&|figures| figures.p99),
                median(&|figures| figures.peak_mib),
                median(&|figures| figures.written_per_span),
                runs.iter().map(|(figures, _)| figures.refused).sum::<u64>(),
                runs.iter().map(|(figures, _)| figures.lost).sum::<u64>(),
            );
        }
    }
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

/// The median.
pub fn middle(values: Vec<f64>) -> f64 {
    let values = sorted(values);
    values[values.len() / 2]
}
