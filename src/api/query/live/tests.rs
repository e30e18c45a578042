//! Rows that come faster than anybody reads them one by one, in both databases.

use std::ops::Range;
use std::time::Duration;

use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use sqlx::Connection as _;
use tokio_util::sync::CancellationToken;

use super::backlog::LiveRow;
use super::client::Sent;
use super::following::AT_ONCE;
use super::reading::event;
use super::*;
use crate::api::query::database::Dialect;
use crate::api::query::plans::{database, execute, id, numbers};
use crate::api::query::row::{Execution, Outcome};
use crate::api::query::{ApiToken, PipelineReport, QueryOptions};

/// A database without rows, and the API over it.
struct Fixture {
    url: String,
    api: QueryApi,
    shutdown: CancellationToken,
    _directory: Option<tempfile::TempDir>,
}

impl Fixture {
    /// One of each database.
    async fn all() -> Vec<Fixture> {
        let mut all = Vec::new();
        for dialect in [Dialect::Sqlite, Dialect::Postgres] {
            if let Some((url, directory)) = database(dialect, String::new()).await {
                all.push(Fixture::of(url, directory));
            }
        }
        all
    }

    fn of(url: String, directory: Option<tempfile::TempDir>) -> Fixture {
        let token = |token: &str, organization: Option<&str>| ApiToken {
            token: token.to_owned(),
            organization: organization.map(str::to_owned),
        };
        let options = QueryOptions {
            url: url.clone(),
            table: "code_exec_logs".to_owned(),
            tokens: vec![token("all", None), token("one", Some("org-1"))],
            ..QueryOptions::default()
        };
        let shutdown = CancellationToken::new();
        let api = QueryApi::new(options, PipelineReport::default, shutdown.clone()).unwrap();
        Fixture {
            url,
            api,
            shutdown,
            _directory: directory,
        }
    }

    /// Writes these rows in one transaction, received a tenth of a millisecond after each other.
    async fn write(&self, rows: Range<usize>) {
        execute(&self.url, format!("BEGIN; {} COMMIT;", self.insert(rows, 0, 100_000))).await;
    }

    /// SQL that inserts these rows, received so many nanoseconds after each other and all so many seconds later.
    fn insert(&self, rows: Range<usize>, seconds: i64, apart: i64) -> String {
        let dialect = self.api.dialect();
        let numbers = numbers(dialect, rows.start..=rows.end - 1);
        let id = id(dialect, "n + 1", "n + 1");
        let received_at = 1_769_860_800_000_000_000 + seconds * 1_000_000_000;
        format!(
            "INSERT INTO code_exec_logs (id, runtime, language, success, organization_id, created_at) {numbers} \
             SELECT {id}, 'vm2', 'python', true, 'org-' || (n % 2), '2026-01-31 12:00:00' FROM n ORDER BY n; \
             INSERT INTO spanledger_executions (id, trace_id, span_id, start_ns, end_ns, received_at_ns, created_at, \
             reported_outcome, sources) {numbers} SELECT {id}, 'x', 'x', 0, 0, {received_at} + CAST(n AS bigint) * {apart}, \
             '2026-01-31 12:00:00', 'success', '{{}}' FROM n ORDER BY n;"
        )
    }

    /// SQL that deletes these rows.
    fn delete(&self, rows: Range<usize>) -> String {
        let dialect = self.api.dialect();
        let numbers = numbers(dialect, rows.start..=rows.end - 1);
        let ids = format!("{numbers} SELECT {} FROM n", id(dialect, "n + 1", "n + 1"));
        format!(
            "DELETE FROM code_exec_logs WHERE id IN ({ids}); DELETE FROM spanledger_executions WHERE id IN ({ids});"
        )
    }

    /// The stream for who has this token, from which nothing is missed from now on.
    async fn stream(&self, token: &str, query: &str) -> Stream {
        let request = Request::get(format!("/api/v1/code-exec-logs/live{query}"))
            .header("host", "localhost")
            .header("authorization", format!("Bearer {token}"))
            .body(());
        let response = self.api.answer(&request.unwrap()).await;
        assert_eq!(response.status(), StatusCode::OK);
        let mut stream = Stream {
            body: response.into_body(),
            text: String::new(),
        };
        stream.until(|stream| stream.text.contains("retry:")).await;
        stream
    }

