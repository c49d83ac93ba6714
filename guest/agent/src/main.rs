//! The guest agent: PID 1 of the virtual machine that holds a pod.
//!
//! ```text
//! boot    mounts, kernel modules, cgroups, loopback  -> boot
//! serve   the agent protocol on vsock port 1024      -> server, rpc
//! serve   ports of the pod, asked for on the host    -> server, forward
//! act     storages, containers, processes, streams   -> sandbox, container, process, stdio
//! ```
//!
//! The agent has one thread, and never blocks it: a container's process is a fork of the agent from its first step on (see
//! `runtime`), and whatever else blocks runs in a short-lived forked worker (see `worker`), so streams and waits never stand
//! still behind it.

mod boot;
mod cgroup;
mod console;
mod container;
mod devices;
mod error;
mod files;
mod forward;
mod hooks;
mod hotplug;
mod id;
mod log;
mod metrics;
mod modules;
mod namespaces;
mod network;
mod oom;
mod pidfd;
mod process;
mod readiness;
mod reaper;
mod rpc;
mod runtime;
mod sandbox;
mod scheduling;
mod server;
mod stdio;
mod storage;
mod stuck;
mod swap;
mod worker;

use std::process::ExitCode;

use nix::{
    sys::reboot::{RebootMode, reboot},
    unistd::getpid,
};

use crate::error::Error;

fn main() -> ExitCode {
    log::start();
    let mut arguments = std::env::args();
    if getpid().as_raw() != 1 && arguments.next().as_deref() == Some(hooks::NAME) {
        return hooks::main(arguments);
    }
    if getpid().as_raw() != 1 {
        ::log::error!("guest-agent boots a virtual machine: it runs as /init of an initramfs, not by hand");
        return ExitCode::from(2);
    }
    power_off_on_panic();
    if let Err(error) = run() {
        ::log::error!("{}", error::chain(&error));
    }
    power_off()
}

fn run() -> Result<(), Error> {
    boot::run()?;
    scheduling::behind_the_pod();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::system("build the event loop"))?;
    runtime.block_on(server::serve())
}

/// A guest without its agent is of no use to anybody, so it must not linger as a running VM.
fn power_off() -> ! {
    let refused = reboot(RebootMode::RB_POWER_OFF);
    ::log::error!("power off: {refused:?}");
    // The end of PID 1 is a kernel panic, which `panic=1` turns into the end of the VM.
    std::process::exit(1)
}

fn power_off_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        ::log::error!("panic: {info}");
        if !worker::is_worker() {
            power_off();
        }
    }));
}
