//! What a virtual machine is made of: plain data, nothing started, and no descriptors but those of taps, which their
//! owner has open anyway.
//!
//! Values that could be wrong are types of their own, checked when they are made; the paths are looked at when the
//! machine boots, because only then is it known what lies there.

mod block;
mod error;
mod extra_args;
mod machine;
mod numa;
mod origin;
mod pci;
mod protection;
mod sgx;
mod value;
mod verity;
mod vfio;
mod virtio;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

pub use crate::accelerator::Accelerator;
use crate::plug::Nic;
pub use block::{Access, Block, BlockDriver, BlockOptions, Cache, IoThreads, Queues, Sectors};
pub use error::SpecError;
pub use extra_args::ExtraArgs;
pub use machine::{Capabilities, Machine};
pub use numa::{Numa, NumaNode};
pub use origin::{Origin, Restore};
pub(crate) use pci::{BRIDGE_SLOTS, FIRST_BRIDGE, FIRST_ROOT_PORT};
pub use pci::{HOST_DEVICES, PciPlaces, Window};
pub use protection::{CBit, Protection, SnpIdentity};
pub use sgx::SgxEpc;
pub use value::{
    CpuFeatures, ExtensionName, KernelParam, MachineOptions, Memory, SelinuxLabel, Tag, Vcpus, VmName, VmUuid,
};
pub use verity::{Extension, Verity};
pub(crate) use vfio::{NoSeat, Seat, cold_id};
pub use vfio::{PassThrough, VfioPort};
pub use virtio::{VhostUser, VhostUserKind, VirtioPci};

/// A virtual machine to boot.
#[derive(Debug, Clone)]
pub struct VmSpec {
    /// What QEMU is called in its own messages and on its command line.
    pub name: VmName,
    /// What the guest's firmware tables say the machine is.
    pub uuid: VmUuid,
    /// An existing directory for this machine alone, an absolute path: the working directory of every process.
    pub run_dir: PathBuf,
    /// `qemu-system-x86_64`.
    pub qemu: PathBuf,
    /// The board.
    pub machine: Machine,
    /// What executes the guest's code.
    pub accelerator: Accelerator,
    /// Features on top of the accelerator's best CPU model.
    pub cpu_features: CpuFeatures,
    /// Virtual CPUs, now and at most.
    pub vcpus: Vcpus,
    /// Memory, now and at most.
    pub memory: Memory,
    /// Nodes that processors and memory are divided among; `None` is one for all, wherever the host has it.
    pub numa: Option<Numa>,
    /// Where its first state comes from.
    pub origin: Origin,
    /// Where the host has that memory.
    pub backing: Backing,
    /// All of it is taken from the host before the guest runs.
    pub prealloc: bool,
    /// Memory grows and shrinks by virtio-mem, for which the guest needs a driver, rather than by modules.
    pub virtio_mem: bool,
    /// An IOMMU, which the guest sees its PCI devices through.
    pub iommu: bool,
    /// Places for PCI devices that come later.
    pub pci: PciPlaces,
    /// How virtio devices present themselves.
    pub virtio: VirtioPci,
    /// The guest gives back what it no longer uses of its memory, and more when it would be killed for lack of it.
    pub reclaim_freed_memory: bool,
    /// Network interfaces that are there from the start; a template and its copies have none yet.
    pub nics: Vec<Arc<Nic>>,
    /// The network namespace that QEMU is in, where that is not ours: who looks for a container's network by its process
    /// finds this one. It needs none itself.
    pub network: Option<Arc<OwnedFd>>,
    /// Devices that other programs serve.
    pub vhost_user: Vec<VhostUser>,
    /// Devices of the host that the guest has for itself.
    pub pass_through: PassThrough,
    /// What block devices that come later are driven by.
    pub block: Block,
    /// The guest's kernel: a bzImage, or an ELF file with a PVH entry.
    pub kernel: PathBuf,
    /// What the kernel starts from.
    pub boot: Boot,
    /// Images that the guest finds and mounts by name.
    pub extensions: Vec<Extension>,
    /// How the guest's memory is kept from the host, if it is.
    pub protection: Option<Protection>,
    /// Memory for enclaves.
    pub sgx_epc: Option<SgxEpc>,
    /// What becomes of the memory when the guest's kernel panics; `None` is nothing.
    pub panic_dump: Option<PanicDump>,
    /// What the machine starts from.
    pub firmware: Firmware,
    /// Words for the end of the kernel's command line, where the last one of a name wins.
    pub kernel_params: Vec<KernelParam>,
    /// How the guest's console is carried.
    pub console: Console,
    /// Where the guest's random numbers come from, such as `/dev/urandom`.
    pub entropy: PathBuf,
    /// The directory that host and guest share.
    pub share: Option<Share>,
    /// What carries the connections between host and guest.
    pub vsock: VsockSpec,
    /// The value of QEMU's `-sandbox`, its system-call filter; `None` leaves the filter off.
    pub seccomp: Option<String>,
    /// QEMU runs as a user that nobody else is, without privileges; the daemon of a virtio-fs share does not.
    pub rootless: bool,
    /// What SELinux knows the machine's processes by; `None` is what it makes of them itself.
    pub selinux: Option<SelinuxLabel>,
    /// A second monitor, on the socket [`EXTRA_MONITOR`] in the run directory.
    pub extra_monitor: Option<ExtraMonitor>,
    /// The guest's kernel says more while it boots.
    pub debug: bool,
}

