//! The board, its processors and its memory.

use super::{ImageEnd, Line, image};
use crate::accelerator::Accelerator;
use crate::device::{Blockdev, Object};
use crate::spec::{Backing, BlockDriver, Boot, Firmware, ImageDriver, Machine, VmSpec};

/// An emulated processor with everything QEMU can emulate, but for "fast" string instructions: Linux copies memory by
/// them where it finds them, and TCG moves each byte by itself. Streams are twice as fast without.
const EMULATED: &str = "max,erms=off,fsrm=off";

pub(super) fn board(line: &mut Line, spec: &VmSpec, guest_image: Option<ImageEnd>) {
    let Machine::Q35(options) = &spec.machine;
    let (accelerator, cpu) = match spec.accelerator {
        Accelerator::Kvm => ("kvm", "host"),
        Accelerator::Tcg => ("tcg", EMULATED),
    };
    let mut machine = format!("q35,accel={accelerator},memory-backend=memory0");
    if spec.iommu && spec.accelerator == Accelerator::Kvm {
        // Interrupts are remapped by QEMU, which therefore has to see them.
        machine.push_str(",kernel_irqchip=split");
    }
    if has_nvdimms(spec) {
        machine.push_str(",nvdimm=on");
    }
    match &spec.firmware {
        Firmware::BuiltIn => {}
        Firmware::Bios(path) => line.option("-bios", path),
        Firmware::Flash { code, variables } => {
            for (id, path) in
                ["pflash0", "pflash1"].into_iter().zip([Some(code), variables.as_ref()].into_iter().flatten())
            {
                line.json("-blockdev", &Blockdev::read_only_file(id, path));
                machine.push_str(&format!(",{id}={id}"));
            }
        }
    }
    options.iter().for_each(|option| machine.extend([",", option]));
    line.option("-machine", machine);
    let mut model = cpu.to_owned();
    spec.cpu_features.iter().for_each(|feature| model.extend([",", feature]));
    line.option("-cpu", model);
    let max = spec.vcpus.max();
    line.option("-smp", format!("{},cores=1,threads=1,sockets={max},maxcpus={max}", spec.vcpus.boot()));
    line.option("-m", memory(spec, guest_image));
    line.object(&memory_backend(spec));
    line.option("-rtc", "base=utc,driftfix=slew,clock=host");
    if spec.accelerator == Accelerator::Kvm {
        line.option("-global", "kvm-pit.lost_tick_policy=discard");
    }
}

fn has_nvdimms(spec: &VmSpec) -> bool {
    let image = matches!(spec.boot, Boot::Image { driver: ImageDriver::Nvdimm, .. });
    image || spec.block.driver == BlockDriver::Nvdimm
}

/// Memory at boot, and address space with slots for what comes on top: more memory, and files that are memory.
fn memory(spec: &VmSpec, guest_image: Option<ImageEnd>) -> String {
    let mib = spec.memory.mib();
    let (slots, max_mib) = spec.memory.growth().unwrap_or((0, mib));
    let (image_slots, image_mib) = image::room(&spec.boot, guest_image);
    // QEMU has 256.
    let slots = (slots + image_slots).min(256);
    let max_mib = max_mib + spec.memory.room_mib() + image_mib;
    match (slots, max_mib > mib) {
        (_, false) => format!("{mib}M"),
        (0, true) => format!("{mib}M,maxmem={max_mib}M"),
        (_, true) => format!("{mib}M,slots={slots},maxmem={max_mib}M"),
    }
}

fn memory_backend(spec: &VmSpec) -> Object {
    let (id, size, share, prealloc) = ("memory0", spec.memory.bytes(), true, spec.prealloc);
    match &spec.backing {
        Backing::Directory(directory) => {
            let mem_path = directory.to_string_lossy().into_owned();
            Object::MemoryBackendFile { id, size, mem_path, share, prealloc }
        }
        backing => {
            let hugetlb = *backing == Backing::HugePages;
            Object::MemoryBackendMemfd { id, size, share, hugetlb, prealloc }
        }
    }
}
