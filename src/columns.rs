//! The rows of an hour, packed into a few bytes each: what statistics ask of them, and nothing else.
//!
//! Statistics over a week read every row of it. In the tables a row is some hundreds of bytes, and half of them lie behind
//! another key; packed it is about twenty, in the order of time. The ledger packs hours that are over, the query API reads
//! them. Sans-io: this room knows bytes, not databases.
//!
//! # Form
//!
//! A version, the distinct texts, the rows, and a CRC-32C of all that. Numbers are varints, signed ones zigzag, as in
//! protobuf; a time is the microseconds since the row before.
//!
//! # Invariants
//!
//! * The same rows in the same order make the same bytes, so that packing again shows whether anything changed.
//! * What is read was written by [`Packer`]: bytes that fail the checksum or have another version are refused as a whole.

use std::collections::HashMap;

use crate::checksum;
use crate::otlp::wire::{Cursor, put_varint};

/// Rows are packed by the hour.
pub const HOUR_MICROS: i64 = 3_600_000_000;

const VERSION: u8 = 1;

/// Which rows are packed: those of this program, by their ids, as a condition in SQL on the rows as `t`. Statistics of
/// hours that are not packed ask for the same.
pub const IS_OWN: &str = "length(t.id) = 49 AND substr(t.id, 33, 1) = '-'";

/// Of what is beside the rows, as `e`: that it is beside the row `t`.
pub const IS_BESIDE: &str = "e.id = t.id";

/// [`IS_BESIDE`] in SQLite, where what is beside the rows is kept in the order of time.
pub const IS_BESIDE_BY_TIME: &str = "e.created_at = t.created_at AND e.id = t.id";

/// The hour since 1970 that a time in Unix microseconds belongs to.
pub fn hour_of(micros: i64) -> i64 {
    micros.div_euclid(HOUR_MICROS)
}

/// The texts of a row, by the index in [`Row::texts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "named as the columns are")]
pub enum Text {
    Runtime,
    Language,
    Agent,
    Organization,
    Workspace,
    User,
    Node,
}

/// How many texts a row has.
pub const TEXTS: usize = 7;

/// What is kept of a row. `T` is a text, or where it is found.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Row<T> {
    /// `created_at`, Unix microseconds.
    pub at: i64,
    /// By [`Text`].
    pub texts: [T; TEXTS],
    /// `duration_ms`
    pub duration_ms: Option<i64>,
    /// `memory_mb`
    pub memory_mb: Option<i64>,
    /// `exit_code`
    pub exit_code: Option<i64>,
    /// `tokens_used`
    pub tokens: Option<i64>,
    /// `success`
    pub success: bool,
    /// Whether its span was a time-out.
    pub is_timeout: bool,
    /// `validation_passed`
    pub validation: Option<bool>,
    /// What it is estimated to cost.
    pub cost_usd: Option<f64>,
}

/// Where a text is found: 0 is none, else one more than the index in [`Packed::texts`].
pub type TextId = u32;

const SUCCESS: u64 = 1;
const TIMEOUT: u64 = 1 << 1;
const VALIDATED: u64 = 1 << 2;
const VALID: u64 = 1 << 3;
const DURATION: u64 = 1 << 4;
const MEMORY: u64 = 1 << 5;
const EXIT_CODE: u64 = 1 << 6;
const TOKENS: u64 = 1 << 7;
const COST: u64 = 1 << 8;

/// Packs rows, which come in the order of their time.
#[derive(Debug, Default)]
pub struct Packer {
    ids: HashMap<String, TextId>,
    texts: Vec<u8>,
    rows: Vec<u8>,
    count: u64,
    at: i64,
}

