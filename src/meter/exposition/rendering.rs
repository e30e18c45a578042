//! The text of a scrape, made piece by piece: whoever sends it holds a piece, not all of it.

use super::super::store::FamilySnapshot;
use super::{ExpositionFormat, Series, append_own, bounds, family_name, write_header, write_labels};

/// What is left of a scrape's text. The values are those of the moment in which it was asked for.
#[derive(Debug)]
pub struct Rendering {
    families: std::vec::IntoIter<FamilySnapshot>,
    family: Option<Begun>,
    /// What comes behind the families, in the Prometheus format 0.0.4.
    own: Option<String>,
    format: ExpositionFormat,
    // Memory that is used again: the labels of a series, and what the lines of all its buckets begin with.
    labels: String,
    bucket: String,
}

/// A family whose header was written.
#[derive(Debug)]
struct Begun {
    snapshot: FamilySnapshot,
    bounds: Vec<String>,
    /// How many of its series were written.
    written: usize,
}

impl Rendering {
    /// All `families`, then `own`; in OpenMetrics `# EOF` behind them.
    pub(in crate::meter) fn new(families: Vec<FamilySnapshot>, own: Option<String>, format: ExpositionFormat) -> Self {
        Self {
            families: families.into_iter(),
            family: None,
            own,
            format,
            labels: String::new(),
            bucket: String::new(),
        }
    }

    /// The next lines, of `length` bytes or a little more; `None` behind the last one.
    pub fn next_piece(&mut self, length: usize) -> Option<String> {
        let mut text = String::new();
        while text.len() < length {
            // Not for a piece that is the last, which is short for most.
            if text.capacity() == 0 && self.family.is_some() {
                text.reserve(length.min(1 << 20) + (16 << 10));
            }
            if !self.step(&mut text) {
                break;
            }
        }
        (!text.is_empty()).then_some(text)
    }

    /// All that is left.
    pub fn rest(mut self) -> String {
        let mut text = String::new();
        while self.step(&mut text) {}
        text
    }

    /// Writes the next header, the next series, or the end. False if there is nothing left.
    fn step(&mut self, out: &mut String) -> bool {
        if let Some(family) = &mut self.family {
            if family.next_series(self.format, &mut self.labels, &mut self.bucket, out) {
                return true;
            }
            self.family = None;
        }
        if let Some(snapshot) = self.families.next() {
            self.family = Some(Begun::new(snapshot, self.format, out));
            return true;
        }
        let Some(own) = self.own.take() else { return false };
        append_own(&own, self.format, out);
        if self.format == ExpositionFormat::OpenMetrics {
            out.push_str("# EOF\n");
        }
        true
    }
}

impl Begun {
    fn new(snapshot: FamilySnapshot, format: ExpositionFormat, out: &mut String) -> Self {
        let description = &snapshot.description;
        let kind = if description.is_counter { "counter" } else { "histogram" };
        write_header(snapshot.name(format), kind, &description.help, format, out);
        Self {
            bounds: bounds(description, format),
            snapshot,
            written: 0,
        }
    }

    /// False if all were written.
    fn next_series(
        &mut self,
        format: ExpositionFormat,
        labels: &mut String,
        bucket: &mut String,
        out: &mut String,
    ) -> bool {
        let family = &self.snapshot;
        let Some(series) = family.directory.order.get(self.written) else {
            return false;
        };
        self.written += 1;
        let (series, description) = (*series as usize, &family.description);
        labels.clear();
        write_labels(description, &family.directory.keys[series], labels);
        let rendered = Series {
            name: family.name(format),
            labels,
            sum: family.cells.sums[series],
            created: family.directory.created[series],
            format,
        };
        let stride = description.stride();
        let cells = series * stride.max(1)..(series + 1) * stride.max(1);
        // Without exemplars, in the text format, the list is empty.
        let exemplars = family.cells.exemplars.get(cells.clone()).unwrap_or_default();
        if description.is_counter {
            rendered.counter(exemplars, out);
        } else {
            rendered.histogram(&self.bounds, &family.cells.counts[cells], exemplars, bucket, out);
        }
        true
    }
}

impl FamilySnapshot {
    fn name(&self, format: ExpositionFormat) -> &str {
        let description = &self.description;
        match format {
            ExpositionFormat::Text => &description.name,
            ExpositionFormat::OpenMetrics => family_name(&description.name, description.is_counter),
        }
    }
}
