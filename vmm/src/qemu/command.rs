//! The command line of QEMU 7.2 to 10: a pure function of the specification and the numbers of the descriptors that
//! QEMU inherits.

mod block;
mod board;
mod image;
pub(super) mod places;
#[cfg(test)]
mod properties;
mod protection;
#[cfg(test)]
mod tests;
mod vfio;

use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::path::Path;

use serde::Serialize;

use crate::device::{Chardev, Device, Dialled, Fsdev, Netdev, Object, PciPlace};
use crate::kernel_params;
use crate::spec::{
    Boot, Console, ExtraMonitor, Machine, Origin, Tag, VIRTIO_MEM, VhostUser, VhostUserKind, VirtioFs,
    VirtioMem, VirtioPci, VmSpec,
};

pub(super) const SHARE: &str = "fs0";
pub(super) const SHARE_CHARDEV: &str = "charfs0";
pub(super) const VSOCK: &str = "vsock0";
pub(super) const VSOCK_CHARDEV: &str = "charvsock0";

/// What is there for QEMU to connect to, by the descriptors it inherits, and what only the host could tell.
#[derive(Debug, Clone)]
pub(crate) struct Inherited<'a> {
    /// A connected socket for the monitor.
    pub(crate) qmp: RawFd,
    /// A connected socket for the guest's console.
    pub(crate) console: RawFd,
    /// A socket that listens, for the second monitor.
    pub(crate) extra_monitor: Option<RawFd>,
    /// The guest image, where there is one.
    pub(crate) image: Option<ImageEnd>,
    /// The extension images, open for reading, in the specification's order.
    pub(crate) extensions: Vec<RawFd>,
    /// The shared directory, where there is one from the start.
    pub(crate) share: Option<ShareEnd<'a>>,
    /// The vsock's back end, unless it comes later.
    pub(crate) vsock: Option<VsockEnd>,
    /// The network interfaces that are there from the start.
    pub(crate) nics: Vec<NicEnd>,
    /// The file with the memory of a template, or with that of a copy.
    pub(crate) memory: Option<RawFd>,
    /// Ticks in a millisecond of the guest's clock, where it cannot measure them.
    pub(crate) ticks_per_ms: Option<u64>,
}

/// A guest image, open for reading.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ImageEnd {
    pub(crate) fd: RawFd,
    /// Bytes.
    pub(crate) size: u64,
}

/// The back end of a network interface: the queues of a tap, and as many of `/dev/vhost-net`, or none.
#[derive(Debug, Clone)]
pub(crate) struct NicEnd {
    pub(crate) queues: Vec<RawFd>,
    pub(crate) vhost: Vec<RawFd>,
    pub(crate) mac: [u8; 6],
}

/// The back end of a shared directory.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ShareEnd<'a> {
    /// A socket connected to the daemon.
    VirtioFs { tag: &'a Tag, fs: &'a VirtioFs, fd: RawFd },
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

