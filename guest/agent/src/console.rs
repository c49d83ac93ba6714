//! Terminals. A terminal is made inside the container, from its own devpts; its master comes back to the
//! agent over a Unix socket.

use std::{
    fs::{self, File},
    io::{self, IoSliceMut},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::{
            fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use nix::{
    sys::socket::{ControlMessageOwned, MsgFlags, recvmsg},
    unistd::{Uid, fchown},
};

use crate::error::Error;

/// Where the sockets are; short, because so is the path of a socket.
const SOCKETS: &str = "/run/agent/consoles";

nix::ioctl_write_ptr_bad!(set_window_size, libc::TIOCSWINSZ, libc::winsize);

/// Makes the directory of the sockets.
pub(crate) fn set_up() -> Result<(), Error> {
    fs::create_dir_all(SOCKETS).map_err(Error::system(format!("make {SOCKETS}")))
}

/// A socket that one terminal is expected on; its path goes when it is dropped.
pub(crate) struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Console {
    pub(crate) fn listen() -> Result<Self, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let path = Path::new(SOCKETS).join(NEXT.fetch_add(1, Ordering::Relaxed).to_string());
        let what = || format!("listen on {}", path.display());
        let listener = UnixListener::bind(&path).map_err(Error::system(what()))?;
        listener.set_nonblocking(true).map_err(Error::system(what()))?;
        Ok(Self { listener, path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The terminal that has been sent; does not wait, since a process is only made after it was.
    pub(crate) fn receive(self) -> Result<OwnedFd, Error> {
        let sent = self.listener.accept().and_then(|(stream, _)| take(&stream));
        sent.map_err(Error::system("receive a terminal"))
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // The directory is the agent's own; a file left there harms nobody.
        let _ = fs::remove_file(&self.path);
    }
}

/// The descriptor that has come by `stream`; does not wait.
pub(crate) fn take(stream: &impl AsRawFd) -> io::Result<OwnedFd> {
    let mut name = [0; 256];
    let mut parts = [IoSliceMut::new(&mut name)];
    let mut space = nix::cmsg_space!([libc::c_int; 1]);
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let sent = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    let fd = sent.ok_or_else(|| io::Error::other("the message brought no terminal"))?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a terminal of the devpts that this process' root has: its master and its device.
pub(crate) fn open() -> io::Result<(OwnedFd, OwnedFd)> {
    const MULTIPLEXER: libc::dev_t = libc::makedev(5, 2);
    // A pipe in its place would keep us waiting.
    let flags = libc::O_NOCTTY | libc::O_NONBLOCK;
    let master = File::options().read(true).write(true).custom_flags(flags).open("/dev/pts/ptmx")?;
    let meta = master.metadata()?;
    if !meta.file_type().is_char_device() || meta.rdev() != MULTIPLEXER {
        return Err(io::Error::other("/dev/pts/ptmx is no terminal multiplexer"));
    }
    let unlocked: libc::c_int = 0;
    // SAFETY: reads a number that outlives the call.
    if unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let master = OwnedFd::from(master);
    let device = device(&master)?;
    Ok((master, device))
}

/// Gives the device at the other end of `master` to the user `uid`, who can then open it by its name.
pub(crate) fn give_to(master: &OwnedFd, uid: u32) -> Result<(), Error> {
    let device = device(master).map_err(Error::system("open a terminal"))?;
    // Its group stays: devpts gives every terminal to the group that may write messages on them.
    fchown(device.as_fd(), Some(Uid::from_raw(uid)), None)
        .map_err(Error::system("give a terminal to its user"))
}

/// The other end of `master`, even from another mount namespace.
fn device(master: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: passes two numbers and returns a new descriptor or -1.
    let fd = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets the size of a terminal; the processes in its foreground learn of it.
pub(crate) fn resize(master: &OwnedFd, rows: u32, columns: u32) -> Result<(), Error> {
    let cells = |what: &str, value: u32| {
        u16::try_from(value).map_err(|_| Error::invalid(format!("{what}: {value} is more than {}", u16::MAX)))
    };
    let size = libc::winsize {
        ws_row: cells("row", rows)?,
        ws_col: cells("column", columns)?,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the size outlives the call.
    unsafe { set_window_size(master.as_raw_fd(), &raw const size) }
        .map(drop)
        .map_err(Error::system("resize a terminal"))
}
