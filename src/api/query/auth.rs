//! Who may ask. The page itself is for everybody who can connect, since a browser loads it without a token; so tokens
//! are asked for here and not by the listener.

use std::fmt;
use std::net::IpAddr;
use std::sync::{PoisonError, RwLock};

use http::uri::Authority;
use http::{Request, Response, header};

use super::QueryError;
use crate::listen::{Auth, Caller};

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
    known: RwLock<Known>,
    any_host: bool,
}

#[derive(Debug)]
struct Known {
    auth: Auth,
    /// What each token is confined to.
    organizations: Vec<Option<String>>,
}

impl Access {
    pub(super) fn new(tokens: Vec<ApiToken>, users: &[(String, String)], insecure: bool) -> Access {
        let known = Known::of(tokens, users);
        Access {
            any_host: insecure || known.auth.is_required(),
            known: RwLock::new(known),
        }
    }

    /// Asks for these credentials from now on, unless there were none, or would be none: whether the listener is open at
    /// all was decided with that in mind.
    pub(super) fn replace(&self, tokens: Vec<ApiToken>, users: &[(String, String)]) {
        let wanted = Known::of(tokens, users);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.auth.is_required() && wanted.auth.is_required() {
            *known = wanted;
        }
    }

    /// The organization that the caller is confined to, if any.
    pub(super) fn admit<B>(&self, request: &Request<B>) -> Result<Option<String>, QueryError> {
        if !self.any_host && !is_this_machine(request) {
            return Err(QueryError::Misdirected);
        }
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let caller = known.auth.admit(request)?;
        Ok(match caller {
            Some(Caller::Token(index)) => known.organizations.get(index).cloned().flatten(),
            Some(Caller::User(_)) | None => None,
        })
    }

    /// Says in an answer of status 401 which credentials are asked for.
    pub(super) fn challenge<B>(&self, response: &mut Response<B>) {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.auth.challenge(response);
    }
}

impl Known {
    fn of(tokens: Vec<ApiToken>, users: &[(String, String)]) -> Known {
        let (tokens, organizations): (Vec<_>, Vec<_>) = tokens
            .into_iter()
            .map(|token| (token.token, token.organization))
            .unzip();
        let users = users.iter().map(|(user, password)| (user.as_str(), password.as_str()));
        Known {
            auth: Auth::bearer(tokens).and_users(users),
            organizations,
        }
    }
}

/// Whether the request was sent to an address or to `localhost`, wherever it says so. A name that a stranger chose is
/// neither.
fn is_this_machine<B>(request: &Request<B>) -> bool {
    // HTTP/2 has the authority in the URI, HTTP/1.1 in a header, or in both; HTTP/1.0 may have none.
    let hosts = request.headers().get_all(header::HOST).into_iter();
    let mut named = hosts.map(|host| Authority::try_from(host.as_bytes()).ok());
    let in_uri = request.uri().authority();
    named.all(|host| host.is_some_and(|host| names_this_machine(&host))) && in_uri.is_none_or(names_this_machine)
}

fn names_this_machine(authority: &Authority) -> bool {
    // Nobody needs a user here, and with one it is easy to misread where the name begins.
    if authority.as_str().contains('@') {
        return false;
    }
    let host = authority.host().trim_end_matches('.').to_ascii_lowercase();
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    host == "localhost" || host.ends_with(".localhost") || address.unwrap_or(&host).parse::<IpAddr>().is_ok()
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
        let access = Access::new(Vec::new(), &[], false);
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
            "localhost:80@attacker.example",
            "localhost@attacker.example",
            "attacker.example#localhost",
            "localhost localhost",
            "",
        ] {
            assert!(
                matches!(access.admit(&asking(host, None)), Err(QueryError::Misdirected)),
                "{host}"
            );
        }
        assert_eq!(
            Access::new(Vec::new(), &[], true)
                .admit(&asking("any.example", None))
                .unwrap(),
            None
        );
    }

    #[test]
    fn every_name_that_a_request_gives_has_to_be_of_this_machine() {
        let access = Access::new(Vec::new(), &[], false);
        let admits = |uri: &str, hosts: &[&str]| {
            let mut request = Request::builder().uri(uri);
            for host in hosts {
                request = request.header(header::HOST, *host);
            }
            access.admit(&request.body(()).unwrap()).is_ok()
        };
        let (here, there) = (
            "http://127.0.0.1:8890/api/v1/pipeline",
            "http://attacker.example/api/v1/pipeline",
        );
        assert!(admits(here, &["127.0.0.1:8890"]) && admits(here, &[]) && admits("/api/v1/pipeline", &[]));
        assert!(!admits(there, &["127.0.0.1:8890"]) && !admits(here, &["attacker.example"]));
        assert!(!admits("/api/v1/pipeline", &["localhost", "attacker.example"]));
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
        let access = Access::new(tokens, &[], false);
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
