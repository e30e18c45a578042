//! Random requests of all signals, and ways of writing them that differ on the wire only.

use fastrand::Rng;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, ArrayValue, EntityRef, InstrumentationScope, KeyValue, KeyValueList, any_value::Value,
};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::{
    Exemplar, ExponentialHistogram, ExponentialHistogramDataPoint, Gauge, Histogram, HistogramDataPoint, Metric,
    NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, Summary, SummaryDataPoint, exemplar,
    exponential_histogram_data_point::Buckets, metric, number_data_point, summary_data_point::ValueAtQuantile,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span};

use crate::otlp::schema::{Kind, Message};
use crate::otlp::wire::{Cursor, MAX_DEPTH, WireType, delimited, put_bytes, put_varint};

/// Draws random values; what it draws depends on the seed alone.
pub(crate) struct Generator {
    pub(crate) rng: Rng,
    /// Whether doubles may be infinite or NaN (the reference's JSON cannot write those).
    pub(crate) special_doubles: bool,
    /// Keys that some attributes, and entries of maps, get.
    pub(crate) keys: Vec<String>,
    /// What stands in the middle of texts and bytes: everywhere, or only within the values of `keys`.
    pub(crate) planted: Option<Planted>,
    /// How many values around this one have a key of `keys`.
    pub(super) within: u32,
}

/// Something to be looked for in a request.
pub(crate) struct Planted {
    pub(crate) text: String,
    pub(crate) only_within_keys: bool,
}

impl Generator {
    pub(crate) fn new(seed: u64) -> Generator {
        Generator {
            rng: Rng::with_seed(seed),
            special_doubles: true,
            keys: Vec::new(),
            planted: None,
            within: 0,
        }
    }

    fn some<T>(&mut self, draw: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.rng.bool().then(|| draw(self))
    }

