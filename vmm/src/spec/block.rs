//! Block devices that come later: who drives them, and how they are read and written.

use super::error::SpecError;

/// Most threads beside the SCSI controller's own.
const MOST_IO_THREADS: u32 = 64;
/// A queue's size is a power of two, for virtio; QEMU takes no larger and no smaller one.
const QUEUE_SIZES: std::ops::RangeInclusive<u16> = 4..=1024;
/// Most queues of a virtio device, less the SCSI controller's two for control and events.
const MOST_QUEUES: u16 = 1022;

/// What a machine has for block devices that come later.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Block {
    /// Who drives them.
    pub driver: BlockDriver,
    /// How they are read and written.
    pub options: BlockOptions,
    /// Who does the reading and writing, where QEMU's main thread should not.
    pub threads: IoThreads,
}

/// Who drives a block device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BlockDriver {
    /// The SCSI controller `scsi0`, which the machine has from the start.
    #[default]
    VirtioScsi,
    /// Each device for itself.
    VirtioBlk,
    /// Each device as memory, which the guest maps.
    Nvdimm,
}

/// Threads that do the reading and writing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IoThreads {
    own: bool,
    independent: u32,
}

impl IoThreads {
    /// The one of the SCSI controller.
    pub const OWN: &str = "iothread0";

    /// `own`, one for the SCSI controller, and `independent` ones for whatever device is put on them.
    pub fn new(own: bool, independent: u32) -> Result<IoThreads, SpecError> {
        if independent <= MOST_IO_THREADS {
            return Ok(IoThreads { own, independent });
        }
        Err(SpecError::IoThreads(independent))
    }

    /// Whether the SCSI controller has one.
    #[must_use]
    pub fn own(self) -> bool {
        self.own
    }

    /// The ids of the others.
    pub fn independent(self) -> impl Iterator<Item = String> {
        (0..self.independent).map(|number| format!("indep-iothread{number}"))
    }
}

/// How block devices are read and written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BlockOptions {
    access: Access,
    sectors: Sectors,
    queues: Queues,
}

impl BlockOptions {
    /// Puts together what was checked.
    #[must_use]
    pub fn new(access: Access, sectors: Sectors, queues: Queues) -> BlockOptions {
        BlockOptions { access, sectors, queues }
    }

    /// How the host's file or device is accessed.
    #[must_use]
    pub fn access(self) -> Access {
        self.access
    }

    /// The sectors the guest sees.
    #[must_use]
    pub fn sectors(self) -> Sectors {
        self.sectors
    }

    /// The queues of a device.
    #[must_use]
    pub fn queues(self) -> Queues {
        self.queues
    }
}

/// How the host's file or device is accessed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Access {
    /// By threads of QEMU's.
    #[default]
    Threads,
    /// The same, with the cache set.
    CachedThreads(Cache),
    /// By io_uring.
    IoUring,
    /// The same, with the cache set.
    CachedIoUring(Cache),
    /// By Linux AIO, which QEMU takes only past the host's page cache.
    Native {
        /// The guest's flushes are ignored.
        no_flush: bool,
    },
}

impl Access {
    /// `aio` is QEMU's word for it.
    #[must_use]
    pub fn aio(self) -> &'static str {
        match self {
            Access::Threads | Access::CachedThreads(_) => "threads",
            Access::IoUring | Access::CachedIoUring(_) => "io_uring",
            Access::Native { .. } => "native",
        }
    }

    /// The cache, where it is set.
    #[must_use]
    pub fn cache(self) -> Option<Cache> {
        match self {
            Access::Threads | Access::IoUring => None,
            Access::CachedThreads(cache) | Access::CachedIoUring(cache) => Some(cache),
            Access::Native { no_flush } => Some(Cache { direct: true, no_flush }),
        }
    }
}

/// What is done with the host's page cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cache {
    /// It is bypassed.
    pub direct: bool,
    /// The guest's flushes are ignored.
    pub no_flush: bool,
}

/// The sizes of sectors that a guest sees, in bytes; 0 where the host's file or device decides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sectors {
    logical: u32,
    physical: u32,
}

impl Sectors {
    /// Each a power of two from 512 to 65536 or 0, and the logical one no larger than the physical one. A logical size
    /// without a physical one is both: QEMU would take 512 for the other and refuse it.
    pub fn new(logical: u32, physical: u32) -> Result<Sectors, SpecError> {
        let usable = |size: u32| size == 0 || size.is_power_of_two() && (512..=65536).contains(&size);
        let physical = if physical == 0 { logical } else { physical };
        if usable(logical) && usable(physical) && logical <= physical {
            return Ok(Sectors { logical, physical });
        }
        Err(SpecError::Sectors { logical, physical })
    }

    /// What the guest addresses.
    #[must_use]
    pub fn logical(self) -> Option<u32> {
        (self.logical > 0).then_some(self.logical)
    }

    /// What the medium writes at once.
    #[must_use]
    pub fn physical(self) -> Option<u32> {
        (self.physical > 0).then_some(self.physical)
    }
}

/// Queues of a block device or of the SCSI controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queues {
    count: u16,
    size: u16,
}

impl Default for Queues {
    fn default() -> Queues {
        Queues { count: 1, size: 128 }
    }
}

impl Queues {
    /// `count` queues of `size` descriptors, a power of two.
    pub fn new(count: u32, size: u32) -> Result<Queues, SpecError> {
        let refuse = SpecError::Queues { count, size };
        let (Ok(count), Ok(size)) = (u16::try_from(count), u16::try_from(size)) else { return Err(refuse) };
        if (1..=MOST_QUEUES).contains(&count) && QUEUE_SIZES.contains(&size) && size.is_power_of_two() {
            return Ok(Queues { count, size });
        }
        Err(refuse)
    }

    /// How many.
    #[must_use]
    pub fn count(self) -> u16 {
        self.count
    }

    /// Descriptors in each.
    #[must_use]
    pub fn size(self) -> u16 {
        self.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a20_linux_aio_is_past_the_page_cache() {
        assert_eq!(Access::Native { no_flush: true }.cache(), Some(Cache { direct: true, no_flush: true }));
        assert_eq!(Access::IoUring.cache(), None);
    }

    #[test]
    fn a20_sectors_are_powers_of_two_and_fit_each_other() {
        for (logical, physical) in [(512, 0), (512, 4096), (4096, 4096), (0, 4096), (65536, 0)] {
            assert!(Sectors::new(logical, physical).is_ok(), "{logical} {physical}");
        }
        for (logical, physical) in [(256, 0), (4096, 512), (1000, 0), (0, 131_072), (u32::MAX, 0)] {
            assert!(Sectors::new(logical, physical).is_err(), "{logical} {physical}");
        }
        assert_eq!(Sectors::new(4096, 0).unwrap().physical(), Some(4096));
        assert_eq!(Sectors::default().logical(), None);
    }

    #[test]
    fn a20_queues_are_as_qemu_takes_them() {
        assert!(Queues::new(1022, 1024).is_ok());
        for (count, size) in [(0, 128), (1023, 128), (1, 2), (1, 100), (1, 2048), (65537, 128), (1, 65540)] {
            assert!(Queues::new(count, size).is_err(), "{count} {size}");
        }
        assert!(IoThreads::new(true, 65).is_err());
    }
}
