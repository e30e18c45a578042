//! A database of either kind for one test, and the rows in it.

use std::sync::LazyLock;

use sqlx::postgres::PgConnection;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, Row as _};

use super::postgres;
use super::support::HOUR;
use crate::ledger::commit::{Applied, Batch, apply};
use crate::ledger::facts::Facts;
use crate::ledger::row::Row;
use crate::ledger::store::postgres::PostgresStore;
use crate::ledger::store::sqlite::SqliteStore;
use crate::ledger::store::{Names, Settings, Store, StoreError};
use crate::ledger::table::{EXECUTIONS, further};
use crate::rules::prices::{Prices, RuntimePrice};

/// Runs a test on both databases: `async fn name(database: Database)`.
macro_rules! on_both {
    ($($name:ident)*) => {
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(crate::ledger::tests::databases::Database::sqlite()).await;
            })*
        }
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                if let Some(database) = crate::ledger::tests::databases::Database::postgres() {
                    super::$name(database).await;
                }
            })*
        }
    };
}
pub(super) use on_both;

/// Does the same with the store of either database.
macro_rules! with {
    ($session:expr, $store:ident => $work:expr) => {
        match &mut $session {
            crate::ledger::tests::databases::Session::Sqlite($store) => $work,
            crate::ledger::tests::databases::Session::Postgres($store) => $work,
        }
    };
}
pub(super) use with;

/// An empty database.
pub(super) struct Database {
    pub(super) settings: Settings,
    _directory: Option<tempfile::TempDir>,
}

/// A connection to it.
pub(super) enum Session {
    Sqlite(SqliteStore),
    Postgres(PostgresStore),
}

fn settings(url: String) -> Settings {
    Settings {
        url,
        names: Names {
            schema: None,
            table: "code_exec_logs".into(),
        },
        migrate: true,
        statement_timeout: std::time::Duration::from_secs(60),
        destinations: vec![EXECUTIONS],
    }
}

