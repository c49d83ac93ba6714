//! Devices: `-device`.

use std::borrow::Cow;

use serde::Serialize;

use crate::plug::PciAddress;
use crate::spec::FIRST_BRIDGE;

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
        chassis: u32,
        slot: u32,
        mem_reserve: u64,
        pref64_reserve: u64,
    },
    /// The controller of virtio consoles.
    VirtioSerialPci { id: &'static str },
    /// `hvc0`.
    Virtconsole { id: &'static str, chardev: &'static str },
    /// `ttyS0`.
    IsaSerial { id: &'static str, chardev: &'static str },
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
        #[serde(flatten)]
        place: PciPlace,
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
    /// A virtio-fs share.
    VhostUserFsPci { id: &'static str, chardev: &'static str, tag: String, queue_size: u16 },
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
    VhostVsockPci { id: &'static str, guest_cid: u32, vhostfd: String },
    /// vsock, served by a daemon.
    VhostUserVsockPci { id: &'static str, chardev: &'static str },
}

/// A slot of a bridge.
#[derive(Debug, Serialize)]
pub(crate) struct PciPlace {
    bus: String,
    /// In hexadecimal.
    addr: String,
}

impl From<PciAddress> for PciPlace {
    fn from(address: PciAddress) -> PciPlace {
        let bridge = address.bridge - FIRST_BRIDGE;
        PciPlace { bus: format!("pci-bridge-{bridge}"), addr: format!("{:x}", address.slot) }
    }
}
