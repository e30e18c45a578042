//! JSON text, token by token (RFC 8259).
//!
//! Why not a JSON library: numbers are needed as they are written (64-bit integers in exponent form have to stay exact),
//! errors have to know their offset, and nothing should be built that is thrown away. Every executor that exports with
//! the JavaScript SDK sends JSON, so this is a hot path. The grammar is tested against `serde_json`, with one intended
//! difference: half of a surrogate pair (`"\ud83d"`, what JavaScript makes of an emoji cut in two) reads as U+FFFD, as
//! everywhere in the Collector, and does not condemn the hundreds of spans around it.
//!
//! Invariants: never panics; every method leaves the reader behind what it read; the text is UTF-8, so slices of it
//! between ASCII characters are UTF-8.

use super::error::{Mistake, What};
use crate::otlp::wire::is_ascii;

/// How deep values that nobody asked for may nest: each level takes a stack frame.
const MAX_SKIPPED_DEPTH: u32 = 128;

/// A place in JSON text.
#[derive(Clone)]
pub(super) struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

/// The contents of a string, without the quotation marks.
#[derive(Clone, Copy)]
pub(super) struct Str<'a> {
    raw: &'a [u8],
    has_escapes: bool,
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a [u8]) -> Result<Reader<'a>, Mistake> {
        // Most text is ASCII, which is seen faster than UTF-8 is checked.
        if is_ascii(text) {
            return Ok(Reader { text, at: 0 });
        }
        match std::str::from_utf8(text) {
            Ok(_) => Ok(Reader { text, at: 0 }),
            Err(error) => Err(Mistake {
                what: What::Utf8,
                at: error.valid_up_to(),
            }),
        }
    }

    pub(super) const fn position(&self) -> usize {
        self.at
    }

    /// The text between two positions.
    pub(super) fn between(&self, from: usize, to: usize) -> &'a [u8] {
        self.text.get(from..to).unwrap_or_default()
    }

    /// How much text is left.
    pub(super) const fn remaining(&self) -> usize {
        self.text.len() - self.at
    }

    /// The text that is left.
    #[inline(always)]
    pub(super) fn rest(&self) -> &'a [u8] {
        self.text.get(self.at..).unwrap_or_default()
    }

    #[cold]
    pub(super) fn mistake<T>(&self, what: What) -> Result<T, Mistake> {
        let what = if self.at >= self.text.len() {
            What::UnexpectedEnd
        } else {
            what
        };
        Err(Mistake { what, at: self.at })
    }

    /// Goes on to the beginning of `rest`, which is the end of the text.
    #[inline(always)]
    pub(super) const fn go_on_at(&mut self, rest: &'a [u8]) {
        self.at = self.text.len().saturating_sub(rest.len());
    }

    /// The first character of the next token, white space skipped; 0 at the end.
    #[inline(always)]
    pub(super) fn peek(&mut self) -> u8 {
        loop {
            match self.text.get(self.at) {
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.at += 1,
                Some(&byte) => return byte,
                None => return 0,
            }
        }
    }

    /// Reads `byte` if it comes next.
    #[inline(always)]
    fn take(&mut self, byte: u8) -> bool {
        let is_next = self.peek() == byte;
        self.at += usize::from(is_next);
        is_next
    }

    #[inline(always)]
    pub(super) fn begin_object(&mut self) -> Result<(), Mistake> {
        if self.take(b'{') {
            Ok(())
        } else {
            self.mistake(What::Expected("an object"))
        }
    }

    /// The next key of an object, read up to its value; `None` behind the closing brace.
    #[inline(always)]
    pub(super) fn next_key(&mut self, first: &mut bool) -> Result<Option<Str<'a>>, Mistake> {
        if self.take(b'}') {
            return Ok(None);
        }
        if !std::mem::take(first) && !self.take(b',') {
            return self.mistake(What::Expected("`,` or `}`"));
        }
        if self.peek() != b'"' {
            return self.mistake(What::Expected("a key"));
        }
        let key = self.string()?;
        if !self.take(b':') {
            return self.mistake(What::Expected("`:`"));
        }
        Ok(Some(key))
    }

    #[inline(always)]
    pub(super) fn begin_array(&mut self) -> Result<(), Mistake> {
        if self.take(b'[') {
            Ok(())
        } else {
            self.mistake(What::Expected("an array"))
        }
    }

    /// Whether another element follows, read up to it; false behind the closing bracket.
    #[inline(always)]
    pub(super) fn next_element(&mut self, first: &mut bool) -> Result<bool, Mistake> {
        if std::mem::take(first) {
            return Ok(!self.take(b']'));
        }
        if self.take(b']') {
            return Ok(false);
        }
        if self.take(b',') {
            Ok(true)
        } else {
            self.mistake(What::Expected("`,` or `]`"))
        }
    }

    /// Reads `null` if it comes next.
    #[inline(always)]
    pub(super) fn take_null(&mut self) -> Result<bool, Mistake> {
        if self.peek() != b'n' {
            return Ok(false);
        }
        self.word(b"null").map(|()| true)
    }

    fn word(&mut self, word: &'static [u8]) -> Result<(), Mistake> {
        if !self.rest().starts_with(word) {
            return self.mistake(What::Expected("a value"));
        }
        self.at += word.len();
        Ok(())
    }

    pub(super) fn boolean(&mut self) -> Result<bool, Mistake> {
        match self.peek() {
            b't' => self.word(b"true").map(|()| true),
            b'f' => self.word(b"false").map(|()| false),
            _ => self.mistake(What::Expected("true or false")),
        }
    }

    /// The text of a number, in the grammar of JSON.
    #[inline(always)]
    pub(super) fn number(&mut self) -> Result<&'a [u8], Mistake> {
        let length = number_length(self.rest());
        if length == 0 {
            return self.mistake(What::Expected("a number"));
        }
        let number = self.text.get(self.at..self.at + length).unwrap_or_default();
        self.at += length;
        Ok(number)
    }

    #[inline(always)]
    pub(super) fn string(&mut self) -> Result<Str<'a>, Mistake> {
        if !self.take(b'"') {
            return self.mistake(What::Expected("a string"));
        }
        let begin = self.at;
        let mut has_escapes = false;
        loop {
            self.at += plain_length(self.rest());
            match self.text.get(self.at) {
                Some(b'"') => {
                    let raw = self.text.get(begin..self.at).unwrap_or_default();
                    self.at += 1;
                    return Ok(Str { raw, has_escapes });
                }
                Some(b'\\') => {
                    has_escapes = true;
                    self.escape()?;
                }
                _ => return self.mistake(What::ControlCharacter),
            }
        }
    }

    /// Checks one escape sequence; its meaning is read by [`Str::append_to`].
    #[cold]
    fn escape(&mut self) -> Result<(), Mistake> {
        let length = match self.rest() {
            [_, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => 2,
            [_, b'u', a, b, c, d, ..] if [a, b, c, d].iter().all(|digit| digit.is_ascii_hexdigit()) => 6,
            _ => return self.mistake(What::Escape),
        };
        self.at += length;
        Ok(())
    }

    /// Steps over a value of any kind.
    pub(super) fn skip_value(&mut self) -> Result<(), Mistake> {
        self.skip_nested(MAX_SKIPPED_DEPTH)
    }

    fn skip_nested(&mut self, depth: u32) -> Result<(), Mistake> {
        let Some(depth) = depth.checked_sub(1) else {
            return self.mistake(What::TooDeep);
        };
        let mut first = true;
        match self.peek() {
            b'"' => self.string().map(drop),
            b'{' => {
                self.begin_object()?;
                while self.next_key(&mut first)?.is_some() {
                    self.skip_nested(depth)?;
                }
                Ok(())
            }
            b'[' => {
                self.begin_array()?;
                while self.next_element(&mut first)? {
                    self.skip_nested(depth)?;
                }
                Ok(())
            }
            b't' => self.word(b"true"),
            b'f' => self.word(b"false"),
            b'n' => self.word(b"null"),
            b'-' | b'0'..=b'9' => self.number().map(drop),
            _ => self.mistake(What::Expected("a value")),
        }
    }

    /// Nothing but white space may follow the outermost value.
    pub(super) fn end(&mut self) -> Result<(), Mistake> {
        self.peek();
        if self.at == self.text.len() {
            Ok(())
        } else {
            self.mistake(What::Trailing)
        }
    }
}

