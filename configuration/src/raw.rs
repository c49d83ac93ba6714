//! The honoured keys as the files give them: right names, right types, defaults filled in, nothing else checked.
//!
//! Fields are named as the keys. Keys without a default are options.

use std::path::PathBuf;

use serde::Deserialize;

use crate::choice::{
    AcceleratorChoice, ExtraMonitor, FsType, MachineType, SharedFs, VirtioFsCache, VsockChoice,
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawHypervisor {
    pub(crate) path: PathBuf,
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: Option<PathBuf>,
    pub(crate) image: Option<PathBuf>,
    pub(crate) rootfs_type: FsType,
    pub(crate) machine_type: MachineType,
    pub(crate) machine_accelerators: String,
    pub(crate) cpu_features: String,
    pub(crate) kernel_params: String,
    pub(crate) firmware: PathBuf,
    pub(crate) accelerator: AcceleratorChoice,
    pub(crate) vsock: VsockChoice,
    pub(crate) default_vcpus: f64,
    pub(crate) default_maxvcpus: u32,
    pub(crate) default_memory: u32,
    pub(crate) memory_slots: u32,
    pub(crate) default_maxmemory: u64,
    pub(crate) enable_hugepages: bool,
    pub(crate) enable_mem_prealloc: bool,
    pub(crate) enable_virtio_mem: bool,
    pub(crate) file_mem_backend: PathBuf,
    pub(crate) enable_iommu: bool,
    pub(crate) default_bridges: u32,
    pub(crate) pcie_root_port: u32,
    pub(crate) shared_fs: SharedFs,
    pub(crate) virtio_fs_daemon: PathBuf,
    pub(crate) virtio_fs_cache: VirtioFsCache,
    pub(crate) virtio_fs_queue_size: u32,
    pub(crate) virtio_fs_extra_args: Vec<String>,
    pub(crate) msize_9p: u32,
    pub(crate) entropy_source: PathBuf,
    pub(crate) seccompsandbox: String,
    pub(crate) extra_monitor_socket: ExtraMonitor,
    pub(crate) use_legacy_serial: bool,
    pub(crate) enable_debug: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawAgent {
    pub(crate) enable_debug: bool,
    pub(crate) kernel_modules: Vec<String>,
    pub(crate) debug_console_enabled: bool,
    pub(crate) dial_timeout: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawRuntime {
    pub(crate) enable_debug: bool,
    pub(crate) create_container_timeout: u32,
    pub(crate) disable_guest_seccomp: bool,
}
