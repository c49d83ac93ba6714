//! The honoured keys as the files give them: right names, right types, defaults filled in, nothing else checked.
//!
//! Fields are named as the keys. Keys without a default are options.

use std::path::PathBuf;

use serde::Deserialize;

use crate::choice::{
    AcceleratorChoice, BlockAio, EmptyDirMode, ExtraMonitor, FsType, InternetworkingModel, MachineType,
    SharedFs, VfioMode, VirtioFsCache, VsockChoice,
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawHypervisor {
    pub(crate) path: PathBuf,
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: Option<PathBuf>,
    pub(crate) image: Option<PathBuf>,
    pub(crate) rootfs_type: FsType,
    pub(crate) vm_rootfs_driver: String,
    pub(crate) disable_image_nvdimm: bool,
    pub(crate) machine_type: MachineType,
    pub(crate) machine_accelerators: String,
    pub(crate) cpu_features: String,
    pub(crate) kernel_params: String,
    pub(crate) kernel_verity_params: String,
    pub(crate) guest_extension_images: Vec<toml::Table>,
    pub(crate) firmware: PathBuf,
    pub(crate) firmware_volume: PathBuf,
    pub(crate) pflashes: Vec<PathBuf>,
    pub(crate) confidential_guest: bool,
    pub(crate) sev_snp_guest: bool,
    pub(crate) snp_id_block: String,
    pub(crate) snp_id_auth: String,
    pub(crate) snp_guest_policy: u64,
    pub(crate) tdx_quote_generation_service_socket_port: u32,
    pub(crate) accelerator: AcceleratorChoice,
    pub(crate) vsock: VsockChoice,
    pub(crate) default_vcpus: f64,
    pub(crate) default_maxvcpus: u32,
    pub(crate) default_memory: u32,
    pub(crate) memory_slots: u32,
    pub(crate) default_maxmemory: u64,
    pub(crate) memory_offset: u32,
    pub(crate) enable_hugepages: bool,
    pub(crate) enable_mem_prealloc: bool,
    pub(crate) reclaim_guest_freed_memory: bool,
    pub(crate) disable_block_device_use: bool,
    pub(crate) guest_hook_path: String,
    pub(crate) enable_virtio_mem: bool,
    pub(crate) file_mem_backend: PathBuf,
    pub(crate) enable_numa: bool,
    pub(crate) numa_mapping: Vec<String>,
    pub(crate) enable_iommu: bool,
    pub(crate) enable_iommu_platform: bool,
    pub(crate) disable_nesting_checks: bool,
    pub(crate) default_bridges: u32,
    pub(crate) pcie_root_port: u32,
    pub(crate) pcie_switch_port: u32,
    pub(crate) hot_plug_vfio: String,
    pub(crate) cold_plug_vfio: String,
    pub(crate) hotplug_vfio_on_root_bus: bool,
    pub(crate) shared_fs: SharedFs,
    pub(crate) virtio_fs_daemon: PathBuf,
    pub(crate) virtio_fs_cache: VirtioFsCache,
    pub(crate) virtio_fs_cache_size: u32,
    pub(crate) virtio_fs_queue_size: u32,
    pub(crate) virtio_fs_extra_args: Vec<String>,
    pub(crate) msize_9p: u32,
    pub(crate) block_device_driver: String,
    pub(crate) block_device_aio: BlockAio,
    pub(crate) block_device_cache_set: bool,
    pub(crate) block_device_cache_direct: bool,
    pub(crate) block_device_cache_noflush: bool,
    pub(crate) block_device_logical_sector_size: u32,
    pub(crate) block_device_physical_sector_size: u32,
    pub(crate) queue_size: u32,
    pub(crate) num_queues: u32,
    pub(crate) enable_iothreads: bool,
    pub(crate) indep_iothreads: u32,
    pub(crate) enable_vhost_user_store: bool,
    pub(crate) vhost_user_store_path: PathBuf,
    pub(crate) vhost_user_reconnect_timeout_sec: u32,
    pub(crate) entropy_source: PathBuf,
    pub(crate) seccompsandbox: String,
    pub(crate) guest_memory_dump_path: PathBuf,
    pub(crate) guest_memory_dump_paging: bool,
    pub(crate) rootless: bool,
    pub(crate) disable_selinux: bool,
    pub(crate) disable_guest_selinux: bool,
    pub(crate) extra_monitor_socket: ExtraMonitor,
    pub(crate) use_legacy_serial: bool,
    pub(crate) disable_vhost_net: bool,
    pub(crate) rx_rate_limiter_max_rate: u64,
    pub(crate) tx_rate_limiter_max_rate: u64,
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
pub(crate) struct RawFactory {
    pub(crate) enable_template: bool,
    pub(crate) template_path: PathBuf,
    pub(crate) vm_cache_number: u32,
    pub(crate) vm_cache_endpoint: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawRuntime {
    pub(crate) enable_debug: bool,
    pub(crate) create_container_timeout: u32,
    pub(crate) disable_guest_seccomp: bool,
    pub(crate) guest_selinux_label: String,
    pub(crate) internetworking_model: InternetworkingModel,
    pub(crate) enable_port_forward: bool,
    pub(crate) disable_new_netns: bool,
    pub(crate) static_sandbox_resource_mgmt: bool,
    pub(crate) sandbox_cgroup_only: bool,
    pub(crate) enable_vcpus_pinning: bool,
    pub(crate) disable_guest_empty_dir: bool,
    pub(crate) emptydir_mode: EmptyDirMode,
    pub(crate) vfio_mode: VfioMode,
    pub(crate) sandbox_bind_mounts: Vec<String>,
}
