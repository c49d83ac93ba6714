//! The commands, typed: QEMU from 9.2 refuses a string where it wants a number or a boolean.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::device::{Blockdev, ChardevBackend, Device, Netdev, Object, Presented};
use crate::vm::VcpuThread;

/// A command of QMP; its fields are the arguments.
pub(crate) trait Command: Serialize {
    const NAME: &'static str;
    type Reply: DeserializeOwned;
}

/// A reply without content: an empty object.
#[derive(Debug, Deserialize)]
pub(crate) struct Done {}

macro_rules! command {
    ($(#[$about:meta])* $type:ident { $($field:ident: $of:ty),* }, $name:literal, $reply:ty) => {
        $(#[$about])*
        #[derive(Debug, Serialize)]
        #[serde(rename_all = "kebab-case")]
        pub(crate) struct $type { $(pub(crate) $field: $of),* }

        impl Command for $type {
            const NAME: &'static str = $name;
            type Reply = $reply;
        }
    };
}

command!(
    /// Leaves negotiation mode.
    QmpCapabilities {}, "qmp_capabilities", Done
);
command!(
    /// Starts the processors.
    Cont {}, "cont", Done
);
command!(
    /// Stops the processors.
    Stop {}, "stop", Done
);
command!(
    /// Ends QEMU.
    Quit {}, "quit", Done
);
command!(
    /// What the machine does.
    QueryStatus {}, "query-status", Status
);

command!(
    /// Asks for a device to go. The answer only says that the guest was told.
    DeviceDel { id: String }, "device_del", Done
);
command!(
    /// Takes away what is behind a disk.
    BlockdevDel { node_name: String }, "blockdev-del", Done
);
command!(
    /// Has the guest see that the size of a disk is another.
    BlockResize { node_name: String, size: u64 }, "block_resize", Done
);
command!(
    /// Takes away an object.
    ObjectDel { id: String }, "object-del", Done
);
command!(
    /// Takes away what is behind a network interface.
    NetdevDel { id: String }, "netdev_del", Done
);
command!(
    /// Hands over a descriptor under a name.
    Getfd { fdname: String }, "getfd", Done
);
command!(
    /// Closes a descriptor that was handed over and not used.
    Closefd { fdname: String }, "closefd", Done
);
command!(
    /// Hands over a descriptor, to be opened as `/dev/fdset/<n>`.
    AddFd { fdset_id: u32 }, "add-fd", Value
);
command!(
    /// Closes the descriptors of a set, those in use when they are not any more.
    RemoveFd { fdset_id: u32 }, "remove-fd", Done
);
command!(
    /// A property of an object of the machine.
    QomGet { path: String, property: &'static str }, "qom-get", Value
);
command!(
    /// Changes a property of an object of the machine.
    QomSet { path: String, property: &'static str, value: u64 }, "qom-set", Done
);
command!(
    /// How much memory there is.
    QueryMemorySize {}, "query-memory-size-summary", MemorySizes
);
command!(
    /// The processors there are and could be.
    QueryHotpluggableCpus {}, "query-hotpluggable-cpus", Vec<CpuSlot>
);

command!(
    /// The processors there are, without a halt of any.
    QueryCpusFast {}, "query-cpus-fast", Vec<VcpuThread>
);

command!(
    /// What a human would type.
    HumanMonitorCommand { command_line: String }, "human-monitor-command", String
);
command!(
    /// Says what becomes of a machine that is reset: it is, or QEMU ends.
    SetAction { reboot: &'static str }, "set-action", Done
);
command!(
    /// Resets the machine.
    SystemReset {}, "system_reset", Done
);

command!(
    /// Has the guest keep no more than so many bytes.
    Balloon { value: u64 }, "balloon", Done
);
command!(
    /// How much it has.
    QueryBalloon {}, "query-balloon", BalloonSize
);

/// What a guest has of its memory, in bytes.
#[derive(Debug, Deserialize)]
pub(crate) struct BalloonSize {
    pub(crate) actual: u64,
}

command!(
    /// Says how a machine's state is saved or loaded.
    MigrateSetCapabilities { capabilities: Vec<Capability> }, "migrate-set-capabilities", Done
);
command!(
    /// Saves it.
    Migrate { uri: String }, "migrate", Done
);
command!(
    /// Loads it.
    MigrateIncoming { uri: String }, "migrate-incoming", Done
);
command!(
    /// How far that has come.
    QueryMigrate {}, "query-migrate", Migration
);

/// One way of saving and loading, in use or not.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Capability {
    capability: &'static str,
    state: bool,
}

impl Capability {
    pub(crate) fn on(capability: &'static str) -> Capability {
        Capability { capability, state: true }
    }
}

/// How far saving or loading has come.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Migration {
    /// QEMU's word for it: `active`, `completed`, `failed`...
    #[serde(default)]
    pub(crate) status: String,
    /// Why it failed.
    #[serde(default)]
    pub(crate) error_desc: Option<String>,
}

/// A command whose arguments are the device, object or node itself.
macro_rules! adding {
    ($(#[$about:meta])* $type:ident($of:ty), $name:literal) => {
        $(#[$about])*
        #[derive(Debug, Serialize)]
        #[serde(transparent)]
        pub(crate) struct $type(pub(crate) $of);

        impl Command for $type {
            const NAME: &'static str = $name;
            type Reply = Done;
        }
    };
}

adding!(
    /// Plugs a device in.
    DeviceAdd(Device), "device_add"
);
adding!(
    /// Makes an object.
    ObjectAdd(Object), "object-add"
);
adding!(
    /// Makes what is behind a disk.
    BlockdevAdd(Blockdev), "blockdev-add"
);
adding!(
    /// Makes what is behind a network interface.
    NetdevAdd(Netdev), "netdev_add"
);
adding!(
    /// Plugs a processor in, as [`QueryHotpluggableCpus`] describes its place.
    CpuAdd(Map<String, Value>), "device_add"
);

/// Plugs in a device that presents itself as the machine's virtio devices do.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct PresentedAdd<'a>(pub(crate) Presented<'a>);

impl Command for PresentedAdd<'_> {
    const NAME: &'static str = "device_add";
    type Reply = Done;
}

command!(
    /// Writes the guest's memory into a file.
    DumpGuestMemory { paging: bool, protocol: String, format: &'static str }, "dump-guest-memory", Done
);

/// Memory of a machine, in bytes.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct MemorySizes {
    pub(crate) base_memory: u64,
    /// Absent where none can be plugged in.
    #[serde(default)]
    pub(crate) plugged_memory: u64,
}

/// A place for a processor.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct CpuSlot {
    /// The processor's type.
    #[serde(rename = "type")]
    pub(crate) model: String,
    /// Where it is: numbers of socket, core, thread...
    pub(crate) props: Map<String, Value>,
    /// Whether there is one.
    pub(crate) qom_path: Option<String>,
}

/// The answer to [`QueryStatus`].
#[derive(Debug, Deserialize)]
pub(crate) struct Status {
    /// QEMU's word for it: `running`, `paused`, `internal-error`...
    pub(crate) status: String,
}

/// A release of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) struct VersionInfo {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) micro: u32,
}

impl fmt::Display for VersionInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

command!(
    /// Connects to a program that serves a device.
    ChardevAdd { id: String, backend: ChardevBackend }, "chardev-add", Value
);
command!(
    /// Hangs up.
    ChardevRemove { id: String }, "chardev-remove", Done
);
