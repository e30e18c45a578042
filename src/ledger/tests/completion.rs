//! Rows are completed by what comes later, whatever the order, the batches and the restarts.

use super::databases::{Database, on_both, with};
use super::support::{
    EPOCH, HOUR, MS, S, V, execution, facts, failure, node, permutations, request, rows_of, span, success,
};
use crate::ledger::facts::Facts;
use crate::ledger::row::Row;
use crate::ledger::store::{Store, Waiting};

on_both! {
    every_order_of_arrival_gives_the_same_rows
    random_traffic_in_random_pieces_gives_what_one_clean_run_gives
    what_is_sent_again_changes_nothing
    what_was_taken_when_one_match_was_known_is_given_back_when_there_are_two
    a_row_never_becomes_worse_when_its_context_has_fallen_out
    spans_received_further_apart_than_the_window_do_not_find_each_other
    the_side_table_says_what_was_reported_and_where_values_come_from
    what_a_span_says_of_its_cost_counts_before_prices_and_without_either_there_is_none
}

/// A failed run with all that is around it: outer, router, inner, runtime, node.
fn everything() -> Vec<S> {
    vec![
        failure(1, 1, 100, 150).ids("wf-1", "we-1", "n-1"),
        span("runtimeRouter.route", 1, 2, 105, 145).with("runtime.selected", V::S("e2b")),
        span("e2b.execute", 1, 3, 107, 143).all([("e2b.exit_code", V::I(9)), ("e2b.memory_mb", V::I(64))]),
        node(2, 4, 95, 155)
            .ids("wf-1", "we-1", "n-1")
            .with("node.error", V::S("boom")),
    ]
}

fn expected(spans: &[S]) -> Vec<Row> {
    sorted(rows_of(&facts(spans)))
}

fn sorted(mut rows: Vec<Row>) -> Vec<Row> {
    rows.sort_by(|one, two| one.id.cmp(&two.id));
    rows
}

async fn every_order_of_arrival_gives_the_same_rows(database: Database) {
    let spans = everything();
    let expected = expected(&spans);
    assert_eq!(expected[0].error_message.as_deref(), Some("boom"));
    assert_eq!((expected[0].exit_code, expected[0].runtime.as_str()), (Some(9), "e2b"));
    let mut session = database.connect().await.unwrap();
    for order in permutations(&spans) {
        database
            .execute("DELETE FROM code_exec_logs; DELETE FROM spanledger_executions; DELETE FROM spanledger_context")
            .await;
        for span in &order {
            session.write(&facts(std::slice::from_ref(span))).await.unwrap();
        }
        assert_eq!(database.rows().await, expected);
        // The runtime is known only when the router is: the cost follows it.
        let costs = "SELECT count(*) FROM spanledger_executions WHERE cost_usd BETWEEN 0.4999 AND 0.5001";
        assert_eq!(database.number(costs).await, 1, "{order:?}");
    }
}

/// Some workflow runs with retries, loops, hooks, and traces that are shared or not.
fn traffic(random: &mut fastrand::Rng) -> Vec<S> {
    let mut spans = Vec::new();
    for id in 0..30_u16 {
        let from = random.u64(0..4_000);
        let to = from + random.u64(1..800);
        let trace = random.u8(1..6);
        let node_id = ["n-1", "n-2", ""][random.usize(0..3)];
        let execution_id = ["we-1", "we-2", ""][random.usize(0..3)];
        let span = match random.u8(0..7) {
            0 => success(trace, id, from, to).ids("wf", execution_id, node_id),
            1 => failure(trace, id, from, to).ids("wf", execution_id, node_id),
            2 => execution(trace, id, from, to).ids("wf", execution_id, node_id),
            3 => span("runtimeRouter.route", trace, id, from, to).with("runtime.selected", V::S("e2b")),
            4 => span("e2b.execute", trace, id, from, to).with("e2b.exit_code", V::I(i64::from(id))),
            5 => span("etlHook.preIngest", trace, id, from, to + 1_000)
                .with("hook.agent_id", V::S("ca-1"))
                .status(2, "hook"),
            _ => node(trace, id, from, to + 1_000).ids("wf", execution_id, node_id).all([
                ("node.error", V::S("boom")),
                ("node.attempts", V::I(i64::from(random.u8(1..3)))),
            ]),
        };
        spans.push(span);
    }
    spans
}

async fn random_traffic_in_random_pieces_gives_what_one_clean_run_gives(database: Database) {
    let rounds = if database.is_postgres() { 10 } else { 40 };
    database.write(&[]).await;
    for seed in 0..rounds {
        let mut random = fastrand::Rng::with_seed(seed);
        let spans = traffic(&mut random);
        let expected = expected(&spans);
        // Everything once or twice, in any order, in pieces, by one of two sidecars, with restarts.
        let mut sent: Vec<S> = spans.clone();
        sent.extend(spans.iter().filter(|_| random.bool()).cloned());
        random.shuffle(&mut sent);
        database
            .execute("DELETE FROM code_exec_logs; DELETE FROM spanledger_executions; DELETE FROM spanledger_context")
            .await;
        let mut sidecars = [database.connect().await.unwrap(), database.connect().await.unwrap()];
        let mut sent = sent.as_slice();
        while !sent.is_empty() {
            let (piece, rest) = sent.split_at(random.usize(1..=sent.len().min(8)));
            sent = rest;
            let sidecar = &mut sidecars[random.usize(0..2)];
            if random.u8(0..10) == 0 {
                *sidecar = database.connect().await.unwrap();
            }
            sidecar.write(&facts(piece)).await.unwrap();
        }
        assert_eq!(database.rows().await, expected, "seed {seed}");
    }
}

