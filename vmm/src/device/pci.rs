//! Devices: `-device`.

use std::borrow::Cow;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use crate::plug::PciAddress;
use crate::spec::{FIRST_BRIDGE, Seat, VirtioPci};
use crate::vfio::{HostDevice, HostKind};

/// A device the guest sees.
#[derive(Debug, Serialize)]
#[serde(tag = "driver", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub(crate) enum Device {
    /// An IOMMU that remaps interrupts too and tells a host driver of every change (caching mode), as devices that
    /// are passed through need it.
    IntelIommu { id: &'static str, intremap: &'static str, device_iotlb: bool, caching_mode: bool },
    /// A bridge to a conventional bus. The reserved space is for devices that come later.
    PciBridge {
        id: String,
        bus: &'static str,
        /// The slot, in hexadecimal.
        addr: String,
        #[serde(rename = "chassis_nr")]
        chassis_nr: u32,
        /// Hot plug by a controller of the bridge's own, which Linux does not need where ACPI does it.
        shpc: bool,
        /// Bytes.
        io_reserve: u64,
        mem_reserve: u64,
        pref64_reserve: u64,
    },
    /// A port for one PCI Express device.
    PcieRootPort {
        id: String,
        bus: &'static str,
        /// The slot, in hexadecimal.
        addr: String,
        chassis: u32,
        slot: u32,
        mem_reserve: u64,
        pref64_reserve: u64,
    },
    /// A switch's port towards the root.
    #[serde(rename = "x3130-upstream")]
    UpstreamPort { id: &'static str, bus: String },
    /// A switch's port for one device.
    #[serde(rename = "xio3130-downstream")]
    DownstreamPort { id: String, bus: &'static str, chassis: u32, slot: u32 },
    /// What tells of a panic, on the bus of old devices.
    Pvpanic { id: &'static str },
    /// The same on PCI.
    PvpanicPci { id: &'static str },
    /// The controller of virtio consoles.
    VirtioSerialPci { id: &'static str },
    /// `hvc0`.
    Virtconsole { id: &'static str, chardev: &'static str },
    /// `ttyS0`.
    IsaSerial { id: &'static str, chardev: &'static str },
    /// The controller of SCSI disks.
    VirtioScsiPci {
        id: &'static str,
        #[serde(rename = "num_queues")]
        num_queues: u16,
        #[serde(rename = "virtqueue_size")]
        virtqueue_size: u16,
        #[serde(skip_serializing_if = "Option::is_none")]
        iothread: Option<&'static str>,
    },
    /// Random numbers.
    VirtioRngPci { id: &'static str, rng: &'static str },
    /// A disk.
    VirtioBlkPci {
        id: Cow<'static, str>,
        drive: Cow<'static, str>,
        config_wce: bool,
        share_rw: bool,
        serial: Cow<'static, str>,
        #[serde(flatten)]
        sectors: Option<SectorSizes>,
        #[serde(flatten)]
        queues: Option<DiskQueues>,
        #[serde(flatten)]
        place: Option<PciPlace>,
    },
    /// A disk of the SCSI controller.
    ScsiHd {
        id: String,
        bus: &'static str,
        #[serde(rename = "scsi-id")]
        target: u8,
        lun: u8,
        drive: String,
        share_rw: bool,
        serial: String,
        #[serde(flatten)]
        sectors: SectorSizes,
    },
    /// A network interface.
    VirtioNetPci {
        id: String,
        netdev: String,
        mac: String,
        /// Several queues.
        mq: bool,
        /// Interrupts: two for each pair of queues, and two.
        vectors: u32,
        /// What a machine would start from over it: nothing.
        romfile: &'static str,
        /// A program moves the packets, which cannot be told where the guest's memory is.
        #[serde(skip)]
        by_program: bool,
        #[serde(flatten)]
        place: Option<PciPlace>,
    },
    /// A memory module.
    PcDimm { id: String, memdev: String },
    /// Memory of which the guest has as much as it is asked to take.
    VirtioMemPci {
        id: &'static str,
        memdev: &'static str,
        /// Bytes.
        requested_size: u64,
    },
    /// Memory that outlives the guest. `unarmed`: the guest cannot write to it.
    Nvdimm { id: Cow<'static, str>, memdev: Cow<'static, str>, unarmed: bool },
    /// The same as a PCI device.
    VirtioPmemPci { id: &'static str, memdev: &'static str },
    /// What gives the guest's memory back to the host.
    VirtioBalloonPci { id: &'static str, free_page_reporting: bool, deflate_on_oom: bool },
    /// A disk that another program serves.
    VhostUserBlkPci {
        id: String,
        chardev: String,
        #[serde(flatten)]
        place: Option<PciPlace>,
    },
    /// A controller of such disks.
    VhostUserScsiPci { id: String, chardev: String },
    /// A virtio-fs share.
    VhostUserFsPci {
        id: &'static str,
        chardev: &'static str,
        tag: String,
        queue_size: u16,
        /// Bytes of a window that files are mapped into.
        #[serde(skip_serializing_if = "Option::is_none")]
        cache_size: Option<u64>,
        #[serde(flatten)]
        place: Option<PciPlace>,
    },
    /// A 9p share.
    #[serde(rename = "virtio-9p-pci")]
    Virtio9pPci {
        id: &'static str,
        fsdev: &'static str,
        #[serde(rename = "mount_tag")]
        mount_tag: String,
    },
    /// vsock, served by the host's kernel. QEMU reads the descriptor's number from a string, as it takes names of
    /// descriptors there too.
    VhostVsockPci {
        id: &'static str,
        guest_cid: u32,
        vhostfd: String,
        #[serde(flatten)]
        place: Option<PciPlace>,
    },
    /// vsock, served by a daemon.
    VhostUserVsockPci {
        id: &'static str,
        chardev: &'static str,
        #[serde(flatten)]
        place: Option<PciPlace>,
    },
    /// A device of the host, or a part of one. Nothing starts from it, and reading the memory that would be for that
    /// hangs some: `romfile` is empty.
    VfioPci {
        id: String,
        #[serde(flatten)]
        host: OfHost,
        romfile: &'static str,
        #[serde(flatten)]
        place: Option<PciPlace>,
    },
    /// A matrix of adjunct processors of the host.
    VfioAp { id: String, sysfsdev: String },
}

/// What QEMU knows a device of the host by.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OfHost {
    /// Its PCI address.
    Host(String),
    /// Its directory in sysfs.
    Sysfsdev(String),
}

/// The sectors of a disk, in bytes, where they are not the medium's own.
#[derive(Debug, Serialize)]
pub(crate) struct SectorSizes {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) logical_block_size: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) physical_block_size: Option<u32>,
}

/// The queues of a disk that is a device of its own, and the thread that serves them.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct DiskQueues {
    pub(crate) num_queues: u16,
    pub(crate) queue_size: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) iothread: Option<String>,
}

