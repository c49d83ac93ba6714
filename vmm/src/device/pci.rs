//! Devices: `-device`.

use serde::Serialize;

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
        id: &'static str,
        drive: &'static str,
        config_wce: bool,
        share_rw: bool,
        serial: &'static str,
    },
    /// Memory that outlives the guest. `unarmed`: the guest cannot write to it.
    Nvdimm { id: &'static str, memdev: &'static str, unarmed: bool },
    /// The same as a PCI device.
    VirtioPmemPci { id: &'static str, memdev: &'static str },
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
