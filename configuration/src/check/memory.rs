//! How big the virtual machine is.

use std::fs;

use vmm::spec::{CpuFeatures, Numa};

use super::Checker;
use crate::host::TRANSLATED_BITS;
use crate::raw::RawHypervisor;

const MEMORY: &str = "hypervisor.qemu.default_memory";
const PREALLOC: &str = "hypervisor.qemu.enable_mem_prealloc";
const HUGE_PAGES: &str = "hypervisor.qemu.enable_hugepages";
const MAX_MEMORY: &str = "hypervisor.qemu.default_maxmemory";
const OFFSET: &str = "hypervisor.qemu.memory_offset";
const VCPUS: &str = "hypervisor.qemu.default_vcpus";
const MAX_VCPUS: &str = "hypervisor.qemu.default_maxvcpus";

/// Less does not boot a usual guest.
const LEAST_MEMORY_MIB: u32 = 256;
/// More than QEMU's boards were made for.
const MOST_VCPUS: u32 = 240;

/// The sizes of a virtual machine, in CPUs and MiB.
pub(super) struct Size {
    pub(super) vcpus: u32,
    pub(super) max_vcpus: u32,
    pub(super) memory_mib: u32,
    pub(super) slots: u32,
    pub(super) max_memory_mib: u64,
}

