//! Numbers over many rows, from counts per distinct duration.
//!
//! The database groups by duration, which is a whole number of milliseconds; what comes back is small and holds
//! everything: the percentiles below are exact, and the same on both databases because they are made here.

use serde_json::{Value, json};

use super::database::{Cell, Dialect, Kind};
use super::packed::PackedRow;

/// The kinds of what [`columns`] selects.
pub(super) const KINDS: [Kind; 10] = [
    Kind::Integer,
    Kind::Integer,
    Kind::Integer,
    Kind::Integer,
    Kind::Integer,
    Kind::Integer,
    Kind::Integer,
    Kind::Integer,
    Kind::Real,
    Kind::Integer,
];

/// What to select, to be grouped by `t.duration_ms` among others.
pub(super) fn columns(dialect: Dialect) -> String {
    let integer = |expression: &str| dialect.integer(expression);
    [
        integer("t.duration_ms"),
        integer("count(*)"),
        integer("count(*) FILTER (WHERE t.success)"),
        integer(&format!(
            "count(*) FILTER (WHERE {} = 'timeout')",
            super::filter::outcome_sql(dialect)
        )),
        integer("coalesce(sum(t.tokens_used), 0)"),
        integer("count(t.memory_mb)"),
        integer("coalesce(sum(t.memory_mb), 0)"),
        integer("max(t.memory_mb)"),
        dialect.real("sum(e.cost_usd)"),
        integer("count(e.cost_usd)"),
    ]
    .join(", ")
}

/// What is known of some rows.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Aggregate {
    pub(super) count: u64,
    pub(super) successes: u64,
    pub(super) timeouts: u64,
    pub(super) tokens: i64,
    memory_count: u64,
    memory_sum: i64,
    memory_max: Option<i64>,
    cost: f64,
    costs: u64,
    /// Rows with a duration, and the sum of these.
    timed: u64,
    duration_sum: i128,
    /// How many rows took how long: each duration once, the shortest first.
    durations: Vec<(i64, u64)>,
}

/// So many durations may be there several times.
const FEW: usize = 64;

/// Bytes that are set aside for each place of a duration: half as much again is taken while there come to be more of them.
const PLACE: usize = size_of::<(i64, u64)>() * 3 / 2;

/// An [`Aggregate`] in the making.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    /// Its durations are in no order, and some are there several times: to sort them now and then is quicker than to find
    /// the place of each.
    aggregate: Aggregate,
    is_without_percentiles: bool,
}

impl Gathering {
    /// For averages only: takes the same memory however many rows there are.
    pub(super) fn without_percentiles() -> Gathering {
        Gathering {
            is_without_percentiles: true,
            ..Gathering::default()
        }
    }

    /// Forgets all rows.
    pub(super) fn clear(&mut self) {
        self.aggregate = Aggregate::default();
    }

    /// Bytes that are held beside itself.
    pub(super) fn held(&self) -> usize {
        self.aggregate.durations.capacity() * PLACE
    }

    /// Adds what [`columns`] selected.
    pub(super) fn add(&mut self, cells: &[Cell]) {
        let whole = |index: usize| cells.get(index).and_then(Cell::integer);
        let count = |index: usize| whole(index).unwrap_or_default().cast_unsigned();
        let sum = &mut self.aggregate;
        sum.count += count(1);
        sum.successes += count(2);
        sum.timeouts += count(3);
        sum.tokens = sum.tokens.saturating_add(whole(4).unwrap_or_default());
        sum.memory_count += count(5);
        sum.memory_sum += whole(6).unwrap_or_default();
        sum.memory_max = sum.memory_max.max(whole(7));
        sum.cost += cells.get(8).and_then(Cell::real).unwrap_or_default();
        sum.costs += count(9);
        if let Some(duration) = whole(0) {
            self.took(duration, count(1));
        }
    }

    /// Adds a row.
    pub(super) fn add_row(&mut self, row: &PackedRow) {
        let sum = &mut self.aggregate;
        sum.count += 1;
        sum.successes += u64::from(row.success);
        sum.timeouts += u64::from(!row.success && row.is_timeout);
        sum.tokens = sum.tokens.saturating_add(row.tokens.unwrap_or_default());
        sum.memory_count += u64::from(row.memory_mb.is_some());
        sum.memory_sum += row.memory_mb.unwrap_or_default();
        sum.memory_max = sum.memory_max.max(row.memory_mb);
        sum.cost += row.cost_usd.unwrap_or_default();
        sum.costs += u64::from(row.cost_usd.is_some());
        if let Some(duration) = row.duration_ms {
            self.took(duration, 1);
        }
    }

    /// Adds another part of the same rows.
    pub(super) fn absorb(&mut self, other: Aggregate) {
        let sum = &mut self.aggregate;
        sum.count += other.count;
        sum.successes += other.successes;
        sum.timeouts += other.timeouts;
        sum.tokens = sum.tokens.saturating_add(other.tokens);
        sum.memory_count += other.memory_count;
        sum.memory_sum += other.memory_sum;
        sum.memory_max = sum.memory_max.max(other.memory_max);
        sum.cost += other.cost;
        sum.costs += other.costs;
        for (duration, rows) in other.durations {
            self.took(duration, rows);
        }
    }

    fn took(&mut self, duration: i64, rows: u64) {
        let sum = &mut self.aggregate;
        sum.timed += rows;
        sum.duration_sum += i128::from(duration) * i128::from(rows);
        if self.is_without_percentiles {
            return;
        }
        let durations = &mut sum.durations;
        if durations.len() == durations.capacity() && durations.len() >= FEW {
            sort(durations);
            if durations.len() > durations.capacity() / 2 {
                durations.reserve_exact(durations.len() / 2);
            }
        }
        durations.push((duration, rows));
    }

