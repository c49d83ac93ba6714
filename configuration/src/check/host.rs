//! What the host has to have.

use vmm::VHOST_VSOCK;
use vmm::spec::Accelerator;

use super::Checker;
use crate::choice::{AcceleratorChoice, SharedFs, VsockChoice};
use crate::raw::RawHypervisor;

const ACCELERATOR: &str = "hypervisor.qemu.accelerator";
const VSOCK: &str = "hypervisor.qemu.vsock";
const ROOTLESS: &str = "hypervisor.qemu.rootless";
const SHARED_FS: &str = "hypervisor.qemu.shared_fs";

impl Checker<'_> {
    /// Names what is asked for by name and not there; `auto` is content with what is.
    pub(super) fn host_has(&mut self, raw: &RawHypervisor) {
        if let (AcceleratorChoice::Kvm, Some(why)) = (raw.accelerator, self.host.no_kvm.clone()) {
            let what =
                format!("kvm is asked for, but cannot be used: {why}; auto or tcg would run without it");
            self.problem(ACCELERATOR, what);
        }
        if raw.vsock == VsockChoice::Vhost && !self.host.vhost_vsock {
            let what = format!(
                "vhost is asked for, but {VHOST_VSOCK} is not there: load the vhost_vsock module, or set vhost-user"
            );
            self.problem(VSOCK, what);
        }
        self.share(raw);
    }

    /// Whether QEMU's translator runs the guest.
    pub(super) fn translated(&self, raw: &RawHypervisor) -> bool {
        match raw.accelerator {
            AcceleratorChoice::Auto => self.host.accelerator == Accelerator::Tcg,
            choice => choice == AcceleratorChoice::Tcg,
        }
    }

    /// Files of a share are the containers' users'; with virtio-9p it would be QEMU that serves them.
    fn share(&mut self, raw: &RawHypervisor) {
        let translated = self.translated(raw);
        let what = match raw.shared_fs {
            SharedFs::Virtio9p => {
                format!(
                    "set together with {SHARED_FS} = \"virtio-9p\", which QEMU itself serves, as root; use virtio-fs"
                )
            }
            SharedFs::Auto if translated && self.sound(&[ACCELERATOR]) => {
                format!(
                    "cannot be had with virtio-9p, which {SHARED_FS} = auto means under TCG: set virtio-fs there"
                )
            }
            SharedFs::Auto | SharedFs::VirtioFs | SharedFs::VirtioFsNydus | SharedFs::None => return,
        };
        if raw.rootless && self.sound(&[ROOTLESS, SHARED_FS]) {
            self.problem(ROOTLESS, what);
        }
    }
}
