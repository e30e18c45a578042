//! Costs under kill -9: what executions are estimated to cost is counted exactly once, in the metric and beside the rows.

use crate::common::program::Setup;
use crate::common::send::{Route, Sender};
use crate::common::{eventually, random, rows, spans, unix_ms_ago};
use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::json;
use sqlx::Connection as _;
use std::time::Duration;

const KILLS: usize = 6;

/// Every cost is a multiple of 1/64, so that sums are exact however they are added up.
const PER_MILLISECOND: f64 = 1.0 / 64.0;

#[tokio::test(flavor = "multi_thread")]
async fn with_prices_set_the_cost_is_exact_across_kills() {
    let mut random = random("with_prices_set_the_cost_is_exact_across_kills");
    let setup = Setup::new().set(
        "prices.runtimes.e2b",
        json!({"vcpu_second": PER_MILLISECOND * 1000.0, "vcpus": 1, "execution": 0.25}),
    );
    let (mut by_e2b, mut by_vm2, mut executions) = (0.0, 0.0, 0);
    for kill in 0..=KILLS {
        let program = setup.start().await;
        let sender = Sender::to(&program).await;
        for _ in 0..random.usize(5..30) {
            let took = random.u64(1..500);
            let said = random.u32(1..100);
            let end = unix_ms_ago(Duration::from_secs(1)) * 1_000_000;
            let mut span = |attributes| Span {
                trace_id: random.u128(1..).to_be_bytes().to_vec(),
                span_id: random.u64(1..).to_be_bytes().to_vec(),
                name: "code.execute".to_owned(),
                start_time_unix_nano: end - took * 1_000_000,
                end_time_unix_nano: end,
                attributes: spans::attributes(&attributes),
                ..Default::default()
            };
            let priced = span(json!({"code.runtime": "e2b", "code.success": true, "code.duration_ms": took}));
            let says = json!({"code.runtime": "vm2", "code.success": true, "code.cost_usd": f64::from(said) / 64.0});
            let all = [("sos".to_owned(), priced), ("sos".to_owned(), span(says))];
            sender.accepted(Route::Http, &spans::request(Vec::new(), all)).await;
            by_e2b += 0.25 + took as f64 * PER_MILLISECOND;
            by_vm2 += f64::from(said) / 64.0;
            executions += 2;
        }
        if kill < KILLS {
            // At a moment of its own choosing: what was acknowledged may be counted, written, both or neither.
            tokio::time::sleep(Duration::from_millis(random.u64(0..400))).await;
            program.kill();
            continue;
        }
        let costs = |runtime| [("runtime", runtime)];
        program
            .scrape_until("every cost is counted", |scrape| {
                let found = ["e2b", "vm2"].map(|runtime| scrape.get("code_cost_usd_total", &costs(runtime)));
                if found == [Some(by_e2b), Some(by_vm2)] {
                    Ok(())
                } else {
                    Err(format!("{found:?} instead of {by_e2b} and {by_vm2}"))
                }
            })
            .await;
        let database = setup.database();
        eventually("every cost is beside its row", || async {
            let mut connection = rows::open(&database).await.map_err(|error| error.to_string())?;
            let sql = "SELECT count(*), sum(cost_usd) FROM spanledger_executions";
            let found: (i64, f64) = sqlx::query_as(sql)
                .fetch_one(&mut connection)
                .await
                .map_err(|error| error.to_string())?;
            connection.close().await.map_err(|error| error.to_string())?;
            if found == (executions, by_e2b + by_vm2) {
                Ok(())
            } else {
                Err(format!("{found:?} instead of {executions}, {}", by_e2b + by_vm2))
            }
        })
        .await;
        program.terminate().await;
    }
}
