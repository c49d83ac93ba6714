//! Memory on disks.

use std::{ffi::CString, io, time::Duration};

use crate::{error::Error, reaper::Reaper, worker};

/// How long the kernel may take to look at a disk.
const PATIENCE: Duration = Duration::from_secs(30);

/// Has the kernel use the disk or file `path`, which the host has prepared by mkswap.
///
/// # Errors
///
/// [`Error::Invalid`] for what is no path, [`Error::Worker`] if the kernel refuses it.
pub(crate) async fn add(reaper: &Reaper, path: &str) -> Result<(), Error> {
    let what = format!("swap on {path}");
    let path = CString::new(path).map_err(|_| Error::invalid(format!("{what}: not a path")))?;
    let on = || match swap_on(&path) {
        Ok(()) => Ok(String::new()),
        Err(error) => Err(format!("{what}: {error}")),
    };
    // It reads from the disk, and may have to wait for it.
    worker::run(reaper, &what, &[], PATIENCE, on).await.map(drop)
}

fn swap_on(path: &CString) -> io::Result<()> {
    // SAFETY: the path ends with a NUL and outlives the call.
    match unsafe { libc::swapon(path.as_ptr(), 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
