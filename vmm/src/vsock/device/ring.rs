//! One virtqueue: descriptors the guest offers, and the two eventfds by which each side wakes the other.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering},
};

use tokio::io::{Interest, unix::AsyncFd};
use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// The longest ring a driver may ask for. Linux takes what the device offers, and QEMU offers 128.
const LONGEST: u16 = 1024;

pub(super) type Memory = Arc<GuestMemoryMmap>;
pub(super) type Chain = DescriptorChain<Memory>;

/// A ring as the frontend sets it up.
#[derive(Debug)]
pub(super) struct Ring {
    pub(super) queue: Queue,
    kick: Option<Arc<AsyncFd<OwnedFd>>>,
    call: Option<File>,
    pub(super) enabled: bool,
}

impl Ring {
    pub(super) fn new() -> Result<Ring, Error> {
        Ok(Ring { queue: Queue::new(LONGEST)?, kick: None, call: None, enabled: false })
    }

    /// Places the three parts of the ring. What the driver has been given back so far is in the used part itself.
    pub(super) fn place(&mut self, memory: &Memory, parts: [u64; 3]) -> Result<(), Error> {
        let [descriptors, available, used] = parts.map(GuestAddress);
        self.queue.try_set_desc_table_address(descriptors)?;
        self.queue.try_set_avail_ring_address(available)?;
        self.queue.try_set_used_ring_address(used)?;
        let given_back = self.queue.used_idx(memory.as_ref(), Ordering::Acquire)?;
        self.queue.set_next_used(given_back.0);
        Ok(())
    }

    /// A ring runs from its first kick descriptor on (QEMU's vhost-user specification, "Ring states").
    pub(super) fn set_kick(&mut self, kick: Option<File>) -> io::Result<()> {
        // SAFETY: an OwnedFd is open and stays the same file for as long as it lives, and nobody takes it out of here.
        let watch = |kick: File| unsafe { AsyncFd::register_with_interest(kick.into(), Interest::READABLE) };
        self.kick = kick.map(watch).transpose()?.map(Arc::new);
        self.queue.set_ready(self.kick.is_some());
        Ok(())
    }

    pub(super) fn set_call(&mut self, call: Option<File>) {
        self.call = call;
    }

    /// Stops the ring; tells where it stood.
    pub(super) fn stop(&mut self) -> u16 {
        self.queue.set_ready(false);
        (self.kick, self.call) = (None, None);
        self.queue.next_avail()
    }

    pub(super) fn kick(&self) -> Option<Arc<AsyncFd<OwnedFd>>> {
        self.kick.clone()
    }

    /// Whether there may be something in it for us.
    pub(super) fn runs(&self) -> bool {
        self.enabled && self.queue.ready()
    }

    /// The next chain the driver offers. When there is none, the driver kicks for the next.
    pub(super) fn next(&mut self, memory: &Memory) -> Result<Option<Chain>, Error> {
        match self.pop(memory)? {
            // One may have come before the driver knew that it should kick.
            None if self.queue.enable_notification(memory.as_ref())? => self.pop(memory),
            chain => Ok(chain),
        }
    }

    fn pop(&mut self, memory: &Memory) -> Result<Option<Chain>, Error> {
        // Unlike `pop_descriptor_chain`, this tells an index that cannot be from an empty ring.
        Ok(self.queue.iter(memory.clone())?.next())
    }

    /// Gives a chain back with `len` bytes written to it.
    pub(super) fn give_back(&mut self, memory: &Memory, head: u16, len: usize) -> Result<(), Error> {
        self.queue.add_used(memory.as_ref(), head, u32::try_from(len).unwrap_or(u32::MAX))
    }

    /// Wakes the driver if it wants to hear of what it was given back.
    pub(super) fn call(&mut self, memory: &Memory) -> Result<(), Error> {
        if self.queue.needs_notification(memory.as_ref())?
            && let Some(mut call) = self.call.as_ref()
        {
            // A counter that is full has woken the driver as well as one more could.
            let _ = call.write(&1_u64.to_ne_bytes());
        }
        Ok(())
    }
}

/// Waits for the driver's kick, for ever if the ring has none.
pub(super) async fn kicked(kick: Option<Arc<AsyncFd<OwnedFd>>>) {
    let Some(kick) = kick else { return std::future::pending().await };
    let Ok(mut ready) = kick.readable().await else { return std::future::pending().await };
    // The counter is of no interest, only that it is zero again.
    let _ = ready.try_io(|kick| nix::unistd::read(kick, &mut [0; 8]).map_err(io::Error::from));
    ready.clear_ready();
}

/// Reads all that a chain holds for the device: `first` whole, and what follows at the end of `rest`.
pub(super) fn read(
    chain: Chain,
    memory: &Memory,
    first: &mut [u8],
    rest: &mut Vec<u8>,
    most: usize,
) -> io::Result<()> {
    let mut reader = chain.reader(memory).map_err(io::Error::other)?;
    reader.read_exact(first)?;
    if reader.available_bytes() > most {
        return Err(io::Error::other("longer than a packet may be"));
    }
    reader.read_to_end(rest).map(drop)
}
