//! What block devices that come later are driven by.

use super::Line;
use crate::device::{Device, Object};
use crate::spec::{Block, BlockDriver, IoThreads};

/// The threads that devices may be put on, and the controller that SCSI disks come to.
pub(super) fn controller(line: &mut Line, block: &Block) {
    let (threads, queues) = (block.threads, block.options.queues());
    let own = threads.own().then_some(IoThreads::OWN);
    for id in own.map(str::to_owned).into_iter().chain(threads.independent()) {
        line.object(&Object::Iothread { id });
    }
    if block.driver == BlockDriver::VirtioScsi {
        line.device(&Device::VirtioScsiPci {
            id: "scsi0",
            num_queues: queues.count(),
            virtqueue_size: queues.size(),
            iothread: own,
        });
    }
}
