//! What OTLP messages look like: the one table behind the check at the door, the field paths in error messages and the
//! JSON transcoder.
//!
//! From opentelemetry-proto 1.11: `common`, `resource`, `trace`, `metrics`, `logs` and `collector/*`. Field numbers and
//! kinds never change there; what is new gets a new number, and passes us as an unknown field until it is added here.

/// The highest field number in use.
pub(crate) const HIGHEST: usize = 16;
const ABSENT: u8 = u8::MAX;

/// A message type.
#[derive(Debug)]
pub(crate) struct Message {
    /// What the check does with it besides checking.
    pub(crate) role: Role,
    /// In the order in which SDKs write them in JSON, which makes the search by name a single comparison mostly.
    pub(crate) fields: &'static [Field],
    /// Place in `fields` by field number.
    places: [u8; HIGHEST + 1],
}

/// What is special about a message type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Plain,
    /// By far the most frequent message: has a short cut.
    KeyValue,
    /// Has ids that decide whether it is accepted; is counted.
    Span,
    /// A data point or a log record: is counted.
    Item,
}

/// A field of a message.
#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) number: u8,
    /// The lowerCamelCase name of the JSON mapping.
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// Whether a value is told from no value (`optional`, and members of a `oneof`), so that zero must be written.
    pub(crate) presence: Presence,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    Implicit,
    Explicit,
}

/// Type of a field, with all that its JSON form needs to be known.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// A message; several occurrences merge.
    Message(&'static Message),
    /// Any number of messages.
    Messages(&'static Message),
    String,
    Strings,
    /// Base64 in JSON.
    Bytes,
    /// Bytes that are hexadecimal digits in OTLP/JSON: trace and span ids.
    Id,
    Bool,
    Int32,
    Int64,
    Uint32,
    Sint32,
    /// A number, for which the names are accepted in JSON as well.
    Enum(&'static [(&'static str, i32)]),
    Double,
    Fixed32,
    Fixed64,
    Sfixed64,
    Doubles,
    Fixed64s,
    Uint64s,
}

impl Message {
    /// The field with a number.
    #[inline(always)]
    pub(crate) fn field(&self, number: u32) -> Option<&'static Field> {
        let place = *self.places.get(number as usize)?;
        self.fields.get(usize::from(place))
    }

    /// The field with a JSON name, and its place, which mostly is the `expected` one.
    #[inline(always)]
    pub(crate) fn named(&self, name: &[u8], expected: usize) -> Option<(usize, &'static Field)> {
        match self.fields.get(expected) {
            Some(field) if field.name.as_bytes() == name => Some((expected, field)),
            _ => self.search(name),
        }
    }

    fn search(&self, name: &[u8]) -> Option<(usize, &'static Field)> {
        self.fields
            .iter()
            .enumerate()
            .find(|(_, field)| field.name.as_bytes() == name)
    }
}

/// `places` of [`Message`].
const fn places(fields: &[Field]) -> [u8; HIGHEST + 1] {
    let mut places = [ABSENT; HIGHEST + 1];
    let mut place = 0;
    while place < fields.len() {
        places[fields[place].number as usize] = place as u8;
        place += 1;
    }
    places
}

