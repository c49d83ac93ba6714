//! From the first instruction of `/init` to a guest that can hold containers.
//!
//! ```text
//! process  limits, file mode mask, not dumpable
//! root     tmpfs root with the kernel's file systems, modules in, initramfs gone
//! cgroups  every controller available to containers
//! network  loopback up
//! ```

mod cgroups;
mod loopback;
mod mounts;

use nix::{
    sys::{
        prctl,
        resource::{Resource, setrlimit},
        stat::{Mode, umask},
    },
    unistd::sethostname,
};

use crate::{error::Error, hotplug, modules};

/// Open files of the agent and, unless their own limit says otherwise, of containers' processes.
const OPEN_FILES: u64 = 1024 * 1024;

/// Host name until the sandbox has one.
const HOST_NAME: &str = "kata";

/// Does all of it, in well under a second even on an emulated CPU.
///
/// # Errors
///
/// [`Error::System`] naming the step without which no container could run.
pub(crate) fn run() -> Result<(), Error> {
    prepare_process()?;
    mounts::new_root()?;
    modules::load_at_boot();
    mounts::enter_new_root()?;
    modules::find_mmio_devices();
    crate::log::set_level_from_command_line();
    cgroups::set_up()?;
    hotplug::use_new_memory();
    loopback::up()?;
    sethostname(HOST_NAME).map_err(Error::system("set the host name"))
}

fn prepare_process() -> Result<(), Error> {
    umask(Mode::from_bits_truncate(0o022));
    // A container's process that sees the agent in /proc must not get at its memory or files.
    prctl::set_dumpable(false).map_err(Error::system("make the agent not dumpable"))?;
    setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES)
        .map_err(Error::system("raise the limit of open files"))
}
