//! A device that has to go. QEMU only asks the guest, and tells by an event when the guest has let go.

use std::time::Duration;

use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::time::timeout;

use crate::error::QmpError;
use crate::plug::PlugError;
use crate::qemu::qmp::{DeviceDel, Event, Qmp};

/// How long a guest may take. Under TCG and load seconds are not unusual.
const PATIENCE: Duration = Duration::from_secs(20);

/// Returns when the device `id` is gone.
pub(super) async fn leave(qmp: &Qmp, id: &str) -> Result<(), PlugError> {
    let mut events = qmp.events();
    match qmp.execute(DeviceDel { id: id.to_owned() }).await {
        Ok(_) => {}
        Err(error) if is_gone(&error) => return Ok(()),
        // QEMU refuses to ask twice, and an earlier request may still be on its way.
        Err(QmpError::Refused { desc, .. }) if desc.contains("in the process of unplug") => {}
        Err(error) => return Err(error.into()),
    }
    match timeout(PATIENCE, gone(&mut events, id)).await {
        Ok(Some(answer)) => answer,
        // Some events were missed, or none came: QEMU knows whether there is such a device.
        Ok(None) | Err(_) => match qmp.execute(DeviceDel { id: id.to_owned() }).await {
            Err(error) if is_gone(&error) => Ok(()),
            _ => Err(PlugError::Held { what: id.to_owned(), after: PATIENCE }),
        },
    }
}

fn is_gone(error: &QmpError) -> bool {
    matches!(error, QmpError::Refused { class, .. } if class == "DeviceNotFound")
}

async fn gone(events: &mut Receiver<Event>, id: &str) -> Option<Result<(), PlugError>> {
    loop {
        let event = match events.recv().await {
            Ok(event) => event,
            Err(RecvError::Lagged(_)) => return None,
            Err(RecvError::Closed) => {
                return Some(Err(QmpError::Gone { command: "device_del".to_owned() }.into()));
            }
        };
        if event.data["device"] != *id {
            continue;
        }
        match event.name.as_str() {
            "DEVICE_DELETED" => return Some(Ok(())),
            "DEVICE_UNPLUG_GUEST_ERROR" => return Some(Err(PlugError::Refused(id.to_owned()))),
            _ => {}
        }
    }
}
