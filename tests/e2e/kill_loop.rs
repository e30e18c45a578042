//! The oracle: SIGKILL at every commit point and at random moments, again and again, under traffic. What was acknowledged
//! is neither lost nor counted twice, in any destination, and nothing else is there.
//!
//! `SPANLEDGER_KILLS=1000` kills so many times on each database instead of the few dozen of a default run, and
//! `SPANLEDGER_KILL_MINUTES=45` ends that early, to judge what there is by then.

use crate::common::load::Load;
use crate::common::postgres::{self, Cluster};
use crate::common::program::{Program, Setup};
use crate::common::prometheus::{Expected, Scrape};
use crate::common::rows::{self, Row};
use crate::common::send::{Outcome, Prepared, ROUTES, Sender};
use crate::common::sink::{Mode, Sink};
use crate::common::{Patience, eventually, http, random};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;
use rustix::process::Signal;
use spanledger::failpoint::Point;
use std::collections::{BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hasher};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often the program is killed on each database: twice or three times at each commit point, and a dozen times at
/// random.
const KILLS: usize = 54;
/// By then every commit point has been passed many times.
const MOST_ANSWERS: u64 = 20_000;
/// How often is scraped: to do nothing else would keep the machine busy with that.
const SCRAPE_EVERY: Duration = Duration::from_millis(25);
/// Executors that send at the same time.
const DRIVERS: u64 = 4;

/// The number of the request that is sent when everything else was.
const LAST: u64 = u32::MAX as u64;

/// What the executors know: which requests were answered with success, and which they gave up without an answer. The
/// numbers are enough: what must follow from a request is made from its number again.
#[derive(Default)]
struct Notes {
    acknowledged: Mutex<BTreeSet<u64>>,
    in_doubt: Mutex<BTreeSet<u64>>,
    answers: AtomicU64,
    /// Nothing new is sent for now.
    is_paused: AtomicBool,
}

/// Where the rows are.
enum Rows {
    Sqlite(PathBuf),
    /// The server goes with it.
    Postgres {
        url: String,
        _server: Cluster,
    },
}

impl Rows {
    async fn has(&self, id: &str) -> Result<bool, String> {
        let has = match self {
            Rows::Sqlite(path) => rows::has(path, id).await,
            Rows::Postgres { url, .. } => rows::has_postgres(url, id).await,
        };
        has.map_err(|error| error.to_string())
    }

    async fn each(&self, visit: impl FnMut(Row)) {
        let end = match self {
            Rows::Sqlite(path) => rows::each(path, visit).await,
            Rows::Postgres { url, .. } => rows::each_postgres(url, visit).await,
        };
        end.unwrap();
    }

    async fn aggregates(&self) -> Vec<rows::Aggregate> {
        let aggregates = match self {
            Rows::Sqlite(path) => rows::aggregates(path).await,
            Rows::Postgres { url, .. } => rows::aggregates_postgres(url).await,
        };
        aggregates.unwrap()
    }
}

/// A span at the backend: its ids, and a digest of it with its resource and scope. A long run has a million of them.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Arrival {
    trace_id: u128,
    span_id: u64,
    digest: u64,
}

impl Arrival {
    fn all(request: &ExportTraceServiceRequest) -> Vec<Arrival> {
        let mut all = Vec::new();
        for of_resource in &request.resource_spans {
            for of_scope in &of_resource.scope_spans {
                all.extend(of_scope.spans.iter().map(|span| {
                    let mut hasher = DefaultHasher::new();
                    hasher.write(&of_resource.resource.clone().unwrap_or_default().encode_to_vec());
                    hasher.write(&of_scope.scope.clone().unwrap_or_default().encode_to_vec());
                    hasher.write(&span.encode_to_vec());
                    Arrival {
                        trace_id: u128::from_be_bytes(span.trace_id[..].try_into().unwrap()),
                        span_id: u64::from_be_bytes(span.span_id[..].try_into().unwrap()),
                        digest: hasher.finish(),
                    }
                }));
            }
        }
        all
    }
}

/// One way to die.
#[derive(Debug, Clone, Copy)]
enum Death {
    /// At the n-th passage of a commit point.
    At(Point, u64),
    /// After so many answers and a random moment more.
    AtRandom,
}

impl Death {
    /// Rounds in random order: each commit point once, and six kills at random.
    fn plan(kills: usize, random: &mut fastrand::Rng) -> Vec<Death> {
        let mut round = Vec::new();
        let mut deaths = Vec::new();
        while deaths.len() < kills {
            if round.is_empty() {
                round.extend(Point::ALL.map(|point| Death::At(point, random.u64(1..=most_passages(point)))));
                round.extend([Death::AtRandom; 6]);
                random.shuffle(&mut round);
            }
            deaths.extend(round.pop());
        }
        deaths
    }
}

