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

const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// A part of the guest's memory: where QEMU has it, where the guest.
#[derive(Debug)]
struct Part {
    in_qemu: u64,
    in_guest: u64,
    len: u64,
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
        let part = self.parts.iter().find(|part| (part.in_qemu..part.in_qemu + part.len).contains(&in_qemu));
        part.map(|part| in_qemu - part.in_qemu + part.in_guest).ok_or(Error::InvalidParam)
    }
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
        Ok(VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::REPLY_ACK)
    }

    fn set_protocol_features(&mut self, _: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(RINGS as u64)
    }

    fn set_mem_table(&mut self, regions: &[VhostUserMemoryRegion], files: Vec<File>) -> Result<()> {
        let mut mapped = Vec::with_capacity(regions.len());
        let mut parts = Vec::with_capacity(regions.len());
        for (region, file) in regions.iter().zip(files) {
            let map = region.mmap_region(file)?;
            keep_out_of_core_files(&map).map_err(Error::ReqHandlerError)?;
            let start = GuestAddress(region.guest_phys_addr);
            mapped.push(GuestRegionMmap::new(map, start).ok_or(Error::InvalidParam)?);
            let (in_qemu, in_guest) = (region.user_addr, region.guest_phys_addr);
            parts.push(Part { in_qemu, in_guest, len: region.memory_size });
        }
        self.memory = Some(Arc::new(GuestMemoryMmap::from_regions(mapped).map_err(refused)?));
        self.parts = parts;
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
        never()
    }

    fn add_mem_region(&mut self, _: &VhostUserSingleMemoryRegion, _: File) -> Result<()> {
        never()
    }

    fn remove_mem_region(&mut self, _: &VhostUserSingleMemoryRegion) -> Result<()> {
        never()
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
