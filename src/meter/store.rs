//! The series of the derived metrics.
//!
//! # Invariants
//!
//! * A family counts a record if and only if the record's sequence is at least the family's `next`; after a record,
//!   `next` is behind it for every family. So a record counts once per family, whatever is replayed.
//! * Values only grow: what is added is finite and not negative.
//! * A family holds at most `max_series` series; what has no room is added to one more, the overflow series.
//! * The same records in the same order give the same store to the last bit: nothing here depends on time, on hashes
//!   or on the order of anything but records. Times come from the records.
//! * A hit allocates nothing.

use std::sync::Arc;

use crate::rules::matcher::{Matcher, Observation, Workspace};
use crate::rules::model::Instrument;
use crate::rules::series_key::{MAX_LABEL_BYTES, label_values};
use crate::rules::{Catalogue, RuleDigest};

use super::index::Index;

/// The key of the overflow series: no list of values is encoded like this, since values are short.
pub(super) const OVERFLOW_KEY: &[u8] = &[0xFF, 0xFF];

/// All families, in the order of the catalogue.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) families: Vec<Family>,
    max_series: usize,
}

/// What a family is, apart from its series.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Description {
    pub(super) name: String,
    pub(super) help: String,
    /// Empty for a counter.
    pub(super) buckets: Arc<[f64]>,
    pub(super) is_counter: bool,
    /// Label names, in the order of the values in a key.
    pub(super) labels: Vec<String>,
    /// Names and values of the constant labels.
    pub(super) const_labels: Vec<(String, String)>,
    pub(super) digest: RuleDigest,
}

impl Description {
    /// Counts per series: one per bucket and `+Inf`, or none for a counter.
    pub(super) fn stride(&self) -> usize {
        if self.is_counter { 0 } else { self.buckets.len() + 1 }
    }
}

/// One metric with its series.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) description: Arc<Description>,
    /// Sequence of the first record that is not counted yet.
    pub(super) next: u64,
    /// No series is created before this time, in nanoseconds since 1970: when the family had to start anew.
    pub(super) epoch: u64,
    /// Observations that went to the overflow series.
    pub(super) overflowed: u64,
    index: Index,
    overflow: Option<usize>,
    /// Shared with snapshots; copied when a series is added while one is being rendered.
    pub(super) directory: Arc<Directory>,
    pub(super) cells: Cells,
}

/// Which series there are.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Directory {
    /// Encoded label values per series.
    pub(super) keys: Vec<Box<[u8]>>,
    /// When the series began, in nanoseconds since 1970.
    pub(super) created: Vec<u64>,
    /// Series in the order of their keys' values.
    pub(super) order: Vec<u32>,
}

/// The values, by series.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Cells {
    /// Sum of what was added or observed.
    pub(super) sums: Vec<f64>,
    /// Per series, the count of each bucket, not cumulated; the last one is `+Inf`. Empty for a counter.
    pub(super) counts: Vec<u64>,
    /// Per series one per bucket; one for a counter.
    pub(super) exemplars: Vec<Exemplar>,
}

/// A span that stands for what was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Exemplar {
    pub(super) trace_id: [u8; 16],
    pub(super) span_id: [u8; 8],
    pub(super) value: f64,
    /// 0: there is no exemplar.
    pub(super) time_unix_nano: u64,
}

impl Store {
    /// Empty families for all rules of `catalogue`.
    pub(super) fn new(catalogue: &Catalogue, max_series: usize) -> Self {
        let families = catalogue.rules().iter().zip(catalogue.digests()).map(|(rule, digest)| {
            let description = Description {
                name: rule.name.clone(),
                help: rule.help.clone(),
                buckets: match &rule.instrument {
                    Instrument::Counter => Arc::default(),
                    Instrument::Histogram { buckets } => buckets.as_slice().into(),
                },
                is_counter: rule.instrument == Instrument::Counter,
                labels: catalogue.series_labels(rule).map(str::to_owned).collect(),
                const_labels: catalogue.const_labels().to_vec(),
                digest,
            };
            Family::new(description)
        });
        Self {
            families: families.collect(),
            max_series,
        }
    }

    /// The most memory that the series take.
    pub(super) fn memory_bound(&self) -> usize {
        // The place in the index, when the series began, its place in the order.
        const PLACES: usize = 64;
        let of_series = |family: &Family| {
            let stride = family.description.stride();
            let key = family.description.labels.len() * (MAX_LABEL_BYTES + 2);
            PLACES + key + stride * size_of::<u64>() + stride.max(1) * size_of::<Exemplar>()
        };
        let series = self.max_series.saturating_add(1);
        self.families
            .iter()
            .map(|family| series.saturating_mul(of_series(family)))
            .sum()
    }

    /// Counts a trace record.
    pub(super) fn count(
        &mut self,
        matcher: &Matcher,
        workspace: &mut Workspace,
        request: &crate::otlp::TraceRequest,
        record: RecordTime,
    ) {
        let max_series = self.max_series;
        let families = &mut self.families;
        matcher.observe(request, workspace, &mut |observation| {
            let family = &mut families[observation.rule];
            if record.sequence >= family.next {
                family.add(&observation, record.received_at, max_series);
            }
        });
        self.advance(record.sequence.saturating_add(1));
    }

    /// All records before `next` are done with, whether they held anything to count or not.
    pub(super) fn advance(&mut self, next: u64) {
        for family in &mut self.families {
            family.next = family.next.max(next);
        }
    }

