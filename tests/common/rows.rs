//! Reads `code_exec_logs` from the database, beside the program that writes it.

use super::eventually;
use futures_util::TryStreamExt;
use sqlx::sqlite::{SqliteConnectOptions, SqliteRow};
use sqlx::{ConnectOptions, Connection, Row as _, SqliteConnection};
use std::collections::BTreeMap;
use std::path::Path;

/// One row with all its columns.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    pub id: String,
    pub code_agent_id: Option<String>,
    pub workflow_execution_id: Option<String>,
    pub node_id: Option<String>,
    pub runtime: String,
    pub language: String,
    pub duration_ms: Option<i64>,
    pub memory_mb: Option<i64>,
    pub exit_code: Option<i64>,
    pub success: bool,
    pub error_message: Option<String>,
    pub tokens_used: Option<i64>,
    pub validation_passed: Option<bool>,
    pub organization_id: Option<String>,
    pub workspace_id: Option<String>,
    pub user_id: Option<String>,
    /// Microseconds since 1970, UTC.
    pub created_at: i64,
}

/// The columns in their order.
pub const COLUMNS: [&str; 17] = [
    "id",
    "code_agent_id",
    "workflow_execution_id",
    "node_id",
    "runtime",
    "language",
    "duration_ms",
    "memory_mb",
    "exit_code",
    "success",
    "error_message",
    "tokens_used",
    "validation_passed",
    "organization_id",
    "workspace_id",
    "user_id",
    "created_at",
];

/// Opens the file for reading only.
pub async fn open(database: &Path) -> Result<SqliteConnection, sqlx::Error> {
    let options = SqliteConnectOptions::new().filename(database).read_only(true);
    options.disable_statement_logging().connect().await
}

/// All rows by id.
pub async fn read(database: &Path) -> Result<Vec<Row>, sqlx::Error> {
    let mut rows = Vec::new();
    each(database, |row| rows.push(row)).await?;
    Ok(rows)
}

/// One row after the other, by id.
pub async fn each(database: &Path, mut visit: impl FnMut(Row)) -> Result<(), sqlx::Error> {
    let mut connection = open(database).await?;
    let query = format!("SELECT {} FROM code_exec_logs ORDER BY id", COLUMNS.join(", "));
    let mut rows = sqlx::query(sqlx::AssertSqlSafe(query)).fetch(&mut connection);
    while let Some(found) = rows.try_next().await? {
        visit(row(&found)?);
    }
    Ok(())
}

fn row(row: &SqliteRow) -> Result<Row, sqlx::Error> {
    let created_at: chrono::NaiveDateTime = row.try_get_unchecked("created_at")?;
    row_with(row, created_at.and_utc().timestamp_micros())
}

fn row_with<'r, R>(row: &'r R, created_at: i64) -> Result<Row, sqlx::Error>
where
    R: sqlx::Row,
    &'static str: sqlx::ColumnIndex<R>,
    String: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
    i64: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
    bool: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
    Option<String>: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
    Option<i64>: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
    Option<bool>: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
{
    Ok(Row {
        id: row.try_get("id")?,
        code_agent_id: row.try_get("code_agent_id")?,
        workflow_execution_id: row.try_get("workflow_execution_id")?,
        node_id: row.try_get("node_id")?,
        runtime: row.try_get("runtime")?,
        language: row.try_get("language")?,
        duration_ms: row.try_get("duration_ms")?,
        memory_mb: row.try_get("memory_mb")?,
        exit_code: row.try_get("exit_code")?,
        success: row.try_get("success")?,
        error_message: row.try_get("error_message")?,
        tokens_used: row.try_get("tokens_used")?,
        validation_passed: row.try_get("validation_passed")?,
        organization_id: row.try_get("organization_id")?,
        workspace_id: row.try_get("workspace_id")?,
        user_id: row.try_get("user_id")?,
        created_at,
    })
}

