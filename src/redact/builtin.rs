//! The built-in sets: what secrets of well-known kinds look like.
//!
//! They look for a form, not for a word: `password` alone is no secret, `password=hunter2` is one. A pattern that has a
//! rare literal in it costs next to nothing.

/// The names of the sets.
pub(super) const NAMES: [&str; 3] = ["tokens", "keys", "email"];

/// The patterns of a set.
pub(super) fn set(name: &str) -> Option<&'static [&'static str]> {
    match name {
        "tokens" => Some(&TOKENS),
        "keys" => Some(&KEYS),
        "email" => Some(&EMAIL),
        _ => None,
    }
}

/// What proves who somebody is, for a while.
const TOKENS: [&str; 10] = [
    // JSON Web Tokens: `{"` in base64 begins with `eyJ`.
    r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*)?",
    // Authorization headers.
    r"(?i:bearer)[ +]+[A-Za-z0-9._~+/=-]{16,}",
    r"(?i:basic)[ +]+[A-Za-z0-9+/]{16,}={0,2}",
    // A user and a password in a URL.
    r"://[^/\s:@]*:[^/\s@]+@",
    // GitHub, GitLab, Slack, npm, PyPI, Hugging Face.
    r"(?:ghp|gho|ghu|ghs|ghr|github_pat)_[A-Za-z0-9_]{20,}",
    r"glpat-[A-Za-z0-9_-]{16,}",
    r"xox[abeoprs]-[A-Za-z0-9-]{10,}",
    r"npm_[A-Za-z0-9]{30,}",
    r"pypi-[A-Za-z0-9_-]{16,}",
    r"hf_[A-Za-z0-9]{20,}",
];

/// What opens a door until somebody changes the lock.
const KEYS: [&str; 8] = [
    // OpenAI, Anthropic and those who follow them; Stripe; E2B.
    r"sk-[A-Za-z0-9_-]{16,}",
    r"[prs]k_(?:live|test)_[A-Za-z0-9]{10,}",
    r"e2b_[a-f0-9]{20,}",
    // Google, AWS.
    r"AIza[A-Za-z0-9_-]{30,}",
    r"(?:AKIA|ASIA)[A-Z0-9]{16}",
    // A private key in PEM, also one that was cut off.
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z ]*PRIVATE KEY-----|\z)",
    // An assignment, in any of the usual notations: `api_key=…`, `"password": "…"`, `--secret …`.
    r#"(?i:api[_-]?key|apikey|secret[_-]?key|client[_-]?secret|access[_-]?key|access[_-]?token|auth[_-]?token)\\?["']?\s*[:=]\s*\\?["']?[^\s"',;&\\]{6,}"#,
    r#"(?i:password|passwd|pwd|secret)\\?["']?\s*[:=]\s*\\?["']?[^\s"',;&\\]{4,}"#,
];

/// E-mail addresses, also with the `@` percent-encoded in a URL.
const EMAIL: [&str; 1] = [r"[\p{L}\p{N}._+'-]+(?:@|%40)[\p{L}\p{N}-]+(?:\.[\p{L}\p{N}-]+)*\.\p{L}{2,}"];