    /// Sequence of the first record that some family has not counted.
    pub(super) fn next(&self) -> u64 {
        self.families.iter().map(|family| family.next).min().unwrap_or(0)
    }

    /// A copy of everything, for rendering and for the checkpoint.
    pub(super) fn snapshot(&self, with_exemplars: bool) -> Vec<FamilySnapshot> {
        let snapshot = |family: &Family| FamilySnapshot {
            description: Arc::clone(&family.description),
            directory: Arc::clone(&family.directory),
            next: family.next,
            epoch: family.epoch,
            overflowed: family.overflowed,
            cells: Cells {
                sums: family.cells.sums.clone(),
                counts: family.cells.counts.clone(),
                exemplars: if with_exemplars {
                    family.cells.exemplars.clone()
                } else {
                    Vec::new()
                },
            },
        };
        self.families.iter().map(snapshot).collect()
    }

    /// Series held, overflow series included.
    pub(super) fn series(&self) -> usize {
        self.families.iter().map(|family| family.directory.keys.len()).sum()
    }
}

/// A family as it was at one moment.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct FamilySnapshot {
    pub(super) description: Arc<Description>,
    pub(super) directory: Arc<Directory>,
    pub(super) next: u64,
    pub(super) epoch: u64,
    pub(super) overflowed: u64,
    /// Possibly without exemplars.
    pub(super) cells: Cells,
}

/// Which record is being counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct RecordTime {
    pub(super) sequence: u64,
    /// In nanoseconds since 1970.
    pub(super) received_at: u64,
}

impl Family {
    pub(super) fn new(description: Description) -> Self {
        Self {
            description: Arc::new(description),
            next: 0,
            epoch: 0,
            overflowed: 0,
            index: Index::default(),
            overflow: None,
            directory: Arc::default(),
            cells: Cells::default(),
        }
    }

    /// Forgets all series; new ones begin at `now` at the earliest. What was counted stays counted.
    pub(super) fn reset(&mut self, now: u64) {
        self.index = Index::default();
        self.directory = Arc::default();
        self.cells = Cells::default();
        self.overflow = None;
        self.overflowed = 0;
        self.epoch = now;
    }

    fn add(&mut self, observation: &Observation<'_>, received_at: u64, max_series: usize) {
        let keys = &self.directory.keys;
        let found = self
            .index
            .find(observation.hash, |series| *keys[series] == *observation.key);
        let series = found.unwrap_or_else(|| self.add_new(observation, received_at, max_series));
        self.record(series, observation, received_at);
    }

    /// The series of a key that is not there yet.
    #[cold]
    fn add_new(&mut self, observation: &Observation<'_>, received_at: u64, max_series: usize) -> usize {
        let created = received_at.max(self.epoch);
        let held = self.directory.keys.len() - usize::from(self.overflow.is_some());
        if held < max_series {
            return self.insert(observation.key, observation.hash, created);
        }
        self.overflowed += 1;
        // The overflow series is never looked up by its key, so that its hash is of no use.
        self.overflow.unwrap_or_else(|| self.insert(OVERFLOW_KEY, 0, created))
    }

    pub(super) fn insert(&mut self, key: &[u8], hash: u64, created: u64) -> usize {
        let series = self.index.insert(hash);
        if key == OVERFLOW_KEY {
            self.overflow = Some(series);
        }
        let directory = Arc::make_mut(&mut self.directory);
        let keys = &directory.keys;
        let place = directory
            .order
            .partition_point(|other| is_before(&keys[*other as usize], key));
        directory.order.insert(place, series as u32);
        directory.keys.push(key.into());
        directory.created.push(created);
        let buckets = self.description.stride();
        self.cells.sums.push(0.0);
        self.cells.counts.resize(self.cells.counts.len() + buckets, 0);
        self.cells
            .exemplars
            .resize(self.cells.exemplars.len() + buckets.max(1), Exemplar::default());
        series
    }

    #[inline]
    fn record(&mut self, series: usize, observation: &Observation<'_>, received_at: u64) {
        self.cells.sums[series] += observation.value;
        let stride = self.description.stride();
        let place = if stride == 0 {
            series
        } else {
            let bounds = &self.description.buckets;
            let bucket = bounds
                .iter()
                .position(|bound| observation.value <= *bound)
                .unwrap_or(bounds.len());
            self.cells.counts[series * stride + bucket] += 1;
            series * stride + bucket
        };
        self.cells.exemplars[place] = Exemplar {
            trace_id: fixed(observation.trace_id),
            span_id: fixed(observation.span_id),
            value: observation.value,
            time_unix_nano: exemplar_time(observation.end_unix_nano, received_at),
        };
    }
}

/// The order of series: by the values of their labels, the overflow series last.
fn is_before(key: &[u8], other: &[u8]) -> bool {
    match (key == OVERFLOW_KEY, other == OVERFLOW_KEY) {
        (false, false) => label_values(key).lt(label_values(other)),
        (is_overflow, _) => !is_overflow,
    }
}

/// When the span ended, unless its clock is off by a day or more.
fn exemplar_time(end: u64, received_at: u64) -> u64 {
    const DAY: u64 = 86_400_000_000_000;
    if end.abs_diff(received_at) < DAY {
        end
    } else {
        received_at.max(1)
    }
}

fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.first_chunk().copied().unwrap_or([0; N])
}
