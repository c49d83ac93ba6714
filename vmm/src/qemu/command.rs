//! The command line of QEMU 7.2 to 10: a pure function of the specification and the numbers of the descriptors that
//! QEMU inherits.

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::path::Path;

use serde::Serialize;

use crate::accelerator::Accelerator;
use crate::device::{Blockdev, Chardev, Device, Fsdev, Object};
use crate::kernel_params;
use crate::spec::{
    Boot, Console, EXTRA_MONITOR, ExtraMonitor, FIRST_BRIDGE, Machine, PciPlaces, Tag, VIRTIO_MEM, VirtioMem,
    VmSpec, Window,
};

/// What is there for QEMU to connect to, by the descriptors it inherits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inherited<'a> {
    /// A connected socket for the monitor.
    pub(crate) qmp: RawFd,
    /// A connected socket for the guest's console.
    pub(crate) console: RawFd,
    /// The guest image, open for reading, where there is one.
    pub(crate) image: Option<RawFd>,
    /// The shared directory, where there is one.
    pub(crate) share: Option<ShareEnd<'a>>,
    /// The vsock's back end.
    pub(crate) vsock: VsockEnd,
}

/// The back end of a shared directory.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ShareEnd<'a> {
    /// A socket connected to the daemon.
    VirtioFs { tag: &'a Tag, queue_size: u16, fd: RawFd },
    /// The directory itself.
    Virtio9p { tag: &'a Tag, source: &'a Path },
}

/// The back end of a vsock.
#[derive(Debug, Clone, Copy)]
pub(crate) enum VsockEnd {
    /// `/dev/vhost-vsock`, on which the guest's address is taken.
    Vhost { fd: RawFd, cid: u32 },
    /// A socket connected to the device.
    VhostUser { fd: RawFd },
}

/// An emulated processor with everything QEMU can emulate, but for "fast" string instructions: Linux copies memory by
/// them where it finds them, and TCG moves each byte by itself. Streams are twice as fast without.
const EMULATED: &str = "max,erms=off,fsrm=off";

const ROOT_BUS: &str = "pcie.0";

/// QEMU's arguments. The processors do not run until they are told to.
pub(crate) fn render(spec: &VmSpec, inherited: &Inherited<'_>) -> Vec<OsString> {
    let mut line = Line::default();
    line.option("-name", spec.name.as_str());
    line.option("-uuid", spec.uuid.as_str());
    for knob in ["-no-user-config", "-nodefaults", "-no-reboot", "-S"] {
        line.flag(knob);
    }
    line.option("-display", "none");
    if let Some(filter) = &spec.seccomp {
        line.option("-sandbox", filter);
    }
    board(&mut line, spec);
    if spec.iommu {
        // Before every device that is behind it.
        line.device(&Device::IntelIommu {
            id: "iommu0",
            intremap: "on",
            device_iotlb: true,
            caching_mode: true,
        });
    }
    places(&mut line, spec.pci);
    if let Some(size) = spec.virtio_mem() {
        virtio_mem(&mut line, spec, size);
    }
    line.chardev(&Chardev { id: "qmp0", fd: inherited.qmp });
    line.option("-mon", "chardev=qmp0,mode=control");
    if let Some(kind) = spec.extra_monitor {
        extra_monitor(&mut line, kind);
    }
    console(&mut line, spec.console, inherited.console);
    random(&mut line, spec);
    if let Some(fd) = inherited.image {
        disk(&mut line, fd);
    }
    if let Some(share) = inherited.share {
        shared_directory(&mut line, share);
    }
    vsock(&mut line, inherited.vsock);
    kernel(&mut line, spec);
    line.0
}

fn board(line: &mut Line, spec: &VmSpec) {
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
    options.iter().for_each(|option| machine.extend([",", option]));
    line.option("-machine", machine);
    let mut model = cpu.to_owned();
    spec.cpu_features.iter().for_each(|feature| model.extend([",", feature]));
    line.option("-cpu", model);
    let max = spec.vcpus.max();
    line.option("-smp", format!("{},cores=1,threads=1,sockets={max},maxcpus={max}", spec.vcpus.boot()));
    let mut memory = format!("{}M", spec.memory.mib());
    if let Some((slots, max_mib)) = spec.memory.growth() {
        memory.push_str(&format!(",slots={slots},maxmem={max_mib}M"));
    }
    line.option("-m", memory);
    line.object(&Object::memory("memory0".into(), spec.memory.bytes(), &spec.backing, spec.prealloc));
    line.option("-rtc", "base=utc,driftfix=slew,clock=host");
    if spec.accelerator == Accelerator::Kvm {
        line.option("-global", "kvm-pit.lost_tick_policy=discard");
    }
}