    fn several<T>(&mut self, most: usize, mut draw: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.rng.usize(0..=most)).map(|_| draw(self)).collect()
    }

    pub(crate) fn text(&mut self) -> String {
        const CHARACTERS: [char; 14] = [
            'a', 'b', 'Z', '7', '.', '_', ' ', '"', '\\', '\n', '\u{1}', 'é', '語', '😀',
        ];
        let length = match self.rng.u8(0..10) {
            0 => 0,
            1 => self.rng.usize(100..300),
            _ => self.rng.usize(1..20),
        };
        let plain = self.rng.bool();
        let kinds = if plain { 7 } else { CHARACTERS.len() };
        let text: String = (0..length).map(|_| CHARACTERS[self.rng.usize(0..kinds)]).collect();
        match self.plant() {
            Some(planted) => {
                let place = text.char_indices().map(|(at, _)| at).nth(length / 2).unwrap_or(0);
                [&text[..place], &planted, &text[place..]].concat()
            }
            None => text,
        }
    }

    fn bytes(&mut self) -> Vec<u8> {
        let mut bytes = self.several(20, |this| this.rng.u8(..));
        if let Some(planted) = self.plant() {
            bytes.extend_from_slice(planted.as_bytes());
        }
        bytes
    }

    /// What is to stand in this text, if anything.
    fn plant(&mut self) -> Option<String> {
        let planted = self.planted.as_ref()?;
        let is_wanted = !planted.only_within_keys || self.within > 0;
        (is_wanted && self.rng.bool()).then(|| planted.text.clone())
    }

    fn number(&mut self) -> u64 {
        self.rng.u64(..) >> self.rng.u32(0..64)
    }

    fn double(&mut self) -> f64 {
        match self.rng.u8(0..8) {
            0 if self.special_doubles => f64::NAN,
            1 if self.special_doubles => f64::NEG_INFINITY,
            2 => 0.0,
            3 => self.number() as f64,
            4 => 0.1 * self.rng.i32(-1000..1000) as f64,
            _ => {
                let double = f64::from_bits(self.rng.u64(..));
                if double.is_finite() { double } else { 1.5 }
            }
        }
    }

    fn value(&mut self, depth: u32) -> AnyValue {
        let value = match self.rng.u8(0..if depth == 0 { 8 } else { 11 }) {
            0 => None,
            1 | 2 => Some(Value::StringValue(self.text())),
            3 => Some(Value::BoolValue(self.rng.bool())),
            4 => Some(Value::IntValue(self.number() as i64)),
            5 => Some(Value::DoubleValue(self.double())),
            6 => Some(Value::BytesValue(self.bytes())),
            7 => Some(Value::StringValueStrindex(self.rng.i32(..))),
            8 | 9 => Some(Value::ArrayValue(ArrayValue {
                values: self.several(4, |this| this.value(depth - 1)),
            })),
            _ => Some(Value::KvlistValue(KeyValueList {
                values: self.several(4, |this| this.key_value(depth - 1)),
            })),
        };
        AnyValue { value }
    }

    fn key_value(&mut self, depth: u32) -> KeyValue {
        let named = (!self.keys.is_empty() && self.rng.u8(0..3) == 0).then(|| {
            let index = self.rng.usize(..self.keys.len());
            self.keys[index].clone()
        });
        self.within += u32::from(named.is_some());
        let key_strindex = if self.rng.u8(0..20) == 0 { self.rng.i32(..) } else { 0 };
        let value = if self.rng.u8(0..10) == 0 {
            None
        } else {
            Some(self.value(depth))
        };
        self.within -= u32::from(named.is_some());
        KeyValue {
            key: named.unwrap_or_else(|| self.text()),
            value,
            key_strindex,
        }
    }

    fn attributes(&mut self) -> Vec<KeyValue> {
        self.several(6, |this| this.key_value(3))
    }

    /// Mostly as long as it should be.
    fn id(&mut self, length: usize) -> Vec<u8> {
        match self.rng.u8(0..40) {
            0 => Vec::new(),
            1 => vec![0; length],
            2 => vec![7; length - 1],
            3 => vec![7; length + 1],
            _ => (0..length).map(|_| self.rng.u8(..)).collect(),
        }
    }

    fn resource(&mut self) -> Resource {
        Resource {
            attributes: self.attributes(),
            dropped_attributes_count: self.number() as u32,
            entity_refs: self.several(2, |this| EntityRef {
                schema_url: this.text(),
                r#type: this.text(),
                id_keys: this.several(2, Self::text),
                description_keys: this.several(2, Self::text),
            }),
        }
    }

    fn scope(&mut self) -> InstrumentationScope {
        InstrumentationScope {
            name: self.text(),
            version: self.text(),
            attributes: self.attributes(),
            dropped_attributes_count: self.number() as u32,
        }
    }

    pub(crate) fn span(&mut self) -> Span {
        Span {
            trace_id: self.id(16),
            span_id: self.id(8),
            trace_state: self.text(),
            parent_span_id: self.id(8),
            flags: self.number() as u32,
            name: self.text(),
            kind: self.rng.i32(-1..8),
            start_time_unix_nano: self.number(),
            end_time_unix_nano: self.number(),
            attributes: self.attributes(),
            dropped_attributes_count: self.number() as u32,
            events: self.several(3, |this| span::Event {
                time_unix_nano: this.number(),
                name: this.text(),
                attributes: this.attributes(),
                dropped_attributes_count: this.number() as u32,
            }),
            dropped_events_count: self.number() as u32,
            links: self.several(2, |this| span::Link {
                trace_id: this.id(16),
                span_id: this.id(8),
                trace_state: this.text(),
                attributes: this.attributes(),
                dropped_attributes_count: this.number() as u32,
                flags: this.number() as u32,
            }),
            dropped_links_count: self.number() as u32,
            status: self.some(|this| Status {
                message: this.text(),
                code: this.rng.i32(0..4),
            }),
        }
    }

    pub(crate) fn traces(&mut self) -> ExportTraceServiceRequest {
        let resource_spans = self.several(3, |this| ResourceSpans {
            resource: this.some(Self::resource),
            scope_spans: this.several(3, |this| ScopeSpans {
                scope: this.some(Self::scope),
                spans: this.several(4, Self::span),
                schema_url: this.text(),
            }),
            schema_url: this.text(),
        });
        ExportTraceServiceRequest { resource_spans }
    }

    pub(crate) fn logs(&mut self) -> ExportLogsServiceRequest {
        let resource_logs = self.several(3, |this| ResourceLogs {
            resource: this.some(Self::resource),
            scope_logs: this.several(3, |this| ScopeLogs {
                scope: this.some(Self::scope),
                log_records: this.several(4, |this| LogRecord {
                    time_unix_nano: this.number(),
                    observed_time_unix_nano: this.number(),
                    severity_number: this.rng.i32(0..26),
                    severity_text: this.text(),
                    body: this.some(|this| this.value(3)),
                    attributes: this.attributes(),
                    dropped_attributes_count: this.number() as u32,
                    flags: this.number() as u32,
                    trace_id: this.id(16),
                    span_id: this.id(8),
                    event_name: this.text(),
                }),
                schema_url: this.text(),
            }),
            schema_url: this.text(),
        });
        ExportLogsServiceRequest { resource_logs }
    }

    pub(crate) fn metrics(&mut self) -> ExportMetricsServiceRequest {
        let resource_metrics = self.several(3, |this| ResourceMetrics {
            resource: this.some(Self::resource),
            scope_metrics: this.several(3, |this| ScopeMetrics {
                scope: this.some(Self::scope),
                metrics: this.several(4, Self::metric),
                schema_url: this.text(),
            }),
            schema_url: this.text(),
        });
        ExportMetricsServiceRequest { resource_metrics }
    }

    fn metric(&mut self) -> Metric {
        let aggregation_temporality = self.rng.i32(0..4);
        let data = match self.rng.u8(0..6) {
            0 => None,
            1 => Some(metric::Data::Gauge(Gauge {
                data_points: self.several(3, Self::number_point),
            })),
            2 => Some(metric::Data::Sum(Sum {
                data_points: self.several(3, Self::number_point),
                aggregation_temporality,
                is_monotonic: self.rng.bool(),
            })),
            3 => Some(metric::Data::Histogram(Histogram {
                data_points: self.several(3, Self::histogram_point),
                aggregation_temporality,
            })),
            4 => Some(metric::Data::ExponentialHistogram(ExponentialHistogram {
                data_points: self.several(3, Self::exponential_point),
                aggregation_temporality,
            })),
            _ => Some(metric::Data::Summary(Summary {
                data_points: self.several(3, Self::summary_point),
            })),
        };
        let metadata = self.attributes();
        Metric {
            name: self.text(),
            description: self.text(),
            unit: self.text(),
            metadata,
            data,
        }
    }

    fn number_point(&mut self) -> NumberDataPoint {
        NumberDataPoint {
            attributes: self.attributes(),
            start_time_unix_nano: self.number(),
            time_unix_nano: self.number(),
            exemplars: self.several(2, Self::exemplar),
            flags: self.number() as u32,
            value: match self.rng.u8(0..3) {
                0 => None,
                1 => Some(number_data_point::Value::AsDouble(self.double())),
                _ => Some(number_data_point::Value::AsInt(self.number() as i64)),
            },
        }
    }

    fn histogram_point(&mut self) -> HistogramDataPoint {
        HistogramDataPoint {
            attributes: self.attributes(),
            start_time_unix_nano: self.number(),
            time_unix_nano: self.number(),
            count: self.number(),
            sum: self.some(Self::double),
            bucket_counts: self.several(20, Self::number),
            explicit_bounds: self.several(20, |this| this.rng.f64()),
            exemplars: self.several(2, Self::exemplar),
            flags: self.number() as u32,
            min: self.some(Self::double),
            max: self.some(Self::double),
        }
    }

    fn exponential_point(&mut self) -> ExponentialHistogramDataPoint {
        let buckets = |this: &mut Self| Buckets {
            offset: this.rng.i32(..),
            bucket_counts: this.several(30, Self::number),
        };
        ExponentialHistogramDataPoint {
            attributes: self.attributes(),
            start_time_unix_nano: self.number(),
            time_unix_nano: self.number(),
            count: self.number(),
            sum: self.some(Self::double),
            scale: self.rng.i32(-10..10),
            zero_count: self.number(),
            positive: self.some(buckets),
            negative: self.some(buckets),
            flags: self.number() as u32,
            exemplars: self.several(2, Self::exemplar),
            min: self.some(Self::double),
            max: self.some(Self::double),
            zero_threshold: self.double(),
        }
    }

    fn summary_point(&mut self) -> SummaryDataPoint {
        SummaryDataPoint {
            attributes: self.attributes(),
            start_time_unix_nano: self.number(),
            time_unix_nano: self.number(),
            count: self.number(),
            sum: self.double(),
            quantile_values: self.several(3, |this| ValueAtQuantile {
                quantile: this.rng.f64(),
                value: this.double(),
            }),
            flags: self.number() as u32,
        }
    }

    fn exemplar(&mut self) -> Exemplar {
        Exemplar {
            filtered_attributes: self.attributes(),
            time_unix_nano: self.number(),
            span_id: self.id(8),
            trace_id: self.id(16),
            value: match self.rng.u8(0..3) {
                0 => None,
                1 => Some(exemplar::Value::AsDouble(self.double())),
                _ => Some(exemplar::Value::AsInt(self.number() as i64)),
            },
        }
    }

    /// Writes a message in another way that every reader has to understand: fields in another order, unknown fields in
    /// between, values that a later one overrules, messages in pieces, lengths longer than needed.
    pub(crate) fn scrambled(&mut self, bytes: &[u8], message: &'static Message) -> Vec<u8> {
        let mut fields = self.scrambled_fields(bytes, message);
        self.shuffle(&mut fields);
        fields.into_iter().flat_map(|(_, bytes)| bytes).collect()
    }

    /// Keeps the order among fields of one number, which carries meaning.
    fn shuffle(&mut self, fields: &mut [(u32, Vec<u8>)]) {
        for _ in 0..self.rng.usize(0..=fields.len()) {
            let place = self.rng.usize(1..fields.len().max(2));
            if fields.len() > 1 && fields[place - 1].0 != fields[place].0 {
                fields.swap(place - 1, place);
            }
        }
    }

    fn scrambled_fields(&mut self, bytes: &[u8], message: &'static Message) -> Vec<(u32, Vec<u8>)> {
        let mut fields = Vec::new();
        let mut cursor = Cursor::new(bytes);
        while !cursor.is_done() {
            let begin = cursor;
            let key = cursor.key().unwrap();
            let kind = message.field(key.number()).map(|field| field.kind);
            if let (Some(Kind::Message(nested) | Kind::Messages(nested)), Some(WireType::Delimited)) =
                (kind, key.wire_type())
            {
                let contents = self.scrambled(cursor.slice().unwrap(), nested);
                for piece in self.pieces(&contents, matches!(kind, Some(Kind::Message(_)))) {
                    fields.push((key.number(), self.field(key.number(), piece)));
                }
            } else {
                cursor.skip(key, MAX_DEPTH).unwrap();
                let written = cursor.since(&begin).to_vec();
                if matches!(kind, Some(Kind::String | Kind::Id)) && self.rng.u8(0..8) == 0 {
                    fields.push((key.number(), self.field(key.number(), b"overruled")));
                }
                fields.push((key.number(), written));
            }
        }
        while self.rng.u8(0..4) == 0 {
            let place = self.rng.usize(0..=fields.len());
            fields.insert(place, self.unknown_field());
        }
        fields
    }

    /// Cuts a message between two of its fields, if it is one that merges.
    fn pieces<'a>(&mut self, contents: &'a [u8], merges: bool) -> Vec<&'a [u8]> {
        if !merges || self.rng.u8(0..4) > 0 {
            return vec![contents];
        }
        let mut cuts = vec![0];
        let mut cursor = Cursor::new(contents);
        while !cursor.is_done() {
            let key = cursor.key().unwrap();
            cursor.skip(key, MAX_DEPTH).unwrap();
            cuts.push(cursor.position());
        }
        let cut = cuts[self.rng.usize(0..cuts.len())];
        vec![&contents[..cut], &contents[cut..]]
    }

    fn field(&mut self, number: u32, contents: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        if self.rng.u8(0..8) > 0 {
            put_bytes(&mut out, number, contents);
        } else {
            put_varint(&mut out, u64::from(delimited(number)));
            put_varint(&mut out, contents.len() as u64 | 1 << 40);
            // Clears the bit again: what is left is a length in more bytes than it needs.
            let last = out.last_mut().unwrap();
            *last = 0;
            out.extend_from_slice(contents);
        }
        out
    }

    fn unknown_field(&mut self) -> (u32, Vec<u8>) {
        let number = self.rng.u32(100..200);
        let mut out = Vec::new();
        match self.rng.u8(0..5) {
            0 => {
                put_varint(&mut out, u64::from(number << 3));
                put_varint(&mut out, self.rng.u64(..));
            }
            1 => {
                put_varint(&mut out, u64::from(number << 3 | 1));
                out.extend_from_slice(&[0xff; 8]);
            }
            2 => {
                put_varint(&mut out, u64::from(number << 3 | 5));
                out.extend_from_slice(&[0xff; 4]);
            }
            3 => {
                put_varint(&mut out, u64::from(number << 3 | 3));
                put_bytes(&mut out, 9, b"in a group");
                put_varint(&mut out, u64::from(number << 3 | 4));
            }
            _ => put_bytes(&mut out, number, b"\xffunknown"),
        }
        (number, out)
    }
}
