//! Any text as a configuration file, or as `--set`: read, or refused with mistakes that name a place. Never a panic, and
//! what was read can be printed and read again.

use std::cell::OnceCell;
use std::io;
use std::path::PathBuf;

use spanledger::config::expand::Environment;
use spanledger::config::render;
use spanledger::settings;

struct Empty;

impl Environment for Empty {
    fn variable(&self, _: &str) -> Option<String> {
        None
    }

    fn file(&self, _: &str) -> io::Result<String> {
        Err(io::ErrorKind::NotFound.into())
    }
}

thread_local! {
    static FILE: OnceCell<(tempfile::TempDir, PathBuf)> = const { OnceCell::new() };
}

/// One input.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    FILE.with(|file| {
        let (_, path) = file.get_or_init(|| {
            let directory = super::server::directory();
            let path = directory.path().join("config.yaml");
            (directory, path)
        });
        std::fs::write(path, text.as_bytes()).unwrap();
        let files = [path.clone()];
        match settings::read(None, &files, &[], &Empty) {
            Ok(loaded) => {
                let printed = render::effective(&loaded.records);
                // Secrets are not printed, so that what reads back may only differ in them.
                std::fs::write(path, &printed).unwrap();
                if let Ok(again) = settings::read(None, &files, &[], &Empty) {
                    assert_eq!(printed, render::effective(&again.records));
                } else {
                    assert!(printed.contains("[redacted]"), "cannot be read again:\n{printed}");
                }
            }
            Err(mistakes) => assert!(!mistakes.0.is_empty() && !mistakes.to_string().is_empty()),
        }
        // A mistake in an option is a mistake, too.
        let _outcome = settings::read(None, &[], &[text.into_owned()], &Empty).is_ok();
    });
}