async fn what_is_sent_again_changes_nothing(database: Database) {
    let spans = everything();
    database.write(&facts(&spans)).await;
    let before = database.rows().await;
    let again = database.write(&facts(&spans)).await;
    assert_eq!((again.written, again.duplicates, again.merged), (0, 1, 0));
    // Also when the database has forgotten all context of it.
    database.execute("DELETE FROM spanledger_context").await;
    let again = database.write(&facts(&spans[..1])).await;
    assert_eq!((again.written, again.duplicates, again.merged), (0, 1, 0));
    assert_eq!(database.rows().await, before);
    assert_eq!(database.waiting().await, 0);
}

async fn what_was_taken_when_one_match_was_known_is_given_back_when_there_are_two(database: Database) {
    let run = failure(1, 1, 100, 150);
    let one = node(1, 2, 90, 160);
    let two = node(1, 3, 80, 170).with("user.id", V::S("user-2"));
    database.write(&facts(&[run, one])).await;
    assert_eq!(database.rows().await[0].user_id.as_deref(), Some("user-1"));
    assert_eq!(database.write(&facts(&[two])).await.merged, 1);
    assert_eq!(database.rows().await[0].user_id, None);
}

async fn a_row_never_becomes_worse_when_its_context_has_fallen_out(database: Database) {
    let run = failure(1, 1, 100, 150);
    let around = node(1, 2, 90, 160).with("node.error", V::S("boom"));
    database.write(&facts(&[run, around.clone()])).await;
    let before = database.rows().await;
    let mut session = database.connect().await.unwrap();
    with!(session, store => {
        store.begin().await.unwrap();
        store.forget(&facts(&[around])).await.unwrap();
        store.commit().await
    })
    .unwrap();
    assert_eq!(database.waiting().await, 1);
    let hook = span("etlHook.preIngest", 1, 3, 95, 155)
        .with("hook.agent_id", V::S("ca-1"))
        .status(2, "a worse source");
    assert_eq!(database.write(&facts(&[hook])).await.merged, 1);
    let after = database.rows().await;
    assert_eq!(
        after,
        [Row {
            code_agent_id: Some("ca-1".into()),
            ..before[0].clone()
        }]
    );
}

async fn spans_received_further_apart_than_the_window_do_not_find_each_other(database: Database) {
    let at = |span: &S, received_at: u64| -> Vec<Facts> {
        super::support::facts_of(&request(std::slice::from_ref(span)), EPOCH + received_at)
    };
    let run = |id| failure(1, id, 100, 150).ids("wf-1", "we-1", "n-1");
    let around = node(2, 9, 90, 160).ids("wf-1", "we-1", "n-1");
    database.write(&at(&run(1), 0)).await;
    database.write(&at(&around, HOUR)).await;
    database.write(&at(&run(2), HOUR + HOUR)).await;
    database.write(&at(&run(3), HOUR + HOUR + MS)).await;
    let users: Vec<_> = database.rows().await.into_iter().map(|row| row.user_id).collect();
    assert_eq!(users, [Some("user-1".into()), Some("user-1".into()), None]);
}

async fn the_side_table_says_what_was_reported_and_where_values_come_from(database: Database) {
    database.write(&facts(&everything())).await;
    let id = everything()[0].row_id();
    let sql = format!(
        "SELECT count(*) FROM spanledger_executions WHERE id = '{id}' AND trace_id = '{}' AND span_id = '{}' \
         AND reported_runtime = 'vm2' AND reported_exit_code IS NULL AND reported_outcome = 'error' \
         AND end_ns - start_ns = 50000000 AND sources LIKE '%\"runtime\":\"router\"%' \
         AND sources LIKE '%\"user_id\":\"node\"%' AND sources LIKE '%\"exit_code\":\"runtime_span\"%'",
        &id[..32],
        &id[33..],
    );
    assert_eq!(database.number(&sql).await, 1);
}

async fn what_a_span_says_of_its_cost_counts_before_prices_and_without_either_there_is_none(database: Database) {
    let on_e2b = |id| success(1, id, 100, 150).with("code.runtime", V::S("e2b"));
    let spans = [
        on_e2b(1),
        on_e2b(2).with("code.cost_usd", V::D(0.125)),
        success(1, 3, 100, 150),
    ];
    database.write(&facts(&spans)).await;
    for (span, condition) in spans.iter().zip([
        "cost_usd BETWEEN 0.4999 AND 0.5001",
        "cost_usd = 0.125",
        "cost_usd IS NULL",
    ]) {
        let id = span.row_id();
        let sql = format!("SELECT count(*) FROM spanledger_executions WHERE id = '{id}' AND {condition}");
        assert_eq!(database.number(&sql).await, 1, "{condition}");
    }
}
