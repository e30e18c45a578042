//! Loads configuration: files, `--set`, environment; strict, with file, line and key path in every mistake.
//!
//! This room knows nothing of the settings themselves. A reader of settings walks the loaded tree through [`Section`]s
//! and names each key once, with its type, default and meaning; from these names come the checking, the example file,
//! the reference in `docs/configuration.md` and `print-config`, so that none of them can disagree with the program.
//!
//! * [`yaml`]: YAML text to a tree whose nodes know where they stand.
//! * [`expand`]: `${env:NAME}`, `${env:NAME:-default}`, `${file:PATH}`, `$$`.
//! * [`layers`]: several files and `--set` merged into one tree.
//! * [`section`]: reading settings from the tree, and the record of what was read.
//! * [`setting`]: the types a setting can have: durations, sizes, lists, ...
//! * [`render`]: the record as an example file, as a reference, as the effective configuration.

pub mod expand;
pub mod layers;
pub mod render;
pub mod section;
pub mod setting;
pub mod yaml;

pub use layers::{Layer, load};
pub use section::{Reader, Section};
pub use setting::{ByteSize, Setting};
pub use yaml::{Location, Node, Value};

/// A mistake in a configuration or rules file, as it is shown to the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Where the mistake stands, when it stands anywhere.
    pub at: Option<Location>,
    /// Path of the key, such as `journal.max_size`; empty for a mistake of the whole file.
    pub path: String,
    /// What is wrong, what was expected, and the nearest valid key where there is one.
    pub message: String,
}

impl std::fmt::Display for Mistake {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(at) = &self.at {
            write!(out, "{at}: ")?;
        }
        if !self.path.is_empty() {
            write!(out, "{}: ", self.path)?;
        }
        out.write_str(&self.message)
    }
}

/// All mistakes that were found, never just the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl std::fmt::Display for Mistakes {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, mistake) in self.0.iter().enumerate() {
            if index > 0 {
                out.write_str("\n")?;
            }
            write!(out, "{mistake}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}
