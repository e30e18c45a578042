//! The types a setting can have, and how each is written.

use std::path::PathBuf;
use std::time::Duration;

use super::yaml::{Node, Value};

/// A type that a setting can have.
pub trait Setting: Sized {
    /// The kind of value, for the reference: `duration`, `size`, ...
    const KIND: &'static str;

    /// Reads the value; `node` is never null, but for an optional setting.
    ///
    /// # Errors
    ///
    /// What was expected, for the user.
    fn from_node(node: &Node) -> Result<Self, String>;
}

/// A number of bytes, written `64MiB`, `1.5GB` or as a plain number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// The text of a scalar.
fn text<'a>(node: &'a Node, expected: &str) -> Result<&'a str, String> {
    match &node.value {
        Value::Scalar { text, .. } => Ok(text),
        _ => Err(format!("expected {expected}, got {}", node.kind())),
    }
}

impl Setting for String {
    const KIND: &'static str = "text";

    fn from_node(node: &Node) -> Result<Self, String> {
        text(node, "a text").map(str::to_owned)
    }
}

impl Setting for PathBuf {
    const KIND: &'static str = "path";

    fn from_node(node: &Node) -> Result<Self, String> {
        text(node, "a path").map(PathBuf::from)
    }
}

impl Setting for bool {
    const KIND: &'static str = "boolean";

    fn from_node(node: &Node) -> Result<Self, String> {
        match text(node, "true or false")? {
            "true" | "True" | "TRUE" => Ok(true),
            "false" | "False" | "FALSE" => Ok(false),
            other => Err(format!("expected true or false, got `{other}`")),
        }
    }
}

impl Setting for u64 {
    const KIND: &'static str = "number";

    fn from_node(node: &Node) -> Result<Self, String> {
        let text = text(node, "a whole number")?;
        text.replace('_', "")
            .parse()
            .map_err(|_| format!("expected a whole number of 0 or more, got `{text}`"))
    }
}

impl Setting for f64 {
    const KIND: &'static str = "number";

    fn from_node(node: &Node) -> Result<Self, String> {
        let text = text(node, "a number")?;
        let number = text.replace('_', "").parse().ok();
        number
            .filter(|number| f64::is_finite(*number) && *number >= 0.0)
            .ok_or_else(|| format!("expected a number of 0 or more, got `{text}`"))
    }
}

impl Setting for usize {
    const KIND: &'static str = "number";

    fn from_node(node: &Node) -> Result<Self, String> {
        let number = u64::from_node(node)?;
        usize::try_from(number).map_err(|_| format!("{number} is too large"))
    }
}

impl Setting for Duration {
    const KIND: &'static str = "duration";

    fn from_node(node: &Node) -> Result<Self, String> {
        let text = text(node, "a duration such as 10s, 5m or 1h30m")?;
        duration(text).ok_or_else(|| format!("expected a duration such as 500ms, 10s, 1h30m or 90d, got `{text}`"))
    }
}

impl Setting for ByteSize {
    const KIND: &'static str = "size";

    fn from_node(node: &Node) -> Result<Self, String> {
        let text = text(node, "a size such as 64MiB")?;
        byte_size(text)
            .ok_or_else(|| format!("expected a size such as 64MiB, 1.5GB or a number of bytes, got `{text}`"))
    }
}

impl<T: Setting> Setting for Option<T> {
    const KIND: &'static str = T::KIND;

    fn from_node(node: &Node) -> Result<Self, String> {
        match &node.value {
            Value::Null => Ok(None),
            Value::Scalar { text, .. } if text.is_empty() => Ok(None),
            _ => T::from_node(node).map(Some),
        }
    }
}

impl<T: Setting> Setting for Vec<T> {
    const KIND: &'static str = "list";

    fn from_node(node: &Node) -> Result<Self, String> {
        match &node.value {
            Value::Sequence(items) => items
                .iter()
                .enumerate()
                .map(|(index, item)| T::from_node(item).map_err(|message| format!("item {}: {message}", index + 1)))
                .collect(),
            // One value stands for a list of one, so that `${env:TOKEN}` can fill a list.
            Value::Scalar { .. } => T::from_node(node).map(|item| vec![item]),
            _ => Err(format!("expected a list, got {}", node.kind())),
        }
    }
}

impl Setting for Vec<(String, String)> {
    const KIND: &'static str = "map";

    fn from_node(node: &Node) -> Result<Self, String> {
        let Value::Mapping(entries) = &node.value else {
            return Err(format!("expected a map, got {}", node.kind()));
        };
        let pair = |entry: &super::yaml::Entry| match &entry.value.value {
            Value::Scalar { text, .. } => Ok((entry.key.clone(), text.clone())),
            Value::Null => Ok((entry.key.clone(), String::new())),
            _ => Err(format!("`{}`: expected a text, got {}", entry.key, entry.value.kind())),
        };
        entries.iter().map(pair).collect()
    }
}

/// The tree itself, for settings with several forms.
impl Setting for Node {
    const KIND: &'static str = "any";

    fn from_node(node: &Node) -> Result<Self, String> {
        Ok(node.clone())
    }
}

/// Go's durations, as the Collector writes them, and `d` for days. `0` needs no unit.
fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let (number, unit, after) = quantity(rest)?;
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = after;
    }
    (!text.is_empty()).then_some(total)
}

fn byte_size(text: &str) -> Option<ByteSize> {
    let text = text.replace('_', "");
    if let Ok(bytes) = text.parse() {
        return Some(ByteSize(bytes));
    }
    let (number, unit, rest) = quantity(&text)?;
    let factor: f64 = match unit {
        "B" => 1.0,
        "KiB" | "Ki" => 1024.0,
        "MiB" | "Mi" => 1024.0 * 1024.0,
        "GiB" | "Gi" => 1024.0 * 1024.0 * 1024.0,
        "TiB" | "Ti" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        "kB" | "KB" | "k" => 1e3,
        "MB" | "M" => 1e6,
        "GB" | "G" => 1e9,
        "TB" | "T" => 1e12,
        _ => return None,
    };
    let bytes = number * factor;
    // 2^53: beyond it a size of this kind is a slip of the pen, and f64 would round it.
    (rest.is_empty() && bytes <= 9_007_199_254_740_992.0).then_some(ByteSize(bytes.round() as u64))
}

/// Splits `1.5h30m` into (1.5, `h`, `30m`).
fn quantity(text: &str) -> Option<(f64, &str, &str)> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, rest) = text.split_at(unit_at);
    let after = rest
        .find(|c: char| c.is_ascii_digit() || c == '.')
        .unwrap_or(rest.len());
    let (unit, rest) = rest.split_at(after);
    Some((number.parse().ok()?, unit.trim(), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_in_the_collector_and_in_days() {
        assert_eq!(duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(duration("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(duration("90d"), Some(Duration::from_secs(90 * 86_400)));
        assert_eq!(duration("0"), Some(Duration::ZERO));
        for wrong in ["", "10", "s", "10 parsecs", "-1s", "1e400s"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn sizes_are_binary_decimal_fractional_or_plain() {
        assert_eq!(byte_size("64MiB"), Some(ByteSize(64 << 20)));
        assert_eq!(byte_size("3.5MiB"), Some(ByteSize(3_670_016)));
        assert_eq!(byte_size("2GB"), Some(ByteSize(2_000_000_000)));
        assert_eq!(byte_size("1024"), Some(ByteSize(1024)));
        for wrong in ["", "MiB", "12 apples", "1MiB2", "-1", "99999999TiB"] {
            assert_eq!(byte_size(wrong), None, "{wrong}");
        }
    }
}