/// Before every other device: those have no place of their own and take the first that is free.
fn places(line: &mut Line, pci: PciPlaces) {
    for number in 0..pci.bridges() {
        line.device(&Device::PciBridge {
            id: format!("pci-bridge-{number}"),
            bus: ROOT_BUS,
            addr: format!("{:x}", u32::from(FIRST_BRIDGE) + number),
            chassis_nr: number + 1,
            shpc: false,
            io_reserve: 4 << 10,
            mem_reserve: 1 << 20,
            pref64_reserve: 1 << 20,
        });
    }
    let Window { mem, pref64 } = pci.window();
    for number in 0..pci.root_ports() {
        line.device(&Device::PcieRootPort {
            id: format!("rp{number}"),
            bus: ROOT_BUS,
            chassis: 0,
            slot: number,
            mem_reserve: mem,
            pref64_reserve: pref64,
        });
    }
}

fn virtio_mem(line: &mut Line, spec: &VmSpec, size: VirtioMem) {
    // Never all of it at once, whatever the operator wants for the memory of the boot.
    line.object(&Object::memory("virtiomem".into(), size.mib << 20, &spec.backing, false));
    line.device(&Device::VirtioMemPci { id: VIRTIO_MEM, memdev: "virtiomem", requested_size: 0 });
}

/// QEMU makes the socket in its working directory, by the umask it has for itself alone.
fn extra_monitor(line: &mut Line, kind: ExtraMonitor) {
    line.option("-chardev", format!("socket,id=monitor1,path={EXTRA_MONITOR},server=on,wait=off"));
    line.option(
        "-mon",
        match kind {
            ExtraMonitor::Hmp => "chardev=monitor1,mode=readline",
            ExtraMonitor::Qmp => "chardev=monitor1,mode=control",
            ExtraMonitor::QmpPretty => "chardev=monitor1,mode=control,pretty=on",
        },
    );
}

fn console(line: &mut Line, kind: Console, fd: RawFd) {
    line.chardev(&Chardev { id: "charconsole0", fd });
    match kind {
        Console::Virtio => {
            line.device(&Device::VirtioSerialPci { id: "serial0" });
            line.device(&Device::Virtconsole { id: "console0", chardev: "charconsole0" });
        }
        Console::Serial => line.device(&Device::IsaSerial { id: "console0", chardev: "charconsole0" }),
    }
}

fn random(line: &mut Line, spec: &VmSpec) {
    line.object(&Object::RngRandom { id: "rng0", filename: spec.entropy.to_string_lossy().into_owned() });
    line.device(&Device::VirtioRngPci { id: "virtio-rng0", rng: "rng0" });
}

/// The image by descriptor: its path may hold anything, and QEMU has no more access to it than the descriptor.
fn disk(line: &mut Line, fd: RawFd) {
    line.option("-add-fd", format!("fd={fd},set=1"));
    line.json("-blockdev", &Blockdev::read_only_image("image0", 1));
    line.device(&Device::VirtioBlkPci {
        id: "disk0".into(),
        drive: "image0".into(),
        config_wce: false,
        share_rw: true,
        serial: "image0".into(),
        place: None,
    });
}

fn shared_directory(line: &mut Line, share: ShareEnd<'_>) {
    match share {
        ShareEnd::VirtioFs { tag, queue_size, fd } => {
            line.chardev(&Chardev { id: "charfs0", fd });
            line.device(&Device::VhostUserFsPci {
                id: "fs0",
                chardev: "charfs0",
                tag: tag.to_string(),
                queue_size,
            });
        }
        ShareEnd::Virtio9p { tag, source } => {
            line.option("-fsdev", Fsdev { id: "fsdev0", path: source }.option());
            line.device(&Device::Virtio9pPci { id: "fs0", fsdev: "fsdev0", mount_tag: tag.to_string() });
        }
    }
}

fn vsock(line: &mut Line, end: VsockEnd) {
    match end {
        VsockEnd::Vhost { fd, cid } => {
            line.device(&Device::VhostVsockPci { id: "vsock0", guest_cid: cid, vhostfd: fd.to_string() });
        }
        VsockEnd::VhostUser { fd } => {
            line.chardev(&Chardev { id: "charvsock0", fd });
            line.device(&Device::VhostUserVsockPci { id: "vsock0", chardev: "charvsock0" });
        }
    }
}

fn kernel(line: &mut Line, spec: &VmSpec) {
    if let Some(firmware) = &spec.firmware {
        line.option("-bios", firmware);
    }
    line.option("-kernel", &spec.kernel);
    if let Boot::Initrd(initrd) = &spec.boot {
        line.option("-initrd", initrd);
    }
    line.option("-append", kernel_params::command_line(spec));
}

/// A command line in the making.
#[derive(Default)]
struct Line(Vec<OsString>);

impl Line {
    fn flag(&mut self, name: &str) {
        self.0.push(name.into());
    }

    fn option(&mut self, name: &str, value: impl AsRef<OsStr>) {
        self.0.extend([name.into(), value.as_ref().to_owned()]);
    }

    fn json(&mut self, name: &str, value: &impl Serialize) {
        // Strings, numbers and booleans under fixed names: nothing that JSON could not hold.
        self.option(name, serde_json::to_string(value).unwrap_or_default());
    }

    fn chardev(&mut self, chardev: &Chardev) {
        self.option("-chardev", chardev.option());
    }

    fn object(&mut self, object: &Object) {
        self.json("-object", object);
    }

    fn device(&mut self, device: &Device) {
        self.json("-device", device);
    }
}
