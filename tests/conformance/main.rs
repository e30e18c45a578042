//! OTLP 1.11 for receivers, requirement by requirement, over every protocol.
//!
//! Each requirement is one test, and each of the 71 items of the specification is accounted for (`checklist.rs`): by
//! requirements, by tests elsewhere, or by a reason why it does not apply. `docs/otlp-conformance.md` is written from the same list and compared with it, so that
//! it cannot say anything else. To measure another receiver, give its addresses:
//!
//! ```text
//! OTLP_TARGET_GRPC=127.0.0.1:4317 OTLP_TARGET_HTTP=127.0.0.1:4318 cargo test --test conformance -- --nocapture table
//! ```
//!
//! What came of that for the reference Collector stands in `collector/result.md`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, unreachable_pub)]

mod checklist;
#[path = "../receive/fixture.rs"]
#[allow(dead_code)]
mod fixture;
mod json;
mod refusals;
mod target;
mod transport;

use std::fmt::Write;
use std::path::Path;

use target::{Check, Outcome, Target};

/// One requirement.
pub struct Requirement {
    /// The name of its test.
    pub name: &'static str,
    /// The section of the specification.
    pub section: &'static str,
    /// MUST, SHOULD or MAY.
    pub level: &'static str,
    /// What is required.
    pub text: &'static str,
    /// How it is tested.
    pub check: Check,
}

/// Declares requirements: for each a test of its own, and all of them in a list.
macro_rules! requirements {
    ($($name:ident: $section:literal, $level:literal, $text:literal => $check:expr;)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                $crate::assert_met(REQUIREMENTS.iter().find(|it| it.text == $text).unwrap()).await;
            }
        )*

        pub const REQUIREMENTS: &[$crate::Requirement] = &[$(
            $crate::Requirement {
                name: stringify!($name),
                section: $section,
                level: $level,
                text: $text,
                check: |target| Box::pin($check(target)),
            },
        )*];
    };
}
pub(crate) use requirements;

async fn assert_met(requirement: &Requirement) {
    let target = Target::start();
    let outcomes = (requirement.check)(&target).await;
    for (protocol, outcome) in outcomes {
        if let Outcome::Deviates(how) = outcome {
            panic!("{protocol}: {} {}: {how}", requirement.level, requirement.text);
        }
    }
}

fn all_requirements() -> impl Iterator<Item = &'static Requirement> {
    [transport::REQUIREMENTS, refusals::REQUIREMENTS, json::REQUIREMENTS]
        .into_iter()
        .flatten()
}

/// Every requirement with the outcome per protocol, as Markdown.
async fn table() -> String {
    let mut table = String::from(
        "# OTLP 1.11 conformance\n\n\
         Written by `UPDATE_DOCS=1 cargo test --test conformance table`; the same command without the variable fails \
         when a line\nis no longer true. `tests/conformance` says how each line is tested, and how to measure another \
         receiver.\n\n\
         ## The receiver, measured\n\n\
         | section | level | requirement | gRPC | HTTP/protobuf | HTTP/JSON |\n|---|---|---|---|---|---|\n",
    );
    let target = Target::start();
    for requirement in all_requirements() {
        let outcomes = match target::met_or_panicked((requirement.check)(&target)).await {
            Ok(outcomes) => outcomes,
            Err(how) => vec![("gRPC", Outcome::Deviates(how))],
        };
        let cell = |protocol| {
            let outcome = outcomes
                .iter()
                .find(|(of, _)| *of == protocol)
                .map(|(_, outcome)| outcome);
            outcome.map_or_else(|| "–".to_owned(), Outcome::to_string)
        };
        writeln!(
            table,
            "| {} | {} | {} | {} | {} | {} |",
            requirement.section,
            requirement.level,
            requirement.text,
            cell("gRPC"),
            cell("HTTP/protobuf"),
            cell("HTTP/JSON")
        )
        .unwrap();
    }
    table
}

#[tokio::test]
async fn the_table_in_the_documentation_is_true() {
    let mut table = table().await;
    if Target::is_foreign() {
        println!("{table}");
        return;
    }
    table.push_str(&checklist::table());
    table.push_str(include_str!("collector/result.md"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/otlp-conformance.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &table).unwrap();
    }
    assert_eq!(
        std::fs::read_to_string(&path).unwrap_or_default(),
        table,
        "run with UPDATE_DOCS=1"
    );
}
