//! Demo traffic goes only into what `--demo` itself made: made-up rows must never stand among real ones.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::config::expand::{Environment, ProcessEnvironment};
use crate::settings::Settings;

/// Stands in the journal's directory and beside the database when `--demo` made them.
const MARK: &str = "made-by-demo";

/// Where the demo keeps its data, unless told otherwise.
const DATA: &str = "./spanledger-demo";

/// The environment of this process, with a data directory of the demo's own.
pub(super) struct DemoEnvironment;

impl Environment for DemoEnvironment {
    fn variable(&self, name: &str) -> Option<String> {
        let set = ProcessEnvironment.variable(name);
        if name == "SPANLEDGER_DATA" {
            set.or_else(|| Some(DATA.to_owned()))
        } else {
            set
        }
    }

    fn file(&self, path: &str) -> std::io::Result<String> {
        ProcessEnvironment.file(path)
    }
}

/// Refuses anything that `--demo` did not make, and marks what it is about to make.
///
/// # Errors
///
/// What is in the way, and what to do.
pub(super) fn prepare(settings: &Settings) -> anyhow::Result<()> {
    if let Some((name, _)) = settings.exporters.first() {
        bail!("--demo sends made-up traces, and exporters.{name} would forward them; remove it for the demo");
    }
    let Some(database) = sqlite_file(&settings.database.url) else {
        bail!("--demo writes made-up rows, so only into a SQLite database of its own; remove database.url");
    };
    let journal = settings.journal.directory.as_path();
    for (key, made, mark) in [
        ("database.url", database.as_path(), mark_beside(&database)),
        ("journal.directory", journal, journal.join(MARK)),
    ] {
        let is_empty = !made.exists_at()?;
        if !is_empty && !mark.exists_at()? {
            bail!(
                "{} was not made by --demo, and made-up rows must not be mixed into it; set {key}",
                made.display()
            );
        }
        let directory = mark.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(directory).with_context(|| format!("{key}: cannot create {}", directory.display()))?;
        std::fs::write(&mark, "").with_context(|| format!("{key}: cannot write {}", mark.display()))?;
    }
    Ok(())
}

trait ExistsAt {
    fn exists_at(&self) -> anyhow::Result<bool>;
}

impl ExistsAt for Path {
    fn exists_at(&self) -> anyhow::Result<bool> {
        self.try_exists()
            .with_context(|| format!("cannot look at {}", self.display()))
    }
}

fn mark_beside(database: &Path) -> PathBuf {
    let mut name = database.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(MARK);
    database.with_file_name(name)
}

/// The file of a SQLite URL; none for another database or one in memory.
fn sqlite_file(url: &str) -> Option<PathBuf> {
    let path = url.strip_prefix("sqlite:")?;
    let path = path.strip_prefix("//").unwrap_or(path);
    let path = path.split('?').next().unwrap_or_default();
    (!path.is_empty() && path != ":memory:").then(|| PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_a_sqlite_url_is_found() {
        assert_eq!(sqlite_file("sqlite:./a/b.db"), Some(PathBuf::from("./a/b.db")));
        assert_eq!(
            sqlite_file("sqlite:///var/b.db?mode=rwc"),
            Some(PathBuf::from("/var/b.db"))
        );
        assert_eq!(sqlite_file("sqlite::memory:"), None);
        assert_eq!(sqlite_file("postgres://h/d"), None);
    }
}
