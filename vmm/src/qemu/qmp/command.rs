//! The commands, typed: QEMU from 9.2 refuses a string where it wants a number or a boolean.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A command of QMP; its fields are the arguments.
pub(crate) trait Command: Serialize {
    const NAME: &'static str;
    type Reply: DeserializeOwned;
}

/// A reply without content: an empty object.
#[derive(Debug, Deserialize)]
pub(crate) struct Done {}

macro_rules! command {
    ($(#[$about:meta])* $type:ident, $name:literal, $reply:ty) => {
        $(#[$about])*
        #[derive(Debug, Serialize)]
        pub(crate) struct $type {}

        impl Command for $type {
            const NAME: &'static str = $name;
            type Reply = $reply;
        }
    };
}

command!(
    /// Leaves negotiation mode.
    QmpCapabilities, "qmp_capabilities", Done
);
command!(
    /// Starts the processors.
    Cont, "cont", Done
);
command!(
    /// Stops the processors.
    Stop, "stop", Done
);
command!(
    /// Ends QEMU.
    Quit, "quit", Done
);
command!(
    /// What the machine does.
    QueryStatus, "query-status", Status
);

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
