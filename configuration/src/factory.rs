//! Machines made ahead of time.

use std::path::PathBuf;

/// `[factory]`, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Factory {
    /// Where machines are saved that others start as copies of; `None` is nowhere: each boots by itself.
    pub templates: Option<PathBuf>,
    /// Whether a process keeps machines ready; `None`: each is started when it is needed.
    pub cache: Option<VmCache>,
}

/// A process that keeps machines ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmCache {
    /// How many.
    pub machines: u32,
    /// The Unix socket where they are asked for.
    pub endpoint: PathBuf,
}
