//! Every path and every caller on real databases: in one request and in many, in every order, by one sidecar and by two,
//! with restarts in between, and with the one waiting between insert and commit while the other comes.

use super::assembly::cases;
use super::databases::{Database, batch, on_both};
use super::support::{S, facts, permutations};
use crate::ledger::commit::Batch;

on_both! {
    every_path_and_caller_gives_its_row_in_every_order_by_two_sidecars_with_restarts
}

const CLEAN: &str = "DELETE FROM code_exec_logs; DELETE FROM spanledger_executions; DELETE FROM spanledger_context";

async fn every_path_and_caller_gives_its_row_in_every_order_by_two_sidecars_with_restarts(database: Database) {
    database.write(&[]).await;
    for case in cases() {
        let path = &case.path;
        database.write(&facts(&case.spans)).await;
        assert_eq!(
            database.rows().await,
            std::slice::from_ref(&case.expected),
            "{path}, in one request"
        );
        let mut sidecars = [database.connect().await.unwrap(), database.connect().await.unwrap()];
        for (turn, order) in permutations(&case.spans).iter().enumerate() {
            database.execute(CLEAN).await;
            if turn % 3 == 0 {
                sidecars[turn % 2] = database.connect().await.unwrap();
            }
            for (place, span) in order.iter().enumerate() {
                let sidecar = &mut sidecars[(turn + place) % 2];
                sidecar.write(&facts(std::slice::from_ref(span))).await.unwrap();
            }
            assert_eq!(
                database.rows().await,
                std::slice::from_ref(&case.expected),
                "{path}, a request each: {order:?}"
            );
        }
        database.execute(CLEAN).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sidecars_on_one_database_join_what_each_has_half_of() {
    let Some(database) = Database::postgres() else { return };
    database.write(&[]).await;
    for case in cases().into_iter().filter(|case| case.spans.len() > 1) {
        let (run, around) = case.spans.split_at(1);
        for (first, second) in [(run, around), (around, run)] {
            database.execute(CLEAN).await;
            database.execute("DELETE FROM spanledger_positions").await;
            held_between_insert_and_commit(&database, first, second).await;
            assert_eq!(
                database.rows().await,
                std::slice::from_ref(&case.expected),
                "{}",
                case.path
            );
        }
    }
}

/// One holds its transaction open between insert and commit; the other, with the other half, waits and then joins.
async fn held_between_insert_and_commit(database: &Database, first: &[S], second: &[S]) {
    // The barrier: whoever saves a position waits until the table of positions is unlocked.
    let (reached, release) = hold_commit(database).await;
    let (first, second) = (facts(first), facts(second));
    let mut one = database.connect().await.unwrap();
    let mut two = database.connect().await.unwrap();
    let position = Some(("ledger", "first", 1));
    let one = tokio::spawn(async move {
        one.apply(&Batch {
            position,
            ..batch(&first)
        })
        .await
    });
    reached.await.unwrap();
    let two = tokio::spawn(async move { two.write(&second).await });
    super::following::until(async || {
        let waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted \
                       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        database.number(waiting).await == 1
    })
    .await;
    release.send(()).unwrap();
    one.await.unwrap().unwrap();
    two.await.unwrap().unwrap();
}

/// Locks the table of positions; the first future is done when somebody waits for it, the sender unlocks it.
async fn hold_commit(database: &Database) -> (tokio::sync::oneshot::Receiver<()>, tokio::sync::oneshot::Sender<()>) {
    use sqlx::Connection;
    let (say_reached, reached) = tokio::sync::oneshot::channel();
    let (release, released) = tokio::sync::oneshot::channel();
    let url = database.settings.url.clone();
    let mut holder = sqlx::postgres::PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("BEGIN; LOCK TABLE spanledger_positions IN EXCLUSIVE MODE")
        .execute(&mut holder)
        .await
        .unwrap();
    tokio::spawn(async move {
        let mut watcher = sqlx::postgres::PgConnection::connect(&url).await.unwrap();
        let waiting = "SELECT count(*) FROM pg_locks \
                       WHERE relation = 'spanledger_positions'::regclass AND NOT granted";
        while sqlx::query_scalar::<_, i64>(waiting)
            .fetch_one(&mut watcher)
            .await
            .unwrap()
            == 0
        {
            tokio::task::yield_now().await;
        }
        say_reached.send(()).unwrap();
        released.await.unwrap();
        sqlx::raw_sql("COMMIT").execute(&mut holder).await.unwrap();
    });
    (reached, release)
}
