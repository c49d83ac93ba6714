//! Virtual CPUs.

use serde_json::Value;

use super::leave;
use crate::error::QmpError;
use crate::plug::PlugError;
use crate::qemu::qmp::{CpuAdd, CpuSlot, Qmp, QueryHotpluggableCpus};
use crate::spec::{self, Accelerator};

/// Those of a machine.
pub(super) struct Vcpus {
    range: spec::Vcpus,
    /// Not those that QEMU emulates: it frees them and calls them at the next change of the machine's address space
    /// (up to 10.0 at least). Idle, they cost nothing.
    can_go: bool,
    /// Those that were plugged in, the last one last.
    added: Vec<String>,
}

impl Vcpus {
    pub(super) fn booted(range: spec::Vcpus, accelerator: Accelerator) -> Vcpus {
        Vcpus { range, can_go: accelerator != Accelerator::Tcg, added: Vec::new() }
    }

    fn count(&self) -> u32 {
        self.range.boot() + u32::try_from(self.added.len()).unwrap_or(u32::MAX)
    }

    /// What came or went before an error stays so.
    pub(super) async fn resize(&mut self, qmp: &Qmp, count: u32) -> Result<u32, PlugError> {
        let count = count.clamp(self.range.boot(), self.range.max());
        while self.count() < count {
            self.add(qmp).await?;
        }
        while self.can_go && self.count() > count {
            let Some(last) = self.added.last() else { break };
            leave::leave(qmp, last).await?;
            self.added.pop();
        }
        Ok(self.count())
    }

    async fn add(&mut self, qmp: &Qmp) -> Result<(), PlugError> {
        let slots = qmp.execute(QueryHotpluggableCpus {}).await?;
        let free = first_free(slots)
            .ok_or(PlugError::Full { what: "place for a processor", remedy: "raise default_maxvcpus" })?;
        let id = format!("plugged-cpu-{}", self.count());
        self.plug(qmp, free, &id).await?;
        self.added.push(id);
        Ok(())
    }

    async fn plug(&self, qmp: &Qmp, slot: CpuSlot, id: &str) -> Result<(), QmpError> {
        let CpuSlot { model, mut props, .. } = slot;
        props.insert("driver".to_owned(), model.into());
        props.insert("id".to_owned(), id.into());
        qmp.execute(CpuAdd(props)).await.map(drop)
    }
}

/// QEMU lists the last one first.
fn first_free(slots: Vec<CpuSlot>) -> Option<CpuSlot> {
    let number = |slot: &CpuSlot, name| slot.props.get(name).and_then(Value::as_u64);
    let free = slots.into_iter().filter(|slot| slot.qom_path.is_none());
    free.min_by_key(|slot| ["socket-id", "core-id", "thread-id"].map(|name| number(slot, name)))
}
