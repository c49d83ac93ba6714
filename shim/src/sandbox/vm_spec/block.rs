//! Block devices that come later.

use configuration::{BlockAio, BlockCache, BlockDevices, BlockDriver};
use vmm::spec::{self, Access, Block, BlockOptions, Cache, IoThreads, Queues, Sectors};

use super::unusable;
use crate::error::Result;

pub(super) fn of(configured: &BlockDevices) -> Result<Block> {
    let sectors = Sectors::new(configured.logical_sector_size, configured.physical_sector_size)
        .map_err(unusable("block_device_logical_sector_size"))?;
    let queues = Queues::new(configured.num_queues, configured.queue_size).map_err(unusable("queue_size"))?;
    Ok(Block {
        driver: match configured.driver {
            // Nothing attaches block devices yet, and a controller that nobody needs takes a tenth of a cold start.
            BlockDriver::VirtioScsi | BlockDriver::VirtioBlk => spec::BlockDriver::VirtioBlk,
            BlockDriver::Nvdimm => spec::BlockDriver::Nvdimm,
        },
        options: BlockOptions::new(access(configured), sectors, queues),
        threads: IoThreads::new(configured.enable_iothreads, configured.indep_iothreads)
            .map_err(unusable("indep_iothreads"))?,
    })
}

fn access(configured: &BlockDevices) -> Access {
    let cache = configured.cache.map(|BlockCache { direct, no_flush }| Cache { direct, no_flush });
    match (configured.aio, cache) {
        (BlockAio::Threads, None) => Access::Threads,
        (BlockAio::Threads, Some(cache)) => Access::CachedThreads(cache),
        (BlockAio::IoUring, None) => Access::IoUring,
        (BlockAio::IoUring, Some(cache)) => Access::CachedIoUring(cache),
        (BlockAio::Native, cache) => Access::Native { no_flush: cache.is_some_and(|cache| cache.no_flush) },
    }
}
