//! `[agent.kata]`.

use super::{Key, Kind, Preset, U32, flag, integer, texts};

#[rustfmt::skip]
pub(super) const KEYS: &[Key] = &[
    flag("enable_debug", false, "the guest's agent logs at debug level"),
    texts("kernel_modules", &[], "modules the guest loads first, each as \"name parameter=value ...\""),
    flag("debug_console_enabled", false, "the agent offers a shell on vsock port 1026"),
    integer("dial_timeout", 45, U32, "seconds from the start of QEMU until the agent must answer; 0 means 45"),
    flag("enable_tracing", false, "the agent sends trace spans").later(),
    integer("cdh_api_timeout", 50, U32, "seconds for a call to the confidential data hub").later(),
    integer("launch_process_timeout", 6, U32, "seconds for a helper process in a confidential guest").later(),
    texts("visible_cdi_devices", &[], "devices shown to containers by the container device interface").later(),
    integer("container_pipe_size", 0, U32, "size in bytes of the pipes that carry a container's output").later(),
    integer("dial_timeout_ms", 10, U32, "milliseconds of one attempt to reach the agent (Kata's Rust runtime)").later(),
    integer("reconnect_timeout_ms", 3000, U32, "milliseconds of all attempts (Kata's Rust runtime)").later(),
    integer("create_container_timeout", 60, U32, "where Kata's Rust runtime has it; here it is in [runtime]").later(),
    Key::new("mem_agent", Kind::Tables, Preset::Unset, "the guest's own memory manager").later(),
];
