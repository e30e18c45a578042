//! Reading from either database.
//!
//! Both databases get nearly the same SQL ([`super::sql`]). A query names the kind of each column it selects, so that values
//! are decoded alike.
//!
//! # Invariants
//!
//! * Nothing is ever written: PostgreSQL transactions are `READ ONLY`, SQLite files are opened read-only.
//! * With PostgreSQL nothing outlives a transaction on the server, so that a pooler may stand between.
//! * What a query may cost is bounded: connections, time in the database, time waiting for a connection. Whoever gives up
//!   waiting for rows ends the query that looks for them: SQLite would go on until the next row, and PostgreSQL for as long
//!   as the query may take, with everybody who wants the connection behind it.
//! * No statement outlives its query: there are as many different ones as there are numbers of values in filters.
//! * Rows are handed over one by one as they arrive, so that what they become is all that is held.
//! * Values are always bound, never part of the SQL.

use std::ops::ControlFlow;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt as _;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgRow};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqlitePool, SqlitePoolOptions, SqliteRow};
use sqlx::{AssertSqlSafe, Postgres, Row as _};
use tokio::sync::Semaphore;

use super::QueryError;
use super::sql::Bind;
pub(super) use super::sql::{Dialect, Sql};

/// Connections of the query API; the ledger has its own. More readers than this only slow each other.
pub(super) const CONNECTIONS: u32 = 4;

/// Pages that a connection to SQLite keeps, in KiB. Each thing that is sorted or set aside in a query may be as large in
/// memory, and is in a file beyond that.
const PAGES_KIBIBYTES: usize = 4 << 10;

/// Rows that SQLite looks up before they are asked for.
const ROWS_AHEAD: usize = 16;

/// What the largest statement takes in SQLite, whose text grows with the values of a filter, in bytes.
const STATEMENT: usize = 512 << 10;

/// The most memory that the connections take, in bytes: pages, up to three things that are sorted or set aside, rows that
/// were looked up ahead (the largest are parts of packed hours), the latest statement.
pub(super) const MEMORY: usize =
    CONNECTIONS as usize * (4 * PAGES_KIBIBYTES * 1024 + ROWS_AHEAD * (192 << 10) + STATEMENT);

/// How long a request waits for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long one query may take.
const QUERY_TIMEOUT: Duration = Duration::from_secs(20);

/// How often PostgreSQL looks whether a query is still waited for (from version 14 on, on Linux), in milliseconds.
const LOOK_FOR_CLIENT: u32 = 500;

/// Instructions of SQLite's virtual machine between two looks at the clock: a fraction of a millisecond.
const INSTRUCTIONS: i32 = 10_000;

/// How a selected column is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Integer,
    Real,
    Boolean,
    Bytes,
}

/// A decoded value.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) enum Cell {
    #[default]
    Null,
    Text(String),
    Integer(i64),
    Real(f64),
    Boolean(bool),
    Bytes(Vec<u8>),
}

