//! `database`.

use std::time::Duration;

use crate::config::Section;
use crate::ledger::{self, LedgerOptions};

pub(super) fn bind(section: &Section<'_>) -> LedgerOptions {
    let mut url: String = section.secret(
        "url",
        "sqlite:${env:SPANLEDGER_DATA:-./spanledger-data}/executions.db",
        "sqlite:PATH or postgres://USER:PASSWORD@HOST/DATABASE.",
    );
    if !url.starts_with("sqlite:") && !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        section.mistake("url", "expected sqlite:PATH or postgres://USER:PASSWORD@HOST/DATABASE");
    }
    let password: Option<String> = section.secret(
        "password",
        "",
        "Of the user in url, as it is; in the url itself it must be percent-encoded.",
    );
    if let Some(password) = password {
        if url.starts_with("sqlite:") {
            section.mistake("password", "only PostgreSQL has one");
        }
        let separator = if url.contains('?') { '&' } else { '?' };
        url = format!("{url}{separator}password={}", percent_encoded(&password));
    }
    LedgerOptions {
        // Filled in from `prices` when all settings are read.
        prices: Default::default(),
        url,
        schema: section.get("schema", "", "PostgreSQL schema of the table and of our own tables."),
        table: section.get("table", "code_exec_logs", "Name of the table of rows."),
        migrate: section.get(
            "migrate",
            "true",
            "Create missing tables, convert own ones of an earlier version; false: use all as they are.",
        ),
        retention: section.get(
            "retention",
            "",
            "Older rows are deleted; 0: none. Unset: SQLite 90d, PostgreSQL 0.",
        ),
        assembly_window: section.get("assembly_window", "1h", "How long facts wait for each other."),
        max_pending: section.get("max_pending", "200000", "At most so many facts wait."),
        standalone: section.get(
            "standalone",
            "false",
            "Rows also from runtime spans without an execution span.",
        ),
        tables: section.parsed(
            "tables",
            "[]",
            "Further tables that are written: model_cost_logs, agent_trace_history, event_logs.",
            "list",
            |node| {
                let names = <Vec<String> as crate::config::Setting>::from_node(node)?;
                match names
                    .iter()
                    .find(|name| !ledger::further_tables().any(|known| known == **name))
                {
                    Some(unknown) => {
                        let known: Vec<_> = ledger::further_tables().collect();
                        Err(format!("`{unknown}` is none of {}", known.join(", ")))
                    }
                    None => Ok(names),
                }
            },
        ),
        statement_timeout: section.parsed(
            "statement_timeout",
            "60s",
            "How long PostgreSQL may work on one statement.",
            "duration",
            |node| {
                let timeout = <Duration as crate::config::Setting>::from_node(node)?;
                if timeout.is_zero() {
                    return Err("expected more than 0".to_owned());
                }
                Ok(timeout)
            },
        ),
        redact: super::egress::patterns(
            section,
            "redact",
            "Cut from error_message: regular expressions, builtin:email, ...; see docs/forwarding.md.",
        ),
    }
}

/// For a parameter of a URL.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