/// `MESSAGE is Role { number name: Kind, .. }`; `(optional)` behind the name: [`Presence::Explicit`].
macro_rules! schema {
    ($($(#[$doc:meta])* $message:ident is $role:ident { $($number:literal $name:ident $(($optional:ident))? : $kind:expr),* $(,)? })*) => { $(
        $(#[$doc])*
        pub(crate) static $message: Message = {
            static FIELDS: &[Field] = {
                use Kind::*;
                &[$(Field {
                    number: $number,
                    name: stringify!($name),
                    kind: $kind,
                    presence: schema!(@ $($optional)?),
                }),*]
            };
            Message { role: Role::$role, fields: FIELDS, places: places(FIELDS) }
        };
    )* };
    (@) => { Presence::Implicit };
    (@ optional) => { Presence::Explicit };
}

schema! {
    /// `ExportTraceServiceRequest`.
    TRACE_REQUEST is Plain { 1 resourceSpans: Messages(&RESOURCE_SPANS) }
    RESOURCE_SPANS is Plain {
        1 resource: Message(&RESOURCE),
        2 scopeSpans: Messages(&SCOPE_SPANS),
        3 schemaUrl: String,
    }
    SCOPE_SPANS is Plain {
        1 scope: Message(&SCOPE),
        2 spans: Messages(&SPAN),
        3 schemaUrl: String,
    }
    SPAN is Span {
        1 traceId: Id,
        2 spanId: Id,
        4 parentSpanId: Id,
        3 traceState: String,
        5 name: String,
        6 kind: Enum(SPAN_KIND),
        7 startTimeUnixNano: Fixed64,
        8 endTimeUnixNano: Fixed64,
        9 attributes: Messages(&KEY_VALUE),
        10 droppedAttributesCount: Uint32,
        11 events: Messages(&EVENT),
        12 droppedEventsCount: Uint32,
        15 status: Message(&STATUS),
        13 links: Messages(&LINK),
        14 droppedLinksCount: Uint32,
        16 flags: Fixed32,
    }
    EVENT is Plain {
        3 attributes: Messages(&KEY_VALUE),
        2 name: String,
        1 timeUnixNano: Fixed64,
        4 droppedAttributesCount: Uint32,
    }
    LINK is Plain {
        3 traceState: String,
        1 traceId: Id,
        2 spanId: Id,
        4 attributes: Messages(&KEY_VALUE),
        5 droppedAttributesCount: Uint32,
        6 flags: Fixed32,
    }
    STATUS is Plain {
        3 code: Enum(STATUS_CODE),
        2 message: String,
    }

    RESOURCE is Plain {
        1 attributes: Messages(&KEY_VALUE),
        2 droppedAttributesCount: Uint32,
        3 entityRefs: Messages(&ENTITY_REF),
    }
    ENTITY_REF is Plain {
        1 schemaUrl: String,
        2 type: String,
        3 idKeys: Strings,
        4 descriptionKeys: Strings,
    }
    SCOPE is Plain {
        1 name: String,
        2 version: String,
        3 attributes: Messages(&KEY_VALUE),
        4 droppedAttributesCount: Uint32,
    }
    KEY_VALUE is KeyValue {
        1 key: String,
        2 value: Message(&ANY_VALUE),
        3 keyStrindex: Int32,
    }
    ANY_VALUE is Plain {
        1 stringValue(optional): String,
        2 boolValue(optional): Bool,
        3 intValue(optional): Int64,
        4 doubleValue(optional): Double,
        5 arrayValue: Message(&ARRAY_VALUE),
        6 kvlistValue: Message(&KEY_VALUE_LIST),
        7 bytesValue(optional): Bytes,
        8 stringValueStrindex(optional): Int32,
    }
    ARRAY_VALUE is Plain { 1 values: Messages(&ANY_VALUE) }
    KEY_VALUE_LIST is Plain { 1 values: Messages(&KEY_VALUE) }

    /// `ExportMetricsServiceRequest`.
    METRICS_REQUEST is Plain { 1 resourceMetrics: Messages(&RESOURCE_METRICS) }
    RESOURCE_METRICS is Plain {
        1 resource: Message(&RESOURCE),
        2 scopeMetrics: Messages(&SCOPE_METRICS),
        3 schemaUrl: String,
    }
    SCOPE_METRICS is Plain {
        1 scope: Message(&SCOPE),
        2 metrics: Messages(&METRIC),
        3 schemaUrl: String,
    }
    METRIC is Plain {
        1 name: String,
        2 description: String,
        3 unit: String,
        5 gauge: Message(&GAUGE),
        7 sum: Message(&SUM),
        9 histogram: Message(&HISTOGRAM),
        10 exponentialHistogram: Message(&EXPONENTIAL_HISTOGRAM),
        11 summary: Message(&SUMMARY),
        12 metadata: Messages(&KEY_VALUE),
    }
    GAUGE is Plain { 1 dataPoints: Messages(&NUMBER_DATA_POINT) }
    SUM is Plain {
        2 aggregationTemporality: Enum(TEMPORALITY),
        3 isMonotonic: Bool,
        1 dataPoints: Messages(&NUMBER_DATA_POINT),
    }
    HISTOGRAM is Plain {
        2 aggregationTemporality: Enum(TEMPORALITY),
        1 dataPoints: Messages(&HISTOGRAM_DATA_POINT),
    }
    EXPONENTIAL_HISTOGRAM is Plain {
        2 aggregationTemporality: Enum(TEMPORALITY),
        1 dataPoints: Messages(&EXPONENTIAL_HISTOGRAM_DATA_POINT),
    }
    SUMMARY is Plain { 1 dataPoints: Messages(&SUMMARY_DATA_POINT) }
    NUMBER_DATA_POINT is Item {
        7 attributes: Messages(&KEY_VALUE),
        2 startTimeUnixNano: Fixed64,
        3 timeUnixNano: Fixed64,
        4 asDouble(optional): Double,
        6 asInt(optional): Sfixed64,
        5 exemplars: Messages(&EXEMPLAR),
        8 flags: Uint32,
    }
    HISTOGRAM_DATA_POINT is Item {
        9 attributes: Messages(&KEY_VALUE),
        2 startTimeUnixNano: Fixed64,
        3 timeUnixNano: Fixed64,
        4 count: Fixed64,
        5 sum(optional): Double,
        6 bucketCounts: Fixed64s,
        7 explicitBounds: Doubles,
        8 exemplars: Messages(&EXEMPLAR),
        10 flags: Uint32,
        11 min(optional): Double,
        12 max(optional): Double,
    }
    EXPONENTIAL_HISTOGRAM_DATA_POINT is Item {
        1 attributes: Messages(&KEY_VALUE),
        2 startTimeUnixNano: Fixed64,
        3 timeUnixNano: Fixed64,
        4 count: Fixed64,
        5 sum(optional): Double,
        6 scale: Sint32,
        7 zeroCount: Fixed64,
        8 positive: Message(&BUCKETS),
        9 negative: Message(&BUCKETS),
        10 flags: Uint32,
        11 exemplars: Messages(&EXEMPLAR),
        12 min(optional): Double,
        13 max(optional): Double,
        14 zeroThreshold: Double,
    }
    BUCKETS is Plain {
        1 offset: Sint32,
        2 bucketCounts: Uint64s,
    }
    SUMMARY_DATA_POINT is Item {
        7 attributes: Messages(&KEY_VALUE),
        2 startTimeUnixNano: Fixed64,
        3 timeUnixNano: Fixed64,
        4 count: Fixed64,
        5 sum: Double,
        6 quantileValues: Messages(&VALUE_AT_QUANTILE),
        8 flags: Uint32,
    }
    VALUE_AT_QUANTILE is Plain {
        1 quantile: Double,
        2 value: Double,
    }
    EXEMPLAR is Plain {
        7 filteredAttributes: Messages(&KEY_VALUE),
        2 timeUnixNano: Fixed64,
        3 asDouble(optional): Double,
        6 asInt(optional): Sfixed64,
        4 spanId: Id,
        5 traceId: Id,
    }

    /// `ExportLogsServiceRequest`.
    LOGS_REQUEST is Plain { 1 resourceLogs: Messages(&RESOURCE_LOGS) }
    RESOURCE_LOGS is Plain {
        1 resource: Message(&RESOURCE),
        2 scopeLogs: Messages(&SCOPE_LOGS),
        3 schemaUrl: String,
    }
    SCOPE_LOGS is Plain {
        1 scope: Message(&SCOPE),
        2 logRecords: Messages(&LOG_RECORD),
        3 schemaUrl: String,
    }
    LOG_RECORD is Item {
        1 timeUnixNano: Fixed64,
        11 observedTimeUnixNano: Fixed64,
        2 severityNumber: Enum(SEVERITY_NUMBER),
        3 severityText: String,
        5 body: Message(&ANY_VALUE),
        12 eventName: String,
        6 attributes: Messages(&KEY_VALUE),
        7 droppedAttributesCount: Uint32,
        8 flags: Fixed32,
        9 traceId: Id,
        10 spanId: Id,
    }
}

const SPAN_KIND: &[(&str, i32)] = &[
    ("SPAN_KIND_UNSPECIFIED", 0),
    ("SPAN_KIND_INTERNAL", 1),
    ("SPAN_KIND_SERVER", 2),
    ("SPAN_KIND_CLIENT", 3),
    ("SPAN_KIND_PRODUCER", 4),
    ("SPAN_KIND_CONSUMER", 5),
];

const STATUS_CODE: &[(&str, i32)] = &[
    ("STATUS_CODE_UNSET", 0),
    ("STATUS_CODE_OK", 1),
    ("STATUS_CODE_ERROR", 2),
];

const TEMPORALITY: &[(&str, i32)] = &[
    ("AGGREGATION_TEMPORALITY_UNSPECIFIED", 0),
    ("AGGREGATION_TEMPORALITY_DELTA", 1),
    ("AGGREGATION_TEMPORALITY_CUMULATIVE", 2),
];

const SEVERITY_NUMBER: &[(&str, i32)] = &[
    ("SEVERITY_NUMBER_UNSPECIFIED", 0),
    ("SEVERITY_NUMBER_TRACE", 1),
    ("SEVERITY_NUMBER_TRACE2", 2),
    ("SEVERITY_NUMBER_TRACE3", 3),
    ("SEVERITY_NUMBER_TRACE4", 4),
    ("SEVERITY_NUMBER_DEBUG", 5),
    ("SEVERITY_NUMBER_DEBUG2", 6),
    ("SEVERITY_NUMBER_DEBUG3", 7),
    ("SEVERITY_NUMBER_DEBUG4", 8),
    ("SEVERITY_NUMBER_INFO", 9),
    ("SEVERITY_NUMBER_INFO2", 10),
    ("SEVERITY_NUMBER_INFO3", 11),
    ("SEVERITY_NUMBER_INFO4", 12),
    ("SEVERITY_NUMBER_WARN", 13),
    ("SEVERITY_NUMBER_WARN2", 14),
    ("SEVERITY_NUMBER_WARN3", 15),
    ("SEVERITY_NUMBER_WARN4", 16),
    ("SEVERITY_NUMBER_ERROR", 17),
    ("SEVERITY_NUMBER_ERROR2", 18),
    ("SEVERITY_NUMBER_ERROR3", 19),
    ("SEVERITY_NUMBER_ERROR4", 20),
    ("SEVERITY_NUMBER_FATAL", 21),
    ("SEVERITY_NUMBER_FATAL2", 22),
    ("SEVERITY_NUMBER_FATAL3", 23),
    ("SEVERITY_NUMBER_FATAL4", 24),
];
