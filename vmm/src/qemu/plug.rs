//! What comes to a running machine and goes from it.
//!
//! One task does it, one thing after the other, so nothing is ever half done: who asked may stop waiting at any time,
//! and a device that nobody waits for any more is taken out again.

mod disk;
pub(super) mod leave;
mod memory;
mod nic;
mod places;
mod pmem;
#[cfg(test)]
mod tests;
mod vcpus;
mod vfio;
mod vhost_user;

use std::collections::BTreeMap;
use std::fs::File;

use slog::{Logger, warn};
use tokio::sync::{mpsc, oneshot};

use super::qmp::Qmp;
use crate::error::QmpError;
use crate::plug::{DeviceId, GuestAddress, MemorySize, PciAddress, PlugError, Pluggable, Plugged};
use crate::spec::{Block, PciPlaces, Seat, VfioPort, VirtioPci, VmSpec};
use crate::vfio::HostDevice;
use memory::Memory;
use places::BusAddress;
use vcpus::Vcpus;

/// Requests that wait for their turn.
const QUEUE: usize = 16;

/// The way to the task. It ends with the last of these.
#[derive(Debug)]
pub(crate) struct Plugs(mpsc::Sender<Request>);

#[derive(Debug)]
enum Request {
    Plug(Pluggable, Answer<Plugged>),
    Unplug(DeviceId, Answer<()>),
    Disk(DeviceId, Answer<u64>),
    Vcpus(u32, Answer<u32>),
    Memory(MemorySize, Answer<u64>),
}

type Answer<T> = oneshot::Sender<Result<T, PlugError>>;

impl Plugs {
    /// For a machine as `spec` has it booted.
    pub(crate) fn start(qmp: Qmp, spec: &VmSpec, log: Logger) -> Plugs {
        let (vcpus, memory) = (Vcpus::booted(spec.vcpus, spec.accelerator), Memory::booted(spec));
        Plugs::serve(Board {
            nvdimms: pmem::booted(spec),
            pci: spec.pci,
            vfio: vfio::port(spec),
            block: spec.block.clone(),
            virtio: spec.virtio,
            devices: vfio::booted(spec).collect(),
            named: 0,
            vcpus,
            memory,
            qmp,
            log,
        })
    }

    fn serve(board: Board) -> Plugs {
        let (requests, queue) = mpsc::channel(QUEUE);
        tokio::spawn(board.serve(queue));
        Plugs(requests)
    }

    pub(crate) async fn plug(&self, device: Pluggable) -> Result<Plugged, PlugError> {
        self.ask("device_add", |answer| Request::Plug(device, answer)).await
    }

    pub(crate) async fn unplug(&self, id: &DeviceId) -> Result<(), PlugError> {
        self.ask("device_del", |answer| Request::Unplug(id.clone(), answer)).await
    }

    pub(crate) async fn resize_disk(&self, id: &DeviceId) -> Result<u64, PlugError> {
        self.ask("block_resize", |answer| Request::Disk(id.clone(), answer)).await
    }

    pub(crate) async fn resize_vcpus(&self, count: u32) -> Result<u32, PlugError> {
        self.ask("device_add", |answer| Request::Vcpus(count, answer)).await
    }

    pub(crate) async fn resize_memory(&self, size: MemorySize) -> Result<u64, PlugError> {
        self.ask("device_add", |answer| Request::Memory(size, answer)).await
    }