/// One row after the other from a PostgreSQL database, by id.
pub async fn each_postgres(url: &str, mut visit: impl FnMut(Row)) -> Result<(), sqlx::Error> {
    let mut connection = sqlx::PgConnection::connect(url).await?;
    // As the types that SQLite has.
    let columns = COLUMNS.map(|column| match column {
        "duration_ms" | "memory_mb" | "exit_code" | "tokens_used" => format!("{column}::int8"),
        "created_at" => "(extract(epoch FROM created_at) * 1000000)::int8 AS created_at".to_owned(),
        _ => column.to_owned(),
    });
    let query = format!(
        "SELECT {} FROM code_exec_logs ORDER BY id COLLATE \"C\"",
        columns.join(", ")
    );
    let mut rows = sqlx::query(sqlx::AssertSqlSafe(query)).fetch(&mut connection);
    while let Some(found) = rows.try_next().await? {
        visit(row_with(&found, found.try_get("created_at")?)?);
    }
    Ok(())
}

const HAS: &str = "SELECT 1 FROM code_exec_logs WHERE id = $1";

/// Whether there is a row.
pub async fn has(database: &Path, id: &str) -> Result<bool, sqlx::Error> {
    let query = sqlx::query(HAS).bind(id);
    Ok(query.fetch_optional(&mut open(database).await?).await?.is_some())
}

/// The same in PostgreSQL.
pub async fn has_postgres(url: &str, id: &str) -> Result<bool, sqlx::Error> {
    let mut connection = sqlx::PgConnection::connect(url).await?;
    Ok(sqlx::query(HAS)
        .bind(id)
        .fetch_optional(&mut connection)
        .await?
        .is_some())
}

/// Reported runtime, language, outcome; how many executions, and the sum of their durations.
pub type Aggregate = ((String, String, String), (i64, i64));

const AGGREGATES: &str = "SELECT e.reported_runtime AS runtime, r.language, e.reported_outcome AS outcome, \
     count(*) AS executions, CAST(sum(r.duration_ms) AS BIGINT) AS duration_ms \
     FROM code_exec_logs r JOIN spanledger_executions e ON e.id = r.id GROUP BY 1, 2, 3";

/// Over the rows and their side table.
pub async fn aggregates(database: &Path) -> Result<Vec<Aggregate>, sqlx::Error> {
    let rows = sqlx::query(AGGREGATES).fetch_all(&mut open(database).await?).await?;
    rows.iter().map(aggregate).collect()
}

/// The same in PostgreSQL.
pub async fn aggregates_postgres(url: &str) -> Result<Vec<Aggregate>, sqlx::Error> {
    let mut connection = sqlx::PgConnection::connect(url).await?;
    let rows = sqlx::query(AGGREGATES).fetch_all(&mut connection).await?;
    rows.iter().map(aggregate).collect()
}

fn aggregate<'r, R>(row: &'r R) -> Result<Aggregate, sqlx::Error>
where
    R: sqlx::Row,
    &'static str: sqlx::ColumnIndex<R>,
    String: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
    i64: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
{
    let labels = (
        row.try_get("runtime")?,
        row.try_get("language")?,
        row.try_get("outcome")?,
    );
    Ok((labels, (row.try_get("executions")?, row.try_get("duration_ms")?)))
}

/// Waits until there are as many rows as expected, and returns them.
pub async fn wait(database: &Path, count: usize) -> Vec<Row> {
    eventually(&format!("{count} rows"), || async {
        let rows = read(database).await.map_err(|error| error.to_string())?;
        if rows.len() >= count {
            Ok(rows)
        } else {
            Err(format!("{} rows", rows.len()))
        }
    })
    .await
}

/// The differences between rows as they are and rows as they should be, by id.
pub fn difference(found: &[Row], expected: &[Row]) -> Vec<String> {
    let by_id: BTreeMap<_, _> = found.iter().map(|row| (&row.id, row)).collect();
    let expected: BTreeMap<_, _> = expected.iter().map(|row| (&row.id, row)).collect();
    let mut wrong = Vec::new();
    if by_id.len() < found.len() {
        wrong.push(format!("{} ids twice", found.len() - by_id.len()));
    }
    for (id, row) in &expected {
        match by_id.get(id) {
            None => wrong.push(format!("missing: {row:?}")),
            Some(other) if other != row => wrong.push(format!("found    {other:?}\nexpected {row:?}")),
            Some(_) => {}
        }
    }
    let unexpected = by_id.iter().filter(|(id, _)| !expected.contains_key(*id));
    wrong.extend(unexpected.map(|(_, row)| format!("unexpected: {row:?}")));
    wrong
}
