//! vsock by the host's kernel.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use async_trait::async_trait;
use tokio_vsock::{VsockAddr, VsockStream};

use super::Backend;
use crate::error::BootError;
use crate::vm::{Connection, Listener, Vsock};

/// The kernel's own vsock device for virtual machines, where it has one.
pub const VHOST_VSOCK: &str = "/dev/vhost-vsock";
/// How many addresses are tried. They are 32 bits, so that a second attempt is rare even among thousands of guests.
const ATTEMPTS: u32 = 64;
/// 0 to 2 are the hypervisor's, the local and the host's address, the last one stands for any.
const FIRST_GUEST: u32 = 3;

nix::ioctl_write_ptr!(set_guest_cid, 0xaf, 0x60, u64);

/// Takes an address for the guest; it is the guest's while the descriptor is open.
pub(super) fn start() -> Result<Backend, BootError> {
    let refused = |source| BootError::Io { doing: format!("open {VHOST_VSOCK}"), source };
    let device = OpenOptions::new().read(true).write(true).open(VHOST_VSOCK).map_err(refused)?;
    let cid = take_address(random_address, |cid| {
        let cid = u64::from(cid);
        // SAFETY: the request is the device's own and reads one u64, which lives until the call returns.
        unsafe { set_guest_cid(device.as_raw_fd(), &raw const cid) }.map(drop).map_err(io::Error::from)
    })?;
    Ok(Backend { fd: device.into(), cid, host: Arc::new(Kernel { cid }), device: None })
}

/// The host's side, `AF_VSOCK`.
#[derive(Debug)]
struct Kernel {
    cid: u32,
}

#[async_trait]
impl Vsock for Kernel {
    async fn connect(&self, port: u32) -> io::Result<Connection> {
        // Opened close-on-exec: no hook or logger inherits the guest.
        let stream = VsockStream::connect(VsockAddr::new(self.cid, port)).await?;
        let local_port = stream.local_addr()?.port();
        Ok(Connection { stream: Box::new(stream), local_port })
    }

    fn listen(&self, _: u32) -> Option<Listener> {
        None
    }
}

fn random_address() -> io::Result<u32> {
    let mut bytes = [0; 4];
    crate::random::fill(&mut bytes)?;
    Ok(u32::from_ne_bytes(bytes))
}

/// Tries addresses until `set` takes one.
fn take_address(
    mut random: impl FnMut() -> io::Result<u32>,
    mut set: impl FnMut(u32) -> io::Result<()>,
) -> Result<u32, BootError> {
    let refused = |source| BootError::Io { doing: format!("take a guest address on {VHOST_VSOCK}"), source };
    for _ in 0..ATTEMPTS {
        let cid = random().map_err(refused)?;
        if !(FIRST_GUEST..u32::MAX).contains(&cid) {
            continue;
        }
        match set(cid) {
            Ok(()) => return Ok(cid),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(refused(error)),
        }
    }
    Err(BootError::NoFreeCid(ATTEMPTS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::sync::Mutex;

    /// The kernel's side of the device: who has which address.
    #[derive(Default)]
    struct Addresses(Mutex<BTreeSet<u32>>);

    impl Addresses {
        fn set(&self, cid: u32) -> io::Result<()> {
            let free = self.0.lock().unwrap().insert(cid);
            if free { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EADDRINUSE)) }
        }
    }

    #[test]
    fn b22_s_a6_fifty_addresses_in_use_are_not_too_many() {
        let mut tried = 0;
        let cid = take_address(random_address, |_| {
            tried += 1;
            if tried <= 50 { Err(io::Error::from_raw_os_error(libc::EADDRINUSE)) } else { Ok(()) }
        });
        assert!(cid.unwrap() >= FIRST_GUEST);
        assert_eq!(tried, 51);
    }

    #[test]
    fn b22_s_a6_sixty_four_guests_at_once_have_sixty_four_addresses() {
        let addresses = Addresses::default();
        // So few that they are in each other's way.
        let random = || Ok(random_address()? % 128);
        let taken: BTreeSet<u32> = std::thread::scope(|scope| {
            let take = || take_address(random, |cid| addresses.set(cid)).unwrap();
            let threads: Vec<_> = (0..64).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(taken.len(), 64);
        assert_eq!(taken, *addresses.0.lock().unwrap());
        assert!(taken.iter().all(|cid| *cid >= FIRST_GUEST));
    }

    #[test]
    fn an_address_in_use_is_passed_over_and_so_are_those_of_the_host() {
        let mut random = [0, 1, 2, u32::MAX, 3, 4].into_iter();
        let mut tried = Vec::new();
        let cid = take_address(
            || Ok(random.next().unwrap()),
            |cid| {
                tried.push(cid);
                if cid == 3 { Err(io::ErrorKind::AddrInUse.into()) } else { Ok(()) }
            },
        );
        assert_eq!(cid.unwrap(), 4);
        assert_eq!(tried, [3, 4]);
    }

    #[test]
    fn it_ends_when_every_address_is_in_use() {
        let error = take_address(|| Ok(5), |_| Err(io::ErrorKind::AddrInUse.into())).unwrap_err();
        assert_eq!(error.to_string(), "no free vsock address in 64 attempts");
    }

    #[test]
    fn any_other_refusal_ends_it_at_once() {
        let error = take_address(|| Ok(5), |_| Err(io::ErrorKind::PermissionDenied.into())).unwrap_err();
        assert!(matches!(error, BootError::Io { .. }));
    }
}
