//! PostgreSQL as users run it: poolers, TLS, servers that hang, that change their role, or that hold no UTF-8.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::databases::{Database, Session};
use super::following::{append, executions, journal, until};
use super::support::{S, V, facts, failure, node, success};
use crate::journal::Journal;
use crate::ledger::store::postgres::PostgresStore;
use crate::ledger::store::{Settings, Store, StoreError};
use crate::ledger::tests::postgres;
use crate::ledger::{Ledger, LedgerOptions};
use crate::telemetry::Health;

/// PgBouncer in transaction mode, with two connections to the server, in front of one cluster.
struct Pooler {
    process: Child,
    directory: PathBuf,
    port: u16,
}

impl Pooler {
    fn start(server: u16) -> Pooler {
        let directory = postgres::temporary_directory();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let settings = format!(
            "[databases]\n* = host=127.0.0.1 port={server} user=test\n[pgbouncer]\npool_mode = transaction\n\
             default_pool_size = 2\nmax_client_conn = 50\nauth_type = any\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nmax_prepared_statements = 0\n"
        );
        // Versions before 1.21 have no prepared statements in transaction mode at all, and do not know the setting.
        let script = format!(
            "cat > {dir}/bouncer.ini; pgbouncer=$(command -v pgbouncer || echo /usr/sbin/pgbouncer); \
             version=$($pgbouncer --version | sed -n 's/^PgBouncer 1\\.\\([0-9]*\\).*/\\1/p'); \
             [ \"$version\" -ge 21 ] || sed -i /max_prepared_statements/d {dir}/bouncer.ini; \
             exec $pgbouncer -q {dir}/bouncer.ini",
            dir = directory.display()
        );
        let mut process = postgres::as_user(&script)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::io::Write::write_all(process.stdin.as_mut().unwrap(), settings.as_bytes()).unwrap();
        drop(process.stdin.take());
        Pooler {
            process,
            directory,
            port,
        }
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        // `runuser` hands the signal on, which SIGKILL would not let it.
        let id = self.process.id().to_string();
        drop(std::process::Command::new("kill").args(["-TERM", &id]).status());
        drop(self.process.wait());
        drop(std::fs::remove_dir_all(&self.directory));
    }
}

pub(super) fn options(url: String) -> LedgerOptions {
    LedgerOptions {
        url,
        retention: Some(Duration::ZERO),
        // The spans are of the tests' own time, long ago.
        assembly_window: Duration::from_secs(20 * 365 * 86_400),
        ..LedgerOptions::default()
    }
}

/// A running ledger.
pub(super) struct Running {
    task: tokio::task::JoinHandle<()>,
    shutdown: CancellationToken,
    health: Health,
}

pub(super) fn run(options: LedgerOptions, journal: &Journal) -> Running {
    let health = Health::default();
    let heartbeat = health.stage("ledger");
    let status = heartbeat.status();
    let shutdown = CancellationToken::new();
    let ledger = Ledger::new(options).unwrap();
    let reader = journal.reader("ledger").unwrap();
    let task = tokio::spawn(ledger.run(reader, shutdown.clone(), heartbeat, status));
    Running { task, shutdown, health }
}

impl Running {
    pub(super) fn degraded(&self) -> Option<String> {
        self.health.report(std::time::Instant::now())[0].degraded.clone()
    }