/// A passage that comes soon under the traffic of this test: some points are passed with every request, some once in a
/// second.
fn most_passages(point: Point) -> u64 {
    match point {
        Point::BeforeWrite | Point::AfterWrite => 100,
        Point::BeforeSync | Point::AfterSync | Point::BeforeAnswer | Point::AfterAnswer => 40,
        Point::BeforeCommit | Point::AfterCommit => 10,
        Point::BeforeReplace => 4,
        Point::BeforePositionSave | Point::AfterPositionSave => 3,
        Point::BetweenHeaders | Point::AfterHeaders => 1,
        Point::BeforeCheckpoint | Point::BeforeCheckpointRename | Point::AfterCheckpoint => 1,
    }
}

/// Whether the meter comes by there. It saves when it is idle, or is told to stop.
fn is_of_checkpoint(point: Point) -> bool {
    matches!(
        point,
        Point::BeforeCheckpoint | Point::BeforeCheckpointRename | Point::AfterCheckpoint
    )
}

/// Whether a willing backend is needed to come by there.
fn is_of_forwarding(point: Point) -> bool {
    matches!(
        point,
        Point::BeforeReplace | Point::BeforePositionSave | Point::AfterPositionSave
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_kills_at_every_commit_point_exactly_once_in_sqlite() {
    let setup = Setup::new();
    let rows = Rows::Sqlite(setup.database());
    survives(setup, rows, "what_was_acknowledged_survives_kills_in_sqlite").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_kills_at_every_commit_point_exactly_once_in_postgresql() {
    if postgres::skipped() {
        return;
    }
    let server = tokio::task::spawn_blocking(Cluster::start).await.unwrap();
    let url = server.database();
    let setup = Setup::new().set("database.url", url.as_str());
    survives(
        setup,
        Rows::Postgres { url, _server: server },
        "what_was_acknowledged_survives_kills_in_postgresql",
    )
    .await;
}

async fn survives(setup: Setup, rows: Rows, name: &str) {
    let kills = std::env::var("SPANLEDGER_KILLS").map_or(KILLS, |kills| kills.parse().unwrap());
    let mut random = random(name);
    let load = Load::new(&mut random);
    let arrivals = Arc::new(Mutex::new(HashSet::new()));
    let arriving = arrivals.clone();
    let mut sink =
        Sink::watched(move |delivery| arriving.lock().unwrap().extend(Arrival::all(&delivery.request()))).await;
    // A backend that often refuses and is often away: retries are on their way at every moment.
    let flaky = Mode::Flaky(20, random.fork());
    sink.set(flaky.clone());
    // Small segments that are used again as soon as everyone has read them: kills meet rotation and recycling too.
    // An address of its own: the port of a program that was killed may be given to one that another test has started,
    // and a sender that still knocks there would be answered by the wrong one.
    let host = format!("127.{}.{}.{}:0", random.u8(1..), random.u8(..), random.u8(1..));
    let mut setup = setup
        .forwards_to(sink.url())
        .set("receivers.otlp.protocols.grpc.endpoint", host.as_str())
        .set("receivers.otlp.protocols.http.endpoint", host.as_str())
        .set("journal.max_size", "32MiB")
        .set("journal.retain", "0s")
        // A long run meets every exit code in every language and runtime, which is more than the default allows.
        .set("metrics.max_series_per_metric", "4000");
    let notes = Arc::new(Notes::default());
    let stop = CancellationToken::new();
    let (now, running) = watch::channel(None::<Arc<Sender>>);
    let drivers: Vec<_> = (0..DRIVERS)
        .map(|driver| {
            let random = random.fork();
            let (notes, running, stop) = (notes.clone(), running.clone(), stop.clone());
            tokio::spawn(drive(driver, load, random, notes, running, stop))
        })
        .collect();

    let minutes = std::env::var("SPANLEDGER_KILL_MINUTES").map_or(u64::MAX / 60, |minutes| minutes.parse().unwrap());
    let began = Instant::now();
    let (mut last, mut done, mut missed) = (Scrape::default(), 0, 0);
    for (kill, death) in Death::plan(kills, &mut random).into_iter().enumerate() {
        if began.elapsed().as_secs() >= minutes * 60 {
            break;
        }
        if kill % 100 == 99 {
            println!("{name}: {kill} kills after {:?}", began.elapsed());
        }
        done = kill + 1;
        let needs_sink = matches!(death, Death::At(point, _) if is_of_forwarding(point));
        match random.u8(..4) {
            0 if !needs_sink => sink.go_away().await,
            1 => sink.come_back().await,
            _ if needs_sink => sink.come_back().await,
            _ => {}
        }
        // Who answers before the sync may lose something to a power failure, and nothing to a kill.
        let fsync = match death {
            Death::AtRandom if random.bool() => "interval",
            _ => "always",
        };
        setup = setup.set("journal.fsync", fsync);
        let mut program = match death {
            Death::At(point, passage) => setup.spawn_armed(&format!("{}:{passage}", point.name())),
            Death::AtRandom => setup.spawn(),
        };
        if !program.ready_unless_killed().await {
            continue;
        }
        now.send_replace(Some(Arc::new(Sender::to(&program).await)));
        let metrics = program.url("metrics", "/metrics").await;
        let first = notes.answers.load(Ordering::Relaxed);
        let until = first + random.u64(1..60);
        let (mut answers, mut patience, mut is_told) = (first, Patience::new(), false);
        let mut scrape_at = Instant::now();
        while !program.is_killed() {
            // However slow the machine is: what is waited for is work done, and only without any is it a matter of time.
            let so_far = notes.answers.load(Ordering::Relaxed);
            if so_far > answers {
                (answers, patience) = (so_far, Patience::new());
            }
            if patience.is_over() || answers - first > MOST_ANSWERS {
                println!(
                    "kill {kill}, {death:?}: does not come by there in {} answers",
                    answers - first
                );
                program.signal(Signal::KILL);
                missed += 1;
                break;
            }
            if Instant::now() >= scrape_at
                && let Ok(answer) = http::get(&metrics).await
                && answer.status == 200
            {
                scrape_at = Instant::now() + SCRAPE_EVERY;
                let scrape = Scrape::parse(&answer.text()).derived();
                not_decreased(&last, &scrape, kill);
                last = scrape;
            }
            if notes.answers.load(Ordering::Relaxed) < until || is_told {
                tokio::time::sleep(Duration::from_millis(2)).await;
                continue;
            }
            match death {
                Death::AtRandom => {
                    tokio::time::sleep(Duration::from_micros(random.u64(..5_000))).await;
                    program.signal(Signal::KILL);
                    is_told = true;
                }
                // A checkpoint comes when nothing is to be counted, or at the end.
                Death::At(point, _) if is_of_checkpoint(point) => {
                    is_told = true;
                    if random.bool() {
                        program.signal(Signal::TERM);
                    } else {
                        notes.is_paused.store(true, Ordering::Relaxed);
                    }
                }
                Death::At(..) => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
        notes.is_paused.store(false, Ordering::Relaxed);
    }
    let program = setup.start().await;
    now.send_replace(Some(Arc::new(Sender::to(&program).await)));
    stop.cancel();
    for driver in drivers {
        driver.await.unwrap();
    }
    sink.set(Mode::Willing);
    sink.come_back().await;
    not_decreased(&last, &program.scrape().await.derived(), done);
    println!("{name}: {done} kills, {missed} of them not where they were planned");
    assert!(missed * 20 <= done, "commit points are not passed");
    judge(&load, &rows, &sink, &arrivals, &program, &notes).await;
}

/// Sends the requests whose number is its own modulo the number of drivers. Most of them again and again until they are
/// acknowledged, as SDKs do; one in ten is given up when no answer came.
async fn drive(
    driver: u64,
    load: Load,
    mut random: fastrand::Rng,
    notes: Arc<Notes>,
    mut running: watch::Receiver<Option<Arc<Sender>>>,
    stop: CancellationToken,
) {
    for number in (driver..).step_by(DRIVERS as usize) {
        if stop.is_cancelled() {
            return;
        }
        while notes.is_paused.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let prepared = Prepared::new(ROUTES[random.usize(..ROUTES.len())], &load.request(number).request);
        let gives_up = random.u8(..10) == 0;
        loop {
            let sender = running.wait_for(Option::is_some).await.unwrap().clone().unwrap();
            match sender.deliver(&prepared).await {
                Outcome::Accepted(0, _) => {
                    notes.answers.fetch_add(1, Ordering::Relaxed);
                    notes.acknowledged.lock().unwrap().insert(number);
                    break;
                }
                Outcome::Unknown(_) if gives_up => {
                    notes.in_doubt.lock().unwrap().insert(number);
                    break;
                }
                Outcome::Unknown(_) | Outcome::Refused(_, true) => {
                    // Most probably killed: wait for the next one rather than knock at a closed door. A connection that
                    // broke for another reason is tried again after a moment.
                    let next = async {
                        running.mark_unchanged();
                        running.changed().await
                    };
                    tokio::time::timeout(Duration::from_millis(20), next).await.ok();
                }
                other => panic!("request {number}: {other:?}"),
            }
        }
    }
}

fn not_decreased(before: &Scrape, now: &Scrape, kill: usize) {
    let decreased = now.decreased_since(before);
    assert!(decreased.is_empty(), "after kill {kill}:\n{}", decreased.join("\n"));
}

/// What the rows were found to be, request by request, and what must follow from them elsewhere.
struct Judgement<'a> {
    load: &'a Load,
    /// Of these all rows must be there …
    acknowledged: BTreeSet<u64>,
    /// … and of these all or none. Both without what has been judged.
    in_doubt: BTreeSet<u64>,
    wrong: Vec<String>,
    series: Expected,
    arrivals: HashSet<Arrival>,
}

impl Judgement<'_> {
    /// All rows that there are of one request.
    fn request(&mut self, number: Option<u64>, found: &[Row]) {
        let number = number.filter(|number| self.acknowledged.remove(number) || self.in_doubt.remove(number));
        let Some(number) = number else {
            self.wrong.push(format!("of no request: {found:?}"));
            return;
        };
        let planned = self.load.request(number);
        self.wrong.extend(rows::difference(found, &planned.rows));
        self.series.merge(&planned.series);
        self.arrivals.extend(Arrival::all(&planned.request));
    }
}

async fn judge(
    load: &Load,
    rows: &Rows,
    sink: &Sink,
    arrivals: &Mutex<HashSet<Arrival>>,
    program: &Program,
    notes: &Notes,
) {
    // Everything that can still come has come when the last thing that was sent is there, for each destination reads in
    // order. The last thing is a request of our own.
    let last = load.request(LAST);
    Sender::to(program).await.accepted(ROUTES[0], &last.request).await;
    notes.acknowledged.lock().unwrap().insert(LAST);
    eventually("the last row", || async {
        let has = rows.has(&last.rows[0].id).await?;
        has.then_some(()).ok_or_else(|| "it is not there".to_owned())
    })
    .await;

    let mut judgement = Judgement {
        load,
        acknowledged: notes.acknowledged.lock().unwrap().clone(),
        in_doubt: notes.in_doubt.lock().unwrap().clone(),
        wrong: Vec::new(),
        series: Expected::default(),
        arrivals: HashSet::new(),
    };
    println!(
        "{} requests acknowledged, {} in doubt",
        judgement.acknowledged.len(),
        judgement.in_doubt.len()
    );

    // Rows: of acknowledged requests all, of those in doubt all or none, and nothing else. They come in the order of
    // their ids, and so those of one request together.
    let (mut number, mut found, mut count) = (None, Vec::new(), 0);
    rows.each(|row| {
        let of = load.number(&row.id);
        if of != number && !found.is_empty() {
            judgement.request(number, &std::mem::take(&mut found));
        }
        number = of;
        found.push(row);
        count += 1;
    })
    .await;
    judgement.request(number, &found);
    let Judgement {
        acknowledged,
        wrong,
        series,
        arrivals: expected,
        ..
    } = judgement;
    assert!(acknowledged.is_empty(), "no rows of the requests {acknowledged:?}");
    assert!(
        wrong.is_empty(),
        "{} rows are wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );

    // Counters and histograms: the fold over exactly the requests whose rows there are.
    let counted = series.series();
    program
        .scrape_until("counters and histograms as the rows say", |scrape| {
            let wrong = scrape.derived().difference(&counted);
            if wrong.is_empty() {
                Ok(())
            } else {
                Err(wrong.join("\n"))
            }
        })
        .await;

    // The same once more without the plan: metrics and rows come by different ways from the same spans, and agree.
    let scrape = program.scrape().await;
    let aggregates = rows.aggregates().await;
    assert!(aggregates.len() > 10, "{aggregates:?}");
    for ((runtime, language, outcome), (executions, duration_ms)) in aggregates {
        let labels = [
            ("runtime", runtime.as_str()),
            ("language", language.as_str()),
            ("outcome", outcome.as_str()),
        ];
        for (name, value) in [
            ("code_executions_total", executions),
            ("code_duration_ms_count", executions),
            ("code_duration_ms_sum", duration_ms),
        ] {
            assert_eq!(scrape.get(name, &labels), Some(value as f64), "{name} {labels:?}");
        }
    }

    // The sink: each of them as it was sent, at least once, and nothing else.
    sink.wait("every span at the sink", |_| {
        (arrivals.lock().unwrap().len() >= expected.len()).then_some(())
    })
    .await;
    let arrived = std::mem::take(&mut *arrivals.lock().unwrap());
    let lost: Vec<_> = expected.difference(&arrived).collect();
    assert!(
        lost.is_empty(),
        "{} spans did not reach the sink: {lost:x?}",
        lost.len()
    );
    let invented: Vec<_> = arrived.difference(&expected).collect();
    assert!(
        invented.is_empty(),
        "{} spans at the sink that are in no row: {invented:x?}",
        invented.len()
    );
    println!(
        "judged: {count} rows, {} series, {} spans at the backend",
        counted.0.len(),
        arrived.len()
    );
}