impl Cell {
    pub(super) fn into_text(self) -> Option<String> {
        match self {
            Cell::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn integer(&self) -> Option<i64> {
        match self {
            Cell::Integer(number) => Some(*number),
            _ => None,
        }
    }

    pub(super) fn real(&self) -> Option<f64> {
        match self {
            Cell::Real(number) => Some(*number),
            Cell::Integer(number) => Some(*number as f64),
            _ => None,
        }
    }

    pub(super) fn bytes(&self) -> Option<&[u8]> {
        match self {
            Cell::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        match self {
            Cell::Boolean(truth) => Some(*truth),
            _ => None,
        }
    }
}

/// The database, for reading only; cheap to clone. Connections are made when they are needed, so that a database that
/// is away at the start is no error.
#[derive(Debug, Clone)]
pub(super) struct Database {
    pool: Pool,
    /// A permit for each connection that no query uses.
    unused: Arc<Semaphore>,
    acquire_timeout: Duration,
    pub(super) query_timeout: Duration,
}

#[derive(Debug, Clone)]
enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

impl Database {
    /// Must be called within a runtime.
    pub(super) fn open(url: &str) -> Result<Database, QueryError> {
        Database::open_with(url, ACQUIRE_TIMEOUT)
    }

    /// The same, but a query waits so long for a connection.
    pub(super) fn open_with(url: &str, acquire_timeout: Duration) -> Result<Database, QueryError> {
        let configuration = |error: sqlx::Error| QueryError::Configuration(format!("{error} (database.url)"));
        let pool = if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            let options = PgConnectOptions::from_str(url).map_err(configuration)?;
            // Poolers refuse start-up parameters that they do not know.
            let options = options
                .extra_float_digits(None)
                .application_name("spanledger-api")
                .statement_cache_capacity(0);
            let pool = PgPoolOptions::new()
                .max_connections(CONNECTIONS)
                .min_connections(0)
                .acquire_timeout(acquire_timeout)
                .idle_timeout(Duration::from_secs(300))
                .test_before_acquire(true);
            Pool::Postgres(pool.connect_lazy_with(options))
        } else {
            let options = SqliteConnectOptions::from_str(url)
                .map_err(configuration)?
                .read_only(true)
                .create_if_missing(false)
                .busy_timeout(Duration::from_secs(5))
                .statement_cache_capacity(0)
                // What is sorted is in memory up to the size of the cache, and in temporary files beyond.
                .pragma("temp_store", "FILE")
                .row_buffer_size(ROWS_AHEAD)
                .pragma("cache_size", format!("-{PAGES_KIBIBYTES}"))
                .pragma("mmap_size", "268435456");
            let pool = SqlitePoolOptions::new()
                .max_connections(CONNECTIONS)
                .min_connections(0)
                .acquire_timeout(acquire_timeout)
                .idle_timeout(Duration::from_secs(300));
            Pool::Sqlite(pool.connect_lazy_with(options))
        };
        Ok(Database {
            pool,
            unused: Arc::new(Semaphore::new(CONNECTIONS as usize)),
            acquire_timeout,
            query_timeout: QUERY_TIMEOUT,
        })
    }

    pub(super) fn dialect(&self) -> Dialect {
        match self.pool {
            Pool::Sqlite(_) => Dialect::Sqlite,
            Pool::Postgres(_) => Dialect::Postgres,
        }
    }

    /// Shows `take` the rows that `sql` selects, whose columns are of these kinds, one after the other.
    pub(super) async fn each(
        &self,
        sql: Sql,
        kinds: &[Kind],
        mut take: impl FnMut(Vec<Cell>) -> Result<(), QueryError> + Send,
    ) -> Result<(), QueryError> {
        self.each_until(sql, kinds, |cells| take(cells).map(ControlFlow::Continue))
            .await
    }

    /// The same, until `take` has enough.
    pub(super) async fn each_until(
        &self,
        sql: Sql,
        kinds: &[Kind],
        take: impl FnMut(Vec<Cell>) -> Result<ControlFlow<()>, QueryError> + Send,
    ) -> Result<(), QueryError> {
        #[cfg(test)]
        super::plans::record(&sql);
        tokio::time::timeout(self.query_timeout + self.acquire_timeout, self.read(sql, kinds, take))
            .await
            .unwrap_or_else(|_| Err(took_too_long()))
    }

    /// The whole number in the one row that `sql` selects; 0 if it has none.
    pub(super) async fn number(&self, sql: Sql) -> Result<i64, QueryError> {
        let mut number = 0;
        self.each(sql, &[Kind::Integer], |row| {
            number = row[0].integer().unwrap_or_default();
            Ok(())
        })
        .await?;
        Ok(number)
    }

    /// Statements that all the connections together keep for later.
    #[cfg(test)]
    pub(super) async fn kept_statements(&self) -> usize {
        use sqlx::Connection as _;
        let mut kept = 0;
        match &self.pool {
            Pool::Sqlite(pool) => {
                let all = (0..CONNECTIONS).map(|_| pool.acquire());
                for connection in futures_util::future::try_join_all(all).await.unwrap_or_default() {
                    kept += connection.cached_statements_size();
                }
            }
            Pool::Postgres(pool) => {
                let all = (0..CONNECTIONS).map(|_| pool.acquire());
                for connection in futures_util::future::try_join_all(all).await.unwrap_or_default() {
                    kept += connection.cached_statements_size();
                }
            }
        }
        kept
    }

    async fn read(
        &self,
        sql: Sql,
        kinds: &[Kind],
        mut take: impl FnMut(Vec<Cell>) -> Result<ControlFlow<()>, QueryError> + Send,
    ) -> Result<(), QueryError> {
        match &self.pool {
            Pool::Sqlite(pool) => {
                let mut query = sqlx::query(AssertSqlSafe(sql.text)).persistent(false);
                for bind in sql.binds {
                    query = match bind {
                        Bind::Text(text) => query.bind(text),
                        Bind::Integer(number) => query.bind(number),
                    };
                }
                let mut connection = pool.acquire().await.map_err(|error| self.not_connected(error))?;
                let _in_use = self.unused.try_acquire();
                let _waiting = interrupt_unless_waited_for(&mut connection, self.query_timeout).await?;
                let mut rows = query.fetch(&mut *connection);
                while let Some(row) = rows.try_next().await? {
                    let cells = decode(kinds, |index, kind| sqlite_cell(&row, index, kind))?;
                    if take(cells)?.is_break() {
                        break;
                    }
                }
            }
            Pool::Postgres(pool) => {
                let mut query = sqlx::query(AssertSqlSafe(sql.text)).persistent(false);
                for bind in sql.binds {
                    query = match bind {
                        Bind::Text(text) => query.bind(text),
                        Bind::Integer(number) => query.bind(number),
                    };
                }
                let connection = pool.acquire().await.map_err(|error| self.not_connected(error))?;
                let _in_use = self.unused.try_acquire();
                let mut lent = Lent(Some(connection));
                let connection = lent.0.as_deref_mut().ok_or(sqlx::Error::PoolClosed)?;
                let begin = self.begin_postgres();
                sqlx::raw_sql(AssertSqlSafe(begin)).execute(&mut *connection).await?;
                let mut is_refused = false;
                let read = async {
                    let mut rows = query.fetch(&mut *connection);
                    let refused = |error: &sqlx::Error| error.as_database_error().is_some();
                    while let Some(row) = rows.try_next().await.inspect_err(|error| is_refused = refused(error))? {
                        let cells = decode(kinds, |index, kind| postgres_cell(&row, index, kind))?;
                        if take(cells)?.is_break() {
                            return Ok(ControlFlow::Break(()));
                        }
                    }
                    Ok(ControlFlow::Continue(()))
                }
                .await;
                // Rows that were not taken would have to be read before anything else can be asked.
                if is_refused || matches!(read, Ok(ControlFlow::Continue(()))) {
                    let ended = sqlx::raw_sql("COMMIT").execute(&mut *connection).await;
                    if ended.is_ok() {
                        lent.give_back();
                    }
                }
                return read.map(|_| ());
            }
        }
        Ok(())
    }

    /// Begins a transaction that reads, in which the server ends a query that takes too long or whose client is gone.
    /// A server that cannot look for its client has no such setting or, on some systems, refuses it; a setting of the
    /// session, or one at the start of a connection, would stay with a pooler or be refused by it.
    fn begin_postgres(&self) -> String {
        let within = self.query_timeout.as_millis();
        format!(
            "BEGIN READ ONLY; SET LOCAL statement_timeout = {within}; \
             SELECT set_config('client_connection_check_interval', '{LOOK_FOR_CLIENT}', true) \
             WHERE current_setting('client_connection_check_interval', true) IS NOT NULL AND version() LIKE '%linux%'"
        )
    }

    /// Why there is no connection: others are using all of them, or the database gives none.
    fn not_connected(&self, error: sqlx::Error) -> QueryError {
        match error {
            sqlx::Error::PoolTimedOut if self.unused.available_permits() == 0 => QueryError::Crowded,
            // The pool tries again where a connection is refused.
            sqlx::Error::PoolTimedOut => {
                QueryError::Unavailable(format!("no connection within {:?}", self.acquire_timeout))
            }
            error => error.into(),
        }
    }
}

/// A connection to PostgreSQL that was taken out of the pool. Unless it is given back its socket is closed when it is dropped,
/// with whatever is still to come: the pool has its place back at once, and the server notices.
struct Lent(Option<PoolConnection<Postgres>>);

impl Lent {
    /// Nothing is under way on it.
    fn give_back(mut self) {
        self.0 = None;
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        drop(self.0.take().map(PoolConnection::detach));
    }
}

/// Makes SQLite give up the next statement after `within`, or as soon as nobody holds what is returned any more.
async fn interrupt_unless_waited_for(
    connection: &mut SqliteConnection,
    within: Duration,
) -> Result<Arc<()>, sqlx::Error> {
    let waiting = Arc::new(());
    let is_waited_for = Arc::downgrade(&waiting);
    let deadline = Instant::now() + within;
    connection
        .lock_handle()
        .await?
        .set_progress_handler(INSTRUCTIONS, move || {
            is_waited_for.strong_count() > 0 && Instant::now() < deadline
        });
    Ok(waiting)
}

fn took_too_long() -> QueryError {
    QueryError::Unavailable("the query took too long: ask for a shorter time".to_owned())
}

impl From<sqlx::Error> for QueryError {
    fn from(error: sqlx::Error) -> QueryError {
        let Some(refusal) = error.as_database_error() else {
            return QueryError::Unavailable(error.to_string());
        };
        let code = refusal.code().unwrap_or_default();
        // SQLite has no code of its own for a missing table, only for a statement that is wrong.
        match &*code {
            "57014" | "9" => took_too_long(),
            // SQLite found no directory for what it sorts.
            "6410" => QueryError::Unavailable(
                "there is no room to sort so many rows: set SQLITE_TMPDIR to a directory that can be written, \
                 or ask for a shorter time"
                    .to_owned(),
            ),
            "42P01" => QueryError::TableMissing(error.to_string()),
            "1" if refusal.message().starts_with("no such table") => QueryError::TableMissing(error.to_string()),
            _ => QueryError::Unavailable(error.to_string()),
        }
    }
}

fn decode(kinds: &[Kind], cell: impl Fn(usize, Kind) -> Result<Cell, sqlx::Error>) -> Result<Vec<Cell>, sqlx::Error> {
    kinds
        .iter()
        .enumerate()
        .map(|(index, kind)| cell(index, *kind))
        .collect()
}

/// SQLite holds what was put in, whatever the column was declared as.
fn sqlite_cell(row: &SqliteRow, index: usize, kind: Kind) -> Result<Cell, sqlx::Error> {
    Ok(match kind {
        Kind::Text => row
            .try_get_unchecked::<Option<String>, _>(index)?
            .map_or(Cell::Null, Cell::Text),
        Kind::Integer => row
            .try_get_unchecked::<Option<i64>, _>(index)?
            .map_or(Cell::Null, Cell::Integer),
        Kind::Real => row
            .try_get_unchecked::<Option<f64>, _>(index)?
            .map_or(Cell::Null, Cell::Real),
        Kind::Boolean => row
            .try_get_unchecked::<Option<bool>, _>(index)?
            .map_or(Cell::Null, Cell::Boolean),
        Kind::Bytes => row
            .try_get_unchecked::<Option<Vec<u8>>, _>(index)?
            .map_or(Cell::Null, Cell::Bytes),
    })
}

fn postgres_cell(row: &PgRow, index: usize, kind: Kind) -> Result<Cell, sqlx::Error> {
    Ok(match kind {
        Kind::Text => row.try_get::<Option<String>, _>(index)?.map_or(Cell::Null, Cell::Text),
        Kind::Integer => row.try_get::<Option<i64>, _>(index)?.map_or(Cell::Null, Cell::Integer),
        Kind::Real => row.try_get::<Option<f64>, _>(index)?.map_or(Cell::Null, Cell::Real),
        Kind::Boolean => row.try_get::<Option<bool>, _>(index)?.map_or(Cell::Null, Cell::Boolean),
        Kind::Bytes => row
            .try_get::<Option<Vec<u8>>, _>(index)?
            .map_or(Cell::Null, Cell::Bytes),
    })
}
