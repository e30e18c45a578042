//! Which names metrics and labels may have, and what must not become a label.

/// Whether Prometheus takes this as the name of a metric. Colons are for recording rules, not for us.
pub fn is_metric_name(name: &str) -> bool {
    is_label_name(name)
}

/// Whether Prometheus takes this as the name of a label.
pub fn is_label_name(name: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    !name.is_empty() && name.bytes().all(word) && !name.starts_with(|first: char| first.is_ascii_digit())
}

/// Whether a label name has a meaning of its own in the exposition, or to Prometheus.
pub fn reserved_label(name: &str) -> bool {
    name.starts_with("__") || matches!(name, "le" | "quantile" | OVERFLOW_LABEL)
}

/// Whether a metric name belongs to the program's own metrics.
pub fn reserved_metric(name: &str) -> bool {
    name.starts_with("spanledger_") || name.starts_with("process_")
}

/// The one label of the series that takes what is over the cap.
pub const OVERFLOW_LABEL: &str = "otel_metric_overflow";

/// Whether an attribute holds an id that must never be a label. `security.namespace` is the id of the organization.
pub fn identifies_someone(key: &str) -> bool {
    matches!(
        key,
        "user.id"
            | "enduser.id"
            | "session.id"
            | "organization.id"
            | "security.namespace"
            | "workflow.execution_id"
            | "trace_id"
            | "trace.id"
            | "span_id"
            | "span.id"
    )
}

/// The label name for an attribute key: what Prometheus does not take becomes `_`.
pub fn label_name_of(key: &str) -> String {
    let mut name: String = key
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' })
        .collect();
    if name.starts_with(|first: char| first.is_ascii_digit()) {
        name.insert(0, '_');
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attribute_keys_become_label_names_that_prometheus_takes() {
        for (key, name) in [
            ("service.name", "service_name"),
            ("k8s.pod-name", "k8s_pod_name"),
            ("2fast", "_2fast"),
            ("größe", "gr__e"),
        ] {
            assert_eq!(label_name_of(key), name);
            assert!(is_label_name(name));
        }
        assert!(!is_label_name(""));
        assert!(!is_label_name("a.b"));
        assert!(!is_label_name("1a"));
    }
}