impl Packer {
    /// Adds a row.
    pub fn push<T: AsRef<str>>(&mut self, row: &Row<Option<T>>) {
        let flag = |is_set: bool, flag: u64| if is_set { flag } else { 0 };
        let numbers = [row.duration_ms, row.memory_mb, row.exit_code, row.tokens];
        let mut flags = flag(row.success, SUCCESS)
            | flag(row.is_timeout, TIMEOUT)
            | flag(row.validation.is_some(), VALIDATED)
            | flag(row.validation == Some(true), VALID)
            | flag(row.cost_usd.is_some(), COST);
        for (number, present) in numbers.iter().zip([DURATION, MEMORY, EXIT_CODE, TOKENS]) {
            flags |= flag(number.is_some(), present);
        }
        put_varint(&mut self.rows, flags);
        put_varint(&mut self.rows, zigzag(row.at.wrapping_sub(self.at)));
        self.at = row.at;
        for text in &row.texts {
            let id = text.as_ref().map_or(0, |text| self.id(text.as_ref()));
            put_varint(&mut self.rows, u64::from(id));
        }
        for number in numbers.into_iter().flatten() {
            put_varint(&mut self.rows, zigzag(number));
        }
        if let Some(cost) = row.cost_usd {
            self.rows.extend(cost.to_le_bytes());
        }
        self.count += 1;
    }

    fn id(&mut self, text: &str) -> TextId {
        if let Some(id) = self.ids.get(text) {
            return *id;
        }
        let id = self.ids.len() as TextId + 1;
        self.ids.insert(text.to_owned(), id);
        put_varint(&mut self.texts, text.len() as u64);
        self.texts.extend(text.as_bytes());
        id
    }

    /// The bytes.
    pub fn finish(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.texts.len() + self.rows.len() + 16);
        bytes.push(VERSION);
        put_varint(&mut bytes, self.ids.len() as u64);
        bytes.extend(self.texts);
        put_varint(&mut bytes, self.count);
        bytes.extend(self.rows);
        let checksum = checksum::crc32c(&bytes);
        bytes.extend(checksum.to_le_bytes());
        bytes
    }
}

/// Packed rows, to be read one after the other.
#[derive(Debug)]
pub struct Packed<'a> {
    /// The distinct texts.
    pub texts: Vec<&'a str>,
    rows: Cursor<'a>,
    left: u64,
    at: i64,
}

impl<'a> Packed<'a> {
    /// Nothing, when the bytes are damaged or of another version.
    pub fn read(bytes: &'a [u8]) -> Option<Packed<'a>> {
        let (body, checksum) = bytes.split_last_chunk()?;
        if checksum::crc32c(body) != u32::from_le_bytes(*checksum) {
            return None;
        }
        let (VERSION, rest) = body.split_first().map(|(version, rest)| (*version, rest))? else {
            return None;
        };
        let mut rest = Cursor::new(rest);
        let count = rest.varint().ok()?;
        let mut texts = Vec::new();
        for _ in 0..count {
            texts.push(std::str::from_utf8(rest.slice().ok()?).ok()?);
        }
        let left = rest.varint().ok()?;
        Some(Packed {
            texts,
            rows: rest,
            left,
            at: 0,
        })
    }

    fn row(&mut self) -> Option<Row<TextId>> {
        let rest = &mut self.rows;
        let flags = rest.varint().ok()?;
        let has = |flag: u64| flags & flag != 0;
        self.at = self.at.wrapping_add(unzigzag(rest.varint().ok()?));
        let mut row = Row {
            at: self.at,
            success: has(SUCCESS),
            is_timeout: has(TIMEOUT),
            validation: has(VALIDATED).then(|| has(VALID)),
            ..Row::default()
        };
        for text in &mut row.texts {
            *text = TextId::try_from(rest.varint().ok()?).ok()?;
            if *text as usize > self.texts.len() {
                return None;
            }
        }
        for (flag, number) in [
            (DURATION, &mut row.duration_ms),
            (MEMORY, &mut row.memory_mb),
            (EXIT_CODE, &mut row.exit_code),
            (TOKENS, &mut row.tokens),
        ] {
            if has(flag) {
                *number = Some(unzigzag(rest.varint().ok()?));
            }
        }
        if has(COST) {
            row.cost_usd = Some(f64::from_bits(rest.fixed64().ok()?));
        }
        Some(row)
    }
}

impl Iterator for Packed<'_> {
    type Item = Row<TextId>;

