//! Whatever comes, in whatever order, again and again, through kills: the counters are what the rows add up to, both
//! databases hold the same, and nothing that was scraped ever goes back.

use crate::common::prometheus::Scrape;
use crate::common::random;
use crate::orders::Case;
use crate::story::{Sent, Story, request};
use crate::world::{World, compare};
use crate::{ladders, paths};
use std::collections::BTreeMap;

/// How many stories of each kind are told in the default run; `SPANLEDGER_CONTRACT_ROUNDS` repeats the whole.
const EACH: usize = 3;

/// Executions by what their own spans said: runtime, language, outcome.
type Counts = BTreeMap<[String; 3], f64>;

fn counted(scrape: &Scrape, name: &str) -> Counts {
    let of = |labels: &BTreeMap<String, String>| ["runtime", "language", "outcome"].map(|label| labels[label].clone());
    let series = scrape.0.iter().filter(|(series, _)| series.name == name);
    series.map(|(series, value)| (of(&series.labels), *value)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_equal_what_the_rows_add_up_to_and_both_databases_hold_the_same() {
    let rounds = std::env::var("SPANLEDGER_CONTRACT_ROUNDS").map_or(1, |rounds| rounds.parse().unwrap());
    let mut random = random("counters_equal_what_the_rows_add_up_to_and_both_databases_hold_the_same");
    for _ in 0..rounds {
        once(&mut random).await;
    }
}

async fn once(random: &mut fastrand::Rng) {
    let kinds: [fn() -> Vec<Case>; 8] = [
        paths::ends,
        paths::runtimes,
        paths::callers,
        ladders::sources,
        ladders::ambiguous,
        ladders::repeated,
        ladders::matching,
        ladders::verdicts,
    ];
    let mut stories: Vec<(&'static str, Story)> = Vec::new();
    for case in kinds.iter().flat_map(|kind| kind()) {
        for _ in 0..random.usize(1..=EACH) {
            let mut story = Story::new(random);
            story.one_trace = case.one_trace;
            (case.tell)(&mut story);
            stories.push((case.name, story));
        }
    }
    let mut spans: Vec<Sent> = stories.iter().flat_map(|(_, story)| story.sent.clone()).collect();
    random.shuffle(&mut spans);

    let mut world = World::start(random).await;
    let mut before = vec![Scrape::default(); world.sides.len()];
    let kills = [spans.len() / 4, spans.len() / 2, spans.len() - 10];
    let mut at = 0;
    while at < spans.len() {
        let size = random.usize(1..120).min(spans.len() - at);
        world.send(&request(&spans[at..at + size])).await;
        // Nobody has seen the answer: the same bytes again, also from before a kill.
        for _ in 0..random.usize(..3) {
            world.send_again().await;
        }
        if kills.iter().any(|kill| (at..at + size).contains(kill)) {
            world.kill_and_restart().await;
            world.send_again().await;
            for (side, before) in before.iter_mut().enumerate() {
                let now = world.program(side).scrape().await.derived();
                assert_eq!(now.decreased_since(before), Vec::<String>::new());
                *before = now;
            }
        }
        at += size;
    }

    let found = world.settle().await;
    let wrong = compare(&found, stories.iter().map(|(name, story)| (*name, story)));
    assert!(
        wrong.is_empty(),
        "{} rows are wrong: {:#?}",
        wrong.len(),
        &wrong[..wrong.len().min(5)]
    );
    for rows in &found[1..] {
        assert_eq!(rows, &found[0]);
    }
    let executions: usize = stories.iter().map(|(_, story)| story.rows.len()).sum();
    for (side, rows) in found.iter().enumerate() {
        let beside = world.sides[side].database.beside().await;
        assert_eq!(beside.len(), executions + 1, "one beside each row, and the last");
        let mut expected = Counts::new();
        let mut exits: BTreeMap<[String; 3], f64> = BTreeMap::new();
        for (id, beside) in &beside {
            let language = rows.get(id).map_or("settled", |row| &row.language).to_owned();
            let runtime = beside.runtime.clone().unwrap_or_else(|| "unknown".to_owned());
            *expected
                .entry([runtime.clone(), language.clone(), beside.outcome.clone()])
                .or_default() += 1.0;
            if let Some(exit_code) = beside.exit_code {
                *exits.entry([runtime, language, exit_code.to_string()]).or_default() += 1.0;
            }
        }
        let scrape = world
            .program(side)
            .scrape_until("every execution is counted once", |scrape| {
                let found = counted(scrape, "code_executions_total");
                if found == expected {
                    Ok(scrape.clone())
                } else {
                    Err(format!("{found:?}, expected {expected:?}"))
                }
            })
            .await;
        assert_eq!(
            counted(&scrape, "code_duration_ms_count"),
            expected,
            "each has a duration"
        );
        let by_code: BTreeMap<[String; 3], f64> = scrape
            .0
            .iter()
            .filter(|(series, _)| series.name == "code_exit_code_total")
            .map(|(series, value)| {
                (
                    ["runtime", "language", "exit_code"].map(|label| series.labels[label].clone()),
                    *value,
                )
            })
            .collect();
        assert_eq!(by_code, exits, "each exit code that was said");
        assert_eq!(scrape.derived().decreased_since(&before[side]), Vec::<String>::new());
    }
    let scrapes = [world.program(0).scrape().await.derived()];
    for side in 1..world.sides.len() {
        let other = world.program(side).scrape().await.derived();
        assert_eq!(
            other.difference(&scrapes[0]),
            Vec::<String>::new(),
            "both programs count the same"
        );
    }
}
