//! Who may send requests: bearer tokens, or users with passwords, compared in constant time.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use subtle::ConstantTimeEq;

/// The callers that a listener admits. Without tokens and users it admits everybody. Clones share what they know.
#[derive(Clone, Default)]
pub struct Auth {
    known: Arc<RwLock<Known>>,
}

#[derive(Clone, Default)]
struct Known {
    bearer_tokens: Vec<String>,
    /// `user:password`, as HTTP's basic authentication joins them.
    users: Vec<String>,
}

/// Who a request is from; found in the extensions of admitted requests when credentials are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// Who knows the token at this index of the configured list.
    Token(usize),
    /// The user at this index.
    User(usize),
}

/// Why a request was not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unauthorized {
    /// No `Authorization` header, or of a scheme that is not asked for.
    #[error(
        "this listener asks for credentials: send the header `authorization` with what it is configured for, `Bearer <token>` or `Basic <user and password>`"
    )]
    Missing,
    /// Credentials that are not configured.
    #[error("these credentials are not among those configured here")]
    Unknown,
}

impl Auth {
    /// Admits requests with one of these tokens.
    pub fn bearer(tokens: impl IntoIterator<Item = impl Into<String>>) -> Auth {
        Auth::of(Known {
            bearer_tokens: tokens.into_iter().map(Into::into).collect(),
            users: Vec::new(),
        })
    }

    /// Admits these users with their passwords, too. A name has no colon.
    #[must_use]
    pub fn and_users<'a>(self, users: impl IntoIterator<Item = (&'a str, &'a str)>) -> Auth {
        let joined = users.into_iter().map(|(user, password)| format!("{user}:{password}"));
        let mut known = self.known().clone();
        known.users.extend(joined);
        Auth::of(known)
    }

    /// From the next request on admits whom `other` admits, wherever a clone of this one is in use.
    pub fn replace(&self, other: &Auth) {
        let known = other.known().clone();
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = known;
    }

    fn of(known: Known) -> Auth {
        Auth {
            known: Arc::new(RwLock::new(known)),
        }
    }

    fn known(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether credentials are asked for at all.
    pub fn is_required(&self) -> bool {
        self.known().is_required()
    }

    /// Admits the request, saying whose it is, or refuses it.
    pub(crate) fn admit<B>(&self, request: &Request<B>) -> Result<Option<Caller>, Unauthorized> {
        let known = self.known();
        if !known.is_required() || is_cors_preflight(request) {
            return Ok(None);
        }
        let (scheme, credentials) = credentials(request.headers()).ok_or(Unauthorized::Missing)?;
        let found = if scheme.eq_ignore_ascii_case(b"bearer") && !known.bearer_tokens.is_empty() {
            position(&known.bearer_tokens, credentials).map(Caller::Token)
        } else if scheme.eq_ignore_ascii_case(b"basic") && !known.users.is_empty() {
            let presented = STANDARD.decode(credentials).map_err(|_| Unauthorized::Unknown)?;
            position(&known.users, &presented).map(Caller::User)
        } else {
            return Err(Unauthorized::Missing);
        };
        found.map(Some).ok_or(Unauthorized::Unknown)
    }

    /// Says in an answer of status 401 which credentials are asked for.
    pub(crate) fn challenge<B>(&self, response: &mut Response<B>) {
        const BEARER: HeaderValue = HeaderValue::from_static("Bearer realm=\"spanledger\"");
        const BASIC: HeaderValue = HeaderValue::from_static("Basic realm=\"spanledger\", charset=\"UTF-8\"");
        if response.status() != StatusCode::UNAUTHORIZED {
            return;
        }
        let known = self.known();
        for (asked_for, challenge) in [(&known.bearer_tokens, BEARER), (&known.users, BASIC)] {
            if !asked_for.is_empty() {
                response.headers_mut().append(header::WWW_AUTHENTICATE, challenge);
            }
        }
    }
}

impl Known {
    fn is_required(&self) -> bool {
        !self.bearer_tokens.is_empty() || !self.users.is_empty()
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self.known();
        write!(
            f,
            "Auth({} tokens, {} users)",
            known.bearer_tokens.len(),
            known.users.len()
        )
    }
}

/// Where `presented` is among the secrets. Each is compared whole, so that the time taken tells nothing but lengths.
fn position(secrets: &[String], presented: &[u8]) -> Option<usize> {
    let mut found = None;
    for (index, secret) in secrets.iter().enumerate() {
        if bool::from(secret.as_bytes().ct_eq(presented)) {
            found = Some(index);
        }
    }
    found
}

/// Scheme and credentials of the header `authorization`.
fn credentials(headers: &HeaderMap) -> Option<(&[u8], &[u8])> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let end = value.iter().position(|&byte| byte == b' ')?;
    let (scheme, credentials) = value.split_at(end);
    Some((scheme, credentials.trim_ascii()))
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
        assert_eq!(auth.admit(&with("Bearer first")), Ok(Some(Caller::Token(0))));
        assert_eq!(auth.admit(&with("bearer second")), Ok(Some(Caller::Token(1))));
        assert_eq!(auth.admit(&with("BEARER   second ")), Ok(Some(Caller::Token(1))));
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
    fn users_are_admitted_with_their_own_password_only() {
        let auth = Auth::default().and_users([("ann", "one"), ("bob", "two:three")]);
        let basic = |text: &str| auth.admit(&with(&format!("Basic {}", STANDARD.encode(text))));
        assert_eq!(basic("ann:one"), Ok(Some(Caller::User(0))));
        assert_eq!(basic("bob:two:three"), Ok(Some(Caller::User(1))));
        for wrong in ["ann:two:three", "ann:on", "ann:", "ann", "", ":one", "ANN:one"] {
            assert_eq!(basic(wrong), Err(Unauthorized::Unknown), "{wrong}");
        }
        assert_eq!(auth.admit(&with("Basic %%%")), Err(Unauthorized::Unknown));
        assert_eq!(auth.admit(&with("Bearer one")), Err(Unauthorized::Missing));
        let tokens = Auth::bearer(["ann:one"]);
        assert_eq!(
            tokens.admit(&with(&format!("Basic {}", STANDARD.encode("ann:one")))),
            Err(Unauthorized::Missing)
        );
    }

    #[test]
    fn a_refusal_says_which_credentials_are_asked_for() {
        let challenges = |auth: Auth| {
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::UNAUTHORIZED;
            auth.challenge(&mut response);
            let values = response.headers().get_all(header::WWW_AUTHENTICATE).iter();
            values.map(|it| it.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let basic = "Basic realm=\"spanledger\", charset=\"UTF-8\"";
        let bearer = "Bearer realm=\"spanledger\"";
        assert_eq!(challenges(Auth::bearer(["a"]).and_users([("u", "p")])), [bearer, basic]);
        assert_eq!(challenges(Auth::default().and_users([("u", "p")])), [basic]);
    }

    #[test]
    fn tokens_that_are_replaced_no_longer_count_and_the_new_ones_do_in_every_clone() {
        let auth = Auth::bearer(["old"]);
        let in_use = auth.clone();
        auth.replace(&Auth::bearer(["new"]));
        assert_eq!(in_use.admit(&with("Bearer old")), Err(Unauthorized::Unknown));
        assert_eq!(in_use.admit(&with("Bearer new")), Ok(Some(Caller::Token(0))));
        auth.replace(&Auth::default());
        assert_eq!(in_use.admit(&Request::new(())), Ok(None));
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
        let auth = Auth::bearer(["secret"]).and_users([("ann", "secret")]);
        assert_eq!(format!("{auth:?}"), "Auth(1 tokens, 1 users)");
    }
}
