//! Changes of a container's limits, from the wish for them until the guest has them.

use std::sync::{Arc, atomic::Ordering};

use oci_spec::runtime::LinuxResources;
use tokio::sync::Mutex as AsyncMutex;

use super::{Limits, Sandbox};
use crate::error::Result;

/// What a container may use of its sandbox's machine.
#[derive(Debug)]
pub(super) struct Counted {
    /// The limits that it has.
    has: Limits,
    /// Those that it is to have, each by the number of its wish, the last one at the end.
    wishes: Vec<(u64, Limits)>,
}

impl Counted {
    pub(super) fn new(has: Limits) -> Counted {
        Counted { has, wishes: Vec::new() }
    }

    /// What the machine is made for.
    pub(super) fn limits(&self) -> Limits {
        self.wishes.last().map_or(self.has, |(_, limits)| *limits)
    }
}

/// Limits that a container is to have. Dropped, it counts no more.
struct Wish {
    sandbox: Arc<Sandbox>,
    id: String,
    number: u64,
    former: Limits,
    limits: Limits,
}

impl Wish {
    /// What `update` would make of what the container is to have anyhow; nothing for what has no part of its own.
    fn of(sandbox: &Arc<Sandbox>, id: &str, update: &LinuxResources) -> Option<Wish> {
        let number = sandbox.resources.wishes.fetch_add(1, Ordering::Relaxed);
        let mut containers = sandbox.resources.containers();
        let part = containers.get_mut(id)?;
        let former = part.limits();
        let limits = former.updated(update);
        part.wishes.push((number, limits));
        drop(containers);
        sandbox.resources.changes.send_replace(());
        Some(Wish { sandbox: sandbox.clone(), id: id.to_owned(), number, former, limits })
    }

    /// The same of what the container has by now: wishes before this one may have come to nothing.
    fn take_turn(&mut self, update: &LinuxResources) {
        if let Some(part) = self.sandbox.resources.containers().get_mut(&self.id)
            && let Some((_, counts)) = part.wishes.iter_mut().find(|(number, _)| *number == self.number)
        {
            self.former = part.has;
            self.limits = part.has.updated(update);
            *counts = self.limits;
        }
        self.sandbox.resources.changes.send_replace(());
    }

    fn fulfil(&self) {
        if let Some(part) = self.sandbox.resources.containers().get_mut(&self.id) {
            part.has = self.limits;
        }
    }
}

impl Drop for Wish {
    fn drop(&mut self) {
        if let Some(part) = self.sandbox.resources.containers().get_mut(&self.id) {
            part.wishes.retain(|(number, _)| *number != self.number);
        }
        self.sandbox.resources.changes.send_replace(());
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
        let mut wish = Wish::of(self, id, update);
        let _turn = turn.lock().await;
        // What stands for a pod has no part of its own.
        if let Some(wish) = &mut wish {
            wish.take_turn(update);
            self.grow(id, wish.limits).await?;
        }
        carry_out.await?;
        if let Some(wish) = &wish {
            wish.fulfil();
        }
        Ok(())
    }
}
