//! Guests that share no directory with the host.

use super::{BIND_MOUNTS, Checker};
use crate::choice::SharedFs;
use crate::hypervisor::Hypervisor;
use crate::runtime::Runtime;

const SHARED_FS: &str = "hypervisor.qemu.shared_fs";
const MACHINE_TYPE: &str = "hypervisor.qemu.machine_type";
const NO_BLOCK_DEVICES: &str = "hypervisor.qemu.disable_block_device_use";

impl Checker<'_> {
    /// Root file systems are then disks, which have to be possible, and what is copied is copied for a container.
    pub(super) fn unshared(&mut self, hypervisor: &Hypervisor, runtime: &Runtime) {
        if hypervisor.shared_fs != SharedFs::None || !self.sound(&[SHARED_FS]) {
            return;
        }
        let with = format!("with {SHARED_FS} = \"none\"");
        if hypervisor.disable_block_device_use && self.sound(&[NO_BLOCK_DEVICES]) {
            let what = format!("true leaves guests without root file systems {with}: set false");
            self.problem(NO_BLOCK_DEVICES, what);
        }
        if !hypervisor.machine.capabilities().pci && self.sound(&[MACHINE_TYPE]) {
            let what =
                format!("this board gets no disks later, which all root file systems are {with}: set q35");
            self.problem(MACHINE_TYPE, what);
        }
        if !runtime.bind_mounts.is_empty() && self.sound(&[BIND_MOUNTS]) {
            let what = format!("nothing is there to show them in {with}: set auto there, or none here");
            self.problem(BIND_MOUNTS, what);
        }
    }
}