impl<'a> Str<'a> {
    /// The characters, if they stand in the text as they are.
    #[inline(always)]
    pub(super) fn plain(self) -> Option<&'a [u8]> {
        (!self.has_escapes).then_some(self.raw)
    }

    /// An upper bound of the length without escapes.
    pub(super) const fn longest(self) -> usize {
        self.raw.len()
    }

    /// Appends the characters as UTF-8.
    #[inline]
    pub(super) fn append_to(self, out: &mut Vec<u8>) {
        if self.has_escapes {
            self.unescape(out)
        } else {
            out.extend_from_slice(self.raw)
        }
    }

    /// The escapes were checked when the string was read.
    fn unescape(self, out: &mut Vec<u8>) {
        let mut rest = self.raw;
        while let Some(plain) = rest.iter().position(|byte| *byte == b'\\') {
            let (before, escape) = rest.split_at(plain);
            out.extend_from_slice(before);
            let (character, length) = match escape {
                [_, b'b', ..] => ('\u{8}', 2),
                [_, b'f', ..] => ('\u{c}', 2),
                [_, b'n', ..] => ('\n', 2),
                [_, b'r', ..] => ('\r', 2),
                [_, b't', ..] => ('\t', 2),
                [_, b'u', ..] => utf16_escape(escape),
                [_, other, ..] => (char::from(*other), 2),
                _ => return,
            };
            out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            rest = escape.get(length..).unwrap_or_default();
        }
        out.extend_from_slice(rest);
    }
}