impl VmSpec {
    /// A machine with nothing that it could do without: one processor, 256 MiB that stay so, emulated.
    ///
    /// # Errors
    /// None that a caller could meet.
    pub fn plain(
        name: VmName,
        uuid: VmUuid,
        run_dir: PathBuf,
        qemu: PathBuf,
        kernel: PathBuf,
        boot: Boot,
    ) -> Result<VmSpec, SpecError> {
        Ok(VmSpec {
            name,
            uuid,
            run_dir,
            qemu,
            machine: Machine::Q35(MachineOptions::default()),
            accelerator: Accelerator::Tcg,
            cpu_features: CpuFeatures::default(),
            vcpus: Vcpus::new(1, 1)?,
            memory: Memory::new(256, 0, 256)?,
            numa: None,
            origin: Origin::Boot,
            backing: Backing::Anonymous,
            prealloc: false,
            virtio_mem: false,
            iommu: false,
            pci: PciPlaces::new(0, 0, Window::default())?,
            virtio: VirtioPci::default(),
            reclaim_freed_memory: false,
            nics: Vec::new(),
            network: None,
            vhost_user: Vec::new(),
            pass_through: PassThrough::Never,
            block: Block::default(),
            kernel,
            boot,
            extensions: Vec::new(),
            protection: None,
            sgx_epc: None,
            panic_dump: None,
            firmware: Firmware::default(),
            kernel_params: Vec::new(),
            console: Console::Virtio,
            entropy: "/dev/urandom".into(),
            share: None,
            vsock: VsockSpec::VhostUser,
            seccomp: None,
            rootless: false,
            selinux: None,
            extra_monitor: None,
            debug: false,
        })
    }
}

/// Where the memory of a guest is kept whose kernel has panicked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PanicDump {
    /// A directory for this machine alone; it is made, with those above it, when it is needed.
    pub directory: PathBuf,
    /// By the guest's virtual addresses, which takes QEMU longer and debuggers less.
    pub paging: bool,
}

/// The device of [`VirtioMem`].
pub(crate) const VIRTIO_MEM: &str = "virtiomem0";

/// A device with all the memory that a machine may get on top of what it boots with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VirtioMem {
    /// How much that is, in MiB.
    pub(crate) mib: u64,
}

impl VmSpec {
    /// The device that the machine's memory grows by, where it is to and can.
    pub(crate) fn virtio_mem(&self) -> Option<VirtioMem> {
        let (_, most) = self.memory.growth().filter(|_| self.virtio_mem)?;
        let mib = (most - self.memory.mib()) / VIRTIO_MEM_STEP * VIRTIO_MEM_STEP;
        (mib > 0).then_some(VirtioMem { mib })
    }
}

/// What a size of [`VirtioMem`] is a multiple of, in MiB: a huge page of the host's, and with it a guest's.
const VIRTIO_MEM_STEP: u64 = 4;

/// The socket of the second monitor.
pub const EXTRA_MONITOR: &str = "extra-monitor.sock";