impl Database {
    pub(super) fn sqlite() -> Database {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}/rows.db?mode=rwc", directory.path().display());
        Database {
            settings: settings(url),
            _directory: Some(directory),
        }
    }

    pub(super) fn postgres() -> Option<Database> {
        if postgres::skipped() {
            return None;
        }
        Some(Database {
            settings: settings(postgres::shared().database()),
            _directory: None,
        })
    }

    pub(super) fn is_postgres(&self) -> bool {
        self.settings.url.starts_with("postgres")
    }

    pub(super) async fn connect(&self) -> Result<Session, StoreError> {
        Ok(if self.is_postgres() {
            Session::Postgres(PostgresStore::connect(&self.settings).await?)
        } else {
            Session::Sqlite(SqliteStore::connect(&self.settings).await?)
        })
    }

    /// What a sidecar does that receives these spans and is then restarted.
    pub(super) async fn write(&self, facts: &[Facts]) -> Applied {
        let batch = Batch {
            destinations: &self.settings.destinations,
            ..batch(facts)
        };
        self.connect().await.unwrap().apply(&batch).await.unwrap()
    }

    /// A session of its own on a PostgreSQL server.
    pub(super) async fn connection(&self) -> PgConnection {
        PgConnection::connect(&self.settings.url).await.unwrap()
    }

    /// Runs SQL that answers nothing.
    pub(super) async fn execute(&self, sql: &str) {
        let sql = sqlx::AssertSqlSafe(sql.to_owned());
        if self.is_postgres() {
            let mut connection = PgConnection::connect(&self.settings.url).await.unwrap();
            sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
        } else {
            let mut connection = SqliteConnection::connect(&self.settings.url).await.unwrap();
            sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
        }
    }

    /// Runs SQL that answers one number.
    pub(super) async fn number(&self, sql: &str) -> i64 {
        let sql = sqlx::AssertSqlSafe(sql.to_owned());
        if self.is_postgres() {
            let mut connection = PgConnection::connect(&self.settings.url).await.unwrap();
            sqlx::query(sql).fetch_one(&mut connection).await.unwrap().get(0)
        } else {
            let mut connection = SqliteConnection::connect(&self.settings.url).await.unwrap();
            sqlx::query(sql).fetch_one(&mut connection).await.unwrap().get(0)
        }
    }

    /// How many spans wait.
    pub(super) async fn waiting(&self) -> i64 {
        let count = if self.is_postgres() {
            "count(*)"
        } else {
            "coalesce(sum(spans), 0)"
        };
        self.number(&format!("SELECT {count} FROM spanledger_context")).await
    }

    /// The hours that are packed, in order.
    pub(super) async fn hours(&self) -> Vec<i64> {
        let sql = "SELECT CAST(hour AS text) FROM spanledger_hours WHERE part = 0 ORDER BY spanledger_hours.hour";
        let hours = self.texts(sql).await;
        hours.iter().map(|hour| hour.parse().unwrap()).collect()
    }

    /// Runs SQL that answers one text a row; NULL is `-`.
    pub(super) async fn texts(&self, sql: &str) -> Vec<String> {
        let sql = sqlx::AssertSqlSafe(sql.to_owned());
        let texts: Vec<Option<String>> = if self.is_postgres() {
            let mut connection = PgConnection::connect(&self.settings.url).await.unwrap();
            sqlx::query_scalar(sql).fetch_all(&mut connection).await.unwrap()
        } else {
            let mut connection = SqliteConnection::connect(&self.settings.url).await.unwrap();
            sqlx::query_scalar(sql).fetch_all(&mut connection).await.unwrap()
        };
        texts
            .into_iter()
            .map(|text| text.unwrap_or_else(|| "-".into()))
            .collect()
    }

    /// Writes to these further tables too.
    pub(super) fn with_tables(mut self, names: &[&str]) -> Database {
        let further = names.iter().map(|name| further(name).unwrap());
        self.settings.destinations.extend(further);
        self
    }

    /// The rows by id.
    pub(super) async fn rows(&self) -> Vec<Row> {
        macro_rules! read {
            ($connection:ty, $created_at:literal) => {{
                let mut connection = <$connection>::connect(&self.settings.url).await.unwrap();
                let sql = concat!(
                    "SELECT *, ",
                    $created_at,
                    " AS nanos FROM code_exec_logs ORDER BY id"
                );
                let rows = sqlx::query(sql).fetch_all(&mut connection).await.unwrap();
                rows.iter()
                    .map(|row| Row {
                        id: row.get("id"),
                        code_agent_id: row.get("code_agent_id"),
                        workflow_execution_id: row.get("workflow_execution_id"),
                        node_id: row.get("node_id"),
                        runtime: row.get("runtime"),
                        language: row.get("language"),
                        duration_ms: row.get("duration_ms"),
                        memory_mb: row.get("memory_mb"),
                        exit_code: row.get("exit_code"),
                        success: row.get("success"),
                        error_message: row.get("error_message"),
                        tokens_used: row.get("tokens_used"),
                        validation_passed: row.get("validation_passed"),
                        organization_id: row.get("organization_id"),
                        workspace_id: row.get("workspace_id"),
                        user_id: row.get("user_id"),
                        created_at: row.get::<i64, _>("nanos").cast_unsigned(),
                    })
                    .collect()
            }};
        }
        if self.is_postgres() {
            read!(
                PgConnection,
                "(extract(epoch FROM created_at) * 1000000)::bigint * 1000"
            )
        } else {
            read!(
                SqliteConnection,
                "CAST(strftime('%s', created_at) AS INTEGER) * 1000000000 + substr(created_at, 21) * 1000"
            )
        }
    }
}

impl Session {
    pub(super) async fn write(&mut self, facts: &[Facts]) -> Result<Applied, StoreError> {
        self.apply(&batch(facts)).await
    }

    pub(super) async fn apply(&mut self, batch: &Batch<'_>) -> Result<Applied, StoreError> {
        with!(*self, store => apply(store, batch).await)
    }
}

/// A batch with nothing but the facts.
pub(super) fn batch(facts: &[Facts]) -> Batch<'_> {
    Batch {
        destinations: std::slice::from_ref(&EXECUTIONS),
        facts,
        position: None,
        release: &[],
        anew: false,
        window: HOUR,
        oldest: 0,
        now: super::support::EPOCH,
        prices: &PRICES,
    }
}

/// A run on E2B costs a quarter, and five dollars a second.
pub(super) static PRICES: LazyLock<Prices> = LazyLock::new(|| Prices {
    runtimes: vec![(
        "e2b".to_owned(),
        RuntimePrice {
            execution: 0.25,
            vcpu_second: 5.0,
            vcpus: 1.0,
            ..RuntimePrice::default()
        },
    )],
    models: Vec::new(),
});
