//! YAML text to a tree whose nodes know where they stand.
//!
//! Scalars keep their text: which type they have is for the setting that reads them to say, so that `8889`, `"8889"`
//! and `${env:PORT}` mean the same. Anchors and aliases work; a duplicate key, a second document or a tag is a mistake.

use std::fmt;
use std::sync::Arc;

use saphyr_parser::{Event, Parser, ScalarStyle};

use super::{Mistake, Mistakes};

/// Nesting deeper than this is refused; no configuration of ours comes near.
const MAX_DEPTH: usize = 64;

/// Aliases may not grow a tree beyond this many nodes ("billion laughs").
const MAX_NODES: usize = 100_000;

/// A place in a file; lines and columns count from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// Name of the file, as the user gave it, or `--set`.
    pub file: Arc<str>,
    /// Line, from 1; 0 when the source has no lines.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
}

impl fmt::Display for Location {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => out.write_str(&self.file),
            line => write!(out, "{}:{line}:{}", self.file, self.column),
        }
    }
}

/// A node of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What the node holds.
    pub value: Value,
    /// Where it stands.
    pub at: Location,
}

/// What a node holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// A scalar as written; `quoted` when the text is a string whatever it looks like.
    Scalar {
        /// The text, without quotes.
        text: String,
        /// Whether it was quoted.
        quoted: bool,
    },
    /// A list.
    Sequence(Vec<Node>),
    /// A map, in the order of the file.
    Mapping(Vec<Entry>),
}

/// A key and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key stands.
    pub key_at: Location,
    /// The value.
    pub value: Node,
}

impl Node {
    /// A node without content at `at`.
    pub fn null(at: Location) -> Self {
        Self { value: Value::Null, at }
    }

    /// Whether the node is absent in all but name.
    pub fn is_null(&self) -> bool {
        self.value == Value::Null
    }

    /// The value of `key`, if this is a map that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.value)
    }

    /// `key` with its value, if this is a map that has it.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Mapping(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    /// What kind of thing the node is, for messages.
    pub fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Scalar { .. } => "a single value",
            Value::Sequence(_) => "a list",
            Value::Mapping(_) => "a map",
        }
    }
}

/// Parses one document. An empty text is a null node.
///
/// # Errors
///
/// The first mistake: YAML cannot be read on after a syntax error.
pub fn parse(file: &str, text: &str) -> Result<Node, Mistakes> {
    let file: Arc<str> = Arc::from(file);
    let mut builder = Builder {
        file: Arc::clone(&file),
        anchors: Vec::new(),
        nodes: 0,
    };
    builder
        .document(&mut Parser::new_from_str(text))
        .map_err(|mistake| Mistakes(vec![mistake]))
}

struct Builder {
    file: Arc<str>,
    /// Nodes by anchor id; the parser counts ids from 1.
    anchors: Vec<(usize, Node)>,
    nodes: usize,
}

type Events<'a> = Parser<'a, saphyr_parser::StrInput<'a>>;

impl Builder {
    fn document(&mut self, events: &mut Events<'_>) -> Result<Node, Mistake> {
        let mut root = None;
        while let Some(event) = events.next() {
            let (event, span) = self.scanned(event)?;
            let at = self.location(span.start);
            match event {
                Event::StreamStart | Event::StreamEnd | Event::Nothing | Event::DocumentEnd => {}
                Event::DocumentStart(_) if root.is_some() => {
                    return Err(mistake(at, "a second YAML document; one file holds one document"));
                }
                Event::DocumentStart(_) => {}
                event => root = Some(self.node(event, at, events, 0)?),
            }
        }
        Ok(root.unwrap_or_else(|| {
            Node::null(Location {
                file: Arc::clone(&self.file),
                line: 1,
                column: 1,
            })
        }))
    }

    fn node(&mut self, event: Event<'_>, at: Location, events: &mut Events<'_>, depth: usize) -> Result<Node, Mistake> {
        self.nodes += 1;
        if depth > MAX_DEPTH || self.nodes > MAX_NODES {
            return Err(mistake(at, "nested too deeply or too large"));
        }
        let (value, anchor) = match event {
            Event::Alias(id) => return self.aliased(id, at),
            Event::Scalar(text, style, anchor, tag) => {
                if tag.is_some() {
                    return Err(mistake(at, "YAML tags have no meaning here"));
                }
                (scalar(&text, style), anchor)
            }
            Event::SequenceStart(anchor, _) => (self.sequence(events, depth)?, anchor),
            Event::MappingStart(anchor, _) => (self.mapping(events, depth)?, anchor),
            _ => return Err(mistake(at, "unexpected end of the document")),
        };
        let node = Node { value, at };
        if anchor > 0 {
            self.anchors.push((anchor, node.clone()));
        }
        Ok(node)
    }

    fn sequence(&mut self, events: &mut Events<'_>, depth: usize) -> Result<Value, Mistake> {
        let mut items = Vec::new();
        loop {
            let (event, at) = self.next(events)?;
            if matches!(event, Event::SequenceEnd) {
                return Ok(Value::Sequence(items));
            }
            items.push(self.node(event, at, events, depth + 1)?);
        }
    }

