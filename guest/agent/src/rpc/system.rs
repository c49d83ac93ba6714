//! Methods about the guest as a whole.

use std::{fs::OpenOptions, io::Write, os::fd::AsRawFd};

use agent_protocol::{
    agent::{AgentDetails, GuestDetailsRequest, GuestDetailsResponse},
    convert::CGROUP_FILES,
};
use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_settime},
};
use protobuf::MessageField;

use crate::{error::Error, hotplug, storage};

nix::ioctl_none_bad!(reseed_random_generator, nix::request_code_none!(b'R', 7));

/// Most bytes of entropy taken at a time.
const MAX_SEED: usize = 64 * 1024;

/// Mixes the host's bytes into the kernel's random generator and has it start anew from there.
pub(super) fn reseed_random(data: &[u8]) -> Result<(), Error> {
    if data.len() > MAX_SEED {
        return Err(Error::invalid(format!("data: {} bytes, more than {MAX_SEED}", data.len())));
    }
    let what = || "reseed /dev/urandom".to_owned();
    let mut device = OpenOptions::new().write(true).open("/dev/urandom").map_err(Error::system(what()))?;
    device.write_all(data).map_err(Error::system(what()))?;
    // SAFETY: RNDRESEEDCRNG takes no argument.
    unsafe { reseed_random_generator(device.as_raw_fd()) }.map(drop).map_err(Error::system(what()))
}

/// Tells a host that the streams of a process may go by connections, which requests name by their ports.
const STREAM_PORTS: &str = "stream-ports";

/// Sets the clock.
pub(super) fn set_date_time(seconds: i64, microseconds: i64) -> Result<(), Error> {
    if !(0..1_000_000).contains(&microseconds) {
        return Err(Error::invalid(format!("Usec: {microseconds} is not within a second")));
    }
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::new(seconds, microseconds * 1000))
        .map_err(Error::system(format!("set the clock to {seconds} s")))
}

pub(super) fn guest_details(request: &GuestDetailsRequest) -> GuestDetailsResponse {
    let details = AgentDetails {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        init_daemon: true,
        storage_handlers: storage::DRIVERS.iter().map(|driver| (*driver).to_owned()).collect(),
        supports_seccomp: true,
        extra_features: [STREAM_PORTS, CGROUP_FILES].map(str::to_owned).to_vec(),
        ..Default::default()
    };
    GuestDetailsResponse {
        mem_block_size_bytes: if request.mem_block_size { hotplug::memory_block_size() } else { 0 },
        support_mem_hotplug_probe: request.mem_hotplug_probe && hotplug::can_probe_memory(),
        agent_details: MessageField::some(details),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_out_of_range_are_refused_before_anything_is_done() {
        assert!(matches!(reseed_random(&vec![0; MAX_SEED + 1]), Err(Error::Invalid(_))));
        assert!(matches!(set_date_time(0, 1_000_000), Err(Error::Invalid(_))));
        assert!(matches!(set_date_time(0, -1), Err(Error::Invalid(_))));
    }
}