    fn next(&mut self) -> Option<Row<TextId>> {
        self.left = self.left.checked_sub(1)?;
        self.row()
    }
}

fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)).cast_unsigned()
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::option::of;
    use proptest::prelude::*;

    use super::*;

    fn row() -> impl Strategy<Value = Row<Option<String>>> {
        let numbers = (of(any::<i64>()), of(0..9_i64), of(-2..300_i64), of(any::<i64>()));
        let texts = proptest::array::uniform7(of("[a-zé]{0,3}"));
        let rest = (any::<bool>(), any::<bool>(), of(any::<bool>()), of(-1e9..1e9_f64));
        (any::<i64>(), texts, numbers, rest).prop_map(|(at, texts, numbers, rest)| Row {
            at,
            texts,
            duration_ms: numbers.0,
            memory_mb: numbers.1,
            exit_code: numbers.2,
            tokens: numbers.3,
            success: rest.0,
            is_timeout: rest.1,
            validation: rest.2,
            cost_usd: rest.3,
        })
    }

    fn pack(rows: &[Row<Option<String>>]) -> Vec<u8> {
        let mut packer = Packer::default();
        rows.iter().for_each(|row| packer.push(row));
        packer.finish()
    }

    proptest! {
        #[test]
        fn what_was_packed_is_read_again(rows in vec(row(), 0..40)) {
            let bytes = pack(&rows);
            let mut packed = Packed::read(&bytes).unwrap();
            let texts: Vec<String> = packed.texts.iter().map(|text| (*text).to_owned()).collect();
            for row in &rows {
                let read = packed.next().unwrap();
                let text = |id: TextId| id.checked_sub(1).map(|index| texts[index as usize].clone());
                let read = Row {
                    at: read.at,
                    texts: read.texts.map(text),
                    duration_ms: read.duration_ms,
                    memory_mb: read.memory_mb,
                    exit_code: read.exit_code,
                    tokens: read.tokens,
                    success: read.success,
                    is_timeout: read.is_timeout,
                    validation: read.validation,
                    cost_usd: read.cost_usd,
                };
                prop_assert_eq!(&read, row);
            }
            prop_assert!(packed.next().is_none());
            prop_assert_eq!(pack(&rows), bytes);
        }

        #[test]
        fn a_byte_that_changed_or_is_missing_is_noticed(rows in vec(row(), 1..9), at in any::<prop::sample::Index>()) {
            let bytes = pack(&rows);
            let mut changed = bytes.clone();
            changed[at.index(bytes.len())] ^= 0x10;
            prop_assert!(Packed::read(&changed).is_none());
            prop_assert!(Packed::read(&bytes[..at.index(bytes.len())]).is_none());
        }
    }

    #[test]
    fn an_ordinary_row_takes_about_twenty_bytes() {
        let rows: Vec<_> = (0..1000_i64)
            .map(|index| Row {
                at: 1_764_000_000_000_000 + index * 2_600_000,
                texts: [
                    Some("e2b".to_owned()),
                    Some("python".to_owned()),
                    Some(format!("agent-{}", index % 50)),
                    Some(format!("organization-{}", index % 9)),
                    None,
                    None,
                    None,
                ],
                duration_ms: Some(index * 7 % 3000),
                memory_mb: Some(128),
                exit_code: Some(0),
                tokens: Some(900),
                success: true,
                cost_usd: None,
                ..Row::default()
            })
            .collect();
        let bytes = pack(&rows).len();
        assert!((14_000..24_000).contains(&bytes), "{bytes}");
    }
}
