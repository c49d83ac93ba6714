//! Devices: `-device`.

use serde::Serialize;

/// A device the guest sees.
#[derive(Debug, Serialize)]
#[serde(tag = "driver", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub(crate) enum Device {
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
        id: &'static str,
        drive: &'static str,
        config_wce: bool,
        share_rw: bool,
        serial: &'static str,
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
