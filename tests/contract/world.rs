//! Two programs with the same traffic, one on SQLite and one on PostgreSQL.

use crate::common::eventually;
use crate::common::postgres;
use crate::common::program::{Program, Setup};
use crate::common::prometheus::Scrape;
use crate::common::rows::{COLUMNS, Row};
use crate::common::send::{Outcome, Prepared, ROUTES, Route, Sender};
use crate::story::Story;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, Row as _, SqliteConnection};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// What the program keeps beside each row, as far as tests of the contract look at it.
#[derive(Debug, Clone, PartialEq)]
pub struct Beside {
    pub runtime: Option<String>,
    pub exit_code: Option<i64>,
    pub outcome: String,
    pub cost_usd: Option<f64>,
}

/// Where one program writes.
#[derive(Debug, Clone)]
pub enum Database {
    Sqlite(PathBuf),
    Postgres(String),
}

/// One program with its database.
pub struct Side {
    pub setup: Setup,
    pub database: Database,
    program: Option<Program>,
    sender: Option<Sender>,
}

/// The programs.
pub struct World {
    pub sides: Vec<Side>,
    random: fastrand::Rng,
    /// What was sent last, to be sent again.
    last: Vec<Prepared>,
    /// How often everything was waited for.
    settled: f64,
}

impl World {
    /// Both programs, ready for traffic.
    pub async fn start(random: &mut fastrand::Rng) -> World {
        World::start_with(random, |setup| setup, "").await
    }

    /// SQLite alone, for what does not depend on the database.
    pub async fn on_sqlite(random: &mut fastrand::Rng, settings: impl Fn(Setup) -> Setup, tables: &str) -> World {
        let setup = settings(Setup::new());
        let database = Database::Sqlite(setup.database());
        World::with(vec![Side::new(setup, database)], random, tables).await
    }

    /// Two programs that write to one PostgreSQL database.
    pub async fn sharing_a_database(random: &mut fastrand::Rng) -> World {
        let url = tokio::task::spawn_blocking(|| postgres::shared().database())
            .await
            .unwrap();
        let side = || {
            let setup = Setup::new().set("database.url", url.clone());
            Side::new(setup, Database::Postgres(url.clone()))
        };
        World::with(vec![side(), side()], random, "").await
    }

    /// The same with other settings, and with tables made before the program comes to see them.
    pub async fn start_with(random: &mut fastrand::Rng, settings: impl Fn(Setup) -> Setup, tables: &str) -> World {
        let mut sides = Vec::new();
        let setup = settings(Setup::new());
        let database = Database::Sqlite(setup.database());
        sides.push(Side::new(setup, database));
        if !postgres::skipped() {
            let url = tokio::task::spawn_blocking(|| postgres::shared().database())
                .await
                .unwrap();
            let setup = settings(Setup::new()).set("database.url", url.clone());
            sides.push(Side::new(setup, Database::Postgres(url)));
        }
        World::with(sides, random, tables).await
    }

    async fn with(sides: Vec<Side>, random: &mut fastrand::Rng, tables: &str) -> World {
        for side in &sides {
            if !tables.is_empty() {
                side.database.execute(tables).await;
            }
        }
        let mut world = World {
            sides,
            random: random.fork(),
            last: Vec::new(),
            settled: 0.0,
        };
        world.resume().await;
        world
    }

    async fn resume(&mut self) {
        for side in &mut self.sides {
            side.program = Some(side.setup.spawn());
        }
        for side in &mut self.sides {
            let program = side.program.as_ref().unwrap();
            program.ready().await;
            side.sender = Some(Sender::to(program).await);
        }
    }

    /// kill -9 of both at once, and both again.
    pub async fn kill_and_restart(&mut self) {
        for side in &mut self.sides {
            side.sender = None;
            side.program.take().unwrap().kill();
        }
        self.resume().await;
    }

    /// Sends one request to both, over any protocol.
    pub async fn send(&mut self, request: &ExportTraceServiceRequest) {
        let route = ROUTES[self.random.usize(..ROUTES.len())];
        self.send_over(route, request).await;
    }

    /// Sends one request to both.
    pub async fn send_over(&mut self, route: Route, request: &ExportTraceServiceRequest) {
        let prepared = Prepared::new(route, request);
        self.deliver(&prepared).await;
        self.last.push(prepared);
        if self.last.len() > 4 {
            self.last.remove(0);
        }
    }

    /// Sends one of the last bodies once more, as an SDK does that has not seen the answer.
    pub async fn send_again(&mut self) {
        if !self.last.is_empty() {
            let again = self.last[self.random.usize(..self.last.len())].clone();
            self.deliver(&again).await;
        }
    }