    pub(super) async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn four_sidecars_behind_a_pooler_in_transaction_mode_complete_each_others_rows() {
    let Some(database) = Database::postgres() else { return };
    let server = postgres::shared().port();
    let pooler = Pooler::start(server);
    let url = database
        .settings
        .url
        .replace(&server.to_string(), &pooler.port.to_string());
    until(async || TcpStream::connect(("127.0.0.1", pooler.port)).await.is_ok()).await;

    // Executions go to one sidecar, the nodes around them to another; all start on an empty database at once.
    let directories: Vec<_> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
    let journals: Vec<Journal> = directories.iter().map(|directory| journal(directory.path())).collect();
    let running: Vec<Running> = journals
        .iter()
        .map(|journal| run(options(url.clone()), journal))
        .collect();
    let names: Vec<&'static str> = (0..40).map(|n| &*format!("n-{n}").leak()).collect();
    for piece in 0..10_usize {
        for (sidecar, journal) in journals.iter().enumerate() {
            let mut spans: Vec<S> = Vec::new();
            for part in 0..4_usize {
                let n = (piece * 4 + part) as u16;
                let name = names[usize::from(n)];
                let run = failure(n as u8 + 1, n, 100, 150).ids("wf-1", "we-1", name);
                let around = node(200, 1_000 + n, 90, 160).ids("wf-1", "we-1", name);
                if sidecar == part {
                    spans.push(run);
                } else if sidecar == (part + 1) % 4 {
                    spans.push(around.with("node.error", V::S("boom")));
                }
            }
            append(journal, &spans).await;
        }
    }
    let complete = "SELECT count(*) FROM code_exec_logs WHERE user_id = 'user-1' AND error_message = 'boom'";
    // The tables are made by whoever comes first.
    until(async || {
        let made = "SELECT count(*) FROM pg_tables WHERE tablename = 'code_exec_logs'";
        database.number(made).await == 1 && database.number(complete).await == 40
    })
    .await;
    for one in running {
        one.stop().await;
    }
    assert_eq!(database.number("SELECT count(*) FROM code_exec_logs").await, 40);
    assert_eq!(database.number("SELECT count(*) FROM spanledger_positions").await, 4);
    let left = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' \
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    assert_eq!(database.number(left).await, 0, "no lock outlives its transaction");
}

/// Certificates of an authority of its own.
struct Certificates {
    directory: tempfile::TempDir,
    certificate: String,
    key: String,
}

impl Certificates {
    /// For the name `localhost` and no other.
    fn new() -> Certificates {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["localhost".to_owned()])
            .unwrap()
            .signed_by(&key, &authority)
            .unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca.pem"), authority.pem()).unwrap();
        Certificates {
            directory,
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        }
    }

    fn authority(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }
}