    async fn ask<T>(
        &self,
        command: &str,
        request: impl FnOnce(Answer<T>) -> Request,
    ) -> Result<T, PlugError> {
        let (answer, answered) = oneshot::channel();
        let gone = || QmpError::Gone { command: command.to_owned() };
        self.0.send(request(answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

/// The machine's board, with what is plugged into it.
struct Board {
    qmp: Qmp,
    /// How many devices that are memory the guest has from the start; `None` where no NVDIMM can come.
    nvdimms: Option<u32>,
    pci: PciPlaces,
    /// Where devices of the host go, if they may come.
    vfio: Option<VfioPort>,
    block: Block,
    virtio: VirtioPci,
    devices: BTreeMap<DeviceId, Held>,
    /// How many devices have been given a name.
    named: u64,
    vcpus: Vcpus,
    memory: Memory,
    log: Logger,
}

/// A device that is plugged in, and what has to go with it.
enum Held {
    Disk {
        at: BusAddress,
        set: u32,
        file: File,
    },
    Nic {
        at: BusAddress,
    },
    Pmem {
        number: u32,
    },
    VhostUserDisk {
        at: BusAddress,
    },
    /// Nowhere to be found once it is to go, which a guest may take its time for.
    HostDevice {
        device: HostDevice,
        at: Option<GuestAddress>,
        seat: Option<Seat>,
    },
}

impl Held {
    fn at(&self) -> Option<GuestAddress> {
        match self {
            Held::Disk { at, .. } | Held::Nic { at } | Held::VhostUserDisk { at } => Some((*at).into()),
            Held::Pmem { number } => Some(GuestAddress::Pmem(*number)),
            Held::HostDevice { at, .. } => *at,
        }
    }

    /// The place that no other device can have.
    fn takes(&self) -> Option<BusAddress> {
        match self {
            Held::Disk { at, .. } | Held::Nic { at } | Held::VhostUserDisk { at } => Some(*at),
            Held::HostDevice { seat: Some(Seat::Slot(address)), .. } => Some(BusAddress::Pci(*address)),
            Held::HostDevice { .. } | Held::Pmem { .. } => None,
        }
    }

    /// The same where a device of the host could be.
    fn seat(&self) -> Option<Seat> {
        match (self, self.takes()) {
            (Held::HostDevice { seat, .. }, _) => *seat,
            (_, Some(BusAddress::Pci(address))) => Some(Seat::Slot(address)),
            _ => None,
        }
    }
}

impl Board {
    async fn serve(mut self, mut queue: mpsc::Receiver<Request>) {
        while let Some(request) = queue.recv().await {
            match request {
                Request::Plug(device, answer) => {
                    let plugged = self.plug(device).await;
                    if let Err(Ok(unwanted)) = answer.send(plugged) {
                        self.take_back(&unwanted.id).await;
                    }
                }
                // Whoever does not wait for these finds the machine as it asked for it, but for memory that is still to
                // come: that is for whoever asks next.
                Request::Unplug(id, answer) => drop(answer.send(self.unplug(&id).await)),
                Request::Disk(id, answer) => drop(answer.send(self.resize_disk(&id).await)),
                Request::Vcpus(count, answer) => drop(answer.send(self.vcpus.resize(&self.qmp, count).await)),
                Request::Memory(size, mut answer) => {
                    let others = self.pmems();
                    let resized = self.memory.resize(&self.qmp, size, others, &mut answer).await;
                    drop(answer.send(resized));
                }
            }
        }
    }

    async fn plug(&mut self, device: Pluggable) -> Result<Plugged, PlugError> {
        let id = self.name(&device);
        let held = match device {
            Pluggable::Disk(disk) => self.plug_disk(&id, &disk).await?,
            Pluggable::Nic(nic) => self.plug_nic(&id, nic).await?,
            Pluggable::Pmem(pmem) => self.plug_pmem(&id, &pmem).await?,
            Pluggable::VhostUserDisk(disk) => self.plug_vhost_user_disk(&id, &disk).await?,
            Pluggable::HostDevice(device) => self.plug_host_device(&id, &device).await?,
        };
        let at = held.at().ok_or_else(|| PlugError::Unknown(id.clone()))?;
        self.devices.insert(id.clone(), held);
        Ok(Plugged { id, at })
    }

    fn name(&mut self, device: &Pluggable) -> DeviceId {
        self.named += 1;
        let kind = match device {
            Pluggable::Disk(_) => "disk",
            Pluggable::Nic(_) => "nic",
            Pluggable::Pmem(_) => "pmem",
            Pluggable::VhostUserDisk(_) => "vhost-user-disk",
            Pluggable::HostDevice(_) => "vfio",
        };
        DeviceId(format!("plugged-{kind}-{}", self.named))
    }

    async fn unplug(&mut self, id: &DeviceId) -> Result<(), PlugError> {
        let Some(held) = self.devices.get_mut(id) else { return Err(PlugError::Unknown(id.clone())) };
        match held {
            Held::Pmem { .. } => return Err(PlugError::Stays(id.clone())),
            Held::HostDevice { at, .. } => *at = None,
            Held::Disk { .. } | Held::Nic { .. } | Held::VhostUserDisk { .. } => {}
        }
        // Until the guest has let go it is still there, and so is its place.
        leave::leave(&self.qmp, &id.0).await?;
        match held {
            &mut Held::Disk { set, .. } => self.forget_disk(id, set).await?,
            Held::Nic { .. } => self.forget_nic(id).await?,
            Held::VhostUserDisk { .. } => self.forget_vhost_user_disk(id).await?,
            Held::HostDevice { .. } | Held::Pmem { .. } => {}
        }
        self.devices.remove(id);
        Ok(())
    }

    async fn take_back(&mut self, id: &DeviceId) {
        if let Err(error) = self.unplug(id).await {
            warn!(self.log, "a device that nobody waits for stays plugged in"; "device" => %id, "why" => %error);
        }
    }

    fn free_slot(&self) -> Result<PciAddress, PlugError> {
        places::pci(self.pci.bridges(), &self.taken())
    }

    fn taken(&self) -> Vec<BusAddress> {
        self.devices.values().filter_map(Held::takes).collect()
    }
}
