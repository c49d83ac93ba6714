//! What the start action and a waiting shim say to each other.

use std::{
    io::{self, IoSlice, IoSliceMut, Read},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};

/// Longer than any that is right, in bytes.
const LONGEST: u64 = 64 << 10;

/// Whose shim the waiting one is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Order {
    /// That of this program: another one may have taken its place since the shim began to wait.
    pub(super) version: String,
    pub(super) namespace: String,
    pub(super) id: String,
    /// containerd's, for its log.
    pub(super) debug: bool,
    /// Where containerd serves its own interface.
    pub(super) address: String,
    /// Where containerd takes events.
    pub(super) events: String,
    pub(super) bundle: PathBuf,
    /// Where containerd has its shims, as `/proc/self/cgroup` says it.
    pub(super) cgroups: String,
}

impl Order {
    /// Sends it with the socket that the shim is to listen on. Nothing can be sent afterwards.
    ///
    /// # Errors
    /// Nobody takes it.
    pub(super) fn send(&self, to: &UnixStream, listener: &impl AsRawFd) -> io::Result<()> {
        let text = serde_json::to_vec(self)?;
        send(to, &text, listener)?;
        to.shutdown(std::net::Shutdown::Write)
    }

    /// Takes one.
    ///
    /// # Errors
    /// It does not come, or is none.
    pub(super) fn receive(from: &UnixStream) -> io::Result<(Order, OwnedFd)> {
        let (mut text, listener) = receive(from)?;
        from.take(LONGEST).read_to_end(&mut text)?;
        let listener = listener.ok_or_else(|| io::Error::other("an order without a socket"))?;
        Ok((serde_json::from_slice(&text)?, listener))
    }
}

/// Sends bytes, all of them, and a descriptor with the first.
pub(super) fn send(to: &impl AsRawFd, bytes: &[u8], fd: &impl AsRawFd) -> io::Result<()> {
    let fds = [fd.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    let sent = sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(bytes)], &rights, MsgFlags::MSG_NOSIGNAL, None)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// What comes first, none if the other side has nothing more to say, and the descriptor that comes with it.
pub(super) fn receive(from: &impl AsRawFd) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut bytes = vec![0; 4096];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(from.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let count = message.bytes;
    let fds = message.cmsgs()?.filter_map(|part| match part {
        ControlMessageOwned::ScmRights(fds) => Some(fds),
        _ => None,
    });
    // SAFETY: the kernel has just made these for this process, and nobody else knows of them.
    let fds: Vec<OwnedFd> = fds.flatten().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect();
    bytes.truncate(count);
    Ok((bytes, fds.into_iter().next()))
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::MetadataExt};

    use super::*;

    fn order(bundle: &str) -> Order {
        let [version, namespace, id, address, events, cgroups] =
            ["1", "k8s.io", "p1", "/c.sock", "/c.sock.ttrpc", "0::/"].map(str::to_owned);
        Order { version, namespace, id, debug: true, address, events, bundle: bundle.into(), cgroups }
    }

    #[test]
    fn an_order_arrives_whole_with_its_socket() {
        // Longer than what is received at once.
        for order in [order("/b"), order(&format!("/{}", "b".repeat(9000)))] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let file = tempfile::tempfile().unwrap();
            order.send(&ours, &file).unwrap();
            let (received, fd) = Order::receive(&theirs).unwrap();
            assert_eq!(received, order);
            assert_eq!(File::from(fd).metadata().unwrap().ino(), file.metadata().unwrap().ino());
        }
    }

    #[test]
    fn what_is_no_order_is_refused() {
        for bytes in [&b""[..], b"x", b"{}"] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            if !bytes.is_empty() {
                send(&ours, bytes, &tempfile::tempfile().unwrap()).unwrap();
            }
            drop(ours);
            assert!(Order::receive(&theirs).is_err());
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        io::Write::write_all(&mut &ours, &serde_json::to_vec(&order("/b")).unwrap()).unwrap();
        drop(ours);
        assert!(Order::receive(&theirs).unwrap_err().to_string().contains("without a socket"));
    }
}
