//! SIGKILL, again and again, under traffic: what was acknowledged is neither lost nor counted twice.

use crate::common::load::{Load, Planned};
use crate::common::program::{Program, Setup};
use crate::common::prometheus::{Expected, Scrape};
use crate::common::send::{Outcome, Prepared, ROUTES, Sender};
use crate::common::sink::{Mode, Sink};
use crate::common::{http, random, rows};
use crate::end_to_end::delivered_spans;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often the program is killed.
const KILLS: usize = 36;
/// Executors that send at the same time.
const DRIVERS: u64 = 4;

/// What the executors know: which requests were answered with success, and which they gave up without an answer.
#[derive(Default)]
struct Notes {
    acknowledged: Mutex<BTreeMap<u64, Planned>>,
    in_doubt: Mutex<BTreeMap<u64, Planned>>,
    answers: AtomicU64,
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_kills_at_any_moment_exactly_once() {
    let mut random = random("what_was_acknowledged_survives_kills_at_any_moment_exactly_once");
    let load = Load::new(&mut random);
    let mut sink = Sink::start().await;
    // A backend that often refuses and is often away: retries are on their way at every moment.
    sink.set(Mode::Flaky(20, random.fork()));
    // Small segments that are used again as soon as everyone has read them: kills meet rotation and recycling too.
    let setup = Setup::forwarding_to(sink.url())
        .set("journal.max_size", "32MiB")
        .set("journal.retain", "0s");
    let notes = Arc::new(Notes::default());
    let stop = CancellationToken::new();
    let (now, running) = watch::channel(None::<Arc<Sender>>);
    let drivers: Vec<_> = (0..DRIVERS)
        .map(|driver| {
            let random = random.fork();
            tokio::spawn(drive(
                driver,
                load,
                random,
                notes.clone(),
                running.clone(),
                stop.clone(),
            ))
        })
        .collect();

    let mut last = Scrape::default();
    for kill in 0..KILLS {
        let program = setup.start().await;
        let scrape = program.scrape().await.derived();
        not_decreased(&last, &scrape, kill);
        last = scrape;
        now.send_replace(Some(Arc::new(Sender::to(&program).await)));
        match random.u8(..4) {
            0 => sink.go_away().await,
            1 => sink.come_back().await,
            _ => {}
        }

        // Killed after a random number of answers and then at a random moment of the next millisecond or five.
        let until = notes.answers.load(Ordering::Relaxed) + random.u64(1..60);
        let metrics = program.url("metrics", "/metrics").await;
        let began = std::time::Instant::now();
        while notes.answers.load(Ordering::Relaxed) < until {
            assert!(
                began.elapsed() < crate::common::DEADLINE,
                "no answers after restart {kill}:\n{}",
                program.log()
            );
            let scrape = Scrape::parse(&http::get(&metrics).await.unwrap().text()).derived();
            not_decreased(&last, &scrape, kill);
            last = scrape;
        }
        tokio::time::sleep(Duration::from_micros(random.u64(..5_000))).await;
        program.kill();
    }
    let program = setup.start().await;
    now.send_replace(Some(Arc::new(Sender::to(&program).await)));
    stop.cancel();
    for driver in drivers {
        driver.await.unwrap();
    }
    sink.set(Mode::Willing);
    sink.come_back().await;
    not_decreased(&last, &program.scrape().await.derived(), KILLS);
    judge(&setup, &sink, &program, &notes, &Load::new(&mut random).request(0)).await;
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
        let planned = load.request(number);
        let prepared = Prepared::new(ROUTES[random.usize(..ROUTES.len())], &planned.request);
        let gives_up = random.u8(..10) == 0;
        loop {
            let sender = running.wait_for(Option::is_some).await.unwrap().clone().unwrap();
            match sender.deliver(&prepared).await {
                Outcome::Accepted(0, _) => {
                    notes.answers.fetch_add(1, Ordering::Relaxed);
                    notes.acknowledged.lock().unwrap().insert(number, planned);
                    break;
                }
                Outcome::Unknown(_) if gives_up => {
                    notes.in_doubt.lock().unwrap().insert(number, planned);
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

async fn judge(setup: &Setup, sink: &Sink, program: &Program, notes: &Notes, last: &Planned) {
    let acknowledged = notes.acknowledged.lock().unwrap().clone();
    let in_doubt = notes.in_doubt.lock().unwrap().clone();
    println!(
        "{KILLS} kills, {} requests acknowledged, {} in doubt",
        acknowledged.len(),
        in_doubt.len()
    );

    // Everything that can still come has come when the last thing that was sent is there, for each destination reads in
    // order. The last thing is a request of our own.
    Sender::to(program).await.accepted(ROUTES[0], &last.request).await;
    let marker = last.rows[0].id.clone();
    let found = crate::common::eventually("the last row", || async {
        let rows = rows::read(&setup.database()).await.map_err(|error| error.to_string())?;
        if rows.iter().any(|row| row.id == marker) {
            Ok(rows)
        } else {
            Err(format!("{} rows", rows.len()))
        }
    })
    .await;

    // Rows: of acknowledged requests all, of those in doubt all or none, and nothing else.
    let present: BTreeSet<&str> = found.iter().map(|row| row.id.as_str()).collect();
    assert_eq!(present.len(), found.len(), "an id twice");
    let mut counted = last.series.clone();
    let mut expected_rows = last.rows.clone();
    let mut expected_spans: BTreeSet<String> = last.spans.iter().cloned().collect();
    let arrived = in_doubt
        .values()
        .filter(|planned| present.contains(planned.rows[0].id.as_str()));
    for planned in acknowledged.values().chain(arrived) {
        counted.merge(&planned.series);
        expected_rows.extend(planned.rows.clone());
        expected_spans.extend(planned.spans.clone());
    }
    let wrong = rows::difference(&found, &expected_rows);
    assert!(
        wrong.is_empty(),
        "{} rows are wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );

    // Counters and histograms: the fold over exactly the requests whose rows there are.
    let counted: Expected = counted;
    let counted = counted.series();
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

    // The sink: each of them at least once, and nothing else.
    let delivered = sink
        .wait("every span at the sink", |all| {
            let delivered: BTreeSet<String> = delivered_spans(all).into_iter().collect();
            (delivered.len() >= expected_spans.len()).then_some(delivered)
        })
        .await;
    let lost: Vec<_> = expected_spans.difference(&delivered).collect();
    assert!(lost.is_empty(), "{} spans did not reach the sink: {lost:?}", lost.len());
    let invented: Vec<_> = delivered.difference(&expected_spans).collect();
    assert!(
        invented.is_empty(),
        "{} spans at the sink that are in no row: {invented:?}",
        invented.len()
    );
}
