//! The record of what was read, as an example file, as a reference, as the effective configuration.

use super::section::{KeyRecord, RecordOf, Secret};
use super::yaml::{Node, Value};

/// What stands in place of a secret.
const REDACTED: &str = "[redacted]";

/// `config.example.yaml`: every key with its default and meaning. Sections named in `commented` are commented out.
pub fn example(header: &str, records: &[KeyRecord], commented: &[&str]) -> String {
    let mut out = String::from(header);
    for record in records {
        let top = record.path.first().map_or("", String::as_str);
        let prefix = if commented.contains(&top) { "# " } else { "" };
        let indent = "  ".repeat(record.path.len().saturating_sub(1));
        let key = record.path.last().map_or("", String::as_str);
        if record.path.len() == 1 {
            out.push('\n');
        }
        let (value, note) = match &record.of {
            RecordOf::Section => (String::new(), record.meaning.to_owned()),
            RecordOf::Setting { default, .. } => (format!(" {}", quoted_default(default)), record.meaning.to_owned()),
        };
        let line = format!("{prefix}{indent}{key}:{}", value.trim_end());
        if note.is_empty() {
            out.push_str(&line);
        } else {
            out.push_str(&format!("{line:<72} # {note}"));
        }
        out.push('\n');
    }
    out
}

/// A default that YAML would read otherwise than as one value is quoted.
fn quoted_default(default: &str) -> String {
    if default.contains("${") {
        format!("\"{default}\"")
    } else {
        default.to_owned()
    }
}

/// The table of `docs/configuration.md`.
pub fn reference(records: &[KeyRecord]) -> String {
    let mut out = String::new();
    for record in records {
        let path = record.path.join(".");
        match &record.of {
            RecordOf::Section if record.path.len() == 1 => {
                out.push_str(&format!("\n## `{path}`\n\n{}\n\n", record.meaning));
                out.push_str("| key | kind | default | meaning |\n|---|---|---|---|\n");
            }
            RecordOf::Section => {}
            RecordOf::Setting { kind, default, .. } => {
                if record.path.len() == 1 {
                    out.push_str(&format!("\n## `{path}`\n\n"));
                    out.push_str("| key | kind | default | meaning |\n|---|---|---|---|\n");
                }
                let default = if default.is_empty() {
                    String::new()
                } else {
                    format!("`{default}`")
                };
                out.push_str(&format!("| `{path}` | {kind} | {default} | {} |\n", record.meaning));
            }
        }
    }
    out
}

/// The effective configuration as YAML, secrets redacted.
pub fn effective(records: &[KeyRecord]) -> String {
    let mut out = String::new();
    for record in records {
        let indent = "  ".repeat(record.path.len().saturating_sub(1));
        let key = key_text(record.path.last().map_or("", String::as_str));
        match &record.of {
            RecordOf::Section => {
                let empty = !records
                    .iter()
                    .any(|other| other.path.len() > record.path.len() && other.path.starts_with(&record.path));
                out.push_str(&format!("{indent}{key}:{}\n", if empty { " {}" } else { "" }));
            }
            RecordOf::Setting { value, secret, .. } => {
                let value = match secret {
                    Secret::Nothing => value.clone(),
                    Secret::Query => redacted(value, without_query),
                    Secret::Everything => redacted(value, without_credentials),
                };
                out.push_str(&format!("{indent}{key}: {}\n", inline(&value)));
            }
        }
    }
    out
}

/// Every setting's value by path, secrets included: for telling what changed, never for printing.
pub fn values(records: &[KeyRecord]) -> std::collections::BTreeMap<Vec<String>, String> {
    let value = |record: &KeyRecord| match &record.of {
        RecordOf::Setting { value, .. } => Some((record.path.clone(), inline(value))),
        RecordOf::Section => None,
    };
    records.iter().filter_map(value).collect()
}

/// Hides what `hide` leaves out of every text below `node`, keeping the shape and the keys.
fn redacted(node: &Node, hide: fn(&str) -> String) -> Node {
    let value = match &node.value {
        Value::Null => Value::Null,
        Value::Scalar { text, .. } if text.is_empty() => node.value.clone(),
        Value::Scalar { text, .. } => Value::Scalar {
            text: hide(text),
            quoted: true,
        },
        Value::Sequence(items) => Value::Sequence(items.iter().map(|item| redacted(item, hide)).collect()),
        Value::Mapping(entries) => {
            let hidden = |entry: &super::yaml::Entry| super::yaml::Entry {
                value: redacted(&entry.value, hide),
                ..entry.clone()
            };
            Value::Mapping(entries.iter().map(hidden).collect())
        }
    };
    Node {
        value,
        at: node.at.clone(),
    }
}

