//! Substitution in scalars: `${env:NAME}`, `${env:NAME:-default}`, `${file:PATH}`, and `$$` for a dollar.
//!
//! As in the OpenTelemetry Collector, substitution happens in the values of the parsed tree, never in keys or in the
//! text of the file, so that a value with a colon or a line break cannot change the structure.

use super::yaml::{Entry, Node, Value};
use super::{Mistake, Mistakes};

/// Where substitutions come from; injected, so that it can be tested without touching the process.
pub trait Environment {
    /// The value of an environment variable.
    fn variable(&self, name: &str) -> Option<String>;

    /// The content of a file.
    ///
    /// # Errors
    ///
    /// Whatever reading the file gives.
    fn file(&self, path: &str) -> std::io::Result<String>;
}

/// The environment of this process.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProcessEnvironment;

impl Environment for ProcessEnvironment {
    fn variable(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    fn file(&self, path: &str) -> std::io::Result<String> {
        std::fs::read_to_string(path)
    }
}

/// What substitution found besides mistakes.
#[derive(Debug, Default)]
pub struct Notes {
    /// Variables that are not set and have no default; they became empty, as in the Collector.
    pub unset: Vec<String>,
}

/// Substitutes in every scalar below `node`.
///
/// # Errors
///
/// All mistakes: an unknown scheme, a brace that is never closed, a file that cannot be read.
pub fn expand(node: Node, environment: &dyn Environment, notes: &mut Notes) -> Result<Node, Mistakes> {
    let mut mistakes = Vec::new();
    let node = expand_node(node, environment, notes, &mut mistakes);
    if mistakes.is_empty() {
        Ok(node)
    } else {
        Err(Mistakes(mistakes))
    }
}

fn expand_node(node: Node, environment: &dyn Environment, notes: &mut Notes, mistakes: &mut Vec<Mistake>) -> Node {
    let Node { value, at } = node;
    let value = match value {
        Value::Scalar { text, quoted } if text.contains('$') => match expand_text(&text, environment, notes) {
            // An unquoted reference that gives nothing is nothing, so that an unset variable leaves the default.
            Ok(text) if text.is_empty() && !quoted => Value::Null,
            Ok(text) => Value::Scalar { text, quoted },
            Err(message) => {
                mistakes.push(Mistake {
                    at: Some(at.clone()),
                    path: String::new(),
                    message,
                });
                Value::Null
            }
        },
        Value::Sequence(items) => Value::Sequence(
            items
                .into_iter()
                .map(|item| expand_node(item, environment, notes, mistakes))
                .collect(),
        ),
        Value::Mapping(entries) => Value::Mapping(
            entries
                .into_iter()
                .map(|entry| Entry {
                    value: expand_node(entry.value, environment, notes, mistakes),
                    ..entry
                })
                .collect(),
        ),
        value => value,
    };
    Node { value, at }
}

/// Substitutes in one text.
///
/// # Errors
///
/// What is wrong, for the user.
pub fn expand_text(text: &str, environment: &dyn Environment, notes: &mut Notes) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(after) = after.strip_prefix('{') {
            let (reference, after) = after
                .split_once('}')
                // Not the text: it may be a password.
                .ok_or("`${` without a closing brace; write $${ for these characters themselves")?;
            out.push_str(&resolve(reference, environment, notes)?);
            rest = after;
        } else {
            // A lone dollar is kept, as in the Collector: passwords and regular expressions hold them.
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn resolve(reference: &str, environment: &dyn Environment, notes: &mut Notes) -> Result<String, String> {
    if let Some(path) = reference.strip_prefix("file:") {
        let content = environment
            .file(path)
            .map_err(|error| format!("cannot read `${{file:{path}}}`: {error}"))?;
        return Ok(content.trim_end_matches(['\n', '\r']).to_owned());
    }
    let Some(reference) = reference.strip_prefix("env:") else {
        // Without a scheme it may be a part of a password.
        let scheme = reference.split_once(':').map_or("...", |(scheme, _)| scheme);
        return Err(format!(
            "`${{{scheme}}}` is not known; write ${{env:NAME}}, ${{file:PATH}}, or $$ for a dollar"
        ));
    };
    let (name, default) = match reference.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (reference, None),
    };
    // An empty variable counts as unset, as the OpenTelemetry specification says of its own.
    match (environment.variable(name).filter(|value| !value.is_empty()), default) {
        (Some(value), _) => Ok(value),
        (None, Some(default)) => Ok(default.to_owned()),
        (None, None) => {
            notes.unset.push(name.to_owned());
            Ok(String::new())
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An environment of fixed variables; every file holds `secret\n`.
    pub(crate) struct Fixed(pub(crate) &'static [(&'static str, &'static str)]);

    impl Environment for Fixed {
        fn variable(&self, name: &str) -> Option<String> {
            self.0
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        }

        fn file(&self, path: &str) -> std::io::Result<String> {
            match path {
                "/run/secrets/password" => Ok("secret\n".into()),
                _ => Err(std::io::ErrorKind::NotFound.into()),
            }
        }
    }

    fn expanded(text: &str) -> Result<String, String> {
        expand_text(text, &Fixed(&[("HOST", "db"), ("EMPTY", "")]), &mut Notes::default())
    }

    #[test]
    fn references_become_values_and_defaults_fill_in() {
        assert_eq!(expanded("${env:HOST}:4317").unwrap(), "db:4317");
        assert_eq!(expanded("${env:NONE:-127.0.0.1}:4317").unwrap(), "127.0.0.1:4317");
        assert_eq!(expanded("${env:EMPTY:-x}").unwrap(), "x");
        assert_eq!(expanded("${env:NONE:-}").unwrap(), "");
        assert_eq!(expanded("p:${file:/run/secrets/password}@").unwrap(), "p:secret@");
    }

    #[test]
    fn two_dollars_are_one_and_a_lone_dollar_stays() {
        assert_eq!(expanded("$$ $${env:HOST} a$b ^x$").unwrap(), "$ ${env:HOST} a$b ^x$");
    }

    #[test]
    fn an_unset_variable_without_default_is_empty_and_noted() {
        let mut notes = Notes::default();
        assert_eq!(expand_text("${env:KEY}", &Fixed(&[]), &mut notes).unwrap(), "");
        assert_eq!(notes.unset, ["KEY"]);
    }

    #[test]
    fn what_cannot_be_resolved_is_a_mistake_that_says_what_to_write() {
        assert!(expanded("${HOST}").unwrap_err().contains("write ${env:NAME}"));
        assert!(expanded("${env:HOST").unwrap_err().contains("without a closing brace"));
        for password in ["ab${s3cret", "ab${s3cret}ef"] {
            assert!(!expanded(password).unwrap_err().contains("s3cret"));
        }
        assert!(expanded("${file:/nope}").unwrap_err().contains("cannot read"));
    }
}
