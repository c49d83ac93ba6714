//! The agent's end of one stream: a non-blocking descriptor of a pipe or of a terminal.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::{read, write},
};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd};

use crate::{error::Error, readiness};

/// Most bytes one call of the host's reads, however many it asks for.
const MAX_READ: usize = 256 * 1024;

/// An end, shared by those at work with it: a call under way keeps it open until it returns.
pub(super) type End = Arc<AsyncFd<OwnedFd>>;

/// Has the event loop watch `fd`.
pub(super) fn watch(fd: OwnedFd, interest: Interest) -> Result<End, Error> {
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(Error::system("make a stream non-blocking"))?;
    readiness::watch(fd, interest).map(Arc::new).map_err(Error::system("watch a stream"))
}

/// An end that the host's calls read or write, dropped at the stream's end.
pub(super) struct Stream(Mutex<Option<End>>);

impl Stream {
    pub(super) fn new(end: End) -> Self {
        Self(Mutex::new(Some(end)))
    }

    pub(super) fn close(&self) {
        drop(self.slot().take());
    }

    pub(super) fn is_closed(&self) -> bool {
        self.slot().is_none()
    }

    fn get(&self) -> Option<End> {
        self.slot().clone()
    }

    fn slot(&self) -> MutexGuard<'_, Option<End>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn read(&self, max: usize) -> Result<Vec<u8>, Error> {
        if max == 0 {
            return Err(Error::invalid("len: 0, wants at least 1 byte"));
        }
        let Some(end) = self.get() else { return Ok(Vec::new()) };
        let mut data = vec![0; max.min(MAX_READ)];
        let len = match end.async_io(Interest::READABLE, |fd| Ok(read(fd, &mut data)?)).await {
            Ok(len) => len,
            Err(error) if is_hangup(&error) => 0,
            Err(error) => return Err(Error::system("read a stream")(error)),
        };
        if len == 0 {
            self.close();
        }
        data.truncate(len);
        Ok(data)
    }

    pub(super) async fn write(&self, data: &[u8]) -> Result<usize, Error> {
        let closed = || Error::state("stdin is closed");
        let end = self.get().ok_or_else(closed)?;
        match end.async_io(Interest::WRITABLE, |fd| Ok(write(fd, data)?)).await {
            Ok(len) => Ok(len),
            Err(error) if is_hangup(&error) => Err(closed()),
            Err(error) => Err(Error::system("write stdin")(error)),
        }
    }
}

/// A pipe without readers; a terminal that no process has open any more.
fn is_hangup(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPIPE | libc::EIO))
}

/// An end that a pump moves bytes from or to.
pub(super) struct Pumped(pub(super) End);

impl AsyncRead for Pumped {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let room = buf.remaining();
            match guard.try_io(|fd| read_into(fd.get_ref(), buf)) {
                Ok(Ok(len)) => {
                    // All there was has been read, so the kernel tells of what comes next: no second read to learn
                    // that there is nothing yet.
                    if 0 < len && len < room {
                        guard.clear_ready();
                    }
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) if is_hangup(&error) => return Poll::Ready(Ok(())),
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

/// Reads without the zeroes that the safe call wants to find in the buffer: 64 KiB of them for every line of output.
fn read_into(fd: &OwnedFd, buf: &mut ReadBuf<'_>) -> io::Result<usize> {
    // SAFETY: nothing is taken out of the buffer; the kernel writes no more than its length.
    let room = unsafe { buf.unfilled_mut() };
    // SAFETY: the pointer and the length are those of a buffer that outlives the call.
    let len = unsafe { libc::read(fd.as_raw_fd(), room.as_mut_ptr().cast(), room.len()) };
    let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has just written that many.
    unsafe { buf.assume_init(len) };
    buf.advance(len);
    Ok(len)
}

impl AsyncWrite for Pumped {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            match guard.try_io(|fd| Ok(write(fd.get_ref(), data)?)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(done) => return Poll::Ready(done),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