fn without_query(url: &str) -> String {
    match url.split_once('?') {
        Some((before, _)) => format!("{before}?{REDACTED}"),
        None => url.to_owned(),
    }
}

/// Of the URL of a database only the password is a secret; of anything else everything is, also of what looks like a URL.
fn without_credentials(text: &str) -> String {
    if text.starts_with("sqlite:") {
        return text.to_owned();
    }
    let is_database = |scheme: &str| matches!(scheme, "postgres" | "postgresql");
    let Some((scheme, rest)) = text.split_once("://").filter(|(scheme, _)| is_database(scheme)) else {
        return REDACTED.to_owned();
    };
    // A password that was not percent-encoded may have a slash: it reaches to the last `@`.
    let host_begins = rest.rfind('@').unwrap_or(0);
    let authority_end = rest[host_begins..]
        .find(['/', '?'])
        .map_or(rest.len(), |end| host_begins + end);
    let (authority, path) = rest.split_at(authority_end);
    // A query may hold a password too (`?password=`, `?sslpassword=`).
    let path = if path.to_ascii_lowercase().contains("password") {
        REDACTED
    } else {
        path
    };
    match authority.rsplit_once('@') {
        // The last `@` was one of the query.
        Some(_) if authority.to_ascii_lowercase().contains("password=") => format!("{scheme}://{REDACTED}"),
        Some((user, host)) => {
            let user = user.split(':').next().unwrap_or_default();
            format!("{scheme}://{user}:{REDACTED}@{host}{path}")
        }
        None => format!("{scheme}://{authority}{path}"),
    }
}

fn inline(node: &Node) -> String {
    match &node.value {
        Value::Null => String::new(),
        Value::Scalar { text, quoted } => scalar_text(text, *quoted),
        Value::Sequence(items) => format!("[{}]", items.iter().map(inline).collect::<Vec<_>>().join(", ")),
        Value::Mapping(entries) => {
            let pair = |entry: &super::yaml::Entry| format!("{}: {}", key_text(&entry.key), inline(&entry.value));
            format!("{{{}}}", entries.iter().map(pair).collect::<Vec<_>>().join(", "))
        }
    }
}

fn key_text(key: &str) -> String {
    let plain = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
    if plain { key.to_owned() } else { json_text(key) }
}

fn scalar_text(text: &str, quoted: bool) -> String {
    let plain = !quoted
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c))
        && !text.is_empty()
        && !text.starts_with('-');
    if plain {
        text.to_owned()
    } else {
        json_text(&text.replace('$', "$$"))
    }
}

/// A JSON string is a YAML double-quoted scalar.
fn json_text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_url_the_password_is_hidden_and_of_anything_else_all() {
        assert_eq!(
            without_credentials("postgres://u:p@h:5432/d"),
            "postgres://u:[redacted]@h:5432/d"
        );
        assert_eq!(
            without_credentials("postgres://u:p@ss@h/d"),
            "postgres://u:[redacted]@h/d"
        );
        assert_eq!(
            without_credentials("postgres://h/d?password=x"),
            "postgres://h[redacted]"
        );
        for query in ["user=a@srv&password=x", "password=x&user=a@srv"] {
            let url = format!("postgres://h/d?{query}");
            assert_eq!(without_credentials(&url), "postgres://[redacted]");
        }
        assert_eq!(without_credentials("sqlite:./x.db"), "sqlite:./x.db");
        assert_eq!(
            without_credentials("postgres://u:p/a@ss?x@h/d"),
            "postgres://u:[redacted]@h/d"
        );
        assert_eq!(without_credentials("token"), REDACTED);
        assert_eq!(without_credentials("https://token"), REDACTED);
    }

    #[test]
    fn a_printed_text_reads_back_as_the_same_text() {
        for text in ["plain", "with: colon", "a\"b\\c", "$5", "line\nbreak", "- dash", ""] {
            let printed = format!("key: {}", scalar_text(text, false));
            let node = super::super::yaml::parse("p", &printed).unwrap();
            let environment = super::super::expand::tests::Fixed(&[]);
            let node = super::super::expand::expand(node, &environment, &mut Default::default()).unwrap();
            let Value::Scalar { text: back, .. } = &node.get("key").unwrap().value else {
                panic!("{printed}")
            };
            assert_eq!(back, text);
        }
    }
}
