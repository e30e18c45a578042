//! `database`.

use crate::config::Section;
use crate::ledger::LedgerOptions;

pub(super) fn bind(section: &Section<'_>) -> LedgerOptions {
    let url: String = section.secret(
        "url",
        "sqlite:${env:SPANLEDGER_DATA:-./spanledger-data}/executions.db",
        "sqlite:PATH or postgres://USER:PASSWORD@HOST/DATABASE.",
    );
    if !url.starts_with("sqlite:") && !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        section.mistake("url", "expected sqlite:PATH or postgres://USER:PASSWORD@HOST/DATABASE");
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
            "Create missing tables; false: use the tables as they are.",
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
        redact: super::egress::patterns(
            section,
            "redact",
            "Cut from error_message: regular expressions, builtin:email, ...; see docs/forwarding.md.",
        ),
    }
}
