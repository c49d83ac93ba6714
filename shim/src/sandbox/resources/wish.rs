//! Changes of a container's limits, from the wish for them until the guest has them.

use std::sync::{Arc, atomic::Ordering};

use oci_spec::runtime::LinuxResources;
use tokio::sync::Mutex as AsyncMutex;

use super::{Limits, Sandbox};
use crate::error::Result;

/// Limits that a container is to have. When it is dropped they count no more, unless they were carried out.
struct Wish {
    sandbox: Arc<Sandbox>,
    id: String,
    /// Which of the sandbox's wishes it is.
    number: u64,
    former: Limits,
    limits: Limits,
}

impl Wish {
    /// What `update` would make of what the container is to have anyhow; nothing for what has no part of its own.
    fn of(sandbox: &Arc<Sandbox>, id: &str, update: &LinuxResources) -> Option<Wish> {
        let number = sandbox.resources.wishes.fetch_add(1, Ordering::Relaxed) + 1;
        let former = {
            let mut containers = sandbox.resources.containers();
            let part = containers.get_mut(id)?;
            part.wish = number;
            part.counts
        };
        let mut wish = Wish { sandbox: sandbox.clone(), id: id.to_owned(), number, former, limits: former };
        wish.counts(former.updated(update));
        Some(wish)
    }

    /// The same of what the container has by now: wishes before this one may have come to nothing.
    fn has_its_turn(&mut self, update: &LinuxResources) {
        let has = self.sandbox.resources.containers().get(&self.id).map(|part| part.has);
        self.former = has.unwrap_or(self.former);
        self.counts(self.former.updated(update));
    }

    fn is_carried_out(&self) {
        if let Some(part) = self.sandbox.resources.containers().get_mut(&self.id) {
            part.has = self.limits;
        }
    }

    /// Has these limits count, unless a later wish does, or the container is gone.
    fn counts(&mut self, limits: Limits) {
        if let Some(part) = self.sandbox.resources.containers().get_mut(&self.id)
            && part.wish == self.number
        {
            part.counts = limits;
        }
        self.limits = limits;
        self.sandbox.resources.changes.send_replace(());
    }
}

impl Drop for Wish {
    fn drop(&mut self) {
        let is_changed = self.limits != self.former;
        let has = self.sandbox.resources.containers().get(&self.id).map(|part| part.has);
        if let Some(has) = has {
            self.counts(has);
        }
        if is_changed {
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
        let mut wish = Wish::of(self, id, update);
        let _turn = turn.lock().await;
        // What stands for a pod has no part of its own.
        if let Some(wish) = &mut wish {
            wish.has_its_turn(update);
            self.grow(id, wish.limits).await?;
        }
        carry_out.await?;
        if let Some(wish) = &wish {
            wish.is_carried_out();
        }
        Ok(())
    }
}
