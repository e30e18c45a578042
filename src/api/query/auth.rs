//! Who may ask. The page itself is for everybody who can connect, since a browser loads it without a token; so tokens
//! are asked for here and not by the listener.

use std::fmt;
use std::net::IpAddr;

use http::{HeaderMap, Request, header};
use subtle::ConstantTimeEq as _;

use super::QueryError;
use crate::listen::Unauthorized;

/// A token, and what it shows.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ApiToken {
    /// The secret.
    pub token: String,
    /// The only organization that the token shows; none: all rows.
    pub organization: Option<String>,
}

impl fmt::Debug for ApiToken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("ApiToken")
            .field("organization", &self.organization)
            .finish_non_exhaustive()
    }
}

/// Decides who may ask.
#[derive(Debug)]
pub(super) struct Access {
    tokens: Vec<ApiToken>,
    any_host: bool,
}

impl Access {
    pub(super) fn new(tokens: Vec<ApiToken>, insecure: bool) -> Access {
        Access {
            any_host: insecure || !tokens.is_empty(),
            tokens,
        }
    }

    /// The organization that the caller is confined to, if any.
    pub(super) fn admit<B>(&self, request: &Request<B>) -> Result<Option<String>, QueryError> {
        if !self.any_host && !is_this_machine(request) {
            return Err(QueryError::Misdirected);
        }
        if self.tokens.is_empty() {
            return Ok(None);
        }
        let presented = bearer(request.headers()).ok_or(Unauthorized::Missing)?;
        // Every token is compared whole, so that the time taken tells nothing but lengths.
        let mut found = None;
        for token in &self.tokens {
            if bool::from(token.token.as_bytes().ct_eq(presented)) {
                found = Some(token);
            }
        }
        let token = found.ok_or(Unauthorized::Unknown)?;
        Ok(token.organization.clone())
    }
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked("bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// Whether the request was sent to an address or to `localhost`. A name that a stranger chose is neither.
fn is_this_machine<B>(request: &Request<B>) -> bool {
    // HTTP/2 has the authority in the URI, HTTP/1.1 in a header; HTTP/1.0 may have none.
    let authority = match request.uri().authority() {
        Some(authority) => authority.as_str(),
        None => match request.headers().get(header::HOST) {
            Some(host) => host.to_str().unwrap_or("?"),
            None => return true,
        },
    };
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost") || host.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(host: &str, authorization: Option<&str>) -> Request<()> {
        let request = Request::builder()
            .uri("/api/v1/code-exec-logs")
            .header(header::HOST, host);
        match authorization {
            Some(value) => request.header(header::AUTHORIZATION, value),
            None => request,
        }
        .body(())
        .unwrap()
    }

    #[test]
    fn without_tokens_only_names_of_this_machine_are_answered() {
        let access = Access::new(Vec::new(), false);
        for host in [
            "localhost:8890",
            "127.0.0.1:8890",
            "[::1]:8890",
            "LOCALHOST.",
            "x.localhost",
            "10.0.0.7",
        ] {
            assert_eq!(access.admit(&asking(host, None)).unwrap(), None, "{host}");
        }
        for host in [
            "attacker.example:8890",
            "localhost.attacker.example",
            "127.0.0.1.attacker.example",
        ] {
            assert!(
                matches!(access.admit(&asking(host, None)), Err(QueryError::Misdirected)),
                "{host}"
            );
        }
        assert_eq!(
            Access::new(Vec::new(), true)
                .admit(&asking("any.example", None))
                .unwrap(),
            None
        );
    }

    #[test]
    fn a_token_shows_everything_or_its_organization() {
        let tokens = vec![
            ApiToken {
                token: "all".to_owned(),
                organization: None,
            },
            ApiToken {
                token: "one".to_owned(),
                organization: Some("org-1".to_owned()),
            },
        ];
        let access = Access::new(tokens, false);
        let admit = |authorization| access.admit(&asking("api.example", authorization));
        assert_eq!(admit(Some("Bearer all")).unwrap(), None);
        assert_eq!(admit(Some("bearer one")).unwrap().as_deref(), Some("org-1"));
        for wrong in [None, Some("Bearer al"), Some("Bearer "), Some("Basic all"), Some("all")] {
            assert!(matches!(admit(wrong), Err(QueryError::Unauthorized(_))), "{wrong:?}");
        }
    }

    #[test]
    fn debug_output_does_not_show_tokens() {
        let token = ApiToken {
            token: "s3cr3t".to_owned(),
            organization: None,
        };
        assert!(!format!("{token:?}").contains("s3cr3t"));
    }
}
