//! Who may send requests: bearer tokens, compared in constant time.

use std::fmt;

use http::{HeaderMap, HeaderValue, Method, Request, header};
use subtle::ConstantTimeEq;

/// The callers that a listener admits. Without tokens it admits everybody.
#[derive(Clone, Default)]
pub struct Auth {
    bearer_tokens: Vec<String>,
}

/// Which token a request carried; found in the extensions of admitted requests when tokens are configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Index of the token in the configured list.
    pub token: usize,
}

/// Why a request was not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unauthorized {
    /// No `Authorization` header, or not of the bearer scheme.
    #[error("this listener asks for credentials: send the header `authorization: Bearer <token>`")]
    Missing,
    /// A token that is not configured.
    #[error("the bearer token is not one of those configured here")]
    Unknown,
}

impl Unauthorized {
    /// The value of `WWW-Authenticate`.
    pub const CHALLENGE: HeaderValue = HeaderValue::from_static("Bearer realm=\"spanledger\"");
}

impl Auth {
    /// Admits requests with one of these tokens; everybody if there are none.
    pub fn bearer(tokens: impl IntoIterator<Item = impl Into<String>>) -> Auth {
        Auth {
            bearer_tokens: tokens.into_iter().map(Into::into).collect(),
        }
    }

    /// Whether credentials are asked for at all.
    pub fn is_required(&self) -> bool {
        !self.bearer_tokens.is_empty()
    }

    /// Admits the request, saying by which token, or refuses it.
    pub(super) fn admit<B>(&self, request: &Request<B>) -> Result<Option<Caller>, Unauthorized> {
        if !self.is_required() || is_cors_preflight(request) {
            return Ok(None);
        }
        let presented = bearer_token(request.headers()).ok_or(Unauthorized::Missing)?;
        // Every token is compared whole, so that the time taken tells nothing but lengths.
        let mut found = None;
        for (index, token) in self.bearer_tokens.iter().enumerate() {
            if bool::from(token.as_bytes().ct_eq(presented)) {
                found = Some(Caller { token: index });
            }
        }
        found.map(Some).ok_or(Unauthorized::Unknown)
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Auth({} tokens)", self.bearer_tokens.len())
    }
}

fn bearer_token(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked("bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

fn is_cors_preflight<B>(request: &Request<B>) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ORIGIN)
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(authorization: &str) -> Request<()> {
        Request::builder()
            .header(header::AUTHORIZATION, authorization)
            .body(())
            .unwrap()
    }

    #[test]
    fn without_tokens_everybody_is_admitted() {
        assert_eq!(Auth::default().admit(&Request::new(())), Ok(None));
    }

    #[test]
    fn each_configured_token_is_admitted_whatever_the_case_of_the_scheme_and_the_caller_is_known() {
        let auth = Auth::bearer(["first", "second"]);
        assert_eq!(auth.admit(&with("Bearer first")), Ok(Some(Caller { token: 0 })));
        assert_eq!(auth.admit(&with("bearer second")), Ok(Some(Caller { token: 1 })));
        assert_eq!(auth.admit(&with("BEARER   second ")), Ok(Some(Caller { token: 1 })));
    }

    #[test]
    fn missing_wrong_and_partial_tokens_are_refused() {
        let auth = Auth::bearer(["secret"]);
        assert_eq!(auth.admit(&Request::new(())), Err(Unauthorized::Missing));
        assert_eq!(auth.admit(&with("Basic c2VjcmV0")), Err(Unauthorized::Missing));
        assert_eq!(auth.admit(&with("Bearer")), Err(Unauthorized::Missing));
        for wrong in ["Bearer ", "Bearer secre", "Bearer secrets", "Bearer SECRET"] {
            assert_eq!(auth.admit(&with(wrong)), Err(Unauthorized::Unknown), "{wrong}");
        }
    }

    #[test]
    fn a_preflight_passes_because_browsers_send_it_without_credentials_and_other_options_do_not() {
        let auth = Auth::bearer(["secret"]);
        let options = Request::builder()
            .method(Method::OPTIONS)
            .header(header::ORIGIN, "https://app.example");
        let preflight = options
            .header(header::ACCESS_CONTROL_REQUEST_METHOD, "POST")
            .body(())
            .unwrap();
        assert_eq!(auth.admit(&preflight), Ok(None));
        let plain = Request::builder().method(Method::OPTIONS).body(()).unwrap();
        assert_eq!(auth.admit(&plain), Err(Unauthorized::Missing));
    }

    #[test]
    fn debug_output_does_not_show_tokens() {
        assert_eq!(format!("{:?}", Auth::bearer(["secret"])), "Auth(1 tokens)");
    }
}
