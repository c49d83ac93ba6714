//! What is to be said about a file, an annotation or a key, and why a configuration could not be loaded.

use std::fmt;
use std::path::PathBuf;

/// One thing to say about one place: a problem or a warning.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Finding {
    /// Who set the key; for an absent key the main file.
    pub origin: Origin,
    /// Where in it.
    pub place: Place,
    /// What is wrong, and what would be right.
    pub what: String,
}

/// Who says something about the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The main file or a drop-in.
    File(PathBuf),
    /// An annotation of the sandbox, by its full name.
    Annotation(String),
}

/// Where something was found in what its origin says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// All of it: a file that could not be read, an annotation that has no effect.
    Whole,
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
    pub(crate) fn key(origin: &Origin, key: &str, what: String) -> Self {
        Self { origin: origin.clone(), place: Place::Key(key.to_owned()), what }
    }

    /// Whether this is about the given key, such as `hypervisor.qemu.kernel`.
    #[must_use]
    pub fn concerns(&self, key: &str) -> bool {
        matches!(&self.place, Place::Key(own) if own == key)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, place, what } = self;
        match (origin, place) {
            // An annotation's name says which key it sets.
            (_, Place::Whole) | (Origin::Annotation(_), _) => write!(out, "{origin}: {what}"),
            (_, Place::Line { line, column }) => write!(out, "{origin}:{line}:{column}: {what}"),
            (_, Place::Key(key)) => write!(out, "{origin}: {key}: {what}"),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(out),
            Self::Annotation(name) => write!(out, "annotation {name}"),
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
    /// The files were found, but what they or the annotations say is not usable.
    #[error("{}", lines(.problems))]
    Invalid {
        /// Every problem: of files first, then of names and types, then of annotations, then of values.
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