    /// All that was added.
    pub(super) fn finish(mut self) -> Aggregate {
        sort(&mut self.aggregate.durations);
        self.aggregate
    }
}

/// Each duration once, the shortest first.
fn sort(durations: &mut Vec<(i64, u64)>) {
    durations.sort_unstable_by_key(|(duration, _)| *duration);
    durations.dedup_by(|same, first| {
        let is_same = same.0 == first.0;
        if is_same {
            first.1 += same.1;
        }
        is_same
    });
}

impl Aggregate {
    pub(super) fn errors(&self) -> u64 {
        self.count - self.successes
    }

    /// From 0 to 1; of no rows, 0.
    pub(super) fn success_rate(&self) -> f64 {
        share(self.successes, self.count)
    }

    /// As the backend computes it: a row without a duration counts as 0.
    pub(super) fn average_over_all_rows(&self) -> f64 {
        if self.count == 0 {
            0.0
        } else {
            self.duration_sum as f64 / self.count as f64
        }
    }

    fn average_duration(&self) -> Option<f64> {
        (self.timed > 0).then(|| self.duration_sum as f64 / self.timed as f64)
    }

    pub(super) fn average_memory(&self) -> Option<f64> {
        (self.memory_count > 0).then(|| self.memory_sum as f64 / self.memory_count as f64)
    }

    /// The shortest duration that at least `percent` of the rows with a duration do not exceed (the nearest rank,
    /// `percentile_disc` in PostgreSQL).
    pub(super) fn percentile(&self, percent: u64) -> Option<i64> {
        let rank = (self.timed * percent).div_ceil(100).max(1);
        let mut below = 0;
        for (duration, count) in &self.durations {
            below += count;
            if below >= rank {
                return Some(*duration);
            }
        }
        None
    }

    /// The backend's own percentile: of the positive durations in order, the one at `floor(n · p)`; of none, 0.
    pub(super) fn backend_percentile(&self, p: f64) -> i64 {
        let first = self.durations.partition_point(|(duration, _)| *duration < 1);
        let positive = &self.durations[first..];
        let total: u64 = positive.iter().map(|(_, count)| count).sum();
        let index = (total as f64 * p).floor() as u64;
        let mut below = 0;
        for (duration, count) in positive {
            below += count;
            if below > index.min(total.saturating_sub(1)) {
                return *duration;
            }
        }
        0
    }

    /// Everything, as clients see it.
    pub(super) fn to_json(&self) -> Value {
        json!({
            "count": self.count,
            "successes": self.successes,
            "errors": self.errors(),
            "timeouts": self.timeouts,
            "successRate": self.success_rate(),
            "errorRate": share(self.errors(), self.count),
            "avgDurationMs": self.average_duration(),
            "minDurationMs": self.durations.first().map(|(duration, _)| duration),
            "p50DurationMs": self.percentile(50),
            "p95DurationMs": self.percentile(95),
            "p99DurationMs": self.percentile(99),
            "maxDurationMs": self.durations.last().map(|(duration, _)| duration),
            "avgMemoryMb": self.average_memory(),
            "maxMemoryMb": self.memory_max,
            "tokensUsed": self.tokens,
            "costUsd": (self.costs > 0).then_some(self.cost),
        })
    }
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(durations: &[i64]) -> Aggregate {
        let mut rows = Gathering::default();
        for duration in durations {
            rows.aggregate.count += 1;
            rows.took(*duration, 1);
        }
        rows.finish()
    }

    #[test]
    fn percentiles_are_those_of_the_sorted_rows() {
        let mut rng = fastrand::Rng::with_seed(7);
        for length in 1..300_usize {
            let mut durations: Vec<i64> = (0..length).map(|_| rng.i64(0..200)).collect();
            let aggregate = of(&durations);
            durations.sort_unstable();
            for percent in [50, 95, 99] {
                let rank = (length * percent).div_ceil(100_usize).max(1);
                assert_eq!(
                    aggregate.percentile(percent as u64),
                    Some(durations[rank - 1]),
                    "{length} {percent}"
                );
            }
            let positive: Vec<i64> = durations.iter().copied().filter(|duration| *duration > 0).collect();
            for p in [0.5, 0.95, 0.99] {
                let expected = positive
                    .get((positive.len() as f64 * p).floor() as usize)
                    .copied()
                    .unwrap_or_default();
                assert_eq!(aggregate.backend_percentile(p), expected);
            }
        }
        assert_eq!(of(&[]).percentile(50), None);
        assert_eq!(of(&[0, 0]).backend_percentile(0.5), 0);
    }

    #[test]
    fn a_row_without_a_duration_counts_as_zero_only_where_the_backend_does_so() {
        let mut aggregate = of(&[10, 20]);
        aggregate.count += 1;
        assert_eq!(aggregate.average_over_all_rows(), 10.0);
        assert_eq!(aggregate.average_duration(), Some(15.0));
    }

    #[test]
    fn durations_that_repeat_take_no_more_memory_the_more_rows_there_are() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut rows = Gathering::default();
        for _ in 0..200_000 {
            rows.took(rng.i64(0..1000), 1);
            assert!(rows.held() <= 3 * 1000 * PLACE);
        }
        let rows = rows.finish();
        assert_eq!(rows.durations.len(), 1000);
        assert_eq!(rows.durations.iter().map(|(_, rows)| rows).sum::<u64>(), 200_000);
    }

    #[test]
    fn averages_alone_hold_nothing() {
        let mut rows = Gathering::without_percentiles();
        for duration in 0..10_000 {
            rows.aggregate.count += 1;
            rows.took(duration, 1);
        }
        assert_eq!(rows.held(), 0);
        assert_eq!(rows.finish().average_over_all_rows(), 4999.5);
    }
}
