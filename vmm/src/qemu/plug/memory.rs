//! Memory: modules that come and, if the guest can empty them, go; or virtio-mem, of which the guest has as much as it
//! is asked to take.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::{Answer, leave};
use crate::device::{Device, Object};
use crate::error::QmpError;
use crate::plug::{MemorySize, PlugError};
use crate::qemu::qmp::{DeviceAdd, ObjectAdd, ObjectDel, Qmp, QomGet, QomSet};
use crate::spec::{Backing, VIRTIO_MEM, VirtioMem, VmSpec};

/// How long a guest may take to fill or empty virtio-mem.
const PATIENCE: Duration = Duration::from_secs(20);

/// How many times its memory a guest can take at once: what describes the new memory is kept in the old, 64 bytes for
/// each page of 4096, and the guest needs some for itself.
const STEP: u64 = 32;

/// There is no slot for one more module.
pub(super) const FULL: PlugError = PlugError::Full { what: "memory slot", remedy: "raise memory_slots" };

/// Memory of a machine.
pub(super) struct Memory {
    boot_mib: u64,
    slots: u32,
    most_mib: u64,
    backing: Backing,
    prealloc: bool,
    virtio: Option<VirtioMem>,
    /// Those that were plugged in, the last one last.
    modules: Vec<Module>,
    /// How many modules have been given a name.
    named: u64,
}

struct Module {
    id: String,
    mib: u64,
}

impl Memory {
    pub(super) fn booted(spec: &VmSpec) -> Memory {
        let (slots, most_mib) = spec.memory.growth().unwrap_or((0, spec.memory.mib()));
        Memory {
            boot_mib: spec.memory.mib(),
            slots,
            most_mib,
            backing: spec.backing.clone(),
            prealloc: spec.prealloc,
            virtio: spec.virtio_mem(),
            modules: Vec::new(),
            named: 0,
        }
    }

    /// Memory that can neither grow nor shrink.
    #[cfg(test)]
    pub(super) fn fixed(mib: u64) -> Memory {
        Memory::with_slots(mib, 0)
    }

    /// The same with slots for other devices.
    #[cfg(test)]
    pub(super) fn with_slots(mib: u64, slots: u32) -> Memory {
        let backing = Backing::Anonymous;
        Memory {
            boot_mib: mib,
            slots,
            most_mib: mib,
            backing,
            prealloc: false,
            virtio: None,
            modules: Vec::new(),
            named: 0,
        }
    }

    /// Whether a slot is free beside those of `others`.
    pub(super) fn has_slot(&self, others: usize) -> bool {
        self.modules.len() + others < self.slots as usize
    }

    fn mib(&self) -> u64 {
        self.boot_mib + self.modules.iter().map(|module| module.mib).sum::<u64>()
    }

    /// `others` are the slots that other devices have. No more comes once nobody waits for `answer`.
    pub(super) async fn resize(
        &mut self,
        qmp: &Qmp,
        size: MemorySize,
        others: usize,
        answer: &mut Answer<u64>,
    ) -> Result<u64, PlugError> {
        let block = size.block_mib.max(1);
        let more = size.mib.saturating_sub(self.boot_mib).div_ceil(block).saturating_mul(block);
        if let Some(virtio) = self.virtio {
            let most = virtio.mib / block * block;
            return Ok(self.boot_mib + request(qmp, more.min(most), answer).await?);
        }
        // Rounded down, so that a guest never has more than it may.
        let most = (self.most_mib - self.boot_mib) / block * block;
        let wanted = self.boot_mib + more.min(most);
        while self.mib() < wanted && !answer.is_closed() {
            let step = (wanted - self.mib()).min(STEP * self.mib() / block * block).max(block);
            if !self.has_slot(others) {
                return Err(FULL);
            }
            self.add(qmp, step).await?;
        }
        while let Some(last) = self.modules.last().filter(|last| self.mib() - last.mib >= wanted) {
            match leave::leave(qmp, &last.id).await {
                Ok(()) => {}
                // It is in use: the guest has more than it needs, which harms nobody.
                Err(PlugError::Refused(_) | PlugError::Held { .. }) => break,
                Err(error) => return Err(error),
            }
            let memdev = backend(&last.id);
            self.modules.pop();
            qmp.execute(ObjectDel { id: memdev }).await?;
        }
        Ok(self.mib())
    }

    async fn add(&mut self, qmp: &Qmp, mib: u64) -> Result<(), PlugError> {
        self.named += 1;
        let id = format!("plugged-memory-{}", self.named);
        let memdev = backend(&id);
        qmp.execute(ObjectAdd(Object::memory(
            memdev.clone().into(),
            mib << 20,
            &self.backing,
            self.prealloc,
        )))
        .await?;
        if let Err(error) =
            qmp.execute(DeviceAdd(Device::PcDimm { id: id.clone(), memdev: memdev.clone() })).await
        {
            // The device's own error is the one worth telling.
            let _ = qmp.execute(ObjectDel { id: memdev }).await;
            return Err(error.into());
        }
        self.modules.push(Module { id, mib });
        Ok(())
    }
}

fn backend(module: &str) -> String {
    format!("{module}-backend")
}

/// Asks the guest to have `mib` MiB of virtio-mem, and returns what it has; to have no more than that once nobody waits for
/// `answer`.
async fn request(qmp: &Qmp, mib: u64, answer: &mut Answer<u64>) -> Result<u64, QmpError> {
    let deadline = Instant::now() + PATIENCE;
    let mut events = qmp.events();
    let path = || format!("/machine/peripheral/{VIRTIO_MEM}");
    let value = mib << 20;
    qmp.execute(QomSet { path: path(), property: "requested-size", value }).await?;
    let mut waited_for = true;
    loop {
        let now = qmp.execute(QomGet { path: path(), property: "size" }).await?.as_u64().unwrap_or(0);
        if now == value || Instant::now() >= deadline {
            return Ok(now >> 20);
        }
        if !waited_for {
            // A guest that is to have less goes on giving back.
            if now < value {
                qmp.execute(QomSet { path: path(), property: "requested-size", value: now }).await?;
            }
            return Ok(now >> 20);
        }
        // Whatever event comes, there is no harm in looking once more.
        tokio::select! {
            _ = events.recv() => {}
            () = sleep_until(deadline) => {}
            () = answer.closed() => waited_for = false,
        }
    }
}
