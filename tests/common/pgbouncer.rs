//! PgBouncer in transaction mode before a server of the tests.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, dead_code, unreachable_pub)]

use super::program::Program;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// A pooler that is gone when this is dropped.
pub struct PgBouncer {
    port: u16,
    _process: Program,
    _directory: TempDir,
}

impl PgBouncer {
    /// Starts one before the server at `port`, with fewer connections to it than there are clients, so that the
    /// transactions of one client land on different ones.
    pub async fn before(port: u16) -> PgBouncer {
        let directory = TempDir::with_prefix("spanledger-pgbouncer-").unwrap();
        // It runs as another user than root, which it refuses to be.
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let own = super::fixed_port();
        let configuration = directory.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={port} user=test\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {own}\nunix_socket_dir =\nauth_type = any\npool_mode = transaction\ndefault_pool_size = 3\n"
        );
        std::fs::write(&configuration, text).unwrap();
        let program = if Path::new("/usr/sbin/pgbouncer").exists() {
            "/usr/sbin/pgbouncer"
        } else {
            "pgbouncer"
        };
        let mut command = Command::new(program);
        command.arg(&configuration);
        if let Some((user, group)) = another_user() {
            command.uid(user).gid(group);
        }
        let process = Program::start(&mut command);
        process
            .output("PgBouncer's word that it is up", |line| {
                line.contains("process up").then_some(())
            })
            .await;
        PgBouncer {
            port: own,
            _process: process,
            _directory: directory,
        }
    }

    /// The URL of a database behind it.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://test@127.0.0.1:{}/{database}", self.port)
    }
}

/// Ids of `nobody` where this process is root.
fn another_user() -> Option<(u32, u32)> {
    let id = |arguments: &[&str]| -> u32 {
        let output = Command::new("id").args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
    };
    (id(&["-u"]) == 0).then(|| (id(&["-u", "nobody"]), id(&["-g", "nobody"])))
}
