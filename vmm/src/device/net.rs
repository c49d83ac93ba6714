//! What is behind a network interface: `-netdev`.

use serde::Serialize;

/// A way for packets out of the guest.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub(crate) enum Netdev {
    /// A tap of the host, by the names or numbers under which QEMU has its queues.
    Tap {
        id: String,
        /// Separated by colons.
        fds: String,
        vhost: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        vhostfds: Option<String>,
    },
}