/// The character of `\uXXXX`, or of two of them that are a surrogate pair, and the length of the escape.
fn utf16_escape(escape: &[u8]) -> (char, usize) {
    let unit = |from: usize| -> Option<u32> {
        let [b'\\', b'u', digits @ ..] = escape.get(from..from + 6)? else {
            return None;
        };
        digits
            .iter()
            .try_fold(0, |unit, digit| Some(unit << 4 | char::from(*digit).to_digit(16)?))
    };
    let first = unit(0).unwrap_or_default();
    if let (0xd800..=0xdbff, Some(second @ 0xdc00..=0xdfff)) = (first, unit(6)) {
        let pair = 0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00);
        return (char::from_u32(pair).unwrap_or(char::REPLACEMENT_CHARACTER), 12);
    }
    (char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER), 6)
}

/// How many characters stand before the next quotation mark, backslash or control character.
///
/// Eight at a time: a subtraction borrows into the high bit of each byte that is below the subtrahend. A borrow may run
/// on into the bytes above a true finding, but never below it, so the lowest bit found is right.
#[inline(always)]
pub(super) fn plain_length(text: &[u8]) -> usize {
    const ONES: u64 = u64::MAX / 0xff;
    const HIGH_BITS: u64 = ONES * 0x80;
    let (words, tail) = text.as_chunks::<8>();
    let mut length = 0;
    for word in words {
        let word = u64::from_le_bytes(*word);
        let below = |bytes: u64, bound: u64| bytes.wrapping_sub(ONES * bound) & !bytes;
        let quote = below(word ^ (ONES * 0x22), 1);
        let backslash = below(word ^ (ONES * 0x5c), 1);
        let found = (quote | backslash | below(word, 0x20)) & HIGH_BITS;
        if found != 0 {
            return length + found.trailing_zeros() as usize / 8;
        }
        length += 8;
    }
    length
        + tail
            .iter()
            .take_while(|byte| !matches!(byte, b'"' | b'\\' | ..0x20))
            .count()
}

/// The length of the number that `text` begins with; 0 if there is none in the grammar of JSON.
#[inline(always)]
pub(super) fn number_length(text: &[u8]) -> usize {
    let digits = |from: usize| text.iter().skip(from).take_while(|byte| byte.is_ascii_digit()).count();
    let at = |place: usize| text.get(place).copied().unwrap_or_default();
    let mut length = usize::from(at(0) == b'-');
    let whole = digits(length);
    if whole == 0 || (whole > 1 && at(length) == b'0') {
        return 0;
    }
    length += whole;
    if at(length) == b'.' {
        let fraction = digits(length + 1);
        if fraction == 0 {
            return 0;
        }
        length += 1 + fraction;
    }
    if matches!(at(length), b'e' | b'E') {
        let sign = usize::from(matches!(at(length + 1), b'+' | b'-'));
        let exponent = digits(length + 1 + sign);
        if exponent == 0 {
            return 0;
        }
        length += 1 + sign + exponent;
    }
    length
}