/// QEMU's arguments. The processors do not run until they are told to.
pub(crate) fn render(spec: &VmSpec, inherited: &Inherited<'_>) -> Vec<OsString> {
    let virtio = spec.machine.capabilities().pci.then_some(spec.virtio);
    let mut line = Line { virtio, ..Line::default() };
    line.option("-name", spec.name.as_str());
    line.option("-uuid", spec.uuid.as_str());
    for knob in ["-no-user-config", "-nodefaults", "-no-reboot", "-S"] {
        line.flag(knob);
    }
    line.option("-display", "none");
    if let Some(filter) = &spec.seccomp {
        line.option("-sandbox", filter);
    }
    board::board(&mut line, spec, inherited.image, inherited.memory);
    if spec.iommu {
        // Before every device that is behind it.
        line.device(&Device::IntelIommu {
            id: "iommu0",
            intremap: "on",
            device_iotlb: true,
            caching_mode: true,
        });
    }
    places::places(&mut line, spec.pci);
    if spec.origin != Origin::Boot {
        places::late_ports(&mut line);
    }
    vfio::devices(&mut line, spec);
    if let Some(size) = spec.virtio_mem() {
        virtio_mem(&mut line, spec, size);
    }
    line.chardev(&Chardev { id: "qmp0", fd: inherited.qmp });
    line.option("-mon", "chardev=qmp0,mode=control");
    if let (Some(kind), Some(fd)) = (spec.extra_monitor, inherited.extra_monitor) {
        extra_monitor(&mut line, kind, fd);
    }
    console(&mut line, spec, inherited.console);
    random(&mut line, spec);
    if spec.panic_dump.is_some() {
        panic_told(&mut line, &spec.machine);
    }
    if spec.has_balloon() {
        line.device(&Device::VirtioBalloonPci {
            id: "balloon0",
            free_page_reporting: spec.reclaim_freed_memory,
            deflate_on_oom: true,
        });
    }
    block::controller(&mut line, &spec.block);
    image::image(&mut line, &spec.boot, inherited.image);
    image::extensions(&mut line, &spec.extensions, &inherited.extensions);
    if let Some(share) = inherited.share {
        shared_directory(&mut line, share);
    }
    if let Some(vsock) = inherited.vsock {
        self::vsock(&mut line, vsock);
    }
    for (number, nic) in inherited.nics.iter().enumerate() {
        self::nic(&mut line, number, nic);
    }
    for (number, device) in spec.vhost_user.iter().enumerate() {
        vhost_user(&mut line, number, device);
    }
    kernel(&mut line, spec, inherited.ticks_per_ms);
    if matches!(spec.origin, Origin::Copy { .. }) {
        line.option("-incoming", "defer");
    }
    line.arguments
}

fn virtio_mem(line: &mut Line, spec: &VmSpec, size: VirtioMem) {
    // Never all of it at once, whatever the operator wants for the memory of the boot.
    line.object(&Object::memory("virtiomem".into(), size.mib << 20, &spec.backing, false));
    line.device(&Device::VirtioMemPci { id: VIRTIO_MEM, memdev: "virtiomem", requested_size: 0 });
}

fn extra_monitor(line: &mut Line, kind: ExtraMonitor, fd: RawFd) {
    line.option("-chardev", format!("socket,id=monitor1,fd={fd},server=on,wait=off"));
    line.option(
        "-mon",
        match kind {
            ExtraMonitor::Hmp => "chardev=monitor1,mode=readline",
            ExtraMonitor::Qmp => "chardev=monitor1,mode=control",
            ExtraMonitor::QmpPretty => "chardev=monitor1,mode=control,pretty=on",
        },
    );
}

fn console(line: &mut Line, spec: &VmSpec, fd: RawFd) {
    line.chardev(&Chardev { id: "charconsole0", fd });
    match (spec.console, &spec.machine) {
        (Console::Virtio, _) => {
            line.device(&Device::VirtioSerialPci { id: "serial0" });
            line.device(&Device::Virtconsole { id: "console0", chardev: "charconsole0" });
        }
        // The serial port is part of the board.
        (Console::Serial, Machine::Virt(_)) => line.option("-serial", "chardev:charconsole0"),
        (Console::Serial, _) => line.device(&Device::IsaSerial { id: "console0", chardev: "charconsole0" }),
    }
}

/// A guest that panicked is halted rather than reset, so that its memory can be looked at.
fn panic_told(line: &mut Line, board: &Machine) {
    let id = "pvpanic0";
    line.device(&match board {
        Machine::Virt(_) => Device::PvpanicPci { id },
        Machine::Q35(_) | Machine::Microvm(_) => Device::Pvpanic { id },
    });
    line.option("-action", "panic=pause");
}

fn random(line: &mut Line, spec: &VmSpec) {
    line.object(&Object::RngRandom { id: "rng0", filename: spec.entropy.to_string_lossy().into_owned() });
    line.device(&Device::VirtioRngPci { id: "virtio-rng0", rng: "rng0" });
}

