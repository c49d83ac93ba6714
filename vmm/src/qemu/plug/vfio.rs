//! Devices of the host. QEMU opens them itself, and is asked where it has put them.

use std::time::Duration;

use serde_json::Value;
use slog::warn;

use super::{Board, Held, leave};
use crate::device::Device;
use crate::error::QmpError;
use crate::plug::{DeviceId, GuestAddress, PciPath, PlugError};
use crate::qemu::qmp::{DeviceAdd, QomGet};
use crate::spec::{NoSeat, PassThrough, Seat, VfioPort, VmSpec};
use crate::vfio::HostDevice;

/// How long QEMU may take: it resets the device, and all of the guest's memory has to stay where it is from now on.
const PATIENCE: Duration = Duration::from_secs(300);

/// Where devices go that come later, if they may.
pub(super) fn port(spec: &VmSpec) -> Option<VfioPort> {
    match spec.pass_through {
        PassThrough::Hot(port) => Some(port),
        PassThrough::Never | PassThrough::Cold { .. } => None,
    }
}

/// The devices that the machine started with.
pub(super) fn booted(spec: &VmSpec) -> impl Iterator<Item = (DeviceId, Held)> {
    // A specification whose devices have no place does not boot.
    let (seats, found) = (spec.seats().unwrap_or_default(), spec.passed_through().unwrap_or_default());
    found.into_iter().zip(seats).map(|(found, (device, seat))| {
        (found.id, Held::HostDevice { device: device.clone(), at: Some(found.at), seat })
    })
}

impl Board {
    pub(super) async fn plug_host_device(
        &mut self,
        id: &DeviceId,
        device: &HostDevice,
    ) -> Result<Held, PlugError> {
        let remedy = "set hot_plug_vfio";
        let port =
            self.vfio.ok_or(PlugError::NotTaken { what: "device of the host while it runs", remedy })?;
        self.finish_leaving(device).await?;
        let taken = self.seats_taken();
        let full = |NoSeat { what, remedy }| PlugError::Full { what, remedy };
        let seat = self.pci.seat(device, port, |seat| taken.contains(seat)).map_err(full)?;
        let added = DeviceAdd(Device::of_host(id.0.clone(), device, seat));
        let at = match self.qmp.execute_within(added, PATIENCE).await {
            Err(error @ QmpError::Refused { .. }) => return Err(error.into()),
            Err(error) => Err(error.into()),
            Ok(_) if seat.is_none() => Ok(GuestAddress::Ap),
            Ok(_) => self.path_to(id).await.map(GuestAddress::Path),
        };
        match at {
            Ok(at) => Ok(Held::HostDevice { device: device.clone(), at: Some(at), seat }),
            Err(error) => {
                self.give_up(id, device, seat).await;
                // Why nobody could use it is the error worth telling.
                Err(error)
            }
        }
    }

    /// QEMU has no device twice: one that the guest has not let go of in time has to be gone before it comes again.
    async fn finish_leaving(&mut self, device: &HostDevice) -> Result<(), PlugError> {
        let is_it =
            |held: &Held| matches!(held, Held::HostDevice { device: its, at: None, .. } if its == device);
        let earlier = self.devices.iter().find(|(_, held)| is_it(held)).map(|(id, _)| id.clone());
        match earlier {
            Some(id) => self.unplug(&id).await,
            None => Ok(()),
        }
    }

    /// Takes out what QEMU may have and nobody can use. What stays keeps its seat.
    async fn give_up(&mut self, id: &DeviceId, device: &HostDevice, seat: Option<Seat>) {
        if let Err(left) = leave::leave(&self.qmp, &id.0).await {
            warn!(self.log, "a device that cannot be used stays plugged in"; "device" => %id, "why" => %left);
            self.devices.insert(id.clone(), Held::HostDevice { device: device.clone(), at: None, seat });
        }
    }

    fn seats_taken(&self) -> Vec<Seat> {
        self.devices.values().filter_map(Held::seat).collect()
    }

    /// Goes from the device to the root bus.
    async fn path_to(&self, id: &DeviceId) -> Result<PciPath, PlugError> {
        let mut path = PciPath::new([self.slot_of(&id.0).await?]);
        let mut bus = self.ask_device(&id.0, "parent_bus").await?;
        while let Some(port) = bus.as_str().and_then(owner) {
            let slot = self.slot_of(port).await?;
            path = path.behind(slot).ok_or_else(|| protocol(format!("{id} is far behind {port}")))?;
            bus = self.ask_device(port, "parent_bus").await?;
        }
        Ok(path)
    }

    async fn slot_of(&self, device: &str) -> Result<u8, PlugError> {
        let address = self.ask_device(device, "addr").await?;
        // Three bits for the function.
        let number = address.as_u64().and_then(|number| u8::try_from(number).ok());
        match number.ok_or_else(|| protocol(format!("{device} is at {address}")))? {
            number if number & 7 == 0 => Ok(number >> 3),
            number => Err(PlugError::Function { device: device.to_owned(), function: number & 7 }),
        }
    }

    async fn ask_device(&self, device: &str, property: &'static str) -> Result<Value, QmpError> {
        self.qmp.execute(QomGet { path: format!("/machine/peripheral/{device}"), property }).await
    }
}

fn protocol(what: String) -> QmpError {
    QmpError::Protocol { command: "qom-get".to_owned(), what }
}

/// The bridge or port whose bus it is; `None` for the root bus, which is the board's.
fn owner(bus: &str) -> Option<&str> {
    bus.strip_prefix("/machine/peripheral/")?.split('/').next()
}