/// A slot of a bridge.
#[derive(Debug, Serialize)]
pub(crate) struct PciPlace {
    bus: String,
    /// In hexadecimal.
    addr: String,
}

impl PciPlace {
    /// The one place of a port.
    pub(crate) fn behind(port: &str) -> PciPlace {
        PciPlace { bus: port.to_owned(), addr: "0".to_owned() }
    }
}

impl From<PciAddress> for PciPlace {
    fn from(address: PciAddress) -> PciPlace {
        let bridge = address.bridge - FIRST_BRIDGE;
        PciPlace { bus: format!("pci-bridge-{bridge}"), addr: format!("{:x}", address.slot) }
    }
}

impl From<Seat> for PciPlace {
    fn from(seat: Seat) -> PciPlace {
        match seat {
            Seat::Slot(address) => address.into(),
            Seat::RootPort(number) => PciPlace::behind(&format!("rp{number}")),
            Seat::SwitchPort(number) => PciPlace::behind(&format!("swdp{number}")),
        }
    }
}

/// A device with what all virtio devices of the machine have in common.
#[derive(Debug, Serialize)]
pub(crate) struct Presented<'a> {
    #[serde(flatten)]
    device: &'a Device,
    #[serde(flatten)]
    common: Option<Common>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Common {
    Legacy {
        #[serde(rename = "disable-modern")]
        disable_modern: bool,
    },
    /// QEMU takes no device here that could be driven by the old interface too.
    BehindIommu {
        #[serde(rename = "iommu_platform")]
        iommu_platform: bool,
        #[serde(rename = "disable-legacy")]
        disable_legacy: &'static str,
    },
}

