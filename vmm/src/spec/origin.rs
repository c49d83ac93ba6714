//! Where a machine's first state comes from.

use std::path::PathBuf;

use super::{Backing, Boot, ImageDriver, Machine, PassThrough, ShareKind, VmSpec};

/// Where a machine's first state comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Origin {
    /// Its own boot.
    #[default]
    Boot,
    /// Its own boot, so that it can be saved by [`crate::Vm::save`] for others to be copies of it: its memory is this
    /// file, which must not be there yet.
    Template {
        /// The file.
        memory: PathBuf,
    },
    /// A template that was made by a specification which, but for names, sockets and directories, is the same.
    Copy {
        /// The template's memory.
        memory: PathBuf,
        /// Everything else of its state.
        state: PathBuf,
        /// What becomes of its memory.
        restore: Restore,
    },
}

/// How the memory of a template becomes that of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restore {
    /// All of it is read: other processes can map the copy's, as vhost-user devices must.
    Load,
    /// The copy maps the template's and has pages of its own as soon as it writes to them.
    CopyOnWrite,
}

impl VmSpec {
    /// Whether the guest can be asked for memory back: a template is before it is saved, so that it is small.
    pub(crate) fn has_balloon(&self) -> bool {
        self.reclaim_freed_memory || self.origin != Origin::Boot
    }

    /// Whether other processes map the guest's memory.
    #[must_use]
    pub fn shares_memory(&self) -> bool {
        self.vsock == super::VsockSpec::VhostUser || self.has_late_share() || !self.vhost_user.is_empty()
    }

    /// Whether another program serves the share, so that a template has none and its copies get one late.
    #[must_use]
    pub fn has_late_share(&self) -> bool {
        matches!(&self.share, Some(share) if share.kind != ShareKind::Virtio9p)
    }

    /// What keeps the machine from being a template or the copy of one; nothing for most.
    #[must_use]
    pub fn against_template(&self) -> Option<&'static str> {
        let image_is_memory =
            matches!(self.boot, Boot::Image { driver: ImageDriver::Nvdimm | ImageDriver::VirtioPmem, .. });
        let dax = matches!(&self.share, Some(share) if matches!(&share.kind, ShareKind::VirtioFs(fs) if fs.dax_mib > 0));
        [
            (!matches!(self.machine, Machine::Q35(_)), "a board other than q35"),
            (self.backing != Backing::Anonymous, "memory in huge pages or in a file of its own"),
            (self.prealloc, "memory that is taken from the host at the start"),
            (self.numa.is_some(), "NUMA nodes"),
            (self.protection.is_some() || self.sgx_epc.is_some(), "protected memory"),
            (self.iommu, "an IOMMU"),
            (
                matches!(&self.pass_through, PassThrough::Cold { devices, .. } if !devices.is_empty()),
                "devices of the host",
            ),
            (!self.vhost_user.is_empty(), "vhost-user devices"),
            (!self.nics.is_empty(), "network interfaces from the start"),
            (image_is_memory, "an image that is memory"),
            (dax, "a window of shared files"),
            (self.rootless, "a user of its own"),
        ]
        .into_iter()
        .find_map(|(is_so, what)| is_so.then_some(what))
    }
}
