//! Rows that come faster than anybody reads them one by one, in both databases.

use std::ops::Range;
use std::time::Duration;

use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::following::AT_ONCE;
use super::*;
use crate::api::query::plans::{database, execute, id, numbers};
use crate::api::query::row::Outcome;
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
        let dialect = self.api.dialect();
        let numbers = numbers(dialect, rows.start..=rows.end - 1);
        let id = id(dialect, "n + 1", "n + 1");
        let sql = format!(
            "BEGIN; INSERT INTO code_exec_logs (id, runtime, language, success, organization_id, created_at) {numbers} \
             SELECT {id}, 'vm2', 'python', true, 'org-' || (n % 2), '2026-01-31 12:00:00' FROM n ORDER BY n; \
             INSERT INTO spanledger_executions (id, trace_id, span_id, start_ns, end_ns, received_at_ns, created_at, \
             reported_outcome, sources) {numbers} SELECT {id}, 'x', 'x', 0, 0, 1769860800000000000 + CAST(n AS bigint) * 100000, \
             '2026-01-31 12:00:00', 'success', '{{}}' FROM n; COMMIT;"
        );
        execute(&self.url, sql).await;
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
        let mut stream = fixture.stream("all", "").await;
        fixture.write(0..1).await;
        stream.until_rows(1).await;
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

/// Keys as they are read, newest first.
fn keys(places: impl DoubleEndedIterator<Item = i64>) -> Vec<Key> {
    let key = |place: i64| Key {
        place: Place(place),
        id: place.to_string(),
    };
    places.rev().map(key).collect()
}

fn waiting(following: &Following) -> Vec<i64> {
    following.waiting.iter().map(|key| key.place.0).collect()
}

#[test]
fn what_is_read_again_is_shown_once_and_what_comes_late_within_that_time_as_well() {
    let mut following = Following::new(Place(100), 10);
    assert_eq!(following.done, Place(90));
    // 102 came between the two looks.
    following.has_seen(keys([95, 100, 102].into_iter()));
    assert_eq!(following.take(keys([95, 98, 100, 102].into_iter()), None), 0);
    assert_eq!((waiting(&following), following.done), (vec![98, 102], Place(92)));
    // What could not be read from the database stays.
    assert_eq!(following.take(keys([95, 98, 100, 102, 110].into_iter()), None), 0);
    assert_eq!((waiting(&following), following.done), (vec![98, 102, 110], Place(100)));
    following.waiting.clear();
    assert_eq!(following.take(keys([102, 110].into_iter()), None), 0);
    assert_eq!(following.take(Vec::new(), None), 0);
    assert!(following.waiting.is_empty());
    assert_eq!(following.seen.len(), 2);
}

#[test]
fn rows_beyond_the_keys_that_are_read_are_counted_once_and_what_was_shown_of_them_is_not() {
    let all = KEYS as i64;
    let mut following = Following::new(Place(0), 10 * all);
    assert_eq!(following.take(keys(1..11), None), 0);
    following.waiting.clear();
    // Up to the oldest that was read there are the ten that were shown, 89 others, and itself.
    assert_eq!(following.take(keys(100..100 + all), Some(100)), 89 + KEYS - AT_ONCE);
    assert_eq!(following.done, Place(100));
    assert_eq!(following.seen.len(), KEYS - 1);
    assert_eq!(
        waiting(&following),
        (100 + all - AT_ONCE as i64..100 + all).collect::<Vec<_>>()
    );
    // A start amid many rows.
    let mut following = Following::new(Place(all), 10 * all);
    following.has_seen(keys(10..10 + all));
    assert_eq!(following.done, Place(10));
    assert_eq!(following.take(keys(11..10 + all), None), 0);
    assert_eq!(waiting(&following), (all + 1..10 + all).collect::<Vec<_>>());
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
    let place = Place(place);
    let event = event(place, &row, None);
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
