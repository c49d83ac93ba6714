//! What is to be said about a file or a key, and why a configuration could not be loaded.

use std::fmt;
use std::path::{Path, PathBuf};

/// One thing to say about one place of one file: a problem or a warning.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Finding {
    /// The file that the key came from; for an absent key the main file.
    pub file: PathBuf,
    /// Where in it.
    pub place: Place,
    /// What is wrong, and what would be right.
    pub what: String,
}

/// Where in a file something was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The file as a whole: it could not be read.
    File,
    /// Line and column, from 1: the text is not TOML.
    Line {
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
    },
    /// A key with its tables, such as `hypervisor.qemu.kernel`.
    Key(String),
}

impl Finding {
    pub(crate) fn key(file: &Path, key: &str, what: String) -> Self {
        Self { file: file.to_owned(), place: Place::Key(key.to_owned()), what }
    }

    /// Whether this is about the given key, such as `hypervisor.qemu.kernel`.
    #[must_use]
    pub fn concerns(&self, key: &str) -> bool {
        matches!(&self.place, Place::Key(own) if own == key)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        match &self.place {
            Place::File => write!(out, "{file}: {}", self.what),
            Place::Line { line, column } => write!(out, "{file}:{line}:{column}: {}", self.what),
            Place::Key(key) => write!(out, "{file}: {key}: {}", self.what),
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// None of the usual files exists and none was named.
    #[error("no configuration file: tried {}; install one there or name one in the runtime's ConfigPath option", list(.tried))]
    NotFound {
        /// The paths tried, in order.
        tried: Vec<PathBuf>,
    },
    /// A file that was named rather than found is missing or cannot be trusted.
    #[error("configuration file {}, named by {named_by}: {what}", .path.display())]
    Refused {
        /// The file as it was named.
        path: PathBuf,
        /// Who named it.
        named_by: &'static str,
        /// What is wrong with it and what would be right.
        what: String,
    },
    /// The files were found but what they say is not usable.
    #[error("{}", lines(.problems))]
    Invalid {
        /// Every problem: of files first, then of names and types, then of values.
        problems: Vec<Finding>,
    },
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn lines(problems: &[Finding]) -> String {
    let lines: Vec<_> = problems.iter().map(Finding::to_string).collect();
    match lines.as_slice() {
        [only] => only.clone(),
        all => format!("{} problems in the configuration:\n{}", all.len(), all.join("\n")),
    }
}
