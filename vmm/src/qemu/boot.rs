//! Booting.
use std::time::Duration;

use async_trait::async_trait;

use crate::error::BootError;
use crate::spec::VmSpec;
use crate::vm::{Hypervisor, Vm};

/// QEMU, as a child of this process.
#[derive(Debug, Clone)]
pub struct Qemu {
    log: slog::Logger,
    patience: Duration,
}

impl Qemu {
    /// Machines whose processes and consoles are logged to `log`.
    #[must_use]
    pub fn new(log: slog::Logger) -> Qemu {
        Qemu { log, patience: Duration::from_secs(30) }
    }
}
#[async_trait]
impl Hypervisor for Qemu {
    async fn boot(&self, spec: VmSpec) -> Result<Box<dyn Vm>, BootError> {
        let _ = (spec, &self.log);
        Err(BootError::NoFreeCid(u32::try_from(self.patience.as_secs()).unwrap_or(0)))
    }
}
