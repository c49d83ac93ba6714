//! One connection's bytes on their way, and the end of it that a program on the host holds.

use std::{
    collections::VecDeque,
    io,
    num::Wrapping,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};

/// Bytes a guest may send before the program on the host has taken them.
pub(super) const ROOM: u32 = 256 * 1024;
/// Bytes the host's program may be ahead of the guest.
const AHEAD: usize = 64 * 1024;
/// The guest is told that there is room again when it is this much.
const WORTH_TELLING: u32 = ROOM / 4;

/// What the device and the program share.
#[derive(Debug, Default)]
pub(super) struct Shared(Mutex<State>);

#[derive(Debug, Default)]
pub(super) struct State {
    to_host: VecDeque<u8>,
    /// The guest will send no more.
    guest_done: bool,
    /// The connection was cut, which is not the same as its end.
    reset: bool,
    reader: Option<Waker>,
    /// Bytes the program has taken, and what of it the guest has been told.
    taken: Wrapping<u32>,
    told: Wrapping<u32>,
    to_guest: VecDeque<u8>,
    /// The program will send no more.
    host_done: bool,
    /// The guest will take no more.
    guest_deaf: bool,
    writer: Option<Waker>,
    /// The program has let go of the connection.
    dropped: bool,
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes in what the guest has sent.
    ///
    /// # Errors
    /// When it is more than the guest was told there is room for.
    pub(super) fn deliver(&mut self, bytes: &[u8]) -> Result<(), Overrun> {
        if self.dropped {
            self.taken += Wrapping(bytes.len() as u32);
            return Ok(());
        }
        if self.to_host.len() + bytes.len() > ROOM as usize {
            return Err(Overrun);
        }
        self.to_host.extend(bytes);
        wake(&mut self.reader);
        Ok(())
    }

    /// Moves up to `max` bytes for the guest to the end of `out`.
    pub(super) fn take(&mut self, max: usize, out: &mut Vec<u8>) {
        let len = max.min(self.to_guest.len());
        let (first, second) = self.to_guest.as_slices();
        let head = len.min(first.len());
        out.extend_from_slice(&first[..head]);
        out.extend_from_slice(&second[..len - head]);
        self.to_guest.drain(..len);
        wake(&mut self.writer);
    }

    pub(super) fn has_bytes_for_guest(&self) -> bool {
        !self.to_guest.is_empty() && !self.guest_deaf
    }

    /// Whether the program sends no more, what it has sent is with the guest, and it has let go altogether.
    pub(super) fn ended(&self) -> Ended {
        match (self.has_bytes_for_guest(), self.dropped, self.host_done) {
            (true, _, _) | (false, false, false) => Ended::No,
            (false, true, _) => Ended::Both,
            (false, false, true) => Ended::Sending,
        }
    }

    /// Bytes the program has taken; the guest is told now.
    pub(super) fn tell_taken(&mut self) -> u32 {
        self.told = self.taken;
        self.taken.0
    }

    pub(super) fn is_worth_telling(&self) -> bool {
        (self.taken - self.told).0 >= WORTH_TELLING
    }

    /// The guest will send no more.
    pub(super) fn guest_done(&mut self) {
        self.guest_done = true;
        wake(&mut self.reader);
    }

    /// The guest will take no more.
    pub(super) fn guest_deaf(&mut self) {
        self.guest_deaf = true;
        self.to_guest = VecDeque::new();
        wake(&mut self.writer);
    }

    /// The connection is cut.
    pub(super) fn reset(&mut self) {
        // After the guest has said that it is done this is how a connection is taken down in good order.
        self.reset |= !self.guest_done;
        self.guest_done();
        self.guest_deaf();
    }
}

/// The guest has sent more than there is room for.
#[derive(Debug)]
pub(super) struct Overrun;

/// What of the program's side has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    No,
    Sending,
    Both,
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

/// The host's end of a connection with the guest. Shutting it down ends what the guest reads; dropping it ends both.
#[derive(Debug)]
pub(super) struct Stream {
    shared: Arc<Shared>,
    device: Arc<Notify>,
}

impl Stream {
    pub(super) fn new(shared: Arc<Shared>, device: Arc<Notify>) -> Stream {
        Stream { shared, device }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.shared.state();
        let len = buf.remaining().min(state.to_host.len());
        if len > 0 {
            let (first, second) = state.to_host.as_slices();
            let head = len.min(first.len());
            buf.put_slice(&first[..head]);
            buf.put_slice(&second[..len - head]);
            state.to_host.drain(..len);
            state.taken += Wrapping(len as u32);
            if state.is_worth_telling() {
                self.device.notify_one();
            }
            return Poll::Ready(Ok(()));
        }
        if state.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if state.guest_done || buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.shared.state();
        if state.guest_deaf || state.host_done {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let len = buf.len().min(AHEAD - state.to_guest.len());
        if len == 0 && !buf.is_empty() {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.to_guest.extend(&buf[..len]);
        self.device.notify_one();
        Poll::Ready(Ok(len))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.state().host_done = true;
        self.device.notify_one();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.dropped = true;
        state.to_host = VecDeque::new();
        drop(state);
        self.device.notify_one();
    }
}
