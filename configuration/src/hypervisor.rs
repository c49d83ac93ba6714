//! The machine and what it is made of.

use std::num::NonZeroU32;
use std::path::PathBuf;

use vmm::spec::{
    Block, Boot, CpuFeatures, Extension, ExtraArgs, Firmware, KernelParam, Machine, Numa, PassThrough,
    Protection,
};

use crate::choice::{AcceleratorChoice, ExtraMonitor, SharedFs, VirtioFsCache, VsockChoice};
use crate::program::Program;

/// `[hypervisor.qemu]`, checked. Files named here existed when the configuration was loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct Hypervisor {
    /// QEMU, an executable file.
    pub path: PathBuf,
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// What the guest's kernel starts from.
    pub boot: Boot,
    /// Images that a guest of Kata 4 mounts besides; no two have one name.
    pub extension_images: Vec<Extension>,
    /// Which board QEMU emulates, one that this host's processors have, and how.
    pub machine: Machine,
    /// Further features of `-cpu`.
    pub cpu_features: CpuFeatures,
    /// Words for the end of the guest's kernel command line: the last one of a name wins.
    pub kernel_params: Vec<KernelParam>,
    /// What the machine starts from.
    pub firmware: Firmware,
    /// How the guest's memory is kept from the host, if it is.
    pub protection: Option<Protection>,
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
    /// What memory beside `default_memory_mib` is a multiple of: whole huge pages in each NUMA node, otherwise 1.
    pub memory_step_mib: u64,
    /// Address space for NVDIMMs that come later.
    pub memory_offset_mib: u32,
    /// Where the host has the guest's memory.
    pub memory_backing: MemoryBacking,
    /// Among which of the host's nodes memory and CPUs are divided, if they are.
    pub numa: Option<Numa>,
    /// All of the memory is taken from the host at the start.
    pub enable_mem_prealloc: bool,
    /// Memory that the guest has freed is the host's again.
    pub reclaim_guest_freed_memory: bool,
    /// Root file systems that are on block devices of the host are shared as the others are.
    pub disable_block_device_use: bool,
    /// A directory of the guest's, with programs that its agent runs for each container; empty: none.
    pub guest_hook_path: String,
    /// Memory grows by virtio-mem.
    pub enable_virtio_mem: bool,
    /// The guest has an IOMMU.
    pub enable_iommu: bool,
    /// Virtio devices that QEMU serves are behind an IOMMU.
    pub enable_iommu_platform: bool,
    /// Virtio devices are the same whether or not the host is a virtual machine.
    pub disable_nesting_checks: bool,
    /// PCI bridges for devices that are plugged in later, at most 5.
    pub default_bridges: u32,
    /// PCI Express root ports for such devices, at most 16.
    pub pcie_root_port: u32,
    /// Ports of a PCI Express switch for such devices, at most 16.
    pub pcie_switch_port: u32,
    /// When and where devices of the host are attached; which ones, each container says.
    pub pass_through: PassThrough,
    /// How the guest sees the host's directories; not [`SharedFs::None`].
    pub shared_fs: SharedFs,
    /// `virtiofsd`, or `nydusd` where `shared_fs` says so; checked at load only when `shared_fs` asks for it.
    pub virtio_fs_daemon: Program,
    /// What the guest may keep in memory of a virtio-fs share.
    pub virtio_fs_cache: VirtioFsCache,
    /// A window of shared files that the guest maps, in MiB; 0 is none.
    pub virtio_fs_cache_size_mib: u32,
    /// Descriptors in a queue of the virtio-fs device, a power of two.
    pub virtio_fs_queue_size: u16,
    /// Further arguments for `virtio_fs_daemon`.
    pub virtio_fs_extra_args: ExtraArgs,
    /// Largest 9p message in bytes.
    pub msize_9p: u32,
    /// How containers' block devices reach the guest.
    pub block: Block,
    /// Where block devices that other programs serve are, when they may be attached.
    pub vhost_user_store: Option<VhostUserStore>,
    /// Where the guest's random numbers come from.
    pub entropy_source: PathBuf,
    /// The value of QEMU's `-sandbox`; empty means QEMU's default.
    pub seccompsandbox: String,
    /// Where the memory of guests whose kernel panicked is kept.
    pub guest_memory_dump: Option<GuestMemoryDump>,
    /// QEMU moves the packets of network interfaces itself, even where the host's kernel could.
    pub disable_vhost_net: bool,
    /// How fast each network interface of a pod may be.
    pub rates: Rates,
    /// QEMU runs as a user that nobody else is; `shared_fs` is not virtio-9p then.
    pub rootless: bool,
    /// The pod's SELinux label is not QEMU's.
    pub disable_selinux: bool,
    /// Processes in the guest have no SELinux labels.
    pub disable_guest_selinux: bool,
    /// A further monitor of QEMU's.
    pub extra_monitor: ExtraMonitor,
    /// The guest's console is a serial port rather than virtio.
    pub use_legacy_serial: bool,
    /// Kernel, agent and QEMU say more, and the guest's console is logged.
    pub enable_debug: bool,
}

/// Block devices that other programs serve by vhost-user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VhostUserStore {
    /// The directory of their sockets and device nodes.
    pub path: PathBuf,
    /// Seconds until a lost connection is made again; `None` means never.
    pub reconnect: Option<NonZeroU32>,
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

/// Bits per second of a network interface at most; 0 means no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// Towards the guest.
    pub rx: u64,
    /// From the guest.
    pub tx: u64,
}

/// What becomes of the memory of a guest whose kernel panicked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestMemoryDump {
    /// The directory with one for each sandbox, an absolute path.
    pub path: PathBuf,
    /// By virtual addresses.
    pub paging: bool,
}
