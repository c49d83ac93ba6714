//! The machine and what it is made of.

use std::path::PathBuf;

use crate::choice::{
    AcceleratorChoice, ExtraMonitor, FsType, MachineType, SharedFs, VirtioFsCache, VsockChoice,
};
use crate::program::Program;

/// `[hypervisor.qemu]`, checked. Files named here existed when the configuration was loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct Hypervisor {
    /// QEMU, an executable file.
    pub path: PathBuf,
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// What the guest's kernel starts from.
    pub rootfs: Rootfs,
    /// Which board QEMU emulates.
    pub machine_type: MachineType,
    /// Further options of `-machine`, separated by commas; may be empty.
    pub machine_accelerators: String,
    /// Further features of `-cpu`, separated by commas; may be empty.
    pub cpu_features: String,
    /// Words for the end of the guest's kernel command line: the last one of a name wins.
    pub kernel_params: Vec<String>,
    /// The firmware for `-bios`, where it is not QEMU's own.
    pub firmware: Option<PathBuf>,
    /// What executes the guest's code.
    pub accelerator: AcceleratorChoice,
    /// What carries the connections between host and guest.
    pub vsock: VsockChoice,
    /// Virtual CPUs at boot, at least 1 and at most the host's.
    pub default_vcpus: u32,
    /// Virtual CPUs the guest may grow to, at least `default_vcpus` and at most 240.
    pub default_maxvcpus: u32,
    /// Memory at boot, at least 256 MiB.
    pub default_memory_mib: u32,
    /// Slots for memory that is plugged in later, at most 256.
    pub memory_slots: u32,
    /// Memory the guest may grow to, at least `default_memory_mib`.
    pub default_maxmemory_mib: u64,
    /// Where the host has the guest's memory.
    pub memory_backing: MemoryBacking,
    /// All of the memory is taken from the host at the start.
    pub enable_mem_prealloc: bool,
    /// Memory grows by virtio-mem.
    pub enable_virtio_mem: bool,
    /// The guest has an IOMMU.
    pub enable_iommu: bool,
    /// PCI bridges for devices that are plugged in later, at most 5.
    pub default_bridges: u32,
    /// PCI Express root ports for such devices, at most 16.
    pub pcie_root_port: u32,
    /// How the guest sees the host's directories.
    pub shared_fs: SharedFs,
    /// `virtiofsd`; checked at load only when `shared_fs` asks for it.
    pub virtio_fs_daemon: Program,
    /// What the guest may keep in memory of a virtio-fs share.
    pub virtio_fs_cache: VirtioFsCache,
    /// Descriptors in a queue of the virtio-fs device, a power of two.
    pub virtio_fs_queue_size: u32,
    /// Further arguments for `virtio_fs_daemon`; none of those the shim sets itself.
    pub virtio_fs_extra_args: Vec<String>,
    /// Largest 9p message in bytes.
    pub msize_9p: u32,
    /// Where the guest's random numbers come from.
    pub entropy_source: PathBuf,
    /// The value of QEMU's `-sandbox`; empty means QEMU's default.
    pub seccompsandbox: String,
    /// A further monitor of QEMU's.
    pub extra_monitor: ExtraMonitor,
    /// The guest's console is a serial port rather than virtio.
    pub use_legacy_serial: bool,
    /// Kernel, agent and QEMU say more, and the guest's console is logged.
    pub enable_debug: bool,
}

/// Where the host has the guest's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemoryBacking {
    /// Nowhere but in its own memory.
    Anonymous,
    /// In its reserve of huge pages.
    HugePages,
    /// In a file without a name in this directory.
    Directory(PathBuf),
}

/// What the guest's kernel starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rootfs {
    /// An initial RAM file system, smaller than the guest's memory.
    Initrd(PathBuf),
    /// A disk image whose first partition is the root file system.
    Image {
        /// The image.
        path: PathBuf,
        /// The file system on its first partition.
        fs_type: FsType,
    },
}
