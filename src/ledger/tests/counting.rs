//! What is counted of rows.

use metrics_exporter_prometheus::PrometheusBuilder;

use super::databases::Database;
use super::following::{append, journal, until};
use super::operating::{options, run};
use super::support::{V, execution};

/// What is done again after a failure is counted once.
#[test]
fn a_value_that_was_bent_is_counted_when_its_row_is_written() {
    let Some(database) = Database::postgres() else { return };
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    let counts = || {
        let text = metrics.render();
        let bent = text
            .lines()
            .filter(|line| line.starts_with("spanledger_row_values_bent_total{what="));
        bent.filter(|line| !line.ends_with(" 0"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let work = async {
        database.write(&[]).await;
        // The server is to blame, so that the batch is read again on another connection.
        database
            .execute(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'away' USING ERRCODE = '55000'; \
                 END $$; CREATE TRIGGER refuse BEFORE INSERT ON code_exec_logs FOR EACH ROW EXECUTE FUNCTION refuse()",
            )
            .await;
        let directory = tempfile::tempdir().unwrap();
        let journal = journal(directory.path());
        let running = run(options(database.settings.url.clone()), &journal);
        append(
            &journal,
            &[execution(1, 1, 0, 10).with("code.duration_ms", V::I(1 << 40))],
        )
        .await;
        until(async || running.degraded().is_some_and(|reason| reason.contains("away"))).await;
        assert!(counts().is_empty(), "{:?}", counts());
        database.execute("DROP TRIGGER refuse ON code_exec_logs").await;
        until(async || database.number("SELECT count(*) FROM code_exec_logs").await == 1).await;
        running.stop().await;
        assert_eq!(counts(), ["spanledger_row_values_bent_total{what=\"clamped\"} 1"]);
    };
    // The recorder is this thread's.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    metrics::with_local_recorder(&recorder, || runtime.unwrap().block_on(work));
}
