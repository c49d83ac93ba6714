//! What QEMU says of the device: the guest's memory, the rings in it, what was negotiated (QEMU documentation,
//! "Vhost-user Protocol").

use std::{
    fs::File,
    io,
    ptr::NonNull,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::sys::mman::{MmapAdvise, madvise};
use vhost::vhost_user::{
    Error, GpuBackend, Result, VhostUserBackendReqHandlerMut, VhostUserProtocolFeatures,
    VhostUserVirtioFeatures,
    message::{
        VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
        VhostUserLog, VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg,
        VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
    },
};
use virtio_bindings::{
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};
use virtio_queue::QueueT;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use super::ring::{Memory, Ring};

/// To the guest, from the guest. The third of a vsock device, for events, is QEMU's own.
pub(super) const RINGS: usize = 2;

/// Most pieces of the guest's memory at once, as many as other back ends take: QEMU has a piece for each NUMA node and
/// each of 256 modules, and parts one around what is not memory. Without a number it takes the device for one of 8.
const MOST_PARTS: usize = 509;

const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// A part of the guest's memory: where QEMU has it, where the guest.
#[derive(Debug, PartialEq, Eq)]
struct Part {
    in_qemu: u64,
    in_guest: u64,
    len: u64,
}

impl Part {
    fn of(region: &VhostUserMemoryRegion) -> Part {
        Part { in_qemu: region.user_addr, in_guest: region.guest_phys_addr, len: region.memory_size }
    }

    /// Where the guest has what QEMU has at an address, if that is here.
    fn in_guest(&self, in_qemu: u64) -> Option<u64> {
        let offset = in_qemu.checked_sub(self.in_qemu).filter(|offset| *offset < self.len)?;
        Some(self.in_guest + offset)
    }
}

#[derive(Debug)]
pub(super) struct Frontend {
    cid: u64,
    parts: Vec<Part>,
    memory: Option<Memory>,
    pub(super) rings: [Ring; RINGS],
}

/// The protocol's handler keeps one reference, the device the other; both are on one thread.
pub(super) fn lock(frontend: &Arc<Mutex<Frontend>>) -> MutexGuard<'_, Frontend> {
    frontend.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Frontend {
    pub(super) fn new(cid: u32) -> io::Result<Frontend> {
        let ring = || Ring::new().map_err(io::Error::other);
        let rings = [ring()?, ring()?];
        Ok(Frontend { cid: cid.into(), parts: Vec::new(), memory: None, rings })
    }

    /// The guest's memory, once all rings run.
    pub(super) fn memory(&self) -> Option<Memory> {
        self.memory.clone().filter(|_| self.rings.iter().all(Ring::runs))
    }

    fn ring(&mut self, index: impl Into<u32>) -> Result<&mut Ring> {
        self.rings.get_mut(index.into() as usize).ok_or(Error::InvalidParam)
    }

    fn in_guest(&self, in_qemu: u64) -> Result<u64> {
        self.parts.iter().find_map(|part| part.in_guest(in_qemu)).ok_or(Error::InvalidParam)
    }
}

/// Maps a part, whose end is an address of the guest then.
fn mapped(region: &VhostUserMemoryRegion, file: File) -> Result<GuestRegionMmap> {
    let map = region.mmap_region(file)?;
    keep_out_of_core_files(&map).map_err(Error::ReqHandlerError)?;
    GuestRegionMmap::new(map, GuestAddress(region.guest_phys_addr)).ok_or(Error::InvalidParam)
}

/// The guest's memory is no part of what a crash of this process should leave on a disk.
fn keep_out_of_core_files(map: &MmapRegion) -> io::Result<()> {
    let start = NonNull::new(map.as_ptr().cast()).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: the range is the whole of a mapping that lives, and the advice changes nothing of what is in it.
    unsafe { madvise(start, map.size(), MmapAdvise::MADV_DONTDUMP) }.map_err(io::Error::from)
}

fn refused(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::ReqHandlerError(io::Error::other(error))
}

fn never<T>() -> Result<T> {
    Err(Error::InvalidOperation("not negotiated"))
}

impl VhostUserBackendReqHandlerMut for Frontend {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.rings.iter_mut().for_each(|ring| ring.enabled = false);
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(FEATURES)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !FEATURES != 0 {
            return Err(Error::InvalidParam);
        }
        for ring in &mut self.rings {
            ring.queue.set_event_idx(features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0);
            // Without the protocol's own features there is no message that would enable them.
            ring.enabled |= features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0;
        }
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    }

    fn set_protocol_features(&mut self, _: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(RINGS as u64)
    }

    fn set_mem_table(&mut self, regions: &[VhostUserMemoryRegion], files: Vec<File>) -> Result<()> {
        let maps = regions.iter().zip(files).map(|(region, file)| mapped(region, file));
        let maps = maps.collect::<Result<_>>()?;
        self.memory = Some(Arc::new(GuestMemoryMmap::from_regions(maps).map_err(refused)?));
        self.parts = regions.iter().map(Part::of).collect();
        Ok(())
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).map_err(|_| Error::InvalidParam)?;
        self.ring(index)?.queue.try_set_size(size).map_err(refused)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _: u64,
    ) -> Result<()> {
        let parts = [self.in_guest(descriptor)?, self.in_guest(available)?, self.in_guest(used)?];
        let memory = self.memory.clone().ok_or(Error::InvalidParam)?;
        self.ring(index)?.place(&memory, parts).map_err(refused)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        self.ring(index)?.queue.set_next_avail(base);
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let base = self.ring(index)?.stop();
        Ok(VhostUserVringState::new(index, base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, kick: Option<File>) -> Result<()> {
        self.ring(index)?.set_kick(kick).map_err(Error::ReqHandlerError)
    }

    fn set_vring_call(&mut self, index: u8, call: Option<File>) -> Result<()> {
        self.ring(index)?.set_call(call);
        Ok(())
    }

    fn set_vring_err(&mut self, _: u8, _: Option<File>) -> Result<()> {
        Ok(())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.ring(index)?.enabled = enable;
        Ok(())
    }

    /// The one field of the device's configuration is the guest's address.
    fn get_config(&mut self, offset: u32, size: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let (start, len) = (offset as usize, size as usize);
        let config = self.cid.to_le_bytes();
        config.get(start..start.saturating_add(len)).map(<[u8]>::to_vec).ok_or(Error::InvalidParam)
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        never()
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        never()
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        never()
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        never()
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        never()
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MOST_PARTS as u64)
    }

    fn add_mem_region(&mut self, region: &VhostUserSingleMemoryRegion, file: File) -> Result<()> {
        if self.parts.len() >= MOST_PARTS {
            return Err(Error::InvalidParam);
        }
        let map = mapped(region, file)?;
        let memory = match &self.memory {
            Some(memory) => memory.insert_region(Arc::new(map)),
            None => GuestMemoryMmap::from_regions(vec![map]),
        };
        self.memory = Some(Arc::new(memory.map_err(refused)?));
        self.parts.push(Part::of(region));
        Ok(())
    }

    /// What is unmapped is so once nobody reads or writes it any more.
    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let gone = Part::of(region);
        let at = self.parts.iter().position(|part| *part == gone).ok_or(Error::InvalidParam)?;
        let memory = self.memory.as_ref().ok_or(Error::InvalidParam)?;
        let (memory, _) = memory.remove_region(GuestAddress(gone.in_guest), gone.len).map_err(refused)?;
        self.memory = Some(Arc::new(memory));
        self.parts.swap_remove(at);
        Ok(())
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        never()
    }

    fn check_device_state(&mut self) -> Result<()> {
        never()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        never()
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        never()
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestMemory};

    use super::*;

    const PIECE: u64 = 4096;

    fn piece(number: u64) -> (VhostUserSingleMemoryRegion, File) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(PIECE).unwrap();
        (VhostUserSingleMemoryRegion::new(number * PIECE, PIECE, (number + 1000) * PIECE, 0), file)
    }

    fn with_pieces(count: u64) -> Frontend {
        let mut frontend = Frontend::new(3).unwrap();
        for number in 0..count {
            let (region, file) = piece(number);
            frontend.add_mem_region(&region, file).unwrap();
        }
        frontend
    }

    #[tokio::test]
    async fn memory_comes_and_goes_piece_by_piece() {
        let mut frontend = with_pieces(300);
        assert_eq!(frontend.in_guest(1299 * PIECE + 7).unwrap(), 299 * PIECE + 7);
        assert!(frontend.in_guest(1300 * PIECE).is_err());
        let before = frontend.memory.clone().unwrap();
        assert!(frontend.remove_mem_region(&piece(300).0).is_err());
        frontend.remove_mem_region(&piece(7).0).unwrap();
        assert!(frontend.in_guest(1007 * PIECE).is_err());
        let after = frontend.memory.clone().unwrap();
        assert_eq!((before.num_regions(), after.num_regions()), (300, 299));
        // Whoever is at it still has it.
        before.write_obj(1_u64, GuestAddress(7 * PIECE)).unwrap();
        assert!(after.write_obj(1_u64, GuestAddress(7 * PIECE)).is_err());
        let (region, file) = piece(7);
        frontend.add_mem_region(&region, file).unwrap();
        assert_eq!(frontend.in_guest(1007 * PIECE).unwrap(), 7 * PIECE);
    }

    #[tokio::test]
    async fn a_piece_that_cannot_be_is_refused_and_changes_nothing() {
        let mut frontend = with_pieces(2);
        let file = || piece(0).1;
        for region in [
            VhostUserSingleMemoryRegion::new(PIECE, PIECE, 5000 * PIECE, 0),
            VhostUserSingleMemoryRegion::new(u64::MAX - PIECE + 2, PIECE, 5000 * PIECE, 0),
            VhostUserSingleMemoryRegion::new(8 * PIECE, 0, 5000 * PIECE, 0),
        ] {
            assert!(frontend.add_mem_region(&region, file()).is_err(), "{:?}", Part::of(&region));
        }
        let memory = frontend.memory.clone().unwrap();
        assert_eq!((memory.num_regions(), frontend.parts.len()), (2, 2));
        let mut full = with_pieces(MOST_PARTS as u64);
        let (region, file) = piece(MOST_PARTS as u64);
        assert!(full.add_mem_region(&region, file).is_err());
    }
}
