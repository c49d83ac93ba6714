//! Devices that come and go while the guest runs, and where the guest finds them.

use std::fmt;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::QmpError;
use crate::spec::{SpecError, VhostUser, VhostUserKind};
use crate::vfio::HostDevice;

/// A device for a running machine.
#[derive(Debug)]
pub enum Pluggable {
    /// A disk.
    Disk(Disk),
    /// A network interface.
    Nic(Nic),
    /// A file that is memory of the guest. It cannot be unplugged.
    Pmem(Pmem),
    /// A disk that another program serves.
    VhostUserDisk(VhostUserDisk),
    /// A device of the host. All of its group have to come, one after the other.
    HostDevice(HostDevice),
}

/// A block device or a raw image of the host, as a disk of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The device or the image.
    pub path: PathBuf,
    /// The guest cannot write to it.
    pub read_only: bool,
    /// How the guest reaches it.
    pub bus: DiskBus,
}

/// How a guest reaches a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskBus {
    /// A PCI device of its own.
    VirtioBlk,
    /// A unit of the machine's SCSI controller.
    Scsi,
}

/// A tap of the host, as a network interface of the guest.
#[derive(Debug)]
pub struct Nic {
    /// Open queues of the tap, at least one.
    pub queues: Vec<OwnedFd>,
    /// `/dev/vhost-net`, opened once for each queue; empty where QEMU moves the packets itself.
    pub vhost: Vec<OwnedFd>,
    /// The address of its Ethernet.
    pub mac: [u8; 6],
}

impl Nic {
    /// The same with descriptors of its own.
    ///
    /// # Errors
    /// There are too many descriptors.
    pub fn try_clone(&self) -> io::Result<Nic> {
        let copies = |fds: &[OwnedFd]| fds.iter().map(OwnedFd::try_clone).collect::<io::Result<Vec<_>>>();
        Ok(Nic { queues: copies(&self.queues)?, vhost: copies(&self.vhost)?, mac: self.mac })
    }

    /// How many queues it has, if they go together.
    pub(crate) fn count(&self) -> Option<u32> {
        let (queues, vhost) = (self.queues.len(), self.vhost.len());
        let fits = queues > 0 && (vhost == 0 || vhost == queues);
        u32::try_from(queues).ok().filter(|_| fits)
    }
}

/// A file or a block device of the host, as memory of the guest that outlives it: an NVDIMM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pmem {
    /// The file or the device.
    pub path: PathBuf,
    /// The guest cannot write to it.
    pub read_only: bool,
}

/// A disk behind a socket that its program listens on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VhostUserDisk {
    socket: PathBuf,
    reconnect: Option<NonZeroU32>,
}

impl VhostUserDisk {
    /// The disk at `socket`. A lost connection is made again after `reconnect` seconds, if at all.
    ///
    /// # Errors
    /// [`SpecError::Socket`] where the path is no address of a socket.
    pub fn new(
        socket: impl Into<PathBuf>,
        reconnect: Option<NonZeroU32>,
    ) -> Result<VhostUserDisk, SpecError> {
        let socket = VhostUser::new(socket, VhostUserKind::Blk, reconnect)?.socket().to_owned();
        Ok(VhostUserDisk { socket, reconnect })
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Seconds until a lost connection is made again.
    #[must_use]
    pub fn reconnect(&self) -> Option<NonZeroU32> {
        self.reconnect
    }
}

/// Memory that a machine should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemorySize {
    /// MiB.
    pub mib: u64,
    /// MiB that the guest takes or gives at once: the size of its memory blocks.
    pub block_mib: u64,
}

/// The name of a plugged device, never given twice in a machine's life.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub(crate) String);

impl DeviceId {
    /// A device of a machine that is somebody else's, such as one of a test.
    #[must_use]
    pub fn of(name: &str) -> DeviceId {
        DeviceId(name.to_owned())
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A device that the machine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plugged {
    /// What it is unplugged by.
    pub id: DeviceId,
    /// Where the guest finds it.
    pub at: GuestAddress,
}

/// Where a guest finds a device. As text it is what the agents in the field take for the source of a storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestAddress {
    /// On a PCI bus.
    Pci(PciAddress),
    /// On the SCSI controller.
    Scsi(ScsiAddress),
    /// The memory of this number, `/dev/pmem0`: the guest counts its own from 0, in the order they come.
    Pmem(u32),
    /// Behind bridges or ports.
    Path(PciPath),
    /// On no bus: adjunct processors, which a guest finds by their own numbers.
    Ap,
}

/// A slot of a bridge, which is in a slot of the root bus: `02/01`, both in hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PciAddress {
    /// The bridge's slot.
    pub bridge: u8,
    /// The device's.
    pub slot: u8,
}

