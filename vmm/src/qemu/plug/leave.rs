//! A device that has to go. QEMU only asks the guest, and tells by an event when the guest has let go.

use std::time::Duration;

use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::time::timeout;

use crate::error::QmpError;
use crate::plug::PlugError;
use crate::qemu::qmp::{DeviceDel, Event, Qmp, QomGet};

/// How long a guest may take. Under TCG and load seconds are not unusual.
const PATIENCE: Duration = Duration::from_secs(20);

/// Returns when the device `id` is gone.
pub(in crate::qemu) async fn leave(qmp: &Qmp, id: &str) -> Result<(), PlugError> {
    let mut events = qmp.events();
    match qmp.execute(DeviceDel { id: id.to_owned() }).await {
        Ok(_) => {}
        Err(error) if is_not_there(&error) => return Ok(()),
        // QEMU refuses to ask twice, and an earlier request may still be on its way.
        Err(QmpError::Refused { desc, .. }) if desc.contains("in the process of unplug") => {}
        Err(error) => return Err(error.into()),
    }
    match timeout(PATIENCE, gone(qmp, &mut events, id)).await {
        Ok(answer) => answer,
        Err(_) if !is_there(qmp, id).await? => Ok(()),
        Err(_) => Err(PlugError::Held { what: id.to_owned(), after: PATIENCE }),
    }
}

async fn gone(qmp: &Qmp, events: &mut Receiver<Event>, id: &str) -> Result<(), PlugError> {
    loop {
        let news = match events.recv().await {
            Ok(event) => News::of(&event, id),
            // One of the missed ones may have been it.
            Err(RecvError::Lagged(_)) => News::Perhaps,
            Err(RecvError::Closed) => return Err(QmpError::Gone { command: "device_del".to_owned() }.into()),
        };
        match news {
            News::Gone => return Ok(()),
            News::Perhaps if !is_there(qmp, id).await? => return Ok(()),
            News::Refused => return Err(PlugError::Refused(id.to_owned())),
            News::Perhaps | News::None => {}
        }
    }
}

/// What an event says about a device.
enum News {
    Gone,
    /// Something close to it happened.
    Perhaps,
    Refused,
    None,
}

impl News {
    fn of(event: &Event, id: &str) -> News {
        let about = event.data["device"] == *id;
        match event.name.as_str() {
            "DEVICE_DELETED" if about => News::Gone,
            // Of a processor only the parts are told.
            "DEVICE_DELETED" if event.data["device"].is_null() => News::Perhaps,
            "DEVICE_UNPLUG_GUEST_ERROR" if about => News::Refused,
            _ => News::None,
        }
    }
}

async fn is_there(qmp: &Qmp, id: &str) -> Result<bool, QmpError> {
    match qmp.execute(QomGet { path: format!("/machine/peripheral/{id}"), property: "type" }).await {
        Ok(_) => Ok(true),
        Err(error) if is_not_there(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_not_there(error: &QmpError) -> bool {
    matches!(error, QmpError::Refused { class, .. } if class == "DeviceNotFound")
}
