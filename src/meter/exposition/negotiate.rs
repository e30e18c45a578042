//! Which format a scraper wants.

/// A format of the exposition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExpositionFormat {
    /// Prometheus text 0.0.4.
    #[default]
    Text,
    /// OpenMetrics 1.0: with exemplars and `_created`.
    OpenMetrics,
}

impl ExpositionFormat {
    /// The value of `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            ExpositionFormat::Text => "text/plain; version=0.0.4; charset=utf-8",
            ExpositionFormat::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// The format that the value of an `Accept` header prefers: OpenMetrics only when it is named, and not less wanted
    /// than text. Whoever accepts neither gets text, as from any Prometheus client.
    pub fn negotiate(accept: Option<&str>) -> Self {
        let mut open_metrics = 0.0;
        let mut text = 0.0;
        for range in accept.unwrap_or_default().split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
            let mut quality: f32 = 1.0;
            let mut version_is_known = true;
            for parameter in parts {
                let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
                match name.trim().to_ascii_lowercase().as_str() {
                    "q" => quality = value.trim().parse().unwrap_or(0.0),
                    "version" => {
                        version_is_known = matches!(value.trim().trim_matches('"'), "1.0.0" | "0.0.1" | "0.0.4")
                    }
                    _ => {}
                }
            }
            match media_type.as_str() {
                "application/openmetrics-text" if version_is_known => open_metrics = quality.max(open_metrics),
                "text/plain" | "text/*" | "*/*" => text = quality.max(text),
                _ => {}
            }
        }
        if open_metrics > 0.0 && open_metrics >= text {
            Self::OpenMetrics
        } else {
            Self::Text
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ExpositionFormat::{OpenMetrics, Text};
    use super::*;

    #[test]
    fn open_metrics_is_for_those_who_name_it_and_do_not_prefer_text() {
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
            application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
            text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        let cases = [
            (None, Text),
            (Some(""), Text),
            (Some("*/*"), Text),
            (Some("text/html, */*;q=0.1"), Text),
            (Some(prometheus_3), OpenMetrics),
            (Some("application/openmetrics-text"), OpenMetrics),
            (Some("Application/OpenMetrics-Text; version=\"1.0.0\""), OpenMetrics),
            (Some("application/openmetrics-text; version=2.0.0"), Text),
            (Some("application/openmetrics-text;q=0.2, text/plain;q=0.8"), Text),
            (Some("application/openmetrics-text;q=0"), Text),
            (Some("application/json"), Text),
        ];
        for (accept, format) in cases {
            assert_eq!(ExpositionFormat::negotiate(accept), format, "{accept:?}");
        }
    }
}
