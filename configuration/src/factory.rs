//! Machines made ahead of time.

use std::path::PathBuf;

/// `[factory]`, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Factory {
    /// Where machines are saved that others start as copies of; `None` is nowhere: each boots by itself.
    pub templates: Option<PathBuf>,
}
