//! Keys that take one of a few words.

use serde::Deserialize;

/// An enum whose variants are the words of a key: the words are the one source for reading, for error texts and
/// for documentation.
macro_rules! choice {
    ($(#[$about:meta])* $name:ident { $($(#[$variant_about:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
        pub enum $name { $($(#[$variant_about])* #[serde(rename = $word)] $variant,)+ }

        impl $name {
            /// The words the configuration file may use.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// The word the configuration file uses for this choice.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }
    };
}

choice! {
    /// `machine_type`: which board QEMU emulates.
    MachineType {
        /// The PCI Express board, the default.
        Q35 = "q35",
        /// The board without legacy devices of ARM and RISC-V.
        Virt = "virt",
        /// The minimal board: no PCI, no ACPI.
        Microvm = "microvm",
    }
}

choice! {
    /// `accelerator`: what executes the guest's code.
    AcceleratorChoice {
        /// KVM where it can really run a guest, otherwise TCG.
        Auto = "auto",
        /// Hardware virtualisation, or no guest at all.
        Kvm = "kvm",
        /// QEMU's own translator, which needs no hardware support.
        Tcg = "tcg",
    }
}

choice! {
    /// `vsock`: what carries the connections between host and guest.
    VsockChoice {
        /// The kernel's vhost where `/dev/vhost-vsock` exists, otherwise vhost-user.
        Auto = "auto",
        /// The kernel's `/dev/vhost-vsock`.
        Vhost = "vhost",
        /// A device in the shim, which needs nothing of the host.
        VhostUser = "vhost-user",
    }
}

choice! {
    /// `shared_fs`: how the guest sees the host's directories.
    SharedFs {
        /// virtio-fs under KVM, virtio-9p under TCG: a vhost-user back end writes guest memory behind QEMU's
        /// translator, which then runs stale code.
        Auto = "auto",
        /// virtio-fs, served by `virtio_fs_daemon`.
        VirtioFs = "virtio-fs",
        /// virtio-fs, served by `virtio_fs_daemon`, which is `nydusd` of Dragonfly Nydus.
        VirtioFsNydus = "virtio-fs-nydus",
        /// virtio-9p, served by QEMU itself.
        Virtio9p = "virtio-9p",
        /// Nothing is shared.
        None = "none",
    }
}

choice! {
    /// `virtio_fs_cache`: what the guest may keep in memory of a virtio-fs share.
    VirtioFsCache {
        /// Nothing is kept.
        Never = "never",
        /// Names and attributes are kept for good, contents are not.
        Metadata = "metadata",
        /// Names and attributes are kept for a second, contents while a file is open.
        Auto = "auto",
        /// Everything is kept for good.
        Always = "always",
    }
}

choice! {
    /// `block_device_aio`: how QEMU reads and writes block devices.
    BlockAio {
        /// io_uring, the default.
        IoUring = "io_uring",
        /// Threads of QEMU's.
        Threads = "threads",
        /// Linux AIO, past the page cache.
        Native = "native",
    }
}

choice! {
    /// `extra_monitor_socket`: a second monitor of QEMU's, for looking into a running sandbox.
    ExtraMonitor {
        /// None, the default.
        None = "",
        /// The one for humans.
        Hmp = "hmp",
        /// QMP.
        Qmp = "qmp",
        /// QMP with line breaks.
        QmpPretty = "qmp-pretty",
    }
}

choice! {
    /// `internetworking_model`: how the network interfaces of the pod reach the guest.
    InternetworkingModel {
        /// Everything that comes in at one is redirected to a tap, and the other way round.
        Tcfilter = "tcfilter",
        /// The guest is behind a macvtap on each.
        Macvtap = "macvtap",
        /// They do not.
        None = "none",
        /// [`InternetworkingModel::Tcfilter`].
        Default = "default",
    }
}

choice! {
    /// `emptydir_mode`: what emptyDir volumes are in the guest that are not of memory.
    EmptyDirMode {
        /// Directories of the shared file system.
        SharedFs = "shared-fs",
        /// File systems on disks, which the guest encrypts.
        BlockEncrypted = "block-encrypted",
        /// File systems on disks.
        BlockPlain = "block-plain",
    }
}

choice! {
    /// `vfio_mode`: what a container has of the devices of the host that it is given.
    VfioMode {
        /// What the guest kernel's driver makes of them.
        GuestKernel = "guest-kernel",
        /// The devices themselves, by VFIO in the guest.
        Vfio = "vfio",
    }
}

choice! {
    /// `rootfs_type`: the file system of the guest image.
    FsType {
        /// ext4, the default.
        Ext4 = "ext4",
        /// XFS.
        Xfs = "xfs",
        /// EROFS, read-only and compressed.
        Erofs = "erofs",
    }
}