impl Checker<'_> {
    pub(super) fn size(&mut self, raw: &RawHypervisor) -> Size {
        let (vcpus, max_vcpus) = self.vcpus(raw);
        let memory_mib = self.memory(raw);
        self.host_can_give(raw, memory_mib);
        let slots = if raw.memory_slots == 0 { 10 } else { raw.memory_slots };
        Size { vcpus, max_vcpus, memory_mib, slots, max_memory_mib: self.max_memory(raw, memory_mib, slots) }
    }

    fn vcpus(&mut self, raw: &RawHypervisor) -> (u32, u32) {
        let host = self.host.cpus;
        let most = host.min(MOST_VCPUS);
        let vcpus = match raw.default_vcpus {
            0.0 => 1,
            // Below `most`, so nothing but the fraction is cut off.
            asked if asked > 0.0 && asked < f64::from(most) => asked.ceil() as u32,
            _ => most,
        };
        let max_vcpus = if raw.default_maxvcpus == 0 { most } else { raw.default_maxvcpus.min(most) };
        self.pods_vcpus(raw, max_vcpus, most);
        if max_vcpus < vcpus && self.sound(&[VCPUS, MAX_VCPUS]) {
            let what = format!(
                "{max_vcpus} is below default_vcpus, which is {vcpus}; raise it, or set 0 for all of the host's"
            );
            self.problem(MAX_VCPUS, what);
        }
        (vcpus, max_vcpus.max(vcpus))
    }

    /// What a pod may not have is refused: whoever made it cannot see the files that would cut it down.
    fn pods_vcpus(&mut self, raw: &RawHypervisor, max_vcpus: u32, most: u32) {
        let asked = raw.default_vcpus;
        if self.is_annotated(MAX_VCPUS) && raw.default_maxvcpus > most {
            let what = format!(
                "{} is more than the {most} there can be; ask for at most that",
                raw.default_maxvcpus
            );
            self.problem(MAX_VCPUS, what);
        }
        if self.is_annotated(VCPUS) && !(0.0..=f64::from(max_vcpus)).contains(&asked) {
            let what = format!(
                "{asked} is not within 0 and default_maxvcpus, which is {max_vcpus}; ask for at most that"
            );
            self.problem(VCPUS, what);
        }
    }

    fn memory(&mut self, raw: &RawHypervisor) -> u32 {
        match raw.default_memory {
            0 => 2048,
            asked if asked < LEAST_MEMORY_MIB => {
                let what = format!(
                    "{asked} MiB is below the minimum; set at least {LEAST_MEMORY_MIB}, or 0 for 2048"
                );
                self.problem(MEMORY, what);
                LEAST_MEMORY_MIB
            }
            asked => asked,
        }
    }

    fn max_memory(&mut self, raw: &RawHypervisor, memory_mib: u32, slots: u32) -> u64 {
        let (asked, memory) = (raw.default_maxmemory, u64::from(memory_mib));
        let room = self.addressable(raw, slots);
        let host = self.host.memory_mib.min(room);
        let limit = if asked == 0 { host } else { asked.min(host) };
        if self.is_annotated(MEMORY) && memory > limit {
            let what =
                format!("{memory} MiB is above default_maxmemory, which is {limit}; ask for at most that");
            self.problem(MEMORY, what);
        }
        if asked != 0 && asked < memory && self.sound(&[MEMORY, MAX_MEMORY]) {
            let what = format!(
                "{asked} MiB is below default_memory, which is {memory}; raise it, or set 0 for all of the host's"
            );
            self.problem(MAX_MEMORY, what);
        }
        if memory > room && self.sound(&[MEMORY]) {
            let what = format!(
                "{memory} MiB are more than the {room} that the guest's processors can address; lower it"
            );
            self.problem(MEMORY, what);
        }
        self.offset(raw, memory_mib, limit, room);
        limit.max(memory)
    }

    /// What is wrong with the one size is no reason to say nothing of this.
    fn offset(&mut self, raw: &RawHypervisor, memory_mib: u32, limit: u64, room: u64) {
        let memory = if self.sound(&[MEMORY]) { memory_mib.into() } else { 0 };
        let limit = if self.sound(&[MAX_MEMORY]) { limit } else { 0 };
        let (most, offset) = (limit.max(memory), u64::from(raw.memory_offset));
        if most + offset > room && self.sound(&[OFFSET]) {
            let what = format!(
                "{offset} MiB on top of the {most} of default_maxmemory are more than the {room} that the guest's \
                 processors can address; lower it"
            );
            self.problem(OFFSET, what);
        }
    }

    /// MiB of memory that the guest's processors can address: less what the board leaves for devices, up to 4 GiB and
    /// 32 GiB above all memory, an image that may be memory, and 1 GiB to align each slot. Up to 40 bits the last 12 GiB are not memory on AMD's
    /// processors, one of which is the translator's. So do QEMU 7.2 and 10.0 count.
    fn addressable(&self, raw: &RawHypervisor, slots: u32) -> u64 {
        let asked = CpuFeatures::parse(&raw.cpu_features).ok().and_then(|features| features.address_bits());
        let bits =
            if self.translated(raw) { TRANSLATED_BITS } else { asked.unwrap_or(self.host.address_bits) };
        let gib = match bits.clamp(36, 63) {
            bits @ ..=TRANSLATED_BITS => (1 << (bits - 30)).min(1012),
            bits => 1 << (bits - 30),
        };
        let slots = u64::from(slots);
        (gib - 36_u64.min(gib / 2)).saturating_sub(slots + image_gib(raw)).max(1) << 10
    }

    /// Warns of memory that the host cannot give when it is asked to.
    fn host_can_give(&mut self, raw: &RawHypervisor, memory_mib: u32) {
        let host = self.host.memory_mib;
        if raw.enable_mem_prealloc && u64::from(memory_mib) > host && self.sound(&[MEMORY]) {
            let what = format!(
                "takes all {memory_mib} MiB of default_memory at the start, and the host has {host}; lower that"
            );
            self.warning(PREALLOC, what);
        }
    }

    /// QEMU divides the memory evenly among NUMA nodes, and the kernel gives huge pages as a whole. Returns what memory
    /// is to be a multiple of.
    pub(super) fn whole_huge_pages(
        &mut self,
        raw: &RawHypervisor,
        memory_mib: u32,
        numa: Option<&Numa>,
    ) -> u64 {
        let page = (self.host.huge_page_kib >> 10).max(1);
        if !raw.enable_hugepages || page == 1 {
            return 1;
        }
        let nodes = numa.map_or(1, Numa::count);
        let (step, memory) = (page * nodes, u64::from(memory_mib));
        if !memory.is_multiple_of(step) && self.sound(&[MEMORY, HUGE_PAGES]) {
            let what = format!(
                "{memory} MiB are no whole huge pages, of {page} MiB, in each of {nodes} NUMA nodes; set a multiple of \
                 {step}, or unset enable_hugepages"
            );
            self.problem(MEMORY, what);
        }
        step
    }

    /// QEMU has an initial RAM file system below the end of the memory, and some more below that end; and no higher
    /// than x86's protocol of boot reaches.
    pub(super) fn unpacks(&mut self, key: &str, size: u64, memory_mib: u32) -> Result<(), String> {
        const HIGHEST: u64 = 2 << 30;
        const ABOVE: u64 = 1 << 20;
        // How much memory is meant is not known where that is wrong; there is a limit all the same.
        let memory = if self.sound(&[MEMORY]) { u64::from(memory_mib) << 20 } else { HIGHEST };
        if size < memory.min(HIGHEST) - ABOVE || !self.sound(&[key]) {
            return Ok(());
        }
        Err(match memory {
            ..HIGHEST => too_big(memory_mib),
            _ => "larger than the 2047 MiB that QEMU takes; set the path of a smaller one".to_owned(),
        })
    }

    /// An image is only read through the guest's memory.
    pub(super) fn fits_memory(&self, key: &str, size: u64, memory_mib: u32) -> Result<(), String> {
        let fits = size < u64::from(memory_mib) << 20 || !self.sound(&[MEMORY, key]);
        if fits { Ok(()) } else { Err(too_big(memory_mib)) }
    }
}

/// The most memory that is whole steps above what the machine starts with.
pub(super) fn whole(memory_mib: u32, most_mib: u64, step_mib: u64) -> u64 {
    let memory = u64::from(memory_mib);
    memory + most_mib.saturating_sub(memory) / step_mib * step_mib
}

/// GiB of address space for an image, and to align it. One that is not there is another check's matter.
fn image_gib(raw: &RawHypervisor) -> u64 {
    let image = raw.image.as_ref().and_then(|path| fs::metadata(path).ok());
    let size = image.filter(fs::Metadata::is_file).map(|image| image.len());
    size.map_or(0, |size| size.div_ceil(1 << 30) + 1)
}

/// Not how big: a pod that names a file by an annotation is not to learn that.
fn too_big(memory_mib: u32) -> String {
    format!("does not fit into default_memory, which is {memory_mib} MiB; raise that")
}