impl Device {
    /// The device as it is in a machine whose virtio devices present themselves like this.
    pub(crate) fn presented(&self, virtio: VirtioPci) -> Presented<'_> {
        let common = match virtio {
            VirtioPci::Legacy if self.had_legacy() => Some(Common::Legacy { disable_modern: true }),
            VirtioPci::BehindIommu if self.had_legacy() || self.accesses_as_told() => {
                Some(Common::BehindIommu { iommu_platform: true, disable_legacy: "on" })
            }
            _ => None,
        };
        Presented { device: self, common }
    }

    /// The same device on a board without PCI, where QEMU calls it something else.
    pub(crate) fn without_pci(&self) -> Value {
        // Fixed names and plain values: nothing that JSON could not hold.
        let mut device = serde_json::to_value(self).unwrap_or_default();
        let name = match device.get("driver").and_then(Value::as_str) {
            Some("vhost-user-blk-pci") => "vhost-user-blk".to_owned(),
            Some("vhost-user-scsi-pci") => "vhost-user-scsi".to_owned(),
            Some(name) => name.strip_suffix("-pci").map_or(name.to_owned(), |kind| format!("{kind}-device")),
            None => return device,
        };
        device["driver"] = name.into();
        if let Some(properties) = device.as_object_mut() {
            for of_pci in ["vectors", "romfile"] {
                properties.remove(of_pci);
            }
        }
        device
    }

    /// A network interface on the tap behind the netdev `id`.
    pub(crate) fn nic(id: String, mac: [u8; 6], queues: u32, place: Option<PciPlace>) -> Device {
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        let vectors = queues.saturating_mul(2).saturating_add(2);
        let netdev = id.clone();
        Device::VirtioNetPci {
            id,
            netdev,
            mac,
            mq: queues > 1,
            vectors,
            romfile: "",
            by_program: false,
            place,
        }
    }

    /// A device of the host at its place.
    pub(crate) fn of_host(id: String, device: &HostDevice, seat: Option<Seat>) -> Device {
        let (romfile, place) = ("", seat.map(PciPlace::from));
        let path = |directory: &Path| directory.to_string_lossy().into_owned();
        match device.kind() {
            HostKind::Pci { address, .. } => {
                Device::VfioPci { id, host: OfHost::Host(address.clone()), romfile, place }
            }
            HostKind::Mediated { directory, .. } => {
                Device::VfioPci { id, host: OfHost::Sysfsdev(path(directory)), romfile, place }
            }
            HostKind::Ap { directory, .. } => Device::VfioAp { id, sysfsdev: path(directory) },
        }
    }

    /// Virtio devices with an interface from before virtio 1.0, all of which QEMU itself or the host's kernel serve.
    fn had_legacy(&self) -> bool {
        matches!(
            self,
            Device::VirtioSerialPci { .. }
                | Device::VirtioScsiPci { .. }
                | Device::VirtioRngPci { .. }
                | Device::VirtioBlkPci { .. }
                | Device::VirtioBalloonPci { .. }
                | Device::VirtioNetPci { by_program: false, .. }
                | Device::Virtio9pPci { .. }
        )
    }

    /// Newer ones whose back end can be told where the guest's memory is.
    fn accesses_as_told(&self) -> bool {
        matches!(
            self,
            Device::VirtioPmemPci { .. } | Device::VirtioMemPci { .. } | Device::VhostVsockPci { .. }
        )
    }
}
