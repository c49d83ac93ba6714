//! What QEMU writes as options rather than JSON: `-chardev` and `-fsdev`.

use std::ffi::{OsStr, OsString};
use std::num::NonZeroU32;
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use serde::Serialize;

/// The far end of a connected socket.
#[derive(Debug)]
pub(crate) struct Chardev {
    pub(crate) id: &'static str,
    pub(crate) fd: RawFd,
}

impl Chardev {
    pub(crate) fn option(&self) -> OsString {
        format!("socket,id={},fd={}", self.id, self.fd).into()
    }
}

/// A socket that another program listens on.
#[derive(Debug)]
pub(crate) struct Dialled<'a> {
    pub(crate) id: &'a str,
    pub(crate) path: &'a Path,
    /// Seconds until a lost connection is made again.
    pub(crate) reconnect: Option<NonZeroU32>,
}

impl Dialled<'_> {
    pub(crate) fn option(&self) -> OsString {
        let mut option = OsString::from(format!("socket,id={},path=", self.id));
        option.push(doubled(self.path.as_os_str()));
        if let Some(seconds) = self.reconnect {
            option.push(format!(",reconnect={seconds}"));
        }
        option
    }
}

/// [`Dialled`] as the monitor takes it: QEMU has a form of its own for that.
#[derive(Debug, Serialize)]
#[serde(tag = "type", content = "data", rename_all = "lowercase")]
pub(crate) enum ChardevBackend {
    Socket(Dial),
}

#[derive(Debug, Serialize)]
pub(crate) struct Dial {
    addr: Address,
    server: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reconnect: Option<NonZeroU32>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "type", content = "data", rename_all = "lowercase")]
enum Address {
    Unix {
        path: String,
    },
    /// A descriptor that was handed over under this name.
    Fd {
        str: &'static str,
    },
}

impl ChardevBackend {
    /// A connected socket that was handed over under this name.
    pub(crate) fn handed(str: &'static str) -> ChardevBackend {
        ChardevBackend::Socket(Dial { addr: Address::Fd { str }, server: false, reconnect: None })
    }

    /// A socket that another program listens on, and the seconds until a lost connection is made again.
    pub(crate) fn dialled(path: &Path, reconnect: Option<NonZeroU32>) -> ChardevBackend {
        let path = path.to_string_lossy().into_owned();
        ChardevBackend::Socket(Dial { addr: Address::Unix { path }, server: false, reconnect })
    }
}

/// A directory that QEMU serves by 9p. `remap`: files of several file systems below it keep numbers of their own.
#[derive(Debug)]
pub(crate) struct Fsdev<'a> {
    pub(crate) id: &'static str,
    pub(crate) path: &'a Path,
}

impl Fsdev<'_> {
    pub(crate) fn option(&self) -> OsString {
        let mut option = OsString::from(format!("local,id={},path=", self.id));
        option.push(doubled(self.path.as_os_str()));
        option.push(",security_model=none,multidevs=remap");
        option
    }
}

/// `text` with every comma doubled, which is how an option's value holds one.
fn doubled(text: &OsStr) -> OsString {
    let bytes = text.as_bytes().iter();
    OsString::from_vec(
        bytes.flat_map(|byte| std::iter::repeat_n(*byte, 1 + usize::from(*byte == b','))).collect(),
    )
}
