//! Cross-origin requests: which web pages may send, as browsers ask it (Fetch standard, "HTTP-CORS protocol").

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};

use super::options::CorsOptions;
use crate::listen::Body;

/// Headers that OTLP needs and a page may always send.
const OTLP_HEADERS: &str = "accept, authorization, content-encoding, content-type, x-requested-with";

const REQUEST_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-allow-private-network");
const TRUE: HeaderValue = HeaderValue::from_static("true");

/// [`CorsOptions`], made ready.
pub(super) struct Cors {
    origins: Vec<Pattern>,
    /// `None`: whatever the page asks for.
    headers: Option<HeaderValue>,
    max_age: Option<HeaderValue>,
}

/// A text with at most one `*`.
#[derive(Debug, PartialEq, Eq)]
enum Pattern {
    Exact(String),
    Around { prefix: String, suffix: String },
}

impl Cors {
    pub(super) fn new(options: &CorsOptions) -> Cors {
        let headers = if options.allowed_headers.iter().any(|header| header == "*") {
            None
        } else {
            let all: Vec<&str> = std::iter::once(OTLP_HEADERS)
                .chain(options.allowed_headers.iter().map(String::as_str))
                .collect();
            HeaderValue::try_from(all.join(", ").to_ascii_lowercase()).ok()
        };
        Cors {
            origins: options
                .allowed_origins
                .iter()
                .map(|origin| Pattern::new(origin))
                .collect(),
            headers,
            max_age: Some(options.max_age.as_secs())
                .filter(|&seconds| seconds > 0)
                .map(HeaderValue::from),
        }
    }

    /// Whether this is a browser's question whether a page may send.
    pub(super) fn is_preflight(head: &Parts) -> bool {
        head.method == Method::OPTIONS
            && head.headers.contains_key(header::ORIGIN)
            && head.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
    }

    /// The answer to such a question of a page that may send.
    pub(super) fn preflight(&self, head: &Parts) -> Option<Response<Body>> {
        let origin = self.allowed(&head.headers)?;
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        Cors::vary(headers);
        allow(origin, headers);
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST"));
        let asked = head.headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
        if let Some(allowed) = self.headers.as_ref().or(asked) {
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed.clone());
        }
        if let Some(max_age) = &self.max_age {
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, max_age.clone());
        }
        if head.headers.get(REQUEST_PRIVATE_NETWORK) == Some(&TRUE) {
            headers.insert(ALLOW_PRIVATE_NETWORK, TRUE);
        }
        Some(response)
    }

    /// Says what the answer to a preflight depends on, for caches.
    pub(super) fn vary(headers: &mut HeaderMap) {
        headers.insert(
            header::VARY,
            HeaderValue::from_static("origin, access-control-request-headers"),
        );
    }

    /// Lets the page that sent `request` read an answer with these `headers`, if it may send at all.
    pub(super) fn expose(&self, request: &HeaderMap, headers: &mut HeaderMap) {
        if self.origins.is_empty() {
            return;
        }
        headers.append(header::VARY, HeaderValue::from_static("origin"));
        if let Some(origin) = self.allowed(request) {
            allow(origin, headers);
            headers.insert(
                header::ACCESS_CONTROL_EXPOSE_HEADERS,
                HeaderValue::from_static("retry-after"),
            );
        }
    }

    fn allowed<'a>(&self, request: &'a HeaderMap) -> Option<&'a HeaderValue> {
        let origin = request.get(header::ORIGIN)?;
        let text = origin.to_str().ok()?.to_ascii_lowercase();
        self.origins
            .iter()
            .any(|pattern| pattern.matches(&text))
            .then_some(origin)
    }
}

/// The origin is repeated instead of `*`: `navigator.sendBeacon`, which exporters in browsers use, always sends
/// credentials, and browsers accept no `*` then. Nothing here is granted by cookies.
fn allow(origin: &HeaderValue, headers: &mut HeaderMap) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
}

impl Pattern {
    fn new(text: &str) -> Pattern {
        let text = text.trim_end_matches('/').to_ascii_lowercase();
        match text.split_once('*') {
            None => Pattern::Exact(text),
            Some((prefix, suffix)) => Pattern::Around {
                prefix: prefix.to_owned(),
                suffix: suffix.to_owned(),
            },
        }
    }

    fn matches(&self, origin: &str) -> bool {
        match self {
            Pattern::Exact(exact) => origin == exact,
            Pattern::Around { prefix, suffix } => {
                origin.len() >= prefix.len() + suffix.len() && origin.starts_with(prefix) && origin.ends_with(suffix)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_match_exactly_or_around_one_star_in_any_case() {
        for (pattern, origin, expected) in [
            ("https://app.example.com", "https://app.example.com", true),
            ("https://App.Example.com/", "https://app.example.com", true),
            ("https://app.example.com", "https://app.example.com.evil.org", false),
            ("https://*.example.com", "https://a.b.example.com", true),
            ("https://*.example.com", "https://example.com", false),
            ("https://*.example.com", "http://app.example.com", false),
            ("http://localhost:*", "http://localhost:3000", true),
            ("*", "null", true),
            ("ab*ba", "aba", false),
        ] {
            assert_eq!(Pattern::new(pattern).matches(origin), expected, "{pattern} {origin}");
        }
    }
}
