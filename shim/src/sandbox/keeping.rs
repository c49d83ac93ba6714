//! What the guest keeps of its pod's volumes, as far as the operator, its agent and the pod let it.

use std::sync::OnceLock;

use configuration::Configuration;
use oci_spec::runtime::Spec;
use slog::warn;
use tokio::sync::OnceCell;

use super::Sandbox;
use crate::{
    container::volumes::{self, Keeping},
    error::Result,
};

/// Where emptyDirs are in the root file system of a pod's own container, as agents and policies of the field know it.
const LOCAL: &str = "local";

/// What is known of it.
pub(super) struct Keeper {
    keeps_empty_dirs: bool,
    /// The root file system of what stands for the pod, in the guest.
    root: OnceLock<String>,
    /// Whether the agent mounts parts of volumes, once it was asked.
    parts: OnceCell<bool>,
}

impl Keeper {
    pub(super) fn of(configuration: &Configuration) -> Keeper {
        let keeps_empty_dirs = configuration.runtime.guest_empty_dirs;
        Keeper { keeps_empty_dirs, root: OnceLock::new(), parts: OnceCell::new() }
    }
}

impl Sandbox {
    /// Notes where the guest finds the root file system of what stands for the pod.
    pub(crate) fn has_root(&self, root: &str) {
        let _ = self.keeper.root.set(root.to_owned());
    }

    /// What the guest keeps of a container's volumes.
    ///
    /// # Errors
    /// The agent's, where it has to be asked what it can do.
    pub(crate) async fn keeping(&self, spec: &Spec) -> Result<Keeping> {
        let root = self.keeper.root.get().filter(|_| self.keeper.keeps_empty_dirs);
        let empty_dirs = root.map(|root| format!("{root}/{LOCAL}"));
        // containerd 1.7 names its own, which it would have made for a pod's own container; 2 names what is there.
        let shared_memory = self.provided().is_of_a_pod();
        let whole = Keeping { shared_memory, parts: false, empty_dirs };
        let parts = whole.has_parts(spec) && self.takes_parts().await?;
        Ok(Keeping { parts, ..whole })
    }

    async fn takes_parts(&self) -> Result<bool> {
        let asked = self.keeper.parts.get_or_try_init(async || {
            let details = self.ask(self.agent.guest_details()).await?;
            let takes = details.agent_details.storage_handlers.iter().any(|driver| driver == volumes::PARTS);
            if !takes {
                warn!(
                    self.log,
                    "a subPath of an emptyDir that the guest keeps is the host's: its agent mounts none"
                );
            }
            Ok(takes)
        });
        asked.await.copied()
    }
}