/// A share that virtiofsd serves.
pub(super) fn virtio_fs(tag: &Tag, fs: &VirtioFs, place: Option<PciPlace>) -> Device {
    Device::VhostUserFsPci {
        id: SHARE,
        chardev: SHARE_CHARDEV,
        tag: tag.to_string(),
        queue_size: fs.queue_size,
        cache_size: (fs.dax_mib > 0).then(|| u64::from(fs.dax_mib) << 20),
        place,
    }
}

fn shared_directory(line: &mut Line, share: ShareEnd<'_>) {
    match share {
        ShareEnd::VirtioFs { tag, fs, fd } => {
            line.chardev(&Chardev { id: SHARE_CHARDEV, fd });
            line.device(&virtio_fs(tag, fs, None));
        }
        ShareEnd::Virtio9p { tag, source } => {
            line.option("-fsdev", Fsdev { id: "fsdev0", path: source }.option());
            line.device(&Device::Virtio9pPci { id: SHARE, fsdev: "fsdev0", mount_tag: tag.to_string() });
        }
    }
}

fn vsock(line: &mut Line, end: VsockEnd) {
    match end {
        VsockEnd::Vhost { fd, cid } => {
            let vhostfd = fd.to_string();
            line.device(&Device::VhostVsockPci { id: VSOCK, guest_cid: cid, vhostfd, place: None });
        }
        VsockEnd::VhostUser { fd } => {
            line.chardev(&Chardev { id: VSOCK_CHARDEV, fd });
            line.device(&Device::VhostUserVsockPci { id: VSOCK, chardev: VSOCK_CHARDEV, place: None });
        }
    }
}

fn nic(line: &mut Line, number: usize, nic: &NicEnd) {
    let id = format!("nic{number}");
    let numbers = |fds: &[RawFd]| fds.iter().map(RawFd::to_string).collect::<Vec<_>>().join(":");
    let vhostfds = Some(numbers(&nic.vhost)).filter(|fds| !fds.is_empty());
    let (fds, vhost) = (numbers(&nic.queues), vhostfds.is_some());
    line.json("-netdev", &Netdev::Tap { id: id.clone(), fds, vhost, vhostfds });
    // No list of descriptors is longer than that.
    line.device(&Device::nic(id, nic.mac, nic.queues.len() as u32, None));
}

fn vhost_user(line: &mut Line, number: usize, device: &VhostUser) {
    let (id, chardev) = (format!("vhost-user{number}"), format!("charvhost-user{number}"));
    let dialled = Dialled { id: &chardev, path: device.socket(), reconnect: device.reconnect };
    line.option("-chardev", dialled.option());
    let device = match device.kind {
        VhostUserKind::Blk => Device::VhostUserBlkPci { id, chardev, place: None },
        VhostUserKind::Scsi => Device::VhostUserScsiPci { id, chardev },
        VhostUserKind::Net(mac) => {
            let netdev = format!("netvhost-user{number}");
            line.option("-netdev", format!("vhost-user,id={netdev},chardev={chardev}"));
            let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
            Device::VirtioNetPci {
                id,
                netdev,
                mac,
                mq: false,
                vectors: 4,
                romfile: "",
                by_program: true,
                place: None,
            }
        }
    };
    line.device(&device);
}

fn kernel(line: &mut Line, spec: &VmSpec, ticks_per_ms: Option<u64>) {
    line.option("-kernel", &spec.kernel);
    if let Boot::Initrd(initrd) = &spec.boot {
        line.option("-initrd", initrd);
    }
    line.option("-append", kernel_params::command_line(spec, ticks_per_ms));
}

/// A command line in the making.
#[derive(Default)]
struct Line {
    arguments: Vec<OsString>,
    /// How virtio devices on PCI present themselves; `None` on a board without PCI.
    virtio: Option<VirtioPci>,
}

impl Line {
    fn flag(&mut self, name: &str) {
        self.arguments.push(name.into());
    }

    fn option(&mut self, name: &str, value: impl AsRef<OsStr>) {
        self.arguments.extend([name.into(), value.as_ref().to_owned()]);
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
        match self.virtio {
            Some(virtio) => self.json("-device", &device.presented(virtio)),
            None => self.json("-device", &device.without_pci()),
        }
    }
}