/// The way from the root bus to a device: the slot of each bridge or port, then its own: `07/00`, in hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PciPath {
    slots: [u8; PciPath::DEEPEST],
    depth: usize,
}

impl PciPath {
    /// A port of a switch has three before it: the switch's port towards the root, and a root port.
    const DEEPEST: usize = 4;

    pub(crate) fn new<const DEPTH: usize>(slots: [u8; DEPTH]) -> PciPath {
        const { assert!(DEPTH <= PciPath::DEEPEST) };
        let mut path = PciPath { slots: [0; PciPath::DEEPEST], depth: DEPTH };
        path.slots[..DEPTH].copy_from_slice(&slots);
        path
    }

    /// The same behind a bridge or port in `slot`, unless it is deep enough.
    pub(crate) fn behind(mut self, slot: u8) -> Option<PciPath> {
        self.depth = Some(self.depth + 1).filter(|depth| *depth <= PciPath::DEEPEST)?;
        self.slots.rotate_right(1);
        self.slots[0] = slot;
        Some(self)
    }
}

impl fmt::Display for PciPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slots = self.slots[..self.depth].iter();
        f.write_str(&slots.map(|slot| format!("{slot:02x}")).collect::<Vec<_>>().join("/"))
    }
}

/// A unit of the SCSI controller: `0:1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScsiAddress {
    /// The target.
    pub target: u8,
    /// Its unit.
    pub lun: u8,
}

impl fmt::Display for GuestAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GuestAddress::Pci(PciAddress { bridge, slot }) => write!(f, "{bridge:02x}/{slot:02x}"),
            GuestAddress::Scsi(ScsiAddress { target, lun }) => write!(f, "{target}:{lun}"),
            GuestAddress::Pmem(number) => write!(f, "/dev/pmem{number}"),
            GuestAddress::Path(path) => path.fmt(f),
            GuestAddress::Ap => f.write_str("ap"),
        }
    }
}

/// Why a machine is not changed.
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    /// The file could not be opened as it is to be used.
    #[error("open {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Neither a block device nor a regular file.
    #[error("{}: neither a block device nor a regular file", path.display())]
    NotADisk {
        /// The file.
        path: PathBuf,
    },
    /// Nobody can say how large a disk is.
    #[error("size of {disk}: {source}")]
    Size {
        /// The disk.
        disk: DeviceId,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A network interface whose tap has no queue, or not as many of vhost.
    #[error(
        "a network interface of {queues} queues and {vhost} of vhost: at least one, and none or as many of vhost"
    )]
    Queues {
        /// Of the tap.
        queues: usize,
        /// Of vhost.
        vhost: usize,
    },
    /// All places are taken.
    #[error("the machine has no free {what}: {remedy}")]
    Full {
        /// What there is none of.
        what: &'static str,
        /// What would give it more.
        remedy: &'static str,
    },
    /// The machine was not made for such devices.
    #[error("the machine takes no {what}: {remedy}")]
    NotTaken {
        /// Which devices.
        what: &'static str,
        /// What would make it take them.
        remedy: &'static str,
    },
    /// What is memory of the guest cannot be taken from it.
    #[error("{0} is memory of the guest, which it has as long as it runs")]
    Stays(DeviceId),
    /// A device where no agent would look for it.
    #[error("{device} is function {function} of its slot, and a guest looks for function 0 only")]
    Function {
        /// The device.
        device: String,
        /// Which function it is.
        function: u8,
    },
    /// There is no such device.
    #[error("no device {0} is plugged in")]
    Unknown(DeviceId),
    /// The guest has not let go of a device, and has it still.
    #[error("the guest has not let go of {what} within {after:?}")]
    Held {
        /// What was to be unplugged.
        what: String,
        /// How long it had.
        after: Duration,
    },
    /// The guest says it cannot do without the device.
    #[error("the guest refuses to let go of {0}")]
    Refused(String),
    /// QEMU did not do it.
    #[error(transparent)]
    Qmp(#[from] QmpError),
}
