//! The board, its processors and its memory.

use std::os::fd::RawFd;

use super::{ImageEnd, Line, image, protection};
use crate::accelerator::Accelerator;
use crate::device::{Blockdev, Near, Object};
use crate::spec::{Firmware, Machine, NumaNode, Origin, Protection, Restore, VmSpec};

/// An emulated processor with everything QEMU can emulate, but for "fast" string instructions: Linux copies memory by
/// them where it finds them, and TCG moves each byte by itself. Streams are twice as fast without.
const EMULATED: &str = "max,erms=off,fsrm=off";

/// QEMU's small firmware for the board microvm, which every QEMU brings along. SeaBIOS, the default of most, puts the ACPI
/// tables at the end of memory, where QEMU has the initrd end: the last bytes of some lie over them, and the guest then
/// finds no devices.
const QBOOT: &str = "qboot.rom";

/// The memory of a board without nodes.
const MEMORY: &str = "memory0";

pub(super) fn board(
    line: &mut Line,
    spec: &VmSpec,
    guest_image: Option<ImageEnd>,
    memory_file: Option<RawFd>,
) {
    machine(line, spec);
    let mut model = cpu(spec).to_owned();
    spec.cpu_features.iter().for_each(|feature| model.extend([",", feature]));
    line.option("-cpu", model);
    let max = spec.vcpus.max();
    line.option("-smp", format!("{},cores=1,threads=1,sockets={max},maxcpus={max}", spec.vcpus.boot()));
    line.option("-m", memory(spec, guest_image));
    match memory_file {
        Some(fd) => line.object(&in_file(spec, fd)),
        None => backends(line, spec),
    }
    // Clocks that x86 alone has.
    if matches!(spec.machine, Machine::Virt(_)) {
        line.option("-rtc", "base=utc,clock=host");
        return;
    }
    line.option("-rtc", "base=utc,driftfix=slew,clock=host");
    if spec.accelerator == Accelerator::Kvm {
        line.option("-global", "kvm-pit.lost_tick_policy=discard");
    }
}

fn machine(line: &mut Line, spec: &VmSpec) {
    let board = match (&spec.machine, spec.accelerator) {
        (Machine::Q35(_), _) => "q35",
        (Machine::Virt(_), Accelerator::Kvm) => "virt,gic-version=host",
        (Machine::Virt(_), Accelerator::Tcg) => "virt,gic-version=max",
        // ACPI is how a guest finds the devices: kernels of distributions are built without the words of their command
        // line that could tell them. The serial port is a device like the others.
        (Machine::Microvm(_), _) => "microvm,acpi=on,isa-serial=off",
    };
    if matches!(spec.machine, Machine::Microvm(_)) {
        // Some of the devices know nothing but virtio 1.0.
        line.option("-global", "virtio-mmio.force-legacy=false");
    }
    let mut machine = board.to_owned();
    if spec.numa.is_none() {
        machine.push_str(&format!(",memory-backend={MEMORY}"));
    }
    if let Some(protection) = &spec.protection {
        protection::object(line, protection);
        machine.push_str(&format!(",confidential-guest-support={}", protection::ID));
    }
    if spec.protection.is_some() || spec.iommu && spec.accelerator == Accelerator::Kvm {
        // Interrupts are remapped by QEMU, which therefore has to see them; or the kernel has no say in them.
        machine.push_str(",kernel_irqchip=split");
    }
    if let Some(epc) = spec.sgx_epc {
        line.object(&Object::MemoryBackendEpc { id: "epc0", size: epc.bytes(), prealloc: true });
        machine.push_str(",sgx-epc.0.memdev=epc0,sgx-epc.0.node=0");
    }
    if spec.has_nvdimms() {
        machine.push_str(",nvdimm=on");
    }
    firmware(line, spec, &mut machine);
    spec.machine.options().iter().for_each(|option| machine.extend([",", option]));
    line.option("-accel", accelerator(spec.accelerator));
    line.option("-machine", machine);
}

/// Emulated processors take turns on one thread: on threads of their own, one may run what another has just rewritten
/// (decision 0019).
fn accelerator(accelerator: Accelerator) -> &'static str {
    match accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "tcg,thread=single",
    }
}

fn cpu(spec: &VmSpec) -> &'static str {
    match (spec.accelerator, &spec.machine) {
        // What the processor's firmware lets a guest believe in is less than what the host has.
        (Accelerator::Kvm, _) if matches!(spec.protection, Some(Protection::Snp { .. })) => "EPYC-v4",
        (Accelerator::Kvm, _) => "host",
        (Accelerator::Tcg, Machine::Virt(_)) => "max",
        (Accelerator::Tcg, Machine::Q35(_) | Machine::Microvm(_)) => EMULATED,
    }
}

/// Flash memory is a property of the board.
fn firmware(line: &mut Line, spec: &VmSpec, machine: &mut String) {
    match &spec.firmware {
        Firmware::BuiltIn if matches!(spec.machine, Machine::Microvm(_)) => line.option("-bios", QBOOT),
        Firmware::BuiltIn => {}
        Firmware::Bios(path) => line.option("-bios", path),
        Firmware::Flash { code, variables } => {
            let files = [Some(code), variables.as_ref()].into_iter().flatten();
            for (id, path) in ["pflash0", "pflash1"].into_iter().zip(files) {
                line.json("-blockdev", &Blockdev::read_only_file(id, path));
                machine.push_str(&format!(",{id}={id}"));
            }
        }
    }
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

/// The memory of a template, or of a copy, which may have pages of its own of the template's. QEMU leaves memory out of a
/// machine's state where that is in a file of some name, so a file without one is given by descriptor too.
fn in_file(spec: &VmSpec, fd: RawFd) -> Object {
    let of_its_own = matches!(spec.origin, Origin::Copy { restore: Restore::CopyOnWrite, .. });
    Object::File {
        id: MEMORY.into(),
        size: spec.memory.bytes(),
        mem_path: format!("/proc/self/fd/{fd}"),
        share: !of_its_own,
        readonly: false,
    }
}

/// The memory the machine starts with: one backend for the board, or one for each node.
fn backends(line: &mut Line, spec: &VmSpec) {
    let Some(numa) = &spec.numa else {
        return line.object(&Object::memory(
            MEMORY.into(),
            spec.memory.bytes(),
            &spec.backing,
            spec.prealloc,
        ));
    };
    for (number, NumaNode { host, cpus, mib }) in numa.nodes(spec.vcpus, spec.memory).into_iter().enumerate()
    {
        let id = format!("memory{number}");
        let near = Some(Near::to(host));
        line.object(&Object::memory_near(id.clone().into(), mib << 20, &spec.backing, spec.prealloc, near));
        let cpus = match cpus.end - cpus.start {
            0 => String::new(),
            _ => format!("cpus={}-{},", cpus.start, cpus.end - 1),
        };
        line.option("-numa", format!("node,nodeid={number},{cpus}memdev={id}"));
    }
    for (from, to, far) in numa.distances() {
        line.option("-numa", format!("dist,src={from},dst={to},val={far}"));
    }
}
