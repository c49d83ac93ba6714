//! Devices of the host that a machine starts with.

use super::Line;
use crate::device::Device;
use crate::spec::{VmSpec, cold_id};

pub(super) fn devices(line: &mut Line, spec: &VmSpec) {
    // A specification whose devices have no place is not rendered.
    for (number, (device, seat)) in spec.seats().unwrap_or_default().into_iter().enumerate() {
        line.device(&Device::of_host(cold_id(number).0, device, seat));
    }
}
