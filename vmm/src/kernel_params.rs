//! The guest kernel's command line.

use crate::accelerator::Accelerator;
use crate::spec::{
    BlockDriver, Boot, Console, Extension, ImageDriver, ImageFs, Machine, PassThrough, Verity, VirtioPci,
    VmSpec,
};

/// What the board and the hypervisor make known or unnecessary. The first three are about clocks, which the guest
/// would otherwise spend time to distrust; the keyboard controller has no mouse and no surprises; a reset goes
/// through it and ends QEMU; network interfaces keep the kernel's names; there is one PCI root bus.
const BOARD: [&str; 12] = [
    "tsc=reliable",
    "no_timer_check",
    "rcupdate.rcu_expedited=1",
    "i8042.direct=1",
    "i8042.dumbkbd=1",
    "i8042.nopnp=1",
    "i8042.noaux=1",
    "noreplace-smp",
    "reboot=k",
    "cryptomgr.notests",
    "net.ifnames=0",
    "pci=lastbus=0",
];

/// The same for a board without PCI, whose guest ends QEMU by a triple fault: there is no keyboard controller.
const MICROVM: [&str; 8] = [
    "tsc=reliable",
    "no_timer_check",
    "rcupdate.rcu_expedited=1",
    "noreplace-smp",
    "reboot=t",
    "cryptomgr.notests",
    "net.ifnames=0",
    "pci=off",
];

/// The same for ARM, where devices are not translated for unless they are passed through.
const VIRT: [&str; 4] =
    ["rcupdate.rcu_expedited=1", "cryptomgr.notests", "net.ifnames=0", "iommu.passthrough=0"];

/// What makes the init system of a guest image start the agent and leave the network to it.
const SYSTEMD: [&str; 3] = [
    "systemd.unit=kata-containers.target",
    "systemd.mask=systemd-networkd.service",
    "systemd.mask=systemd-networkd.socket",
];

/// Devices the guest's own kernel drives keep seeing memory as it is; those it passes on go through the IOMMU.
const IOMMU: [&str; 2] = ["intel_iommu=on", "iommu=pt"];

/// A page that is given away is not made empty first, as is done where the kernel was built to: to an emulated processor
/// that is another pass over all bytes that move through pipes and sockets. See docs/security.md.
const EMULATED: [&str; 1] = ["init_on_alloc=0"];

/// The timer of QEMU's local APIC counts nanoseconds, undivided (hw/intc/apic.c). The kernel of guest/kernel takes our
/// word for it; others, to which this is a word for a module that they have not, measure it for a tenth of a second.
const EMULATED_APIC: [&str; 1] = ["lapic.timer_hz=1000000000"];

/// The whole line. Later words win, so the specification's own come last. `ticks_per_ms` is the rate of
/// its clock, for a guest that would measure it.
pub(crate) fn command_line(spec: &VmSpec, ticks_per_ms: Option<u64>) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut add = |list: &[&str]| words.extend(list.iter().map(ToString::to_string));
    add(match spec.machine {
        Machine::Q35(_) => &BOARD,
        Machine::Virt(_) => &VIRT,
        Machine::Microvm(_) => &MICROVM,
    });
    if let Some(rate) = ticks_per_ms {
        add(&[&format!("tsc_early_khz={rate}")]);
    }
    if spec.accelerator == Accelerator::Tcg {
        add(&EMULATED);
        if !matches!(spec.machine, Machine::Virt(_)) {
            add(&EMULATED_APIC);
        }
    }
    if let Boot::Image { fs, driver, verity, .. } = &spec.boot {
        let root = root(*fs, *driver, verity.as_ref());
        add(&root.iter().map(String::as_str).collect::<Vec<_>>());
    }
    add(&[match (spec.console, &spec.machine) {
        (Console::Virtio, _) => "console=hvc0",
        (Console::Serial, Machine::Virt(_)) => "console=ttyAMA0",
        (Console::Serial, _) => "console=ttyS0",
    }]);
    add(verbosity(spec));
    // Without these a guest whose kernel panicked would stay, doing nothing, and one whose kernel found itself wrong would
    // go on without the process that did, whose end nobody would hear of; with them QEMU ends, as it may not reboot.
    add(&["panic=1", "oops=panic"]);
    add(&[&format!("nr_cpus={}", spec.vcpus.max())]);
    if spec.block.driver == BlockDriver::VirtioScsi {
        // The agent asks for each disk it is told of; looking for others takes time.
        add(&["scsi_mod.scan=none"]);
    }
    if spec.iommu {
        add(&IOMMU);
    }
    if matches!(spec.machine, Machine::Q35(_)) && !bounces(spec) {
        add(&["swiotlb=noforce"]);
    }
    if matches!(spec.boot, Boot::Image { .. }) {
        add(&SYSTEMD);
    }
    words.extend(spec.extensions.iter().map(extension));
    words.extend(spec.kernel_params.iter().map(ToString::to_string));
    words.join(" ")
}

/// Whether a device may reach less than all of the guest's memory, so that what it reads and writes is copied to where it
/// does. The guest's kernel sets 64 MiB aside for that as soon as memory could grow beyond 4 GiB.
fn bounces(spec: &VmSpec) -> bool {
    let devices_of_host = spec.pass_through != PassThrough::Never;
    devices_of_host || spec.protection.is_some() || spec.iommu || spec.virtio == VirtioPci::BehindIommu
}

/// The root file system on the first partition of the image. An image that is memory is not cached a second time,
/// unless its blocks are checked, which needs them to be read.
fn root(fs: ImageFs, driver: ImageDriver, verity: Option<&Verity>) -> Vec<String> {
    let disk = if driver.is_memory() { "/dev/pmem0p" } else { "/dev/vda" };
    let [data, hashes] = [1, 2].map(|partition| format!("{disk}{partition}"));
    let checked = verity.map(|verity| verity.at_boot(&data, &hashes));
    let device = if checked.is_some() { "root=/dev/dm-0".to_owned() } else { format!("root={data}") };
    let dax = driver.is_memory() && checked.is_none();
    let (flags, kind) = match (fs, dax) {
        (ImageFs::Ext4, true) => (Some("rootflags=dax,data=ordered,errors=remount-ro"), "rootfstype=ext4"),
        (ImageFs::Ext4, false) => (Some("rootflags=data=ordered,errors=remount-ro"), "rootfstype=ext4"),
        (ImageFs::Xfs, dax) => (dax.then_some("rootflags=dax"), "rootfstype=xfs"),
        (ImageFs::Erofs, dax) => (dax.then_some("rootflags=dax"), "rootfstype=erofs"),
    };
    let how = [flags, Some("ro"), Some(kind)].into_iter().flatten().map(str::to_owned);
    checked.into_iter().chain([device]).chain(how).collect()
}

/// The guest mounts an extension without checks only if it has none to be checked by.
fn extension(extension: &Extension) -> String {
    let Extension { name, verity, .. } = extension;
    match verity {
        Some(verity) => format!("kata.extension.{name}.verity_params={verity}"),
        None => format!("kata.extension.{name}.verity_params"),
    }
}

fn verbosity(spec: &VmSpec) -> &'static [&'static str] {
    match (spec.debug, &spec.boot) {
        (true, Boot::Initrd(_)) => &["debug"],
        (true, Boot::Image { .. }) => &["debug", "systemd.show_status=true", "systemd.log_level=debug"],
        (false, Boot::Initrd(_)) => &["quiet"],
        (false, Boot::Image { .. }) => &["quiet", "systemd.show_status=false"],
    }
}
