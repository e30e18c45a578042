//! Several files and `--set` options merged into one tree: maps merge, anything else is replaced by the later layer,
//! as the OpenTelemetry Collector merges several `--config`.

use std::sync::Arc;

use super::expand::{Environment, Notes, expand};
use super::yaml::{Entry, Location, Node, Value, parse};
use super::{Mistake, Mistakes};

/// A source of settings; later layers win.
#[derive(Debug, Clone)]
pub enum Layer {
    /// A file that was read: its name and text.
    File {
        /// The name, for messages.
        name: String,
        /// The text.
        text: String,
    },
    /// `--set a.b=VALUE`; the value is YAML.
    Set(String),
}

/// Parses, substitutes and merges the layers.
///
/// # Errors
///
/// The mistakes of all layers.
pub fn load(layers: &[Layer], environment: &dyn Environment, notes: &mut Notes) -> Result<Node, Mistakes> {
    let mut merged = Node::null(Location {
        file: Arc::from("defaults"),
        line: 0,
        column: 0,
    });
    let mut mistakes = Vec::new();
    for layer in layers {
        let parsed = match layer {
            Layer::File { name, text } => parse(name, text),
            Layer::Set(option) => parse_set(option),
        };
        match parsed.and_then(|node| expand(node, environment, notes)) {
            Ok(node) => merged = merge(merged, node),
            Err(found) => mistakes.extend(found.0),
        }
    }
    if mistakes.is_empty() {
        Ok(merged)
    } else {
        Err(Mistakes(mistakes))
    }
}

fn parse_set(option: &str) -> Result<Node, Mistakes> {
    // Without the value, which may be a secret.
    let option_name = option
        .split_once('=')
        .map_or("--set".to_owned(), |(path, _)| format!("--set {path}"));
    let at = Location {
        file: Arc::from(option_name),
        line: 0,
        column: 0,
    };
    let Some((path, value)) = option.split_once('=') else {
        let message = "expected KEY=VALUE, such as journal.max_size=4GiB".to_owned();
        return Err(Mistakes(vec![Mistake {
            at: Some(at),
            path: String::new(),
            message,
        }]));
    };
    let mut node = parse(&format!("--set {path}"), value)?;
    relocate(&mut node, &at);
    Ok(path.rsplit('.').fold(node, |value, key| Node {
        at: at.clone(),
        value: Value::Mapping(vec![Entry {
            key: key.to_owned(),
            key_at: at.clone(),
            value,
        }]),
    }))
}

/// An option has no lines to point at: the option as a whole is the place.
fn relocate(node: &mut Node, at: &Location) {
    node.at = at.clone();
    match &mut node.value {
        Value::Null | Value::Scalar { .. } => {}
        Value::Sequence(items) => items.iter_mut().for_each(|item| relocate(item, at)),
        Value::Mapping(entries) => entries.iter_mut().for_each(|entry| {
            entry.key_at = at.clone();
            relocate(&mut entry.value, at);
        }),
    }
}

fn merge(below: Node, above: Node) -> Node {
    match (below.value, above.value) {
        (Value::Mapping(mut entries), Value::Mapping(upper)) => {
            for entry in upper {
                match entries.iter().position(|existing| existing.key == entry.key) {
                    Some(index) => {
                        let existing = entries.remove(index);
                        let value = merge(existing.value, entry.value);
                        entries.insert(index, Entry { value, ..entry });
                    }
                    None => entries.push(entry),
                }
            }
            Node {
                value: Value::Mapping(entries),
                at: above.at,
            }
        }
        // A file with nothing in it changes nothing.
        (below_value @ Value::Mapping(_), Value::Null) => Node {
            value: below_value,
            at: below.at,
        },
        (_, value) => Node { value, at: above.at },
    }
}

#[cfg(test)]
mod tests {
    use super::super::expand::tests::Fixed;
    use super::*;

    fn loaded(layers: &[Layer]) -> Node {
        load(layers, &Fixed(&[("HOST", "db")]), &mut Notes::default()).unwrap()
    }

    fn text_at<'a>(node: &'a Node, path: &str) -> &'a str {
        let found = path.split('.').fold(node, |node, key| node.get(key).unwrap());
        match &found.value {
            Value::Scalar { text, .. } => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn later_layers_win_and_maps_merge() {
        let file = |text: &str| Layer::File {
            name: "c.yaml".into(),
            text: text.into(),
        };
        let node = loaded(&[
            file("journal: {max_size: 1GiB, retain: 1h}\nmetrics: {rules: [a, b]}"),
            file("journal: {max_size: 2GiB}\nmetrics: {rules: [c]}"),
            Layer::Set("journal.retain=2h".into()),
            Layer::Set("database.url=postgres://${env:HOST}/x".into()),
        ]);
        assert_eq!(text_at(&node, "journal.max_size"), "2GiB");
        assert_eq!(text_at(&node, "journal.retain"), "2h");
        assert_eq!(text_at(&node, "database.url"), "postgres://db/x");
        assert!(
            matches!(&node.get("metrics").unwrap().get("rules").unwrap().value, Value::Sequence(items) if items.len() == 1)
        );
    }

    #[test]
    fn a_set_option_without_value_says_how_to_write_it() {
        let error = load(&[Layer::Set("journal".into())], &Fixed(&[]), &mut Notes::default()).unwrap_err();
        assert!(error.to_string().contains("expected KEY=VALUE"), "{error}");
    }
}
