//! Changes of a container's limits, from the wish for them until the guest has them.

use std::sync::Arc;

use oci_spec::runtime::LinuxResources;
use tokio::sync::Mutex as AsyncMutex;

use super::{Limits, Sandbox};
use crate::error::Result;

/// Limits that a container is to have. Dropped before they are carried out, as when nobody waits for that any more, it has
/// those that it had.
struct Wish {
    sandbox: Arc<Sandbox>,
    id: String,
    former: Limits,
    limits: Limits,
    is_carried_out: bool,
}

impl Wish {
    fn of(sandbox: &Arc<Sandbox>, id: &str, former: Limits, limits: Limits) -> Wish {
        sandbox.replace(id, former, limits);
        Wish { sandbox: sandbox.clone(), id: id.to_owned(), former, limits, is_carried_out: false }
    }
}

impl Drop for Wish {
    fn drop(&mut self) {
        if !self.is_carried_out {
            self.sandbox.replace(&self.id, self.limits, self.former);
        }
        if self.limits != self.former {
            self.sandbox.shrink();
        }
    }
}

impl Sandbox {
    /// Makes room for what `update` asks for, has it carried out, and gives back what is left over. Updates take their
    /// turns; what they wish for counts at once, so that memory that is no longer wished for stops to come.
    ///
    /// # Errors
    /// Those of [`Sandbox::admit`] and of `carry_out`; the limits are the former ones then.
    pub(crate) async fn change(
        self: &Arc<Self>,
        id: &str,
        update: &LinuxResources,
        turn: &AsyncMutex<()>,
        carry_out: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        let former = self.resources.containers().get(id).copied();
        let mut wish = former.map(|former| Wish::of(self, id, former, former.updated(update)));
        let _turn = turn.lock().await;
        // What stands for a pod has no part of its own.
        if let Some(wish) = &wish {
            self.grow(id, wish.limits).await?;
        }
        carry_out.await?;
        if let Some(wish) = &mut wish {
            wish.is_carried_out = true;
        }
        Ok(())
    }

    /// Unless it has been deleted meanwhile, or has others than `from`.
    fn replace(&self, id: &str, from: Limits, to: Limits) {
        if let Some(there) = self.resources.containers().get_mut(id).filter(|there| **there == from) {
            *there = to;
        }
        self.resources.changes.send_replace(());
    }
}