    /// The stream for who sees everything, to which these rows, the first of all, came.
    async fn stream_with(&self, rows: Range<usize>) -> Stream {
        let mut stream = self.stream("all", "").await;
        self.write(rows.clone()).await;
        stream.until_rows(rows.len()).await;
        stream
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// What has come of a stream.
struct Stream {
    body: Body,
    text: String,
}

impl Stream {
    async fn until(&mut self, enough: impl Fn(&Stream) -> bool) {
        let read = async {
            while !enough(self) {
                let frame = self.body.frame().await.expect("the stream goes on").unwrap();
                self.text
                    .push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
            }
        };
        // Longer than any computer takes that is only busy.
        let patience = Duration::from_secs(60);
        if tokio::time::timeout(patience, read).await.is_err() {
            let (rows, skipped) = (self.rows().len(), self.skipped());
            panic!("there are {rows} rows, and {skipped:?} was skipped");
        }
    }

    async fn until_rows(&mut self, count: usize) {
        self.until(|stream| stream.text.matches("event: row\n").count() >= count)
            .await;
    }

    /// The data of events of a kind. An event that has not come as a whole is none yet.
    fn data(&self, kind: &str) -> Vec<Value> {
        let events = self
            .text
            .split_inclusive("\n\n")
            .filter(|event| event.ends_with("\n\n"));
        let of_kind = events.filter(|event| event.contains(&format!("event: {kind}\n")));
        let data = of_kind.filter_map(|event| event.lines().find_map(|line| line.strip_prefix("data: ")));
        data.map(|data| serde_json::from_str(data).unwrap()).collect()
    }

    /// The numbers of the rows, as they came.
    fn rows(&self) -> Vec<usize> {
        let number = |row: &Value| usize::from_str_radix(&row["id"].as_str().unwrap()[..32], 16).unwrap() - 1;
        self.data("row").iter().map(number).collect()
    }

    fn skipped(&self) -> Vec<Value> {
        self.data("skipped")
    }

    /// A query that goes on after the row that came as this one.
    fn after(&self, index: usize) -> String {
        let id = self
            .text
            .lines()
            .filter_map(|line| line.strip_prefix("id: "))
            .nth(index);
        format!("?lastEventId={}", id.unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_rows_that_were_received_within_a_moment_are_shown_once_each() {
    const ROWS: usize = 6_000;
    const BATCH: usize = 500;
    for fixture in Fixture::all().await {
        let mut stream = fixture.stream("all", "").await;
        for batch in (0..ROWS).step_by(BATCH) {
            fixture.write(batch..batch + BATCH).await;
            stream.until_rows(batch + BATCH).await;
        }
        assert_eq!(stream.skipped(), [] as [Value; 0], "{}", fixture.url);
        assert_eq!(stream.rows(), (0..ROWS).collect::<Vec<_>>(), "{}", fixture.url);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_more_rows_than_are_shown_at_once_the_newest_are_shown_and_the_others_counted() {
    // More than is shown in a turn, and more than is looked through.
    for rows in [AT_ONCE + 300, KEYS + 300] {
        for fixture in Fixture::all().await {
            let mut stream = fixture.stream("all", "").await;
            let mut of_one = fixture.stream("one", "").await;
            fixture.write(0..rows).await;
            stream.until_rows(AT_ONCE).await;
            let newest = rows - AT_ONCE..rows;
            assert_eq!(stream.skipped(), [json!({"rows": rows - AT_ONCE})], "{}", fixture.url);
            assert_eq!(stream.rows(), newest.clone().collect::<Vec<_>>(), "{}", fixture.url);
            // How much others do is not for who sees one organization.
            of_one.until_rows(AT_ONCE / 2).await;
            assert_eq!(of_one.skipped(), [json!({})], "{}", fixture.url);
            assert_eq!(of_one.rows(), newest.filter(|row| row % 2 == 1).collect::<Vec<_>>());
            // What was left out does not come later.
            fixture.write(rows..rows + 1).await;
            stream.until_rows(AT_ONCE + 1).await;
            assert_eq!(stream.skipped().len(), 1, "{}", fixture.url);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_was_away_gets_the_newest_rows_it_missed_and_is_told_when_there_were_more() {
    for fixture in Fixture::all().await {
        let stream = fixture.stream_with(0..1).await;
        let last = stream.text.lines().find_map(|line| line.strip_prefix("id: ")).unwrap();
        let resume = format!("?lastEventId={last}");
        drop(stream);
        fixture.write(1..CATCH_UP + 1).await;
        let mut resumed = fixture.stream("all", &resume).await;
        resumed.until_rows(CATCH_UP).await;
        assert_eq!(resumed.skipped(), [] as [Value; 0], "{}", fixture.url);
        assert_eq!(resumed.rows(), (1..CATCH_UP + 1).collect::<Vec<_>>(), "{}", fixture.url);
        fixture.write(CATCH_UP + 1..CATCH_UP + 2).await;
        resumed.until_rows(CATCH_UP + 1).await;
        let mut resumed = fixture.stream("all", &resume).await;
        resumed.until_rows(CATCH_UP).await;
        assert_eq!(resumed.skipped(), [json!({})], "{}", fixture.url);
        assert_eq!(resumed.rows(), (2..CATCH_UP + 2).collect::<Vec<_>>(), "{}", fixture.url);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_taken_away_and_written_again_by_the_same_id_comes_once() {
    for fixture in Fixture::all().await {
        let mut stream = fixture.stream_with(0..3).await;
        execute(&fixture.url, fixture.insert(3..4, 10, 0)).await;
        stream.until_rows(4).await;
        // As an execution does that takes over the row of its runtime, and as rows are that are made anew.
        let again = format!("{} {}", fixture.delete(1..2), fixture.insert(1..2, 12, 0));
        execute(
            &fixture.url,
            format!("BEGIN; {again} COMMIT; {}", fixture.insert(4..5, 13, 0)),
        )
        .await;
        stream.until(|stream| stream.rows().contains(&4)).await;
        assert_eq!(stream.rows(), [0, 1, 2, 3, 4], "{}", fixture.url);
        assert_eq!(stream.skipped(), [] as [Value; 0], "{}", fixture.url);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_break_amid_the_rows_of_one_request_come_the_others() {
    for fixture in Fixture::all().await {
        let mut stream = fixture.stream("all", "").await;
        execute(&fixture.url, format!("BEGIN; {} COMMIT;", fixture.insert(0..60, 0, 0))).await;
        stream.until_rows(60).await;
        let mut resumed = fixture.stream("all", &stream.after(9)).await;
        fixture.write(60..61).await;
        resumed.until(|stream| stream.rows().contains(&60)).await;
        assert_eq!(resumed.rows(), (10..61).collect::<Vec<_>>(), "{}", fixture.url);
        assert_eq!(resumed.skipped(), [] as [Value; 0], "{}", fixture.url);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_was_received_long_before_others_comes_when_it_is_written() {
    for fixture in Fixture::all().await {
        let mut stream = fixture.stream_with(0..1).await;
        execute(&fixture.url, fixture.insert(1..2, -120, 0)).await;
        fixture.write(2..3).await;
        stream.until(|stream| stream.rows().contains(&2)).await;
        assert_eq!(stream.rows(), [0, 1, 2], "{}", fixture.url);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_come_that_are_written_where_others_were_deleted() {
    for fixture in Fixture::all().await {
        fixture.write(0..5).await;
        let mut stream = fixture.stream_with(5..10).await;
        // All in one transaction, so that nobody sees the places empty: as many, fewer, more.
        let mut written = 5..10;
        for (deleted, count) in [(0..10, 10), (12..20, 5), (17..25, 9)] {
            let new = written.end..written.end + count;
            let sql = format!("{} {}", fixture.delete(deleted), fixture.insert(new.clone(), 0, 0));
            execute(&fixture.url, format!("BEGIN; {sql} COMMIT;")).await;
            written.end = new.end;
            stream.until_rows(written.len()).await;
        }
        assert_eq!(stream.rows(), written.collect::<Vec<_>>(), "{}", fixture.url);
        assert_eq!(stream.skipped(), [] as [Value; 0], "{}", fixture.url);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_committed_after_later_ones_come_late_and_after_a_break_none_is_missing() {
    for fixture in Fixture::all().await {
        // There is one writer at a time.
        if fixture.api.dialect() == Dialect::Sqlite {
            continue;
        }
        let mut stream = fixture.stream_with(0..1).await;
        let mut slow = sqlx::PgConnection::connect(&fixture.url).await.unwrap();
        let begun = sqlx::AssertSqlSafe(format!("BEGIN; {}", fixture.insert(1..3, 0, 0)));
        sqlx::raw_sql(begun).execute(&mut slow).await.unwrap();
        fixture.write(3..5).await;
        stream.until_rows(3).await;
        let mut resumed = fixture.stream("all", &stream.after(2)).await;
        resumed.until_rows(2).await;
        // Several looks, at each of which it still goes on.
        for row in 6..10 {
            fixture.write(row..row + 1).await;
            stream.until(|stream| stream.rows().contains(&row)).await;
        }
        sqlx::raw_sql("COMMIT").execute(&mut slow).await.unwrap();
        fixture.write(5..6).await;
        stream.until(|stream| stream.rows().contains(&5)).await;
        assert_eq!(stream.rows(), [0, 3, 4, 6, 7, 8, 9, 1, 2, 5], "{}", fixture.url);
        resumed.until(|stream| stream.rows().contains(&5)).await;
        // Some twice, rather than one not at all.
        assert_eq!(resumed.rows(), [3, 4, 6, 7, 8, 9, 1, 2, 5], "{}", fixture.url);
    }
}

fn row(place: i64, message: usize) -> LiveRow {
    let row = Execution {
        id: format!("{place:032x}-{place:016x}"),
        code_agent_id: None,
        workflow_execution_id: None,
        node_id: None,
        runtime: String::new(),
        language: String::new(),
        duration_ms: None,
        memory_mb: None,
        exit_code: None,
        success: false,
        error_message: Some("e".repeat(message)),
        tokens_used: None,
        validation_passed: None,
        organization_id: None,
        workspace_id: None,
        user_id: None,
        created_at: "2026-01-31 12:00:00.000000".to_owned(),
        outcome: Outcome::Error,
        cost_usd: None,
    };
    let next = Next {
        id: row.id.clone(),
        place: Place(place),
        resume: Place(place),
    };
    let event = event(Mark::of(Order::Committed, &next), &row, None);
    LiveRow { row, event }
}

#[test]
fn of_rows_that_some_client_does_not_take_the_oldest_are_given_up() {
    let mut backlog = Backlog::default();
    let untaken: Vec<Arc<Kept>> = (0..2000).map(|place| backlog.keep(row(place, 8000))).collect();
    let is_kept: Vec<bool> = untaken.iter().map(|row| row.read().unwrap().is_some()).collect();
    let first = is_kept.iter().position(|is_kept| *is_kept).unwrap();
    assert!(first > 0 && is_kept[first..].iter().all(|is_kept| *is_kept));
    let held = |row: &Arc<Kept>| row.read().unwrap().as_ref().map_or(0, LiveRow::held);
    let sum: usize = untaken.iter().map(held).sum();
    assert!(sum <= BACKLOG_BYTES && sum > BACKLOG_BYTES / 2, "{sum}");
    // What was taken counts no longer.
    drop(untaken);
    backlog.keep(row(2000, 10));
    assert_eq!(backlog.rows.len(), 1);
    assert!(backlog.held < 2000);
}

#[test]
fn a_row_that_was_sent_before_its_turn_is_known_once() {
    let mut sent = Sent::default();
    assert!(!sent.was("a"));
    sent.note("a");
    assert!(sent.was("a"));
    assert!(!sent.was("a"));
}

impl QueryApi {
    /// Asks everything that is asked for live streams.
    pub(in crate::api::query) async fn ask_all_of_live(&self) {
        let keys = self.begin().await.map(|_| ());
        keys.unwrap();
        if self.order() == Order::Taken {
            self.writers().await.unwrap();
        }
        let last = self.last_place().await.unwrap();
        assert!(last > Place(1_000));
        let after = Place(last.0 - 1_000);
        assert_eq!(self.count_keys(after, last).await.unwrap(), 1_000);
        assert_eq!(self.keys_after(after, KEYS).await.unwrap().len(), 1_000);
        let keys = self.keys_between(after, last, ROWS).await.unwrap();
        let next: Vec<Next> = keys.into_iter().map(|key| Next::of(self.order(), key, last)).collect();
        assert_eq!(self.rows_of(&next).await.unwrap().rows.len(), ROWS);
    }
}

#[test]
fn an_id_of_an_event_says_the_place_and_where_it_may_be_used_again_the_row() {
    let next = Next {
        id: "a".to_owned(),
        place: Place(7),
        resume: Place(5),
    };
    let taken = Mark::of(Order::Taken, &next);
    assert_eq!(taken.to_string(), "5");
    assert!(taken.is_of("b"));
    let committed = Mark::of(Order::Committed, &next);
    assert_eq!(committed.to_string(), "5-e40c292c");
    assert!(committed.is_of("a") && !committed.is_of("b"));
    for mark in [taken, committed] {
        assert_eq!(Mark::parse(&mark.to_string()), Some(mark));
    }
    for wrong in ["", "-1", "a", "5-", "5-x", "5-123456789"] {
        assert_eq!(Mark::parse(wrong), None, "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_when_the_table_is_emptied_and_its_numbers_begin_anew() {
    for fixture in Fixture::all().await {
        let mut stream = fixture.stream_with(0..5).await;
        execute(
            &fixture.url,
            match fixture.api.dialect() {
                Dialect::Sqlite => fixture.delete(0..5),
                Dialect::Postgres => "TRUNCATE code_exec_logs, spanledger_executions RESTART IDENTITY".to_owned(),
            },
        )
        .await;
        fixture.write(5..7).await;
        if fixture.api.order() == Order::Taken {
            stream.until(|stream| !stream.skipped().is_empty()).await;
        }
        fixture.write(7..8).await;
        stream.until(|stream| stream.rows().contains(&7)).await;
        match fixture.api.order() {
            Order::Committed => assert_eq!(stream.rows(), [0, 1, 2, 3, 4, 5, 6, 7]),
            Order::Taken => assert_eq!(
                (stream.rows(), stream.skipped()),
                (vec![0, 1, 2, 3, 4, 7], vec![json!({})])
            ),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_to_a_place_that_there_is_not_is_told_that_rows_may_be_missing() {
    for fixture in Fixture::all().await {
        fixture.write(0..2).await;
        let mut resumed = fixture.stream("all", "?lastEventId=1769860800000000000").await;
        fixture.write(2..3).await;
        resumed.until_rows(1).await;
        assert_eq!((resumed.rows(), resumed.skipped()), (vec![2], vec![json!({})]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_to_a_place_that_another_row_took_is_told_that_rows_may_be_missing() {
    for fixture in Fixture::all().await {
        let stream = fixture.stream_with(0..3).await;
        let query = stream.after(2);
        drop(stream);
        execute(&fixture.url, fixture.delete(0..3)).await;
        fixture.write(3..8).await;
        let mut resumed = fixture.stream("all", &query).await;
        resumed.until(|stream| stream.rows().contains(&7)).await;
        match fixture.api.order() {
            Order::Committed => assert_eq!((resumed.rows(), resumed.skipped()), (vec![6, 7], vec![json!({})])),
            Order::Taken => assert_eq!((resumed.rows(), resumed.skipped()), ((3..8).collect(), Vec::new())),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_and_takes_rows_slowly_keeps_no_answer_waiting() {
    for fixture in Fixture::all().await {
        fixture.write(0..CATCH_UP).await;
        let mut slow = Vec::new();
        for _ in 0..2 * crate::api::query::answer::AT_ONCE {
            // What it has read is the beginning; of the rows it takes none.
            slow.push(fixture.stream("all", "?lastEventId=0").await);
        }
        // Whoever holds one gives it back as soon as a text is made.
        let mut seats = Vec::new();
        for _ in 0..crate::api::query::answer::AT_ONCE {
            seats.push(fixture.api.inner.seats.take().await.unwrap());
        }
        drop(seats);
        for mut stream in slow {
            stream.until_rows(CATCH_UP).await;
            assert_eq!(stream.rows(), (0..CATCH_UP).collect::<Vec<_>>(), "{}", fixture.url);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_takes_more_memory_than_a_client_has_for_it_is_refused() {
    let fixture = &Fixture::all().await[0];
    let ask = async |values: usize| {
        let agents: String = (0..values).map(|value| format!("&agentId={value}")).collect();
        let request = Request::get(format!("/api/v1/code-exec-logs/live?{agents}"))
            .header("host", "localhost")
            .header("authorization", "Bearer all")
            .body(());
        fixture.api.answer(&request.unwrap()).await.status()
    };
    assert_eq!(ask(100).await, StatusCode::OK);
    assert_eq!(ask(1_000).await, StatusCode::BAD_REQUEST);
}

#[test]
fn that_rows_cannot_be_read_is_said_once_after_a_while_and_that_they_can_again() {
    let error = || Some(QueryError::Unavailable("away".to_owned()));
    let mut trouble = Trouble::default();
    let begin = Instant::now();
    let said = [
        (0, error()),
        (9, error()),
        (10, error()),
        (11, error()),
        (12, None),
        (13, None),
        (14, error()),
    ];
    let said = said.map(|(seconds, error)| trouble.note(begin + Duration::from_secs(seconds), error));
    assert_eq!(said, [false, false, true, false, true, false, false]);
}
