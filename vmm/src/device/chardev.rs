//! What QEMU writes as options rather than JSON: `-chardev` and `-fsdev`.

use std::ffi::{OsStr, OsString};
use std::num::NonZeroU32;
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

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
