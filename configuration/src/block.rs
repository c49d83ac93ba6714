//! Block devices of containers.

use crate::choice::BlockAio;

/// How block devices reach the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockDevices {
    /// Who drives them.
    pub driver: BlockDriver,
    /// How QEMU reads and writes them; `Native` only past the page cache.
    pub aio: BlockAio,
    /// What is done with the host's page cache, where that is set.
    pub cache: Option<BlockCache>,
    /// Sectors the guest addresses, in bytes: a power of two, or 0 for the host's.
    pub logical_sector_size: u32,
    /// Sectors of the medium, likewise, and no smaller.
    pub physical_sector_size: u32,
    /// Descriptors in a queue, a power of two from 4 to 1024.
    pub queue_size: u32,
    /// Queues of a device or of the SCSI controller, 1 to 1022.
    pub num_queues: u32,
    /// The SCSI controller has a thread of its own.
    pub enable_iothreads: bool,
    /// Further threads for devices, at most 64.
    pub indep_iothreads: u32,
}

/// Who drives a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockDriver {
    /// A SCSI controller.
    VirtioScsi,
    /// The device itself.
    VirtioBlk,
    /// Nobody: it is memory.
    Nvdimm,
}

/// What is done with the host's page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockCache {
    /// It is bypassed.
    pub direct: bool,
    /// The guest's flushes are ignored.
    pub no_flush: bool,
}
