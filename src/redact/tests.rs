//! What is cut and what is not.

use super::*;

fn clean(items: &[&str], text: &str) -> String {
    Patterns::compile(items).unwrap().clean(text).into_owned()
}

/// Secrets as they look, one of each kind, by the set that knows them.
pub(crate) const SECRETS: [(&str, &str); 20] = [
    (
        "tokens",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",
    ),
    ("tokens", "Bearer abcdefghijklmnop1234"),
    ("tokens", "bearer  abcdefghijklmnop1234=="),
    ("tokens", "Basic dXNlcjpwYXNzd29yZDEyMw=="),
    ("tokens", "://admin:hunter2secret@"),
    ("tokens", "ghp_abcdefghijklmnopqrstuvwxyz0123456789"),
    ("tokens", "github_pat_11ABCDEFG0123456789_abcdefghijklmnop"),
    ("tokens", "glpat-abcdefghij0123456789"),
    ("tokens", "xoxb-123456789012-abcdefghij"),
    ("tokens", "npm_abcdefghijklmnopqrstuvwxyz0123456789"),
    ("tokens", "hf_abcdefghijklmnopqrstuv"),
    ("keys", "sk-proj-abcdefghijklmnop0123456789"),
    ("keys", "sk_live_abcdefghij0123456789"),
    ("keys", "AIzaSyA-abcdefghijklmnopqrstuvwxyz01234"),
    ("keys", "AKIAIOSFODNN7EXAMPLE"),
    (
        "keys",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\n-----END RSA PRIVATE KEY-----",
    ),
    ("keys", "api_key=abcdef123456"),
    ("keys", r#""password": "hunter22""#),
    ("email", "alice.b+x@mail.example.co.uk"),
    ("email", "müller%40exämple.de"),
];

#[test]
fn every_kind_of_built_in_secret_is_cut_wherever_it_stands_in_a_text() {
    for (set, secret) in SECRETS {
        let patterns = Patterns::compile(&[format!("builtin:{set}")]).unwrap();
        for (before, behind) in [("", ""), ("said: ", " then"), ("[", " ]"), ("é\n", "\n語")] {
            let cleaned = patterns.clean(&format!("{before}{secret}{behind}")).into_owned();
            let kept = secret.trim_end_matches('"');
            assert!(
                !cleaned.contains(kept) && cleaned.contains(REPLACEMENT),
                "{secret}: {cleaned}"
            );
            assert!(
                cleaned.starts_with(before.trim_end()) && cleaned.ends_with(behind),
                "{secret}: {cleaned:?}"
            );
        }
        let all = Patterns::compile(&["builtin"]).unwrap();
        assert!(all.sweep(secret.as_bytes()).may_match(0..secret.len()), "{secret}");
    }
}

#[test]
fn ordinary_texts_stay_as_they_are() {
    for text in [
        "GET /users/{id}",
        "the password is wrong",
        "basic authentication failed",
        "http://localhost:4317/v1/traces",
        "2026-11-26T23:46:25Z",
        "a task-4 of desk-15",
        "4bf92f3577b34da6a3ce929d0e0e4736",
        "user@localhost",
        "npm install",
    ] {
        assert_eq!(clean(&["builtin"], text), text);
    }
}

#[test]
fn overlapping_matches_of_several_patterns_are_cut_as_one() {
    assert_eq!(clean(&["abc", "bcd", "zzz"], "xabcdx zzz"), "x[redacted]x [redacted]");
    assert_eq!(clean(&["bcd", "abc"], "xabcdx"), "x[redacted]x");
    assert_eq!(
        clean(&[r"\bid-\d+\b"], "id-1 xid-2 id-33"),
        "[redacted] xid-2 [redacted]"
    );
}

#[test]
fn mistakes_are_told_with_what_would_be_right() {
    let error = |item: &str| Patterns::compile(&[item]).unwrap_err().to_string();
    assert!(error("(").contains("`(` is no regular expression"));
    assert!(error("x*").contains("matches the empty text"));
    assert!(error("builtin:mail").contains("tokens, keys, email"));
    assert!(error(r"(?-u:\xff)").contains("no regular expression"));
}

#[test]
fn the_sweep_never_misses_a_text_with_a_match() {
    let patterns = [r"\b\d{4}\b", r"ab+c", r"^x.z$", r"(?i)key=\w+", r"@|ü"];
    for seed in 0..300 {
        let mut random = fastrand::Rng::with_seed(seed);
        let chosen: Vec<&str> = patterns.iter().copied().filter(|_| random.bool()).collect();
        let compiled = Patterns::compile(&chosen).unwrap();
        let mut haystack = Vec::new();
        let mut texts = Vec::new();
        for _ in 0..random.usize(1..30) {
            let letters: Vec<char> = "abcxyz019 @üKeEy=".chars().collect();
            let text: String = (0..random.usize(0..12))
                .map(|_| letters[random.usize(..letters.len())])
                .collect();
            haystack.push(random.u8(..));
            texts.push((haystack.len(), text.clone()));
            haystack.extend_from_slice(text.as_bytes());
        }
        let mut sweep = compiled.sweep(&haystack);
        for (start, text) in texts {
            let may_match = sweep.may_match(start..start + text.len());
            let has_match = compiled.cut(text.as_bytes(), &mut Vec::new(), |_| {});
            assert!(may_match || !has_match, "seed {seed}: {text:?} of {chosen:?}");
        }
    }
}