    async fn deliver(&self, prepared: &Prepared) {
        for side in &self.sides {
            let outcome = side.sender.as_ref().unwrap().deliver(prepared).await;
            assert_eq!(outcome, Outcome::Accepted(0, String::new()), "{:?}", side.database);
        }
    }

    /// Sends one request to one of the programs, over any protocol.
    pub async fn send_to(&mut self, side: usize, request: &ExportTraceServiceRequest) {
        let route = ROUTES[self.random.usize(..ROUTES.len())];
        self.sides[side].sender.as_ref().unwrap().accepted(route, request).await;
    }

    /// Waits until every span that was acknowledged is in the databases and in the metrics: spans are taken in the order of
    /// the journal, so that an execution which was sent last, and is an agent's too, says so. Returns the rows of each side.
    pub async fn settle(&mut self) -> Vec<BTreeMap<String, Row>> {
        let mut last = Vec::new();
        for side in 0..self.sides.len() {
            let mut story = Story::new(&mut self.random);
            let run = crate::executors::execution("settled", 0, 1);
            let agent = serde_json::json!({"gen_ai.operation.name": "invoke_agent", "agent.framework": "settled"});
            last.push(story.send(run.with(agent)));
            self.send_to(side, &crate::story::request(&story.sent)).await;
        }
        self.settled += 1.0;
        let labels = [("framework", "settled"), ("status", "success")];
        for (side, last) in self.sides.iter().zip(&last) {
            side.database.wait_for_row(last).await;
            let counted = |scrape: &Scrape| match scrape.get("agent_executions_total", &labels) {
                Some(count) if count == self.settled => Ok(()),
                other => Err(format!("{other:?}, expected {}", self.settled)),
            };
            let program = side.program.as_ref().unwrap();
            program.scrape_until("what was sent last is counted", counted).await;
        }
        let mut all = Vec::new();
        for side in &self.sides {
            let mut rows = side.database.rows().await;
            rows.retain(|_, row| row.language != "settled");
            all.push(rows);
        }
        all
    }

    /// Rows equal on all sides, once everything is in the databases.
    pub async fn rows(&mut self) -> BTreeMap<String, Row> {
        let mut all = self.settle().await;
        let first = all.remove(0);
        for other in all {
            assert_eq!(other, first, "SQLite and PostgreSQL hold the same rows");
        }
        first
    }

    /// Sends what one story has to tell in one request, and compares the rows.
    pub async fn tell(&mut self, story: &Story) {
        self.send(&crate::story::request(&story.sent)).await;
        let rows = self.settle().await;
        let wrong = compare(&rows, [("", story)]);
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    /// One of the programs.
    pub fn program(&self, side: usize) -> &Program {
        self.sides[side].program.as_ref().unwrap()
    }
}

impl Side {
    fn new(setup: Setup, database: Database) -> Side {
        Side {
            setup,
            database,
            program: None,
            sender: None,
        }
    }
}

/// The rows of each side against what stories expect; nothing when all is well.
pub fn compare<'a>(
    found: &[BTreeMap<String, Row>],
    stories: impl IntoIterator<Item = (&'a str, &'a Story)>,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut ids = std::collections::BTreeSet::new();
    for (name, story) in stories {
        for (side, rows) in found.iter().enumerate() {
            for expected in &story.rows {
                ids.insert(expected.id.clone());
                let difference = match rows.get(&expected.id) {
                    None => "no row".to_owned(),
                    Some(row) => columns_that_differ(row, expected),
                };
                if !difference.is_empty() {
                    wrong.push(format!("side {side}: {name}: {}: {difference}", expected.id));
                }
            }
        }
    }
    for (side, rows) in found.iter().enumerate() {
        let unexpected = rows.values().filter(|row| !ids.contains(&row.id));
        wrong.extend(unexpected.map(|row| format!("side {side}: nobody expects {row:?}")));
    }
    wrong
}

fn columns_that_differ(found: &Row, expected: &Row) -> String {
    let of = |row: &Row| {
        [
            format!("{:?}", row.id),
            format!("{:?}", row.code_agent_id),
            format!("{:?}", row.workflow_execution_id),
            format!("{:?}", row.node_id),
            format!("{:?}", row.runtime),
            format!("{:?}", row.language),
            format!("{:?}", row.duration_ms),
            format!("{:?}", row.memory_mb),
            format!("{:?}", row.exit_code),
            format!("{:?}", row.success),
            format!("{:?}", row.error_message),
            format!("{:?}", row.tokens_used),
            format!("{:?}", row.validation_passed),
            format!("{:?}", row.organization_id),
            format!("{:?}", row.workspace_id),
            format!("{:?}", row.user_id),
            format!("{:?}", row.created_at),
        ]
    };
    let differing = COLUMNS.iter().zip(of(found).into_iter().zip(of(expected)));
    let differing = differing.filter(|(_, (found, expected))| found != expected);
    differing
        .map(|(column, (found, expected))| format!("{column} is {found}, expected {expected}; "))
        .collect()
}

