//! Block devices.

use std::num::NonZeroU32;

use vmm::spec::{Access, Block, BlockDriver, BlockOptions, Cache, IoThreads, Queues, Sectors};

use super::{Checker, text};
use crate::choice::BlockAio;
use crate::hypervisor::VhostUserStore;
use crate::program;
use crate::raw::RawHypervisor;

const STORE_ENABLED: &str = "hypervisor.qemu.enable_vhost_user_store";
const STORE: &str = "hypervisor.qemu.vhost_user_store_path";
const DRIVER: &str = "hypervisor.qemu.block_device_driver";
const AIO: &str = "hypervisor.qemu.block_device_aio";
const CACHE_SET: &str = "hypervisor.qemu.block_device_cache_set";
const LOGICAL: &str = "hypervisor.qemu.block_device_logical_sector_size";
const PHYSICAL: &str = "hypervisor.qemu.block_device_physical_sector_size";
const QUEUE_SIZE: &str = "hypervisor.qemu.queue_size";
const OWN_THREAD: &str = "hypervisor.qemu.enable_iothreads";
const IO_THREADS: &str = "hypervisor.qemu.indep_iothreads";

impl Checker<'_> {
    pub(super) fn block(&mut self, raw: &RawHypervisor) -> Block {
        let driver = self.driver(&raw.block_device_driver);
        let access = self.access(raw);
        let sectors = self.sectors(raw);
        let queues = self.queues(raw);
        let threads = IoThreads::new(raw.enable_iothreads, raw.indep_iothreads);
        let threads = self.note(IO_THREADS, threads.map_err(text));
        self.nothing_to_drive(raw);
        Block {
            driver: driver.unwrap_or_default(),
            options: BlockOptions::new(access, sectors.unwrap_or_default(), queues.unwrap_or_default()),
            threads: threads.unwrap_or_default(),
        }
    }

    /// Containers' disks are virtio-blk devices, whichever driver is named: a controller that most pods have no use for takes
    /// a tenth of a start.
    fn nothing_to_drive(&mut self, raw: &RawHypervisor) {
        let what = "has no effect: disks of containers are devices of virtio-blk";
        for (key, set) in [(DRIVER, raw.block_device_driver == "nvdimm"), (OWN_THREAD, raw.enable_iothreads)]
        {
            if set && self.sound(&[key]) {
                self.warning(key, what.to_owned());
            }
        }
    }

    fn access(&mut self, raw: &RawHypervisor) -> Access {
        let cache = self.cache(raw);
        match (raw.block_device_aio, cache) {
            (BlockAio::Threads, None) => Access::Threads,
            (BlockAio::Threads, Some(cache)) => Access::CachedThreads(cache),
            (BlockAio::IoUring, None) => Access::IoUring,
            (BlockAio::IoUring, Some(cache)) => Access::CachedIoUring(cache),
            (BlockAio::Native, cache) => {
                if !cache.is_some_and(|cache| cache.direct) && self.sound(&[AIO, CACHE_SET]) {
                    let what = "native works past the page cache only: set block_device_cache_set and \
                                block_device_cache_direct, or use io_uring or threads";
                    self.problem(AIO, what.to_owned());
                }
                Access::Native { no_flush: cache.is_some_and(|cache| cache.no_flush) }
            }
        }
    }

    fn queues(&mut self, raw: &RawHypervisor) -> Option<Queues> {
        let size = if raw.queue_size == 0 { 128 } else { raw.queue_size };
        if size < 4 || !size.is_power_of_two() {
            self.problem(QUEUE_SIZE, format!("{size} is not a power of two from 4 to 1024; 128 is usual"));
        }
        self.note(QUEUE_SIZE, Queues::new(raw.num_queues.max(1), size).map_err(text))
    }

    /// The directory need only be there where it is used.
    pub(super) fn vhost_user_store(&mut self, raw: &RawHypervisor) -> Option<VhostUserStore> {
        if !raw.enable_vhost_user_store {
            return None;
        }
        let what = "the machine is ready for such devices, but this version gives containers none";
        self.warning(STORE_ENABLED, what.to_owned());
        let path = raw.vhost_user_store_path.clone();
        self.note(STORE, program::directory(&path));
        Some(VhostUserStore { path, reconnect: NonZeroU32::new(raw.vhost_user_reconnect_timeout_sec) })
    }

    fn driver(&mut self, word: &str) -> Option<BlockDriver> {
        let why = match word {
            "virtio-scsi" => return Some(BlockDriver::VirtioScsi),
            "virtio-blk" | "virtio-blk-pci" => return Some(BlockDriver::VirtioBlk),
            "nvdimm" => return Some(BlockDriver::Nvdimm),
            "virtio-mmio" | "virtio-blk-mmio" => {
                "is for machines without PCI, and nothing can be plugged into those"
            }
            "virtio-blk-ccw" => "is for s390x",
            "virtio-pmem" => "cannot take a device away again",
            _ => "is unknown",
        };
        self.problem(DRIVER, format!("{word:?} {why}; use virtio-scsi, virtio-blk or nvdimm"));
        None
    }

    fn cache(&mut self, raw: &RawHypervisor) -> Option<Cache> {
        let (direct, no_flush) = (raw.block_device_cache_direct, raw.block_device_cache_noflush);
        if !raw.block_device_cache_set && (direct || no_flush) {
            let what = "false, so block_device_cache_direct and block_device_cache_noflush mean nothing";
            self.warning(CACHE_SET, what.to_owned());
        }
        raw.block_device_cache_set.then_some(Cache { direct, no_flush })
    }

    fn sectors(&mut self, raw: &RawHypervisor) -> Option<Sectors> {
        let (logical, physical) =
            (raw.block_device_logical_sector_size, raw.block_device_physical_sector_size);
        for (key, size) in [(LOGICAL, logical), (PHYSICAL, physical)] {
            if size != 0 && !(size.is_power_of_two() && (512..=65536).contains(&size)) {
                self.problem(
                    key,
                    format!("{size} is not a power of two from 512 to 65536, nor 0 for the host's"),
                );
            }
        }
        if physical != 0 && logical > physical && self.sound(&[LOGICAL, PHYSICAL]) {
            let what = format!(
                "{logical} is more than block_device_physical_sector_size, which is {physical}; lower it"
            );
            self.problem(LOGICAL, what);
        }
        self.note(LOGICAL, Sectors::new(logical, physical).map_err(text))
    }
}