async fn connect(url: String) -> Result<PostgresStore, StoreError> {
    let Some(database) = Database::postgres() else {
        unreachable!("the caller has looked")
    };
    let settings = Settings {
        url,
        ..database.settings.clone()
    };
    PostgresStore::connect(&settings).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_tls_mode_is_as_strict_as_its_name_says() {
    if postgres::skipped() {
        return;
    }
    let cluster = postgres::Cluster::start();
    let plain = cluster.database();
    let name = plain.rsplit('/').next().unwrap().to_owned();
    let with = |host: &str, mode: &str, ca: Option<&Path>| {
        let ca = ca.map_or_else(String::new, |ca| format!("&sslrootcert={}", ca.display()));
        let port = cluster.port();
        format!("postgres://test@{host}:{port}/{name}?sslmode={mode}{ca}")
    };
    // What the server says of the connection that is open.
    let is_encrypted = || {
        let sql = "SELECT s.ssl FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) \
                   WHERE a.application_name = 'spanledger'";
        match cluster.psql(&name, sql).trim() {
            "t" => Some(true),
            "f" => Some(false),
            _ => None,
        }
    };
    // A session is gone some time after its connection.
    let gone = async || until(async || is_encrypted().is_none()).await;

    for (mode, works) in [
        ("disable", true),
        ("prefer", true),
        ("require", false),
        ("verify-ca", false),
        ("verify-full", false),
    ] {
        let store = connect(with("127.0.0.1", mode, None)).await;
        assert_eq!(store.is_ok(), works, "{mode} without TLS on the server");
        match &store {
            Ok(_) => assert_eq!(is_encrypted(), Some(false), "{mode}"),
            Err(error) => assert!(error.to_string().contains("TLS"), "{error}"),
        }
        drop(store);
        gone().await;
    }

    let certificates = Certificates::new();
    cluster.use_tls(&certificates.certificate, &certificates.key);
    let ca = certificates.authority();
    for (host, mode, ca, expected) in [
        ("127.0.0.1", "disable", None, Some(false)),
        ("127.0.0.1", "prefer", None, Some(true)),
        ("127.0.0.1", "require", None, Some(true)),
        ("127.0.0.1", "verify-ca", None, None),
        ("127.0.0.1", "verify-ca", Some(&*ca), Some(true)),
        ("127.0.0.1", "verify-full", Some(&*ca), None),
        ("localhost", "verify-full", None, None),
        ("localhost", "verify-full", Some(&*ca), Some(true)),
    ] {
        let store = connect(with(host, mode, ca)).await;
        assert_eq!(store.is_ok(), expected.is_some(), "{host} {mode} {ca:?}");
        match &store {
            Ok(_) => assert_eq!(is_encrypted(), expected, "{host} {mode} {ca:?}"),
            Err(error) => assert!(error.to_string().contains("ertificate"), "{error}"),
        }
        drop(store);
        gone().await;
    }
}

/// A server that became a standby takes nothing; rows wait, and go on when there is a primary again.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_becomes_read_only_is_waited_for() {
    let Some(database) = Database::postgres() else { return };
    let directory = tempfile::tempdir().unwrap();
    let journal = journal(directory.path());
    let running = run(options(database.settings.url.clone()), &journal);
    append(&journal, &executions(0, 10)).await;
    database.write(&[]).await;
    until(async || database.number("SELECT count(*) FROM code_exec_logs").await == 10).await;

    let name = database.settings.url.rsplit('/').next().unwrap().to_owned();
    let switch = async |to: &str| {
        // As a failover does: the role changes, and connections are cut.
        let sql = format!(
            "ALTER DATABASE {name} SET default_transaction_read_only = {to}; \
             SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}' AND pid <> pg_backend_pid()"
        );
        postgres::shared().psql("postgres", &sql);
    };
    switch("on").await;
    append(&journal, &executions(10, 20)).await;
    until(async || running.degraded().is_some_and(|reason| reason.contains("read-only"))).await;
    switch("off").await;
    until(async || database.number("SELECT count(*) FROM code_exec_logs").await == 20).await;
    until(async || running.degraded().is_none()).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_hangs_is_given_up_and_done_again() {
    let Some(database) = Database::postgres() else { return };
    database.write(&[]).await;
    let directory = tempfile::tempdir().unwrap();
    let journal = journal(directory.path());
    let mut holder = database.connection().await;
    sqlx::raw_sql("BEGIN; LOCK TABLE code_exec_logs IN ACCESS EXCLUSIVE MODE")
        .execute(&mut holder)
        .await
        .unwrap();
    let running = run(
        LedgerOptions {
            statement_timeout: Duration::from_millis(200),
            migrate: false,
            ..options(database.settings.url.clone())
        },
        &journal,
    );
    append(&journal, &executions(0, 10)).await;
    until(async || {
        running
            .degraded()
            .is_some_and(|reason| reason.contains("statement timeout"))
    })
    .await;
    assert!(running.health.is_alive(std::time::Instant::now()));
    sqlx::raw_sql("COMMIT").execute(&mut holder).await.unwrap();
    until(async || database.number("SELECT count(*) FROM code_exec_logs").await == 10).await;
    running.stop().await;
}

/// A network that swallows everything: the server never hears, and nobody ever answers.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_answers_nothing_at_all_is_given_up() {
    let Some(database) = Database::postgres() else { return };
    database.write(&[]).await;
    let server = postgres::shared().port();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    // The first connection is swallowed from the start, the second in the middle of its work; later ones are not.
    tokio::spawn(async move {
        let mut held = Vec::new();
        for turn in 0.. {
            let (mut client, _) = listener.accept().await.unwrap();
            if turn == 0 {
                held.push(client);
                continue;
            }
            let mut server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
            if turn > 1 {
                tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut server).await });
                continue;
            }
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            tokio::spawn(async move {
                let answers = tokio::io::copy(&mut from_server, &mut to_client);
                let questions = async {
                    let mut buffer = vec![0; 1 << 16];
                    loop {
                        let length = from_client.read(&mut buffer).await.unwrap();
                        let said = &buffer[..length];
                        if said.windows(11).any(|window| window == b"INSERT INTO") {
                            break;
                        }
                        tokio::io::AsyncWriteExt::write_all(&mut to_server, said).await.unwrap();
                    }
                };
                tokio::select! { _ = answers => {}, () = questions => {} }
                std::future::pending::<()>().await;
            });
        }
    });
    let directory = tempfile::tempdir().unwrap();
    let journal = journal(directory.path());
    append(&journal, &executions(0, 10)).await;
    let url = database.settings.url.replace(&server.to_string(), &port.to_string());
    let running = run(
        LedgerOptions {
            statement_timeout: Duration::from_millis(200),
            ..options(url)
        },
        &journal,
    );
    until(async || running.degraded().is_some_and(|reason| reason.contains("no answer"))).await;
    until(async || database.number("SELECT count(*) FROM code_exec_logs").await == 10).await;
    assert!(running.health.is_alive(std::time::Instant::now()));
    running.stop().await;
}

