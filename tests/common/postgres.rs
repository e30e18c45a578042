//! A private PostgreSQL server for tests: its own cluster in a temporary directory, on a free port, as a user other than
//! root, gone when the test process is, however that ends.
//!
//! Set `SPANLEDGER_SKIP_POSTGRES=1` to skip the tests that need it; without it, and without the server's programs
//! (`apt-get install postgresql`), they fail.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, dead_code, unreachable_pub)]

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// A running server.
pub struct Cluster {
    directory: PathBuf,
    port: u16,
    options: &'static str,
    server: Mutex<Option<Child>>,
}

/// Whether the tests that need PostgreSQL are to be skipped.
pub fn skipped() -> bool {
    let skipped = std::env::var("SPANLEDGER_SKIP_POSTGRES").is_ok_and(|value| value == "1");
    if skipped {
        eprintln!("skipped: SPANLEDGER_SKIP_POSTGRES=1");
    }
    skipped
}

/// The server that the tests of this process share; each takes a database of its own from it.
pub fn shared() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(Cluster::start)
}

impl Cluster {
    /// Makes a cluster and starts it. What it holds need not survive the machine.
    pub fn start() -> Cluster {
        Cluster::start_with("-c fsync=off")
    }

    /// The same, with further options of the server.
    pub fn start_with(options: &'static str) -> Cluster {
        let programs = programs();
        let directory = temporary_directory();
        let initdb = format!(
            "{}/initdb --pgdata={}/data --username=test --auth=trust --encoding=UTF8 --no-sync --no-instructions",
            programs.display(),
            directory.display()
        );
        let made = as_user(&initdb).stdout(Stdio::null()).status().unwrap();
        assert!(made.success(), "initdb failed: {initdb}");
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let cluster = Cluster {
            directory,
            port,
            options,
            server: Mutex::new(None),
        };
        cluster.resume();
        cluster
    }

    /// Starts the server again after [`Cluster::stop`], on the same port.
    pub fn resume(&self) {
        // The shell outlives this process by the moment it takes to stop the server: its standard input ends when
        // this process does.
        let script = format!(
            "{programs}/postgres -D {dir}/data -p {port} -k {dir} -c listen_addresses=127.0.0.1 {options} \
             -c max_connections=50 -c log_min_messages=fatal -c shared_buffers=64MB </dev/null >{dir}/log 2>&1 & \
             pid=$!; \
             for i in $(seq 600); do \
               {programs}/pg_isready -q -h 127.0.0.1 -p {port} && break; kill -0 $pid || break; sleep 0.05; done; \
             echo ready; read line; kill -INT $pid; wait $pid; [ \"$line\" = keep ] || rm -rf {dir}",
            programs = programs().display(),
            dir = self.directory.display(),
            port = self.port,
            options = self.options,
        );
        let mut server = as_user(&script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(server.stdout.as_mut().unwrap())
            .read_line(&mut said)
            .unwrap();
        assert_eq!(said.trim(), "ready", "PostgreSQL did not start");
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(server);
    }

    /// Stops the server at once, as a restart does; connections are cut.
    pub fn stop(&self) {
        use std::io::Write;
        if let Some(mut server) = self.server.lock().unwrap_or_else(PoisonError::into_inner).take() {
            server.stdin.as_mut().unwrap().write_all(b"keep\n").unwrap();
            server.wait().unwrap();
        }
    }

    /// Makes a database of its own for one test; its URL.
    pub fn database(&self) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.psql("postgres", &format!("CREATE DATABASE {name}"));
        self.url(&name)
    }

    /// The URL of a database.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://test@127.0.0.1:{}/{database}", self.port)
    }

    /// Switches TLS on, with this certificate.
    pub fn use_tls(&self, certificate: &str, key: &str) {
        for (name, text) in [("server.pem", certificate), ("server.key", key)] {
            let file = self.directory.join(name);
            let write = format!(
                "COPY (SELECT unnest(string_to_array('{text}', E'\\n'))) TO PROGRAM 'umask 077; cat > {}'",
                file.display()
            );
            self.psql("postgres", &write);
        }
        let directory = self.directory.display();
        for setting in [
            format!("ssl_cert_file = '{directory}/server.pem'"),
            format!("ssl_key_file = '{directory}/server.key'"),
            "ssl = on".to_owned(),
        ] {
            self.psql("postgres", &format!("ALTER SYSTEM SET {setting}"));
        }
        self.stop();
        self.resume();
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Runs SQL; what it prints, unaligned.
    pub fn psql(&self, database: &str, sql: &str) -> String {
        let psql = programs().join("psql");
        let run = Command::new(psql)
            .args([
                "-X",
                "-q",
                "-A",
                "-t",
                "-v",
                "ON_ERROR_STOP=1",
                "-d",
                &self.url(database),
                "-c",
                sql,
            ])
            .output()
            .unwrap();
        assert!(
            run.status.success(),
            "psql: {sql}: {}",
            String::from_utf8_lossy(&run.stderr)
        );
        String::from_utf8(run.stdout).unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.lock().unwrap_or_else(PoisonError::into_inner).take() {
            drop(server.stdin.take());
            server.wait().unwrap();
        }
    }
}

/// Where the newest installed version has its programs.
fn programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = versions
        .map(|version| version.path().join("bin"))
        .filter(|bin| bin.join("initdb").exists())
        .collect();
    found.sort();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path =
        std::env::split_paths(&path).find(|bin| bin.join("initdb").exists() && bin.join("pg_isready").exists());
    found.pop().or(on_path).expect(
        "the programs of a PostgreSQL server are needed (apt-get install postgresql); \
         SPANLEDGER_SKIP_POSTGRES=1 skips these tests",
    )
}

/// A directory that the server's user owns.
pub fn temporary_directory() -> PathBuf {
    let made = as_user("mktemp -d /tmp/spanledger-postgres.XXXXXX").output().unwrap();
    assert!(
        made.status.success(),
        "mktemp: {}",
        String::from_utf8_lossy(&made.stderr)
    );
    Path::new(String::from_utf8(made.stdout).unwrap().trim()).to_owned()
}

/// A shell as this user, or as `postgres` (else `nobody`) if this user is root, whom the server refuses.
pub fn as_user(script: &str) -> Command {
    let is_root = String::from_utf8(Command::new("id").arg("-u").output().unwrap().stdout)
        .unwrap()
        .trim()
        == "0";
    let mut command = if is_root {
        let exists = |user: &str| {
            Command::new("id")
                .arg(user)
                .output()
                .is_ok_and(|run| run.status.success())
        };
        let user = if exists("postgres") { "postgres" } else { "nobody" };
        let mut command = Command::new("runuser");
        command.args(["-u", user, "--", "sh", "-c", script]);
        command
    } else {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    };
    command.current_dir("/");
    command
}
