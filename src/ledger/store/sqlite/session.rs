//! One connection on a thread of its own: SQLite blocks, and the threads that serve sockets must not.
//!
//! What is to be done goes to the thread as one piece of work with all of its values, so that a statement that runs for
//! thousands of rows costs one trip and not thousands. Dropping the session ends the thread after what it is doing.

use std::str::FromStr;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use sqlx::sqlite::SqliteConnectOptions;
use tokio::sync::oneshot;

use crate::ledger::store::StoreError;

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// See the module.
pub(super) struct Session {
    jobs: SyncSender<Job>,
    /// How long one piece of work may take.
    patience: Duration,
}

impl Session {
    /// Opens the database on a new thread.
    pub(super) async fn open(place: Place, set_up: String) -> Result<Session, StoreError> {
        // One job at a time: the next one is only made when this one has answered.
        let (jobs, work) = sync_channel::<Job>(1);
        let (opened, answer) = oneshot::channel();
        let serve = move || {
            let connection = place.open().and_then(|connection| {
                connection.execute_batch(&set_up)?;
                connection.set_prepared_statement_cache_capacity(STATEMENTS);
                Ok(connection)
            });
            let mut connection = match connection {
                Ok(connection) => connection,
                // Whoever asked may be gone.
                Err(error) => return drop(opened.send(Err(error))),
            };
            if opened.send(Ok(())).is_ok() {
                work.into_iter().for_each(|job| job(&mut connection));
            }
        };
        thread::Builder::new()
            .name("spanledger-sqlite".to_owned())
            .spawn(serve)
            .map_err(|error| StoreError::Unavailable(format!("a thread for SQLite: {error}")))?;
        let opened = tokio::time::timeout(PATIENCE, answer).await;
        let opened = opened.map_err(|_| hangs(PATIENCE))?;
        opened.map_err(|_| gone())?.map_err(error)?;
        Ok(Session {
            jobs,
            patience: PATIENCE,
        })
    }

    /// Does `work` on the session's thread.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let answer = tokio::time::timeout(self.patience, self.run_to_the_end(work)).await;
        answer.map_err(|_| hangs(self.patience))?
    }

    /// The same, however long it takes: what grows with the table, and would begin from nothing if it were given up.
    pub(super) async fn run_to_the_end<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (done, answer) = oneshot::channel();
        // Whoever asked may be gone.
        let job: Job = Box::new(move |connection| drop(done.send(work(connection))));
        self.jobs.try_send(job).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?.map_err(error)
    }
}

/// See [`Session::patience`]: nothing else bounds it where the disk hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// Prepared statements that are kept: about twice as many as a batch uses.
const STATEMENTS: usize = 64;

fn hangs(patience: Duration) -> StoreError {
    StoreError::Unavailable(format!("the file has not answered for {patience:?}"))
}

fn gone() -> StoreError {
    StoreError::Unavailable("the thread of SQLite is busy or gone".to_owned())
}

/// Where a database is, and how it may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// As <https://www.sqlite.org/uri.html>; `None`: in memory.
    uri: Option<String>,
    flags: OpenFlags,
}

impl Place {
    /// Understands `database.url`, with the parameters that sqlx takes too, which reads for the query API: `mode`, `cache`,
    /// `immutable`, `vfs`. The file is made if it is missing and `create` is set, whatever `mode` says.
    pub(super) fn of(url: &str, create: bool) -> Result<(Place, SqliteConnectOptions), StoreError> {
        let options = SqliteConnectOptions::from_str(url)
            .map_err(|error| StoreError::Configuration(format!("database.url: {error}")))?;
        let mut flags =
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        flags.set(OpenFlags::SQLITE_OPEN_CREATE, create);
        let parameters = url.split_once('?').map_or("", |(_, parameters)| parameters);
        let parameters: Vec<&str> = parameters
            .split('&')
            .filter(|parameter| !parameter.is_empty() && !matches!(*parameter, "mode=rw" | "mode=rwc"))
            .collect();
        let file = options.get_filename().to_string_lossy();
        let is_in_memory = file.starts_with("file:sqlx-in-memory-");
        let path = file.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
        let place = Place {
            uri: (!is_in_memory).then(|| format!("file:{path}?{}", parameters.join("&"))),
            flags,
        };
        Ok((place, options))
    }

    fn open(&self) -> rusqlite::Result<Connection> {
        match &self.uri {
            Some(uri) => Connection::open_with_flags(uri, self.flags),
            None => Connection::open_in_memory(),
        }
    }
}

pub(super) fn error(error: rusqlite::Error) -> StoreError {
    use rusqlite::Error::{FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType, Utf8Error};
    let (failure, message) = match &error {
        rusqlite::Error::SqliteFailure(failure, message) => (failure, message),
        // A column holds values of any type.
        FromSqlConversionFailure(..) | IntegralValueOutOfRange(..) | InvalidColumnType(..) | Utf8Error(..) => {
            return StoreError::Unreadable(error.to_string());
        }
        _ => return StoreError::Unavailable(error.to_string()),
    };
    let reason = message.clone().unwrap_or_else(|| failure.to_string());
    // The primary code is the low byte: https://www.sqlite.org/rescode.html
    match failure.extended_code & 0xff {
        1 | 8 | 23 | 26 => StoreError::Misfit(reason),
        18..=20 => StoreError::Refused { reason, column: None },
        _ => StoreError::Unavailable(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(url: &str) -> Option<String> {
        Place::of(url, true).unwrap().0.uri
    }

    #[tokio::test]
    async fn a_file_that_never_answers_is_given_up() {
        let (place, _) = Place::of("sqlite::memory:", true).unwrap();
        let mut session = Session::open(place, String::new()).await.unwrap();
        assert_eq!(session.patience, PATIENCE);
        session.patience = Duration::ZERO;
        let (release, hanging) = sync_channel::<()>(0);
        let answer = session.run(move |_| Ok(hanging.recv().is_ok())).await;
        let Err(StoreError::Unavailable(reason)) = answer else {
            panic!("{answer:?}");
        };
        assert_eq!(reason, "the file has not answered for 0ns");
        drop(release);
    }

    #[test]
    fn a_url_becomes_a_uri_of_the_same_file() {
        for (url, expected) in [
            ("sqlite:./a/b.db", "file:./a/b.db?"),
            ("sqlite:/a/b c.db?mode=rwc", "file:/a/b c.db?"),
            ("sqlite://a.db?mode=ro&cache=private", "file:a.db?mode=ro&cache=private"),
            ("sqlite:/a/100%25%3f.db", "file:/a/100%25%3f.db?"),
        ] {
            assert_eq!(uri(url).as_deref(), Some(expected), "{url}");
        }
        assert_eq!(uri("sqlite::memory:"), None);
        assert!(matches!(
            Place::of("sqlite:a.db?mode=x", true),
            Err(StoreError::Configuration(_))
        ));
    }
}