/// A database that does not hold every character refuses rows with them; it must not refuse what waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_character_that_the_database_cannot_hold_stops_nothing() {
    if postgres::skipped() {
        return;
    }
    let shared = postgres::shared();
    let name = "latin";
    shared.psql(
        "postgres",
        &format!("CREATE DATABASE {name} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"),
    );
    let Some(mut database) = Database::postgres() else {
        return;
    };
    database.settings.url = shared.url(name);
    let run = failure(1, 1, 100, 150).ids("wf-1", "we-1", "n-1");
    database.write(&facts(std::slice::from_ref(&run))).await;
    // The node's error completes the row with its tenant, but not with text that cannot be held.
    let around = node(1, 2, 90, 160)
        .ids("wf-1", "we-1", "n-1")
        .with("node.error", V::S("ошибка \u{1f600}"));
    let applied = database.write(&facts(&[around])).await;
    assert_eq!((applied.merged, applied.refused, applied.context), (1, 1, 1));
    // A row with such text of its own is set aside, and the one beside it is written.
    let refused = failure(2, 3, 100, 150).status(2, "ошибка");
    let applied = database.write(&facts(&[refused, success(2, 4, 100, 150)])).await;
    assert_eq!((applied.written, applied.quarantined), (1, 1));
    let rows = database.rows().await;
    assert_eq!(rows.len(), 2);
    assert_eq!(
        (rows[0].user_id.as_deref(), &rows[0].error_message),
        (Some("user-1"), &None)
    );
    // What waits is read back as it was.
    assert_eq!(database.waiting().await, 3);
    let second = success(1, 5, 120, 155).ids("wf-1", "we-1", "n-1");
    database.write(&facts(&[second])).await;
    let users = "SELECT count(*) FROM code_exec_logs WHERE user_id = 'user-1'";
    assert_eq!(database.number(users).await, 2);
}

/// A user who may not look into the tables that rows point to: what completes a row loses its one column all the same.
#[tokio::test(flavor = "multi_thread")]
async fn foreign_keys_that_may_not_be_asked_null_one_column_of_what_comes_later() {
    let Some(database) = Database::postgres() else { return };
    database.execute(include_str!("backend_schema.sql")).await;
    database.write(&[]).await;
    let role = format!("later_{}", database.settings.url.rsplit('/').next().unwrap());
    database
        .execute(&format!(
            "CREATE ROLE {role} LOGIN; GRANT SELECT, INSERT, UPDATE, DELETE ON code_exec_logs, spanledger_positions, \
             spanledger_executions, spanledger_context, spanledger_quarantine, spanledger_hours TO {role}"
        ))
        .await;
    let settings = Settings {
        url: database.settings.url.replace("test@", &format!("{role}@")),
        migrate: false,
        ..database.settings.clone()
    };
    let mut session = Session::Postgres(PostgresStore::connect(&settings).await.unwrap());
    session
        .write(&facts(&[failure(1, 1, 100, 150).ids("wf-1", "we-1", "n-1")]))
        .await
        .unwrap();
    let around = node(1, 2, 90, 160)
        .ids("wf-1", "we-1", "n-1")
        .all([("user.id", V::S("nobody")), ("node.error", V::S("boom"))]);
    let applied = session.write(&facts(&[around])).await.unwrap();
    assert_eq!((applied.merged, applied.nulled, applied.refused), (1, 1, 0));
    let row = database.rows().await.remove(0);
    assert_eq!(
        (
            row.user_id.as_deref(),
            row.workspace_id.as_deref(),
            row.error_message.as_deref()
        ),
        (None, Some("ws-1"), Some("boom"))
    );
}

/// Times are UTC whatever the server, or the type of the column, thinks of time zones.
#[tokio::test(flavor = "multi_thread")]
async fn times_are_utc_also_in_a_column_with_a_time_zone() {
    let Some(database) = Database::postgres() else { return };
    let name = database.settings.url.rsplit('/').next().unwrap().to_owned();
    database
        .execute(&format!("ALTER DATABASE {name} SET timezone = 'America/New_York'"))
        .await;
    database.write(&[]).await;
    database
        .execute("ALTER TABLE code_exec_logs ALTER created_at TYPE timestamptz")
        .await;
    database.write(&facts(&[success(1, 1, 0, 1_000)])).await;
    assert_eq!(
        database.rows().await[0].created_at,
        super::support::EPOCH + 1_000 * super::support::MS
    );
}