    fn mapping(&mut self, events: &mut Events<'_>, depth: usize) -> Result<Value, Mistake> {
        let mut entries: Vec<Entry> = Vec::new();
        loop {
            let (event, key_at) = self.next(events)?;
            let key = match event {
                Event::MappingEnd => return Ok(Value::Mapping(entries)),
                Event::Scalar(text, ..) => text.into_owned(),
                _ => return Err(mistake(key_at, "a key must be a single value")),
            };
            if let Some(first) = entries.iter().find(|entry| entry.key == key) {
                let message = format!("key `{key}` is given twice; the first is in line {}", first.key_at.line);
                return Err(mistake(key_at, message));
            }
            let (event, at) = self.next(events)?;
            let value = self.node(event, at, events, depth + 1)?;
            entries.push(Entry { key, key_at, value });
        }
    }

    fn aliased(&mut self, id: usize, at: Location) -> Result<Node, Mistake> {
        let found = self
            .anchors
            .iter()
            .find(|(anchor, _)| *anchor == id)
            .map(|(_, node)| node.clone());
        let node = found.ok_or_else(|| mistake(at.clone(), "an alias to an anchor that is not there"))?;
        self.nodes += count(&node);
        Ok(Node { at, ..node })
    }

    fn next<'a>(&self, events: &mut Events<'a>) -> Result<(Event<'a>, Location), Mistake> {
        match events.next() {
            Some(event) => {
                let (event, span) = self.scanned(event)?;
                Ok((event, self.location(span.start)))
            }
            None => Err(mistake(self.location_unknown(), "unexpected end of the file")),
        }
    }

    fn scanned<T>(&self, event: Result<T, saphyr_parser::ScanError>) -> Result<T, Mistake> {
        event.map_err(|error| mistake(self.location(*error.marker()), format!("not YAML: {}", error.info())))
    }

    fn location(&self, marker: saphyr_parser::Marker) -> Location {
        Location {
            file: Arc::clone(&self.file),
            line: marker.line(),
            column: marker.col() + 1,
        }
    }

    fn location_unknown(&self) -> Location {
        Location {
            file: Arc::clone(&self.file),
            line: 0,
            column: 0,
        }
    }
}

fn scalar(text: &str, style: ScalarStyle) -> Value {
    let quoted = style != ScalarStyle::Plain;
    if !quoted && matches!(text, "" | "~" | "null" | "Null" | "NULL") {
        return Value::Null;
    }
    Value::Scalar {
        text: text.to_owned(),
        quoted,
    }
}

fn count(node: &Node) -> usize {
    1 + match &node.value {
        Value::Null | Value::Scalar { .. } => 0,
        Value::Sequence(items) => items.iter().map(count).sum(),
        Value::Mapping(entries) => entries.iter().map(|entry| count(&entry.value)).sum(),
    }
}

fn mistake(at: Location, message: impl Into<String>) -> Mistake {
    Mistake {
        at: Some(at),
        path: String::new(),
        message: message.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(text: &str) -> Vec<(String, usize)> {
        let Value::Mapping(entries) = parse("c.yaml", text).unwrap().value else {
            panic!("not a map")
        };
        entries
            .into_iter()
            .map(|entry| (entry.key, entry.key_at.line))
            .collect()
    }

    #[test]
    fn keys_know_the_line_they_stand_in() {
        assert_eq!(
            lines_of("a: 1\n\nb:\n  c: 2\nd: x\n"),
            [("a".into(), 1), ("b".into(), 3), ("d".into(), 5)]
        );
    }

    #[test]
    fn a_syntax_error_names_file_and_line() {
        let mistakes = parse("c.yaml", "a: 1\nb: [1, 2\n").unwrap_err();
        assert!(mistakes.to_string().starts_with("c.yaml:"), "{mistakes}");
        assert!(mistakes.to_string().contains("not YAML"), "{mistakes}");
    }

    #[test]
    fn a_key_given_twice_is_a_mistake() {
        let mistakes = parse("c.yaml", "a: 1\na: 2\n").unwrap_err();
        assert_eq!(
            mistakes.to_string(),
            "c.yaml:2:1: key `a` is given twice; the first is in line 1"
        );
    }

    #[test]
    fn an_empty_file_is_an_empty_configuration() {
        assert!(parse("c.yaml", "# nothing\n").unwrap().is_null());
    }

    #[test]
    fn anchors_and_aliases_work_within_bounds() {
        let node = parse("c.yaml", "a: &x {k: 1}\nb: *x\n").unwrap();
        assert_eq!(
            node.get("b").unwrap().get("k").unwrap().value,
            node.get("a").unwrap().get("k").unwrap().value
        );
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for level in 1..8 {
            let refs = vec![format!("*a{}", level - 1); 10].join(",");
            bomb.push_str(&format!("a{level}: &a{level} [{refs}]\n"));
        }
        assert!(parse("c.yaml", &bomb).unwrap_err().to_string().contains("too large"));
    }
}