impl Database {
    /// Runs statements, separated by `;`.
    pub async fn execute(&self, statements: &str) {
        match self {
            Database::Sqlite(path) => {
                let mut connection = sqlite(path, false).await;
                sqlx::raw_sql(AssertSqlSafe(statements))
                    .execute(&mut connection)
                    .await
                    .unwrap();
                connection.close().await.unwrap();
            }
            Database::Postgres(url) => {
                let mut connection = PgConnection::connect(url).await.unwrap();
                sqlx::raw_sql(AssertSqlSafe(statements))
                    .execute(&mut connection)
                    .await
                    .unwrap();
                connection.close().await.unwrap();
            }
        }
    }

    /// One number.
    pub async fn count(&self, query: &str) -> i64 {
        match self {
            Database::Sqlite(path) => {
                let mut connection = sqlite(path, true).await;
                let count = sqlx::query_scalar(AssertSqlSafe(query))
                    .fetch_one(&mut connection)
                    .await;
                connection.close().await.unwrap();
                count.unwrap()
            }
            Database::Postgres(url) => {
                let mut connection = PgConnection::connect(url).await.unwrap();
                let count = sqlx::query_scalar(AssertSqlSafe(query))
                    .fetch_one(&mut connection)
                    .await;
                connection.close().await.unwrap();
                count.unwrap()
            }
        }
    }

    async fn wait_for_row(&self, id: &str) {
        let there = format!("SELECT CAST(count(*) AS bigint) FROM code_exec_logs WHERE id = '{id}'");
        eventually(&format!("the last row is in {self:?}"), || async {
            if self.count(&there).await == 1 {
                Ok(())
            } else {
                Err("it is not".to_owned())
            }
        })
        .await;
    }

    /// All rows by id.
    pub async fn rows(&self) -> BTreeMap<String, Row> {
        let integers = ["duration_ms", "memory_mb", "exit_code", "tokens_used"];
        let columns = COLUMNS.map(|column| {
            if integers.contains(&column) {
                format!("CAST({column} AS bigint) AS {column}")
            } else {
                column.to_owned()
            }
        });
        let query = format!("SELECT {} FROM code_exec_logs", columns.join(", "));
        macro_rules! read {
            ($connection:expr) => {{
                let rows = sqlx::query(AssertSqlSafe(query))
                    .fetch_all(&mut $connection)
                    .await
                    .unwrap();
                $connection.close().await.unwrap();
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
                        created_at: row
                            .try_get_unchecked::<chrono::NaiveDateTime, _>("created_at")
                            .unwrap()
                            .and_utc()
                            .timestamp_micros(),
                    })
                    .map(|row| (row.id.clone(), row))
                    .collect()
            }};
        }
        match self {
            Database::Sqlite(path) => {
                let mut connection = sqlite(path, true).await;
                read!(connection)
            }
            Database::Postgres(url) => {
                let mut connection = PgConnection::connect(url).await.unwrap();
                read!(connection)
            }
        }
    }

    /// What is kept beside the rows, by id.
    pub async fn beside(&self) -> BTreeMap<String, Beside> {
        let query = "SELECT id, reported_runtime, CAST(reported_exit_code AS bigint) AS reported_exit_code, \
                     reported_outcome, cost_usd FROM spanledger_executions";
        macro_rules! read {
            ($connection:expr) => {{
                let rows = sqlx::query(query).fetch_all(&mut $connection).await.unwrap();
                $connection.close().await.unwrap();
                rows.iter()
                    .map(|row| {
                        let beside = Beside {
                            runtime: row.get("reported_runtime"),
                            exit_code: row.get("reported_exit_code"),
                            outcome: row.get("reported_outcome"),
                            cost_usd: row.get("cost_usd"),
                        };
                        (row.get("id"), beside)
                    })
                    .collect()
            }};
        }
        match self {
            Database::Sqlite(path) => {
                let mut connection = sqlite(path, true).await;
                read!(connection)
            }
            Database::Postgres(url) => {
                let mut connection = PgConnection::connect(url).await.unwrap();
                read!(connection)
            }
        }
    }
}

async fn sqlite(path: &PathBuf, read_only: bool) -> SqliteConnection {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(!read_only)
        .read_only(read_only)
        .busy_timeout(Duration::from_secs(10));
    options.disable_statement_logging().connect().await.unwrap()
}