/// What a second monitor speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtraMonitor {
    /// What humans type.
    Hmp,
    /// QMP.
    Qmp,
    /// QMP with line breaks.
    QmpPretty,
}

/// Where the host has a guest's memory. Other processes can map all of them, as vhost-user devices must.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// Nowhere but in memory.
    Anonymous,
    /// In huge pages of the host's default size.
    HugePages,
    /// In a file without a name in this directory.
    Directory(PathBuf),
}

/// What a machine starts from. No guest can change it, or it would change what the others start from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Firmware {
    /// What QEMU brings along.
    #[default]
    BuiltIn,
    /// One file in read-only memory.
    Bios(PathBuf),
    /// Files in flash memory, each of whole pages.
    Flash {
        /// The program.
        code: PathBuf,
        /// Its variables; what a guest makes of them lasts as long as the guest.
        variables: Option<PathBuf>,
    },
}

/// What the guest's kernel starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Boot {
    /// An initial RAM file system.
    Initrd(PathBuf),
    /// A disk image whose first partition is the root file system; the guest cannot write to it.
    Image {
        /// The image, raw.
        path: PathBuf,
        /// What its first partition holds.
        fs: ImageFs,
        /// How the guest reads it.
        driver: ImageDriver,
        /// What the root file system is checked by, if it is.
        verity: Option<Verity>,
    },
}

/// How the guest reads its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageDriver {
    /// As a disk, through a cache of its own.
    VirtioBlk,
    /// As memory that all guests with the image share (DAX); the board has to know of NVDIMMs.
    Nvdimm,
    /// Likewise as a PCI device, which the guest's kernel needs a driver for that is seldom built in.
    VirtioPmem,
}

impl ImageDriver {
    /// Whether the image takes address space beside the guest's memory.
    #[must_use]
    pub fn is_memory(self) -> bool {
        self != ImageDriver::VirtioBlk
    }
}

/// The file system of a guest image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFs {
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
    /// EROFS.
    Erofs,
}

/// How the guest's console is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Console {
    /// `hvc0`: cheap, and there only once the guest has its driver.
    Virtio,
    /// `ttyS0`: slow, and there from the kernel's first line.
    Serial,
}

/// A directory of the host that the guest can mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// The directory, an absolute path.
    pub source: PathBuf,
    /// What the guest mounts it by.
    pub tag: Tag,
    /// How it is carried.
    pub kind: ShareKind,
}

/// How a shared directory is carried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShareKind {
    /// virtio-fs, served by a daemon beside QEMU. Under TCG only with [`FsCache::Always`]: the daemon writes guest
    /// memory behind QEMU's translator, which then runs code that is no longer there.
    VirtioFs(VirtioFs),
    /// virtio-9p, served by QEMU. Message size and caching are the guest's mount options.
    Virtio9p,
}

/// A virtio-fs share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtioFs {
    /// The daemon's executable file.
    pub daemon: PathBuf,
    /// Which daemon that is.
    pub server: FsServer,
    /// Descriptors in a queue of the device, a power of two.
    pub queue_size: u16,
    /// A window of files that the guest maps directly, in MiB; 0 is none, and QEMU without that patch takes no other.
    pub dax_mib: u32,
    /// Further arguments for the daemon.
    pub extra_args: ExtraArgs,
}

/// A daemon that serves a virtio-fs share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FsServer {
    /// `virtiofsd`, and what the guest may keep in memory.
    Virtiofsd(FsCache),
    /// `nydusd` of Dragonfly Nydus, which has the directory at [`crate::NYDUSD_MOUNT_POINT`] below the share's root.
    /// What the guest may keep is the daemon's own choice.
    Nydusd,
}

/// What a guest may keep in memory of a virtio-fs share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FsCache {
    /// Nothing.
    Never,
    /// Names and attributes for good, contents not.
    Metadata,
    /// Names and attributes for a second, contents while a file is open.
    Auto,
    /// Everything for good.
    Always,
}

/// What carries the connections between host and guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VsockSpec {
    /// The kernel's `/dev/vhost-vsock`.
    Vhost,
    /// A device of this process, behind QEMU's vhost-user. Needs nothing of the host.
    VhostUser,
}
